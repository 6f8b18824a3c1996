"""Activation functions and normalisation along one dim (softmax)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnx_ir as ir
import torch
import torch.nn.functional as F

from exporters.pytorch.dtypes import from_torch_dtype, promote
from exporters.pytorch.lowerings import kernels, transcendental
from exporters.pytorch.lowerings.arithmetic import number
from exporters.pytorch.lowerings.shaping import rank
from exporters.pytorch.registry import Unlowerable, decomposes, lowers

if TYPE_CHECKING:
    from exporters.tracing.graph import GraphBuilder as Op

T = torch.Tensor
aten = torch.ops.aten


@lowers(torch.relu)
def relu(op: Op, /, input: ir.Value) -> ir.Value:
    """Lower to ``Relu-14``, or ``Max-13`` for integers."""
    if input.dtype.is_floating_point():
        return op.Relu(input)
    return kernels.emit(op, "Max", input, 0)  # ORT 1.32 CPU has no int64 Relu kernel


@lowers(F.relu)
def functional_relu(op: Op, /, input: ir.Value, inplace: bool = False) -> ir.Value:
    return relu(op, input)


@lowers(F.relu6, aten.relu6)
def relu6(op: Op, /, input: ir.Value, inplace: bool = False) -> ir.Value:
    return kernels.emit(op, "Clip", input, 0, 6)


@lowers(F.hardtanh, aten.hardtanh)
def hardtanh(
    op: Op, /, input: ir.Value, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False
) -> ir.Value:
    return kernels.emit(op, "Clip", input, min_val, max_val)


@lowers(F.gelu)
def gelu(op: Op, /, input: ir.Value, *, approximate: str = "none") -> ir.Value:
    """Lower to ``Gelu-20``; by the formula before opset 20."""
    if op.opset < 20:
        return transcendental.gelu_formula(op, input, approximate=approximate)
    return kernels.emit(op, "Gelu", input, approximate=approximate)


@lowers(F.silu, aten.silu)
def silu(op: Op, /, input: ir.Value, inplace: bool = False) -> ir.Value:
    """Lower to ``Mul(x, Sigmoid(x))``; ONNX Runtime has no kernel of ``Swish-24``."""
    return op.Mul(input, op.Sigmoid(input))


@lowers(F.mish, aten.mish)
def mish(op: Op, /, input: ir.Value, inplace: bool = False) -> ir.Value:
    """Lower to ``Mish-18``; by the formula before opset 18."""
    if op.opset >= 18:
        return kernels.emit(op, "Mish", input)
    return op.Mul(input, op.Tanh(kernels.emit(op, "Softplus", input)))


@lowers(F.hardsigmoid, aten.hardsigmoid)
def hardsigmoid(op: Op, /, input: ir.Value, inplace: bool = False) -> ir.Value:
    return kernels.emit(op, "HardSigmoid", input, alpha=1 / 6, beta=0.5)


@lowers(F.hardswish, aten.hardswish)
def hardswish(op: Op, /, input: ir.Value, inplace: bool = False) -> ir.Value:
    return kernels.emit(op, "HardSwish", input)


@lowers(F.leaky_relu, aten.leaky_relu)
def leaky_relu(
    op: Op, /, input: ir.Value, negative_slope: float = 0.01, inplace: bool = False
) -> ir.Value:
    return kernels.emit(op, "LeakyRelu", input, alpha=negative_slope)


@lowers(F.elu)
def elu(op: Op, /, input: ir.Value, alpha: float = 1.0, inplace: bool = False) -> ir.Value:
    return kernels.emit(op, "Elu", input, alpha=alpha)


@lowers(aten.elu)
def scaled_elu(
    op: Op, /, self: ir.Value, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0
) -> ir.Value:
    if scale != 1 or input_scale != 1:
        raise Unlowerable("Elu-6 has no scales")
    return kernels.emit(op, "Elu", self, alpha=alpha)


@lowers(torch.celu)
def celu(op: Op, /, input: ir.Value, alpha: float = 1.0) -> ir.Value:
    """Lower to ``Celu-12``, which takes float32 only, or to ``Elu-6`` of the quotient."""
    if input.dtype == ir.DataType.FLOAT:
        return op.Celu(input, alpha=alpha)
    if alpha == 1.0:
        return kernels.emit(op, "Elu", input)
    return op.Mul(kernels.emit(op, "Elu", op.Div(input, alpha)), alpha)


@lowers(torch.selu)
def selu(op: Op, /, input: ir.Value) -> ir.Value:
    """Lower to ``Selu-6`` with torch's constants."""
    return kernels.emit(
        op,
        "Selu",
        input,
        alpha=1.6732632423543772848170429916717,
        gamma=1.0507009873554804934193349852946,
    )


