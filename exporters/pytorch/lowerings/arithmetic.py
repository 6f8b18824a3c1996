"""Sums, products, quotients, remainders and powers of two operands."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import onnx_ir as ir
import torch

from exporters.pytorch.dtypes import promote, promoted_dtype
from exporters.pytorch.lowerings import kernels, transcendental, whole_numbers
from exporters.pytorch.registry import decomposes, lowers
from exporters.tracing.graph import isinstance_static

if TYPE_CHECKING:
    from exporters.tracing.graph import GraphBuilder as Op

prims = torch.ops.prims


def number(x: Any) -> float | None:
    """``x`` if it is a number that the graph holds as a constant."""
    return x if isinstance(x, int | float) and isinstance_static(x) else None


def _times(op: Op, x: ir.Value, factor: Any) -> ir.Value:
    return x if number(factor) == 1 else op.Mul(x, factor)


@lowers(torch.add, prims.add)
def add(op: Op, /, input: Any, other: Any, *, alpha: Any = 1) -> ir.Value:
    """Lower to ``Add-14``, or ``Or`` for booleans."""
    x, y = promote(op, input, other)
    if x.dtype == ir.DataType.BOOL:
        return op.Or(x, y if number(alpha) else op.And(y, *promote(op, alpha, to=x.dtype)))
    return op.Add(x, _times(op, y, alpha))


@lowers(torch.sub, torch.subtract, prims.sub)
def sub(op: Op, /, input: Any, other: Any, *, alpha: Any = 1) -> ir.Value:
    """Lower to ``Sub-14``."""
    x, y = promote(op, input, other)
    return op.Sub(x, _times(op, y, alpha))


@lowers(torch.rsub)
def rsub(op: Op, /, input: Any, other: Any, *, alpha: Any = 1) -> ir.Value:
    """Lower to ``Sub-14`` the other way round."""
    x, y = promote(op, input, other)
    return op.Sub(y, _times(op, x, alpha))


@lowers(torch.mul, torch.multiply, prims.mul)
def mul(op: Op, /, input: Any, other: Any) -> ir.Value:
    """Lower to ``Mul-14``, or ``And`` for booleans."""
    x, y = promote(op, input, other)
    return op.And(x, y) if x.dtype == ir.DataType.BOOL else op.Mul(x, y)


@lowers(torch.true_divide)
def true_divide(op: Op, /, input: Any, other: Any) -> ir.Value:
    return div(op, input, other)


@lowers(torch.div, torch.divide)
def div(op: Op, /, input: Any, other: Any, *, rounding_mode: str | None = None) -> ir.Value:
    """Lower to ``Div-14``; integers are divided as floats unless rounding is asked for."""
    if rounding_mode is None:
        return op.Div(*promote(op, input, other, floating=True))
    x, y = promote(op, input, other)
    if rounding_mode == "floor":
        return floored_quotient(op, x, y, number(other))
    quotient = op.Div(x, y)  # ONNX truncates integers
    if not x.dtype.is_floating_point():
        return quotient
    return op.Where(op.Less(quotient, 0.0), op.Ceil(quotient), op.Floor(quotient))


@lowers(prims.div)
def div_prim(op: Op, /, self: Any, other: Any) -> ir.Value:
    """Integers are divided as integers, truncating."""
    return op.Div(*promote(op, self, other))


_NARROW = (ir.DataType.INT8, ir.DataType.INT16)


@lowers(torch.floor_divide)
def floor_divide(op: Op, /, input: Any, other: Any) -> ir.Value:
    """The quotient rounded down, by way of the remainder as torch does it."""
    x, y = promote(op, input, other)
    return floored_quotient(op, x, y, number(other))


def floored_quotient(op: Op, x: ir.Value, y: Any, divisor: float | None = None) -> ir.Value:
    """``x / y`` rounded down; ``divisor`` is ``y`` where that is a constant."""
    if x.dtype == ir.DataType.UINT8:
        return op.Div(x, y)
    if not x.dtype.is_floating_point():
        if divisor == 1:
            return x
        wide = ir.DataType.INT32 if x.dtype in _NARROW else x.dtype  # the difference may overflow
        a, b = op.cast(x, wide), y if wide == x.dtype else op.cast(op.operand(y, x.dtype), wide)
        # ONNX truncates: nothing is left to truncate
        return op.cast(op.Div(op.Sub(a, op.Mod(a, b)), b), x.dtype)
    if divisor and math.isfinite(divisor) and math.frexp(divisor)[0] in (0.5, -0.5):
        return op.Floor(op.Div(x, y))  # dividing by a power of two is exact
    rest = op.Mod(x, y, fmod=1)
    quotient = op.Div(op.Sub(x, rest), y)
    quotient = op.Where(_differs_in_sign(op, rest, y, divisor), op.Sub(quotient, 1.0), quotient)
    whole = op.Round(quotient)
    if divisor:
        return whole
    return op.Where(op.Equal(y, 0.0), op.Div(x, y), whole)


def _differs_in_sign(op: Op, rest: ir.Value, y: ir.Value, divisor: float | None) -> ir.Value:
    """Whether a nonzero remainder has another sign than the divisor."""
    if divisor is not None:
        return op.Less(rest, 0.0) if divisor >= 0 else op.Greater(rest, 0.0)
    return op.Less(op.Mul(rest, op.Sign(y)), 0.0)


@lowers(torch.remainder)
def remainder(op: Op, /, input: Any, other: Any) -> ir.Value:
    """Lower to ``Mod-13``, with the divisor's sign as in Python."""
    x, y = promote(op, input, other)
    if not x.dtype.is_floating_point():
        return op.Mod(x, y)
    divisor = number(other)
    if divisor == 1:
        return op.Sub(x, op.Floor(x))
    rest = op.Mod(x, y, fmod=1)
    return op.Where(_differs_in_sign(op, rest, y, divisor), op.Add(rest, y), rest)


