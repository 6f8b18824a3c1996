"""Element-wise arithmetic, comparisons, activations."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import torch
import torch.nn.functional as F

from exporters.pytorch.dtypes import from_torch_dtype, promote, promoted_dtype
from exporters.pytorch.registry import decomposes, lowers

if TYPE_CHECKING:
    from collections.abc import Callable

    from exporters.tracing.graph import GraphBuilder as Op

T = torch.Tensor

# Operators of one meaning in torch and ONNX. Integers become floats first, as in eager.
FLOATING_UNARY = {
    torch.acos: "Acos", torch.acosh: "Acosh", torch.asin: "Asin", torch.asinh: "Asinh",
    torch.atan: "Atan", torch.atanh: "Atanh", torch.cos: "Cos", torch.cosh: "Cosh",
    torch.erf: "Erf", torch.exp: "Exp", torch.log: "Log", torch.reciprocal: "Reciprocal",
    torch.sigmoid: "Sigmoid", torch.sin: "Sin", torch.sinh: "Sinh", torch.sqrt: "Sqrt",
    torch.tan: "Tan", torch.tanh: "Tanh",
}  # fmt: skip
KEEPING_UNARY = {torch.abs: "Abs", torch.neg: "Neg", torch.relu: "Relu", torch.sign: "Sign"}
INTEGERS_UNCHANGED = {torch.ceil: "Ceil", torch.floor: "Floor"}


def _floating(op_type: str) -> Callable[..., ir.Value]:
    def lowering(op: Op, /, input: ir.Value) -> ir.Value:
        (x,) = promote(op, input, floating=True)
        return op.emit(op_type, x)

    return lowering


def _keeping(op_type: str) -> Callable[..., ir.Value]:
    def lowering(op: Op, /, input: ir.Value) -> ir.Value:
        return op.emit(op_type, input)

    return lowering


def _unchanged_for_integers(op_type: str) -> Callable[..., ir.Value]:
    def lowering(op: Op, /, input: ir.Value) -> ir.Value:
        return op.emit(op_type, input) if input.dtype.is_floating_point() else input

    return lowering


for _call, _op_type in FLOATING_UNARY.items():
    lowers(_call)(_floating(_op_type))
for _call, _op_type in KEEPING_UNARY.items():
    lowers(_call)(_keeping(_op_type))
for _call, _op_type in INTEGERS_UNCHANGED.items():
    lowers(_call)(_unchanged_for_integers(_op_type))


def _scaled(op: Op, x: Any, alpha: Any) -> Any:
    if isinstance(alpha, int | float) and alpha == 1:
        return x
    if isinstance(x, ir.Value):
        return op.Mul(*promote(op, x, alpha, to=promoted_dtype(x, alpha)))
    return x * alpha


@lowers(torch.add)
def add(op: Op, /, input: Any, other: Any, *, alpha: Any = 1) -> ir.Value:
    """Lower to ``Add-14``, or ``Or`` for booleans."""
    x, y = promote(op, input, _scaled(op, other, alpha))
    return op.Or(x, y) if x.dtype == ir.DataType.BOOL else op.Add(x, y)


@lowers(torch.sub, torch.subtract)
def sub(op: Op, /, input: Any, other: Any, *, alpha: Any = 1) -> ir.Value:
    """Lower to ``Sub-14``."""
    return op.Sub(*promote(op, input, _scaled(op, other, alpha)))


@lowers(torch.rsub)
def rsub(op: Op, /, input: Any, other: Any, *, alpha: Any = 1) -> ir.Value:
    """Lower to ``Sub-14`` the other way round."""
    return op.Sub(*promote(op, other, _scaled(op, input, alpha)))


@lowers(torch.mul, torch.multiply)
def mul(op: Op, /, input: Any, other: Any) -> ir.Value:
    """Lower to ``Mul-14``, or ``And`` for booleans."""
    x, y = promote(op, input, other)
    return op.And(x, y) if x.dtype == ir.DataType.BOOL else op.Mul(x, y)


@lowers(torch.div, torch.divide, torch.true_divide)
def div(op: Op, /, input: Any, other: Any, *, rounding_mode: str | None = None) -> ir.Value:
    """Lower to ``Div-14``; integers are divided as floats unless rounding is asked for."""
    if rounding_mode is None:
        return op.Div(*promote(op, input, other, floating=True))
    x, y = promote(op, input, other)
    if rounding_mode == "floor":
        return _floor_divide(op, x, y)
    quotient = op.Div(x, y)  # ONNX truncates integers
    if not x.dtype.is_floating_point():
        return quotient
    return op.Where(op.Less(quotient, 0.0), op.Ceil(quotient), op.Floor(quotient))


def _floor_divide(op: Op, x: ir.Value, y: ir.Value) -> ir.Value:
    if x.dtype.is_floating_point():
        return op.Floor(op.Div(x, y))
    return op.Div(op.Sub(x, op.Mod(x, y)), y)


@lowers(torch.floor_divide)
def floor_divide(op: Op, /, input: Any, other: Any) -> ir.Value:
    """Lower to ``Floor(Div)``; ONNX's integer ``Div`` truncates, so the remainder goes first."""
    return _floor_divide(op, *promote(op, input, other))


