"""What compiled code calls instead of Python's own operators, statements and builtins.

Each of these looks at its operands: plain values are treated as Python treats them, handles are
staged. Nothing here knows a framework.
"""

from __future__ import annotations

import builtins
import functools
import math
import operator
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from exporters.tracing import scalars
from exporters.tracing.chosen import Chosen, pick
from exporters.tracing.lists import ScanList, StagedList
from exporters.tracing.loops import Iterable, stage_loop
from exporters.tracing.merging import UNBOUND, is_staged
from exporters.tracing.scalars import TracedBool, TracedInt, TracedScalar
from exporters.tracing.staging import Scope, condition_in, condition_value, if_, recorded
from exporters.tracing.trace import Assumption, Trace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = [
    "UNBOUND",
    "Nested",
    "Operand",
    "Scope",
    "and_",
    "assert_",
    "bind",
    "call",
    "compare",
    "comprehension",
    "for_",
    "generator",
    "getitem",
    "if_",
    "ifexp",
    "not_",
    "or_",
    "truth",
    "while_",
]

_NO_SCOPE = Scope((), lambda: (), lambda _: None, lambda: ())


def bind(read: Callable[[], Any]) -> Any:
    """A name's value, UNBOUND if it has none."""
    try:
        return read()
    except NameError:
        return UNBOUND


def _staged(*values: Any) -> Trace | None:
    """The trace, if it records and one of the values is known at run time only."""
    trace = recorded()
    if trace is not None and any(is_staged(trace, x) for x in values):
        return trace
    return None


# --- statements ---------------------------------------------------------------------------------


def while_(test: Callable[[], Any], body: Callable[[], None], scope: Scope) -> None:
    """``while test: body``; iterations are run natively until the condition is staged."""
    while True:
        condition = test()
        trace = _staged(condition)
        if trace is not None:
            stage_loop(trace, body, scope, test=test)
            return
        if not _plain_truth(condition):
            return
        body()


def _plain_truth(condition: Any) -> bool:
    trace = Trace.current()
    if (
        trace is not None
        and trace.live
        and not trace.recording
        and isinstance(condition, TracedScalar)
    ):
        return condition_in(trace, condition, trace.active[0])
    return bool(condition)


def for_(
    items: Any, body: Callable[[Any], None], scope: Scope, *, test: Callable[[], Any] | None = None
) -> None:
    """``for target in items: body(target)``, as long as ``test`` holds.

    Args:
        items: What to loop over.
        body: One iteration.
        scope: What it binds.
        test: Whether the loop goes on (no ``break`` yet); called before each iteration.
    """
    trace = recorded()
    if trace is not None:
        staged = iterable(trace, items)
        if staged is not None:
            stage_loop(trace, body, scope, test=test, over=staged)
            return
    sequence = items if isinstance(items, range) else None
    for index, item in enumerate(natively(items)):
        go_on: Any = True if test is None else test()
        if trace is not None and is_staged(trace, go_on):
            if sequence is not None and len(sequence) - index > trace.unroll_limit:
                rest = sequence[index:]
                stage_loop(trace, body, scope, test=test, over=_over_range(rest))
                return
            if_(go_on, functools.partial(body, item), _nothing, scope)
            continue
        if not _plain_truth(go_on):
            break
        body(item)


def _nothing() -> None:
    return None


def _over_range(numbers: range) -> Iterable:
    return Iterable(len(numbers), lambda i: i * numbers.step + numbers.start)


def natively(items: Any) -> Any:
    """``items`` for Python to loop over; in an eager replay, as they are in its world."""
    trace = Trace.current()
    if trace is None or not trace.live or trace.recording:
        return items
    world = trace.active[0]
    if isinstance(items, Iterable):
        return (items.item(i) for i in range(trace.number_in(items.count, world)))
    if isinstance(items, StagedList):
        return list(items.contents.worlds[world])
    return trace.frontend.concrete(items, world) if trace.frontend.is_array(items) else items