lowers(prims.remainder)(remainder)


@lowers(torch.fmod, prims.fmod)
def fmod(op: Op, /, input: Any, other: Any) -> ir.Value:
    """Lower to ``Mod-13`` with C's sign."""
    return op.Mod(*promote(op, input, other), fmod=1)


@lowers(torch.pow, prims.pow)
def pow(op: Op, /, input: Any, exponent: Any) -> ir.Value:
    """Lower to ``Pow-15``, or to cheaper operators for the exponents that people write."""
    given = number(exponent)
    if given is not None and isinstance(input, ir.Value):
        short = _short_power(op, op.cast(input, promoted_dtype(input, exponent)), given)
        if short is not None:
            return short
    x, y = promote(op, input, exponent)
    if not x.dtype.is_floating_point():
        return whole_numbers.power(op, x, y, base=number(input), exponent=given)
    return kernels.emit(op, "Pow", x, y)


def _short_power(op: Op, x: ir.Value, exponent: float) -> ir.Value | None:
    if x.dtype == ir.DataType.BOOL:
        return None
    if exponent == 1:
        return x
    if exponent == 2:
        return op.Mul(x, x)
    if exponent == 3:
        return op.Mul(op.Mul(x, x), x)
    if not x.dtype.is_floating_point():
        return None
    if exponent == 0.5:
        return op.Sqrt(x)
    if exponent == -0.5:
        return op.Reciprocal(op.Sqrt(x))
    if exponent == -1:
        return op.Reciprocal(x)
    return op.Reciprocal(op.Mul(x, x)) if exponent == -2 else None


@lowers(torch.float_power)
def float_power(op: Op, /, input: Any, exponent: Any) -> ir.Value:
    """Lower to ``Pow-15`` in float64."""
    return op.Pow(*promote(op, input, exponent, to=ir.DataType.DOUBLE))


@decomposes(torch.addcmul)
def addcmul(
    input: torch.Tensor, tensor1: torch.Tensor, tensor2: torch.Tensor, *, value: Any = 1
) -> torch.Tensor:
    product = tensor1 * tensor2
    return input + (product if number(value) == 1 else value * product)


@decomposes(torch.addcdiv)
def addcdiv(
    input: torch.Tensor, tensor1: torch.Tensor, tensor2: torch.Tensor, *, value: Any = 1
) -> torch.Tensor:
    quotient = tensor1 / tensor2
    return input + (quotient if number(value) == 1 else value * quotient)


@decomposes(torch.lerp)
def lerp(input: torch.Tensor, end: torch.Tensor, weight: Any) -> torch.Tensor:
    """As torch computes it: from the end that is nearer."""
    distance = end - input
    near = input + weight * distance
    if number(weight) is not None:
        return near if weight < 0.5 else end - distance * (1 - weight)
    return torch.where(weight.abs() < 0.5, near, end - distance * (1 - weight))


# Two-argument functions of analysis


