"""Parts of a tensor, and tensors with a part replaced."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import torch

from exporters.pytorch.lowerings import kernels
from exporters.pytorch.lowerings.shaping import permuted, rank, sizes_of
from exporters.pytorch.lowerings.splitting import join_back
from exporters.pytorch.plans import plan
from exporters.pytorch.registry import decomposes, handles, lowers
from exporters.tracing.graph import INT64_MAX, isinstance_static
from exporters.tracing.scalars import TracedScalar

if TYPE_CHECKING:
    from exporters.pytorch.tracer import TorchTracer
    from exporters.tracing.graph import GraphBuilder as Op

T = torch.Tensor
aten = torch.ops.aten


def _narrow_back(
    op: Op, base: ir.Value, view: ir.Value, dim: int, start: Any, length: Any
) -> ir.Value:
    first, end = _narrow_bounds(op, base, dim, start, length)
    return join_back(op, base, view, dim % rank(base), first, end)


def _narrow_bounds(op: Op, x: ir.Value, dim: int, start: Any, length: Any) -> tuple[Any, Any]:
    if isinstance(start, ir.Value) or isinstance(length, ir.Value):
        first = position(op, start)
        end: Any = op.Add(first, position(op, length))
        if isinstance(
            start, ir.Value
        ):  # what begins at the end may end there, not before the first
            end = op.Where(op.And(op.Less(first, 0), op.Equal(end, 0)), INT64_MAX, end)
        return first, end
    if _is_negative(start):
        return start, INT64_MAX if _is_negation(start, length) else start + length
    return start, start + length


def _is_negative(start: Any) -> bool:
    return all(n < 0 for n in _in_worlds(start))


def _is_negation(start: Any, length: Any) -> bool:
    """Whether what begins so far from the end goes on to it."""
    pairs = itertools.product(_in_worlds(start), _in_worlds(length))
    if isinstance_static(start) or isinstance_static(length):
        return all(a == -b for a, b in pairs)
    return all(a == -b for a, b in zip(_in_worlds(start), _in_worlds(length), strict=True))


def _in_worlds(size: Any) -> list[int]:
    return list(size.record.worlds.values()) if hasattr(size, "record") else [size]


@lowers(torch.narrow, torch.narrow_copy, put_back=_narrow_back)
def narrow(op: Op, /, input: ir.Value, dim: int, start: Any, length: Any) -> ir.Value:
    """Lower to ``Slice-13``."""
    first, end = _narrow_bounds(op, input, dim, start, length)
    return op.Slice(input, [first], [end], [dim % rank(input)])


def position(op: Op, index: Any) -> ir.Value:
    """An int, traced int or one-element value as INT64 of shape [1]."""
    if isinstance(index, ir.Value):
        return op.Reshape(op.cast(index, ir.DataType.INT64), [1])
    return op.operand([index])


def _select_back(op: Op, base: ir.Value, view: ir.Value, dim: int, index: Any) -> ir.Value:
    return select_scatter(op, base, view, dim, index)


@lowers(torch.select, torch.select_copy, put_back=_select_back)
def select(op: Op, /, input: ir.Value, dim: int, index: Any) -> ir.Value:
    """Lower to ``Gather-13`` with a scalar position."""
    return op.Gather(input, index, axis=dim % rank(input))


@lowers(torch.select_scatter)
def select_scatter(op: Op, /, input: ir.Value, src: ir.Value, dim: int, index: Any) -> ir.Value:
    """Lower to ``ScatterND-18`` for the first dim; else cut around the place and join anew."""
    axis = dim % rank(input)
    total = input.shape.dims[axis]
    if axis == 0:
        return op.ScatterND(input, position(op, index), op.cast(src, input.dtype))
    part = op.Unsqueeze(op.cast(src, input.dtype), [axis])
    if isinstance_static(index) and not isinstance(index, ir.Value):
        if index < 0 and isinstance(total, int):
            index += total
        end: Any = INT64_MAX if index == -1 else index + 1
        return join_back(op, input, part, axis, index, end)
    first = op.Mod(position(op, index), op.dim(input, axis))
    return join_back(op, input, part, axis, first, op.Add(first, 1))


def _slice_bounds(x: ir.Value, axis: int, start: Any, end: Any) -> tuple[Any, Any]:
    first = 0 if start is None else start
    last = INT64_MAX if end is None else end
    total = x.shape.dims[axis]
    if isinstance(total, int) and isinstance_static(first) and isinstance_static(last):
        first = max(first + total, 0) if first < 0 else min(first, total)
        last = max(last + total, 0) if last < 0 else min(last, total)
        last = max(first, last)
    return first, last


@lowers(aten.slice, aten.slice_copy)
def slice_dim(
    op: Op, /, self: ir.Value, dim: int = 0, start: Any = None, end: Any = None, step: Any = 1
) -> ir.Value:
    """Lower to ``Slice-13``."""
    axis = dim % rank(self)
    first, last = _slice_bounds(self, axis, start, end)
    if isinstance_static(step) and step == 1:
        total = self.shape.dims[axis]
        whole = isinstance_static(first) and first == 0 and isinstance_static(last)
        if whole and last in (total, INT64_MAX):
            return self
        return op.Slice(self, [first], [last], [axis])
    return op.Slice(self, [first], [last], [axis], [step])


@decomposes(torch.slice_scatter)
def slice_scatter(
    input: torch.Tensor, src: torch.Tensor, dim: int = 0, start: Any = None, end: Any = None,
    step: Any = 1,
) -> torch.Tensor:  # fmt: skip
    result = input.clone()
    result[(slice(None),) * (dim % input.dim()) + (slice(start, end, step),)] = src
    return result


# Diagonals and triangles


@lowers(torch.diagonal, torch.diagonal_copy)
def diagonal(
    op: Op, /, input: ir.Value, offset: int = 0, dim1: int = 0, dim2: int = 1
) -> ir.Value:
    """Every ``columns + 1``-th element of the flattened matrix, by ``Slice-13``."""
    dims = rank(input)
    first, second = dim1 % dims, dim2 % dims
    lead = [i for i in range(dims) if i not in (first, second)]
    sizes = sizes_of(op, input)
    rows, columns = sizes[first], sizes[second]
    x = permuted(op, input, [*lead, first, second])
    outer = [sizes[i] for i in lead]
    if isinstance(rows, int) and isinstance(columns, int):
        start: Any = offset if offset >= 0 else -offset * columns
        length = max(
            0, min(rows, columns - offset) if offset >= 0 else min(rows + offset, columns)
        )
        step: Any = columns + 1
        end: Any = max(start + (length - 1) * step + 1, start) if length else start
        total: Any = rows * columns
        if not length:
            start = end = 0
    else:
        wide = op.operand([columns]) if isinstance(columns, int) else columns
        start = offset if offset >= 0 else op.Mul(wide, -offset)
        step = op.Add(wide, 1)
        end = op.Mul(op.Max(op.Sub(wide, offset), 0), wide)  # where the diagonal leaves the matrix
        if isinstance(rows, int) and rows + min(offset, 0) <= 0:
            end = 0
        total = op.Mul(wide, rows)
    flat = op.reshape(x, [*outer, total], copied=[lead == list(range(len(lead)))] * len(lead))
    return op.Slice(flat, [start], [end], [len(outer)], [step])


@lowers(torch.linalg.diagonal)
def linalg_diagonal(
    op: Op,
    /,
    A: ir.Value,
    *,
    offset: int = 0,
    dim1: int = -2,
    dim2: int = -1,
) -> ir.Value:
    return diagonal(op, A, offset, dim1, dim2)


@decomposes(torch.diagonal_scatter)
def diagonal_scatter(
    input: torch.Tensor, src: torch.Tensor, offset: int = 0, dim1: int = 0, dim2: int = 1
) -> torch.Tensor:
    result = input.clone()
    result.diagonal(offset, dim1, dim2).copy_(src)
    return result


@decomposes(torch.diag)
def diag(input: torch.Tensor, diagonal: int = 0) -> torch.Tensor:
    return input.diag_embed(diagonal) if input.dim() == 1 else input.diagonal(diagonal).clone()


@decomposes(torch.diag_embed)
def diag_embed(
    input: torch.Tensor, offset: int = 0, dim1: int = -2, dim2: int = -1
) -> torch.Tensor:
    """Where row and column differ by the offset, the element; else 0."""
    dims = input.dim() + 1
    first, second = dim1 % dims, dim2 % dims
    if first > second:
        first, second, offset = second, first, -offset
    padded = torch.nn.functional.pad(input, (0, abs(offset))) if offset else input
    size = padded.shape[-1]
    rows = torch.arange(size, device=input.device)
    mask = rows == rows.unsqueeze(-1) + offset
    along = padded.unsqueeze(-1 if offset >= 0 else -2)
    matrix = torch.where(mask, along, torch.zeros([], dtype=input.dtype))
    return matrix.movedim((-2, -1), (first, second))


@decomposes(torch.trace)
def trace(input: torch.Tensor) -> torch.Tensor:
    return input.diagonal().sum()


def _triangle(op: Op, x: ir.Value, diagonal: Any, *, upper: bool) -> ir.Value:
    return kernels.emit(op, "Trilu", x, diagonal, upper=int(upper))


@lowers(torch.tril)
def tril(op: Op, /, input: ir.Value, diagonal: int = 0) -> ir.Value:
    """Lower to ``Trilu-14``."""
    return _triangle(op, input, diagonal, upper=False)


@lowers(torch.triu)
def triu(op: Op, /, input: ir.Value, diagonal: int = 0) -> ir.Value:
    """Lower to ``Trilu-14``."""
    return _triangle(op, input, diagonal, upper=True)


# Windows


@lowers(T.unfold, torch.unfold_copy)
def unfold(op: Op, /, self: ir.Value, dimension: int, size: int, step: int) -> ir.Value:
    """Windows that touch are a ``Reshape``; others are a ``Gather`` of all their positions."""
    if rank(self) == 0:
        return (
            op.Reshape(self, [1])
            if size
            else op.Reshape(op.Slice(op.Reshape(self, [1]), [0], [0]), [0])
        )
    axis = dimension % rank(self)
    total = self.shape.dims[axis]
    if isinstance(total, int):
        starts: Any = np.arange(0, total - size + 1, step)[:, None]
        places: Any = starts + np.arange(size)
    else:
        last = op.Squeeze(op.Sub(op.dim(self, axis), size - 1), [0])
        starts = op.Range(np.asarray(0), last, np.asarray(step))
        places = op.Add(op.Unsqueeze(starts, [1]), np.arange(size))
    windows = op.Gather(self, places, axis=axis)
    rest = range(axis + 2, rank(self) + 1)
    return permuted(op, windows, [*range(axis + 1), *rest, axis + 1])


@handles(torch.as_strided, T.as_strided)
def as_strided(tracer: TorchTracer, func: Any, args: Any, kwargs: Any) -> Any:
    """Positions in the flat storage: strides are no part of the graph."""
    tensor = args[0] if args else kwargs["input"]
    record = tracer.record(tensor)
    if record is None:
        return func(*args, **kwargs)
    base = tensor if tensor._base is None else tensor._base
    owner = tracer.record(base)
    if owner is None or not base.is_contiguous():
        return tracer.call(func, plan(func), args, kwargs)
    dynamic = any(isinstance(x, TracedScalar) for x in tracer.leaves(args, kwargs))
    if not dynamic and not tensor.is_complex():
        with torch._C.DisableTorchFunction():
            result = func(*args, **kwargs)
        tracer.adopt(result, base, owner)
        return result
    with tracer:
        return _strided(base, tensor.storage_offset(), *args[1:], **kwargs)


def _strided(
    base: torch.Tensor, start: int, size: Any, stride: Any, storage_offset: Any = None
) -> torch.Tensor:
    places = torch.as_tensor(start if storage_offset is None else storage_offset)
    for count, step in zip(size, stride, strict=True):
        places = places.unsqueeze(-1) + torch.arange(count) * step
    return base.reshape(-1)[places]


@decomposes(torch.as_strided_copy)
def as_strided_copy(
    input: torch.Tensor, size: Any, stride: Any, storage_offset: Any = None
) -> torch.Tensor:
    return input.as_strided(size, stride, storage_offset).clone()


@decomposes(torch.as_strided_scatter)
def as_strided_scatter(
    input: torch.Tensor, src: torch.Tensor, size: Any, stride: Any, storage_offset: Any = None
) -> torch.Tensor:
    if input.is_complex():
        pairs = [*size, 2], [*(2 * step for step in stride), 1], 2 * (storage_offset or 0)
        made = _with_strided(torch.view_as_real(input), torch.view_as_real(src), *pairs)
        return torch.view_as_complex(made)
    return _with_strided(input, src, size, stride, storage_offset)


def _with_strided(x: torch.Tensor, new: torch.Tensor, *geometry: Any) -> torch.Tensor:
    result = x.clone()
    result.as_strided(*geometry).copy_(new)
    return result
