"""Python's operators on what may be known at run time only.

Plain values are treated as Python treats them, handles are staged. Nothing here knows a framework.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
import types
from typing import TYPE_CHECKING, Any

import numpy as np

from exporters.errors import ScriptError
from exporters.tracing.bodies import (
    NO_SCOPE,
    Scope,
    condition_in,
    condition_value,
    is_data,
    recorded,
)
from exporters.tracing.branches import if_
from exporters.tracing.chosen import Chosen, pick
from exporters.tracing.implied import imply, said_by
from exporters.tracing.keys import (
    OpenItems,
    equal_dicts,
    has_key,
    key_count,
    merged_dicts,
    settled,
)
from exporters.tracing.leaves import UNBOUND, presence
from exporters.tracing.lists import StagedList
from exporters.tracing.merging import is_staged
from exporters.tracing.own_lists import ScanList, held
from exporters.tracing.scalars import ScalarRecord, TracedBool, TracedInt, TracedScalar
from exporters.tracing.texts import TracedText, formatted, joined
from exporters.tracing.trace import Assumption, Interrupt, Trace

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx_ir as ir

__all__ = ["UPDATES", "Operand", "and_", "arithmetic", "assert_", "beside", "bind", "compare", "getitem",
           "ifexp", "not_", "or_", "own_method", "percent", "plain_truth", "require_key",
           "setitem", "staged_in", "text", "text_format", "truth", "updateitem"]  # fmt: skip


def bind(read: Callable[[], Any]) -> Any:
    """A name's value, UNBOUND if it has none."""
    try:
        return read()
    except NameError:
        return UNBOUND


def staged_in(*values: Any) -> Trace | None:
    """The trace, if it records and one of the values is known at run time only."""
    trace = recorded()
    if trace is not None and any(is_staged(trace, x) for x in values):
        return trace
    return None


def plain_truth(condition: Any) -> bool:
    """A condition's truth where nothing is staged."""
    trace = Trace.current()
    if (
        trace is not None
        and trace.live
        and not trace.recording
        and isinstance(condition, TracedScalar)
    ):
        return condition_in(trace, condition, trace.active[0])
    return bool(condition)


def truth(x: Any) -> Any:
    """``x`` where only its truth matters."""
    x = held(x)
    trace = staged_in(x)
    if trace is None:
        count = key_count(x)
        if count is not None:
            return compare("gt", count, 0)
        own = own_method(x, "__bool__") or own_method(x, "__len__")
        return x if own is None else truth(own())
    if isinstance(x, TracedBool):
        return x
    return _traced_bool(trace, x, lambda v: v)


def own_method(x: Any, name: str) -> Callable[..., Any] | None:
    """A special method that the user wrote: Python's builtins take what it returns for plain."""
    function = getattr(type(x), name, None)
    if recorded() is None or not isinstance(function, types.FunctionType):
        return None
    if function.__module__.partition(".")[0] in ("exporters", "torch"):
        return None
    return functools.partial(function, x)


def _traced_bool(
    trace: Trace, x: Any, change: Callable[[ir.Value], ir.Value], *, negate: bool = False
) -> Any:
    worlds = {w: condition_in(trace, x, w) is not negate for w in trace.active}
    record = ScalarRecord(
        trace, worlds, data=is_data(trace, x), scalar=change(condition_value(trace, x))
    )
    return TracedBool(record)


def arithmetic(name: str, a: Any, b: Any) -> Any:
    """``a + b`` and its like."""
    if name == "or" and isinstance(a, dict) and isinstance(b, dict):
        return merged_dicts(a, b)
    return _BINARY[name](a, beside(a, b))


def beside(a: Any, b: Any) -> Any:
    """``b`` as the operand of an operator behind ``a``: no int of the graph beside a plain float."""
    if isinstance(b, TracedInt) and isinstance(a, float) and not isinstance(a, TracedScalar):
        trace = Trace.current()
        if trace is not None and trace.live:
            return trace.arithmetic("float", b)
    return b


_BINARY = {
    "add": operator.add, "sub": operator.sub, "mul": operator.mul, "truediv": operator.truediv,
    "floordiv": operator.floordiv, "mod": operator.mod, "pow": operator.pow,
    "or": operator.or_,
}  # fmt: skip


def not_(x: Any) -> Any:
    """``not x``."""
    trace = staged_in(x)
    if trace is None:
        return not plain_truth(x)
    if_true, if_false = said_by(trace, x)
    found = _traced_bool(trace, x, trace.builder.Not, negate=True)
    return imply(trace, found, if_true=if_false, if_false=if_true)


