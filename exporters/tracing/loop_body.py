"""A loop's body recorded once, on handles of the kind that the replays showed."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from exporters.tracing.bodies import Outcome, condition_value, frozen, run_body, seal
from exporters.tracing.effects import Change
from exporters.tracing.lists import ItemType, ScanBrokenError, ScanList, StagedList
from exporters.tracing.loop_state import Reference, Seen
from exporters.tracing.merging import (
    UNBOUND,
    LeafType,
    Merged,
    Slot,
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

if TYPE_CHECKING:
    from collections.abc import Sequence

    from exporters.tracing.graph import Block
    from exporters.tracing.loop_state import LoopState
    from exporters.tracing.record import Record
    from exporters.tracing.trace import Trace

__all__ = ["AgainError", "Recording", "has_rank"]


class AgainError(Exception):
    """The body has to be recorded anew, with more state carried."""


class Recording:
    """Records the body once, with the state that the replays showed."""

    def __init__(self, loop: LoopState, memories: dict[int, Record], unscanned: set[Any]) -> None:
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
        """Record the body.

        Raises:
            AgainError: More state has to be carried than was known.
        """
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
            raise AgainError from broken

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
            self.bind(reference, merged.rebuild(handles), names)
        for reference, _, _ in self.scans:
            self.bind(reference, ScanList(trace), names)
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

    def bind(self, reference: Reference, value: Any, names: list[Any]) -> None:
        """Let a name, among ``names``, or a place hold a value."""
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
        if slot.type.kind == "array" and not has_rank(trace, start, slot.type.rank):
            shown = next(x for x in slot.values if has_rank(trace, x, slot.type.rank))
        worlds = {w: leaf_in(trace, shown, slot.type, w) for w in trace.active}
        dims, varies = None, False
        if slot.type.kind == "array":
            dims = self.dims(slot, seen, merged)
            varies = self.varies(slot, seen, merged)
        return make_leaf(trace, worlds, value, slot.type, dims=dims, unbacked=varies)

    def dims(self, slot: Slot, seen: Seen, merged: Merged) -> list[int | None]:
        """The sizes that stay the same over all iterations, in every world, from the start."""
        trace = self.trace
        start = slot.values[0]
        if not has_rank(trace, start, slot.type.rank):
            return [None] * slot.type.rank
        known = [d if isinstance(d, int) else None for d in trace.frontend.type_of(start)[1]]
        for value in slot.values[1:]:
            if has_rank(trace, value, slot.type.rank):
                dims = trace.frontend.type_of(value)[1]
                known = [k if k == d else None for k, d in zip(known, dims, strict=True)]
        for shape in self._shapes(slot, seen, merged):
            known = [k if k == s else None for k, s in zip(known, shape, strict=True)]
        return known

    def varies(self, slot: Slot, seen: Seen, merged: Merged) -> bool:
        """Whether sizes change from one iteration to the next."""
        trace = self.trace
        if not has_rank(trace, slot.values[0], slot.type.rank):
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
            raise AgainError
        if loop.test is not None:
            again = loop.test()
            staged = is_staged(trace, again)
            self.condition = (
                condition_value(trace, again) if staged else trace.builder.operand(bool(again))
            )
            # The test may bind names, which the next iteration starts with.
            values = tuple(frozen(trace, x) for x in loop.scope.get())
            outcome = dataclasses.replace(outcome, values=values)
        self._require_known_state(outcome)
        for reference, _, merged in self.carried:
            after = self._after(reference, outcome)
            leaves, _ = flatten_state(trace, after)
            self._require_constants(reference, merged, leaves, after)
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
                raise AgainError
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
            if not same(after, before) and self._holds_staged(after):
                self._also_carry(Reference(name, index), before, after)
        for place, change in outcome.changes.items():
            if place not in known and change.key is not None and self._holds_staged(change.after):
                reference = Reference(change.label, None, change.container, change.key)
                self._also_carry(reference, change.before, change.after)

    def _require_constants(
        self, reference: Reference, merged: Merged, leaves: list[Any], after: Any
    ) -> None:
        """What the replays saw only one value of must have that value here, too."""
        pairs = zip(merged.leaves, leaves, strict=False)
        if any(not isinstance(known, Slot) and not same(known, leaf) for known, leaf in pairs):
            self.loop.seen[reference.identity][1].values.append(after)
            raise AgainError

    def _holds_staged(self, x: Any) -> bool:
        return any(is_staged(self.trace, leaf) for leaf in flatten_state(self.trace, x)[0])

    def _also_carry(self, reference: Reference, before: Any, after: Any) -> None:
        """Carry what no replay was seen to change."""
        start = UNBOUND if before is Change.MISSING else before
        self.loop.seen[reference.identity] = (reference, Seen(start, [after]))
        raise AgainError

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


def has_rank(trace: Trace, x: Any, rank: int) -> bool:
    """Whether ``x`` is an array of that rank."""
    return bool(trace.frontend.is_array(x)) and len(trace.frontend.type_of(x)[1]) == rank
