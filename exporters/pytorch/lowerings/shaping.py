"""Views and copies of other shape."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnx_ir as ir
import torch

from exporters.pytorch.dtypes import from_torch_dtype, promote, promoted_dtype
from exporters.pytorch.handlers import sequence_sizes
from exporters.pytorch.registry import decomposes, lowers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from exporters.tracing.graph import GraphBuilder as Op

T = torch.Tensor


def rank(x: ir.Value) -> int:
    """The number of dims, which the tracer always knows."""
    assert x.shape is not None
    return len(x.shape.dims)


def _reshape_back(op: Op, base: ir.Value, view: ir.Value, *_: object, **__: object) -> ir.Value:
    return op.Reshape(view, op.shape(base))


def reshape_to(op: Op, x: ir.Value, sizes: Sequence[Any]) -> ir.Value:
    """``Reshape`` that copies sizes from ``x`` where they are known to be the same."""
    trace_same = op.same_size
    copied = [axis < rank(x) and trace_same(size, x, axis) for axis, size in enumerate(sizes)]
    return op.reshape(x, sizes, copied=copied)


@lowers(T.view, put_back=_reshape_back)
def view(op: Op, /, input: ir.Value, *size: int | Sequence[int]) -> ir.Value:
    return reshape_to(op, input, sequence_sizes(size))


@lowers(torch.reshape, put_back=_reshape_back)
def reshape(op: Op, /, input: ir.Value, shape: Sequence[int]) -> ir.Value:
    return reshape_to(op, input, shape)


@lowers(T.reshape, put_back=_reshape_back)
def reshape_method(op: Op, /, input: ir.Value, *shape: int) -> ir.Value:
    return reshape_to(op, input, sequence_sizes(shape))


@lowers(T.view_as, T.reshape_as, put_back=_reshape_back)
def view_as(op: Op, /, input: ir.Value, other: ir.Value) -> ir.Value:
    return op.Reshape(input, op.shape(other))


@lowers(torch.flatten, put_back=_reshape_back)
def flatten(op: Op, /, input: ir.Value, start_dim: int = 0, end_dim: int = -1) -> ir.Value:
    dims = rank(input)
    if dims == 0:
        return op.Reshape(input, [1])
    start, end = start_dim % dims, end_dim % dims
    if start == end:
        return input
    sizes = [op.dim(input, axis) for axis in range(dims)]
    inner = sizes[start : end + 1]
    known = [s for s in inner if isinstance(s, int)]
    outer_static = all(isinstance(s, int) and s != 0 for s in (*sizes[:start], *sizes[end + 1 :]))
    if len(known) == len(inner):
        total: Any = 1
        for s in known:
            total *= s
        copied = [True] * start
        return op.reshape(input, [*sizes[:start], total, *sizes[end + 1 :]], copied=copied)
    if outer_static:
        return op.Reshape(input, [*sizes[:start], -1, *sizes[end + 1 :]])
    parts = op.Shape(input, start=start, end=end + 1)
    total = op.ReduceProd(parts, keepdims=1)
    copied = [True] * start
    return op.reshape(input, [*sizes[:start], total, *sizes[end + 1 :]], copied=copied)


@lowers(torch.unflatten, put_back=_reshape_back)
def unflatten(op: Op, /, input: ir.Value, dim: int, sizes: Sequence[int]) -> ir.Value:
    axis = dim % rank(input)
    before = [op.dim(input, i) for i in range(axis)]
    after = [op.dim(input, i) for i in range(axis + 1, rank(input))]
    return op.reshape(input, [*before, *sizes, *after], copied=[True] * axis)


@lowers(torch.unsqueeze, put_back=_reshape_back)
def unsqueeze(op: Op, /, input: ir.Value, dim: int) -> ir.Value:
    return op.Unsqueeze(input, [dim % (rank(input) + 1)])


@lowers(torch.squeeze, put_back=_reshape_back)
def squeeze(op: Op, /, input: ir.Value) -> ir.Value:
    axes = [i for i, d in enumerate(input.shape.dims) if d == 1]
    return op.Squeeze(input, axes) if axes else input


@lowers(torch.squeeze, put_back=_reshape_back)
def squeeze_dim(op: Op, /, input: ir.Value, dim: Any) -> ir.Value:
    dims = [dim] if isinstance(dim, int) else list(dim)
    axes = [d % rank(input) for d in dims if rank(input) and input.shape.dims[d] == 1]
    return op.Squeeze(input, axes) if axes else input


def _transpose_back(op: Op, base: ir.Value, view: ir.Value, *dims: Any, **named: Any) -> ir.Value:
    order = _order(rank(base), *dims, **named)
    return op.Transpose(view, perm=[order.index(i) for i in range(len(order))])


def _order(dims: int, dim0: int, dim1: int) -> list[int]:
    order = list(range(dims))
    if dims:
        order[dim0], order[dim1] = order[dim1], order[dim0]
    return order


@lowers(torch.transpose, torch.swapaxes, torch.swapdims, put_back=_transpose_back)
def transpose(op: Op, /, input: ir.Value, dim0: int, dim1: int) -> ir.Value:
    order = _order(rank(input), dim0, dim1)
    return input if order == sorted(order) else op.Transpose(input, perm=order)


def _permute_back(op: Op, base: ir.Value, view: ir.Value, *dims: Any, **named: Any) -> ir.Value:
    given = sequence_sizes(dims or (named["dims"],))
    order = [d % rank(base) for d in given]
    return op.Transpose(view, perm=[order.index(i) for i in range(len(order))])


@lowers(torch.permute, put_back=_permute_back)
def permute(op: Op, /, input: ir.Value, dims: Sequence[int]) -> ir.Value:
    order = [d % rank(input) for d in dims]
    return input if order == sorted(order) else op.Transpose(input, perm=order)


@lowers(T.permute, put_back=_permute_back)
def permute_method(op: Op, /, input: ir.Value, *dims: int) -> ir.Value:
    return permute(op, input, sequence_sizes(dims))


def _reverse_back(op: Op, base: ir.Value, view: ir.Value) -> ir.Value:
    return op.Transpose(view)


@lowers(torch.t, T.T.__get__, put_back=_reverse_back)
def t(op: Op, /, input: ir.Value) -> ir.Value:
    return op.Transpose(input) if rank(input) > 1 else input


def _last_back(op: Op, base: ir.Value, view: ir.Value) -> ir.Value:
    return transpose(op, view, -2, -1)


@lowers(T.mT.__get__, T.mH.__get__, T.H.__get__, torch.adjoint, put_back=_last_back)
def matrix_transpose(op: Op, /, input: ir.Value) -> ir.Value:
    return transpose(op, input, -2, -1)


@lowers(T.expand)
def expand(op: Op, /, input: ir.Value, *size: int, implicit: object = False) -> ir.Value:
    return expand_to(op, input, sequence_sizes(size))


def expand_to(op: Op, input: ir.Value, sizes: Sequence[Any]) -> ir.Value:
    """``Expand-13``, where a 1 keeps the size as torch's -1 does."""
    offset = len(sizes) - rank(input)
    target = []
    for axis, size in enumerate(sizes):
        keeps = isinstance(size, int) and not hasattr(size, "record") and size == -1
        same = axis >= offset and op.same_size(size, input, axis - offset)
        target.append(1 if keeps or same else size)
    if all(isinstance(s, int) and not hasattr(s, "record") and s == 1 for s in target) and offset == 0:
        return input
    return op.Expand(input, target)


