"""``bisect``, the largest and smallest of ``heapq``, groups and counts of items of run-time number."""

from __future__ import annotations

import bisect
import collections
import functools
import heapq
import itertools
from typing import TYPE_CHECKING, Any

from exporters.tracing.bodies import NO_SCOPE, recorded
from exporters.tracing.branches import if_
from exporters.tracing.iteration import comprehension, iterable, natively
from exporters.tracing.iterators import ITERATORS, over
from exporters.tracing.lists import StagedList
from exporters.tracing.loops import Iterable
from exporters.tracing.merging import flatten_state, is_staged
from exporters.tracing.operators import arithmetic, compare, getitem, not_, or_
from exporters.tracing.ordering import sorted_
from exporters.tracing.trace import Trace

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["SEARCHES", "Counts"]


def _same(x: Any) -> Any:
    return x


def _is_known(*items: Any) -> bool:
    """Whether Python itself can look at the items."""
    trace = recorded()
    if trace is None:
        return True
    if any(iterable(trace, x) is not None for x in items):
        return False
    return not any(is_staged(trace, x) for x in flatten_state(trace, list(items))[0])


def _place(name: str, plain: Callable[..., int]) -> Callable[..., Any]:
    def place(a: Any, x: Any, *bounds: Any, **options: Any) -> Any:
        if bounds or options or _is_known(a, x):
            return plain(natively(a), x, *bounds, **options)
        before = comprehension(a, lambda v: if_(compare(name, v, x), _one, _zero, NO_SCOPE))
        total: Any = ITERATORS[functools.reduce](functools.partial(arithmetic, "add"), before, 0)
        return total

    return place


def _one() -> int:
    return 1


def _zero() -> int:
    return 0


_left = _place("lt", bisect.bisect_left)
_right = _place("le", bisect.bisect_right)


def _insort(a: Any, x: Any, *bounds: Any, **options: Any) -> None:
    if bounds or options or Trace.current() is None:
        bisect.insort(a, x, *bounds, **options)
    else:
        ITERATORS[heapq.heappush](a, x)  # it keeps heaps sorted


def _most(plain: Callable[..., Any], *, reverse: bool) -> Callable[..., Any]:
    def most(n: Any, items: Any, key: Any = None) -> Any:
        if _is_known(items, n):
            return plain(n, natively(items), key=key)
        return sorted_(items, key=key, reverse=reverse)[:n]

    return most


def _zip_longest(*sequences: Any, fillvalue: Any = None) -> Any:
    trace = recorded()
    if trace is None or all(iterable(trace, x) is None for x in sequences):
        return itertools.zip_longest(*map(natively, sequences), fillvalue=fillvalue)
    parts = list(map(over, sequences))
    count = functools.reduce(functools.partial(trace.arithmetic, "max"), [p.count for p in parts])

    def item(part: Iterable, i: Any) -> Any:
        there = compare("lt", i, part.count)
        return if_(there, lambda: part.item(i), lambda: fillvalue, NO_SCOPE)

    return Iterable(count, lambda i: tuple(item(p, i) for p in parts))


def _groupby(items: Any, key: Any = None) -> Any:
    if _is_known(items):
        return itertools.groupby(natively(items), key)
    listed: Any = comprehension(items, _same)
    keys = listed if key is None else comprehension(listed, key)
    count = over(listed).count

    def begins(i: Any) -> Any:
        return or_(
            compare("eq", i, 0), lambda: compare("ne", getitem(keys, i), getitem(keys, i - 1))
        )

    starts: Any = comprehension(Iterable(count, _same), _same, begins)
    ends = starts[1:]
    ends.append(count)
    groups = over(starts).count

    def group(g: Any) -> Any:
        first = getitem(starts, g)
        return getitem(keys, first), listed[first : getitem(ends, g)]

    return Iterable(groups, group)


class Counts:
    """Stands for a ``collections.Counter`` of items that only run time knows.

    Args:
        items: What is counted.
    """

    def __init__(self, items: StagedList) -> None:
        self._items = items

    def keys(self) -> Any:
        """The different items, as they first come."""
        items = self._items

        def is_first(i: Any) -> Any:
            return compare("eq", items.index(items[i]), i)

        return comprehension(
            Iterable(items.staged_length(), _same), functools.partial(getitem, items), is_first
        )

    def items(self) -> Any:
        """The different items, and how often each comes."""
        return comprehension(self.keys(), lambda k: (k, self[k]))

    def values(self) -> Any:
        """How often each of the different items comes."""
        return comprehension(self.keys(), self.__getitem__)

    def most_common(self, n: Any = None) -> Any:
        """The items that come most often, and how often."""
        found = sorted_(self.items(), key=lambda pair: pair[1], reverse=True)
        return found if n is None else found[:n]

    def total(self) -> Any:
        """How many items there are."""
        return self._items.staged_length()

    def get(self, key: Any, default: Any = None) -> Any:
        """How often an item comes."""
        count = self[key]
        none = not_(compare("gt", count, 0))
        return if_(none, lambda: default, lambda: count, NO_SCOPE)

    def __getitem__(self, key: Any) -> Any:
        return self._items.count(key)

    def __contains__(self, key: Any) -> bool:
        return bool(self[key] > 0)


def _counter(*items: Any, **counts: Any) -> Any:
    if counts or len(items) != 1 or isinstance(items[0], dict) or _is_known(*items):
        return collections.Counter(*map(natively, items), **counts)
    listed = comprehension(items[0], _same)
    return Counts(listed) if isinstance(listed, StagedList) else collections.Counter(listed)


SEARCHES: dict[Any, Callable[..., Any]] = {
    bisect.bisect_left: _left,
    bisect.bisect_right: _right,
    bisect.insort_left: _insort,
    bisect.insort_right: _insort,
    heapq.nlargest: _most(heapq.nlargest, reverse=True),
    heapq.nsmallest: _most(heapq.nsmallest, reverse=False),
    itertools.zip_longest: _zip_longest,
    itertools.groupby: _groupby,
    collections.Counter: _counter,
}
