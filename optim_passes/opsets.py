"""Newer versions of the standard operators.

Fusions need operators that old opsets lack: ``LayerNormalization`` (17), ``Gelu`` (20),
``Attention``, ``RMSNormalization`` and ``RotaryEmbedding`` (23).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from optim_passes.builder import Builder
from optim_passes.rewriting import Outcome, Pass, commit
from optim_passes.scopes import Names, scopes
from optim_passes.values import attribute, dims

if TYPE_CHECKING:
    from collections.abc import Callable

    from optim_passes.scopes import Scope

__all__ = ["RaiseOpsetPass"]

_OLDEST = 13  # before, Softmax flattened, and axes were attributes of many operators

# The IR version in which an opset came out; older readers refuse newer ones.
_IR_VERSIONS = {17: 8, 18: 8, 19: 9, 20: 9, 21: 10, 22: 10, 23: 11, 24: 12, 25: 13}

_REDUCTIONS = frozenset(
    {
        "ReduceL1",
        "ReduceL2",
        "ReduceLogSum",
        "ReduceLogSumExp",
        "ReduceMax",
        "ReduceMean",
        "ReduceMin",
        "ReduceProd",
        "ReduceSumSquare",
    }
)


class RaiseOpsetPass(Pass):
    """Converts the model to a newer opset of the default domain.

    Most operators only took more types over the years. The others are rewritten, or the model
    stays as it is, and the report says for which node. Models older than opset 13 stay.

    Args:
        version: The opset to reach.
    """

    def __init__(self, version: int) -> None:
        super().__init__()
        self.version = version

    def call(self, model: ir.Model) -> Outcome:
        """Convert all bodies or none."""
        outcome = Outcome(model, modified=False)
        current = model.graph.opset_imports.get("", 1)
        if current >= self.version:
            return outcome
        bodies = list(scopes(model))
        for scope in bodies:
            for node in scope.body:
                reason = _obstacle(node, scope.opset)
                if reason is not None:
                    self.refuse(outcome, node, reason, node)
        if outcome.refusals:
            return outcome
        for scope in bodies:
            self.run(scope, outcome)
        for imports in [model.graph.opset_imports, *(s.opsets for s in bodies)]:
            if "" in imports:
                imports[""] = self.version
        model.ir_version = max(model.ir_version, _IR_VERSIONS.get(self.version, 13))
        for node in model.graph.all_nodes():
            node.version = None
        outcome.rewrites, outcome.modified = outcome.rewrites + 1, True
        return outcome

    def run(self, scope: Scope, outcome: Outcome) -> None:
        """Rewrite the nodes of one body that are written differently now."""
        names: Names | None = None
        for node in list(scope.body):
            adapter = _adapter(node, scope.opset)
            if adapter is None:
                continue
            names = names or Names(scope.model)
            op = Builder(scope, names, [node])
            made = adapter(node, op)
            if made is not None:
                commit(op, node, node.outputs, made, [node])
            outcome.rewrites += 1


def _obstacle(node: ir.Node, opset: int) -> str | None:
    """Why a node cannot be converted; None if it can."""
    if node.domain:
        return None
    if opset < _OLDEST:
        return f"opset {opset} is older than {_OLDEST}"
    if any(a.is_ref() for a in node.attributes.values()) and node.op_type in _ADAPTERS:
        return "an attribute is the function's"
    if node.op_type == "BatchNormalization" and opset < 14 and len(node.outputs) > 1:
        return "it trains"
    if node.op_type == "AveragePool" and opset < 19 and attribute(node, "ceil_mode", 0):
        return "AveragePool counts the last window differently since opset 19"
    if node.op_type == "Resize" and opset < 18 and len(node.inputs) < 2:
        return "Resize has neither sizes nor scales"
    if node.op_type == "GroupNormalization" and opset < 21:
        channels = (dims(node.inputs[0]) or (None, None))[1]
        return None if isinstance(channels, int) else "the number of channels varies"
    if node.op_type in ("Upsample", "Scatter"):
        return f"{node.op_type} is no longer an operator"
    return None


def _adapter(node: ir.Node, opset: int) -> Callable[[ir.Node, Builder], Any] | None:
    """What rewrites a node that was written differently up to some opset."""
    if node.domain:
        return None
    if node.op_type in _REDUCTIONS and opset < 18 and "axes" in node.attributes:
        return _reduction
    if opset < 18 and node.op_type == "Split" and len(node.inputs) < 2:
        return _split
    return {
        ("RoiAlign", opset < 16): _roi_align,
        ("GridSample", opset < 20): _grid_sample,
        ("DFT", opset < 20): _dft,
        ("GroupNormalization", opset < 21): _group_norm,
    }.get((node.op_type, True))


_ADAPTERS = _REDUCTIONS | {"Split", "RoiAlign", "GridSample", "DFT", "GroupNormalization"}


def _with(node: ir.Node, op: Builder, inputs: list[Any], **changed: Any) -> list[ir.Value]:
    """The node with other inputs and some other attributes; None takes an attribute away."""
    made = op.node(
        node.op_type, *inputs, outputs=len(node.outputs), like=node.outputs[0],
        attributes_of=node, **changed,
    )  # fmt: skip
    return [made] if isinstance(made, ir.Value) else list(made)


def _reduction(node: ir.Node, op: Builder) -> list[ir.Value]:
    return _with(node, op, [node.inputs[0], attribute(node, "axes")], axes=None)


def _split(node: ir.Node, op: Builder) -> list[ir.Value]:
    return _with(node, op, list(node.inputs), num_outputs=len(node.outputs))


def _roi_align(node: ir.Node, op: Builder) -> list[ir.Value]:
    """Before opset 16 the regions' corners were not shifted by half a pixel."""
    mode = "output_half_pixel"
    return _with(node, op, list(node.inputs), coordinate_transformation_mode=mode)


def _grid_sample(node: ir.Node, op: Builder) -> list[ir.Value]:
    mode = attribute(node, "mode", "bilinear")
    names = {"bilinear": "linear", "bicubic": "cubic"}
    return _with(node, op, list(node.inputs), mode=names.get(mode, mode))


def _dft(node: ir.Node, op: Builder) -> list[ir.Value]:
    axis = op.constant(np.asarray(attribute(node, "axis", 1), np.int64))
    length = node.inputs[1] if len(node.inputs) > 1 else None
    return _with(node, op, [node.inputs[0], length, axis], axis=None)


def _group_norm(node: ir.Node, op: Builder) -> list[ir.Value]:
    """Before opset 21, scale and bias were given for each group."""
    x, scale, bias = node.inputs
    channels = (dims(x) or (None, None))[1]
    assert isinstance(channels, int)
    each = channels // attribute(node, "num_groups")
    wide = [
        op.Reshape(op.Expand(op.Unsqueeze(v, [1]), [1, each]), [channels]) for v in (scale, bias)
    ]
    return _with(node, op, [x, *wide])