class Operand:
    """An operand that binds names when it is evaluated (``a and (n := f())``).

    Args:
        evaluate: Evaluates it.
        scope: The names; None if it binds none, and only changes what its function reaches.
    """

    def __init__(self, evaluate: Callable[[], Any], scope: Scope | None) -> None:
        self.evaluate = evaluate
        self.scope = scope or Scope((), lambda: (), lambda _: None, lambda: (evaluate,))

    def __call__(self) -> Any:
        """Its value."""
        return self.evaluate()


def _scope_of(*operands: Any) -> Scope:
    """What operands may bind; errors are told of the whole expression."""
    scope = next((x.scope for x in operands if isinstance(x, Operand)), NO_SCOPE)
    return dataclasses.replace(scope, source=None)


def _same(x: Any) -> Any:
    return x


def _noting(operand: Callable[[], Any], said: list[Any], which: int) -> Any:
    """What an operand gives; ``said`` gets what its being true (0) or false (1) says of values."""
    found, trace = operand(), recorded()
    if trace is not None:
        said += said_by(trace, found)[which]
    return found


def and_(first: Any, *rest: Callable[[], Any]) -> Any:
    """``first and rest[0]() and ...``."""
    for operand in rest:
        if staged_in(first) is None:
            if not plain_truth(first):
                return first
            first = operand()
        else:
            known, trace = first, recorded()
            short = False if isinstance(known, TracedBool) else known  # not taken: it is false
            said: list[Any] = []
            then = functools.partial(_noting, operand, said, 0)
            first = if_(known, then, functools.partial(_same, short), _scope_of(operand))
            if trace is not None:
                imply(trace, first, if_true=[*said_by(trace, known)[0], *said])
    return first


def or_(first: Any, *rest: Callable[[], Any]) -> Any:
    """``first or rest[0]() or ...``."""
    for operand in rest:
        if staged_in(first) is None:
            if plain_truth(first):
                return first
            first = operand()
        else:
            known, trace = first, recorded()
            short = True if isinstance(known, TracedBool) else known
            said: list[Any] = []
            orelse = functools.partial(_noting, operand, said, 1)
            first = if_(known, functools.partial(_same, short), orelse, _scope_of(operand))
            if trace is not None:
                imply(trace, first, if_false=[*said_by(trace, known)[1], *said])
    return first


def ifexp(condition: Any, then: Callable[[], Any], orelse: Callable[[], Any]) -> Any:
    """``then() if condition else orelse()``."""
    return if_(condition, then, orelse, _scope_of(then, orelse))


_COMPARE = {"eq": operator.eq, "ne": operator.ne, "lt": operator.lt, "le": operator.le,
            "gt": operator.gt, "ge": operator.ge}  # fmt: skip


def compare(name: str, a: Any, b: Any) -> Any:
    """A comparison; of numbers it is a traced truth value, not asked of Python."""
    for one, other in ((a, b), (b, a)):
        if isinstance(one, Chosen) and name in ("eq", "ne", "is", "is_not"):
            return one.map(functools.partial(compare, name, other))
    for one, other in ((a, b), (b, a)):
        if isinstance(one, TracedText) and name in ("eq", "ne") and recorded():
            found = _is_text(one, other)
            return found if name == "eq" else not_(found)
    if name in ("is", "is_not"):
        found = _is(a, b)
        return found if name == "is" else not_(found)
    if name in ("in", "not_in"):
        found = _contains(b, a)
        return found if name == "in" else not_(found)
    if isinstance(a, TracedScalar) or isinstance(b, TracedScalar):
        a, b = (x.item() if isinstance(x, np.number | np.bool_) else x for x in (a, b))
    numbers = isinstance(a, int | float) and isinstance(b, int | float)
    if numbers and (isinstance(a, TracedScalar) or isinstance(b, TracedScalar)):
        trace = Trace.current()
        if trace is not None and trace.live:
            if trace.recording and trace.certain(a, b):
                return _COMPARE[name](a, b)
            return trace.arithmetic(name, a, b)
    if name in ("eq", "ne") and isinstance(a, dict) and isinstance(b, dict):
        equal = equal_dicts(a, b)
        if equal is not None:
            return equal if name == "eq" else not_(equal)
    if name in ("eq", "ne") and recorded() and isinstance(a, list) and isinstance(b, list):
        lists = a if isinstance(a, StagedList) else b
        if isinstance(lists, StagedList):
            equal = lists.trace.frontend.lists_equal(a, b)
            if equal is not None:
                return equal if name == "eq" else not_(equal)
    if name in _STRICT and _holds_numbers(a, b):
        return _ordered(name, a, b)
    if name in ("eq", "ne") and _holds_numbers(a, b):
        equal = len(a) == len(b) and and_(
            True, *(functools.partial(compare, "eq", x, y) for x, y in zip(a, b, strict=True))
        )
        return equal if name == "eq" else not_(equal)
    return _COMPARE[name](a, b)


