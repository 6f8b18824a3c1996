"""Order: sort, top-k, medians, modes and quantiles."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import torch

from exporters.pytorch.lowerings import kernels
from exporters.pytorch.lowerings.reductions import reduce
from exporters.pytorch.lowerings.shaping import rank
from exporters.pytorch.registry import decomposes, lowers

if TYPE_CHECKING:
    from exporters.tracing.graph import GraphBuilder as Op

INT64 = ir.DataType.INT64


def _top(
    op: Op, x: ir.Value, count: Any, axis: int, *, largest: bool, ordered: bool = True
) -> tuple[ir.Value, ir.Value]:
    """``TopK-11``: equal elements stay in order, NaN is the largest, as in torch."""
    values, places = kernels.emit(
        op, "TopK", x, [count], axis=axis, largest=int(largest), sorted=int(ordered), outputs=2
    )
    known = list(x.shape.dims)
    known[axis] = count if isinstance(count, int) and not hasattr(count, "record") else None
    values.shape = places.shape = ir.Shape(known)
    return values, places


@lowers(torch.topk)
def topk(
    op: Op,
    /,
    input: ir.Value,
    k: int,
    dim: int = -1,
    largest: bool = True,
    sorted: bool = True,
) -> tuple[ir.Value, ir.Value]:
    """Lower to ``TopK-11``."""
    if rank(input) == 0:
        return input, op.constant(np.asarray(0))
    return _top(op, input, k, dim % rank(input), largest=largest, ordered=sorted)


@lowers(torch.sort)
def sort(
    op: Op,
    /,
    input: ir.Value,
    dim: int = -1,
    descending: bool = False,
    stable: object = False,
) -> tuple[ir.Value, ir.Value]:
    """Lower to ``TopK-11`` of all elements, which keeps equal ones in order."""
    if rank(input) == 0:
        return input, op.constant(np.asarray(0))
    axis = dim % rank(input)
    return _top(op, input, op.dim(input, axis), axis, largest=descending)


@lowers(torch.sort)
def stable_sort(
    op: Op, /, input: ir.Value, *, stable: object, dim: int = -1, descending: bool = False
) -> tuple[ir.Value, ir.Value]:
    return sort(op, input, dim, descending)


@lowers(torch.argsort)
def argsort(
    op: Op, /, input: ir.Value, dim: int = -1, descending: bool = False, stable: object = False
) -> ir.Value:
    """Lower to the positions of ``TopK-11``."""
    return sort(op, input, dim, descending)[1]


@lowers(torch.msort)
def msort(op: Op, /, input: ir.Value) -> ir.Value:
    return sort(op, input, 0)[0]


# Order statistics


def _picked(
    op: Op, values: ir.Value, places: ir.Value, at: Any, axis: int, keepdim: bool
) -> tuple[ir.Value, ir.Value]:
    """The elements of a sorted axis at one position."""
    index = np.asarray([at]) if keepdim else np.asarray(at)
    return op.Gather(values, index, axis=axis), op.Gather(places, index, axis=axis)


@lowers(torch.kthvalue)
def kthvalue(
    op: Op, /, input: ir.Value, k: int, dim: int = -1, keepdim: bool = False
) -> tuple[ir.Value, ir.Value]:
    """The last of the ``k`` smallest."""
    if rank(input) == 0:
        return input, op.constant(np.asarray(0))
    axis = dim % rank(input)
    values, places = _top(op, input, k, axis, largest=False)
    return _picked(op, values, places, -1, axis, keepdim)


def _middle(
    op: Op, input: ir.Value, dim: int, keepdim: bool, *, ignore_nan: bool
) -> tuple[ir.Value, ir.Value]:
    """The lower middle of the sorted elements; the first NaN where one counts."""
    if rank(input) == 0:
        return input, op.constant(np.asarray(0))
    axis = dim % rank(input)
    total = op.dim(input, axis)
    if not input.dtype.is_floating_point() and isinstance(total, int):
        values, places = _top(op, input, (total + 1) // 2, axis, largest=False)
        return _picked(op, values, places, -1, axis, keepdim)
    values, places = _top(op, input, total, axis, largest=False)
    if input.dtype.is_floating_point():
        numbers = op.cast(op.Not(op.IsNaN(input)), INT64)
        count: ir.Value = reduce(op, "ReduceSum", numbers, axis, True)
    else:
        count = op.operand(total)
    at: ir.Value = op.Max(op.Div(op.Sub(count, 1), 2), 0)  # of the numbers, which NaNs follow
    if input.dtype.is_floating_point() and not ignore_nan:
        at = op.Where(op.Less(count, total), count, at)
    shape = [1 if a == axis else op.dim(input, a) for a in range(rank(input))]
    at = op.Expand(at, shape)
    picked = [op.GatherElements(x, at, axis=axis) for x in (values, places)]
    first, second = picked if keepdim else [op.Squeeze(x, [axis]) for x in picked]
    return first, second


@lowers(torch.median)
def median(
    op: Op, /, input: ir.Value, dim: int, keepdim: bool = False
) -> tuple[ir.Value, ir.Value]:
    """The lower middle of ``TopK-11``."""
    return _middle(op, input, dim, keepdim, ignore_nan=False)


@lowers(torch.nanmedian)
def nanmedian(
    op: Op, /, input: ir.Value, dim: int, keepdim: bool = False
) -> tuple[ir.Value, ir.Value]:
    """The lower middle of ``TopK-11``, NaNs left out."""
    return _middle(op, input, dim, keepdim, ignore_nan=True)


@decomposes(torch.median)
def median_all(input: torch.Tensor) -> torch.Tensor:
    return input.reshape(-1).median(0).values


@decomposes(torch.nanmedian)
def nanmedian_all(input: torch.Tensor) -> torch.Tensor:
    return input.reshape(-1).nanmedian(0).values


@lowers(torch.mode)
def mode(
    op: Op, /, input: ir.Value, dim: int = -1, keepdim: bool = False
) -> tuple[ir.Value, ir.Value]:
    """The smallest of the most frequent elements, and where it stands last."""
    if rank(input) == 0:
        return input, op.constant(np.asarray(0))
    axis = dim % rank(input)
    values, places = sort(op, input, axis)
    same = op.Equal(op.Unsqueeze(values, [axis]), op.Unsqueeze(values, [axis + 1]))
    same.shape = ir.Shape([None] * (rank(input) + 1))
    counts = reduce(op, "ReduceSum", op.cast(same, INT64), axis + 1, False)
    counts.shape = ir.Shape([None] * rank(input))
    first = op.ArgMax(counts, axis=axis, keepdims=1)  # of the sorted: the smallest
    often = reduce(op, "ReduceMax", counts, axis, True)
    last = op.Sub(op.Add(first, often), 1)
    picked = [op.GatherElements(x, last, axis=axis) for x in (values, places)]
    value, place = picked if keepdim else [op.Squeeze(x, [axis]) for x in picked]
    return value, place


def _quantile(
    input: torch.Tensor, q: Any, dim: int | None, keepdim: bool, interpolation: str, nan: bool
) -> torch.Tensor:
    """Between the two sorted elements that the quantile falls on."""
    q = q if isinstance(q, torch.Tensor) else torch.tensor(q, dtype=input.dtype)
    x, axis = (input.reshape(-1), 0) if dim is None else (input, dim)
    if x.dim() == 0:
        x = x.reshape(1)
    axis = axis % x.dim()
    x = x.movedim(axis, -1).sort(-1).values
    numbers = (~x.isnan()).sum(-1, keepdim=True)
    last = (numbers - 1).to(x.dtype) if nan else torch.as_tensor(x.shape[-1] - 1, dtype=x.dtype)
    at = q.reshape([-1] + [1] * x.dim()) * last.clamp(min=0)
    if interpolation in ("lower", "higher", "nearest"):
        step = {"lower": torch.floor, "higher": torch.ceil, "nearest": torch.round}[interpolation]
        result = _element(x, step(at))
    else:
        below, above = _element(x, at.floor()), _element(x, at.ceil())
        weight = 0.5 if interpolation == "midpoint" else at - at.floor()
        result = torch.lerp(below, above, weight)
    if not nan:
        result = torch.where(numbers < x.shape[-1], float("nan"), result)
    result = result.squeeze(-1)
    if keepdim:
        shape = [1] * input.dim() if dim is None else list(input.shape)
        if dim is not None and input.dim():
            shape[dim] = 1
        result = result.reshape([-1, *shape])
    return result.squeeze(0) if q.dim() == 0 else result


def _element(x: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """Elements of the last dim, one for each leading place of ``at``."""
    places = at.long().expand([at.shape[0], *x.shape[:-1], 1])
    return x.unsqueeze(0).expand([at.shape[0], *x.shape]).gather(-1, places)


@decomposes(torch.quantile)
def quantile(
    input: torch.Tensor,
    q: Any,
    dim: int | None = None,
    keepdim: bool = False,
    *,
    interpolation: str = "linear",
) -> torch.Tensor:
    return _quantile(input, q, dim, keepdim, interpolation, nan=False)


@decomposes(torch.nanquantile)
def nanquantile(
    input: torch.Tensor,
    q: Any,
    dim: int | None = None,
    keepdim: bool = False,
    *,
    interpolation: str = "linear",
) -> torch.Tensor:
    return _quantile(input, q, dim, keepdim, interpolation, nan=True)
