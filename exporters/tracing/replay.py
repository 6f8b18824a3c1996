"""A loop run to its end, eagerly and once per world, to see what its state does."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from exporters.errors import ScriptError
from exporters.tracing.bodies import (
    condition_in,
    frozen,
    raise_unowned,
    require_maker,
    worlds_of,
)
from exporters.tracing.chosen import Chosen
from exporters.tracing.effects import Change, MemoryLog
from exporters.tracing.leaves import UNBOUND, is_leaf, presence, same
from exporters.tracing.lists import StagedList
from exporters.tracing.loop_state import Reference, Seen
from exporters.tracing.merging import is_staged
from exporters.tracing.nodes import ITEM, key_of
from exporters.tracing.own_lists import OwnList, is_own
from exporters.tracing.pytree import shallow
from exporters.tracing.trace import Interrupt

if TYPE_CHECKING:
    from exporters.tracing.effects import Snapshot
    from exporters.tracing.loop_state import LoopState
    from exporters.tracing.trace import Trace

__all__ = ["OuterWrite", "replay"]

_LAST = 64  # how many items of a list are looked at after each iteration
_GHOST_TRIPS = 4  # enough to see what changes from one iteration to the next


class OuterWrite(BaseException):
    """A replay is about to write to a constant that it did not make itself.

    Attributes:
        array: The constant.
    """

    def __init__(self, array: Any) -> None:
        super().__init__()
        self.array = array


def replay(loop: LoopState) -> None:
    """Run the loop in every world; note its trip counts, and what its state held."""
    _Replay(loop).run()


class _Replay:
    def __init__(self, loop: LoopState) -> None:
        self.loop = loop
        self.trace = loop.trace
        self.filled = False

    def run(self) -> None:
        while True:
            try:
                self._all_worlds()
                break
            except OuterWrite as write:  # it has to vary between worlds before it is written to
                self.loop.log.swap()
                self.loop.log = MemoryLog()
                self.trace.frontend.promote(write.array)

    def _all_worlds(self) -> None:
        self.loop.seen.clear()
        self.loop.finals.clear()
        self.loop.trips.clear()
        self.trace.logs.append(self.loop.log)
        try:
            for world in self.trace.active:
                self._world(world, forced=False)
            if not any(self.loop.trips.values()):
                self._force()
            for identity, (_, seen) in self.loop.seen.items():
                seen.final = self.loop.finals.get(identity, {}) | seen.final
        finally:
            self.trace.logs.pop()

    def _force(self) -> None:
        """See what an iteration does although no world has one."""
        failure: Exception | None = None
        for world, filled in itertools.product(self.trace.active, (False, True)):
            self.filled = filled
            try:
                self._world(world, forced=True)
            except Exception as error:
                failure = error
            else:
                return
        raise Interrupt(
            ScriptError(
                "the body of a loop that no example enters cannot be traced: "
                f"{type(failure).__name__}: {failure}",
                source=self.loop.scope.source,
                hint="give an example that enters it with examples=[...]",
            )
        ) from failure

    def _world(self, world: int, *, forced: bool) -> None:
        """Run the whole loop eagerly in one world, or one iteration of it if that is forced."""
        trace, scope = self.trace, self.loop.scope
        snapshot = scope.snapshot(trace, self.loop.names)
        recording, trace.recording = trace.recording, False
        forcing, trace.forcing = trace.forcing, trace.forcing or forced
        log = MemoryLog()
        if forced:
            trace.logs.append(log)
        try:
            with worlds_of(trace, [world], {world} if forced else trace.ghosts & {world}):
                bound = tuple(self._bare(x, world) for x in self.loop.names)
                staged = snapshot.make_plain(lambda items: self._items(items, world))
                watch = _Watch(self.loop, snapshot, scope.snapshot(trace, bound), staged, world)
                scope.set(bound)
                trips = 0
                limit = self._limit(world, forced=forced)
                while limit is None or trips < limit:
                    if not forced and not self._goes_on(trips, world):
                        break
                    if self.loop.over is None:
                        self.loop.body()
                    else:
                        self.loop.body(self.loop.over.item(trips))
                    trips += 1
                    watch.look()
                self.loop.trips[world] = 0 if forced else trips
                watch.finish(keep=not forced)
        except Exception:
            if forced or world not in trace.ghosts or len(trace.active) == 1:
                raise
            trace.leave_behind([world])
        finally:
            if forced:
                trace.logs.pop()
                log.swap()
            trace.recording, trace.forcing = recording, forcing
            scope.set(self.loop.names)
            snapshot.restore()

    def _goes_on(self, trips: int, world: int) -> bool:
        """Whether another iteration follows; the first time this was asked before the loop."""
        if self.loop.test is None:
            return True
        condition = self.loop.test() if trips else self.loop.first
        return condition_in(self.trace, condition, world)

    def _bare(self, x: Any, world: int) -> Any:
        found = bare(self.trace, x, world)
        if self.filled and found is None and presence(self.trace, x) is not None:
            return x if isinstance(x, StagedList) else self.trace.frontend.concrete(x, world)
        return found

    def _items(self, items: StagedList, world: int) -> list[Any]:
        """A list's items in one world."""
        found = items.in_world(world)
        if self.filled and not found:
            found.append(items.blank())  # what an iteration takes out of it
        return found

    def _limit(self, world: int, *, forced: bool) -> int | None:
        """The most iterations to replay; None if only the condition ends the loop."""
        if forced:
            return 1
        count = (
            None if self.loop.over is None else self.trace.number_in(self.loop.over.count, world)
        )
        if world in self.trace.ghosts:  # its values do not matter, and it may never end
            return _GHOST_TRIPS if count is None else min(count, _GHOST_TRIPS)
        return count