_STRICT = {"lt": "lt", "le": "lt", "gt": "gt", "ge": "gt"}


def _ordered(name: str, a: Any, b: Any) -> Any:
    """A comparison of two tuples or lists of numbers: the first that differ decide."""
    if not a or not b:
        return _COMPARE[name](len(a), len(b))
    if len(a) == len(b) == 1:
        return truth(compare(name, a[0], b[0]))
    more = truth(compare(_STRICT[name], a[0], b[0]))
    same = functools.partial(compare, "eq", a[0], b[0])
    rest = functools.partial(_ordered, name, a[1:], b[1:])
    return or_(more, lambda: and_(truth(same()), rest))


def _is_text(text: TracedText, other: Any) -> Any:
    """``text == other``."""
    if text.number is None or not isinstance(other, str) or isinstance(other, TracedText):
        return text == other
    number = text.number_in(other)
    return False if number is None else compare("eq", text.number, number)


def text(*parts: Any) -> str:
    """``f"{a}b"``."""
    return joined([format(_number(x), "") for x in parts])


def percent(template: str, values: Any) -> str:
    """``"layer_%d" % values``."""
    if isinstance(values, dict):
        return template % values
    given = values if isinstance(values, tuple) else (values,)
    return formatted("%", template, tuple(map(_number, given)))


def text_format(template: str, *values: Any) -> str:
    """``"layer_{}".format(*values)``."""
    return formatted("format", template, tuple(map(_number, values)))


def _number(x: Any) -> Any:
    """A tensor without dims as the number that its text is made of."""
    trace = staged_in(x)
    if trace is None or not trace.frontend.is_handle(x) or len(trace.frontend.type_of(x)[1]):
        return x
    return trace.frontend.to_number(x)


def _is(a: Any, b: Any) -> Any:
    """``a is b``; what may be None is asked whether it is."""
    trace = Trace.current()
    truths = TracedBool in (type(a), type(b)) and all(
        type(x) in (TracedBool, bool) for x in (a, b)
    )
    if truths and trace is not None and trace.live:
        return compare("eq", a, b)  # there are but two truth values
    if trace is None or not trace.live or (a is not None and b is not None):
        return a is b
    present = presence(trace, b if a is None else a)
    if present is None:
        return a is b
    if not trace.recording:
        return not trace.number_in(present, trace.active[0])
    return imply(trace, not_(present), if_false=[b if a is None else a])


def _holds_numbers(a: Any, b: Any) -> bool:
    """Whether two tuples or two lists, sizes of tensors perhaps, are compared number by number."""
    trace = recorded()
    alike = any(isinstance(a, kind) and isinstance(b, kind) for kind in (tuple, list))
    if not alike or trace is None:
        return False

    def is_number(x: Any) -> bool:
        return isinstance(x, int | float) or (trace.frontend.is_array(x) and x.ndim == 0)

    items = (*a, *b)
    return all(map(is_number, items)) and any(
        isinstance(x, TracedScalar) or trace.record(x) is not None for x in items
    )


def _holds_staged(trace: Trace, *values: Any) -> bool:
    """Whether one of some values is known at run time only, or is a tuple of such."""
    flat = (y for x in values for y in (x if type(x) is tuple else (x,)))
    return any(is_staged(trace, x) for x in flat)


def _contains(container: Any, x: Any) -> Any:
    if isinstance(x, Chosen):
        return x.map(functools.partial(_contains, container))
    found: Any = False
    if isinstance(x, TracedText) and recorded():
        for key in container:
            there = has_key(container, key)
            same = and_(compare("eq", x, key), functools.partial(_same, there is None or there))
            found = or_(found, functools.partial(_same, same))
        return found
    container = held(container)
    listed = isinstance(container, list | tuple) and not isinstance(container, StagedList)
    inside = container if listed else ()
    here = has_key(container, x)
    if here is not None:
        return here
    own = own_method(container, "__contains__")
    if own is not None:
        return truth(own(x))
    trace = recorded()
    if trace is None or not (
        isinstance(container, OpenItems) or _holds_staged(trace, x, container, *inside)
    ):
        return x in container
    if trace.frontend.is_array(container):
        return trace.frontend.any_equal(container, x)
    if isinstance(container, StagedList):
        return compare("gt", trace.frontend.list_count(container, x), 0)
    if isinstance(container, OpenItems):
        for there, item in container.entries:
            here = functools.partial(compare, "eq", item, x)
            found = or_(found, functools.partial(and_, there, here))
        return found
    if isinstance(container, dict):
        container = list(container)
    for item in container:
        found = or_(found, functools.partial(compare, "eq", item, x))
    return found


