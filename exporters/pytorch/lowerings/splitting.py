"""Tensors taken apart: split, chunk, unbind; and put together again after a write to a piece."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from exporters.pytorch.lowerings.arithmetic import number
from exporters.pytorch.lowerings.shaping import rank
from exporters.pytorch.registry import UnknownCountError, Unlowerable, lowers
from exporters.tracing.graph import INT64_MAX, isinstance_static

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx_ir as ir

    from exporters.tracing.graph import GraphBuilder as Op

T: Any = torch.Tensor
VF: Any = torch._VF
aten = torch.ops.aten
prims = torch.ops.prims


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
    T.split, VF.split, torch.unsafe_split, torch.split_copy,
    put_back=_split_back,
)  # fmt: skip
def split(op: Op, /, tensor: ir.Value, split_size: int, dim: int = 0) -> list[ir.Value]:
    """Lower to ``Split-13``."""
    axis = dim % rank(tensor)
    return _cut(op, tensor, _piece_sizes(tensor, axis, split_size), axis)


@lowers(
    torch.split_with_sizes,
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
    """Lower to ``Split-18`` for halves; more pieces of a dynamic dim are slices, some maybe empty."""
    axis = dim % rank(input)
    total = input.shape.dims[axis]
    if isinstance(total, int):
        return _cut(op, input, _piece_sizes(input, axis, max(1, -(-total // chunks))), axis)
    counts = {max(1, -(-n // max(1, -(-n // chunks)))) for n in world_sizes(input, axis)}
    if counts != {chunks}:
        raise Unlowerable(f"{chunks} chunks are not to be had of every size")
    if chunks == 1:
        return [input]
    if op.opset >= 18 and chunks == 2:  # it refuses more pieces than there is to divide
        return list(op.Split(input, axis=axis, num_outputs=chunks, outputs=chunks))
    size = op.Div(op.Add(op.dim(input, axis), chunks - 1), chunks)
    bounds = [0, *(op.Mul(size, i) for i in range(1, chunks)), INT64_MAX]
    return [op.Slice(input, [a], [b], [axis]) for a, b in itertools.pairwise(bounds)]


def _tensor_split_bounds(op: Op, x: ir.Value, given: Any, axis: int) -> list[Any]:
    """Where the pieces begin and end: ints, or values where the size is known at run time only."""
    total = x.shape.dims[axis]
    if isinstance(given, int) and isinstance(total, int):
        small, extra = divmod(total, given)
        return [i * small + min(i, extra) for i in range(given + 1)]
    if isinstance(given, int):
        size = op.dim(x, axis)
        small, extra = op.Div(size, given), op.Mod(size, given)
        inner = [op.Add(op.Mul(small, i), op.Min(extra, np.asarray([i]))) for i in range(1, given)]
        return [0, *inner, INT64_MAX]
    if not isinstance(total, int) or any(number(p) is None for p in given):
        return [0, *given, INT64_MAX]  # so never a dim's size
    return [0, *(min(p if p >= 0 else max(p + total, 0), total) for p in given), total]


def _tensor_split_back(
    op: Op, base: ir.Value, view: ir.Value, piece: int, given: Any, dim: int = 0
) -> ir.Value:
    axis = dim % rank(base)
    bounds = _tensor_split_bounds(op, base, given, axis)
    return join_back(op, base, view, axis, bounds[piece], bounds[piece + 1])


def _tensor_split(op: Op, x: ir.Value, given: Any, axis: int) -> list[ir.Value]:
    """Lower to ``Split-13``, to slices where the points of division are dynamic or not in order."""
    bounds = _tensor_split_bounds(op, x, given, axis)
    if bounds[-1] == x.shape.dims[axis]:
        sizes = [b - a for a, b in itertools.pairwise(bounds)]
        if min(sizes) >= 0:
            return _cut(op, x, sizes, axis)
    return [op.Slice(x, [a], [b], [axis]) for a, b in itertools.pairwise(bounds)]


@lowers(torch.tensor_split, put_back=_tensor_split_back)
def tensor_split(op: Op, /, input: ir.Value, sections: int, dim: int = 0) -> list[ir.Value]:
    return _tensor_split(op, input, sections, dim % rank(input))


@lowers(torch.tensor_split, put_back=_tensor_split_back)
def tensor_split_at(
    op: Op, /, input: ir.Value, indices: Sequence[int], dim: int = 0
) -> list[ir.Value]:
    return _tensor_split(op, input, indices, dim % rank(input))


def _stack_dim(call: Any, x: ir.Value) -> int:
    """The dim that one of NumPy's ways to split divides."""
    return 2 if call is torch.dsplit else int(call is torch.hsplit and rank(x) > 1)


def _split_as_stacked(call: Any) -> None:
    def back(op: Op, base: ir.Value, view: ir.Value, piece: int, given: Any) -> ir.Value:
        return _tensor_split_back(op, base, view, piece, given, _stack_dim(call, base))

    @lowers(call, put_back=back)
    def sections(op: Op, /, input: ir.Value, sections: int) -> list[ir.Value]:
        return _tensor_split(op, input, sections, _stack_dim(call, input))

    @lowers(call, put_back=back)
    def indices(op: Op, /, input: ir.Value, indices: Sequence[int]) -> list[ir.Value]:
        return _tensor_split(op, input, indices, _stack_dim(call, input))


for _call in (torch.hsplit, torch.vsplit, torch.dsplit):
    _split_as_stacked(_call)


@lowers(torch.tensor_split)
def tensor_split_by(
    op: Op, /, input: ir.Value, tensor_indices_or_sections: ir.Value, dim: int = 0
) -> list[ir.Value]:
    """Lower to ``Slice-13`` between positions that are data."""
    given = tensor_indices_or_sections
    if rank(given) == 0:
        raise Unlowerable("the number of sections is data")
    points = [op.Slice(given, [i], [i + 1]) for i in range(int(given.shape.dims[0]))]
    pieces = [
        op.Slice(input, [a], [b], [dim % rank(input)])
        for a, b in itertools.pairwise([0, *points, INT64_MAX])
    ]
    for piece in pieces:
        piece.meta["unbacked"] = True
    return pieces


def _unbind_back(op: Op, base: ir.Value, view: ir.Value, piece: int, dim: int = 0) -> ir.Value:
    axis = dim % rank(base)
    return join_back(op, base, op.Unsqueeze(view, [axis]), axis, piece, piece + 1)


@lowers(torch.unbind, torch.unbind_copy, put_back=_unbind_back)
def unbind(op: Op, /, input: ir.Value, dim: int = 0) -> list[ir.Value]:
    """Lower to one ``Gather-13`` for each piece."""
    axis = dim % rank(input)
    count = input.shape.dims[axis]
    if not isinstance(count, int):
        raise UnknownCountError("the number of pieces depends on the input's sizes")
    return [op.Gather(input, i, axis=axis) for i in range(count)]
