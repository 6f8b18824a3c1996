"""The same elements under other dims: reshapes, permutations, broadcasts."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import onnx_ir as ir
import torch

from exporters.pytorch.dtypes import from_torch_dtype
from exporters.pytorch.handlers import sequence_sizes
from exporters.pytorch.lowerings.dims import size_key, static_size
from exporters.pytorch.registry import Unlowerable, decomposes, lowers
from exporters.tracing.graph import isinstance_static, static_shape
from exporters.tracing.scalars import TracedScalar

if TYPE_CHECKING:
    from collections.abc import Sequence

    from exporters.tracing.graph import GraphBuilder as Op

T: Any = torch.Tensor
aten = torch.ops.aten
prims = torch.ops.prims


def rank(x: ir.Value) -> int:
    """The number of dims, which the tracer always knows."""
    assert x.shape is not None
    return len(x.shape.dims)


def sizes_of(op: Op, x: ir.Value) -> list[Any]:
    """Every size: ints where static, else values of shape [1]."""
    return [op.dim(x, axis) for axis in range(rank(x))]


def has_shape_of(x: ir.Value, like: ir.Value) -> bool:
    """Whether two values have the same sizes, as far as all worlds can tell."""
    if rank(x) != rank(like):
        return False
    dims = zip(x.shape.dims, like.shape.dims, strict=True)
    if all(isinstance(a, int) and a == b for a, b in dims):
        return True
    here, there = x.meta.get("sizes"), like.meta.get("sizes")
    return (
        here is not None and here == there and len(here[0]) > 1 and all(1 not in s for s in here)
    )


def broadcast_like(op: Op, x: ir.Value, like: ir.Value) -> ir.Value:
    """``Expand-13`` to the shape of another value, where it has not got that already."""
    if has_shape_of(x, like):
        return x
    return like_shape(op.Expand(x, op.shape(like)), like)


def at_least_1d(op: Op, x: ir.Value) -> ir.Value:
    """``x``, or the vector of its one element."""
    return x if rank(x) else op.Reshape(x, [1])


def like_shape(x: ir.Value, like: ir.Value) -> ir.Value:
    """Say of a value that it has the shape of another."""
    x.shape = like.shape.copy()
    x.meta["sizes"] = like.meta.get("sizes")
    return x


def with_dim(op: Op, x: ir.Value, axis: int) -> ir.Value:
    """``Unsqueeze-13`` of one dim, what is known of the sizes kept."""
    wide = op.Unsqueeze(x, [axis])
    sizes = x.meta.get("sizes")
    if sizes:
        wide.meta["sizes"] = (*sizes[:axis], (1,) * len(sizes[0]), *sizes[axis:])
    return wide


def reshape_like(op: Op, x: ir.Value, like: ir.Value) -> ir.Value:
    """``Reshape-14`` to the shape of another value, where a 0 means an empty dim."""
    static = static_shape(like)
    may_be_empty = static is None or 0 in static
    return like_shape(op.Reshape(x, op.shape(like), allowzero=1 if may_be_empty else None), like)


# Reshapes


def _reshape_back(op: Op, base: ir.Value, view: ir.Value, *_: object, **__: object) -> ir.Value:
    return reshape_like(op, view, base)


def reshape_to(op: Op, x: ir.Value, sizes: Sequence[Any]) -> ir.Value:
    """``Reshape`` that copies sizes from ``x`` where they are known to be the same."""
    copied = [axis < rank(x) and op.same_size(size, x, axis) for axis, size in enumerate(sizes)]
    y = op.reshape(x, sizes, copied=copied)
    if not any(_depends_on_data(size) for size in sizes):
        y.meta["unbacked"] = False
    return y


def _depends_on_data(size: Any) -> bool:
    """Whether a size that is asked for may be another for other values of equal sizes."""
    if isinstance(size, TracedScalar):
        return size.record.data
    return isinstance(size, ir.Value) or size == -1


_NO_BITS = "ONNX reinterprets no bits before opset 26"


@lowers(T.view, torch.ops.aten.view, put_back=_reshape_back)
def view_dtype(op: Op, /, input: ir.Value, dtype: torch.dtype) -> ir.Value:
    """Reread the bits; only where they mean the same."""
    if from_torch_dtype(dtype) == input.dtype:
        return input
    raise Unlowerable(_NO_BITS)


@lowers(T.view, torch.ops.aten.view, aten._unsafe_view, prims.reshape, put_back=_reshape_back)
def view(op: Op, /, input: ir.Value, *size: int | Sequence[int]) -> ir.Value:
    if isinstance(size[0], torch.dtype):
        raise Unlowerable(_NO_BITS)
    return reshape_to(op, input, sequence_sizes(size))


@lowers(torch.reshape, put_back=_reshape_back)
def reshape(op: Op, /, input: ir.Value, shape: Sequence[int]) -> ir.Value:
    return reshape_to(op, input, shape)


@lowers(T.reshape, put_back=_reshape_back)
def reshape_method(op: Op, /, input: ir.Value, *shape: int) -> ir.Value:
    return reshape_to(op, input, sequence_sizes(shape))


@lowers(T.view_as, T.reshape_as, put_back=_reshape_back)
def view_as(op: Op, /, input: ir.Value, other: ir.Value) -> ir.Value:
    return input if has_shape_of(input, other) else reshape_like(op, input, other)


@lowers(torch.flatten, put_back=_reshape_back)
def flatten(op: Op, /, input: ir.Value, start_dim: int = 0, end_dim: int = -1) -> ir.Value:
    """Lower to ``Reshape-13`` with the joined size as -1 where no other size may be 0."""
    dims = rank(input)
    if dims == 0:
        return op.Reshape(input, [1])
    start, end = start_dim % dims, end_dim % dims
    if start == end:
        return input
    sizes = sizes_of(op, input)
    return join_dims(op, input, sizes, start, end)


def join_dims(op: Op, x: ir.Value, sizes: Sequence[Any], start: int, end: int) -> ir.Value:
    """Make one dim of dims ``start`` to ``end``, inclusive."""
    inner, outer = sizes[start : end + 1], [*sizes[:start], *sizes[end + 1 :]]
    if all(isinstance(s, int) for s in inner):
        total: Any = math.prod(inner)
    elif all(isinstance(s, int) and s != 0 for s in outer):
        total = -1
    elif len(outer) == 1:
        return op.Flatten(x, axis=start or end + 1)
    else:
        total = op.ReduceProd(op.Shape(x, start=start, end=end + 1), keepdims=1)
    copied = [True] * start
    return op.reshape(x, [*sizes[:start], total, *sizes[end + 1 :]], copied=copied)


@lowers(torch.ravel, put_back=_reshape_back)
def ravel(op: Op, /, input: ir.Value) -> ir.Value:
    return flatten(op, input)


@lowers(torch.unflatten, T.unflatten, put_back=_reshape_back)
def unflatten(op: Op, /, input: ir.Value, dim: int, sizes: Sequence[int]) -> ir.Value:
    axis = dim % rank(input)
    old, parts = sizes_of(op, input), list(sizes)
    others = [p for p in parts if not isinstance_static(p) or p != -1]
    if len(others) < len(parts) and all(isinstance_static(p) for p in others):
        known, whole = math.prod(others), old[axis]  # -1 is not found out where another dim is 0
        if known != 1:
            whole = whole // known if isinstance_static(whole) else op.Div(whole, known)
        parts = [whole if p == -1 else p for p in parts]
    return op.reshape(input, [*old[:axis], *parts, *old[axis + 1 :]], copied=[True] * axis)


@lowers(torch.unsqueeze, torch.unsqueeze_copy, put_back=_reshape_back)
def unsqueeze(op: Op, /, input: ir.Value, dim: int) -> ir.Value:
    return op.Unsqueeze(input, [dim % (rank(input) + 1)])


@lowers(torch.squeeze, torch.squeeze_copy, put_back=_reshape_back)
def squeeze(op: Op, /, input: ir.Value) -> ir.Value:
    axes = [a for a in range(rank(input)) if _is_single(input, a)]
    return op.Squeeze(input, axes) if axes else input


@lowers(torch.squeeze, torch.squeeze_copy, prims.squeeze, put_back=_reshape_back)
def squeeze_dim(op: Op, /, input: ir.Value, dim: Any) -> ir.Value:
    dims = [dim] if isinstance(dim, int) else list(dim)
    axes = [d % rank(input) for d in dims if rank(input) and _is_single(input, d)]
    return op.Squeeze(input, axes) if axes else input


def _is_single(x: ir.Value, axis: int) -> bool:
    """Whether eager squeezes a dim: the worlds decide where the graph does not know its size."""
    size = x.shape.dims[axis]
    if isinstance(size, int):
        return size == 1
    sizes = x.meta.get("sizes")
    return sizes is not None and set(sizes[axis]) == {1}


@decomposes(torch.atleast_1d)
def atleast_1d(*tensors: Any) -> Any:
    return _at_least(lambda x: x.reshape(1) if x.dim() == 0 else x, tensors)


@decomposes(torch.atleast_2d)
def atleast_2d(*tensors: Any) -> Any:
    def widen(x: torch.Tensor) -> torch.Tensor:
        return x.reshape(1, 1) if x.dim() == 0 else x.unsqueeze(0) if x.dim() == 1 else x

    return _at_least(widen, tensors)


@decomposes(torch.atleast_3d)
def atleast_3d(*tensors: Any) -> Any:
    def widen(x: torch.Tensor) -> torch.Tensor:
        if x.dim() == 0:
            return x.reshape(1, 1, 1)
        if x.dim() == 1:
            return x.unsqueeze(0).unsqueeze(-1)
        return x.unsqueeze(-1) if x.dim() == 2 else x

    return _at_least(widen, tensors)


def _at_least(widen: Any, tensors: tuple[Any, ...]) -> Any:
    if len(tensors) == 1 and isinstance(tensors[0], torch.Tensor):
        return widen(tensors[0])
    if len(tensors) == 1:
        tensors = tensors[0]
    return tuple(widen(x) for x in tensors)


# Permutations


def _transpose_back(op: Op, base: ir.Value, view: ir.Value, *dims: Any, **named: Any) -> ir.Value:
    return permuted(op, view, _inverse(_order(rank(base), *dims, **named)))


def _order(dims: int, dim0: int, dim1: int) -> list[int]:
    order = list(range(dims))
    if dims:
        order[dim0], order[dim1] = order[dim1], order[dim0]
    return order


def _inverse(order: Sequence[int]) -> list[int]:
    return [order.index(i) for i in range(len(order))]


def permuted(op: Op, x: ir.Value, order: Sequence[int]) -> ir.Value:
    """``Transpose-13``, unless it changes nothing; moving dims of size 1 is a ``Reshape``."""
    order = list(order)
    return x if order == sorted(order) else op.Transpose(x, perm=order)


def _swapped(op: Op, input: ir.Value, first: int, second: int) -> ir.Value:
    return permuted(op, input, _order(rank(input), first, second))


@lowers(torch.transpose, torch.transpose_copy, put_back=_transpose_back)
def transpose(op: Op, /, input: ir.Value, dim0: int, dim1: int) -> ir.Value:
    return _swapped(op, input, dim0, dim1)


@lowers(
    torch.swapaxes, put_back=lambda op, base, view, axis0, axis1: _swapped(op, view, axis0, axis1)
)
def swapaxes(op: Op, /, input: ir.Value, axis0: int, axis1: int) -> ir.Value:
    return _swapped(op, input, axis0, axis1)


@lowers(torch.swapdims, put_back=_transpose_back)
def swapdims(op: Op, /, input: ir.Value, dim0: int, dim1: int) -> ir.Value:
    return _swapped(op, input, dim0, dim1)


def _permute_back(op: Op, base: ir.Value, view: ir.Value, *dims: Any, **named: Any) -> ir.Value:
    given = sequence_sizes(dims or (named["dims"],))
    return permuted(op, view, _inverse([d % rank(base) for d in given]))


@lowers(torch.permute, torch.permute_copy, prims.transpose, put_back=_permute_back)
def permute(op: Op, /, input: ir.Value, dims: Sequence[int]) -> ir.Value:
    return permuted(op, input, [d % rank(input) for d in dims])


@lowers(T.permute, put_back=_permute_back)
def permute_method(op: Op, /, input: ir.Value, *dims: int) -> ir.Value:
    return permute(op, input, sequence_sizes(dims))


def _reverse_back(op: Op, base: ir.Value, view: ir.Value) -> ir.Value:
    return op.Transpose(view)


@lowers(torch.t, torch.t_copy, T.T.__get__, put_back=_reverse_back)
def t(op: Op, /, input: ir.Value) -> ir.Value:
    return op.Transpose(input) if rank(input) > 1 else input


def _last_back(op: Op, base: ir.Value, view: ir.Value) -> ir.Value:
    return _swapped(op, view, -2, -1)


@lowers(T.mT.__get__, T.mH.__get__, T.H.__get__, torch.adjoint, put_back=_last_back)
def matrix_transpose(op: Op, /, input: ir.Value) -> ir.Value:
    return _swapped(op, input, -2, -1)


@decomposes(torch.movedim, torch.moveaxis)
def movedim(input: torch.Tensor, source: Any, destination: Any) -> torch.Tensor:
    sources = [source] if isinstance(source, int) else list(source)
    targets = [destination] if isinstance(destination, int) else list(destination)
    n = max(input.dim(), 1)
    sources, targets = [s % n for s in sources], [d % n for d in targets]
    rest = iter(i for i in range(n) if i not in sources)
    order = [sources[targets.index(i)] if i in targets else next(rest) for i in range(n)]
    return input.permute(order) if input.dim() else input


# Broadcasts


@lowers(T.expand, torch.ops.aten.expand, torch.expand_copy)
def expand(op: Op, /, input: ir.Value, *size: int, implicit: object = False) -> ir.Value:
    return expand_to(op, input, sequence_sizes(size))


def expand_to(op: Op, input: ir.Value, sizes: Sequence[Any]) -> ir.Value:
    """``Expand-13``, where a 1 keeps the size as torch's -1 does."""
    offset = len(sizes) - rank(input)
    target = []
    for axis, size in enumerate(sizes):
        kept = isinstance_static(size) and size == -1
        if axis >= offset:
            kept = kept or op.same_size(size, input, axis - offset)
            kept = kept or (isinstance_static(size) and size == input.shape.dims[axis - offset])
        target.append(1 if kept else size)
    if offset == 0 and all(isinstance_static(s) and s == 1 for s in target):
        return input
    return op.Expand(input, target)


