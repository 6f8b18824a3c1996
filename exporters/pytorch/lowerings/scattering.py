"""Gather and scatter along a dim."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import onnx_ir as ir
import torch

from exporters.pytorch.dtypes import promote
from exporters.pytorch.lowerings import kernels
from exporters.pytorch.lowerings.arithmetic import number
from exporters.pytorch.lowerings.assignment import scatter_slices
from exporters.pytorch.lowerings.cumulative import positions_along, worst
from exporters.pytorch.lowerings.dims import static_size
from exporters.pytorch.lowerings.reductions import reduce
from exporters.pytorch.lowerings.shaping import (
    at_least_1d,
    broadcast_sizes,
    has_shape_of,
    permuted,
    rank,
    reshape_like,
)
from exporters.pytorch.lowerings.splitting import join_back
from exporters.pytorch.registry import Unlowerable, decomposes, lowers

if TYPE_CHECKING:
    from exporters.tracing.graph import GraphBuilder as Op

BOOL, INT64 = ir.DataType.BOOL, ir.DataType.INT64


def _positions(op: Op, index: ir.Value) -> ir.Value:
    """An index tensor in a dtype that ONNX takes."""
    return index if index.dtype == ir.DataType.INT32 else op.cast(index, INT64)


# Gather


@lowers(torch.gather)
def gather(
    op: Op, /, input: ir.Value, dim: int, index: ir.Value, *, sparse_grad: object = False
) -> ir.Value:
    """Lower to ``GatherElements-13``, which rejects rank 0."""
    if 0 in index.shape.dims:  # an empty index may have any rank
        return op.Expand(op.operand(0, input.dtype), op.shape(index))
    x, places = at_least_1d(op, input), at_least_1d(op, _positions(op, index))
    result = op.GatherElements(x, places, axis=dim % rank(x))
    return result if rank(index) else op.Reshape(result, [])


@lowers(torch.take_along_dim)
def take_along_dim(
    op: Op, /, input: ir.Value, indices: ir.Value, dim: int | None = None
) -> ir.Value:
    """Lower to ``GatherElements-13`` of operands that agree on the other dims."""
    places = _positions(op, indices)
    if dim is None:
        return op.GatherElements(op.Reshape(input, [-1]), op.Reshape(places, [-1]), axis=0)
    axis = dim % rank(input)
    common = broadcast_sizes(op, [input, places])
    operands = []
    for x in (input, places):
        fits = all(static_size(x, a) == s for a, s in enumerate(common) if a != axis)
        sizes = [*common[:axis], op.dim(x, axis), *common[axis + 1 :]]
        operands.append(x if fits else op.Expand(x, sizes))
    return op.GatherElements(*operands, axis=axis)


@lowers(torch.take)
def take(op: Op, /, input: ir.Value, index: ir.Value) -> ir.Value:
    """Lower to ``Gather-13`` from the flat tensor."""
    return op.Gather(op.Reshape(input, [-1]), index, axis=0)


# Scatter along a dim


_REDUCTIONS = {
    "add": "add",
    "sum": "add",
    "multiply": "mul",
    "prod": "mul",
    "amax": "max",
    "amin": "min",
}


def _reduction(op: Op, name: str | None) -> str | None:
    if name is None:
        return None
    found = _REDUCTIONS.get(name)
    if found is None:
        raise Unlowerable(f"ONNX scatters with no reduction {name!r}")
    return found


def _scatter(
    op: Op, x: ir.Value, dim: int, index: ir.Value, update: ir.Value, reduction: str | None
) -> ir.Value:
    """``ScatterElements-18``; an update may be larger than the index."""
    if 0 in index.shape.dims:
        return x
    base, places = at_least_1d(op, x), at_least_1d(op, _positions(op, index))
    update = at_least_1d(op, op.cast(update, x.dtype))
    if not has_shape_of(update, places):
        count = rank(places)
        update = op.Slice(update, [0] * count, op.shape(places), list(range(count)))
    axis = dim % rank(base)
    if reduction in ("max", "min") and op.opset < 18:
        result = _extreme_of_scattered(op, base, axis, places, update, reduction.capitalize())
    else:
        result = kernels.scatter(
            op, "ScatterElements", base, places, update, axis=axis, reduction=reduction
        )
    return result if rank(x) else op.Reshape(result, [])


def _extreme_of_scattered(
    op: Op, x: ir.Value, axis: int, places: ir.Value, update: ir.Value, which: str
) -> ir.Value:
    """Every place looks through all updates for its own: before opset 18."""
    for other in range(rank(x)):
        size, whole = static_size(places, other), static_size(x, other)
        if other != axis and size is None:
            raise Unlowerable("the extreme of scattered values of dynamic size, before opset 18")
        if other != axis and size != whole:
            part = op.Slice(x, [0], [size], [other])
            part.shape = x.shape.copy()
            part.shape[other] = size
            written = _extreme_of_scattered(op, part, axis, places, update, which)
            return join_back(op, x, written, other, 0, size)
    if x.dtype == BOOL:
        base, source = (op.cast(v, ir.DataType.UINT8) for v in (x, update))
        return op.cast(_extreme_of_scattered(op, base, axis, places, source, which), BOOL)
    last = [*(a for a in range(rank(x)) if a != axis), axis]
    base, index, source = (permuted(op, v, last) for v in (x, places, update))
    here = op.Equal(op.Unsqueeze(index, [-2]), op.Unsqueeze(positions_along(op, x, axis), [-1]))
    mine = op.Where(here, op.Unsqueeze(source, [-2]), op.operand(worst(x.dtype, which), x.dtype))
    mine.shape = ir.Shape([None] * (rank(x) + 1))
    result = kernels.emit(op, which, base, reduce(op, f"Reduce{which}", mine, -1, False))
    return permuted(op, result, [last.index(a) for a in range(rank(x))])


@lowers(torch.scatter)
def scatter(
    op: Op,
    /,
    input: ir.Value,
    dim: int,
    index: ir.Value,
    src: ir.Value,
    *,
    reduce: str | None = None,
) -> ir.Value:
    """Lower to ``ScatterElements-18``."""
    return _scatter(op, input, dim, index, src, _reduction(op, reduce))


@lowers(torch.scatter)
def scatter_value(
    op: Op, /, input: ir.Value, dim: int, index: ir.Value, value: Any, *, reduce: str | None = None
) -> ir.Value:
    """Lower to ``ScatterElements-18`` of one value."""
    (fill,) = promote(op, value, to=input.dtype)
    update = op.Expand(fill, op.shape(index))
    update.shape = index.shape.copy()
    update.meta["sizes"] = index.meta.get("sizes")
    return _scatter(op, input, dim, index, update, _reduction(op, reduce))


@lowers(torch.scatter_add)
def scatter_add(op: Op, /, input: ir.Value, dim: int, index: ir.Value, src: ir.Value) -> ir.Value:
    """Lower to ``ScatterElements-18`` that adds."""
    return _scatter(op, input, dim, index, src, "add")


def _is_prepared(
    input: torch.Tensor,
    dim: int,
    index: torch.Tensor,
    src: torch.Tensor,
    reduce: str,
    *,
    include_self: bool = True,
) -> bool:
    """Whether ``ScatterElements`` does all of it."""
    return include_self and reduce != "mean"


@decomposes(torch.scatter_reduce, when=lambda *args, **named: not _is_prepared(*args, **named))
def prepared_scatter_reduce(
    input: torch.Tensor,
    dim: int,
    index: torch.Tensor,
    src: torch.Tensor,
    reduce: str,
    *,
    include_self: bool = True,
) -> torch.Tensor:
    """What is not to count is replaced by the reduction's neutral element first."""
    start = input
    if not include_self:
        start = input.scatter(dim, index, _neutral(reduce, input.dtype))
    if reduce != "mean":
        return torch.scatter_reduce(start, dim, index, src, reduce)
    total = torch.scatter_add(start, dim, index, src)
    counts = torch.ones_like(input)
    if not include_self:
        counts = counts.scatter(dim, index, 0)
    counts = counts.scatter_add(dim, index, torch.ones_like(src)).clamp(min=1)
    rounding = None if input.is_floating_point() else "floor"
    return torch.div(total, counts, rounding_mode=rounding)


