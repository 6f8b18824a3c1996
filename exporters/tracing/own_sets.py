"""Sets while a trace runs: which items they have may depend on the input."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from exporters.errors import ScriptError
from exporters.tracing.bodies import Scope, recorded
from exporters.tracing.branches import if_
from exporters.tracing.iteration import comprehension, for_, natively
from exporters.tracing.lists import StagedList
from exporters.tracing.merging import flatten_state, is_staged
from exporters.tracing.operators import compare
from exporters.tracing.own_lists import OwnList
from exporters.tracing.trace import Interrupt, Trace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["OwnSet", "own_set"]


class OwnSet:
    """Stands for a set: its items in a list, each once, in the order in which they came.

    Args:
        items: What it holds at first.
    """

    def __init__(self, items: Any = ()) -> None:
        self.held_items: list[Any] = OwnList([])
        self.update(items)

    def _if(self, condition: Any, then: Callable[[], Any], orelse: Callable[[], Any]) -> Any:
        return if_(condition, then, orelse, Scope((), tuple, lambda _: None, lambda: (self,)))

    def add(self, item: Any) -> None:
        """Add an item, unless it is there."""
        _require_numbers(item)
        append = functools.partial(self.held_items.append, item)
        self._if(compare("in", item, self.held_items), _nothing, append)

    def discard(self, item: Any) -> None:
        """Take an item out, if it is there."""
        remove = functools.partial(self.remove, item)
        self._if(compare("in", item, self.held_items), remove, _nothing)

    def remove(self, item: Any) -> None:
        """Take an item out."""
        self.held_items = comprehension(
            self.held_items, lambda x: x, lambda x: compare("ne", x, item)
        )

    def clear(self) -> None:
        """Take all items out."""
        self.held_items = OwnList([])

    def update(self, *others: Any) -> None:
        """Add the items of others."""
        for other in others:
            scope = Scope((), tuple, lambda _: None, lambda: (self,))
            for_(getattr(other, "held_items", other), self.add, scope)

    def copy(self) -> OwnSet:
        """A set of its own with the same items."""
        return OwnSet(self)

    def _where(self, other: Any, *, inside: bool) -> OwnSet:
        other = getattr(other, "held_items", other)
        found = OwnSet()
        found.held_items = comprehension(
            self.held_items,
            lambda x: x,
            lambda x: compare("in" if inside else "not_in", x, other),
        )
        return found

    def union(self, *others: Any) -> OwnSet:
        """The items of all."""
        found = self.copy()
        found.update(*others)
        return found

    def intersection(self, other: Any) -> OwnSet:
        """The items that another one has, too."""
        return self._where(other, inside=True)

    def difference(self, other: Any) -> OwnSet:
        """The items that another one has not."""
        return self._where(other, inside=False)

    __or__, __and__, __sub__ = union, intersection, difference

    def __ior__(self, other: Any) -> OwnSet:  # type: ignore[misc]
        self.update(other)
        return self

    def length(self) -> Any:
        """How many items there are."""
        items = self.held_items
        return items.staged_length() if isinstance(items, StagedList) else len(items)

    def __len__(self) -> int:
        return len(self.held_items)

    def __contains__(self, item: object) -> bool:
        return bool(compare("in", item, self.held_items))

    def issubset(self, other: Any) -> Any:
        """Whether another one has all the items."""
        return compare("eq", self.difference(other).length(), 0)

    def __eq__(self, other: object) -> Any:
        if not isinstance(other, OwnSet | set):
            return False
        one, two = (x if isinstance(x, OwnSet) else OwnSet(x) for x in (self, other))
        return compare("eq", one.difference(two).length() + two.difference(one).length(), 0)

    __hash__ = None  # type: ignore[assignment]

    def __iter__(self) -> Iterator[Any]:
        """The items in Python's order.

        Raises:
            Interrupt: Only run time knows it.
        """
        trace = recorded()
        items = self.held_items
        if trace is not None and any(
            is_staged(trace, x) for x in (items, *flatten_state(trace, items)[0])
        ):
            trace.moved()
            raise Interrupt(
                ScriptError(
                    "in which order this set has its items depends on the input's values",
                    source=trace.position()[0],
                    hint="go through them in a certain order: `for x in sorted(s)`",
                )
            )
        return iter(set(natively(items)))


def own_set(items: Any = ()) -> Any:
    """``set(items)``."""
    trace = Trace.current()
    return set(natively(items)) if trace is None or not trace.live else OwnSet(items)


def _nothing() -> None:
    return None


def _require_numbers(item: Any) -> None:
    """Complain of a tensor: a set tells tensors apart by what they are, not by their values.

    Raises:
        Interrupt: It is one, or a tuple that holds one.
    """
    trace = recorded()
    parts = item if isinstance(item, tuple) else (item,)
    if trace is not None and any(map(trace.frontend.is_array, parts)):
        trace.moved()
        raise Interrupt(
            ScriptError(
                "a set tells tensors apart by identity, not by their values",
                source=trace.position()[0],
                hint="put numbers into it: `s.add(x.item())`",
            )
        )
