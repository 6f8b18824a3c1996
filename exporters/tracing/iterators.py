"""``functools.reduce``, ``itertools`` and heaps, over what may have a length that only run time knows."""

from __future__ import annotations

import bisect
import builtins
import functools
import heapq
import itertools
from typing import TYPE_CHECKING, Any

from exporters.tracing.bodies import NO_SCOPE, Scope, recorded
from exporters.tracing.branches import if_
from exporters.tracing.iteration import (
    Cursor,
    Endless,
    Nested,
    comprehension,
    for_,
    iterable,
    natively,
)
from exporters.tracing.lists import StagedList
from exporters.tracing.loops import Iterable
from exporters.tracing.merging import flatten_state, is_staged
from exporters.tracing.operators import and_, arithmetic, compare, getitem, truth
from exporters.tracing.own_lists import own
from exporters.tracing.trace import Trace

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ITERATORS", "accumulated", "zipped"]


def _same(x: Any) -> Any:
    return x


def _nothing() -> None:
    return None


def _staged(*sequences: Any) -> bool:
    """Whether the trace records, and one of them has a length that only run time knows."""
    trace = recorded()
    return trace is not None and any(iterable(trace, x) is not None for x in sequences)


def over(items: Any) -> Iterable:
    """Something to index: staged, or of known length."""
    trace = recorded()
    found = None if trace is None else iterable(trace, items)
    if found is not None:
        return found
    items = items if isinstance(items, list | tuple | range) else list(natively(items))
    return Iterable(len(items), functools.partial(getitem, items))


def _rest(items: Iterable, first: Any = 1) -> Iterable:
    trace = Trace.current()
    assert trace is not None
    count = trace.arithmetic("max", items.count - first, 0)
    return Iterable(count, lambda i: items.item(i + first))


def accumulated(items: Any, start: Any, join: Callable[[Any, Any], Any]) -> Any:
    """``join(join(start, a), b)`` for the items a, b."""
    total = start

    def get() -> tuple[Any, ...]:
        return (total,)

    def put(values: tuple[Any, ...]) -> None:
        nonlocal total
        (total,) = values

    def body(item: Any) -> None:
        nonlocal total
        total = join(total, item)

    for_(items, body, Scope(("the sum",), get, put, lambda: (total, join)))
    return total


def _reduce(function: Any, items: Any, *start: Any) -> Any:
    if not _staged(items):
        return functools.reduce(function, natively(items), *start)
    if start:
        return accumulated(items, start[0], function)
    whole = over(items)
    return accumulated(_rest(whole), whole.item(0), function)


def _accumulate(items: Any, func: Any = None, *, initial: Any = None) -> Any:
    if not _staged(items):
        return itertools.accumulate(natively(items), func, initial=initial)
    join = functools.partial(arithmetic, "add") if func is None else func
    whole = over(items)
    found = own([])

    def collect(total: Any, rest: Iterable) -> None:
        def get() -> tuple[Any, ...]:
            return (total,)

        def put(values: tuple[Any, ...]) -> None:
            nonlocal total
            (total,) = values

        def body(item: Any) -> None:
            nonlocal total
            total = join(total, item)
            found.append(total)

        found.append(total)
        for_(rest, body, Scope(("the sum",), get, put, lambda: (found, total, join)))

    if initial is not None:
        collect(initial, whole)
    else:  # there may be none
        scope = Scope((), tuple, lambda _: None, lambda: (found, join))
        if_(
            compare("gt", whole.count, 0),
            lambda: collect(whole.item(0), _rest(whole)),
            _nothing,
            scope,
        )
    return found


def _map(function: Any, *sequences: Any) -> Any:
    if not _staged(*sequences):
        return map(function, *builtins.map(natively, sequences))
    if len(sequences) == 1:
        return comprehension(sequences[0], function)
    return comprehension(zipped(*sequences), lambda items: function(*items))


def _filter(function: Any, items: Any) -> Any:
    if recorded() is None:
        return filter(function, natively(items))
    return comprehension(items, _same, lambda x: truth(x if function is None else function(x)))


def _starmap(function: Any, items: Any) -> Any:
    if not _staged(items):
        return itertools.starmap(function, natively(items))
    return comprehension(items, lambda x: function(*x))


def _takewhile(function: Any, items: Any) -> Any:
    if recorded() is None:
        return itertools.takewhile(function, natively(items))
    found: list[Any] = []
    going: Any = True

    def get() -> tuple[Any, ...]:
        return found, going

    def put(values: tuple[Any, ...]) -> None:
        nonlocal found, going
        found, going = values

    scope = Scope(("the items", "whether it goes on"), get, put, lambda: (found, function))

    def body(item: Any) -> None:
        nonlocal going
        going = and_(going, lambda: truth(function(item)))
        if_(going, lambda: found.append(item), lambda: None, scope)

    for_(items, body, scope)
    return found


def zipped(*sequences: Any) -> Iterable | Endless:
    """Their items side by side, as many as the shortest has."""
    trace = Trace.current()
    assert trace is not None
    if isinstance(sequences[0], Cursor) and all(x is sequences[0] for x in sequences):
        rest, width = sequences[0].rest(), len(sequences)  # they take turns
        return Iterable(
            rest.count // width,
            lambda i: tuple(rest.item(i * width + place) for place in range(width)),
        )
    parts = [x if isinstance(x, Endless) else over(x) for x in sequences]
    if all(isinstance(x, Endless) for x in parts):
        return Endless(lambda i: tuple(p.item(i) for p in parts))
    count: Any = None
    for part in parts:
        if isinstance(part, Endless) or (count is not None and trace.certain(part.count, count)):
            continue
        count = part.count if count is None else trace.arithmetic("min", count, part.count)
    return Iterable(count, lambda i: tuple(p.item(i) for p in parts))


