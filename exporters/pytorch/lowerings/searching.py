"""Search in sorted sequences, distinct elements, counts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import torch

from exporters.pytorch.dtypes import promote
from exporters.pytorch.lowerings import kernels
from exporters.pytorch.lowerings.reductions import reduce
from exporters.pytorch.lowerings.shaping import rank, reshape_like
from exporters.pytorch.registry import decomposes, lowers
from exporters.tracing.graph import INT64_MAX

if TYPE_CHECKING:
    from exporters.tracing.graph import GraphBuilder as Op

VF: Any = torch._VF
INT64 = ir.DataType.INT64


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


@lowers(torch.ops.aten._unique)
def unique_pair(
    op: Op, /, self: ir.Value, sorted: object = True, return_inverse: bool = False
) -> tuple[ir.Value, ...]:
    return unique(op, self, sorted, return_inverse)[:2]


@lowers(torch._unique2)
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
    return _distinct(values, reshape_like(op, inverse, input), counts, 0, 1)


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
    later, earlier = op.Slice(x, [1], [INT64_MAX], [axis]), op.Slice(x, [0], [-1], [axis])
    differs = op.Not(op.Equal(later, earlier))
    differs.shape = ir.Shape([None] * rank(x))
    others = [a for a in range(rank(x)) if a != axis]
    if others:
        differs = reduce(op, "ReduceMax", differs, others, False)
    first = op.Slice(op.Expand(True, op.Shape(x, start=axis, end=axis + 1)), [0], [1])
    kept = op.Concat(first, differs, axis=0)
    values = kernels.emit(op, "Compress", x, kept, axis=axis)
    inverse = op.Sub(op.CumSum(op.cast(kept, INT64), np.asarray(0)), 1)
    starts = op.Squeeze(op.NonZero(kept), [0])
    ends = op.Concat(
        op.Slice(starts, [1], [INT64_MAX]), op.Shape(x, start=axis, end=axis + 1), axis=0
    )
    if dim is None:
        inverse = reshape_like(op, inverse, input)
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
    low, high = torch.as_tensor(min, dtype=x.dtype), torch.as_tensor(max, dtype=x.dtype)
    if min == max and x.shape[0] != 0:
        low, high = x.min(), x.max()
    same = low == high
    low, high = torch.where(same, low - 1, low), torch.where(same, high + 1, high)
    place = ((x - low) * bins / (high - low)).floor().clamp(max=bins - 1)
    inside = (x >= low) & (x <= high)
    hits = (place.unsqueeze(-1) == torch.arange(bins, dtype=x.dtype)) & inside.unsqueeze(-1)
    return hits.to(x.dtype).sum(0)


def _edges(input: torch.Tensor, bins: Any, range: Any) -> torch.Tensor:
    """The bounds of the bins: given, or spread evenly over the range of the values."""
    if isinstance(bins, torch.Tensor):
        return bins
    if range is not None and list(range) != [0, 0]:
        low, high = (torch.as_tensor(r, dtype=input.dtype) for r in range)
    elif 0 in input.shape:
        low, high = torch.zeros([], dtype=input.dtype), torch.ones([], dtype=input.dtype)
    else:
        low, high = input.min(), input.max()
    same = low == high
    low, high = torch.where(same, low - 0.5, low), torch.where(same, high + 0.5, high)
    return torch.linspace(low, high, bins + 1, dtype=input.dtype)


@decomposes(torch.histogram)
def histogram(
    input: torch.Tensor,
    bins: Any,
    *,
    range: Any = None,
    weight: torch.Tensor | None = None,
    density: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Each element counts, or weighs, in the bin that it falls into; the last bin is closed."""
    x = input.reshape(-1)
    edges = _edges(x, bins, range)
    above, below = x.unsqueeze(-1) >= edges[:-1], x.unsqueeze(-1) < edges[1:]
    last = torch.arange(edges.shape[0] - 1) == edges.shape[0] - 2
    inside = above & (below | (last & (x.unsqueeze(-1) == edges[-1])))
    hits = inside.to(x.dtype)
    if weight is not None:
        hits = torch.where(inside, weight.reshape(-1, 1), 0)
    counts = hits.sum(0)
    if density:
        counts = counts / counts.sum() / edges.diff()
    return counts, edges
