"""Tensors joined, repeated, reordered: cat, stack, repeat, roll, flip."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import torch

from exporters.pytorch.dtypes import promoted_dtype
from exporters.pytorch.handlers import sequence_sizes
from exporters.pytorch.lowerings.shaping import atleast_2d, atleast_3d, expand_to, rank
from exporters.pytorch.registry import decomposes, lowers
from exporters.tracing.graph import INT64_MAX, isinstance_static

if TYPE_CHECKING:
    from collections.abc import Sequence

    from exporters.tracing.graph import GraphBuilder as Op

T: Any = torch.Tensor
VF: Any = torch._VF
aten = torch.ops.aten
prims = torch.ops.prims


@lowers(torch.cat, torch.concat, torch.concatenate, prims.cat)
def cat(op: Op, /, tensors: Sequence[ir.Value], dim: int = 0) -> ir.Value:
    """Lower to ``Concat-13``; torch lets empty rank-1 tensors join anything."""
    dims = max(rank(x) for x in tensors)
    kept = [x for x in tensors if rank(x) == dims]
    dtype = promoted_dtype(*tensors)
    parts = [op.cast(x, dtype) for x in kept]
    return op.Concat(*parts, axis=dim % dims) if len(parts) > 1 else parts[0]


@lowers(torch.stack)
def stack(op: Op, /, tensors: Sequence[ir.Value], dim: int = 0) -> ir.Value:
    """Lower to ``Concat-13`` along a new dim."""
    dtype = promoted_dtype(*tensors)
    axis = dim % (rank(tensors[0]) + 1)
    parts = [op.Unsqueeze(op.cast(x, dtype), [axis]) for x in tensors]
    return op.Concat(*parts, axis=axis) if len(parts) > 1 else parts[0]


@decomposes(torch.hstack)
def hstack(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    parts = [x.reshape(1) if x.dim() == 0 else x for x in tensors]
    return torch.cat(parts, dim=0 if parts[0].dim() == 1 else 1)


@decomposes(torch.vstack, torch.row_stack)
def vstack(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.cat([atleast_2d(x) for x in tensors], dim=0)


@decomposes(torch.dstack)
def dstack(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.cat([atleast_3d(x) for x in tensors], dim=2)


@decomposes(torch.column_stack)
def column_stack(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.cat([x.reshape(-1, 1) if x.dim() <= 1 else x for x in tensors], dim=1)


@decomposes(torch.functional.cartesian_prod)
def cartesian_prod(*tensors: torch.Tensor) -> torch.Tensor:
    if len(tensors) == 1:
        return tensors[0]
    grids = torch.meshgrid(*tensors, indexing="ij")
    return torch.stack([g.reshape(-1) for g in grids], dim=1)


@decomposes(VF.cartesian_prod)
def cartesian_prod_of_list(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    return cartesian_prod(*tensors)


# Repetition and order


@lowers(T.repeat, torch.ops.aten.repeat)
def repeat(op: Op, /, input: ir.Value, *repeats: int) -> ir.Value:
    """Lower to ``Tile-13``, or to ``Expand-13`` where only dims of size 1 are repeated."""
    times = sequence_sizes(repeats)
    extra = len(times) - rank(input)
    ones = [isinstance_static(n) and n == 1 for n in times]
    if all(ones) and extra == 0:
        return input
    if all(
        one or axis < extra or input.shape.dims[axis - extra] == 1 for axis, one in enumerate(ones)
    ):
        return expand_to(op, input, times)
    return op.Tile(op.Unsqueeze(input, list(range(extra))) if extra else input, times)


@decomposes(torch.tile)
def tile(input: torch.Tensor, *dims: Any) -> torch.Tensor:
    times = sequence_sizes(dims)
    return input.repeat([1] * (input.dim() - len(times)) + times)


@decomposes(torch.repeat_interleave)
def repeat_interleave(
    input: torch.Tensor, repeats: Any, dim: int | None = None, *, output_size: Any = None
) -> torch.Tensor:
    """Equal counts are a broadcast, others a gather."""
    if dim is None:
        input, dim = input.reshape(-1), 0
    if input.dim() == 0:
        input = input.reshape(1)
    dim = dim % input.dim()
    if isinstance(repeats, torch.Tensor):
        count = repeats.shape[0] if repeats.dim() else 1
        if hasattr(count, "record") or count != 1:
            counts = repeats.expand(input.shape[dim])
            return input.index_select(
                dim, torch.repeat_interleave(counts, output_size=output_size)
            )
        repeats = repeats.item()
    shape = list(input.shape)
    wide = input.unsqueeze(dim + 1)
    wide = wide.expand([*shape[: dim + 1], repeats, *shape[dim + 1 :]])
    return wide.reshape([*shape[:dim], shape[dim] * repeats, *shape[dim + 1 :]])


@lowers(torch.repeat_interleave)
def repeated_positions(op: Op, /, repeats: ir.Value, *, output_size: Any = None) -> ir.Value:
    """Each position as often as ``repeats`` says: a place counts the ends at or before it."""
    ends = op.CumSum(op.cast(repeats, ir.DataType.INT64), np.asarray(0))
    total = op.ReduceSum(op.cast(repeats, ir.DataType.INT64), [0], keepdims=0)
    places = op.Unsqueeze(op.Range(np.asarray(0), total, np.asarray(1)), [1])
    passed = op.cast(op.LessOrEqual(ends, places), ir.DataType.INT64)
    result = op.ReduceSum(passed, [1], keepdims=0)
    result.shape = ir.Shape([None])
    result.meta["unbacked"] = True
    return result


@lowers(torch.flip, prims.rev)
def flip(op: Op, /, input: ir.Value, dims: Sequence[int]) -> ir.Value:
    """Lower to ``Slice-13`` with negative steps."""
    axes = [d % rank(input) for d in dims] if rank(input) else []
    count = len(axes)
    return (
        op.Slice(input, [-1] * count, [-INT64_MAX] * count, axes, [-1] * count) if axes else input
    )


@lowers(T.flip)
def flip_method(op: Op, /, input: ir.Value, *dims: int) -> ir.Value:
    return flip(op, input, sequence_sizes(dims))


@decomposes(torch.fliplr)
def fliplr(input: torch.Tensor) -> torch.Tensor:
    return input.flip([1])


@decomposes(torch.flipud)
def flipud(input: torch.Tensor) -> torch.Tensor:
    return input.flip([0])


def _is_flat_roll(input: torch.Tensor, shifts: Any, dims: Any = ()) -> bool:
    return not isinstance(dims, int) and not dims


@decomposes(torch.roll, when=_is_flat_roll)
def flat_roll(input: torch.Tensor, shifts: Any, dims: Any = ()) -> torch.Tensor:
    return input.reshape(-1).roll(shifts, 0).reshape(input.shape)


@lowers(torch.roll)
def roll(op: Op, /, input: ir.Value, shifts: Any, dims: Any = ()) -> ir.Value:
    """Cut each dim in two and swap the parts."""
    moves = [shifts] if isinstance(shifts, int) else list(shifts)
    axes = [dims] if isinstance(dims, int) else list(dims)
    if rank(input) == 0:
        return input
    for shift, axis in zip(moves, axes, strict=True):
        input = _rolled(op, input, shift, axis % rank(input))
    return input


def _rolled(op: Op, x: ir.Value, shift: Any, axis: int) -> ir.Value:
    total = x.shape.dims[axis]
    if isinstance(total, int) and isinstance_static(shift):
        shift = shift % total if total else 0
        if shift == 0:
            return x
        point: Any = total - shift
    else:  # the shift may exceed the size; a size of 0 has no remainder
        size = op.Max(op.dim(x, axis), 1) if not isinstance(total, int) else max(total, 1)
        amount = op.operand([shift]) if not isinstance(shift, ir.Value) else shift
        point = op.Mod(op.Neg(amount), size)
    rolled = op.Concat(
        op.Slice(x, [point], [INT64_MAX], [axis]), op.Slice(x, [0], [point], [axis]), axis=axis
    )
    rolled.shape = x.shape.copy()
    return rolled