def _pairwise(items: Any) -> Any:
    if not _staged(items):
        return itertools.pairwise(natively(items))
    whole = over(items)
    return Iterable(_rest(whole).count, lambda i: (whole.item(i), whole.item(i + 1)))


def _chain(*sequences: Any) -> Any:
    if not _staged(*sequences):
        return itertools.chain(*map(natively, sequences))
    first = next(x for x in map(_listed, sequences) if isinstance(x, StagedList))
    return first.joined(*map(_listed, sequences))


def _listed(items: Any) -> Any:
    if isinstance(items, StagedList):
        return items
    return comprehension(items, _same) if _staged(items) else list(natively(items))


def _islice(items: Any, *bounds: Any) -> Any:
    if not _staged(items):
        return itertools.islice(natively(items), *bounds)
    return _listed(items)[slice(*bounds)]


def _product(*sequences: Any, repeat: int = 1) -> Any:
    sequences = sequences * repeat
    if not _staged(*sequences):
        return itertools.product(*map(natively, sequences), repeat=1)
    parts = list(map(over, sequences))
    count: Any = 1
    for part in parts:
        count = count * part.count

    def item(i: Any) -> tuple[Any, ...]:
        found: list[Any] = []
        for part in reversed(parts):
            found.insert(0, part.item(i % part.count))
            i = i // part.count
        return tuple(found)

    return Iterable(count, item)


def _combinations(items: Any, r: int) -> Any:
    if not _staged(items) or r != 2:
        return itertools.combinations(natively(items), r)
    whole = over(items)

    def beside(i: Any) -> Nested:
        return Nested(_rest(whole, i + 1), lambda other: (whole.item(i), other))

    return comprehension(Iterable(whole.count, _same), beside)


def _count(start: Any = 0, step: Any = 1) -> Any:
    return (
        itertools.count(start, step) if recorded() is None else Endless(lambda i: i * step + start)
    )


def _cycle(items: Any) -> Any:
    if recorded() is None:
        return itertools.cycle(natively(items))
    whole = over(items)
    return Endless(lambda i: whole.item(i % whole.count))


def _repeat(x: Any, *times: Any) -> Any:
    if recorded() is None:
        return itertools.repeat(x, *times)
    return Iterable(times[0], lambda _: x) if times else Endless(lambda _: x)


def _iter(items: Any, *sentinel: Any) -> Any:
    if sentinel or recorded() is None or not (_staged(items) or _is_indexed(items)):
        return iter(natively(items), *sentinel)
    return Cursor(over(items))


def _is_indexed(items: Any) -> bool:
    """Whether items have places, so that an iterator can remember how many were taken."""
    trace = recorded()
    listed = isinstance(items, list | tuple | range)
    return listed or (trace is not None and trace.frontend.is_handle(items))


def _next(iterator: Any, *default: Any) -> Any:
    if isinstance(iterator, Cursor):

        def take() -> Any:
            item = iterator.items.item(iterator.taken)
            iterator.taken = iterator.taken + 1
            return item

        if not default:
            return take()
        scope = Scope((), tuple, lambda _: None, lambda: (iterator,))
        more = compare("lt", iterator.taken, iterator.items.count)
        return if_(more, take, lambda: default[0], scope)
    if not isinstance(iterator, list):
        return next(iterator, *default)
    if isinstance(iterator, StagedList) and default and iterator.trace.recording:
        more = compare("gt", iterator.staged_length(), 0)
        return if_(more, lambda: iterator[0], lambda: default[0], NO_SCOPE)
    if default and not list.__len__(iterator):
        return default[0]
    return iterator[0]


# Heaps are kept sorted: what Python promises of them is that the smallest item comes first.


def _heappush(heap: list[Any], item: Any) -> None:
    trace = Trace.current()
    if trace is None or not trace.live:
        heapq.heappush(heap, item)
    elif not trace.recording:
        items = heap.in_world(trace.active[0]) if isinstance(heap, StagedList) else heap
        heap.insert(bisect.bisect_right(items, item), item)
    elif isinstance(heap, StagedList):
        none = functools.partial(_same, 0)
        place = accumulated(
            heap,
            0,
            lambda n, x: n + if_(compare("le", x, item), lambda: 1, none, NO_SCOPE),
        )
        heap.insert(place, item)
    else:
        for place, other in enumerate(heap):
            before = compare("lt", item, other)
            ways = functools.partial(_same, (item, other)), functools.partial(_same, (other, item))
            heap[place], item = if_(before, *ways, NO_SCOPE)
        heap.append(item)


def _heappop(heap: list[Any]) -> Any:
    trace = Trace.current()
    return heapq.heappop(heap) if trace is None or not trace.live else heap.pop(0)


def _heapify(heap: list[Any]) -> None:
    trace = recorded()
    if trace is None:
        heap.sort()
        return
    items = list(heap)
    if not any(is_staged(trace, x) for x in flatten_state(trace, items)[0]):
        heap.sort()
        return
    heap.clear()
    for item in items:
        _heappush(heap, item)


ITERATORS: dict[Any, Callable[..., Any]] = {
    functools.reduce: _reduce,
    itertools.accumulate: _accumulate,
    itertools.chain: _chain,
    itertools.combinations: _combinations,
    itertools.count: _count,
    itertools.cycle: _cycle,
    itertools.islice: _islice,
    itertools.pairwise: _pairwise,
    itertools.product: _product,
    itertools.repeat: _repeat,
    itertools.starmap: _starmap,
    itertools.takewhile: _takewhile,
    heapq.heappush: _heappush,
    heapq.heappop: _heappop,
    heapq.heapify: _heapify,
    map: _map,
    filter: _filter,
    iter: _iter,
    next: _next,
}