@lowers(torch.remainder)
def remainder(op: Op, /, input: Any, other: Any) -> ir.Value:
    """Lower to ``Mod-13``, whose integer result has the divisor's sign as torch's has."""
    x, y = promote(op, input, other)
    if not x.dtype.is_floating_point():
        return op.Mod(x, y)
    return op.Sub(x, op.Mul(op.Floor(op.Div(x, y)), y))


@lowers(torch.fmod)
def fmod(op: Op, /, input: Any, other: Any) -> ir.Value:
    """Lower to ``Mod-13`` with C's sign."""
    x, y = promote(op, input, other)
    return op.Mod(x, y, fmod=1)


@lowers(torch.pow)
def pow(op: Op, /, input: Any, exponent: Any) -> ir.Value:
    """Lower to ``Pow-15``, or to multiplication for the exponents that people write."""
    x, y = promote(op, input, exponent)
    if isinstance(exponent, int | float) and not hasattr(exponent, "record"):
        if exponent == 2:
            return op.Mul(x, x)
        if exponent == 0.5 and x.dtype.is_floating_point():
            return op.Sqrt(x)
        if exponent == 1:
            return x
    return op.Pow(x, y)


@lowers(torch.square)
def square(op: Op, /, input: ir.Value) -> ir.Value:
    return op.Mul(input, input)


@lowers(torch.rsqrt)
def rsqrt(op: Op, /, input: ir.Value) -> ir.Value:
    (x,) = promote(op, input, floating=True)
    return op.Reciprocal(op.Sqrt(x))


_COMPARISONS = {
    torch.lt: "Less", torch.less: "Less", torch.le: "LessOrEqual", torch.less_equal: "LessOrEqual",
    torch.gt: "Greater", torch.greater: "Greater", torch.ge: "GreaterOrEqual",
    torch.greater_equal: "GreaterOrEqual",
}  # fmt: skip


def _comparison(op_type: str) -> Callable[..., ir.Value]:
    def lowering(op: Op, /, input: Any, other: Any) -> ir.Value:
        x, y = promote(op, input, other)
        if x.dtype == ir.DataType.BOOL:
            x, y = op.cast(x, ir.DataType.INT32), op.cast(y, ir.DataType.INT32)
        return op.emit(op_type, x, y)

    return lowering


for _call, _op_type in _COMPARISONS.items():
    lowers(_call)(_comparison(_op_type))


@lowers(torch.eq)
def eq(op: Op, /, input: Any, other: Any) -> ir.Value:
    return op.Equal(*promote(op, input, other))


@lowers(torch.ne, torch.not_equal)
def ne(op: Op, /, input: Any, other: Any) -> ir.Value:
    return op.Not(op.Equal(*promote(op, input, other)))


@lowers(torch.maximum)
def maximum(op: Op, /, input: ir.Value, other: ir.Value) -> ir.Value:
    return op.Max(*promote(op, input, other))


@lowers(torch.minimum)
def minimum(op: Op, /, input: ir.Value, other: ir.Value) -> ir.Value:
    return op.Min(*promote(op, input, other))


@lowers(torch.logical_not)
def logical_not(op: Op, /, input: ir.Value) -> ir.Value:
    return op.Not(op.cast(input, ir.DataType.BOOL))


for _call, _op_type in {torch.logical_and: "And", torch.logical_or: "Or", torch.logical_xor: "Xor"}.items():

    def _logical(op: Op, /, input: ir.Value, other: ir.Value, *, op_type: str = _op_type) -> ir.Value:
        return op.emit(op_type, op.cast(input, ir.DataType.BOOL), op.cast(other, ir.DataType.BOOL))

    lowers(_call)(_logical)

for _call, _types in {
    torch.bitwise_and: ("And", "BitwiseAnd"),
    torch.bitwise_or: ("Or", "BitwiseOr"),
    torch.bitwise_xor: ("Xor", "BitwiseXor"),
}.items():

    def _bitwise(op: Op, /, input: Any, other: Any, *, types: tuple[str, str] = _types) -> ir.Value:
        x, y = promote(op, input, other)
        return op.emit(types[x.dtype != ir.DataType.BOOL], x, y)

    lowers(_call)(_bitwise)


