"""A loop's body recorded once, on handles of the kind that the replays showed."""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from exporters.tracing.bodies import Outcome, condition_value, frozen, run_body, seal
from exporters.tracing.columns import Column
from exporters.tracing.effects import Change
from exporters.tracing.leaves import (
    ABSENT,
    MISSING,
    UNBOUND,
    Dummy,
    KeyAskedError,
    LeafType,
    item_type,
    leaf_in,
    leaf_value,
    make_leaf,
    presence_of_key,
    same,
    unset,
)
from exporters.tracing.lists import StagedList
from exporters.tracing.loop_state import KeyReference, Reference, Seen
from exporters.tracing.merging import Merged, flatten_state, is_staged
from exporters.tracing.nodes import Constant
from exporters.tracing.own_lists import ScanBrokenError, ScanList, is_own
from exporters.tracing.pytree import shallow
from exporters.tracing.scalars import ScalarRecord

if TYPE_CHECKING:
    from collections.abc import Sequence

    from exporters.tracing.graph import Block
    from exporters.tracing.loop_state import LoopState
    from exporters.tracing.nodes import ListNode, Slot
    from exporters.tracing.record import Record
    from exporters.tracing.trace import Trace

__all__ = ["AgainError", "Recording", "has_rank"]


_MOST_VALUES = 24  # of a name, until its type is given up


class AgainError(Exception):
    """The body has to be recorded anew, with more state carried."""