@lowers(torch.prelu)
def prelu(op: Op, /, input: ir.Value, weight: ir.Value) -> ir.Value:
    """Lower to ``PRelu-16`` with one slope per channel, which is dim 1."""
    slope = weight
    if rank(input) == 0:
        slope = op.Reshape(weight, []) if rank(weight) else weight
    elif rank(weight) == 1 and weight.shape.dims[0] != 1 and rank(input) > 2:
        slope = op.Unsqueeze(weight, list(range(1, rank(input) - 1)))
    return kernels.emit(op, "PRelu", input, slope)


@lowers(aten._prelu_kernel)
def prelu_kernel(op: Op, /, self: ir.Value, weight: ir.Value) -> ir.Value:
    """Lower to ``PRelu-16``; the slopes broadcast already."""
    return kernels.emit(op, "PRelu", self, weight)


@lowers(F.softplus)
def softplus(op: Op, /, input: ir.Value, beta: Any = 1, threshold: Any = 20) -> ir.Value:
    """Lower to ``Softplus-1``; beyond the threshold torch returns ``x`` itself."""
    plain = number(beta) == 1
    scaled = input if plain else op.Mul(input, beta)
    result = kernels.emit(op, "Softplus", scaled)
    result = result if plain else op.Div(result, beta)
    if number(threshold) is not None and threshold >= 20 and input.dtype != ir.DataType.DOUBLE:
        return result  # there the two agree to the last place
    return op.Where(op.Greater(scaled, threshold), input, result)


@lowers(F.logsigmoid)
def logsigmoid(op: Op, /, input: ir.Value) -> ir.Value:
    """Lower to ``-Softplus(-x)``."""
    return op.Neg(kernels.emit(op, "Softplus", op.Neg(input)))


@lowers(F.softsign)
def softsign(op: Op, /, input: ir.Value) -> ir.Value:
    """Lower to ``Softsign-1``."""
    return kernels.emit(op, "Softsign", *promote(op, input, floating=True))


@lowers(torch.threshold)
def threshold(op: Op, /, input: ir.Value, threshold: Any, value: Any) -> ir.Value:
    """Lower to ``Where(x <= threshold, value, x)``."""
    (bound,) = promote(op, threshold, to=input.dtype)
    return kernels.emit(op, "Where", op.LessOrEqual(input, bound), value, input)


@lowers(F.hardshrink)
def hardshrink(op: Op, /, input: ir.Value, lambd: float = 0.5) -> ir.Value:
    """Keep what is larger than ``lambd``; ``Shrink-9`` would turn a NaN into 0."""
    return op.Where(op.LessOrEqual(op.Abs(input), lambd), 0.0, input)


@lowers(F.softshrink)
def softshrink(op: Op, /, input: ir.Value, lambd: float = 0.5) -> ir.Value:
    """``x`` less its part in ``[-lambd, lambd]``."""
    return op.Sub(input, op.Clip(input, -lambd, lambd))


@decomposes(F.glu)
def glu(input: torch.Tensor, dim: int = -1) -> torch.Tensor:
    first, second = input.chunk(2, dim)
    return first * second.sigmoid()


# Softmax


@lowers(torch.softmax, torch.special.softmax)
def softmax(op: Op, /, input: ir.Value, dim: int, dtype: torch.dtype | None = None) -> ir.Value:
    """Lower to ``Softmax-13``, which normalises one axis and rejects rank 0."""
    return _normalised(op, "Softmax", input, dim, dtype)


@lowers(torch.log_softmax, torch.special.log_softmax)
def log_softmax(
    op: Op, /, input: ir.Value, dim: int, dtype: torch.dtype | None = None
) -> ir.Value:
    """Lower to ``LogSoftmax-13``, which normalises one axis and rejects rank 0."""
    return _normalised(op, "LogSoftmax", input, dim, dtype)


@lowers(aten._softmax)
def raw_softmax(op: Op, /, self: ir.Value, dim: int, half_to_float: bool) -> ir.Value:
    return _normalised(op, "Softmax", self, dim, torch.float32 if half_to_float else None)


@lowers(aten._log_softmax)
def raw_log_softmax(op: Op, /, self: ir.Value, dim: int, half_to_float: bool) -> ir.Value:
    return _normalised(op, "LogSoftmax", self, dim, torch.float32 if half_to_float else None)


def _normalised(
    op: Op, op_type: str, input: ir.Value, dim: int, dtype: torch.dtype | None
) -> ir.Value:
    if dtype is not None:  # eager casts before it exponentiates
        input = op.cast(input, from_torch_dtype(dtype))
    if rank(input) == 0:
        return op.Squeeze(op.emit(op_type, op.Unsqueeze(input, [0]), axis=0), [0])
    return op.emit(op_type, input, axis=dim)