@lowers(torch.bitwise_not)
def bitwise_not(op: Op, /, input: ir.Value) -> ir.Value:
    return op.Not(input) if input.dtype == ir.DataType.BOOL else op.BitwiseNot(input)


@lowers(torch.where)
def where(op: Op, /, condition: ir.Value, input: Any, other: Any) -> ir.Value:
    x, y = promote(op, input, other)
    return op.Where(op.cast(condition, ir.DataType.BOOL), x, y)


@lowers(T.where)
def where_method(op: Op, /, input: ir.Value, condition: ir.Value, other: Any) -> ir.Value:
    return where(op, condition, input, other)


@lowers(torch.masked_fill)
def masked_fill(op: Op, /, input: ir.Value, mask: ir.Value, value: Any) -> ir.Value:
    fill = op.cast(value, input.dtype) if isinstance(value, ir.Value) else op.operand(value, input.dtype)
    return op.Where(mask, fill, input)


@lowers(torch.clamp, torch.clip)
def clamp(op: Op, /, input: ir.Value, min: Any = None, max: Any = None) -> ir.Value:
    """Lower to ``Clip-13`` for numbers, to ``Max`` and ``Min`` for tensors."""
    bounds = [b for b in (min, max) if b is not None]
    dtype = promoted_dtype(input, *bounds)
    x = op.cast(input, dtype)
    if not any(isinstance(b, ir.Value) for b in bounds):
        return op.Clip(x, min, max)
    if min is not None:
        x = op.Max(x, *promote(op, min, to=dtype))
    if max is not None:
        x = op.Min(x, *promote(op, max, to=dtype))
    return x


@lowers(torch.clamp_min)
def clamp_min(op: Op, /, input: ir.Value, min: Any) -> ir.Value:
    return clamp(op, input, min)


@lowers(torch.clamp_max)
def clamp_max(op: Op, /, input: ir.Value, max: Any) -> ir.Value:
    return clamp(op, input, None, max)


@lowers(torch.isnan)
def isnan(op: Op, /, input: ir.Value) -> ir.Value:
    (x,) = promote(op, input, floating=True)
    return op.IsNaN(x)


@lowers(torch.isinf)
def isinf(op: Op, /, input: ir.Value) -> ir.Value:
    (x,) = promote(op, input, floating=True)
    return op.IsInf(x)


# Conversions


@lowers(T.to)
def to_device(op: Op, /, input: ir.Value, device: str | torch.device | None = None, dtype: torch.dtype | None = None,
       non_blocking: object = False, copy: object = False, *, memory_format: object = None) -> ir.Value:
    return input if dtype is None else op.cast(input, from_torch_dtype(dtype))


@lowers(T.to)
def to_dtype(op: Op, /, input: ir.Value, dtype: torch.dtype, non_blocking: object = False, copy: object = False, *,
             memory_format: object = None) -> ir.Value:
    return op.cast(input, from_torch_dtype(dtype))


@lowers(T.to)
def to_other(op: Op, /, input: ir.Value, other: ir.Value, non_blocking: object = False, copy: object = False, *,
             memory_format: object = None) -> ir.Value:
    return op.cast(input, other.dtype)


@lowers(T.type_as)
def type_as(op: Op, /, input: ir.Value, other: ir.Value) -> ir.Value:
    return op.cast(input, other.dtype)


for _call, _dtype in {
    T.float: torch.float32, T.double: torch.float64, T.half: torch.float16, T.bfloat16: torch.bfloat16,
    T.long: torch.int64, T.int: torch.int32, T.short: torch.int16, T.char: torch.int8,
    T.byte: torch.uint8, T.bool: torch.bool,
}.items():  # fmt: skip

    def _converted(op: Op, /, input: ir.Value, memory_format: object = None, *,
                   to: ir.DataType = from_torch_dtype(_dtype)) -> ir.Value:
        return op.cast(input, to)

    lowers(_call)(_converted)


@lowers(T.type)
def type(op: Op, /, input: ir.Value, dtype: Any = None, non_blocking: object = False) -> ir.Value:
    if isinstance(dtype, str):
        dtype = getattr(torch, dtype.rpartition(".")[2].removesuffix("Tensor").lower() or "float32")
    return op.cast(input, from_torch_dtype(dtype))


@lowers(T.cpu, T.cuda, T.contiguous, T.detach, torch.alias_copy, T.data.__get__, put_back=lambda op, base, view, *_, **__: view)
def same(op: Op, /, input: ir.Value, *args: object, **kwargs: object) -> ir.Value:
    return input


