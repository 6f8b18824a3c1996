"""The ``Loop`` node of a recorded body, and the state as its outputs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from exporters.tracing.bodies import condition_value
from exporters.tracing.finish import live_nodes
from exporters.tracing.lists import Contents, ItemType, StagedList
from exporters.tracing.loop_body import has_rank
from exporters.tracing.merging import (
    UNBOUND,
    Merged,
    Slot,
    as_staged_list,
    flatten_state,
    is_staged,
    leaf_in,
    leaf_value,
    make_leaf,
)

if TYPE_CHECKING:
    from exporters.tracing.loop_body import Recording
    from exporters.tracing.loop_state import Reference, Seen

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
            *(v for values in self.recording.scanned for v in values),
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
        produced = len(self.recording.outputs) + sum(len(v) for v in self.recording.scanned)
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
        if slot.type.kind == "array" and not has_rank(trace, start, slot.type.rank):
            value = op.Reshape(value, [1] * slot.type.rank)  # a number: it broadcasts
        return value

    def _bind_results(self, results: list[ir.Value]) -> None:
        loop, trace = self.loop, self.trace
        remaining = iter(results)
        names = list(loop.names)
        for reference, seen, merged in self.recording.carried:
            made = [
                self._result(reference, seen, merged, slot, next(remaining))
                for slot in merged.slots
            ]
            self.recording.bind(reference, merged.rebuild(made), names)
        for record in self.recording.memories.values():
            value, before = next(remaining), record.value
            value.shape = None if before.shape is None else before.shape.copy()
            value.meta["sizes"] = before.meta.get("sizes")
            trace.write(record, value)
        for (reference, seen, item), values in zip(
            self.recording.scans, self.recording.scanned, strict=True
        ):
            outputs = [next(remaining) for _ in values]
            self.recording.bind(reference, self._scan_result(seen, item, outputs), names)
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
            dims = self.recording.dims(slot, seen, merged)
            varies = self.recording.varies(slot, seen, merged)
        return make_leaf(trace, worlds, value, slot.type, dims=dims, unbacked=varies)

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


def _true(name: str) -> ir.Value:
    """The constant that a counted loop's body returns as its condition."""
    tensor = ir.tensor(np.asarray(True), name=name)
    return ir.Value(
        name=name, shape=ir.Shape([]), type=ir.TensorType(ir.DataType.BOOL), const_value=tensor
    )
