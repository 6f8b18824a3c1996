"""Loops: what does not change leaves them, and short ones are written out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from optim_passes.builder import Builder
from optim_passes.copying import copy_nodes
from optim_passes.purity import is_total
from optim_passes.rewriting import Outcome, Pass, commit
from optim_passes.scopes import Names, visible_from
from optim_passes.values import attribute, constant, dims, producer, same_dim, scalar

if TYPE_CHECKING:
    import onnx_ir as ir

    from optim_passes.scopes import Scope

__all__ = ["LoopInvariantPass", "UnrollPass"]


class LoopInvariantPass(Pass):
    """What a Loop or Scan body computes from outside values only is computed once, before it.

    Only operators that cannot fail are moved: a loop of no iterations must not start to fail.
    Carried values that every iteration passes on as they are become outside values.
    """

    def run(self, scope: Scope, outcome: Outcome) -> None:
        """Hoist out of one body; bodies are visited outer first, so run again for nested ones."""
        if scope.outer is None or scope.holder is None:
            return
        if scope.holder.op_type not in ("Loop", "Scan") or scope.holder.domain:
            return
        if scope.holder.op_type == "Loop":
            outcome.rewrites += _release_invariants(scope.holder, scope.body)
        for node in list(scope.body):
            operands = [v for v in node.inputs if v is not None]
            if not (is_total(node) or _is_row(node, scope)) or any(
                v.is_graph_output() for v in node.outputs
            ):
                continue
            if not operands or not all(visible_from(v, scope.outer) for v in operands):
                continue
            if all(constant(v) is not None for v in operands):
                continue  # for constant folding
            scope.body.remove(node)
            scope.outer.body.insert_before(scope.holder, node)
            outcome.rewrites += 1


def _is_row(node: ir.Node, scope: Scope) -> bool:
    """Whether a Gather takes ``x[i]``, where ``i`` counts the rows of ``x`` in a loop around."""
    if node.op_type != "Gather" or node.domain or attribute(node, "axis", 0) != 0:
        return False
    x, index = node.inputs
    around: Scope | None = scope
    while around is not None and (index is None or index.graph is not around.body):
        around = around.outer
    holder = None if around is None else around.holder
    if (
        around is None
        or holder is None
        or holder.op_type != "Loop"
        or index is not around.body.inputs[0]
    ):
        return False
    squeeze = producer(holder.inputs[0], "Squeeze", "Reshape")
    shape = producer(squeeze.inputs[0], "Shape") if squeeze is not None else None
    size, rows = dims(x), dims(shape.inputs[0]) if shape is not None else None
    start = attribute(shape, "start", 0) if shape is not None else 0
    return bool(size and rows and start < len(rows) and same_dim(size[0], rows[start]))


def _release_invariants(node: ir.Node, body: ir.Graph) -> int:
    """Let the body read carried values that never change from outside."""
    released = 0
    for index in range(2, len(node.inputs)):
        formal, initial = body.inputs[index], node.inputs[index]
        result = body.outputs[index - 1]
        if result is not formal or initial is None or not formal.uses():
            continue
        formal.replace_all_uses_with(initial)
        node.outputs[index - 2].replace_all_uses_with(initial)
        released += 1
    return released


class UnrollPass(Pass):
    """A ``Loop`` of few iterations, whose number is constant, becomes its body written out.

    Args:
        limit: Nodes that the body may become.
    """

    def __init__(self, limit: int = 64) -> None:
        super().__init__()
        self.limit = limit

    def run(self, scope: Scope, outcome: Outcome) -> None:
        """Unroll the loops of one body."""
        names: Names | None = None
        for node in list(scope.body):
            if node.op_type != "Loop" or node.domain:
                continue
            trips = _static_trips(node)
            body: ir.Graph = node.attributes["body"].as_graph()
            if trips is None or trips < 1 or trips * len(body) > self.limit:
                continue
            if any(v.type is None for v in body.outputs):
                continue
            names = names or Names(scope.model)
            self._unroll(node, body, trips, Builder(scope, names, [node]), names)
            outcome.rewrites += 1

    def _unroll(
        self, node: ir.Node, body: ir.Graph, trips: int, op: Builder, names: Names
    ) -> None:
        carried: list[ir.Value | None] = list(node.inputs[2:])
        rows: list[list[ir.Value]] = [[] for _ in body.outputs[1 + len(carried) :]]
        always = op.constant(np.asarray(True))
        for trip in range(trips):
            count = op.constant(np.asarray(trip, np.int64))
            mapping: dict[ir.Value, ir.Value | None] = dict(
                zip(body.inputs, [count, always, *carried], strict=True)
            )
            for initializer in body.initializers.values():
                mapping[initializer] = op.constant(initializer.const_value)
            op.nodes += copy_nodes(body, mapping, names)
            results = [mapping.get(v, v) for v in body.outputs[1:]]
            carried = results[: len(carried)]
            for row, value in zip(rows, results[len(carried) :], strict=True):
                assert value is not None
                row.append(op.Unsqueeze(value, [0]))
        scans = [op.Concat(*row, axis=0) for row in rows]
        commit(op, node, node.outputs, [*carried, *scans], [node])


def _static_trips(node: ir.Node) -> int | None:
    """The number of iterations, where it is constant and nothing ends the loop before."""
    trips, condition = scalar(node.inputs[0]), node.inputs[1]
    body: ir.Graph = node.attributes["body"].as_graph()
    if trips is None or (condition is not None and scalar(condition) is not True):
        return None
    goes_on = body.outputs[0]
    producer = goes_on.producer()
    while producer is not None and producer.op_type == "Identity" and not producer.domain:
        assert producer.inputs[0] is not None
        goes_on = producer.inputs[0]
        producer = goes_on.producer()
    passed_on = goes_on is body.inputs[1]
    return int(trips) if passed_on or scalar(goes_on) is True else None