class Recording:
    """Records the body once, with the state that the replays showed."""

    def __init__(self, loop: LoopState, memories: dict[int, Record], unscanned: set[Any]) -> None:
        self.loop = loop
        self.trace = loop.trace
        self.memories = memories
        self.unscanned = unscanned
        self.scans: list[tuple[Reference, Seen, ListNode, list[Slot]]] = []
        self.carried: list[tuple[Reference, Seen, Merged]] = []
        self.stand_ins: list[tuple[Reference, Any]] = []  # of lists that may become scan outputs
        self.inputs: list[ir.Value] = []
        self.outputs: list[ir.Value] = []
        self.scanned: list[list[list[ir.Value]]] = []
        self.late_keys: set[tuple[int, Any]] = set()
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
        except KeyAskedError as asked:
            if asked.place in loop.flagged or asked.place not in loop.seen:
                raise  # a loop around this one carries it
            loop.flagged.add(asked.place)
            raise AgainError from asked
        except ScanBrokenError as broken:
            found = [r.identity for r, x in self.stand_ins if x is broken.items]
            if not found:
                raise  # a loop around this one fills it
            self.unscanned.update(found)
            raise AgainError from broken
        finally:
            trace.late_keys -= self.late_keys

    # What is carried

    def _sort_state(self) -> None:
        whole = {id(r.container) for r, _ in self.loop.seen.values() if r.of_list}
        for reference, seen in self.loop.seen.values():
            if reference.is_item and id(reference.container) in whole:
                continue
            self.loop.ways.observed = seen.shapes
            scan = self._scan_type(reference, seen)
            if scan is not None:
                self.scans.append((reference, seen, *scan))
                continue
            merged = self._merge(reference, seen)
            if isinstance(merged, Merged):
                self.carried.append((reference, seen, merged))
                self._carry_key(reference, seen)

    def _carry_key(self, reference: Reference, seen: Seen) -> None:
        """Carry whether a key is there, if somebody asks."""
        if reference.identity in self.trace.late_keys and not self.loop.always_runs():
            raise KeyAskedError(reference.identity)  # a loop around this one may not have set it
        before = None if seen.start is UNBOUND else presence_of_key(self.trace, seen.start)
        if before is None and reference.identity not in self.loop.flagged:
            return
        start = False if before is None else before
        key = KeyReference(reference.label, None, reference.container, reference.key)
        there = Seen(start, [True], final=dict.fromkeys(seen.final, True))
        merged = self.loop.ways.merge(reference.label, [start, True], always=True)
        self.carried.append((key, there, merged))

    def _scan_type(self, reference: Reference, seen: Seen) -> tuple[ListNode, list[Slot]] | None:
        """The structure of a list that may become scan outputs."""
        if reference.identity in self.unscanned or seen.grows is None or seen.grows < 1:
            return None
        if isinstance(seen.start, StagedList) and any(
            c.stacked is None and c.items is None for c in seen.start.columns
        ):
            return None
        found = self.loop.ways.list_of(reference.label, [seen.start, *seen.values])
        if found is None or any(s.type.item is None or s.type.item.varies for s in found[1]):
            return None
        return found

    def _merge(self, reference: Reference, seen: Seen) -> Any:
        ways, label = self.loop.ways, reference.label
        if seen.start is UNBOUND and isinstance(reference.container, dict):
            merged = ways.keyed(label, [unset(reference.container), *seen.values])
            if isinstance(merged.node, Constant) and not reference.is_attribute:
                ways.merge(label, [MISSING, *seen.values])
            return merged
        if seen.start is UNBOUND:  # what it is before the first iteration is never read
            return ways.merge(label, [ABSENT, *seen.values], always=True)
        return ways.merge(label, [seen.start, *seen.values])

    # The body

    def _prepare(self, block: Block) -> None:
        trace, builder = self.trace, self.trace.builder
        self.number = self._input(
            "iteration", LeafType("number", ir.DataType.INT64, 0, int), block
        )
        keep = self._input("condition", LeafType("number", ir.DataType.BOOL, 0, bool), block)
        block.inputs = [self.number, keep]
        names = list(self.loop.names)
        self.late_keys = {
            (id(r.container), r.key)
            for r, seen, _ in self.carried
            if isinstance(r.container, dict)
            and seen.start is UNBOUND
            and r.identity not in self.loop.flagged
        } - trace.late_keys
        trace.late_keys |= self.late_keys
        for reference, seen, merged in self.carried:
            handles = []
            for slot in merged.slots:
                value = self._input(reference.label, slot.type, block)
                block.inputs.append(value)
                handles.append(self._handle(slot, value, seen, merged))
            state = merged.rebuild(handles)
            if isinstance(state, StagedList) and isinstance(seen.start, StagedList):
                state.lent = seen.start.lent
            self.bind(reference, state, names)
        for reference, *_ in self.scans:
            filled = ScanList(trace)
            self.bind(reference, filled, names)
            stands = reference.container if reference.of_list else filled
            self.stand_ins.append((reference, stands))
        self.loop.scope.set(tuple(names))
        for record in self.memories.values():
            record.memory.data = True  # an iteration before this one wrote to it
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
            reference.hold(value)

    def _input(self, label: str, kind: LeafType, block: Block) -> ir.Value:
        listed = kind.item is not None and not kind.item.stacks
        element = ir.TensorType(kind.dtype)
        shape: list[int | None] | None = [] if kind.kind == "number" else None
        if kind.item is not None and kind.item.stacks:
            shape = [None, *kind.item.dims]
        value = ir.Value(
            name=self.trace.builder.unique_name(re.sub(r"\W+", "_", label).strip("_") or "state"),
            type=ir.SequenceType(element) if listed else element,
            shape=None if shape is None else ir.Shape(shape),
        )
        value.meta["block"] = block
        return value

    def _handle(self, slot: Slot, value: ir.Value, seen: Seen, merged: Merged) -> Any:
        """What the body sees: the state at the start of an iteration."""
        trace, rank = self.trace, slot.type.rank
        shown = slot.values[0]
        if slot.type.kind == "array" and not has_rank(trace, shown, rank):
            shown = next(x for x in slot.values if has_rank(trace, x, rank))
        elif isinstance(shown, Dummy):
            shown = shown.like
        worlds = {w: leaf_in(trace, shown, slot.type, w) for w in trace.active}
        if slot.type.kind == "column":
            filled = self._final(slot, seen, merged)
            worlds |= {w: items for w, items in filled.items() if len(items) > len(worlds[w])}
        elif shown is not slot.values[0] and slot.type.kind == "array":
            final = self._final(slot, seen, merged)
            worlds |= {w: x for w, x in final.items() if len(trace.frontend.shape_of(x)) == rank}
        dims, varies = None, False
        if slot.type.kind == "array":
            dims, varies = self.dims(slot, seen), self.varies(slot, seen)
        return make_leaf(trace, worlds, value, slot.type, dims=dims, unbacked=varies)

    def _final(self, slot: Slot, seen: Seen, merged: Merged) -> dict[int, Any]:
        """What it is after the loop in each world: in an iteration it may be that, too.

        A list may start empty, and an array as a number: what else is known may be one world's.
        """
        found: dict[int, Any] = {}
        for world in self.trace.active:
            final = seen.final.get(world, UNBOUND)
            leaves = None if final is UNBOUND else merged.leaves_in(self.trace, final, world)
            if leaves is not None:
                found[world] = leaf_in(
                    self.trace, leaves[merged.slots.index(slot)], slot.type, world
                )
        return found

    def dims(self, slot: Slot, seen: Seen) -> list[int | None]:
        """The sizes that stay the same over all iterations, in every world, from the start."""
        trace, rank = self.trace, slot.type.rank
        known: list[int | None] | None = None
        for value in slot.values:
            if isinstance(value, Dummy):
                continue
            if not has_rank(trace, value, rank):
                return [None] * rank
            found = [d if isinstance(d, int) else None for d in trace.frontend.type_of(value)[1]]
            pairs = zip(known or found, found, strict=True)
            known = [a if a == b else None for a, b in pairs]
        observed = seen.shapes.get(slot.path, {})
        if len(observed) == 1 and trace.world_count > 1:
            return [None] * rank  # one world proves nothing about sizes
        for shapes in observed.values():
            for shape in shapes:
                if known is not None and len(shape) == rank:
                    known = [k if k == s else None for k, s in zip(known, shape, strict=True)]
        return [None] * rank if known is None else known

    def varies(self, slot: Slot, seen: Seen) -> bool:
        """Whether sizes change from one iteration to the next."""
        trace, start = self.trace, slot.values[0]
        if not has_rank(trace, start, slot.type.rank):
            return True
        record = trace.record(start)
        if record is not None and record.unbacked:
            return True
        for world, shapes in seen.shapes.get(slot.path, {}).items():
            before = trace.frontend.shape_of(trace.frontend.concrete(start, world))
            if any(s != before for s in shapes):
                return True
        return False

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
            names = loop.scope.get()
            values = tuple(frozen(trace, x) for x in names)
            outcome = dataclasses.replace(outcome, names=names, values=values)
        self._require_known_state(outcome)
        for reference, seen, merged in self.carried:
            after = self._after(reference, outcome)
            asked = reference.identity not in self.loop.flagged and isinstance(
                reference.container, dict
            )
            if asked and seen.start is UNBOUND and presence_of_key(trace, after) is not None:
                self.loop.flagged.add(reference.identity)  # an iteration may not set it
                raise AgainError
            leaves = merged.leaves_of(trace, after)
            if leaves is None:
                self._again_with(reference, after)
            for slot, leaf in zip(merged.slots, leaves or (), strict=True):
                self._require_sizes(reference, seen, slot, leaf)
                self.outputs.append(leaf_value(trace, leaf, slot.type))
        for key, record in self.memories.items():
            found = outcome.memories.get(key)
            self.outputs.append(found[1] if found is not None else trace.read(record))
        for reference, seen, node, slots in self.scans:
            filled = self._after(reference, outcome)
            if not isinstance(filled, ScanList) or len(filled.items) != seen.grows:
                self.unscanned.add(reference.identity)
                raise AgainError
            self.scanned.append([self._row(reference, node, slots, x) for x in filled.items])
        block = outcome.block
        self.outputs = self._sealed(self.outputs, block)
        self.scanned = [[self._sealed(row, block) for row in rows] for rows in self.scanned]
        if self.condition is not None:
            self.condition = seal(trace, self.condition, block)

    def _row(
        self, reference: Reference, node: ListNode, slots: list[Slot], item: Any
    ) -> list[ir.Value]:
        """What an appended item adds to each scan output."""
        leaves: list[Any] = []
        if not node.item.take(self.trace, item, leaves):
            self.unscanned.add(reference.identity)
            raise AgainError
        row: list[ir.Value] = []
        for leaf, slot in zip(leaves, slots, strict=True):
            kind = slot.type.item
            assert kind is not None
            if item_type(self.trace, leaf).varies and not kind.varies:
                self.unscanned.add(reference.identity)
                raise AgainError
            row.append(Column(self.trace, kind, {}).value_of(leaf))
        return row

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
        return reference.held()

    def _require_known_state(self, outcome: Outcome) -> None:
        """Whatever the body changes must have been seen to change in the replays."""
        known = {r.identity for r, *_ in self.carried} | {r.identity for r, *_ in self.scans}
        for index, (name, before) in enumerate(
            zip(self.loop.scope.names, self.loop.names, strict=True)
        ):
            if index in known:
                continue
            after = outcome.values[index]
            if self.loop.scope.is_idle(name, before, after):
                continue
            if outcome.names[index] is before and (
                is_own(before) or shallow(before)[0] in ("object", "dataclass")
            ):
                continue  # what changed in it is a place of its own
            if not same(after, before) and self._matters(index, after):
                self._also_carry(Reference(name, index), before, after)
        for place, change in outcome.changes.items():
            if (
                place not in known
                and (change.key is not None or is_own(change.container))
                and self._matters(place, change.after)
            ):
                reference = Reference(change.label, None, change.container, change.key)
                self._also_carry(reference, change.before, change.after)

    def _again_with(self, reference: Reference, after: Any) -> None:
        """Record anew with a value that the replays did not see."""
        seen = self.loop.seen[reference.identity][1]
        if len(seen.values) >= _MOST_VALUES:
            self.loop.ways.merge(reference.label, [seen.values[0], after])
            raise AssertionError(f"the state {reference.label} does not settle")
        seen.values.append(after)
        raise AgainError

    def _require_sizes(self, reference: Reference, seen: Seen, slot: Slot, leaf: Any) -> None:
        """A size that is declared static must be that here, too."""
        trace = self.trace
        if slot.type.kind == "array" and has_rank(trace, leaf, slot.type.rank):
            found = tuple(trace.frontend.type_of(leaf)[1])
            known = tuple(self.dims(slot, seen))
        elif slot.type.item is not None and not isinstance(leaf, Dummy):
            found, known = leaf.type.dims, slot.type.item.dims
        else:
            return
        if any(
            isinstance(a, int) and isinstance(b, int) and a != b
            for a, b in zip(known, found, strict=True)
        ):
            shape = tuple(d if isinstance(d, int) else -1 for d in found)
            seen.shapes.setdefault(slot.path, {}).setdefault(trace.active[0], set()).add(shape)
            raise AgainError

    def _matters(self, identity: Any, x: Any) -> bool:
        """Whether a change has to be carried: the replays did not see it, or not that it varies."""
        if identity not in self.loop.seen:
            return x is not Change.MISSING and x is not UNBOUND
        return any(is_staged(self.trace, leaf) for leaf in flatten_state(self.trace, x)[0])

    def _also_carry(self, reference: Reference, before: Any, after: Any) -> None:
        """Carry what no replay was seen to change."""
        start = UNBOUND if before is Change.MISSING else before
        final = self.loop.finals.get(reference.identity, {})
        self.loop.seen[reference.identity] = (reference, Seen(start, [after], final=final))
        raise AgainError


def has_rank(trace: Trace, x: Any, rank: int) -> bool:
    """Whether ``x`` is an array of that rank."""
    return bool(trace.frontend.is_array(x)) and len(trace.frontend.type_of(x)[1]) == rank