def getitem(container: Any, index: Any) -> Any:
    """``container[index]``, where the index may be known at run time only."""
    trace = Trace.current()
    if isinstance(index, Chosen):
        return index.map(lambda key: settled(container, key))
    if isinstance(index, TracedText) and recorded():
        return _by_text(container, index)
    if trace is None or not trace.live or not is_staged(trace, index):
        return settled(container, index)
    if not trace.recording:
        return container[trace.frontend.concrete(index, trace.active[0])]
    if trace.frontend.is_array(index) and not trace.frontend.is_array(container):
        index = trace.frontend.to_number(index)
    if (
        isinstance(container, StagedList)
        or trace.frontend.is_array(container)
        or isinstance(container, ScanList)
    ):
        return container[index]
    if trace.frontend.is_array(index):
        index = trace.frontend.to_number(index)
    if isinstance(container, range):
        return index * container.step + container.start
    if isinstance(container, dict):
        require_key(trace, container, index)
        keys, items = list(container), list(container.values())
    else:
        items = [container[i] for i in range(len(container))]
        keys = list(range(len(items)))
        index = trace.arithmetic("mod", index, len(items))  # from the end, too
    return pick(trace, index, keys, items)


def _by_text(container: Any, text: TracedText) -> Any:
    """What a mapping holds under a text that is made of a number."""
    known = text.among(container.keys())
    if text.number is None or not all(x in known.values() for x in text.worlds.values()):
        return container[text]  # KeyError, or a question that has no answer
    return pick(text.trace, text.number, list(known), [container[k] for k in known.values()])


def require_key(trace: Trace, container: dict[Any, Any], key: Any) -> None:
    """Raise if a dict lacks a key that only run time knows.

    Raises:
        Interrupt: The dict would hold other keys for other inputs.
    """
    firm = [w for w in trace.active if w not in trace.ghosts]
    late = any((id(container), k) in trace.late_keys for k in container)
    if not late and all(trace.frontend.concrete(key, w) in container for w in firm):
        return
    trace.moved()
    source, _ = trace.position()
    raise Interrupt(
        ScriptError(
            "which keys this dict has depends on the input's values",
            source=source,
            hint="use a list, or a tensor indexed by the number: `counts[v] += 1`",
        )
    )


def setitem(container: Any, index: Any, value: Any) -> None:
    """``container[index] = value``, where the index may be known at run time only."""
    trace = Trace.current()
    if isinstance(index, Chosen):
        index.map(lambda key: operator.setitem(container, key, value))
        return
    if trace is None or not trace.live or not is_staged(trace, index):
        container[index] = value
        return
    if not trace.recording:
        container[trace.frontend.concrete(index, trace.active[0])] = value
        return
    if isinstance(container, StagedList | ScanList) or trace.frontend.is_array(container):
        container[index] = value
        return
    if trace.frontend.is_array(index):
        index = trace.frontend.to_number(index)
    keys: Any = list(container) if isinstance(container, dict) else range(len(container))
    if isinstance(container, dict):
        require_key(trace, container, index)
    else:
        index = trace.arithmetic("mod", index, len(container))  # from the end, too
    for key in keys:
        old = container[key]
        here = compare("eq", index, key)
        container[key] = if_(here, lambda: value, functools.partial(_same, old), NO_SCOPE)


def updateitem(container: Any, index: Any, operation: str, value: Any) -> None:
    """``container[index] += value`` and its like; ``operation`` is the syntax tree's name of it."""
    old = getitem(container, index)
    setitem(container, index, UPDATES[operation](old, value))


UPDATES: dict[str, Callable[[Any, Any], Any]] = {
    "Add": operator.iadd, "Sub": operator.isub, "Mult": operator.imul, "Div": operator.itruediv,
    "FloorDiv": operator.ifloordiv, "Mod": operator.imod, "Pow": operator.ipow,
    "MatMult": operator.imatmul, "BitAnd": operator.iand, "BitOr": operator.ior,
    "BitXor": operator.ixor, "LShift": operator.ilshift, "RShift": operator.irshift,
}  # fmt: skip


def assert_(condition: Any, message: Callable[[], Any]) -> None:
    """``assert condition, message()``; a staged condition is noted as an assumption."""
    trace = staged_in(condition)
    if trace is None:
        if not plain_truth(condition):
            raise AssertionError(message())
        return
    firm = [w for w in trace.active if w not in trace.ghosts]
    if not all(condition_in(trace, condition, w) for w in firm):
        raise AssertionError(message())
    trace.moved()
    source, _ = trace.position()
    text = "" if source is None else source.excerpt().split("\n")[0].strip()
    trace.assumptions.append(Assumption(f"`{text}`", True, source))
