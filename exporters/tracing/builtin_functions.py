"""Python's builtins, and functions of ``math``, on what may be known at run time only."""

from __future__ import annotations

import collections
import functools
import math
import operator
from typing import TYPE_CHECKING, Any

from exporters.tracing.bodies import recorded
from exporters.tracing.extremes import largest, smallest
from exporters.tracing.iteration import Endless, comprehension, iterable, natively
from exporters.tracing.iterators import ITERATORS, accumulated, zipped
from exporters.tracing.keys import OpenItems, attribute, has_attribute, key_count
from exporters.tracing.lists import StagedList
from exporters.tracing.loops import Iterable
from exporters.tracing.mathematics import FUNCTIONS
from exporters.tracing.operators import (
    and_,
    arithmetic,
    compare,
    not_,
    or_,
    own_method,
    staged_in,
    truth,
)
from exporters.tracing.ordering import deque, sorted_
from exporters.tracing.own_lists import OwnList, held, own
from exporters.tracing.own_sets import OwnSet, own_set
from exporters.tracing.scalars import TracedBool, TracedFloat, TracedInt, TracedScalar
from exporters.tracing.searching import SEARCHES, Counts
from exporters.tracing.trace import Trace

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["call", "display"]


def _number(trace: Trace, x: Any) -> Any:
    return trace.frontend.to_number(x) if trace.frontend.is_array(x) else x


def _conversion(name: str, plain: Callable[..., Any]) -> Callable[..., Any]:
    def convert(*args: Any, **kwargs: Any) -> Any:
        trace = staged_in(*args[:1])
        if trace is None or len(args) != 1:
            return plain(*args, **kwargs)
        if isinstance(args[0], StagedList):
            return compare("gt", args[0].staged_length(), 0)
        return trace.arithmetic(name, _number(trace, args[0]))

    return convert


def _len(x: Any) -> Any:
    x = held(x)
    if isinstance(x, StagedList):
        return x.staged_length()
    if isinstance(x, Iterable):
        return x.count
    if isinstance(x, Counts):
        return _len(x.keys())
    count = key_count(x)
    if count is not None:
        return count
    own = own_method(x, "__len__")
    if own is not None:
        return own()
    trace = staged_in(x)
    if trace is None or isinstance(x, tuple | list | dict):  # which may be None at run time
        return len(x)
    return trace.frontend.length(x)


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
    elif _is_one(step):
        count = stop - start
        known = isinstance(count, TracedScalar) and count.record.nonnegative
        count = count if known else trace.arithmetic("max", count, 0)
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

    def placed(i: Any, x: Any) -> tuple[Any, Any]:
        return i if _is_zero(start) else i + start, x

    source = items if isinstance(items, StagedList) else None
    return Iterable(staged.count, lambda i: placed(i, item(i)), source, placed)


def _zip(*sequences: Any, strict: bool = False) -> Any:
    trace = recorded()
    endless = any(isinstance(x, Endless) for x in sequences)
    if trace is None or not (endless or any(iterable(trace, x) is not None for x in sequences)):
        return zip(*map(natively, sequences), strict=strict)
    if any(type(x) in (list, tuple, OwnList) and not x for x in sequences):
        return zip()
    return zipped(*sequences)


def _reversed(items: Any) -> Any:
    trace = recorded()
    staged = None if trace is None else iterable(trace, items)
    if staged is None:
        return reversed(natively(items))
    return Iterable(staged.count, lambda i: staged.item(staged.count - 1 - i))


def _same(x: Any) -> Any:
    return x


def _sum(items: Any, start: Any = 0) -> Any:
    trace, items = recorded(), held(items)
    if trace is None:
        return sum(natively(items), start)
    return accumulated(items, start, functools.partial(arithmetic, "add"))


def _any(items: Any) -> Any:
    trace, items = recorded(), held(items)
    if trace is None:
        return any(natively(items))
    return accumulated(items, False, lambda found, x: or_(found, lambda: truth(x)))


def _all(items: Any) -> Any:
    trace, items = recorded(), held(items)
    if trace is None:
        return all(natively(items))
    return accumulated(items, True, lambda found, x: and_(found, lambda: truth(x)))


def _isinstance(x: Any, kinds: Any) -> bool:
    if isinstance(x, TracedBool):
        return (
            issubclass(bool, kinds)
            if not isinstance(kinds, tuple)
            else any(issubclass(bool, k) for k in kinds)
        )
    return isinstance(x, kinds)


_TYPES: tuple[tuple[type, type], ...] = (
    (TracedBool, bool), (TracedInt, int), (TracedFloat, float), (StagedList, list), (OwnList, list),
    (OwnSet, set),
)  # fmt: skip


def _type(*args: Any, **kwargs: Any) -> Any:
    """What eager code has where the trace has a type of its own."""
    found = type(*args, **kwargs)
    if len(args) > 1:
        return found
    return next((plain for traced, plain in _TYPES if issubclass(found, traced)), found)


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
    return own(list(*(natively(x) for x in args)))


def _tuple(*args: Any) -> Any:
    if len(args) == 1 and isinstance(args[0], OpenItems | dict):
        listed = _list(*args)
        return listed if isinstance(listed, StagedList) else tuple(listed)
    return tuple(*args)


def _round(x: Any, ndigits: Any = None) -> Any:
    trace = staged_in(x)
    if trace is None or trace.frontend.is_array(x):
        return round(x, ndigits) if ndigits is not None else round(x)
    return round(x) if ndigits is None else round(x, ndigits)


def _divmod(a: Any, b: Any) -> Any:
    return a // b, a % b


def _prod(items: Any, *, start: Any = 1) -> Any:
    trace = recorded()
    if trace is None:
        return math.prod(natively(items), start=start)
    return accumulated(items, start, functools.partial(arithmetic, "mul"))


def _fsum(items: Any) -> Any:
    return math.fsum(natively(items)) if recorded() is None else _sum(items, 0.0)


_BUILTINS: dict[Any, Callable[..., Any]] = {
    int: _conversion("int", int),
    float: _conversion("float", float),
    bool: _conversion("bool", bool),
    len: _len,
    range: _range,
    enumerate: _enumerate,
    zip: _zip,
    reversed: _reversed,
    min: smallest,
    max: largest,
    sum: _sum,
    any: _any,
    all: _all,
    isinstance: _isinstance,
    type: _type,
    print: _print,
    list: _list,
    tuple: _tuple,
    set: own_set,
    hasattr: has_attribute,
    getattr: attribute,
    sorted: sorted_,
    collections.deque: deque,
    round: _round,
    divmod: _divmod,
    math.prod: _prod,
    math.fsum: _fsum,
    operator.not_: not_,
    **FUNCTIONS,
    **ITERATORS,
    **SEARCHES,
}


def call(function: Any) -> Any:
    """What to call instead of a builtin; anything else is itself."""
    try:
        return _BUILTINS.get(function, function)
    except TypeError:  # not hashable
        return function


def display(kind: str, *parts: Any) -> Any:
    """``[a, *b]``; with a run-time number of items a tuple is a list, too.

    Args:
        kind: ``"list"`` or ``"tuple"``.
        parts: Lists of the items between stars, and what is behind a star.
    """
    lists = [call(list)(p) for p in parts]
    staged = next((p for p in lists if isinstance(p, StagedList)), None)
    if staged is not None:
        return staged.joined(*lists)
    items = [x for p in lists for x in p]
    return own(items) if kind == "list" else tuple(items)
