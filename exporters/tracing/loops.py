"""Loops whose trip count only run time knows.

A loop is first run to its end, eagerly and once per world: that gives the values that come after
it, and shows what each name holds over the iterations (types, sizes, lists that grow). Then its
body is recorded once, on handles of exactly that kind, and becomes the body of a ``Loop`` node.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from exporters.errors import ScriptError
from exporters.tracing.effects import Change, MemoryLog, Snapshot
from exporters.tracing.finish import live_nodes
from exporters.tracing.lists import Contents, ItemType, ScanBrokenError, ScanList, StagedList
from exporters.tracing.merging import (
    UNBOUND,
    LeafType,
    Merged,
    Slot,
    Ways,
    as_staged_list,
    flatten_state,
    is_staged,
    item_type,
    leaf_in,
    leaf_type,
    leaf_value,
    make_leaf,
    same,
)
from exporters.tracing.scalars import ScalarRecord
from exporters.tracing.staging import (
    Outcome,
    Scope,
    condition_in,
    condition_value,
    raise_unowned,
    refuse_in_try,
    run_body,
    seal,
    worlds_of,
)
from exporters.tracing.trace import Interrupt

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from exporters.tracing.graph import Block
    from exporters.tracing.record import Record
    from exporters.tracing.trace import Trace

__all__ = ["Iterable", "OuterWrite", "stage_loop"]


_GHOST_TRIPS = 4  # enough to see what changes from one iteration to the next


@dataclasses.dataclass(frozen=True, slots=True)
class Iterable:
    """Something to loop over whose length only run time knows.

    Attributes:
        count: How many items there are: a traced int, or an int in an eager replay.
        item: The item at a position, given as a traced int or an int.
    """

    count: Any
    item: Callable[[Any], Any]


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
        return self.name if self.name is not None else (id(self.container), self.key)


@dataclasses.dataclass(slots=True)
class Seen:
    """What a reference held over the iterations, in all worlds.

    Attributes:
        start: Before the loop.
        values: One value of each type that was seen after an iteration.
        shapes: For each leaf, every shape that was seen, by world.
        final: After the loop, by world.
        grows: Items that a list gained in each iteration; None if it did anything else.
    """

    start: Any
    values: list[Any] = dataclasses.field(default_factory=list)
    shapes: list[dict[int, set[tuple[int, ...]]]] = dataclasses.field(default_factory=list)
    final: dict[int, Any] = dataclasses.field(default_factory=dict)
    grows: int | None = None


class OuterWrite(BaseException):
    """A replay is about to write to a constant that it did not make itself.

    Attributes:
        array: The constant.
    """

    def __init__(self, array: Any) -> None:
        super().__init__()
        self.array = array


class _Again(Exception):
    """The body has to be recorded anew, with more state carried."""


def stage_loop(
    trace: Trace,
    body: Callable[..., Any],
    scope: Scope,
    *,
    test: Callable[[], Any] | None = None,
    over: Iterable | None = None,
) -> None:
    """Turn a loop into a ``Loop`` node.

    Args:
        trace: The trace.
        body: One iteration; called with the item if there is something to loop over.
        scope: What an iteration binds.
        test: Whether another iteration follows; called before each.
        over: What is looped over.

    Raises:
        BranchMismatchError: A name has another type after an iteration than before.
    """
    refuse_in_try(scope)
    _StagedLoop(trace, body, scope, test, over).run()


class _StagedLoop:
    def __init__(
        self,
        trace: Trace,
        body: Callable[..., Any],
        scope: Scope,
        test: Callable[[], Any] | None,
        over: Iterable | None,
    ) -> None:
        self.trace = trace
        self.body = body
        self.scope = scope
        self.test = test
        self.over = over
        self.ways = Ways(
            trace,
            ("zero iterations", "an iteration", *["an iteration"] * 8),
            scope.source,
            loose=True,
        )
        self.names = scope.get()
        self.trips: dict[int, int] = {}
        self.seen: dict[Any, tuple[Reference, Seen]] = {}
        self.log = MemoryLog()

    def run(self) -> None:
        trace = self.trace
        first = self.test() if self.test is not None else None
        while True:
            try:
                self._replay_all()
                break
            except OuterWrite as write:  # it has to vary between worlds before it is written to
                self.log.swap()
                self.log = MemoryLog()
                trace.frontend.promote(write.array)
        memories: dict[int, Record] = {}
        unscanned: set[Any] = set()
        while True:
            recording = _Recording(self, memories, unscanned)
            self.log.swap()
            try:
                recording.run()
                break
            except _Again:
                continue
            finally:
                self.log.swap()
        recording.emit(first)

    def _replay_all(self) -> None:
        self.seen.clear()
        self.trips.clear()
        self.trace.logs.append(self.log)
        try:
            for world in self.trace.active:
                self._replay(world, forced=False)
            if not any(self.trips.values()):
                self._force()
        finally:
            self.trace.logs.pop()

    def _force(self) -> None:
        """See what an iteration does although no world has one."""
        failure: Exception | None = None
        for world in self.trace.active:
            try:
                self._replay(world, forced=True)
            except Exception as error:
                failure = error
            else:
                return
        raise Interrupt(
            ScriptError(
                "the body of a loop that no example enters cannot be traced: "
                f"{type(failure).__name__}: {failure}",
                source=self.scope.source,
                hint="give an example that enters it with examples=[...]",
            )
        ) from failure

    # Eager replay

    def _replay(self, world: int, *, forced: bool) -> None:
        """Run the whole loop eagerly in one world, or one iteration of it if that is forced."""
        trace, scope = self.trace, self.scope
        snapshot = Snapshot((*scope.roots(), *self.names), trace.frontend.is_opaque)
        recording, trace.recording = trace.recording, False
        log = MemoryLog()
        if forced:
            trace.logs.append(log)
        watch = _Watch(self, snapshot, world)
        try:
            with worlds_of(trace, [world], trace.ghosts & {world}):
                scope.set(tuple(self._bare(x, world) for x in self.names))
                trips = 0
                limit = self._limit(world, forced=forced)
                while limit is None or trips < limit:
                    if (
                        not forced
                        and self.test is not None
                        and not condition_in(trace, self.test(), world)
                    ):
                        break
                    if self.over is None:
                        self.body()
                    else:
                        self.body(self.over.item(trips))
                    trips += 1
                    watch.look()
                self.trips[world] = 0 if forced else trips
                watch.finish(keep=not forced)
        except Exception:
            if forced or world not in trace.ghosts or len(trace.active) == 1:
                raise
            trace.leave_behind([world])
        finally:
            if forced:
                trace.logs.pop()
                log.swap()
            trace.recording = recording
            scope.set(self.names)
            snapshot.restore()

    def _limit(self, world: int, *, forced: bool) -> int | None:
        """The most iterations to replay; None if only the condition ends the loop."""
        if forced:
            return 1
        count = None if self.over is None else self.trace.number_in(self.over.count, world)
        if world in self.trace.ghosts:  # its values do not matter, and it may never end
            return _GHOST_TRIPS if count is None else min(count, _GHOST_TRIPS)
        return count

    def _bare(self, x: Any, world: int) -> Any:
        """What a name holds in one world; containers keep their identity."""
        if isinstance(x, StagedList):
            return list(x.contents.worlds[world])
        if is_staged(self.trace, x):
            return self.trace.frontend.concrete(x, world)
        return x


class _Watch:
    """Looks at the state after each iteration of a replay."""

    def __init__(self, loop: _StagedLoop, snapshot: Snapshot, world: int) -> None:
        self.loop = loop
        self.trace = loop.trace
        self.snapshot = snapshot
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
            for reference, value in self._current():
                if reference.identity in self.loop.seen:
                    final = list(value) if isinstance(value, list) else value
                    self.loop.seen[reference.identity][1].final[self.world] = final

    def _changed_places(self) -> dict[Any, Reference]:
        found: dict[Any, Reference] = {}
        for change in self.snapshot.changes():
            references = [Reference(change.label, None, change.container, change.key)]
            if change.key is None:
                references = self._references_to(change)
            for reference in references:
                found[reference.identity] = reference
        return found

    def _references_to(self, change: Change) -> list[Reference]:
        """The names and places through which a list that grew or shrank is reached."""
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
        if not found:
            raise_unowned(change.label, self.loop.scope)
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
        container = reference.container
        if isinstance(container, dict):
            return container.get(reference.key, UNBOUND)
        return container[reference.key]

    def _start(self, reference: Reference) -> Any:
        if reference.name is not None:
            value = self.loop.names[reference.name]
        else:
            value = self.snapshot.value(reference.container, reference.key, UNBOUND)
        if isinstance(value, list) and not isinstance(value, StagedList):
            return list(self.snapshot.value(value, None, value))
        return value

    def _note(self, reference: Reference, value: Any) -> None:
        loop = self.loop
        start = self._start(reference)
        entry = loop.seen.get(reference.identity)
        grown = isinstance(value, list) and reference.identity in (self.places or {})
        if entry is None:
            if not grown and self._unchanged(reference, start, value):
                return
            entry = loop.seen[reference.identity] = (reference, Seen(start))
        seen = entry[1]
        if isinstance(value, list) and isinstance(start, list):
            self._note_list(reference, seen, start, value)
        leaves, tree = flatten_state(self.trace, value)
        types = [leaf_type(self.trace, x) for x in leaves]
        for known in seen.values:
            known_leaves, known_tree = flatten_state(self.trace, known)
            if (
                known_tree.describe() == tree.describe()
                and [leaf_type(self.trace, x) for x in known_leaves] == types
            ):
                break
        else:
            if len(seen.values) < 4:
                seen.values.append(list(value) if isinstance(value, list) else value)
        for index, leaf in enumerate(leaves):
            if len(seen.shapes) <= index:
                seen.shapes.append({})
            if self.trace.frontend.is_array(leaf):
                shape = self.trace.frontend.shape_of(leaf)
                seen.shapes[index].setdefault(self.world, set()).add(shape)

    def _unchanged(self, reference: Reference, start: Any, value: Any) -> bool:
        if reference.name is not None and value is self.loop.names[reference.name]:
            return True
        return same(self.loop._bare(start, self.world), value)

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


class _Recording:
    """Records the body once, with the state that the replays showed."""

    def __init__(
        self, loop: _StagedLoop, memories: dict[int, Record], unscanned: set[Any]
    ) -> None:
        self.loop = loop
        self.trace = loop.trace
        self.memories = memories
        self.unscanned = unscanned
        self.scans: list[tuple[Reference, Seen, ItemType]] = []
        self.carried: list[tuple[Reference, Seen, Merged]] = []
        self.inputs: list[ir.Value] = []
        self.outputs: list[ir.Value] = []
        self.scanned: list[list[ir.Value]] = []
        self.condition: ir.Value | None = None
        self.outcome: Outcome | None = None

    def run(self) -> None:
        self._sort_state()
        loop, trace = self.loop, self.trace
        running = [w for w in trace.active if loop.trips.get(w) and w not in trace.ghosts]
        others = [w for w in trace.active if w not in running]
        try:
            self.outcome = run_body(
                trace,
                self._body,
                loop.scope,
                "loop",
                active=[*running, *others],
                ghosts=others,
                prepare=self._prepare,
                finish=self._finish,
                transient=True,
            )
        except ScanBrokenError as broken:
            self.unscanned.update(r.identity for r, _, _ in self.scans)
            raise _Again from broken

    # What is carried

    def _sort_state(self) -> None:
        for reference, seen in self.loop.seen.values():
            item = self._scan_type(reference, seen)
            if item is not None:
                self.scans.append((reference, seen, item))
                continue
            merged = self._merge(reference, seen)
            if isinstance(merged, Merged):
                self.carried.append((reference, seen, merged))

    def _scan_type(self, reference: Reference, seen: Seen) -> ItemType | None:
        """The item type of a list that may become a scan output."""
        if reference.identity in self.unscanned or seen.grows is None or seen.grows < 1:
            return None
        if isinstance(seen.start, StagedList) and seen.start.contents.stacked is None:
            return None
        shapes = {s for leaf in seen.shapes for per_world in leaf.values() for s in per_world}
        ranks = {len(s) for s in shapes}
        per_world = [
            set().union(*(leaf.get(w, set()) for leaf in seen.shapes)) for w in self.loop.trips
        ]
        if len(ranks) > 1 or any(len(s) > 1 for s in per_world):
            return None
        return item_type(self.trace, [seen.start, *seen.values])

    def _merge(self, reference: Reference, seen: Seen) -> Any:
        trace, label = self.trace, reference.label
        start, values = seen.start, list(seen.values)
        if start is UNBOUND:
            leaves, tree = flatten_state(trace, values[0])
            start = tree.unflatten([trace.frontend.zeros_like(x) for x in leaves])
            seen.start = start
            merged = self.loop.ways.merge(label, [start, *values])
            if not isinstance(merged, Merged):  # a constant: carried all the same
                leaves, tree = flatten_state(trace, values[0])
                merged = Merged(label, tree, [Slot([x, x], leaf_type(trace, x)) for x in leaves])
            return merged
        return self.loop.ways.merge(label, [start, *values])

    # The body

    def _prepare(self, block: Block) -> None:
        trace, builder = self.trace, self.trace.builder
        self.number = self._input(
            "iteration", LeafType("number", ir.DataType.INT64, 0, int), block
        )
        keep = self._input("condition", LeafType("number", ir.DataType.BOOL, 0, bool), block)
        block.inputs = [self.number, keep]
        names = list(self.loop.names)
        for reference, seen, merged in self.carried:
            handles = []
            for slot in merged.slots:
                value = self._input(reference.label, slot.type, block)
                block.inputs.append(value)
                handles.append(self._handle(slot, value, seen, merged))
            self._bind(reference, merged.rebuild(handles), names)
        for reference, _, _ in self.scans:
            self._bind(reference, ScanList(trace), names)
        self.loop.scope.set(tuple(names))
        for record in self.memories.values():
            before = trace.read(record)
            value = ir.Value(
                name=builder.unique_name(f"{before.name}_in"),
                type=before.type,
                shape=None if before.shape is None else before.shape.copy(),
            )
            value.meta.update(before.meta)
            value.meta["block"] = block
            block.inputs.append(value)
            trace.overwrite(record, value)

    def _bind(self, reference: Reference, value: Any, names: list[Any]) -> None:
        if reference.name is not None:
            names[reference.name] = value
        else:
            reference.container[reference.key] = value

    def _input(self, label: str, kind: LeafType, block: Block) -> ir.Value:
        element = ir.TensorType(kind.dtype)
        value = ir.Value(
            name=self.trace.builder.unique_name(label.lstrip(".") or "state"),
            type=ir.SequenceType(element) if kind.kind == "list" else element,
            shape=ir.Shape([]) if kind.kind == "number" else None,
        )
        value.meta["block"] = block
        return value

    def _handle(self, slot: Slot, value: ir.Value, seen: Seen, merged: Merged) -> Any:
        """What the body sees: the state at the start of an iteration."""
        trace = self.trace
        start = slot.values[0]
        shown = start
        if slot.type.kind == "array" and not _has_rank(trace, start, slot.type.rank):
            shown = next(x for x in slot.values if _has_rank(trace, x, slot.type.rank))
        worlds = {w: leaf_in(trace, shown, slot.type, w) for w in trace.active}
        dims = None
        if slot.type.kind == "array":
            dims = self._dims(slot, seen, merged)
        return make_leaf(trace, worlds, value, slot.type, dims=dims)

    def _dims(self, slot: Slot, seen: Seen, merged: Merged) -> list[int | None]:
        """The sizes that stay the same over all iterations, in every world, from the start."""
        trace = self.trace
        start = slot.values[0]
        if not _has_rank(trace, start, slot.type.rank):
            return [None] * slot.type.rank
        known = [d if isinstance(d, int) else None for d in trace.frontend.type_of(start)[1]]
        for value in slot.values[1:]:
            if _has_rank(trace, value, slot.type.rank):
                dims = trace.frontend.type_of(value)[1]
                known = [k if k == d else None for k, d in zip(known, dims, strict=True)]
        for shape in self._shapes(slot, seen, merged):
            known = [k if k == s else None for k, s in zip(known, shape, strict=True)]
        return known

    def _shapes(self, slot: Slot, seen: Seen, merged: Merged) -> list[tuple[int, ...]]:
        index = next(i for i, leaf in enumerate(merged.leaves) if leaf is slot)
        if index >= len(seen.shapes):
            return []
        return [
            s for shapes in seen.shapes[index].values() for s in shapes if len(s) == slot.type.rank
        ]

    def _body(self) -> None:
        loop, trace = self.loop, self.trace
        if loop.over is None:
            loop.body()
            return
        index = ScalarRecord(
            trace, dict.fromkeys(trace.active, 0), data=True, scalar=self.number, nonnegative=True
        )
        loop.body(loop.over.item(trace.number(index, int)))

    def _finish(self, outcome: Outcome) -> None:
        """At the end of the body: what the next iteration starts with."""
        loop, trace = self.loop, self.trace
        missing = {k: r for k, (r, _) in outcome.memories.items() if k not in self.memories}
        if missing:
            self.memories.update(missing)
            raise _Again
        self._require_known_state(outcome)
        if loop.test is not None:
            again = loop.test()
            staged = is_staged(trace, again)
            self.condition = (
                condition_value(trace, again) if staged else trace.builder.operand(bool(again))
            )
        for reference, _, merged in self.carried:
            after = self._after(reference, outcome)
            leaves, tree = flatten_state(trace, after)
            if any(s.type.kind == "list" for s in merged.slots):
                leaves = [after]
            for slot, leaf in zip(merged.slots, self._chosen(merged, leaves), strict=True):
                self._require_type(reference, slot, leaf)
                self.outputs.append(leaf_value(trace, leaf, slot.type))
        for key, record in self.memories.items():
            found = outcome.memories.get(key)
            self.outputs.append(found[1] if found is not None else trace.read(record))
        for reference, seen, item in self.scans:
            filled = self._after(reference, outcome)
            if not isinstance(filled, ScanList) or len(filled.items) != seen.grows:
                self.unscanned.add(reference.identity)
                raise _Again
            self.scanned.append([trace.frontend.item_value(x, item) for x in filled.items])
        block = outcome.block
        self.outputs = self._sealed(self.outputs, block)
        self.scanned = [self._sealed(values, block) for values in self.scanned]
        if self.condition is not None:
            self.condition = seal(trace, self.condition, block)

    def _chosen(self, merged: Merged, leaves: list[Any]) -> list[Any]:
        return [x for x, leaf in zip(leaves, merged.leaves, strict=True) if isinstance(leaf, Slot)]

    def _sealed(self, values: Sequence[ir.Value], block: Block) -> list[ir.Value]:
        result: list[ir.Value] = []
        for value in values:
            own = seal(self.trace, value, block)
            if (
                any(own is v for v in (*result, *self.outputs[: len(result)]))
                or own in block.inputs
            ):
                own = self.trace.builder.emit("Identity", value, block=block)
                own.type, own.shape = value.type, value.shape
            result.append(own)
        return result

    def _after(self, reference: Reference, outcome: Outcome) -> Any:
        if reference.name is not None:
            return outcome.values[reference.name]
        container = reference.container
        return (
            container.get(reference.key, UNBOUND)
            if isinstance(container, dict)
            else container[reference.key]
        )

    def _require_known_state(self, outcome: Outcome) -> None:
        """Whatever the body changes must have been seen to change in the replays."""
        known = {r.identity for r, *_ in (*self.carried, *self.scans)}
        for index, (name, before) in enumerate(
            zip(self.loop.scope.names, self.loop.names, strict=True)
        ):
            if index in known:
                continue
            after = outcome.values[index]
            if not same(after, before) and is_staged(self.trace, after):
                reference = Reference(name, index)
                self.loop.seen[index] = (reference, Seen(before, [after]))
                raise _Again

    def _require_type(self, reference: Reference, slot: Slot, leaf: Any) -> None:
        found = (
            leaf_type(self.trace, leaf)
            if slot.type.kind != "list" or isinstance(leaf, StagedList)
            else slot.type
        )
        number_to_array = slot.type.kind == "array" and found.kind == "number"
        wider = slot.type.kind == "number" and found.kind == "number"
        if found != slot.type and not number_to_array and not wider:
            self.loop.ways.merge(reference.label, [slot.values[0], leaf])

    # The node

    def emit(self, first: Any) -> None:
        """Put the ``Loop`` node after what came before it, and let the state be its outputs."""
        loop, trace, op = self.loop, self.trace, self.trace.builder
        assert self.outcome is not None
        block = self.outcome.block
        initial = [
            self._initial(slot) for _, _, merged in self.carried for slot in merged.slots
        ] + [trace.read(record) for record in self.memories.values()]
        inner: list[ir.Value] = []
        condition = self.condition
        if condition is None:
            condition = _true(op.unique_name("true"))
            inner.append(condition)
        outputs = [condition, *self.outputs, *(v for values in self.scanned for v in values)]
        nodes = live_nodes(block.nodes, outputs)
        graph = ir.Graph(
            block.inputs, outputs, nodes=nodes, initializers=inner, name=op.unique_name("body")
        )
        count = None if loop.over is None else op.operand(loop.over.count, ir.DataType.INT64)
        start = None
        if loop.test is not None:
            start = (
                condition_value(trace, first)
                if is_staged(trace, first)
                else op.operand(bool(first))
            )
            if (
                start.const_value is not None
                and bool(start.const_value.numpy())
                and count is not None
            ):
                start = None
        if start is None and not initial:
            start = op.operand(True)  # the schema wants two inputs
        produced = len(self.outputs) + sum(len(v) for v in self.scanned)
        if produced == 0:
            return
        emitted = op.emit("Loop", count, start, *initial, body=graph, outputs=produced)
        results = emitted if isinstance(emitted, list) else [emitted]
        for result, value in zip(results, outputs[1:], strict=True):
            result.type = value.type
        self._bind_results(results)

    def _initial(self, slot: Slot) -> ir.Value:
        trace, op = self.trace, self.trace.builder
        start = slot.values[0]
        if slot.type.kind == "list":
            return as_staged_list(trace, start, slot.type).sequence()
        value = leaf_value(trace, start, slot.type)
        if slot.type.kind == "array" and not _has_rank(trace, start, slot.type.rank):
            value = op.Reshape(value, [1] * slot.type.rank)  # a number: it broadcasts
        return value

    def _bind_results(self, results: list[ir.Value]) -> None:
        loop, trace = self.loop, self.trace
        remaining = iter(results)
        names = list(loop.names)
        for reference, seen, merged in self.carried:
            made = []
            for slot in merged.slots:
                made.append(self._result(reference, seen, merged, slot, next(remaining)))
            self._bind(reference, merged.rebuild(made), names)
        for record in self.memories.values():
            value, before = next(remaining), record.value
            value.shape = None if before.shape is None else before.shape.copy()
            value.meta["sizes"] = before.meta.get("sizes")
            trace.write(record, value)
        for (reference, seen, item), values in zip(self.scans, self.scanned, strict=True):
            outputs = [next(remaining) for _ in values]
            self._bind(reference, self._scan_result(seen, item, outputs), names)
        loop.scope.set(tuple(names))

    def _result(
        self, reference: Reference, seen: Seen, merged: Merged, slot: Slot, value: ir.Value
    ) -> Any:
        trace = self.trace
        index = next(i for i, leaf in enumerate(merged.leaves) if leaf is slot)
        worlds: dict[int, Any] = {}
        for w in trace.active:
            final = seen.final.get(w, UNBOUND)
            if final is not UNBOUND:
                leaves = [final] if slot.type.kind == "list" else flatten_state(trace, final)[0]
                worlds[w] = leaf_in(trace, leaves[index], slot.type, w)
            else:
                worlds[w] = leaf_in(trace, slot.values[0], slot.type, w)
        dims, varies = None, False
        if slot.type.kind == "array":
            dims = self._dims(slot, seen, merged)
            varies = self._varies(slot, seen, merged)
        return make_leaf(trace, worlds, value, slot.type, dims=dims, unbacked=varies)

    def _varies(self, slot: Slot, seen: Seen, merged: Merged) -> bool:
        """Whether sizes change from one iteration to the next."""
        trace = self.trace
        if not _has_rank(trace, slot.values[0], slot.type.rank):
            return True
        record = trace.record(slot.values[0])
        if record is not None and record.unbacked:
            return True
        index = next(i for i, leaf in enumerate(merged.leaves) if leaf is slot)
        if index >= len(seen.shapes):
            return False
        for world, shapes in seen.shapes[index].items():
            start = trace.frontend.shape_of(trace.frontend.concrete(slot.values[0], world))
            if any(s != start for s in shapes):
                return True
        return False

    def _scan_result(self, seen: Seen, item: ItemType, outputs: list[ir.Value]) -> StagedList:
        trace, op = self.trace, self.trace.builder
        for value in outputs:
            value.shape = ir.Shape([None] * (item.rank + 1))
        if len(outputs) > 1:  # several items an iteration: [n, k, ...] -> [n * k, ...]
            rows = op.Concat(*(op.Unsqueeze(v, [1]) for v in outputs), axis=1)
            rest = op.Shape(outputs[0], start=1)
            stacked = op.Reshape(rows, op.Concat(np.asarray([-1]), rest, axis=0))
        else:
            stacked = outputs[0]
        start = seen.start
        if isinstance(start, StagedList):
            stacked = op.Concat(start.stacked(), stacked, axis=0)
        elif start:
            prefix = [op.Unsqueeze(trace.frontend.item_value(x, item), [0]) for x in start]
            stacked = op.Concat(*prefix, stacked, axis=0)
        stacked.type = ir.TensorType(item.dtype)
        stacked.shape = ir.Shape([None, *self._item_dims(seen, item)])
        worlds = {}
        for w in trace.active:
            final = seen.final.get(w)
            if final is None:
                kept = start.contents.worlds[w] if isinstance(start, StagedList) else start
                final = [trace.frontend.concrete(x, w) for x in kept]
            worlds[w] = list(final)
        return StagedList(trace, Contents(worlds, stacked, None), item)

    def _item_dims(self, seen: Seen, item: ItemType) -> list[int | None]:
        shapes = [s for leaf in seen.shapes for per_world in leaf.values() for s in per_world]
        worlds = {w for leaf in seen.shapes for w in leaf}
        if not shapes or (self.trace.world_count > 1 and len(worlds) < 2):
            return [None] * item.rank
        return [c[0] if len(set(c)) == 1 else None for c in zip(*shapes, strict=True)]


def _has_rank(trace: Trace, x: Any, rank: int) -> bool:
    return bool(trace.frontend.is_array(x)) and len(trace.frontend.type_of(x)[1]) == rank


def _true(name: str) -> ir.Value:
    """The constant that a counted loop's body returns as its condition."""
    tensor = ir.tensor(np.asarray(True), name=name)
    return ir.Value(
        name=name, shape=ir.Shape([]), type=ir.TensorType(ir.DataType.BOOL), const_value=tensor
    )