def iterable(trace: Trace, items: Any) -> Iterable | None:
    """Something to stage a loop over; None if Python can loop over it."""
    if isinstance(items, Iterable):
        return items if is_staged(trace, items.count) else None
    if isinstance(items, StagedList):
        return Iterable(items.staged_length(), items.__getitem__)
    if trace.frontend.is_handle(items):
        count = trace.frontend.length(items)
        if isinstance(count, TracedInt) or count > trace.unroll_limit:
            return Iterable(count, items.__getitem__)
    if isinstance(items, range) and len(items) > trace.unroll_limit:
        return _over_range(items)
    return None


# --- expressions --------------------------------------------------------------------------------


def truth(x: Any) -> Any:
    """``x`` where only its truth matters."""
    trace = _staged(x)
    if trace is None or isinstance(x, TracedBool):
        return x
    return _traced_bool(trace, x, lambda v: v)


def _traced_bool(
    trace: Trace, x: Any, change: Callable[[ir.Value], ir.Value], *, negate: bool = False
) -> Any:
    worlds = {w: condition_in(trace, x, w) is not negate for w in trace.active}
    record = scalars.ScalarRecord(
        trace, worlds, data=_is_data(trace, x), scalar=change(condition_value(trace, x))
    )
    return TracedBool(record)


def _is_data(trace: Trace, x: Any) -> bool:
    if isinstance(x, TracedScalar):
        return x.record.data
    record = trace.record(x)
    return record is None or record.data


def not_(x: Any) -> Any:
    """``not x``."""
    if isinstance(x, StagedList) and recorded() is not None:
        return x.staged_length() == 0 if not _staged(x) else compare("eq", x.staged_length(), 0)
    trace = _staged(x)
    if trace is None:
        return not _plain_truth(x)
    return _traced_bool(trace, x, trace.builder.Not, negate=True)


class Operand:
    """An operand that binds names when it is evaluated (``a and (n := f())``).

    Args:
        evaluate: Evaluates it.
        scope: The names.
    """

    def __init__(self, evaluate: Callable[[], Any], scope: Scope) -> None:
        self.evaluate = evaluate
        self.scope = scope

    def __call__(self) -> Any:
        return self.evaluate()


def _scope_of(*operands: Any) -> Scope:
    return next((x.scope for x in operands if isinstance(x, Operand)), _NO_SCOPE)


def and_(first: Any, *rest: Callable[[], Any]) -> Any:
    """``first and rest[0]() and ...``."""
    for operand in rest:
        if _staged(first) is None:
            if not _plain_truth(first):
                return first
            first = operand()
        else:
            known = first
            first = if_(known, operand, lambda known=known: known, _scope_of(operand))
    return first


def or_(first: Any, *rest: Callable[[], Any]) -> Any:
    """``first or rest[0]() or ...``."""
    for operand in rest:
        if _staged(first) is None:
            if _plain_truth(first):
                return first
            first = operand()
        else:
            known = first
            first = if_(known, lambda known=known: known, operand, _scope_of(operand))
    return first


def ifexp(condition: Any, then: Callable[[], Any], orelse: Callable[[], Any]) -> Any:
    """``then() if condition else orelse()``."""
    return if_(condition, then, orelse, _scope_of(then, orelse))


_COMPARE = {"eq": operator.eq, "ne": operator.ne, "lt": operator.lt, "le": operator.le,
            "gt": operator.gt, "ge": operator.ge}  # fmt: skip


def compare(name: str, a: Any, b: Any) -> Any:
    """A comparison; of numbers it is a traced truth value, not asked of Python."""
    for one, other in ((a, b), (b, a)):
        if isinstance(one, Chosen) and name in ("eq", "ne"):
            return one.map(lambda x: _COMPARE[name](x, other))
    if name in ("in", "not_in"):
        found = _contains(b, a)
        return found if name == "in" else not_(found)
    numbers = isinstance(a, int | float) and isinstance(b, int | float)
    if numbers and (isinstance(a, TracedScalar) or isinstance(b, TracedScalar)):
        trace = Trace.current()
        if trace is not None and trace.live:
            if trace.recording and trace.certain(a, b):
                return _COMPARE[name](a, b)
            return trace.arithmetic(name, a, b)
    return _COMPARE[name](a, b)


