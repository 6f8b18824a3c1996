"""Functions of each element: powers and logarithms, trigonometry, rounding, signs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import onnx_ir as ir
import torch

from exporters.pytorch.dtypes import promote, to_torch_dtype
from exporters.pytorch.lowerings import kernels, transcendental
from exporters.pytorch.registry import lowers

if TYPE_CHECKING:
    from collections.abc import Callable

    from exporters.tracing.graph import GraphBuilder as Op

prims = torch.ops.prims

# Operators of one meaning in torch and ONNX. Integers become floats first, as in eager.
FLOATING = {
    "Acos": (torch.acos, torch.arccos, prims.acos),
    "Acosh": (torch.acosh, torch.arccosh, prims.acosh),
    "Asin": (torch.asin, torch.arcsin, prims.asin),
    "Asinh": (torch.asinh, torch.arcsinh, prims.asinh),
    "Atan": (torch.atan, torch.arctan, prims.atan),
    "Atanh": (torch.atanh, torch.arctanh, prims.atanh),
    "Cos": (torch.cos, prims.cos),
    "Cosh": (torch.cosh, prims.cosh),
    "Erf": (torch.erf, torch.special.erf, prims.erf),
    "Exp": (torch.exp, prims.exp),
    "Log": (torch.log, prims.log),
    "Reciprocal": (torch.reciprocal, prims.reciprocal),
    "Sigmoid": (torch.sigmoid, torch.special.expit),
    "Sin": (torch.sin, prims.sin),
    "Sinh": (torch.sinh, prims.sinh),
    "Sqrt": (torch.sqrt, prims.sqrt),
    "Tan": (torch.tan, prims.tan),
    "Tanh": (torch.tanh, prims.tanh),
}
ROUNDING = {
    "Ceil": (torch.ceil, prims.ceil),
    "Floor": (torch.floor, prims.floor),
}


def _floating(op_type: str) -> Callable[..., ir.Value]:
    def lowering(op: Op, /, input: ir.Value) -> ir.Value:
        (x,) = promote(op, input, floating=True)
        return kernels.emit(op, op_type, x)

    return lowering


def _rounding(op_type: str) -> Callable[..., ir.Value]:
    def lowering(op: Op, /, input: ir.Value) -> ir.Value:
        return op.emit(op_type, input) if input.dtype.is_floating_point() else input

    return lowering


for _op_type, _calls in FLOATING.items():
    lowers(*_calls)(_floating(_op_type))
for _op_type, _calls in ROUNDING.items():
    lowers(*_calls)(_rounding(_op_type))


@lowers(torch.abs, torch.absolute, prims.abs)
def abs(op: Op, /, input: ir.Value) -> ir.Value:
    """Lower to ``Abs-13``."""
    return input if _is_unsigned(input) else op.Abs(input)


@lowers(torch.neg, torch.negative, prims.neg)
def neg(op: Op, /, input: ir.Value) -> ir.Value:
    """Lower to ``Neg-13``."""
    return kernels.emit(op, "Neg", input)


@lowers(torch.positive, torch.real, torch.resolve_conj, torch.resolve_neg, torch.conj_physical)
def positive(op: Op, /, input: ir.Value) -> ir.Value:
    """Real numbers stay as they are."""
    return input


@lowers(torch.sign, torch.sgn, prims.sign)
def sign(op: Op, /, input: ir.Value) -> ir.Value:
    """Lower to ``Sign-13``."""
    return input if input.dtype == ir.DataType.BOOL else op.Sign(input)


def _is_unsigned(x: ir.Value) -> bool:
    return x.dtype in (ir.DataType.BOOL, ir.DataType.UINT8)


@lowers(torch.signbit, prims.signbit)
def signbit(op: Op, /, input: ir.Value) -> ir.Value:
    """``x < 0``, where a negative zero counts as negative."""
    x = op.cast(input, ir.DataType.UINT8) if input.dtype == ir.DataType.BOOL else input
    return transcendental.is_negative(op, x)


@lowers(torch.angle)
def angle(op: Op, /, input: ir.Value) -> ir.Value:
    """0 or pi for a real number; a NaN stays one."""
    (x,) = promote(op, input, floating=True)
    kept = op.Where(op.IsNaN(x), x, 0.0) if input.dtype.is_floating_point() else 0.0
    return op.Where(op.Less(x, 0.0), op.operand(math.pi, x.dtype), kept)


# Powers and logarithms


@lowers(torch.square)
def square(op: Op, /, input: ir.Value) -> ir.Value:
    return input if input.dtype == ir.DataType.BOOL else op.Mul(input, input)


@lowers(torch.rsqrt, prims.rsqrt)
def rsqrt(op: Op, /, input: ir.Value) -> ir.Value:
    (x,) = promote(op, input, floating=True)
    return op.Reciprocal(op.Sqrt(x))


@lowers(prims.cbrt)
def cbrt(op: Op, /, self: ir.Value) -> ir.Value:
    return op.Mul(op.Sign(self), op.Pow(op.Abs(self), 1 / 3))


@lowers(torch.exp2, torch.special.exp2, prims.exp2)
def exp2(op: Op, /, input: ir.Value) -> ir.Value:
    """Lower to ``Pow-15``, which is exact for whole exponents."""
    (x,) = promote(op, input, floating=True)
    return op.Pow(op.operand(2.0, x.dtype), x)


@lowers(torch.expm1, torch.special.expm1, prims.expm1)
def expm1(op: Op, /, input: ir.Value) -> ir.Value:
    (x,) = promote(op, input, floating=True)
    return transcendental.expm1(op, x)


@lowers(torch.log1p, torch.special.log1p, prims.log1p)
def log1p(op: Op, /, input: ir.Value) -> ir.Value:
    (x,) = promote(op, input, floating=True)
    return transcendental.log1p(op, x)


def _logarithm(base: float) -> Callable[..., ir.Value]:
    def lowering(op: Op, /, input: ir.Value) -> ir.Value:
        """``Log-13`` in float64, whose rounded result is exact for powers of the base."""
        (x,) = promote(op, input, floating=True)
        wide = op.Mul(op.Log(op.cast(x, ir.DataType.DOUBLE)), 1 / math.log(base))
        return op.cast(wide, x.dtype)

    return lowering


lowers(torch.log2, prims.log2)(_logarithm(2.0))
lowers(torch.log10, prims.log10)(_logarithm(10.0))


@lowers(torch.frexp, prims.frexp)
def frexp(op: Op, /, input: ir.Value) -> tuple[ir.Value, ir.Value]:
    """A fraction in [1/2, 1) and a power of two, from ``Log-13`` and one correction."""
    x = op.cast(input, ir.DataType.DOUBLE)
    special = op.Or(op.Equal(x, 0.0), op.Not(op.Less(op.Abs(x), math.inf)))
    size = op.Where(special, 1.0, op.Abs(x))
    power = op.Add(op.Floor(op.Mul(op.Log(size), 1 / math.log(2.0))), 1.0)
    half = op.Floor(op.Mul(power, 0.5))  # the whole power may leave the range
    two = op.operand(2.0, ir.DataType.DOUBLE)
    scales = op.Pow(two, op.Neg(half)), op.Pow(two, op.Sub(half, power))
    fraction = op.Mul(op.Mul(size, scales[0]), scales[1])
    high, low = op.GreaterOrEqual(fraction, 1.0), op.Less(fraction, 0.5)
    correction = op.Sub(op.cast(high, x.dtype), op.cast(low, x.dtype))
    power = op.Where(special, 0.0, op.Add(power, correction))
    fraction = op.Mul(op.Mul(fraction, op.Pow(two, op.Neg(correction))), op.Sign(x))
    exponent = op.cast(power, ir.DataType.INT32)
    return op.cast(op.Where(special, x, fraction), input.dtype), exponent


# Rounding


@lowers(torch.round, torch.special.round)
def round(op: Op, /, input: ir.Value, *, decimals: int = 0) -> ir.Value:
    """Lower to ``Round-11``, which rounds halves to even as torch does."""
    if not input.dtype.is_floating_point():
        return input
    if decimals == 0:
        return op.Round(input)
    scale = float(10 ** (decimals if decimals > 0 else -decimals))
    if decimals > 0:
        return op.Div(op.Round(op.Mul(input, scale)), scale)
    return op.Mul(op.Round(op.Div(input, scale)), scale)


@lowers(prims.round)
def round_prim(op: Op, /, self: ir.Value) -> ir.Value:
    return op.Round(self)


@lowers(torch.trunc, torch.fix, prims.trunc)
def trunc(op: Op, /, input: ir.Value) -> ir.Value:
    """``Ceil`` below 0, ``Floor`` above."""
    if not input.dtype.is_floating_point():
        return input
    return op.Where(op.Less(input, 0.0), op.Ceil(input), op.Floor(input))


@lowers(torch.frac)
def frac(op: Op, /, input: ir.Value) -> ir.Value:
    """Lower to ``Mod-13`` by 1, with C's sign."""
    return op.Mod(input, 1.0, fmod=1)


