"""Running sums, products and extremes, and what is made of differences of neighbours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import torch

from exporters.pytorch.dtypes import from_torch_dtype
from exporters.pytorch.lowerings import kernels
from exporters.pytorch.lowerings.reductions import reduce
from exporters.pytorch.lowerings.shaping import rank
from exporters.pytorch.registry import decomposes, lowers

if TYPE_CHECKING:
    from exporters.tracing.graph import GraphBuilder as Op

INT64 = ir.DataType.INT64


def _summable(op: Op, x: ir.Value, dtype: torch.dtype | None) -> ir.Value:
    if dtype is not None:
        return op.cast(x, from_torch_dtype(dtype))
    return x if x.dtype.is_floating_point() else op.cast(x, INT64)


@lowers(torch.cumsum)
def cumsum(op: Op, /, input: ir.Value, dim: int, *, dtype: torch.dtype | None = None) -> ir.Value:
    """Lower to ``CumSum-14``, which rejects rank 0."""
    x = _summable(op, input, dtype)
    return kernels.emit(op, "CumSum", x, np.asarray(dim % rank(x))) if rank(x) else x


@lowers(torch.cumprod)
def cumprod(op: Op, /, input: ir.Value, dim: int, *, dtype: torch.dtype | None = None) -> ir.Value:
    """Products of windows that grow back to the first element."""
    x = _summable(op, input, dtype)
    return _running(op, x, dim, "Mul", "ReduceProd", 1)


def _running(
    op: Op, x: ir.Value, dim: int, combine: str, reduction: str, neutral: Any
) -> ir.Value:
    """Each element combined with all before it.

    Windows double in length until they reach back to the first element; over a dynamic dim, a
    triangle masks what comes later.
    """
    if rank(x) == 0:
        return x
    axis = dim % rank(x)
    total = x.shape.dims[axis]
    if not isinstance(total, int):
        return _reduced_before(op, x, axis, reduction, neutral)
    reach = 1
    while reach < total:
        early = op.Slice(x, [0], [total - reach], [axis])
        late = op.Slice(x, [reach], [total], [axis])
        first = op.Slice(x, [0], [reach], [axis])
        x = op.Concat(first, kernels.emit(op, combine, late, early), axis=axis)
        reach *= 2
    return x


def positions_along(op: Op, x: ir.Value, axis: int) -> ir.Value:
    """0, 1, 2 and so on, as many as a dim is long."""
    total = op.dim(x, axis)
    if isinstance(total, int):
        return op.constant(np.arange(total))
    return op.Range(np.asarray(0), op.Squeeze(total, [0]), np.asarray(1))


def _reduced_before(op: Op, x: ir.Value, axis: int, reduction: str, neutral: Any) -> ir.Value:
    """Reduce, for each place, everything up to it: a row of a square."""
    places = positions_along(op, x, axis)
    after = rank(x) - axis - 1
    later = op.Greater(op.Unsqueeze(places, [0]), op.Unsqueeze(places, [1]))  # [place, other]
    if after:
        later = op.Unsqueeze(later, list(range(2, 2 + after)))
    spread = op.Unsqueeze(x, [axis])
    masked = op.Where(later, op.operand(neutral, x.dtype), spread)
    masked.shape = ir.Shape([None] * (rank(x) + 1))
    return reduce(op, reduction, masked, axis + 1, False)


@lowers(torch.cummax)
def cummax(op: Op, /, input: ir.Value, dim: int) -> tuple[ir.Value, ir.Value]:
    """The running maximum, and where it was last met."""
    return _running_extreme(op, input, dim, "Max")


@lowers(torch.cummin)
def cummin(op: Op, /, input: ir.Value, dim: int) -> tuple[ir.Value, ir.Value]:
    """The running minimum, and where it was last met."""
    return _running_extreme(op, input, dim, "Min")


def _running_extreme(op: Op, x: ir.Value, dim: int, which: str) -> tuple[ir.Value, ir.Value]:
    if rank(x) == 0:
        return x, op.constant(np.asarray(0))
    axis = dim % rank(x)
    dtype = x.dtype
    if dtype == ir.DataType.BOOL:
        x = op.cast(x, ir.DataType.UINT8)
    if dtype == ir.DataType.INT16:
        x = op.cast(x, ir.DataType.INT32)
    values = _running(op, x, axis, which, f"Reduce{which}", worst(x.dtype, which))
    values.shape = x.shape.copy()
    met = op.Equal(x, values)
    if x.dtype.is_floating_point():
        met = op.Or(met, op.IsNaN(x))
    places = positions_along(op, x, axis)
    after = rank(x) - axis - 1
    if after:
        places = op.Unsqueeze(places, list(range(1, 1 + after)))
    found = op.Where(met, places, 0)
    found.shape = x.shape.copy()
    return op.cast(values, dtype), _running(op, found, axis, "Max", "ReduceMax", 0)


def worst(dtype: ir.DataType, which: str) -> Any:
    if dtype.is_floating_point():
        return -np.inf if which == "Max" else np.inf
    limits = np.iinfo(dtype.numpy())
    return limits.min if which == "Max" else limits.max


@lowers(torch.logcumsumexp)
def logcumsumexp(op: Op, /, input: ir.Value, dim: int) -> ir.Value:
    """Lower to ``ReduceLogSumExp-18`` of everything up to each place."""
    if rank(input) == 0:
        return input
    return _reduced_before(op, input, dim % rank(input), "ReduceLogSumExp", -np.inf)


# Neighbours


@decomposes(torch.diff)
def diff(
    input: torch.Tensor,
    n: int = 1,
    dim: int = -1,
    prepend: torch.Tensor | None = None,
    append: torch.Tensor | None = None,
) -> torch.Tensor:
    if n == 0:
        return input.clone()
    parts = [x for x in (prepend, input, append) if x is not None]
    x = torch.cat(parts, dim) if len(parts) > 1 else input
    for _ in range(n):
        size = x.shape[dim]
        if isinstance(size, int) and size == 0:
            return x
        later, earlier = x.narrow(dim, 1, size - 1), x.narrow(dim, 0, size - 1)
        x = later ^ earlier if x.dtype == torch.bool else later - earlier
    return x
