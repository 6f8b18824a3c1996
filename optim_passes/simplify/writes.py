"""Rows that a loop writes, each to a place of its own, are written at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from optim_passes.builder import Builder
from optim_passes.rewriting import Outcome, Pass, commit
from optim_passes.scopes import Names, visible_from
from optim_passes.simplify.tables import plain, scalars
from optim_passes.values import attribute, producer, rank, scalar, static_shape

if TYPE_CHECKING:
    from optim_passes.scopes import Scope

__all__ = ["LoopWritePass"]

_ZERO, _ONE = np.asarray(0, np.int64), np.asarray(1, np.int64)


class LoopWritePass(Pass):
    """A carried tensor that a ``Loop`` only writes rows to becomes a scan output of the rows.

    The iteration's number is part of each place, so no row is written twice; one ``ScatterND``
    behind the loop writes them all. An iteration would copy the whole tensor.
    """

    def run(self, scope: Scope, outcome: Outcome) -> None:
        """Rewrite the loops of one body."""
        names: Names | None = None
        for node in list(scope.body):
            if node.op_type != "Loop" or node.domain:
                continue
            for index in reversed(range(2, len(node.inputs))):
                places = _places(node, index, scope)
                if places is not None:
                    names = names or Names(scope.model)
                    node = _write_behind(node, index, places, scope, names)
                    outcome.rewrites += 1


def _places(node: ir.Node, index: int, scope: Scope) -> list[ir.Value | int] | None:
    """Where iterations write: offsets from their number, and scalars from outside."""
    body: ir.Graph = node.attributes["body"].as_graph()
    formal, after = body.inputs[index], body.outputs[index - 1]
    write = producer(after, "ScatterND")
    if write is None or write.graph is not body or write.inputs[0] is not formal:
        return None
    if len(formal.uses()) != 1 or after.uses() or list(body.outputs).count(after) != 1:
        return None
    row, found = write.inputs[2], scalars(write.inputs[1])
    if found is None or formal in body.outputs or attribute(write, "reduction", "none") != "none":
        return None
    if static_shape(row) is None or row is None or rank(formal) != len(found) + (rank(row) or 0):
        return None
    places = [_place(plain(x), body, scope) for x in found]
    if any(p is None for p in places) or not any(isinstance(p, int) for p in places):
        return None
    return [p for p in places if p is not None]


def _place(x: ir.Value, body: ir.Graph, scope: Scope) -> ir.Value | int | None:
    if x is body.inputs[0]:
        return 0
    if visible_from(x, scope):
        return x
    step = producer(x, "Add")
    if step is None or body.inputs[0] not in step.inputs:
        return None
    number = scalar(step.inputs[1 if step.inputs[0] is body.inputs[0] else 0])
    return int(number) if number is not None and number >= 0 else None


def _write_behind(
    node: ir.Node, index: int, places: list[ir.Value | int], scope: Scope, names: Names
) -> ir.Node:
    """The loop that only collects the rows."""
    body: ir.Graph = node.attributes["body"].as_graph()
    write = body.outputs[index - 1].producer()
    assert write is not None
    row = write.inputs[2]
    assert row is not None
    if row.graph is not body or row.producer() is None or row in body.outputs:
        inner = Builder(scope, names, [write])
        copy = inner.node("Identity", row, like=row)
        body.insert_before(write, inner.nodes)
        row = copy
    op = Builder(scope, names, [node])
    body.outputs.pop(index - 1)
    body.outputs.append(row)
    body.remove(write, safe=True)
    body.inputs.pop(index)
    operands = [v for i, v in enumerate(node.inputs) if i != index]
    if len(operands) == 2 and operands[1] is None:  # which is no operand at all at the end
        operands[1] = op.constant(np.asarray(True))
    made = op.node("Loop", *operands, outputs=len(node.outputs), body=body)
    made = [made] if isinstance(made, ir.Value) else list(made)
    kept = [v for i, v in enumerate(node.outputs) if i != index - 2]
    for new, old in zip(made, kept, strict=False):
        new.type, new.shape = old.type, old.shape
    rows = made[-1]
    rows.type, rows.shape = row.type, ir.Shape([None, *(static_shape(row) or ())])
    count = op.Shape(rows, start=0, end=1)
    numbers = op.Range(_ZERO, op.Squeeze(count, [0]), _ONE)
    columns = [
        op.Expand(p, count) if isinstance(p, ir.Value) else op.Add(numbers, np.asarray(p))
        for p in places
    ]
    where = op.Concat(*(op.Unsqueeze(c, [1]) for c in columns), axis=1)
    written = op.node("ScatterND", node.inputs[index], where, rows, like=node.outputs[index - 2])
    results = [*made[: index - 2], written, *made[index - 2 : -1]]
    commit(op, node, node.outputs, results, [])
    scope.body.remove(node, safe=True)
    loop: ir.Node = rows.producer()
    return loop