def _neutral(reduce: str, dtype: torch.dtype) -> Any:
    if reduce in ("sum", "mean"):
        return 0
    if reduce == "prod":
        return 1
    if dtype.is_floating_point:
        return -float("inf") if reduce == "amax" else float("inf")
    if dtype == torch.bool:
        return reduce == "amin"
    limits = torch.iinfo(dtype)
    return limits.min if reduce == "amax" else limits.max


@lowers(torch.scatter_reduce)
def scatter_reduce(
    op: Op,
    /,
    input: ir.Value,
    dim: int,
    index: ir.Value,
    src: ir.Value,
    reduce: str,
    *,
    include_self: bool = True,
) -> ir.Value:
    """Lower to ``ScatterElements-18`` with a reduction."""
    return _scatter(op, input, dim, index, src, _reduction(op, reduce))


# Scatter of whole slices


def _scatter_slices(
    op: Op, x: ir.Value, dim: int, index: ir.Value, source: ir.Value, reduction: str | None
) -> ir.Value:
    """Scatter along a dim; a tensor of rank 0 counts as one of one element."""
    if rank(x) == 0:
        flat = _scatter_slices(
            op, op.Reshape(x, [1]), 0, index, op.Reshape(source, [-1]), reduction
        )
        return op.Reshape(flat, [])
    line = _positions(op, index if rank(index) == 1 else op.Reshape(index, [-1]))
    return scatter_slices(op, x, dim % rank(x), line, op.cast(source, x.dtype), reduction)