def bare(trace: Trace, x: Any, world: int) -> Any:
    """What a name holds in one world; containers keep their identity."""
    if isinstance(x, Chosen):
        return x.map(lambda option: option)
    present = presence(trace, x)
    if present is not None and not trace.number_in(present, world):
        return None
    if is_leaf(trace, x) and is_staged(trace, x):
        return trace.frontend.concrete(x, world)
    return x


class _Watch:
    """Looks at the state after each iteration of a replay.

    Args:
        loop: The loop.
        before: What its bodies may change, as it was before the replay.
        snapshot: The same as it is in the world.
        staged: Lists in it that have a run-time length, and their labels, by what is inside.
        world: The world.
    """

    def __init__(
        self,
        loop: LoopState,
        before: Snapshot,
        snapshot: Snapshot,
        staged: dict[int, Any],
        world: int,
    ) -> None:
        self.loop = loop
        self.trace = loop.trace
        self.before = before
        self.snapshot = snapshot
        self.staged = staged
        self.world = world
        self.places: dict[Any, Reference] | None = None
        self.lengths: dict[Any, int] = {}

    def look(self) -> None:
        """Note what every name and changed place holds now."""
        if self.places is None:
            self.places = self._changed_places()
        for reference, value in self._current():
            self._note(reference, value)

    def finish(self, *, keep: bool) -> None:
        """Note the values after the last iteration."""
        before = set(self.places or ())
        later = self._changed_places() if self.places is not None else {}
        for identity, reference in later.items():
            if identity not in before:  # it changed in a later iteration only
                assert self.places is not None
                self.places[identity] = reference
                self._note(reference, self._value(reference))
        if keep:
            changed = {id(r.container) for r in (self.places or {}).values() if r.name is None}
            for identity, x in self.snapshot.holders(changed) if changed else ():
                # In another world something else may be there.
                self.loop.finals.setdefault(identity, {})[self.world] = frozen(self.trace, x)
            for reference, value in self._current():
                if reference.is_item:  # of a list that may grow in another world
                    whole = id(reference.container), None
                    items = frozen(self.trace, list(reference.container))
                    self.loop.finals.setdefault(whole, {})[self.world] = items
                known = reference.identity in self.loop.seen
                if value is not UNBOUND and (known or self._holds_state(value)):
                    final = frozen(self.trace, value)
                    self.loop.finals.setdefault(reference.identity, {})[self.world] = final
                    if known:
                        self.loop.seen[reference.identity][1].final[self.world] = final

    def _holds_state(self, x: Any) -> bool:
        """Whether a place may turn out to be bound anew although no replay did that."""
        if isinstance(x, StagedList) or is_leaf(self.trace, x):
            return False
        return type(x) in (list, OwnList) or bool(shallow(x)[1])

    def _changed_places(self) -> dict[Any, Reference]:
        found: dict[Any, Reference] = {}
        for change in self.snapshot.changes():
            references = [Reference(change.label, None, change.container, change.key)]
            if id(change.container) in self.staged:  # or something in one of its items
                items, label = self.staged[id(change.container)]
                references = [Reference(label, None, items, "contents")]
            elif change.key is None and not is_own(change.container):
                references = self._references_to(change)
            for reference in references:
                found[reference.identity] = reference
        return found

    def _references_to(self, change: Change) -> list[Reference]:
        """The names and places through which a list that grew or shrank is reached."""
        require_maker(self.trace, self.snapshot, change.container, self.loop.scope)
        found = [
            Reference(name, index)
            for index, (name, x) in enumerate(
                zip(self.loop.scope.names, self.loop.names, strict=True)
            )
            if x is change.container
        ]
        found += [
            Reference(label, None, c, k)
            for c, k, label in self.snapshot.places_of(change.container)
        ]
        given = [r.label for r in found if r.name is not None and r.label in self.loop.scope.given]
        if given:
            raise_unowned(self.trace, given[0], change.container, self.loop.scope)
        if not found:
            raise_unowned(self.trace, change.label, change.container, self.loop.scope)
        return found

    def _current(self) -> list[tuple[Reference, Any]]:
        names = self.loop.scope.get()
        pairs = [
            (Reference(name, index), value)
            for index, (name, value) in enumerate(zip(self.loop.scope.names, names, strict=True))
        ]
        taken = {r.identity for r, _ in pairs}
        pairs += [(r, self._value(r)) for i, r in (self.places or {}).items() if i not in taken]
        return pairs

    def _value(self, reference: Reference) -> Any:
        if reference.name is not None:
            return self.loop.scope.get()[reference.name]
        return reference.held()

    def _start(self, reference: Reference) -> Any:
        if reference.name is not None:
            value = self.loop.names[reference.name]
        else:
            value = self.before.value(reference.container, reference.key, UNBOUND)
        if not isinstance(value, list) or isinstance(value, StagedList):
            return value
        found = self.before.value(value, None, value)
        return found if isinstance(found, StagedList) else list(found)

    def _note(self, reference: Reference, value: Any) -> None:
        loop = self.loop
        start = self._start(reference)
        if value is UNBOUND:  # not yet: nobody reads it
            return
        if reference.name is not None and loop.scope.is_idle(reference.label, start, value):
            return
        entry = loop.seen.get(reference.identity)
        grown = isinstance(value, list) and reference.identity in (self.places or {})
        if entry is None:
            if not grown and self._unchanged(reference, start, value):
                return
            entry = loop.seen[reference.identity] = (reference, Seen(start))
        seen = entry[1]
        if isinstance(value, list) and isinstance(start, list):
            self._note_list(reference, seen, start, value)
        key = key_of(self.trace, value)
        if all(key_of(self.trace, known) != key for known in seen.values) and len(seen.values) < 4:
            seen.values.append(frozen(self.trace, value))
        self._observe(value, (), seen.shapes, set())

    def _observe(
        self,
        x: Any,
        path: tuple[Any, ...],
        found: dict[tuple[Any, ...], dict[int, set[tuple[int, ...]]]],
        parents: set[int],
    ) -> None:
        """Note the shapes of the arrays in a value."""
        if self.trace.frontend.is_array(x):
            frontend = self.trace.frontend  # what a container holds may be another world's handle
            shape = frontend.shape_of(frontend.concrete(x, self.world))
            found.setdefault(path, {}).setdefault(self.world, set()).add(shape)
            return
        if is_leaf(self.trace, x) or id(x) in parents:
            return
        parents = parents | {id(x)}
        kind, items = shallow(x)
        if kind == "list":
            if path[-1:] == (
                ITEM,
            ):  # a list in a list: its length counts, as the size of a tensor
                found.setdefault((*path, ITEM), {}).setdefault(self.world, set()).add(
                    (len(items),)
                )
            for _, item in items[-_LAST:]:
                self._observe(item, (*path, ITEM), found, parents)
        for key, item in items[:_LAST]:
            self._observe(item, (*path, key), found, parents)

    def _unchanged(self, reference: Reference, start: Any, value: Any) -> bool:
        if reference.name is not None and value is self.loop.names[reference.name]:
            return True
        return same(bare(self.trace, start, self.world), value)

    def _note_list(
        self, reference: Reference, seen: Seen, start: list[Any], value: list[Any]
    ) -> None:
        before = self.lengths.get(reference.identity, len(start))
        gained = len(value) - before
        self.lengths[reference.identity] = len(value)
        if seen.grows is None and len(seen.values) == 0 and gained > 0:
            seen.grows = gained
        elif seen.grows != gained:
            seen.grows = -1
