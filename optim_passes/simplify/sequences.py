"""Sequences that a loop only appends to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

from optim_passes.builder import Builder
from optim_passes.rewriting import Outcome, Pass, commit
from optim_passes.scopes import Names
from optim_passes.values import attribute, dims, input_of, only_consumer, producer

if TYPE_CHECKING:
    from optim_passes.scopes import Scope

__all__ = ["SequenceToScanPass"]


class SequenceToScanPass(Pass):
    """A sequence that a ``Loop`` appends to, stacked or joined afterwards, becomes a scan output.

    The sequence starts empty, each iteration inserts at its end, and all that reads it is one
    ``ConcatFromSequence`` behind the loop. Joining along an axis needs items of one static size.
    """

    def run(self, scope: Scope, outcome: Outcome) -> None:
        """Rewrite the loops of one body."""
        names: Names | None = None
        for node in list(scope.body):
            if node.op_type != "Loop" or node.domain:
                continue
            for index in reversed(range(2, len(node.inputs))):
                reason = _obstacle(node, index)
                if reason is None:
                    names = names or Names(scope.model)
                    node = _rewrite(node, index, scope, names)
                    outcome.rewrites += 1
                elif producer(node.inputs[index], "SequenceEmpty") is not None:
                    self.refuse(outcome, node, reason, node.inputs[index])


def _obstacle(node: ir.Node, index: int) -> str | None:
    """Why a carried value cannot become a scan output; None if it can."""
    body: ir.Graph = node.attributes["body"].as_graph()
    formal, result = body.inputs[index], body.outputs[index - 1]
    if producer(node.inputs[index], "SequenceEmpty") is None:
        return "the sequence does not start empty"
    insert = producer(result, "SequenceInsert")
    if insert is None or insert.inputs[0] is not formal or input_of(insert, 2) is not None:
        return "an iteration does something else than append"
    if len(formal.uses()) != 1 or result.uses():
        return "an iteration reads the sequence"
    joined = only_consumer(node.outputs[index - 2])
    if joined is None or joined.op_type != "ConcatFromSequence" or joined.domain:
        return "the sequence is not stacked or joined behind the loop"
    item = insert.inputs[1]
    shape = dims(item)
    if shape is None or item is None or item.dtype is None:
        return "the rank or dtype of the items is not known"
    if attribute(joined, "new_axis", 0):
        return None
    axis = attribute(joined, "axis")
    free = [d for d in shape if not isinstance(d, int)]
    return None if not free and shape and axis is not None else "the items differ in size"


def _rewrite(node: ir.Node, index: int, scope: Scope, names: Names) -> ir.Node:
    """The loop with a scan output, which takes the sequence's place."""
    body: ir.Graph = node.attributes["body"].as_graph()
    insert = body.outputs[index - 1].producer()
    assert insert is not None
    item = insert.inputs[1]
    assert item is not None
    joined = only_consumer(node.outputs[index - 2])
    assert joined is not None
    body.outputs.pop(index - 1)
    body.remove(insert, safe=True)
    body.inputs.pop(index)
    if item.is_graph_output() or item.graph is not body or item.producer() is None:
        again = ir.Node("", "Identity", [item], name=names.fresh(f"{insert.name}/Identity"))
        body.append(again)
        again.outputs[0].type, again.outputs[0].shape = item.type, item.shape
        again.outputs[0].name = again.name
        item = again.outputs[0]
    body.outputs.append(item)
    inputs = [v for i, v in enumerate(node.inputs) if i != index]
    loop = ir.Node(
        "", "Loop", inputs, [], num_outputs=len(node.outputs), name=node.name,
        metadata_props=dict(node.metadata_props),
    )  # fmt: skip
    loop.attributes["body"] = node.attributes.pop("body")
    scope.body.insert_before(node, loop)
    kept = [v for i, v in enumerate(node.outputs) if i != index - 2]
    for old, new in zip(kept, loop.outputs[:-1], strict=True):
        new.name, new.type, new.shape = old.name, old.type, old.shape
        new.meta.update(old.meta)
        old.name = None
        if old.is_graph_output():
            for place, value in enumerate(scope.body.outputs):
                if value is old:
                    scope.body.outputs[place] = new
        old.replace_all_uses_with(new)
    stacked = loop.outputs[-1]
    stacked.name = names.fresh(f"{loop.name}/stacked")
    assert item.dtype is not None
    assert item.shape is not None
    stacked.type = ir.TensorType(item.dtype)
    stacked.shape = ir.Shape([None, *item.shape.dims])
    op = Builder(scope, names, [joined])
    made = _joined(stacked, joined, len(item.shape.dims), op)
    commit(op, joined, joined.outputs, [made], [joined, node])
    return loop


def _joined(stacked: ir.Value, joined: ir.Node, size: int, op: Builder) -> ir.Value:
    """What ConcatFromSequence returns, from the items stacked along a first axis."""
    axis = attribute(joined, "axis")
    if attribute(joined, "new_axis", 0):
        axis = axis + size + 1 if axis < 0 else axis
        if axis == 0:
            return stacked
        perm = [*range(1, size + 1)]
        perm.insert(axis, 0)
        return op.Transpose(stacked, perm=perm)
    axis = axis + size if axis < 0 else axis
    assert stacked.shape is not None
    sizes = [d for d in stacked.shape.dims[1:] if isinstance(d, int)]
    perm = [*range(1, size + 1)]
    perm.insert(axis, 0)
    moved = stacked if axis == 0 else op.Transpose(stacked, perm=perm)
    target = [*sizes[:axis], -1, *sizes[axis + 1 :]]
    return op.Reshape(moved, target)