@lowers(T.expand_as)
def expand_as(op: Op, /, input: ir.Value, other: ir.Value) -> ir.Value:
    return op.Expand(input, op.shape(other))


@lowers(torch.broadcast_to)
def broadcast_to(op: Op, /, input: ir.Value, size: Sequence[int]) -> ir.Value:
    return expand_to(op, input, size)


@lowers(torch.cat, torch.concat, torch.concatenate)
def cat(op: Op, /, tensors: Sequence[ir.Value], dim: int = 0) -> ir.Value:
    """Lower to ``Concat-13``; torch lets empty rank-1 tensors join anything."""
    dims = max(rank(x) for x in tensors)
    kept = [x for x in tensors if rank(x) == dims] if dims > 1 else list(tensors)
    dtype = promoted_dtype(*tensors)
    parts = [op.cast(x, dtype) for x in kept]
    return op.Concat(*parts, axis=dim % dims) if len(parts) > 1 else parts[0]


@lowers(torch.stack)
def stack(op: Op, /, tensors: Sequence[ir.Value], dim: int = 0) -> ir.Value:
    dtype = promoted_dtype(*tensors)
    axis = dim % (rank(tensors[0]) + 1)
    return op.Concat(*(op.Unsqueeze(op.cast(x, dtype), [axis]) for x in tensors), axis=axis)