@lowers(T.expand_as)
def expand_as(op: Op, /, input: ir.Value, other: ir.Value) -> ir.Value:
    return broadcast_like(op, input, other)


@lowers(torch.broadcast_to)
def broadcast_to(op: Op, /, input: ir.Value, size: Sequence[int]) -> ir.Value:
    return expand_to(op, input, size)


def broadcast_sizes(op: Op, values: Sequence[ir.Value]) -> list[Any]:
    """The sizes that shapes broadcast to: ints where static, else values of shape [1]."""
    dims = max(rank(x) for x in values)
    target: list[Any] = []
    for axis in range(-dims, 0):
        present = {size_key(x, axis) or id(x): x for x in values if rank(x) >= -axis}
        static = [s for x in present.values() if (s := static_size(x, axis)) is not None]
        known = [s for s in static if s != 1]
        if known or len(static) == len(present):
            target.append(known[0] if known else 1)
            continue
        unknown = [op.dim(x, axis) for x in present.values() if static_size(x, axis) is None]
        target.append(unknown[0] if len(unknown) == 1 else _common_size(op, unknown))
    return target


def _common_size(op: Op, sizes: Sequence[ir.Value]) -> ir.Value:
    """The size that is not 1, of sizes of shape [1]."""
    size = sizes[0]
    for other in sizes[1:]:
        size = op.Where(op.Equal(size, 1), other, size)
    return size


@lowers(torch.functional.broadcast_tensors)
def broadcast_tensors(op: Op, /, *tensors: Any) -> list[ir.Value]:
    """``Expand-13`` to the broadcast of all shapes."""
    single = len(tensors) == 1 and isinstance(tensors[0], list | tuple)
    given: list[ir.Value] = list(tensors[0] if single else tensors)
    target = broadcast_sizes(op, given)
    return [
        x if list(static_shape(x) or [None]) == target else op.Expand(x, target) for x in given
    ]


@lowers(prims.broadcast_in_dim)
def broadcast_in_dim(
    op: Op, /, a: ir.Value, shape: Sequence[int], broadcast_dimensions: Sequence[int]
) -> ir.Value:
    """``Unsqueeze-13`` where a dim has no counterpart, then ``Expand-13``."""
    new = [i for i in range(len(shape)) if i not in broadcast_dimensions]
    x = op.Unsqueeze(a, new) if new else a
    return expand_to(op, x, shape)