# Classification


@lowers(torch.isnan)
def isnan(op: Op, /, input: ir.Value) -> ir.Value:
    (x,) = promote(op, input, floating=True)
    return op.IsNaN(x)


def _is_infinite(op: Op, x: ir.Value, *, positive: bool = True, negative: bool = True) -> ir.Value:
    (x,) = promote(op, x, floating=True)
    if op.opset < 20 and x.dtype not in (ir.DataType.FLOAT, ir.DataType.DOUBLE):
        if positive and negative:
            return op.Equal(op.Abs(x), math.inf)
        return op.Equal(x, math.inf if positive else -math.inf)
    return op.IsInf(
        x,
        detect_positive=None if positive else 0,
        detect_negative=None if negative else 0,
    )


@lowers(torch.isinf)
def isinf(op: Op, /, input: ir.Value) -> ir.Value:
    """Lower to ``IsInf-20``, which knew fewer dtypes before."""
    return _is_infinite(op, input)


@lowers(torch.isposinf)
def isposinf(op: Op, /, input: ir.Value) -> ir.Value:
    return _is_infinite(op, input, negative=False)


@lowers(torch.isneginf)
def isneginf(op: Op, /, input: ir.Value) -> ir.Value:
    return _is_infinite(op, input, positive=False)


@lowers(torch.isfinite, prims.isfinite)
def isfinite(op: Op, /, input: ir.Value) -> ir.Value:
    """``|x| < inf``, which a NaN is not."""
    (x,) = promote(op, input, floating=True)
    return op.Less(op.Abs(x), math.inf)


@lowers(torch.nan_to_num)
def nan_to_num(
    op: Op, /, input: ir.Value, nan: Any = None, posinf: Any = None, neginf: Any = None
) -> ir.Value:
    """Lower to ``Clip-13`` where infinities become the largest numbers, as they do by default."""
    if not input.dtype.is_floating_point():
        return input
    limits = torch.finfo(to_torch_dtype(input.dtype))
    x = input
    if posinf is None and neginf is None:
        x = op.Clip(x, limits.min, limits.max)
    else:
        high = limits.max if posinf is None else posinf
        low = limits.min if neginf is None else neginf
        x = op.Where(_is_infinite(op, input, negative=False), high, x)
        x = op.Where(_is_infinite(op, input, positive=False), low, x)
    return op.Where(op.IsNaN(input), 0.0 if nan is None else nan, x)