@lowers(torch.split)
def split(op: Op, /, tensor: ir.Value, split_size_or_sections: int, dim: int = 0) -> list[ir.Value]:
    return _pieces(op, tensor, split_size_or_sections, dim)


def _pieces(op: Op, x: ir.Value, size: int, dim: int) -> list[ir.Value]:
    axis = dim % rank(x)
    total = x.shape.dims[axis]
    if not isinstance(total, int):
        raise NotImplementedError
    count = max(1, -(-total // size)) if size else 1
    return _sections(op, x, [min(size, total - i * size) for i in range(count)], axis)


def _sections(op: Op, x: ir.Value, sizes: Sequence[Any], axis: int) -> list[ir.Value]:
    if len(sizes) == 1:
        return [x]
    outputs = op.Split(x, list(sizes), axis=axis, outputs=len(sizes))
    return list(outputs)


@lowers(T.split, torch.split_with_sizes, torch._C._VariableFunctions.split_with_sizes)
def split_with_sizes(op: Op, /, tensor: ir.Value, split_sizes: Sequence[int], dim: int = 0) -> list[ir.Value]:
    return _sections(op, tensor, split_sizes, dim % rank(tensor))


@lowers(torch.chunk)
def chunk(op: Op, /, input: ir.Value, chunks: int, dim: int = 0) -> list[ir.Value]:
    total = input.shape.dims[dim]
    if not isinstance(total, int):
        raise NotImplementedError
    return _pieces(op, input, -(-total // chunks), dim)


@lowers(torch.unbind)
def unbind(op: Op, /, input: ir.Value, dim: int = 0) -> list[ir.Value]:
    axis = dim % rank(input)
    count = input.shape.dims[axis]
    assert isinstance(count, int)
    return [op.Gather(input, i, axis=axis) for i in range(count)]


@lowers(torch.narrow)
def narrow(op: Op, /, input: ir.Value, dim: int, start: Any, length: Any) -> ir.Value:
    end = start + length if not isinstance(start, ir.Value) else op.Add(start, length)
    return op.Slice(input, [start], [end], [dim % rank(input)])


@lowers(torch.select)
def select(op: Op, /, input: ir.Value, dim: int, index: Any) -> ir.Value:
    return op.Gather(input, index, axis=dim % rank(input))


@lowers(T.repeat)
def repeat(op: Op, /, input: ir.Value, *repeats: int) -> ir.Value:
    times = sequence_sizes(repeats)
    extra = len(times) - rank(input)
    x = op.Unsqueeze(input, list(range(extra))) if extra else input
    return op.Tile(x, times)


@lowers(torch.flip)
def flip(op: Op, /, input: ir.Value, dims: Sequence[int]) -> ir.Value:
    axes = [d % rank(input) for d in dims]
    count = len(axes)
    return op.Slice(input, [-1] * count, [-(2**63) + 1] * count, axes, [-1] * count) if axes else input


@decomposes(torch.movedim, torch.moveaxis)
def movedim(input: torch.Tensor, source: Any, destination: Any) -> torch.Tensor:
    sources = [source] if isinstance(source, int) else list(source)
    targets = [destination] if isinstance(destination, int) else list(destination)
    n = input.dim()
    sources, targets = [s % n for s in sources], [d % n for d in targets]
    rest = iter(i for i in range(n) if i not in sources)
    return input.permute([sources[targets.index(i)] if i in targets else next(rest) for i in range(n)])
