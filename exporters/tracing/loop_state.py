"""What a loop's staging knows: the loop, its state, and what the state was seen to be."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from exporters.tracing.effects import MemoryLog
from exporters.tracing.leaves import UNBOUND, mark_key, presence_of_key
from exporters.tracing.merging import Ways, is_staged
from exporters.tracing.own_lists import ScanList, become, is_own
from exporters.tracing.trace import Trace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from exporters.tracing.bodies import Scope
    from exporters.tracing.lists import StagedList

__all__ = ["Iterable", "KeyReference", "LoopState", "Reference", "Seen"]


@dataclasses.dataclass(frozen=True, slots=True)
class Iterable:
    """Something to loop over whose length only run time knows.

    Attributes:
        count: How many items there are: a traced int, or an int in an eager replay.
        item: The item at a position, given as a traced int or an int.
        source: A list whose items stand in these, and may be changed in its place.
        placed: The item at a position, given with the list's.
    """

    count: Any
    item: Callable[[Any], Any]
    source: StagedList | None = None
    placed: Callable[[Any, Any], Any] | None = None

    def __iter__(self) -> Iterator[Any]:
        """The items for Python to loop over (``itertools``), as many as all worlds have.

        Raises:
            Interrupt: The worlds have different numbers of them, or the number depends on data.
        """
        return iter([self.item(i) for i in range(int(self.count))])


@dataclasses.dataclass(frozen=True, slots=True)
class Reference:
    """Where a loop's state is kept: a name of the scope, or a place in an object.

    Attributes:
        label: What the user calls it.
        name: Index among the scope's names; None for a place.
        container: The object's contents.
        key: The place in it.
    """

    label: str
    name: int | None = None
    container: Any = None
    key: Any = None

    @property
    def identity(self) -> Any:
        """What tells references apart."""
        return self.name if self.name is not None else (id(self.container), self.key)

    @property
    def of_list(self) -> bool:
        """Whether it is a whole list, whoever holds it."""
        return self.name is None and is_own(self.container) and self.key in (None, "contents")

    @property
    def is_item(self) -> bool:
        """Whether the place is an item of a list that may become a staged one."""
        return self.name is None and not self.of_list and is_own(self.container)

    @property
    def is_attribute(self) -> bool:
        """Whether the place is an attribute of an object."""
        return self.name is None and not self.label.endswith("]")

    def held(self) -> Any:
        """What the place holds now; a list as it is at this point."""
        if isinstance(self.container, ScanList):
            return self.container
        if self.of_list:
            return self.container.copy()
        if isinstance(self.container, dict):
            return self.container.get(self.key, UNBOUND)
        return self.container[self.key]

    def hold(self, value: Any) -> None:
        """Let the place hold a value."""
        if self.of_list:
            become(self.container, value)
        else:
            self.container[self.key] = value


@dataclasses.dataclass(frozen=True, slots=True)
class KeyReference(Reference):
    """Whether a dict has a key that the loop sets: its value, which is held already, is marked."""

    @property
    def identity(self) -> Any:
        """What tells references apart."""
        return id(self.container), self.key, "is there"

    def held(self) -> Any:
        """Whether the key is there now."""
        trace = Trace.current()
        assert trace is not None
        if self.key not in self.container:
            return False
        present = presence_of_key(trace, self.container[self.key])
        return True if present is None else present

    def hold(self, value: Any) -> None:
        """Let the key be there if ``value`` says so."""
        trace = Trace.current()
        assert trace is not None
        mark_key(trace, self.container[self.key], value)


@dataclasses.dataclass(slots=True)
class Seen:
    """What a reference held over the iterations, in all worlds.

    Attributes:
        start: Before the loop.
        values: One value of each type that was seen after an iteration.
        shapes: Every shape that was seen on a path, by world.
        final: After the loop, by world.
        grows: Items that a list gained in each iteration; None if it did anything else.
    """

    start: Any
    values: list[Any] = dataclasses.field(default_factory=list)
    shapes: dict[tuple[Any, ...], dict[int, set[tuple[int, ...]]]] = dataclasses.field(
        default_factory=dict
    )
    final: dict[int, Any] = dataclasses.field(default_factory=dict)
    grows: int | None = None


class LoopState:
    """A loop that is being staged.

    Args:
        trace: The trace.
        body: One iteration.
        scope: What an iteration binds.
        test: Whether another iteration follows.
        over: What is looped over.
        first: Whether there is a first iteration.

    Attributes:
        names: What the scope's names hold before the loop.
        trips: How many iterations each world has.
        seen: What each name and place held, by its identity.
        finals: What seen state, and each list, held after the loop, by its identity and world.
        flagged: Keys that the loop sets, and of which somebody asks whether they are there.
        log: Memory that the replays wrote to.
    """

    def __init__(
        self,
        trace: Trace,
        body: Callable[..., Any],
        scope: Scope,
        test: Callable[[], Any] | None,
        over: Iterable | None,
        first: Any = True,
    ) -> None:
        self.trace = trace
        self.body = body
        self.scope = scope
        self.test = test
        self.over = over
        self.first = first
        self.ways = Ways(
            trace,
            ("zero iterations", "an iteration", *["an iteration"] * 8),
            scope.source,
            loose=True,
        )
        self.names = scope.get()
        self.trips: dict[int, int] = {}
        self.seen: dict[Any, tuple[Reference, Seen]] = {}
        self.flagged: set[Any] = set()
        self.finals: dict[Any, dict[int, Any]] = {}
        self.log = MemoryLog()

    def always_runs(self) -> bool:
        """Whether there is an iteration for all inputs."""
        counted = self.over is not None and is_staged(self.trace, self.over.count)
        return not counted and (self.test is None or not is_staged(self.trace, self.first))
