"""``If`` whose condition is known."""

from __future__ import annotations

from typing import TYPE_CHECKING

from optim_passes.copying import move_nodes
from optim_passes.rewriting import Outcome, Pass, replace_value
from optim_passes.scopes import Names
from optim_passes.values import attribute, scalar

if TYPE_CHECKING:
    import onnx_ir as ir

    from optim_passes.scopes import Scope

__all__ = ["KnownBranchPass"]


class KnownBranchPass(Pass):
    """An ``If`` with a constant condition becomes the nodes of the branch that it takes."""

    def run(self, scope: Scope, outcome: Outcome) -> None:
        """Inline in one body; what was in the branch may hold such an If again."""
        names: Names | None = None
        pending = [n for n in scope.body if n.op_type == "If" and not n.domain]
        while pending:
            node = pending.pop()
            condition = scalar(node.inputs[0])
            if condition is None:
                continue
            names = names or Names(scope.model)
            branch: ir.Graph = attribute(node, "then_branch" if condition else "else_branch")
            pending += [n for n in branch if n.op_type == "If" and not n.domain]
            results = move_nodes(branch, scope, node, names)
            for old, new in zip(node.outputs, results, strict=True):
                rename = new.graph is scope.body and new.producer() is not None
                replace_value(old, new, scope.body, node, rename=rename)
            scope.body.remove(node, safe=True)
            outcome.rewrites += 1
