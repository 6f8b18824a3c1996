"""Lists that compiled functions make: staged ones take their place, whoever holds them."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from exporters.tracing.lists import StagedList
from exporters.tracing.scalars import TracedInt
from exporters.tracing.trace import Trace

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["OwnList", "ScanBrokenError", "ScanList", "become", "held", "is_own", "own", "restore"]


class OwnList(list[Any]):
    """A list of known length that may become a staged one in its place.

    A plain list cannot: only the names and places that hold it could be given another one.
    """

    __hash__ = None

    def __reduce__(self) -> Any:
        return list, (list.copy(self),)

    def __copy__(self) -> list[Any]:
        return list.copy(self)

    def __deepcopy__(self, memo: Any) -> list[Any]:
        return copy.deepcopy(list.copy(self), memo)

    def copy(self) -> OwnList:
        """A list of its own with the same items."""
        return OwnList(self)

    def __getitem__(self, index: Any) -> Any:
        found = super().__getitem__(index)
        return OwnList(found) if isinstance(index, slice) else found

    def __add__(self, items: Any) -> Any:
        if isinstance(items, StagedList):
            return items.__radd__(self)
        return OwnList(super().__add__(items))

    def __mul__(self, times: Any) -> Any:
        if isinstance(times, TracedInt):
            return times.record.trace.repeat(self, times)
        return OwnList(super().__mul__(times))

    __rmul__ = __mul__

    def staged_length(self) -> int:
        """How many items there are."""
        return len(self)

    def extend(self, items: Iterable[Any]) -> None:
        """Add several items at the end."""
        from exporters.tracing.iteration import listed  # it makes lists itself

        more = listed(items)
        if isinstance(more, StagedList):
            become(self, more.joined(list(self), more))
        else:
            super().extend(more)

    def __iadd__(self, items: Iterable[Any]) -> Any:  # type: ignore[misc]
        self.extend(items)
        return self

    def pop(self, index: Any = -1) -> Any:
        """Take an item out."""
        return self.pop(index) if self._staged_by(index) else super().pop(index)

    def insert(self, index: Any, item: Any) -> None:
        """Add an item before a place."""
        if self._staged_by(index):
            self.insert(index, item)
        else:
            super().insert(index, item)

    def __setitem__(self, index: Any, items: Any) -> None:
        from exporters.tracing.iteration import listed  # it makes lists itself

        more = listed(items) if isinstance(index, slice) else items
        if not isinstance(index, slice) or not isinstance(more, StagedList):
            super().__setitem__(index, more)
            return
        places = range(len(self))[index]
        before, after = self[: places.start], self[max(places.start, places.stop) :]
        become(self, more.joined(before, more, after))

    def __delitem__(self, index: Any) -> None:
        if self._staged_by(index):
            del self[index]
        else:
            super().__delitem__(index)

    def _staged_by(self, index: Any) -> bool:
        """Whether this is a staged list now, because only run time knows a place in it."""
        trace = Trace.current()
        if trace is None or not trace.live or not trace.recording or isinstance(index, slice):
            return False
        from exporters.tracing.merging import Ways, is_staged  # it makes lists itself

        if not is_staged(trace, index):
            return False
        found = Ways(trace, ("the others", "the new item"), None).list_of("", [list(self)])
        if found is not None:
            columns = tuple(s.values[0] for s in found[1])
            become(self, StagedList(trace, found[0].item, columns, data=False))
        return found is not None


def own(items: list[Any]) -> list[Any]:
    """A list display while a trace runs."""
    return items if Trace.current() is None else OwnList(items)


def held(x: Any) -> Any:
    """The list of the items of what stands for a set, or a deque; anything else is itself."""
    return getattr(x, "held_items", x)


def is_own(x: Any) -> bool:
    """Whether a list can become another one in its place."""
    return isinstance(x, OwnList | StagedList | ScanList)


def become(x: Any, other: list[Any]) -> None:
    """Let a list be what another one is; whoever holds it sees that."""
    kind = type(other) if is_own(other) else OwnList
    restore(x, kind, dict(getattr(other, "__dict__", {})), other)


def restore(x: Any, kind: type, attributes: dict[str, Any], items: list[Any]) -> None:
    """Let a list be of a kind, with some attributes and items."""
    x.__class__ = kind
    vars(x).clear()
    vars(x).update(attributes)
    list.__setitem__(x, slice(None), list.copy(items))


class ScanBrokenError(BaseException):
    """A loop body does more to a list than append to it; no ``except`` of the user's stops this.

    Attributes:
        items: What stands for the list.
    """

    def __init__(self, items: Any) -> None:
        super().__init__()
        self.items = items


class ScanList(list[Any]):
    """Stands for a list while a loop body is traced, as long as the body only appends to it.

    Args:
        trace: The trace; items must be appended in its innermost block.
    """

    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self._trace = trace
        self._block = trace.builder.block
        self.items: list[Any] = []

    __hash__ = None

    def append(self, item: Any) -> None:
        """Add what becomes a scan output."""
        if self._trace.builder.block is not self._block:
            raise ScanBrokenError(self)
        self.items.append(item)

    def extend(self, items: Iterable[Any]) -> None:
        """Add several items at the end."""
        from exporters.tracing.iteration import listed  # it makes lists itself

        more = listed(items)
        if isinstance(more, StagedList):
            raise ScanBrokenError(self)
        for item in more:
            self.append(item)

    def __iadd__(self, items: Iterable[Any]) -> ScanList:  # type: ignore[misc]
        self.extend(items)
        return self

    def _broken(self, *_: Any, **__: Any) -> Any:
        raise ScanBrokenError(self)

    __len__ = __getitem__ = __setitem__ = __delitem__ = __iter__ = __contains__ = _broken
    __bool__ = __add__ = __reversed__ = __eq__ = pop = insert = remove = clear = copy = _broken
    index = count = sort = reverse = _broken
