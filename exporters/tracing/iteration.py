"""Loops and comprehensions, over what may have a length that only run time knows."""

from __future__ import annotations

import functools
import itertools
from typing import TYPE_CHECKING, Any

from exporters.errors import ScriptError
from exporters.tracing.bodies import Scope, recorded
from exporters.tracing.branches import if_
from exporters.tracing.keys import OpenItems, opened
from exporters.tracing.lists import StagedList
from exporters.tracing.loops import Iterable, stage_loop
from exporters.tracing.merging import is_staged
from exporters.tracing.operators import (
    and_,
    compare,
    getitem,
    plain_truth,
    setitem,
    staged_in,
)
from exporters.tracing.own_lists import own
from exporters.tracing.places import over_places
from exporters.tracing.scalars import TracedInt
from exporters.tracing.trace import Interrupt, Trace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = [
    "BoundedDeque",
    "Cursor",
    "Endless",
    "Nested",
    "comprehension",
    "for_",
    "generator",
    "iterable",
    "listed",
    "mapping",
    "natively",
    "while_",
]

_ALWAYS = 2**62  # iterations that a loop without an end has
_NESTED = 4  # iterations that may end early: written out, each is an ``If`` around the next


def while_(test: Callable[[], Any], body: Callable[[], None], scope: Scope) -> None:
    """``while test: body``; iterations are run natively until the condition is staged."""
    while True:
        condition = test()
        trace = staged_in(condition)
        if trace is not None:
            stage_loop(trace, body, scope, test=test, first=condition)
            return
        if not plain_truth(condition):
            return
        body()


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
    items = opened(items)
    if isinstance(items, OpenItems):
        _over_open(items, body, scope, test)
        return
    if isinstance(items, Cursor):
        rest = items.rest()
        for_(rest, functools.partial(items.take, body), scope.reaching(items), test=test)
        return
    current = Trace.current()
    if current is not None and current.live:
        beside = isinstance(items, Iterable) and items.source is not None
        source, placed = (items.source, items.placed) if beside else (items, None)
        changing = over_places(current, source, body, placed)
        if changing is not None:
            body, scope = changing, scope.reaching(source)
            length = source.staged_length()
            items = range(length) if trace is None else Iterable(length, lambda i: i)
    if trace is not None:
        staged = iterable(trace, items)
        if staged is not None:
            first = None if test is None else test()
            stage_loop(trace, body, scope, test=test, first=first, over=staged)
            return
    _item_by_item(trace, items, body, scope, test)


def _item_by_item(
    trace: Trace | None,
    items: Any,
    body: Callable[[Any], None],
    scope: Scope,
    test: Callable[[], Any] | None,
) -> None:
    """A loop over what Python can loop over; whether it goes on may be known at run time only."""
    sequence = items if isinstance(items, range) else None
    endless = items if isinstance(items, Endless) else None
    nested = 0
    iterator = iter(natively(items))
    for index in itertools.count():
        go_on: Any = True if test is None else test()  # before an item is taken
        is_open = trace is not None and is_staged(trace, go_on)
        if not is_open and not plain_truth(go_on):
            break
        try:
            item = next(iterator)
        except StopIteration:
            break
        if trace is not None and is_open:
            if sequence is not None and len(sequence) - index > min(_NESTED, trace.unroll_limit):
                left = _over_range(sequence[index:])
                stage_loop(trace, body, scope, test=test, first=go_on, over=left)
                return
            if endless is not None:
                rest = Iterable(_ALWAYS, functools.partial(_later, endless.item, index))
                stage_loop(trace, body, scope, test=test, first=go_on, over=rest)
                return
            nested += 1
            if nested > trace.unroll_limit:
                raise_endless(trace, scope)
            if_(go_on, functools.partial(body, item), _nothing, scope)
            continue
        body(item)


def _over_open(
    items: OpenItems,
    body: Callable[[Any], None],
    scope: Scope,
    test: Callable[[], Any] | None,
) -> None:
    """A loop over what a dict has: each iteration is a branch."""
    for there, item in items.each():
        go_on: Any = True if test is None else test()
        here = and_(go_on, functools.partial(_same, there))
        if_(here, functools.partial(body, item), _nothing, scope)


def _later(item: Callable[[Any], Any], start: int, index: Any) -> Any:
    return item(index + start)