@lowers(torch.atan2, torch.arctan2, prims.atan2)
def atan2(op: Op, /, input: ir.Value, other: ir.Value) -> ir.Value:
    """The arc tangent of the smaller over the larger coordinate, moved to its octant."""
    y, x = promote(op, input, other, floating=True)
    height, width = op.Abs(y), op.Abs(x)
    larger = op.Max(height, width)
    ratio = op.Div(op.Min(height, width), larger)
    ratio = op.Where(op.Equal(larger, 0.0), 0.0, ratio)
    ratio = op.Where(op.Equal(height, width), op.Sign(larger), ratio)  # infinite both
    angle = kernels.emit(op, "Atan", ratio)
    angle = op.Where(op.Greater(height, width), op.Sub(math.pi / 2, angle), angle)
    angle = op.Where(transcendental.is_negative(op, x), op.Sub(math.pi, angle), angle)
    return op.Where(transcendental.is_negative(op, y), op.Neg(angle), angle)


@lowers(torch.hypot, prims.hypot)
def hypot(op: Op, /, input: ir.Value, other: ir.Value) -> ir.Value:
    """``m sqrt(1 + (n / m)^2)`` with the larger size as ``m``, which does not overflow early."""
    x, y = promote(op, input, other)
    x, y = op.Abs(x), op.Abs(y)
    larger = op.Max(x, y)
    ratio = op.Div(op.Min(x, y), larger)
    length = op.Mul(larger, op.Sqrt(op.Add(op.Mul(ratio, ratio), 1.0)))
    length = op.Where(op.Equal(larger, 0.0), 0.0, length)
    infinite = op.Or(op.Equal(x, math.inf), op.Equal(y, math.inf))
    return op.Where(infinite, op.operand(math.inf, x.dtype), length)


@lowers(torch.copysign)
def copysign(op: Op, /, input: ir.Value, other: Any) -> ir.Value:
    x, y = promote(op, input, other, floating=True)
    sign = number(other)
    if sign is not None:
        size = op.Abs(x)
        return op.Neg(size) if math.copysign(1.0, sign) < 0 else size
    return transcendental.with_sign(op, x, y)


@lowers(torch.logaddexp)
def logaddexp(op: Op, /, input: ir.Value, other: ir.Value) -> ir.Value:
    """The larger plus ``log1p(exp(-difference))``; equal infinities stay as they are."""
    x, y = promote(op, input, other)
    return _added_exponentials(op, x, y, 1.0)


@lowers(torch.logaddexp2)
def logaddexp2(op: Op, /, input: ir.Value, other: ir.Value) -> ir.Value:
    """As :func:`logaddexp`, of powers of two."""
    x, y = promote(op, input, other)
    return _added_exponentials(op, x, y, math.log(2.0))


def _added_exponentials(op: Op, x: ir.Value, y: ir.Value, base: float) -> ir.Value:
    difference = op.Abs(op.Sub(x, y))
    if base != 1.0:
        difference = op.Mul(difference, base)
    excess = transcendental.log1p(op, op.Exp(op.Neg(difference)))
    if base != 1.0:
        excess = op.Div(excess, base)
    larger = op.Max(x, y)
    infinite = op.And(op.Equal(x, y), op.Equal(op.Abs(x), math.inf))
    return op.Where(infinite, larger, op.Add(larger, excess))


@decomposes(torch.heaviside)
def heaviside(input: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    return torch.where(input == 0, values, (input > 0).to(values.dtype))


def _logarithm_of(input: Any, other: Any) -> torch.Tensor:
    """What a logarithm is taken of, in the dtype that the product has."""
    if not isinstance(other, torch.Tensor):
        dtype = torch.result_type(input, other)
        return torch.tensor(other, dtype=dtype if dtype.is_floating_point else None)
    y: torch.Tensor = other
    exact = y.is_floating_point() or y.is_complex() or not isinstance(input, torch.Tensor)
    return y if exact or not input.is_floating_point() else y.to(input.dtype)


@decomposes(torch.xlogy, torch.special.xlogy)
def xlogy(input: Any, other: Any) -> torch.Tensor:
    """``input * log(other)``, 0 where ``input`` is; a NaN in ``other`` stays one."""
    other = _logarithm_of(input, other)
    product = input * other.log()
    return torch.where((input == 0) & ~other.isnan(), 0.0, product)


@decomposes(torch.special.xlog1py)
def xlog1py(input: Any, other: Any) -> torch.Tensor:
    """``input * log1p(other)``, 0 where ``input`` is; a NaN in ``other`` stays one."""
    other = _logarithm_of(input, other)
    product = input * other.log1p()
    return torch.where((input == 0) & ~other.isnan(), 0.0, product)