def _contains(container: Any, x: Any) -> Any:
    trace = _staged(x, container)
    if trace is None:
        return x in container
    if trace.frontend.is_array(container):
        return trace.frontend.any_equal(container, x)
    if isinstance(container, dict):
        container = list(container)
    found: Any = False
    for item in container:
        found = or_(found, functools.partial(compare, "eq", item, x))
    return found


def getitem(container: Any, index: Any) -> Any:
    """``container[index]``, where the index may be known at run time only."""
    trace = Trace.current()
    if isinstance(index, Chosen):
        return index.map(lambda key: container[key])
    if trace is None or not trace.live or not is_staged(trace, index):
        return container[index]
    if not trace.recording:
        return container[trace.frontend.concrete(index, trace.active[0])]
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
        keys, items = list(container), list(container.values())
    else:
        items = [container[i] for i in range(len(container))]
        keys = list(range(len(items)))
        index = trace.arithmetic("mod", index, len(items))  # from the end, too
    return pick(trace, index, keys, items)


def setitem(container: Any, index: Any, value: Any) -> None:
    """``container[index] = value``, where the index may be known at run time only."""
    trace = Trace.current()
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
    if not isinstance(container, dict):
        index = trace.arithmetic("mod", index, len(container))  # from the end, too
    for key in keys:
        old = container[key]
        here = compare("eq", index, key)
        container[key] = if_(here, lambda: value, lambda old=old: old, _NO_SCOPE)


def updateitem(container: Any, index: Any, operation: str, value: Any) -> None:
    """``container[index] += value`` and its like; ``operation`` is the syntax tree's name of it."""
    old = getitem(container, index)
    setitem(container, index, _UPDATES[operation](old, value))


_UPDATES = {
    "Add": operator.iadd, "Sub": operator.isub, "Mult": operator.imul, "Div": operator.itruediv,
    "FloorDiv": operator.ifloordiv, "Mod": operator.imod, "Pow": operator.ipow,
    "MatMult": operator.imatmul, "BitAnd": operator.iand, "BitOr": operator.ior,
    "BitXor": operator.ixor, "LShift": operator.ilshift, "RShift": operator.irshift,
}  # fmt: skip


class Nested:
    """The inner ``for`` of a comprehension: ``[element(x) for ... for x in items if test(x)]``."""

    def __init__(
        self, items: Any, element: Callable[[Any], Any], *tests: Callable[[Any], Any]
    ) -> None:
        self.items = items
        self.element = element
        self.tests = tests


def comprehension(
    items: Any, element: Callable[[Any], Any], *tests: Callable[[Any], Any]
) -> list[Any]:
    """``[element(x) for x in items if test(x)]``."""
    found: list[Any] = []

    def get() -> tuple[Any, ...]:
        return (found,)

    def put(values: tuple[Any, ...]) -> None:
        nonlocal found
        (found,) = values

    scope = Scope(("the comprehension",), get, put, lambda: (found, element))

    def collect(level: Nested) -> None:
        def add(item: Any) -> None:
            value = level.element(item)
            if isinstance(value, Nested):
                collect(value)
            else:
                found.append(value)

        def body(item: Any) -> None:
            if not level.tests:
                add(item)
                return
            first, *rest = level.tests
            keep = and_(first(item), *(functools.partial(t, item) for t in rest))
            if_(keep, functools.partial(add, item), _nothing, scope)

        for_(level.items, body, scope)

    collect(Nested(items, element, *tests))
    return found


def assert_(condition: Any, message: Callable[[], Any]) -> None:
    """``assert condition, message()``; a staged condition is noted as an assumption."""
    trace = _staged(condition)
    if trace is None:
        if not _plain_truth(condition):
            raise AssertionError(message())
        return
    firm = [w for w in trace.active if w not in trace.ghosts]
    if not all(condition_in(trace, condition, w) for w in firm):
        raise AssertionError(message())
    trace.moved()
    source, _ = trace.position()
    text = "" if source is None else source.excerpt().split("\n")[0].strip()
    trace.assumptions.append(Assumption(f"`{text}`", True, source))


# --- builtins -----------------------------------------------------------------------------------


