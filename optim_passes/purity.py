"""Which nodes give the same result whenever they run, and which cannot fail."""

from __future__ import annotations

from typing import TYPE_CHECKING

from optim_passes.scopes import nested
from optim_passes.values import attribute, dims, input_of, scalar

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["is_pure", "is_total"]

_RANDOM = frozenset(
    {
        "Bernoulli",
        "Multinomial",
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
    }
)

# Operators that succeed on any operands whose types and shapes fit together.
# fmt: off
_TOTAL = frozenset({
    "Abs", "Acos", "Acosh", "And", "Asin", "Asinh", "Atan", "Atanh", "Cast", "Ceil", "Clip",
    "Concat", "Constant", "Cos", "Cosh", "Elu", "Equal", "Erf", "Exp", "Floor", "Gelu",
    "Greater", "GreaterOrEqual", "HardSigmoid", "HardSwish", "Identity", "IsInf", "IsNaN",
    "LeakyRelu", "Less", "LessOrEqual", "Log", "LogSoftmax", "Max", "Min", "Mish", "Neg", "Not",
    "Or", "Reciprocal", "Relu", "Round", "Selu", "Shape", "Sigmoid", "Sign", "Sin", "Sinh",
    "Size", "Softmax", "Softplus", "Softsign", "Sqrt", "Swish", "Tan", "Tanh", "Transpose",
    "Unsqueeze", "Where", "Xor", "Add", "Sub", "Mul", "MatMul", "Gemm", "LayerNormalization",
})
# fmt: on


def is_pure(node: ir.Node) -> bool:
    """Whether the node draws no random numbers and holds no subgraphs."""
    if any(True for _ in nested(node)):
        return False
    if node.domain not in ("", "com.microsoft"):
        return False  # who knows
    if node.op_type == "Dropout":
        return not is_training(node)
    if node.op_type == "BatchNormalization" and attribute(node, "training_mode", 0):
        return False
    return node.op_type not in _RANDOM


def is_training(node: ir.Node) -> bool:
    """Whether a Dropout may drop something."""
    mode = input_of(node, 2)
    return mode is not None and scalar(mode) is not False


def is_total(node: ir.Node) -> bool:
    """Whether the node may run even where the original would not have: it cannot fail.

    Shapes of several operands fit together if the shape of the result could be worked out.
    """
    if node.domain or node.op_type not in _TOTAL or not is_pure(node):
        return False
    if len(node.inputs) == 1:
        return True
    shape = dims(node.outputs[0])
    return shape is not None and all(isinstance(d, int) or d.value is not None for d in shape)
