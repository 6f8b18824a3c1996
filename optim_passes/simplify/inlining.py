"""Model-local functions become the nodes that they stand for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnx_ir.passes.common import InlinePass

from optim_passes.builder import MICROSOFT
from optim_passes.rewriting import Outcome, Pass

if TYPE_CHECKING:
    import onnx_ir as ir

    from optim_passes.scopes import Scope

__all__ = ["InlineFunctionsPass"]


class InlineFunctionsPass(Pass):
    """Puts the body of every function where it is called, so that passes see across the call.

    Functions that stand in for operators of ONNX Runtime stay: it has kernels for those.
    """

    def call(self, model: ir.Model) -> Outcome:
        """Inline in the whole model at once."""
        outcome = Outcome(model, modified=False)
        wanted = [f for f in model.functions.values() if f.domain not in ("", MICROSOFT)]
        for function in wanted:
            for node in function:
                for value in node.outputs:
                    value.shape = None  # each call has sizes of its own for the same names
        if wanted:
            InlinePass(criteria=lambda f: f.domain not in ("", MICROSOFT))(model)
            outcome.rewrites, outcome.modified = len(wanted), True
        return outcome

    def run(self, scope: Scope, outcome: Outcome) -> None:
        """Not used: a call and the function's body are in different bodies."""
        raise NotImplementedError
