"""The ``Loop`` node of a recorded body, and the state as its outputs."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from exporters.tracing.bodies import condition_value, locate
from exporters.tracing.columns import Column
from exporters.tracing.finish import live_nodes
from exporters.tracing.leaves import (
    UNBOUND,
    Dummy,
    leaf_in,
    leaf_value,
    make_leaf,
    mark_key,
    presence_of_key,
)
from exporters.tracing.lists import StagedList
from exporters.tracing.merging import Merged, is_staged
from exporters.tracing.nodes import Constant
from exporters.tracing.scalars import ScalarRecord, TracedBool

if TYPE_CHECKING:
    from exporters.tracing.loop_body import Recording
    from exporters.tracing.loop_state import Seen
    from exporters.tracing.nodes import ListNode, Slot

__all__ = ["LoopNode"]


class LoopNode:
    """Emits the node.

    Args:
        recording: The recorded body.
    """

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self.loop = recording.loop
        self.trace = recording.trace

    def emit(self, first: Any) -> None:
        """Put the ``Loop`` node after what came before it, and let the state be its outputs."""
        loop, trace, op = self.loop, self.trace, self.trace.builder
        assert self.recording.outcome is not None
        block = self.recording.outcome.block
        initial = [
            self._initial(slot) for _, _, merged in self.recording.carried for slot in merged.slots
        ] + [trace.read(record) for record in self.recording.memories.values()]
        inner: list[ir.Value] = []
        condition = self.recording.condition
        if condition is None:
            condition = _true(op.unique_name("true"))
            inner.append(condition)
        outputs = [
            condition,
            *self.recording.outputs,
            *(v for rows in self.recording.scanned for row in rows for v in row),
        ]
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
        produced = len(self.recording.outputs) + sum(
            len(row) for rows in self.recording.scanned for row in rows
        )
        if produced == 0:
            return
        emitted = op.emit("Loop", count, start, *initial, body=graph, outputs=produced)
        results = emitted if isinstance(emitted, list) else [emitted]
        locate(results[0], loop.scope)
        for result, value in zip(results, outputs[1:], strict=True):
            result.type = value.type
        self._bind_results(results)

    def _initial(self, slot: Slot) -> ir.Value:
        trace, op = self.trace, self.trace.builder
        start = slot.values[0]
        value = leaf_value(trace, start, slot.type)
        if (
            slot.type.kind == "array"
            and trace.frontend.is_array(start) is False
            and not isinstance(start, Dummy)
        ):
            value = op.Reshape(value, [1] * slot.type.rank)  # a number: it broadcasts
        return value

    def _bind_results(self, results: list[ir.Value]) -> None:
        loop, trace = self.loop, self.trace
        remaining = iter(results)
        names = list(loop.names)
        for reference, seen, merged in self.recording.carried:
            finals = self._finals(merged, seen)
            made = [
                self._result(seen, slot, next(remaining), {w: f[i] for w, f in finals.items()})
                for i, slot in enumerate(merged.slots)
            ]
            self.recording.bind(reference, merged.rebuild(made), names)
        for record in self.recording.memories.values():
            value, before = next(remaining), record.value
            value.shape = None if before.shape is None else before.shape.copy()
            value.meta["sizes"] = before.meta.get("sizes")
            trace.write(record, value)
        for (reference, seen, node, slots), rows in zip(
            self.recording.scans, self.recording.scanned, strict=True
        ):
            outputs = [[next(remaining) for _ in row] for row in rows]
            self.recording.bind(reference, self._scan_result(seen, node, slots, outputs), names)
        loop.scope.set(tuple(names))
        self._open_keys()

    def _open_keys(self) -> None:
        """Keys that only the loop sets are there if it had an iteration that set them."""
        trace, flagged = self.trace, self.loop.flagged
        references = [
            r
            for r, seen, merged in self.recording.carried
            if seen.start is UNBOUND and not isinstance(merged.node, Constant)
        ]
        places = [r for r in references if isinstance(r.container, dict)]
        ran = self._ran() if any(r.identity not in flagged for r in places) else None
        for r in places:
            if r.identity not in flagged and ran is not None:
                mark_key(trace, r.container[r.key], ran)
            if r.identity in flagged or ran is not None:
                trace.opened[r.identity] = r.container
            others = [o for o in places if o.container is r.container and o is not r]
            if others and r.identity in flagged:
                trace.unordered[id(r.container)] = r.container
        for r, seen, _ in self.recording.carried:
            was_open = seen.start is not UNBOUND and presence_of_key(trace, seen.start) is not None
            if was_open and isinstance(r.container, dict) and r.key != next(reversed(r.container)):
                trace.unordered[id(r.container)] = r.container

    def _ran(self) -> TracedBool | None:
        """Whether there was an iteration; None if there always is one."""
        loop, trace, op = self.loop, self.trace, self.trace.builder
        value: ir.Value | None = None
        if loop.over is not None and is_staged(trace, loop.over.count):
            value = op.Greater(op.operand(loop.over.count, ir.DataType.INT64), 0)
        if loop.test is not None and is_staged(trace, loop.first):
            first = condition_value(trace, loop.first)
            value = first if value is None else op.And(value, first)
        if value is None:
            return None
        value.shape = ir.Shape([])
        worlds = {w: loop.trips[w] > 0 for w in trace.active}
        return TracedBool(ScalarRecord(trace, worlds, data=True, scalar=value))

    def _finals(self, merged: Merged, seen: Seen) -> dict[int, list[Any]]:
        """The leaves after the loop in each world; those at its start where it had no iteration."""
        trace = self.trace
        finals: dict[int, list[Any]] = {}
        for w in trace.active:
            final = seen.final.get(w, UNBOUND)
            leaves = None if final is UNBOUND else merged.leaves_in(trace, final, w)
            if leaves is None:
                leaves = [slot.values[0] for slot in merged.slots]
            finals[w] = leaves
        return finals

    def _result(self, seen: Seen, slot: Slot, value: ir.Value, leaves: dict[int, Any]) -> Any:
        trace = self.trace
        worlds = {w: leaf_in(trace, leaf, slot.type, w) for w, leaf in leaves.items()}
        dims, varies = None, False
        if slot.type.kind == "array":
            dims, varies = self.recording.dims(slot, seen), self.recording.varies(slot, seen)
        return make_leaf(trace, worlds, value, slot.type, dims=dims, unbacked=varies)

    def _scan_result(
        self, seen: Seen, node: ListNode, slots: list[Slot], rows: list[list[ir.Value]]
    ) -> StagedList:
        trace, columns = self.trace, []
        for index, slot in enumerate(slots):
            kind = slot.type.item
            assert kind is not None
            outputs = [row[index] for row in rows]
            stacked = self._stacked(outputs, kind.rank)
            start: Column = slot.values[0]
            if start.stacked is not None or start.items:
                before = dataclasses.replace(start, type=kind).as_stacked()
                stacked = trace.builder.Concat(
                    trace.builder.cast(before, kind.dtype), stacked, axis=0
                )
            stacked.type = ir.TensorType(kind.dtype)
            stacked.shape = ir.Shape([None, *kind.dims])
            columns.append(
                Column(trace, kind, self._scanned_worlds(seen, node, index, slot), stacked)
            )
        return StagedList(trace, node.item, tuple(columns), data=self._length_is_data())

    def _length_is_data(self) -> bool:
        """Whether the trip count depends on input values, not only on sizes."""
        over = self.loop.over
        if over is None or self.loop.test is not None:
            return True
        return hasattr(over.count, "record") and bool(over.count.record.data)

    def _scanned_worlds(
        self, seen: Seen, node: ListNode, index: int, slot: Slot
    ) -> dict[int, list[Any]]:
        trace = self.trace
        worlds: dict[int, list[Any]] = {}
        for w in trace.active:
            final, leaves = seen.final.get(w), list[Any]()
            if final is None or not node.take(trace, final, leaves):
                worlds[w] = leaf_in(trace, slot.values[0], slot.type, w)
            else:
                worlds[w] = leaf_in(trace, leaves[index], slot.type, w)
        return worlds

    def _stacked(self, outputs: list[ir.Value], rank: int) -> ir.Value:
        """Several items an iteration become rows: [n, k, ...] -> [n * k, ...]."""
        op = self.trace.builder
        for value in outputs:
            value.shape = ir.Shape([None] * (rank + 1))
        if len(outputs) == 1:
            return outputs[0]
        rows = op.Concat(*(op.Unsqueeze(v, [1]) for v in outputs), axis=1)
        rest = op.Shape(outputs[0], start=1)
        joined: ir.Value = op.Reshape(rows, op.Concat(np.asarray([-1]), rest, axis=0))
        return joined


def _true(name: str) -> ir.Value:
    """The constant that a counted loop's body returns as its condition."""
    tensor = ir.tensor(np.asarray(True), name=name)
    return ir.Value(
        name=name, shape=ir.Shape([]), type=ir.TensorType(ir.DataType.BOOL), const_value=tensor
    )
