"""Comparisons, extremes of two operands, truth values, bits, choices."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import torch

from exporters.pytorch.dtypes import promote, promoted_dtype
from exporters.pytorch.lowerings import kernels
from exporters.pytorch.lowerings.arithmetic import floored_quotient, number
from exporters.pytorch.registry import decomposes, lowers

if TYPE_CHECKING:
    from collections.abc import Callable

    from exporters.tracing.graph import GraphBuilder as Op

T: Any = torch.Tensor
prims = torch.ops.prims
BOOL = ir.DataType.BOOL

_ORDERINGS = {
    "Less": (torch.lt, torch.less, prims.lt),
    "LessOrEqual": (torch.le, torch.less_equal, prims.le),
    "Greater": (torch.gt, torch.greater, prims.gt),
    "GreaterOrEqual": (torch.ge, torch.greater_equal, prims.ge),
}


def _ordering(op_type: str) -> Callable[..., ir.Value]:
    def lowering(op: Op, /, input: Any, other: Any) -> ir.Value:
        x, y = promote(op, input, other)
        if x.dtype == BOOL:
            x, y = op.cast(x, ir.DataType.UINT8), op.cast(y, ir.DataType.UINT8)
        return op.emit(op_type, x, y)

    return lowering


for _op_type, _calls in _ORDERINGS.items():
    lowers(*_calls)(_ordering(_op_type))


@lowers(torch.eq, prims.eq)
def eq(op: Op, /, input: Any, other: Any) -> ir.Value:
    """Lower to ``Equal-19``; against True or False to the truth itself."""
    if isinstance(input, ir.Value) and input.dtype == BOOL and isinstance(other, bool):
        return input if other else op.Not(input)
    return op.Equal(*promote(op, input, other))


@lowers(torch.ne, torch.not_equal, prims.ne)
def ne(op: Op, /, input: Any, other: Any) -> ir.Value:
    """Lower to ``Not(Equal-19)``, or ``Xor`` for booleans."""
    x, y = promote(op, input, other)
    return op.Xor(x, y) if x.dtype == BOOL else op.Not(op.Equal(x, y))


@decomposes(torch.isclose)
def isclose(
    input: torch.Tensor,
    other: torch.Tensor,
    rtol: float = 1e-05,
    atol: float = 1e-08,
    equal_nan: bool = False,
) -> torch.Tensor:
    close = input == other
    if input.dtype == torch.bool:
        input, other = input.to(torch.get_default_dtype()), other.to(torch.get_default_dtype())
    if not input.is_floating_point() and rtol == 0 and atol == 0:
        return close
    if input.is_floating_point() and equal_nan:
        close = close | (input.isnan() & other.isnan())
    allowed = atol + (rtol * other).abs()
    error = (input - other).abs()
    return close | (error.isfinite() & (error <= allowed))


# Extremes


def _extreme(op: Op, which: str, input: Any, other: Any) -> ir.Value:
    x, y = promote(op, input, other)
    if x.dtype == BOOL:
        return op.Or(x, y) if which == "Max" else op.And(x, y)
    return kernels.emit(op, which, x, y)


@lowers(torch.maximum, prims.maximum)
def maximum(op: Op, /, input: ir.Value, other: ir.Value) -> ir.Value:
    """Lower to ``Max-13``, which keeps NaN as torch does."""
    return _extreme(op, "Max", input, other)


@lowers(torch.minimum, prims.minimum)
def minimum(op: Op, /, input: ir.Value, other: ir.Value) -> ir.Value:
    """Lower to ``Min-13``, which keeps NaN as torch does."""
    return _extreme(op, "Min", input, other)


@lowers(torch.max)
def max_other(op: Op, /, input: ir.Value, other: ir.Value) -> ir.Value:
    return _extreme(op, "Max", input, other)


@lowers(torch.min)
def min_other(op: Op, /, input: ir.Value, other: ir.Value) -> ir.Value:
    return _extreme(op, "Min", input, other)


def _extreme_number(op: Op, which: str, input: ir.Value, other: ir.Value) -> ir.Value:
    """A NaN beside a number gives way to it."""
    x, y = promote(op, input, other)
    if not x.dtype.is_floating_point():
        return _extreme(op, which, x, y)
    chosen = op.Where(op.IsNaN(y), x, op.emit(which, x, y))
    return op.Where(op.IsNaN(x), y, chosen)


@lowers(torch.fmax, prims.fmax)
def fmax(op: Op, /, input: ir.Value, other: ir.Value) -> ir.Value:
    return _extreme_number(op, "Max", input, other)


@lowers(torch.fmin, prims.fmin)
def fmin(op: Op, /, input: ir.Value, other: ir.Value) -> ir.Value:
    return _extreme_number(op, "Min", input, other)


@lowers(torch.clamp, torch.clip)
def clamp(op: Op, /, input: ir.Value, min: Any = None, max: Any = None) -> ir.Value:
    """Lower to ``Clip-13`` for two numbers, else to ``Max-13`` and ``Min-13``.

    An absent bound of ``Clip`` is the largest finite number, so that infinities would not pass.
    """
    bounds = [b for b in (min, max) if b is not None]
    dtype = promoted_dtype(input, *bounds)
    x = op.cast(input, dtype)
    if len(bounds) == 2 and not any(isinstance(b, ir.Value) or _is_nan(b) for b in bounds):
        return kernels.emit(op, "Clip", x, min, max)
    if max is None and dtype.is_floating_point() and number(min) == 0:
        return op.Relu(x)
    if min is not None:
        x = kernels.emit(op, "Max", x, *promote(op, min, to=dtype))
    if max is not None:
        x = kernels.emit(op, "Min", x, *promote(op, max, to=dtype))
    return x


def _is_nan(bound: Any) -> bool:
    given = number(bound)
    return given is not None and math.isnan(given)


@lowers(torch.clamp_min)
def clamp_min(op: Op, /, input: ir.Value, min: Any) -> ir.Value:
    return clamp(op, input, min)


@lowers(torch.clamp_max)
def clamp_max(op: Op, /, input: ir.Value, max: Any) -> ir.Value:
    return clamp(op, input, None, max)


# Truth values and bits


@lowers(torch.logical_not)
def logical_not(op: Op, /, input: ir.Value) -> ir.Value:
    if input.dtype == BOOL:
        return op.Not(input)
    return op.Equal(input, 0)


_LOGICAL = {torch.logical_and: "And", torch.logical_or: "Or", torch.logical_xor: "Xor"}
_BITWISE = {
    "And": (torch.bitwise_and, T.__and__, prims.bitwise_and),
    "Or": (torch.bitwise_or, T.__or__, prims.bitwise_or),
    "Xor": (torch.bitwise_xor, T.__xor__, prims.bitwise_xor),
}


def _logical(op_type: str) -> Callable[..., ir.Value]:
    def lowering(op: Op, /, input: ir.Value, other: ir.Value) -> ir.Value:
        return op.emit(op_type, op.cast(input, BOOL), op.cast(other, BOOL))

    return lowering


def _bitwise(op_type: str) -> Callable[..., ir.Value]:
    def lowering(op: Op, /, input: Any, other: Any) -> ir.Value:
        x, y = promote(op, input, other)
        if x.dtype == BOOL:
            return op.emit(op_type, x, y)
        if op.opset >= 18:
            return op.emit(f"Bitwise{op_type}", x, y)
        return _of_bits(op, lambda a, b: op.emit(op_type, a, b), x, y)

    return lowering


for _call, _op_type in _LOGICAL.items():
    lowers(_call)(_logical(_op_type))
for _op_type, _keys in _BITWISE.items():
    lowers(*_keys)(_bitwise(_op_type))


def _of_bits(op: Op, combine: Callable[..., ir.Value], *operands: ir.Value) -> ir.Value:
    """Combine numbers bit by bit, along a new last dim: before opset 18."""
    lowest = np.iinfo(np.int64).min
    places = np.left_shift(np.int64(1), np.arange(63, dtype=np.int64))
    signs, bits = [], []
    for x in operands:
        wide = op.cast(x, ir.DataType.INT64)
        signs.append(op.Less(wide, 0))
        rest = op.Unsqueeze(op.Where(signs[-1], op.Sub(wide, lowest), wide), [-1])
        bits.append(op.cast(op.Mod(op.Div(rest, places), 2), BOOL))
    # ORT 1.32 CPU's ReduceSum adds INT64 in float64, its MatMul does not.
    size = op.MatMul(op.cast(combine(*bits), ir.DataType.INT64), places)
    total = op.Add(size, op.Where(combine(*signs), np.int64(lowest), 0))
    return op.cast(total, operands[0].dtype)


@lowers(torch.bitwise_not, prims.bitwise_not)
def bitwise_not(op: Op, /, input: ir.Value) -> ir.Value:
    if input.dtype == BOOL:
        return op.Not(input)
    if op.opset >= 18:
        return op.BitwiseNot(input)
    ones = 255 if input.dtype == ir.DataType.UINT8 else -1
    return op.Sub(op.operand(ones, input.dtype), input)  # two's complement


def _shift(op: Op, x: ir.Value, y: ir.Value, count: int) -> tuple[ir.Value, ir.Value]:
    """Powers of two to shift by, and where the shift is less than ``count``."""
    powers = (np.uint64(1) << np.arange(count, dtype=np.uint64)).astype(x.dtype.numpy())
    valid = op.And(op.GreaterOrEqual(y, 0), op.Less(y, count))
    places = op.cast(kernels.emit(op, "Where", valid, y, 0), ir.DataType.INT64)
    return op.Gather(powers, places, axis=0), valid


@lowers(torch.bitwise_left_shift, T.__lshift__, prims.shift_left)
def bitwise_left_shift(op: Op, /, input: Any, other: Any) -> ir.Value:
    """Multiply by a power of two; ``BitShift-11`` shifts unsigned numbers only."""
    x, y = promote(op, input, other)
    if x.dtype.is_floating_point():
        return op.Mul(x, op.Pow(op.operand(2.0, x.dtype), y))
    width = 8 * x.dtype.itemsize
    shift = number(other)
    if shift is not None:
        return op.Mul(x, 1 << int(shift) if 0 <= shift < width else 0)
    power, valid = _shift(op, x, y, width)
    return kernels.emit(op, "Where", valid, op.Mul(x, power), 0)


@lowers(torch.bitwise_right_shift, T.__rshift__, prims.shift_right_arithmetic)
def bitwise_right_shift(op: Op, /, input: Any, other: Any) -> ir.Value:
    """Divide by a power of two, rounding down; ``BitShift-11`` shifts unsigned numbers only."""
    x, y = promote(op, input, other)
    if x.dtype.is_floating_point():
        return op.Div(x, op.Pow(op.operand(2.0, x.dtype), y))
    signed = x.dtype != ir.DataType.UINT8
    count = 8 * x.dtype.itemsize - signed
    spent = op.Sub(0, op.cast(op.Less(x, 0), x.dtype)) if signed else op.Mul(x, 0)
    shift = number(other)
    if shift is not None:
        return floored_quotient(op, x, 1 << int(shift)) if 0 <= shift < count else spent
    power, valid = _shift(op, x, y, count)
    return kernels.emit(op, "Where", valid, floored_quotient(op, x, power), spent)


# Choices


def choose(op: Op, condition: ir.Value, x: ir.Value, y: ir.Value) -> ir.Value:
    """``Where-16``, or logic for booleans, of which ONNX Runtime's CPU kernel knows nothing."""
    if x.dtype != BOOL:
        return kernels.emit(op, "Where", condition, x, y)
    if (known := _known_truth(y)) is not None:
        return op.Or(op.Not(condition), x) if known else op.And(condition, x)
    if (known := _known_truth(x)) is not None:
        return op.Or(condition, y) if known else op.And(op.Not(condition), y)
    return op.Or(op.And(condition, x), op.And(op.Not(condition), y))


def _known_truth(x: ir.Value) -> bool | None:
    if x.const_value is None or len(x.shape.dims) > 0:
        return None
    return bool(x.const_value.numpy())


@lowers(torch.where, prims.where)
def where(op: Op, /, condition: ir.Value, input: Any, other: Any) -> ir.Value:
    """Lower to ``Where-16``."""
    x, y = promote(op, input, other)
    return choose(op, op.cast(condition, BOOL), x, y)


@lowers(T.where)
def where_method(op: Op, /, input: ir.Value, condition: ir.Value, other: Any) -> ir.Value:
    return where(op, condition, input, other)


@lowers(torch.masked_fill)
def masked_fill(op: Op, /, input: ir.Value, mask: ir.Value, value: Any) -> ir.Value:
    """Lower to ``Where-16``."""
    (fill,) = promote(op, value, to=input.dtype)
    return choose(op, mask, fill, input)
