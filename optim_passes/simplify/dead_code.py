"""Nodes, outputs, initializers, functions and domains that nothing needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnx_ir.passes.common import RemoveUnusedFunctionsPass, RemoveUnusedOpsetsPass

from optim_passes.rewriting import Outcome, Pass, erase
from optim_passes.scopes import nested
from optim_passes.values import constant

if TYPE_CHECKING:
    import onnx_ir as ir

    from optim_passes.scopes import Scope

__all__ = ["DeadCodePass"]


class DeadCodePass(Pass):
    """Removes what no output depends on.

    Besides nodes: outputs of ``If``, ``Loop`` and ``Scan`` that nobody reads, what their bodies
    compute only for those, initializers, functions, and imports of unused domains. What a loop
    body carries round stays if the body itself reads it.
    """

    def call(self, model: ir.Model) -> Outcome:
        """Remove until nothing more falls out."""
        outcome = super().call(model)
        used = {v for graph in _graphs(model) for v in graph.outputs}
        for graph in _graphs(model):
            for name, value in list(graph.initializers.items()):
                if not value.uses() and value not in used and not value.is_graph_input():
                    del graph.initializers[name]
                    outcome.rewrites += 1
        for cleanup in (RemoveUnusedFunctionsPass(), RemoveUnusedOpsetsPass()):
            outcome.rewrites += cleanup(model).modified
        outcome.modified = outcome.rewrites > 0
        return outcome

    def run(self, scope: Scope, outcome: Outcome) -> None:
        """Remove from one body, last nodes first."""
        for node in reversed(list(scope.body)):
            if not any(v.uses() or v.is_graph_output() for v in node.outputs):
                erase(node)
                outcome.rewrites += 1
            elif node.op_type == "If" and not node.domain:
                outcome.rewrites += _drop_branch_outputs(node)
            elif node.op_type == "Loop" and not node.domain:
                outcome.rewrites += _drop_loop_outputs(node)


def _graphs(model: ir.Model) -> list[ir.Graph]:
    return list(model.graphs())


def _idle(value: ir.Value) -> bool:
    return not value.uses() and not value.is_graph_output()


def _drop_branch_outputs(node: ir.Node) -> int:
    """Remove the outputs of an If that nobody reads, in both branches."""
    idle = [i for i, v in enumerate(node.outputs) if _idle(v)]
    if not idle:
        return 0
    for graph in nested(node):
        for index in reversed(idle):
            graph.outputs.pop(index)
    _keep_outputs(node, [i for i in range(len(node.outputs)) if i not in idle])
    return len(idle)


def _drop_loop_outputs(node: ir.Node) -> int:
    """Remove scan outputs that nobody reads, and carried values that nobody needs."""
    (body,) = nested(node)
    carried = len(node.inputs) - 2
    dropped = []
    for index, value in enumerate(node.outputs):
        if not _idle(value):
            continue
        if index < carried:
            formal, result = body.inputs[2 + index], body.outputs[1 + index]
            if result is not formal and (formal.uses() or constant(formal) is not None):
                continue  # the next iteration reads it
            if result is formal and len(formal.uses()) > 0:
                continue  # invariant: for loop-invariant hoisting to take out
        dropped.append(index)
    if not dropped:
        return 0
    kept_inputs = [v for i, v in enumerate(node.inputs) if i - 2 not in dropped]
    for index in reversed(dropped):
        body.outputs.pop(1 + index)
        if index < carried:
            body.inputs.pop(2 + index)
    for index, operand in enumerate(kept_inputs):
        node.replace_input_with(index, operand)
    node.resize_inputs(len(kept_inputs))
    _keep_outputs(node, [i for i in range(len(node.outputs)) if i not in dropped])
    return len(dropped)


def _keep_outputs(node: ir.Node, kept: list[int]) -> None:
    """Move the kept outputs to the front, then cut off the rest."""
    for position, index in enumerate(kept):
        if position == index:
            continue
        target, source = node.outputs[position], node.outputs[index]
        target.type, target.shape = source.type, source.shape
        target.meta.clear()
        target.meta.update(source.meta)
        for graph in [source.graph] if source.is_graph_output() else []:
            assert graph is not None
            for i, value in enumerate(graph.outputs):
                if value is source:
                    graph.outputs[i] = target
        source.replace_all_uses_with(target)
        target.name, source.name = source.name, target.name
    node.resize_outputs(len(kept))
