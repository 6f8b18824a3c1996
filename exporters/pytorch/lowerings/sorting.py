"""Order: sort, top-k, medians and quantiles, search in sorted sequences, distinct elements."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import torch

from exporters.pytorch.dtypes import promote
from exporters.pytorch.lowerings import kernels
from exporters.pytorch.lowerings.reductions import reduce
from exporters.pytorch.lowerings.shaping import rank
from exporters.pytorch.registry import decomposes, lowers

if TYPE_CHECKING:
    from exporters.tracing.graph import GraphBuilder as Op

VF: Any = torch._VF
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


# Search


@lowers(torch.searchsorted)
def searchsorted(
    op: Op,
    /,
    sorted_sequence: ir.Value,
    input: Any,
    *,
    out_int32: bool = False,
    right: bool = False,
    side: str | None = None,
    sorter: ir.Value | None = None,
) -> ir.Value:
    """Count the boundaries that do not lie beyond; a NaN lies beyond them all."""
    sequence = sorted_sequence
    if sorter is not None:
        sequence = op.GatherElements(sequence, sorter, axis=-1)
    bounds, values = promote(op, sequence, input)
    if rank(sequence) > 1:
        bounds = op.Unsqueeze(bounds, [-2])
    beyond = "Greater" if right or side == "right" else "GreaterOrEqual"
    passed = op.Not(op.emit(beyond, bounds, op.Unsqueeze(values, [-1])))
    dtype = ir.DataType.INT32 if out_int32 else INT64
    return op.ReduceSum(op.cast(passed, dtype), [-1], keepdims=0)


@lowers(torch.bucketize)
def bucketize(
    op: Op,
    /,
    input: Any,
    boundaries: ir.Value,
    *,
    out_int32: bool = False,
    right: bool = False,
) -> ir.Value:
    return searchsorted(op, boundaries, input, out_int32=out_int32, right=right)


@decomposes(torch.isin)
def isin(
    elements: Any, test_elements: Any, *, assume_unique: object = False, invert: bool = False
) -> torch.Tensor:
    if not isinstance(elements, torch.Tensor):
        found = (test_elements == elements).any()
    elif not isinstance(test_elements, torch.Tensor):
        found = elements == test_elements
    else:
        found = (elements.unsqueeze(-1) == test_elements.reshape(-1)).any(-1)
    return ~found if invert else found


# Distinct elements and counts


@lowers(torch._unique2, torch.ops.aten._unique)
def unique(
    op: Op,
    /,
    input: ir.Value,
    sorted: object = True,
    return_inverse: bool = False,
    return_counts: bool = False,
) -> tuple[ir.Value, ...]:
    """Lower to ``Unique-11``."""
    flat = op.Reshape(input, [-1])
    values, _, inverse, counts = kernels.emit(op, "Unique", flat, sorted=1, outputs=4)
    return _distinct(values, op.Reshape(inverse, op.shape(input)), counts, 0, 1)


@lowers(VF.unique_dim)
def unique_dim(
    op: Op,
    /,
    input: ir.Value,
    dim: int,
    sorted: object = True,
    return_inverse: bool = False,
    return_counts: bool = False,
) -> tuple[ir.Value, ...]:
    """Lower to ``Unique-11`` of slices."""
    axis = dim % rank(input)
    values, _, inverse, counts = kernels.emit(op, "Unique", input, axis=axis, sorted=1, outputs=4)
    return _distinct(values, inverse, counts, axis, rank(input))


def _distinct(
    values: ir.Value, inverse: ir.Value, counts: ir.Value, axis: int, dims: int
) -> tuple[ir.Value, ...]:
    for x in (values, counts):
        x.meta["unbacked"] = True
    values.shape = ir.Shape([None] * dims)
    counts.shape = ir.Shape([None])
    return values, inverse, counts


@lowers(VF.unique_consecutive)
def unique_consecutive(
    op: Op,
    /,
    input: ir.Value,
    return_inverse: bool = False,
    return_counts: bool = False,
    dim: int | None = None,
) -> tuple[ir.Value, ...]:
    """Keep what differs from its predecessor."""
    x = op.Reshape(input, [-1]) if dim is None else input
    axis = 0 if dim is None else dim % rank(x)
    total = op.dim(x, axis) if dim is not None else op.Size(x)
    if isinstance(total, int) and total == 0:
        nothing = op.constant(np.zeros(0, np.int64))
        return x, nothing, nothing
    later, earlier = op.Slice(x, [1], [2**63 - 1], [axis]), op.Slice(x, [0], [-1], [axis])
    differs = op.Not(op.Equal(later, earlier))
    differs.shape = ir.Shape([None] * rank(x))
    others = [a for a in range(rank(x)) if a != axis]
    if others:
        differs = reduce(op, "ReduceMax", differs, others, False)
    first = op.Slice(op.Expand(True, op.Shape(x, start=axis, end=axis + 1)), [0], [1])
    kept = op.Concat(first, differs, axis=0)
    values = op.Compress(x, kept, axis=axis)
    inverse = op.Sub(op.CumSum(op.cast(kept, INT64), np.asarray(0)), 1)
    starts = op.Squeeze(op.NonZero(kept), [0])
    ends = op.Concat(
        op.Slice(starts, [1], [2**63 - 1]), op.Shape(x, start=axis, end=axis + 1), axis=0
    )
    if dim is None:
        inverse = op.Reshape(inverse, op.shape(input))
    return _distinct(values, inverse, op.Sub(ends, starts), axis, rank(x))


@decomposes(torch.unique_consecutive)
def unique_consecutive_results(
    input: torch.Tensor,
    return_inverse: bool = False,
    return_counts: bool = False,
    dim: int | None = None,
) -> Any:
    output, inverse, counts = VF.unique_consecutive(
        input, return_inverse=return_inverse, return_counts=return_counts, dim=dim
    )
    wanted = [(True, output), (return_inverse, inverse), (return_counts, counts)]
    chosen = tuple(x for wants, x in wanted if wants)
    return chosen if len(chosen) > 1 else output


@decomposes(torch.bincount)
def bincount(
    input: torch.Tensor, weights: torch.Tensor | None = None, minlength: int = 0
) -> torch.Tensor:
    size = torch.cat([input + 1, torch.as_tensor([minlength], dtype=input.dtype)]).max().item()
    if weights is None:
        weights = torch.ones_like(input, dtype=torch.int64)
    elif weights.dtype != torch.float32:
        weights = weights.double()
    return torch.zeros(size, dtype=weights.dtype).scatter_add(0, input.long(), weights)


@decomposes(torch.histc)
def histc(input: torch.Tensor, bins: int = 100, min: float = 0, max: float = 0) -> torch.Tensor:
    x = input.reshape(-1)
    x = x.float() if x.dtype == torch.float16 else x
    low, high = torch.as_tensor(min, dtype=x.dtype), torch.as_tensor(max, dtype=x.dtype)
    if min == max and x.shape[0] != 0:
        low, high = x.min(), x.max()
    same = low == high
    low, high = torch.where(same, low - 1, low), torch.where(same, high + 1, high)
    place = ((x - low) * bins / (high - low)).floor().clamp(max=bins - 1)
    inside = (x >= low) & (x <= high)
    hits = (place.unsqueeze(-1) == torch.arange(bins, dtype=x.dtype)) & inside.unsqueeze(-1)
    return hits.to(x.dtype).sum(0).to(input.dtype)