class BoundedDeque:
    """Stands for a ``collections.deque`` of limited length while a trace runs.

    Args:
        maxlen: How many items it keeps.
    """

    def __init__(self, maxlen: int) -> None:
        self.held_items: list[Any] = []
        self.maxlen = maxlen

    def _scope(self) -> Scope:
        return Scope((), tuple, lambda _: None, lambda: (self,))

    def append(self, item: Any) -> None:
        """Add an item at the end; the first one goes if there are too many."""
        self.held_items.append(item)
        self._limit(0)

    def appendleft(self, item: Any) -> None:
        """Add an item at the start; the last one goes if there are too many."""
        self.held_items.insert(0, item)
        self._limit(-1)

    def extend(self, items: Any) -> None:
        """Add several items at the end."""
        for_(items, self.append, self._scope())

    def _limit(self, place: int) -> None:
        def leave() -> None:
            self.held_items.pop(place)

        if_(compare("gt", self.length(), self.maxlen), leave, _nothing, self._scope())

    def length(self) -> Any:
        """How many items there are."""
        items = self.held_items
        return items.staged_length() if isinstance(items, StagedList) else len(items)

    def pop(self) -> Any:
        """Take the last item out."""
        return self.held_items.pop()

    def popleft(self) -> Any:
        """Take the first item out."""
        return self.held_items.pop(0)

    def clear(self) -> None:
        """Take all items out."""
        self.held_items = []

    def __getitem__(self, index: Any) -> Any:
        return getitem(self.held_items, index)

    def __len__(self) -> int:
        return len(self.held_items)

    def __contains__(self, x: object) -> bool:
        return bool(compare("in", x, self.held_items))

    def __iter__(self) -> Iterator[Any]:
        return iter(self.held_items)


def raise_endless(trace: Trace, scope: Scope) -> None:
    """Complain of an iterator of which nobody knows how long it is.

    Raises:
        Interrupt: Always.
    """
    raise Interrupt(
        ScriptError(
            "this loop ends by a `break` that depends on the input, and its iterator goes on for more "
            f"than {trace.unroll_limit} items",
            source=scope.source,
            hint="loop over a range, a list, a tensor or itertools.count(), or write `while`",
        )
    )


def _same(x: Any) -> Any:
    return x


def _nothing() -> None:
    return None


class Cursor:
    """What ``iter(items)`` gives: the items, and how many of them were taken."""

    def __init__(self, items: Iterable) -> None:
        self.items = items
        self.taken: Any = 0

    def rest(self) -> Iterable:
        """The items that are left."""
        trace = Trace.current()
        assert trace is not None
        start = self.taken
        count = trace.arithmetic("max", self.items.count - start, 0)

        def item(i: Any) -> Any:
            place = i + start
            if not trace.recording:  # it may be behind the last where nobody looks at it
                last = trace.number_in(self.items.count, trace.active[0]) - 1
                place = min(trace.number_in(place, trace.active[0]), max(last, 0))
            return self.items.item(place)

        return Iterable(count, item)

    def take(self, body: Callable[[Any], None], item: Any) -> None:
        """An iteration over the items: there is one less to come."""
        self.taken = self.taken + 1
        body(item)


class Endless:
    """Something to loop over without an end: ``itertools.count()``.

    Args:
        item: The item at a position, given as a traced int or an int.
    """

    def __init__(self, item: Callable[[Any], Any]) -> None:
        self.item = item

    def __iter__(self) -> Iterator[Any]:
        """The items, for Python to loop over."""
        return (self.item(i) for i in itertools.count())


def _over_range(numbers: range) -> Iterable:
    return Iterable(len(numbers), lambda i: i * numbers.step + numbers.start)


def natively(items: Any) -> Any:
    """``items`` for Python to loop over; in an eager replay, as they are in its world."""
    trace = Trace.current()
    items = opened(items)
    if trace is None or not trace.live or trace.recording:
        return items
    world = trace.active[0]
    if isinstance(items, Iterable):
        return (items.item(i) for i in range(trace.number_in(items.count, world)))
    if isinstance(items, BoundedDeque):
        items = items.held_items
    if isinstance(items, StagedList):
        return items.in_world(world)
    return trace.frontend.concrete(items, world) if trace.frontend.is_array(items) else items


