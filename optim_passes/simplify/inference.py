"""Types and shapes of values that carry none."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from onnx_ir.passes.common import ShapeInferencePass

from optim_passes.rewriting import Outcome, Pass
from optim_passes.scopes import scopes

if TYPE_CHECKING:
    import onnx_ir as ir

    from optim_passes.scopes import Scope

__all__ = ["InferShapesPass"]


class InferShapesPass(Pass):
    """Works out dtypes and shapes that the file left out; what it said is kept."""

    def call(self, model: ir.Model) -> Outcome:
        """Infer for the whole model at once."""
        values = [v for s in scopes(model) for n in s.body for v in n.outputs]
        known = {v: v.shape for v in values if v.shape is not None and v.type is not None}
        missing = len(values) - len(known)
        outcome = Outcome(model, modified=False)
        if not missing:
            return outcome
        logger = logging.getLogger("onnx_ir.passes.common.shape_inference")
        level = logger.level
        logger.setLevel(logging.ERROR)  # a model that it cannot infer is no warning to users
        try:
            ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(model)
        finally:
            logger.setLevel(level)
        for value, shape in known.items():
            value.shape = shape
        found = [v for v in values if v not in known and v.shape is not None]
        outcome.rewrites, outcome.modified = len(found), bool(found)
        return outcome

    def run(self, scope: Scope, outcome: Outcome) -> None:
        """Not used: inference looks at all bodies together."""
        raise NotImplementedError