def _number(trace: Trace, x: Any) -> Any:
    return trace.frontend.to_number(x) if trace.frontend.is_array(x) else x


def _conversion(name: str, plain: Callable[..., Any]) -> Callable[..., Any]:
    def convert(*args: Any, **kwargs: Any) -> Any:
        trace = _staged(*args[:1])
        if trace is None or len(args) != 1:
            return plain(*args, **kwargs)
        if isinstance(args[0], StagedList):
            return compare("gt", args[0].staged_length(), 0)
        return trace.arithmetic(name, _number(trace, args[0]))

    return convert


def _len(x: Any) -> Any:
    if isinstance(x, StagedList):
        return x.staged_length()
    if isinstance(x, Iterable):
        return x.count
    trace = _staged(x)
    return len(x) if trace is None else trace.frontend.length(x)


def _range(*args: Any) -> Any:
    trace = Trace.current()
    if trace is None or not trace.live:
        return range(*args)
    args = tuple(_number(trace, x) for x in args)
    if not any(isinstance(x, TracedScalar) for x in args):
        return range(*args)
    if not trace.recording:
        return range(*(trace.number_in(x, trace.active[0]) for x in args))
    start, stop, step = (0, args[0], 1) if len(args) == 1 else (*args, 1)[:3]
    if (
        isinstance(start, int)
        and not isinstance(start, TracedScalar)
        and start == 0
        and _is_one(step)
    ):
        count = stop if stop.record.nonnegative else trace.arithmetic("max", stop, 0)
    else:
        # ceil((stop - start) / step), for steps of either sign
        count = trace.arithmetic("max", -((start - stop) // step), 0)
    return Iterable(
        count,
        lambda i: (
            i * step + start if not _is_one(step) else i + start if not _is_zero(start) else i
        ),
    )


def _is_one(x: Any) -> bool:
    return not isinstance(x, TracedScalar) and x == 1


def _is_zero(x: Any) -> bool:
    return not isinstance(x, TracedScalar) and x == 0


def _enumerate(items: Any, start: Any = 0) -> Any:
    trace = recorded()
    staged = None if trace is None else iterable(trace, items)
    if staged is None:
        return enumerate(natively(items), start)
    item = staged.item
    return Iterable(staged.count, lambda i: (i if _is_zero(start) else i + start, item(i)))


def _zip(*sequences: Any, strict: bool = False) -> Any:
    trace = recorded()
    staged = [] if trace is None else [iterable(trace, x) for x in sequences]
    if trace is None or not any(s is not None for s in staged):
        return zip(*map(natively, sequences), strict=strict)
    parts = [
        s if s is not None else Iterable(len(x), functools.partial(getitem, x))
        for s, x in builtins.zip(staged, sequences, strict=True)
    ]
    count = parts[0].count
    for part in parts[1:]:
        if not trace.certain(part.count, count):
            count = _min(count, part.count)
    return Iterable(count, lambda i: tuple(p.item(i) for p in parts))


def _reversed(items: Any) -> Any:
    trace = recorded()
    staged = None if trace is None else iterable(trace, items)
    if staged is None:
        return reversed(natively(items))
    return Iterable(staged.count, lambda i: staged.item(staged.count - 1 - i))


def _extreme(name: str, plain: Callable[..., Any]) -> Callable[..., Any]:
    def extreme(*args: Any, **kwargs: Any) -> Any:
        trace = recorded()
        items = args[0] if len(args) == 1 else args
        if trace is None or kwargs or not isinstance(items, list | tuple):
            if trace is not None and trace.frontend.is_handle(items) and not kwargs:
                return trace.frontend.reduce(items, name)
            return plain(*args, **kwargs)
        if isinstance(items, StagedList) or not any(is_staged(trace, x) for x in items):
            return plain(*args, **kwargs)
        best = items[0]
        for x in items[1:]:
            if isinstance(x, int | float) and isinstance(best, int | float):
                best = trace.arithmetic(name, best, x)
            else:
                better = compare("lt" if name == "min" else "gt", x, best)
                best = if_(better, lambda x=x: x, lambda best=best: best, _NO_SCOPE)
        return best

    return extreme


_min = _extreme("min", min)
_max = _extreme("max", max)


def _accumulate(items: Any, start: Any, join: Callable[[Any, Any], Any]) -> Any:
    total = start

    def get() -> tuple[Any, ...]:
        return (total,)

    def put(values: tuple[Any, ...]) -> None:
        nonlocal total
        (total,) = values

    def body(item: Any) -> None:
        nonlocal total
        total = join(total, item)

    for_(items, body, Scope(("the sum",), get, put, lambda: (total,)))
    return total


def _sum(items: Any, start: Any = 0) -> Any:
    trace = recorded()
    if trace is None or iterable(trace, items) is None:
        return sum(natively(items), start)
    return _accumulate(items, start, operator.add)


def _any(items: Any) -> Any:
    trace = recorded()
    if trace is None:
        return any(natively(items))
    return _accumulate(items, False, lambda found, x: or_(found, lambda: truth(x)))


def _all(items: Any) -> Any:
    trace = recorded()
    if trace is None:
        return all(natively(items))
    return _accumulate(items, True, lambda found, x: and_(found, lambda: truth(x)))


def _isinstance(x: Any, kinds: Any) -> bool:
    if isinstance(x, TracedBool):
        return (
            issubclass(bool, kinds)
            if not isinstance(kinds, tuple)
            else any(issubclass(bool, k) for k in kinds)
        )
    return isinstance(x, kinds)


def _print(*args: Any, **kwargs: Any) -> None:
    trace = Trace.current()
    if trace is None or not trace.live or trace.recording:
        print(*args, **kwargs)


def _list(*args: Any) -> Any:
    if len(args) == 1 and isinstance(args[0], StagedList):
        return args[0].copy()
    trace = recorded()
    if trace is not None and len(args) == 1 and iterable(trace, args[0]) is not None:
        return comprehension(args[0], lambda x: x)
    return list(*(natively(x) for x in args))


def _round(x: Any, ndigits: Any = None) -> Any:
    trace = _staged(x)
    if trace is None or trace.frontend.is_array(x):
        return round(x, ndigits) if ndigits is not None else round(x)
    return round(x) if ndigits is None else round(x, ndigits)


def _divmod(a: Any, b: Any) -> Any:
    return a // b, a % b


def _math(name: str, plain: Callable[..., Any]) -> Callable[..., Any]:
    def function(*args: Any) -> Any:
        trace = _staged(*args)
        if trace is None:
            return plain(*args)
        return trace.arithmetic(name, *(_number(trace, x) for x in args))

    return function


def _math_pow(a: Any, b: Any) -> Any:
    return math.pow(a, b) if _staged(a, b) is None else _BUILTINS[float](a) ** b


_BUILTINS: dict[Any, Callable[..., Any]] = {
    int: _conversion("int", int),
    float: _conversion("float", float),
    bool: _conversion("bool", bool),
    len: _len,
    range: _range,
    enumerate: _enumerate,
    zip: _zip,
    reversed: _reversed,
    min: _min,
    max: _max,
    sum: _sum,
    any: _any,
    all: _all,
    isinstance: _isinstance,
    print: _print,
    list: _list,
    round: _round,
    divmod: _divmod,
    math.pow: _math_pow,
    operator.not_: not_,
    **{
        getattr(math, name): _math(name, getattr(math, name))
        for name in scalars.PYTHON
        if hasattr(math, name) and name not in ("pow",)
    },
}


def call(function: Any) -> Any:
    """What to call instead of a builtin; anything else is itself."""
    try:
        return _BUILTINS.get(function, function)
    except TypeError:  # not hashable
        return function


def generator(items: Any, element: Callable[[Any], Any], *tests: Callable[[Any], Any]) -> Any:
    """A generator expression: lazy for Python, a list where its items are staged."""
    trace = recorded()
    if trace is not None and iterable(trace, items) is not None:
        return comprehension(items, element, *tests)

    def lazily(level: Nested) -> Iterator[Any]:
        for item in natively(level.items):
            if all(test(item) for test in level.tests):
                value = level.element(item)
                if isinstance(value, Nested):
                    yield from lazily(value)
                else:
                    yield value

    return lazily(Nested(items, element, *tests))
