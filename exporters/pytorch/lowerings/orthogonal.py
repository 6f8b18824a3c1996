"""``torch.special``: orthogonal polynomials, by their three-term recurrences in float64."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnx_ir as ir
import torch

from exporters.pytorch.dtypes import promote, promoted_dtype
from exporters.pytorch.lowerings.arithmetic import number
from exporters.pytorch.lowerings.shaping import broadcast_sizes
from exporters.pytorch.lowerings.whole_numbers import repeat_while
from exporters.pytorch.registry import lowers

if TYPE_CHECKING:
    from collections.abc import Callable

    from exporters.tracing.graph import GraphBuilder as Op

special = torch.special
_DOUBLE = ir.DataType.DOUBLE

# (op, k, x, current, previous) -> next; k is a number or a float64 value.
Recurrence = Any


def _chebyshev(op: Op, k: Any, x: ir.Value, current: ir.Value, previous: ir.Value) -> ir.Value:
    return op.Sub(op.Mul(op.Mul(x, 2.0), current), previous)


def _hermite_h(op: Op, k: Any, x: ir.Value, current: ir.Value, previous: ir.Value) -> ir.Value:
    return op.Mul(op.Sub(op.Mul(x, current), op.Mul(previous, k)), 2.0)


def _hermite_he(op: Op, k: Any, x: ir.Value, current: ir.Value, previous: ir.Value) -> ir.Value:
    return op.Sub(op.Mul(x, current), op.Mul(previous, k))


def _laguerre(op: Op, k: Any, x: ir.Value, current: ir.Value, previous: ir.Value) -> ir.Value:
    odd = op.Add(op.Mul(op.operand(k, _DOUBLE), 2.0), 1.0)
    summed = op.Sub(op.Mul(op.Sub(odd, x), current), op.Mul(previous, k))
    return op.Div(summed, op.Add(op.operand(k, _DOUBLE), 1.0))


def _legendre(op: Op, k: Any, x: ir.Value, current: ir.Value, previous: ir.Value) -> ir.Value:
    odd = op.Add(op.Mul(op.operand(k, _DOUBLE), 2.0), 1.0)
    summed = op.Sub(op.Mul(op.Mul(odd, x), current), op.Mul(previous, k))
    return op.Div(summed, op.Add(op.operand(k, _DOUBLE), 1.0))


# The recurrence, and slope and offset of the polynomial of degree 1.
_FAMILIES: dict[str, tuple[Recurrence, float, float]] = {
    "chebyshev_polynomial_t": (_chebyshev, 1, 0),
    "chebyshev_polynomial_u": (_chebyshev, 2, 0),
    "chebyshev_polynomial_v": (_chebyshev, 2, -1),
    "chebyshev_polynomial_w": (_chebyshev, 2, 1),
    "hermite_polynomial_h": (_hermite_h, 2, 0),
    "hermite_polynomial_he": (_hermite_he, 1, 0),
    "laguerre_polynomial_l": (_laguerre, -1, 1),
    "legendre_polynomial_p": (_legendre, 1, 0),
}


def _polynomials(
    recurrence: Recurrence, slope: float, offset: float, *, shifted: bool
) -> Callable[..., ir.Value]:
    def lowering(op: Op, /, x: Any, n: Any) -> ir.Value:
        dtype = promoted_dtype(x, n)
        result = dtype if dtype.is_floating_point() else ir.DataType.FLOAT
        (x,) = promote(op, x, to=_DOUBLE)
        if shifted:
            x = op.Sub(op.Mul(x, 2.0), 1.0)
        first = op.Add(op.Mul(x, float(slope)), float(offset))
        degree = number(n)
        if degree is not None:
            return op.cast(_of_degree(op, int(degree), x, first, recurrence), result)
        (degrees,) = promote(op, n, to=ir.DataType.INT64)
        return op.cast(_of_degrees(op, degrees, x, first, recurrence), result)

    return lowering


def _of_degree(
    op: Op, degree: int, x: ir.Value, first: ir.Value, recurrence: Recurrence
) -> ir.Value:
    if degree < 1:
        return op.Expand(op.operand(1.0 if degree == 0 else 0.0, _DOUBLE), op.shape(x))
    previous, current = op.operand(1.0, _DOUBLE), first
    for k in range(1, degree):
        previous, current = current, recurrence(op, float(k), x, current, previous)
    return current


def _of_degrees(
    op: Op, degrees: ir.Value, x: ir.Value, first: ir.Value, recurrence: Recurrence
) -> ir.Value:
    """One degree per element: a loop up to the highest, in which lower ones stand still."""
    sizes = broadcast_sizes(op, [x, degrees])
    wide = [op.Expand(v, sizes) if sizes else v for v in (degrees, first)]
    one = op.Expand(op.operand(1.0, _DOUBLE), sizes) if sizes else op.operand(1.0, _DOUBLE)
    start = op.Where(op.GreaterOrEqual(wide[0], 1), wide[1], one)

    def goes_on(k: ir.Value, previous: ir.Value, current: ir.Value) -> ir.Value:
        higher = op.cast(op.Greater(wide[0], k), ir.DataType.INT64)
        return op.Greater(op.ReduceSum(higher, keepdims=0), 0)

    def step(k: ir.Value, previous: ir.Value, current: ir.Value) -> list[ir.Value]:
        following = recurrence(op, op.cast(k, _DOUBLE), x, current, previous)
        moves = op.Greater(wide[0], k)
        after = op.Where(moves, following, current), op.Where(moves, current, previous)
        return [op.Add(k, 1), after[1], after[0]]

    made = repeat_while(op, goes_on, step, [op.operand(1), one, start])[2]
    return op.Where(op.Less(wide[0], 0), 0.0, made)


for _name, (_recurrence, _slope, _offset) in _FAMILIES.items():
    lowers(getattr(special, _name))(_polynomials(_recurrence, _slope, _offset, shifted=False))
    if _name.startswith("chebyshev"):
        lowers(getattr(special, f"shifted_{_name}"))(
            _polynomials(_recurrence, _slope, _offset, shifted=True)
        )