@lowers(torch.index_copy)
def index_copy(
    op: Op, /, input: ir.Value, dim: int, index: ir.Value, source: ir.Value
) -> ir.Value:
    """Lower to ``ScatterND-18`` or ``ScatterElements-18``."""
    return _scatter_slices(op, input, dim, index, source, None)


@lowers(torch.index_add)
def index_add(
    op: Op, /, input: ir.Value, dim: int, index: ir.Value, source: ir.Value, *, alpha: Any = 1
) -> ir.Value:
    """Lower to ``ScatterND-18`` or ``ScatterElements-18`` that add."""
    (scaled,) = promote(op, source, to=input.dtype)
    if number(alpha) != 1:
        truth = input.dtype == BOOL
        scaled = op.And(scaled, *promote(op, alpha, to=BOOL)) if truth else op.Mul(scaled, alpha)
    return _scatter_slices(op, input, dim, index, scaled, "add")


@lowers(torch.index_fill)
def index_fill(op: Op, /, input: ir.Value, dim: int, index: ir.Value, value: Any) -> ir.Value:
    """Lower to ``ScatterND-18`` or ``ScatterElements-18`` of one value."""
    (fill,) = promote(op, value, to=input.dtype)
    return _scatter_slices(op, input, dim, index, fill, None)


@decomposes(torch.index_reduce)
def index_reduce(
    input: torch.Tensor,
    dim: int,
    index: torch.Tensor,
    source: torch.Tensor,
    reduce: str,
    *,
    include_self: bool = True,
) -> torch.Tensor:
    if input.dim() == 0:
        line, spread = input.reshape(1), index.reshape(-1)
        return line.scatter_reduce(
            0, spread, source.reshape(-1), reduce, include_self=include_self
        ).reshape([])
    dim = dim % input.dim()
    shape = [1] * input.dim()
    shape[dim] = -1
    spread = index.reshape(shape).expand(source.shape)
    return input.scatter_reduce(dim, spread, source, reduce, include_self=include_self)


@lowers(torch.put)
def put(
    op: Op, /, input: ir.Value, index: ir.Value, source: ir.Value, accumulate: bool = False
) -> ir.Value:
    """Lower to ``ScatterElements-18`` on the flat tensor."""
    flat, places = op.Reshape(input, [-1]), op.Reshape(index, [-1])
    update = op.Reshape(source, [-1])
    written = kernels.scatter(
        op,
        "ScatterElements",
        flat,
        places,
        update,
        axis=0,
        reduction="add" if accumulate else None,
    )
    return reshape_like(op, written, input)


_NOTHING = {"sum": 0.0, "prod": 1.0, "max": -math.inf, "min": math.inf, "mean": 0.0}
_SCATTERED = {"max": "amax", "min": "amin"}


@decomposes(torch.segment_reduce)
def segment_reduce(
    data: torch.Tensor, reduce: str, *, lengths: Any = None, indices: object = None,
    offsets: Any = None, axis: int = 0, unsafe: object = False, initial: Any = None,
) -> torch.Tensor:  # fmt: skip
    """Scatter every element to its segment; what no segment takes goes to one more."""
    if axis % data.dim() or (lengths is not None and lengths.dim() > 1):
        raise Unlowerable("segments along another dim than the first")
    ends = lengths.cumsum(0) if offsets is None else offsets[1:]
    number_of = ends.shape[0]
    places = torch.searchsorted(ends, torch.arange(data.shape[0]), right=True)
    shape = [-1] + [1] * (data.dim() - 1)
    index = places.reshape(shape).expand(data.shape)
    begin = _NOTHING[reduce] if initial is None else initial
    start = torch.full([number_of + 1, *data.shape[1:]], begin, dtype=data.dtype)
    kind = "sum" if reduce == "mean" else _SCATTERED.get(reduce, reduce)
    whole = start.scatter_reduce(0, index, data, kind)[:number_of]
    if reduce != "mean":
        return whole
    counts = torch.diff(ends, prepend=torch.zeros(1, dtype=ends.dtype))
    counts = counts.reshape([-1] + [1] * (data.dim() - 1)).to(data.dtype)
    y = whole / counts.clamp(min=1)
    return torch.where(counts == 0, math.nan, y) if initial is None else y
