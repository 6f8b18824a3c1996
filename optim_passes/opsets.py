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
from optim_passes.values import attribute, dims, norm_axis, rank

if TYPE_CHECKING:
    from collections.abc import Callable

    from optim_passes.scopes import Scope

__all__ = ["RaiseOpsetPass"]

_OLDEST = 9  # before, many operators had another meaning or none

# The IR version in which an opset came out; older readers refuse newer ones.
_IR_VERSIONS = {13: 7, 14: 7, 15: 8, 16: 8, 17: 8, 18: 8, 19: 9, 20: 9, 21: 10, 22: 10, 23: 11,
                24: 12, 25: 13}  # fmt: skip


class RaiseOpsetPass(Pass):
    """Converts the model to a newer opset of the default domain.

    Most operators only took more types over the years. The others are rewritten, or the model
    stays as it is, and the report says for which node. Models older than opset 9 stay.

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
                reason = _obstacle(node, scope.opset, self.version)
                if reason is not None:
                    self.refuse(outcome, node, reason, node)
        if outcome.refusals:
            return outcome
        before = [s.opset for s in bodies]
        # What is made is of the new opset, so that is what it has to be called.
        for imports in [model.graph.opset_imports, *(s.opsets for s in bodies)]:
            if "" in imports:
                imports[""] = self.version
        for scope, opset in zip(bodies, before, strict=True):
            self._convert(scope, opset, outcome)
        model.ir_version = max(model.ir_version, _IR_VERSIONS.get(self.version, 13))
        for node in model.graph.all_nodes():
            node.version = None
        outcome.rewrites, outcome.modified = outcome.rewrites + 1, True
        return outcome

    def _convert(self, scope: Scope, opset: int, outcome: Outcome) -> None:
        """Rewrite the nodes of one body that are written differently now."""
        names: Names | None = None
        for node in list(scope.body):
            adapter = _adapter(node, opset, self.version)
            if adapter is None:
                continue
            names = names or Names(scope.model)
            op = Builder(scope, names, [node])
            commit(op, node, node.outputs, adapter(node, op), [node])
            outcome.rewrites += 1

    def run(self, scope: Scope, outcome: Outcome) -> None:
        """Not used: bodies are converted together."""
        raise NotImplementedError


def _obstacle(node: ir.Node, opset: int, version: int) -> str | None:
    """Why a node cannot be converted; None if it can."""
    if node.domain:
        return None
    if opset < _OLDEST:
        return f"opset {opset} is older than {_OLDEST}"
    adapted = _adapter(node, opset, version) is not None
    if adapted and any(a.is_ref() for a in node.attributes.values()):
        return "an attribute is the function's"
    if node.op_type == "BatchNormalization" and opset < 14 <= version and len(node.outputs) > 1:
        return "it trains"
    if node.op_type == "Dropout" and opset < 12 <= version and len(node.outputs) > 1:
        return "the mask of Dropout had another type"
    if node.op_type == "AveragePool" and opset < 19 <= version and attribute(node, "ceil_mode", 0):
        return "AveragePool counts the last window differently since opset 19"
    if node.op_type == "Resize" and 10 < opset < 18 <= version and len(node.inputs) < 2:
        return "Resize has neither sizes nor scales"
    if node.op_type == "GroupNormalization" and opset < 21 <= version:
        channels = (dims(node.inputs[0]) or (None, None))[1]
        return None if isinstance(channels, int) else "the number of channels varies"
    if node.op_type in ("Upsample", "Scatter") and not adapted:
        return f"{node.op_type} is no longer an operator"
    return None


def _adapter(
    node: ir.Node, opset: int, version: int
) -> Callable[[ir.Node, Builder], list[ir.Value]] | None:
    """What rewrites a node that was written differently up to some opset."""
    if node.domain:
        return None
    for since, adapter in _ADAPTERS.get(node.op_type, ()):
        if opset < since <= version:
            return adapter
    return None


def _with(node: ir.Node, op: Builder, inputs: list[Any], **changed: Any) -> list[ir.Value]:
    """The node with other inputs and some other attributes; None takes an attribute away."""
    made = op.node(
        node.op_type, *inputs, outputs=len(node.outputs), like=node.outputs[0],
        attributes_of=node, **changed,
    )  # fmt: skip
    return [made] if isinstance(made, ir.Value) else list(made)


def _to_inputs(*names: str) -> Callable[[ir.Node, Builder], list[ir.Value]]:
    """Attributes that became operands, in order."""

    def adapt(node: ir.Node, op: Builder) -> list[ir.Value]:
        operands = list(node.inputs)
        for name in names:
            given = attribute(node, name)
            if isinstance(given, float):  # of the element type of what is padded or clipped
                x = node.inputs[0]
                dtype = np.float32 if x is None or x.dtype is None else x.dtype.numpy()
                given = np.asarray(given, dtype)
            elif isinstance(given, int):
                given = [given]
            operands.append(given)
        return _with(node, op, operands, **dict.fromkeys(names))

    return adapt


def _split(node: ir.Node, op: Builder) -> list[ir.Value]:
    """Sizes became an operand (13); of equal parts, their number has to be given (18)."""
    sizes = attribute(node, "split")
    if sizes is None and len(node.inputs) < 2 and op.opset >= 18:
        return _with(node, op, list(node.inputs), num_outputs=len(node.outputs))
    return _with(node, op, [*node.inputs, *([] if sizes is None else [sizes])], split=None)


def _softmax(node: ir.Node, op: Builder) -> list[ir.Value]:
    """Before opset 13 all axes from the given one on were one."""
    x = node.inputs[0]
    size, axis = rank(x), attribute(node, "axis", 1)
    if axis == -1 or (size is not None and norm_axis(axis, size) == size - 1):
        return _with(node, op, [x], axis=-1)
    flat = op.node(node.op_type, op.Flatten(x, axis=axis), axis=-1)
    return [op.Reshape(flat, op.Shape(x))]


def _dropout(node: ir.Node, op: Builder) -> list[ir.Value]:
    """The ratio means nothing outside of training."""
    return _with(node, op, list(node.inputs), ratio=None)


def _slice(node: ir.Node, op: Builder) -> list[ir.Value]:
    starts, ends = attribute(node, "starts"), attribute(node, "ends")
    axes = attribute(node, "axes", list(range(len(starts))))
    return [op.Slice(node.inputs[0], starts, ends, axes)]


def _upsample(node: ir.Node, op: Builder) -> list[ir.Value]:
    """``Upsample`` and the first ``Resize`` took scales, and began at the corner."""
    mode = attribute(node, "mode", "nearest")
    return [
        op.Resize(
            node.inputs[0], None, node.inputs[1], mode=mode, nearest_mode="floor",
            coordinate_transformation_mode="asymmetric",
        )
    ]  # fmt: skip


def _scatter(node: ir.Node, op: Builder) -> list[ir.Value]:
    return [op.ScatterElements(*node.inputs, axis=attribute(node, "axis"))]


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


_AXES = _to_inputs("axes")

# By operator: since which opset it is written otherwise, and what writes it so.
_ADAPTERS: dict[str, list[tuple[int, Callable[[ir.Node, Builder], list[ir.Value]]]]] = {
    **{
        name: [(18, _AXES)]
        for name in (
            "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean",
            "ReduceMin", "ReduceProd", "ReduceSumSquare",
        )
    },
    "ReduceSum": [(13, _AXES)],
    "Squeeze": [(13, _AXES)],
    "Unsqueeze": [(13, _AXES)],
    "Softmax": [(13, _softmax)],
    "LogSoftmax": [(13, _softmax)],
    "Hardmax": [(13, _softmax)],
    "Split": [(13, _split), (18, _split)],
    "Dropout": [(12, _dropout)],
    "Clip": [(11, _to_inputs("min", "max"))],
    "Pad": [(11, _to_inputs("pads", "value"))],
    "Slice": [(10, _slice)],
    "TopK": [(10, _to_inputs("k"))],
    "Upsample": [(10, _upsample)],
    "Resize": [(11, _upsample)],
    "Scatter": [(11, _scatter)],
    "RoiAlign": [(16, _roi_align)],
    "GridSample": [(20, _grid_sample)],
    "DFT": [(20, _dft)],
    "GroupNormalization": [(21, _group_norm)],
}  # fmt: skip