@lowers(T.copy_)
def copy_(op: Op, /, input: ir.Value, src: ir.Value, non_blocking: object = False) -> ir.Value:
    return op.Expand(op.cast(src, input.dtype), op.shape(input))


@lowers(T.fill_, torch.fill)
def fill_(op: Op, /, input: ir.Value, value: Any) -> ir.Value:
    fill = op.cast(value, input.dtype) if isinstance(value, ir.Value) else op.operand(value, input.dtype)
    return op.Expand(fill, op.shape(input))


@lowers(T.zero_)
def zero_(op: Op, /, input: ir.Value) -> ir.Value:
    return fill_(op, input, 0)


# Activations


@lowers(F.gelu)
def gelu(op: Op, /, input: ir.Value, *, approximate: str = "none") -> ir.Value:
    """Lower to ``Gelu-20``; by the formula before opset 20."""
    if op.opset >= 20:
        return op.Gelu(input, approximate=approximate)
    if approximate == "tanh":
        cubed = op.Mul(op.Mul(input, input), input)
        inner = op.Mul(op.Add(input, op.Mul(cubed, 0.044715)), math.sqrt(2 / math.pi))
        return op.Mul(op.Mul(input, 0.5), op.Add(op.Tanh(inner), 1.0))
    return op.Mul(op.Mul(input, 0.5), op.Add(op.Erf(op.Div(input, math.sqrt(2))), 1.0))


@lowers(F.relu)
def functional_relu(op: Op, /, input: ir.Value, inplace: bool = False) -> ir.Value:
    return op.Relu(input)


@lowers(F.relu6)
def relu6(op: Op, /, input: ir.Value, inplace: bool = False) -> ir.Value:
    return op.Clip(input, 0, 6)


@lowers(F.silu)
def silu(op: Op, /, input: ir.Value, inplace: bool = False) -> ir.Value:
    """Lower to ``Swish-24``; by the formula before."""
    return op.Mul(input, op.Sigmoid(input))


@lowers(F.hardsigmoid)
def hardsigmoid(op: Op, /, input: ir.Value, inplace: bool = False) -> ir.Value:
    return op.HardSigmoid(input, alpha=1 / 6, beta=0.5)


@lowers(F.hardswish)
def hardswish(op: Op, /, input: ir.Value, inplace: bool = False) -> ir.Value:
    return op.HardSwish(input)


@lowers(F.leaky_relu)
def leaky_relu(op: Op, /, input: ir.Value, negative_slope: float = 0.01, inplace: bool = False) -> ir.Value:
    return op.LeakyRelu(input, alpha=negative_slope)


@lowers(F.elu)
def elu(op: Op, /, input: ir.Value, alpha: float = 1.0, inplace: bool = False) -> ir.Value:
    return op.Elu(input, alpha=alpha)


@lowers(F.softplus)
def softplus(op: Op, /, input: ir.Value, beta: float = 1, threshold: float = 20) -> ir.Value:
    if beta == 1:
        return op.Softplus(input)
    return op.Div(op.Softplus(op.Mul(input, float(beta))), float(beta))


@lowers(torch.softmax)
def softmax(op: Op, /, input: ir.Value, dim: int, dtype: torch.dtype | None = None) -> ir.Value:
    """Lower to ``Softmax-13``, which normalises one axis and rejects rank 0."""
    return _normalised(op, "Softmax", input, dim, dtype)


@lowers(torch.log_softmax)
def log_softmax(op: Op, /, input: ir.Value, dim: int, dtype: torch.dtype | None = None) -> ir.Value:
    """Lower to ``LogSoftmax-13``, which normalises one axis and rejects rank 0."""
    return _normalised(op, "LogSoftmax", input, dim, dtype)


def _normalised(op: Op, op_type: str, input: ir.Value, dim: int, dtype: torch.dtype | None) -> ir.Value:
    scalar = len(input.shape.dims) == 0
    if dtype is not None:  # eager casts before it exponentiates
        input = op.cast(input, from_torch_dtype(dtype))
    if scalar:
        return op.Squeeze(op.emit(op_type, op.Unsqueeze(input, [0]), axis=0), [0])
    return op.emit(op_type, input, axis=dim)


@lowers(F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout)
def dropout(op: Op, /, input: ir.Value, p: float = 0.5, training: bool = True, inplace: bool = False) -> ir.Value:
    return input if not training or p == 0 else op.Dropout(input, np.float32(p), True)


@decomposes(torch.addcmul)
def addcmul(input: torch.Tensor, tensor1: torch.Tensor, tensor2: torch.Tensor, *, value: Any = 1) -> torch.Tensor:
    return input + value * tensor1 * tensor2