def iterable(trace: Trace, items: Any) -> Iterable | None:
    """Something to stage a loop over; None if Python can loop over it."""
    items = opened(items)
    if isinstance(items, Iterable):
        return items if is_staged(trace, items.count) else None
    if isinstance(items, OpenItems):
        items = comprehension(items, _same)
    if isinstance(items, Cursor):
        return items.rest()
    if isinstance(items, BoundedDeque):
        return iterable(trace, items.held_items)
    if isinstance(items, StagedList):
        return Iterable(items.staged_length(), functools.partial(getitem, items))
    if trace.frontend.is_handle(items):
        count = trace.frontend.length(items)
        if isinstance(count, TracedInt) or count > trace.unroll_limit:
            return Iterable(count, items.__getitem__)
    if isinstance(items, range) and len(items) > trace.unroll_limit:
        return _over_range(items)
    return None


class Nested:
    """The inner ``for`` of a comprehension: ``[element(x) for ... for x in items if test(x)]``."""

    def __init__(
        self, items: Any, element: Callable[[Any], Any], *tests: Callable[[Any], Any]
    ) -> None:
        self.items = items
        self.element = element
        self.tests = tests


def mapping(
    items: Any, item: Callable[[Any], tuple[Any, Any]], *tests: Callable[[Any], Any]
) -> dict[Any, Any]:
    """``{key: value for x in items if test(x)}``, with ``key, value`` for ``item(x)``."""
    found: dict[Any, Any] = {}

    def add(pair: tuple[Any, Any]) -> None:
        key, value = pair
        setitem(found, key, value)

    scope = Scope((), tuple, lambda _: None, lambda: (found, item))
    _collect(Nested(items, item, *tests), add, scope)
    return found


def listed(items: Any) -> Any:
    """Items for a list to be extended by: a staged list, or what Python can go through."""
    trace = recorded()
    if trace is None or isinstance(items, StagedList) or iterable(trace, items) is None:
        return items if isinstance(items, StagedList) and trace is not None else natively(items)
    return comprehension(items, _same)


def for_each(items: Any, into: Any) -> None:
    """Append every item to a staged list."""
    trace = recorded()
    if trace is None or iterable(trace, items) is None:
        for item in natively(items):
            into.append(item)
        return
    into.extend(comprehension(items, lambda x: x))


def comprehension(
    items: Any, element: Callable[[Any], Any], *tests: Callable[[Any], Any]
) -> list[Any]:
    """``[element(x) for x in items if test(x)]``."""
    found: list[Any] = own([])

    def get() -> tuple[Any, ...]:
        return (found,)

    def put(values: tuple[Any, ...]) -> None:
        nonlocal found
        (found,) = values

    scope = Scope(("the comprehension",), get, put, lambda: (found, element))
    _collect(Nested(items, element, *tests), lambda x: found.append(x), scope)
    return found


def _collect(level: Nested, add: Callable[[Any], None], scope: Scope) -> None:
    """Add the elements of a comprehension to what it makes."""

    def take(item: Any) -> None:
        value = level.element(item)
        if isinstance(value, Nested):
            _collect(value, add, scope)
        else:
            add(value)

    def body(item: Any) -> None:
        if not level.tests:
            take(item)
            return
        first, *rest = level.tests
        keep = and_(first(item), *(functools.partial(t, item) for t in rest))
        if_(keep, functools.partial(take, item), _nothing, scope)

    for_(level.items, body, scope)


def _is_short(trace: Trace, items: Any) -> bool:
    """Whether items can be looked at before they are asked for: their tests may be staged."""
    if trace.frontend.is_handle(items):
        return True
    return isinstance(items, list | tuple | range) and len(items) <= trace.unroll_limit


def generator(items: Any, element: Callable[[Any], Any], *tests: Callable[[Any], Any]) -> Any:
    """A generator expression: lazy for Python, a list where its items are staged."""
    trace = recorded()
    if trace is not None and tests and isinstance(items, enumerate | zip):
        head = list(itertools.islice(items, trace.unroll_limit + 1))
        items = head if len(head) <= trace.unroll_limit else itertools.chain(head, items)
    if trace is not None and (
        iterable(trace, items) is not None or (tests and _is_short(trace, items))
    ):
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
