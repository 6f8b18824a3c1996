"""Tensors joined and taken apart: cat, stack, split, repeat, roll, flip."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import torch

from exporters.pytorch.dtypes import promoted_dtype
from exporters.pytorch.handlers import sequence_sizes
from exporters.pytorch.lowerings.shaping import atleast_2d, atleast_3d, expand_to, rank
from exporters.pytorch.registry import Unlowerable, decomposes, lowers
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


# Pieces


def join_back(
    op: Op, base: ir.Value, piece: ir.Value, axis: int, start: Any, end: Any
) -> ir.Value:
    """``base`` with ``piece`` in place of what is between ``start`` and ``end`` on an axis."""
    parts = [piece]
    if not (isinstance_static(start) and start == 0):
        parts.insert(0, op.Slice(base, [0], [start], [axis]))
    total = base.shape.dims[axis]
    if not (isinstance_static(end) and end in (INT64_MAX, total)):
        parts.append(op.Slice(base, [end], [INT64_MAX], [axis]))
    return op.Concat(*parts, axis=axis) if len(parts) > 1 else piece


def _bounds(sizes: Sequence[Any]) -> list[Any]:
    """Where pieces of these sizes begin and end."""
    bounds: list[Any] = [0]
    for size in sizes:
        bounds.append(bounds[-1] + size)
    return bounds


def world_sizes(x: ir.Value, axis: int) -> tuple[int, ...]:
    """The size of a dim in every world; one number when it is static."""
    size = x.shape.dims[axis]
    if isinstance(size, int):
        return (size,)
    known = x.meta.get("sizes")
    if known is None:
        raise Unlowerable(f"the size of dim {axis} is known at run time only")
    return tuple(known[axis])


def _piece_sizes(x: ir.Value, axis: int, size: Any) -> list[Any]:
    """The sizes of ``torch.split``'s pieces; -1 is the last one's when it depends on the input."""
    totals = world_sizes(x, axis)
    steps = (
        tuple(size.record.worlds.values()) if hasattr(size, "record") else (size,) * len(totals)
    )
    if len(totals) < len(steps):
        totals = totals * len(steps)
    counts = {max(1, -(-t // s)) if s else 1 for t, s in zip(totals, steps, strict=True)}
    if len(counts) > 1:
        raise Unlowerable(f"the number of pieces differs between sizes: {sorted(counts)}")
    (count,) = counts
    total = x.shape.dims[axis]
    if isinstance(total, int) and isinstance_static(size):
        return [min(size, total - i * size) for i in range(count)]
    return [size] * (count - 1) + [-1]


def _cut(op: Op, x: ir.Value, sizes: Sequence[Any], axis: int) -> list[ir.Value]:
    """Lower to ``Split-13``, or to slices when the last size is the rest."""
    if len(sizes) == 1:
        return [x]
    if not isinstance_static(sizes[-1]) or sizes[-1] != -1:
        return list(op.Split(x, list(sizes), axis=axis, outputs=len(sizes)))
    bounds = [*_bounds(sizes[:-1]), INT64_MAX]
    return [op.Slice(x, [a], [b], [axis]) for a, b in itertools.pairwise(bounds)]


def _split_back(
    op: Op, base: ir.Value, view: ir.Value, piece: int, split_size: Any, dim: int = 0
) -> ir.Value:
    axis = dim % rank(base)
    sizes = (
        split_size
        if isinstance(split_size, list | tuple)
        else _piece_sizes(base, axis, split_size)
    )
    bounds = _bounds(sizes)
    last = piece == len(sizes) - 1
    return join_back(op, base, view, axis, bounds[piece], INT64_MAX if last else bounds[piece + 1])


@lowers(
    T.split, torch.functional.split, VF.split, torch.unsafe_split, torch.split_copy,
    put_back=_split_back,
)  # fmt: skip
def split(op: Op, /, tensor: ir.Value, split_size: int, dim: int = 0) -> list[ir.Value]:
    """Lower to ``Split-13``."""
    axis = dim % rank(tensor)
    return _cut(op, tensor, _piece_sizes(tensor, axis, split_size), axis)


@lowers(
    T.split, torch.functional.split, VF.split, torch.split_with_sizes,
    torch.unsafe_split_with_sizes, torch.split_with_sizes_copy, put_back=_split_back,
)  # fmt: skip
def split_with_sizes(
    op: Op, /, input: ir.Value, split_sizes: Sequence[int], dim: int = 0
) -> list[ir.Value]:
    """Lower to ``Split-13``."""
    return _cut(op, input, split_sizes, dim % rank(input))


def _chunk_back(
    op: Op, base: ir.Value, view: ir.Value, piece: int, chunks: int, dim: int = 0
) -> ir.Value:
    axis = dim % rank(base)
    total = base.shape.dims[axis]
    size: Any = None
    if isinstance(total, int):
        size = max(1, -(-total // chunks))
    else:
        size = op.Div(op.Add(op.dim(base, axis), chunks - 1), chunks)
    start = piece * size if isinstance(size, int) else op.Mul(size, piece)
    end: Any = (piece + 1) * size if isinstance(size, int) else op.Mul(size, piece + 1)
    if piece == chunks - 1:
        end = INT64_MAX
    return join_back(op, base, view, axis, start, end)


@lowers(torch.chunk, torch.unsafe_chunk, put_back=_chunk_back)
def chunk(op: Op, /, input: ir.Value, chunks: int, dim: int = 0) -> list[ir.Value]:
    """Lower to ``Split-18``, which divides as torch does when told how many pieces are wanted."""
    axis = dim % rank(input)
    total = input.shape.dims[axis]
    if isinstance(total, int):
        return _cut(op, input, _piece_sizes(input, axis, max(1, -(-total // chunks))), axis)
    counts = {max(1, -(-n // max(1, -(-n // chunks)))) for n in world_sizes(input, axis)}
    if counts != {chunks}:
        raise Unlowerable(f"{chunks} chunks are not to be had of every size")
    if chunks == 1:
        return [input]
    if op.opset >= 18:
        return list(op.Split(input, axis=axis, num_outputs=chunks, outputs=chunks))
    size = op.Div(op.Add(op.dim(input, axis), chunks - 1), chunks)
    bounds = [0, *(op.Mul(size, i) for i in range(1, chunks)), INT64_MAX]
    return [op.Slice(input, [a], [b], [axis]) for a, b in itertools.pairwise(bounds)]


def _tensor_split_sizes(x: ir.Value, given: Any, axis: int) -> list[Any]:
    total = x.shape.dims[axis]
    if not isinstance(total, int):
        raise Unlowerable("pieces of a dynamic size")
    if isinstance(given, int):
        small, extra = divmod(total, given)
        return [small + 1] * extra + [small] * (given - extra)
    points = [min(p if p >= 0 else max(p + total, 0), total) for p in given]
    return [max(b - a, 0) for a, b in zip([0, *points], [*points, total], strict=True)]


def _tensor_split_back(
    op: Op, base: ir.Value, view: ir.Value, piece: int, given: Any, dim: int = 0
) -> ir.Value:
    axis = dim % rank(base)
    bounds = _bounds(_tensor_split_sizes(base, given, axis))
    return join_back(op, base, view, axis, bounds[piece], bounds[piece + 1])


@lowers(torch.tensor_split, put_back=_tensor_split_back)
def tensor_split(
    op: Op, /, input: ir.Value, indices_or_sections: int | Sequence[int], dim: int = 0
) -> list[ir.Value]:
    """Lower to ``Split-13``, to slices where the points of division are not in order."""
    axis = dim % rank(input)
    sizes = _tensor_split_sizes(input, indices_or_sections, axis)
    if sum(sizes) == input.shape.dims[axis]:
        return _cut(op, input, sizes, axis)
    points = [0, *list(indices_or_sections), INT64_MAX]
    return [op.Slice(input, [a], [b], [axis]) for a, b in itertools.pairwise(points)]


def _unbind_back(op: Op, base: ir.Value, view: ir.Value, piece: int, dim: int = 0) -> ir.Value:
    axis = dim % rank(base)
    return join_back(op, base, op.Unsqueeze(view, [axis]), axis, piece, piece + 1)


@lowers(torch.unbind, torch.unbind_copy, put_back=_unbind_back)
def unbind(op: Op, /, input: ir.Value, dim: int = 0) -> list[ir.Value]:
    """Lower to one ``Gather-13`` for each piece."""
    axis = dim % rank(input)
    count = input.shape.dims[axis]
    if not isinstance(count, int):
        raise Unlowerable("the number of pieces depends on the input's sizes")
    return [op.Gather(input, i, axis=axis) for i in range(count)]


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
        if repeats.numel() != 1 or repeats.dim() > 1:
            return input.index_select(
                dim, torch.repeat_interleave(repeats, output_size=output_size)
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
