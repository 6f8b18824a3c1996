"""Sorting and searching lists of items that only run time knows; deques as lists."""

from __future__ import annotations

import collections
import functools
import types
from typing import TYPE_CHECKING, Any

from exporters.tracing.bodies import NO_SCOPE, recorded
from exporters.tracing.branches import if_
from exporters.tracing.iteration import BoundedDeque, comprehension, iterable, natively
from exporters.tracing.iterators import ITERATORS
from exporters.tracing.keys import OpenItems, dict_method, opened, own_dict
from exporters.tracing.lists import StagedList
from exporters.tracing.merging import flatten_state, is_staged
from exporters.tracing.nodes import DICTS
from exporters.tracing.operators import compare, getitem
from exporters.tracing.own_lists import OwnList, held
from exporters.tracing.trace import Trace

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Deque", "deque", "method", "sorted_"]


def _same(x: Any) -> Any:
    return x


def sorted_(items: Any, *, key: Any = None, reverse: bool = False) -> Any:
    """``sorted(items)``; by numbers if they are known at run time only."""
    trace = recorded()
    key, items = own_dict(key), held(items)
    if trace is None:
        return sorted(natively(items), key=key, reverse=reverse)
    items = opened(held(items))
    if isinstance(items, OpenItems):
        moved = items.sorted(key, reverse=reverse)
        if moved is not None:
            return moved
    if not isinstance(items, StagedList) and iterable(trace, items) is not None:
        items = comprehension(items, _same)
    if isinstance(items, StagedList):
        return trace.frontend.sorted_list(items, key, reverse=reverse)
    items = list(items)
    keys = items if key is None else [key(x) for x in items]
    if not any(is_staged(trace, x) for x in flatten_state(trace, keys)[0]):
        return sorted(items, key=key, reverse=reverse)
    order = trace.frontend.order_of(keys, reverse=reverse)
    return [getitem(items, place) for place in order]


def _sort(items: list[Any], *, key: Any = None, reverse: bool = False) -> None:
    items[:] = sorted_(items, key=key, reverse=reverse)


def _count(items: list[Any], element: Any) -> Any:
    total: Any = 0
    for x in items:
        total = total + if_(compare("eq", x, element), lambda: 1, lambda: 0, NO_SCOPE)
    return total


def _index(items: list[Any], element: Any) -> Any:
    place: Any = len(items) - 1  # Python raises where there is none
    for number in range(len(items) - 2, -1, -1):
        here, other = functools.partial(_same, number), functools.partial(_same, place)
        place = if_(compare("eq", items[number], element), here, other, NO_SCOPE)
    return place


_METHODS: dict[str, Callable[..., Any]] = {"sort": _sort, "count": _count, "index": _index}


def _extendleft(items: list[Any], more: Any) -> None:
    for x in natively(more):
        items.insert(0, x)


# A deque that went through a branch or a loop is a list.
_OF_DEQUES: dict[str, Callable[..., Any]] = {
    "appendleft": lambda items, x: items.insert(0, x),
    "extendleft": _extendleft,
    "popleft": lambda items: items.pop(0),
}


def method(owner: Any, name: str) -> Callable[..., Any]:
    """``owner.name``, where the owner may be a list of what only run time knows."""
    if type(owner) in (list, OwnList) and name in _OF_DEQUES:
        return functools.partial(_OF_DEQUES[name], owner)
    if type(owner) in DICTS:
        return dict_method(owner, name)
    bound: Callable[..., Any] = getattr(owner, name)
    if isinstance(owner, types.ModuleType):  # itertools.count
        return ITERATORS.get(bound, bound)
    trace = recorded()
    if trace is None or type(owner) not in (list, tuple, OwnList) or name not in _METHODS:
        return bound
    if name == "sort":
        return functools.partial(_sort, owner)

    def search(element: Any, *bounds: Any) -> Any:
        if bounds:
            return bound(element, *bounds)
        if any(is_staged(trace, x) for x in flatten_state(trace, [*owner, element])[0]):
            return _METHODS[name](owner, element)
        return bound(element)

    return search


class Deque(OwnList):
    """Stands for a ``collections.deque`` without a limit while a trace records."""

    def appendleft(self, item: Any) -> None:
        """Add an item at the start."""
        self.insert(0, item)

    def popleft(self) -> Any:
        """Take the first item out."""
        return self.pop(0)

    def extendleft(self, items: Any) -> None:
        """Add several items at the start, the last one first."""
        for item in items:
            self.insert(0, item)


def deque(items: Any = (), maxlen: int | None = None) -> Any:
    """``collections.deque(items, maxlen)``."""
    trace = Trace.current()
    if trace is not None and trace.live and maxlen is not None:
        made = BoundedDeque(maxlen)
        made.extend(items)
        return made
    if recorded() is None:
        return collections.deque(natively(items), maxlen)
    found = Deque()
    found.extend(items)
    return found
