"""``x[...] = y``: the whole tensor, a mask, a block, rows, scattered positions."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import torch

from exporters.pytorch.dtypes import promote
from exporters.pytorch.lowerings import kernels
from exporters.pytorch.lowerings.arithmetic import number
from exporters.pytorch.lowerings.comparison import choose
from exporters.pytorch.lowerings.dims import same_size, static_size
from exporters.pytorch.lowerings.indexing import (
    basic,
    gather_at,
    getitem,
    is_full,
    is_mask,
    is_position,
    normalised,
    positions_of,
    stacked,
    unit_step,
)
from exporters.pytorch.lowerings.shaping import (
    broadcast_like,
    like_shape,
    rank,
    reshape_like,
    sizes_of,
    with_dim,
)
from exporters.pytorch.lowerings.slicing import position
from exporters.pytorch.lowerings.splitting import join_back
from exporters.pytorch.registry import lowers
from exporters.tracing.graph import INT64_MAX, isinstance_static, static_shape
from exporters.tracing.scalars import TracedInt

if TYPE_CHECKING:
    from collections.abc import Sequence

    from exporters.tracing.graph import GraphBuilder as Op

T: Any = torch.Tensor
BOOL, INT64 = ir.DataType.BOOL, ir.DataType.INT64


def _setitem_back(op: Op, base: ir.Value, view: ir.Value, index: Any) -> ir.Value:
    return setitem(op, base, index, view)


lowers(T.__getitem__, put_back=_setitem_back)(getitem)


@lowers(T.__setitem__)
def setitem(op: Op, /, input: ir.Value, index: Any, value: Any) -> ir.Value:
    """The tensor after ``input[index] = value``: as few copies as its kind of index allows."""
    items = normalised(op, index, rank(input))
    (new,) = promote(op, value, to=input.dtype)
    return assign(op, input, items, new)


def assign(op: Op, x: ir.Value, items: Sequence[Any], new: ir.Value) -> ir.Value:
    """``x`` with the part that ``items`` select replaced by ``new``."""
    return like_shape(_assigned(op, x, items, new), x)


def _assigned(op: Op, x: ir.Value, items: Sequence[Any], new: ir.Value) -> ir.Value:
    truths = [i for i in items if isinstance(i, bool) or (is_mask(i) and rank(i) == 0)]
    if truths or (None in items and not all(i is None or is_full(i) for i in items)):
        return _assign_positions(op, x, items, new)
    items = [i for i in items if i is not None]
    if all(is_full(i) for i in items):
        return broadcast_like(op, _drop_leading(op, new, rank(x)), x)
    if (masked := _assign_mask(op, x, items, new)) is not None:
        return masked
    lead = next(n for n, i in enumerate([*items, slice(None)]) if is_full(i))
    if lead and all(is_full(i) for i in items[lead:]):
        if all(is_position(i) for i in items[:lead]):
            return _assign_row(op, x, items[:lead], new)
        if not any(isinstance(i, slice) for i in items[:lead]):
            return scatter_rows(op, x, items[:lead], new)
    if all((isinstance(i, slice) and unit_step(i)) or is_position(i) for i in items):
        return _assign_block(op, x, items, new)
    if (line := _line_of(op, x, items)) is not None:
        return scatter_slices(op, x, *line, new)
    return _assign_positions(op, x, items, new)


def _line_of(op: Op, x: ir.Value, items: Sequence[Any]) -> tuple[int, ir.Value] | None:
    """The one dim that is indexed, and the places along it."""
    indexed = [n for n, i in enumerate(items) if not is_full(i)]
    if len(indexed) != 1:
        return None
    (axis,) = indexed
    item, total = items[axis], x.shape.dims[axis]
    if is_mask(item) and rank(item) == 1:
        places = op.Squeeze(op.NonZero(op.cast(item, BOOL)), [0])
        places.shape = ir.Shape([None])
        return axis, places
    if isinstance(item, ir.Value):
        return (axis, item) if rank(item) == 1 else None
    bounds = (item.start, item.stop, item.step)
    if isinstance(total, int) and all(b is None or number(b) is not None for b in bounds):
        return axis, op.constant(np.arange(total)[item])
    return None


def scatter_slices(
    op: Op, x: ir.Value, axis: int, line: ir.Value, new: ir.Value, reduction: str | None = None
) -> ir.Value:
    """Write slices at places along one dim: ``ScatterND-18``, or ``ScatterElements-18`` inside."""
    if axis == 0:
        return scatter_rows(op, x, [op.cast(line, INT64)], new, reduction)
    spread = op.Unsqueeze(line, [a for a in range(rank(x)) if a != axis])
    count = line.shape.dims[0]
    sizes = sizes_of(op, x)
    sizes[axis] = count if isinstance(count, int) else op.dim(line, 0)
    new = _drop_leading(op, new, rank(x))
    fits = (
        rank(new) == rank(x)
        and isinstance(count, int)
        and all(
            static_size(new, a) == count if a == axis else same_size(new, a, x, a)
            for a in range(rank(x))
        )
    )
    update = new if fits else op.Expand(new, sizes)
    places = op.Expand(spread, sizes)
    return kernels.scatter(
        op, "ScatterElements", x, places, update, axis=axis, reduction=reduction
    )


def _drop_leading(op: Op, new: ir.Value, dims: int) -> ir.Value:
    """Torch lets an assigned value have extra leading dims of size 1."""
    extra = rank(new) - dims
    return op.Squeeze(new, list(range(extra))) if extra > 0 else new


def _assign_mask(op: Op, x: ir.Value, items: Sequence[Any], new: ir.Value) -> ir.Value | None:
    """``Where-16`` for one mask, and a value that does not run along it."""
    masks = [n for n, i in enumerate(items) if is_mask(i)]
    if len(masks) != 1 or not all(is_full(i) or is_mask(i) for i in items):
        return None
    (axis,) = masks
    mask = items[axis]
    width, after = rank(mask), len(items) - axis - 1
    if rank(new) > after:
        if new.shape.dims[rank(new) - after - 1] != 1:
            return None
        if width > 1:
            if any(d != 1 for d in new.shape.dims[: rank(new) - after]):
                return None
            new = _drop_leading(op, new, after)
    condition = op.cast(mask, BOOL)
    if after:
        condition = op.Unsqueeze(condition, list(range(width, width + after)))
    return choose(op, condition, _drop_leading(op, new, rank(x)), x)


def _assign_row(op: Op, x: ir.Value, lead: Sequence[Any], new: ir.Value) -> ir.Value:
    """``ScatterND-18`` of one row, which positions in the first dims choose."""
    parts = [position(op, i) for i in lead]
    if all(p.const_value is not None for p in parts):
        place = op.constant(np.concatenate([p.const_value.numpy() for p in parts]))
    else:
        place = parts[0] if len(parts) == 1 else op.Concat(*parts, axis=0)
    return op.ScatterND(x, place, _widened(op, new, [], x, len(lead)))


def _widened(op: Op, new: ir.Value, lead: Sequence[Any], x: ir.Value, width: int) -> ir.Value:
    """``new`` broadcast to the sizes ``lead`` and those of ``x`` from dim ``width`` on."""
    dims = len(lead) + rank(x) - width
    new = _drop_leading(op, new, dims)
    fits = rank(new) == dims and all(
        isinstance(size, int) and size == static_size(new, a) for a, size in enumerate(lead)
    )
    shift = width - len(lead)
    if fits and all(same_size(new, a, x, a + shift) for a in range(len(lead), dims)):
        return new
    sizes = [*lead, *sizes_of(op, x)[width:]]
    return op.Expand(new, sizes) if sizes else new


def _assign_block(op: Op, x: ir.Value, items: Sequence[Any], new: ir.Value) -> ir.Value:
    """Cut ``x`` before and after the block, dim by dim, and join the parts anew."""
    for axis, item in enumerate(items):  # a value of rank 0 needs no dims
        if is_position(item) and rank(new):
            after = sum(1 for i in items[axis + 1 :] if not is_position(i))
            if rank(new) > after:
                new = with_dim(op, new, rank(new) - after)
    new = _drop_leading(op, new, rank(x))
    cuts = [(a, *_limits(op, x, i, a)) for a, i in enumerate(items) if not is_full(i)]
    lengths = {
        a: 1 if is_position(items[a]) else _length(first, stop, x, new, a)
        for a, first, stop in cuts
    }
    if 0 in lengths.values():
        return x
    return _block(op, x, cuts, _spread(op, x, cuts, lengths, new))


def _length(first: Any, stop: Any, x: ir.Value, new: ir.Value, axis: int) -> int | None:
    """How many places lie between two bounds, where that does not depend on the size."""
    total = x.shape.dims[axis]
    if not (isinstance_static(first) and isinstance_static(stop)):
        return None
    if isinstance(total, int):
        return len(range(total)[first:stop])
    wanted = stop - first if (first < 0) == (stop < 0) else -first if stop == INT64_MAX else None
    # A dim that is too small for the slice is too small for a value of its length too.
    given = static_size(new, axis) if rank(new) == rank(x) else None
    return wanted if given == wanted and given != 1 else None


def _spread(
    op: Op, x: ir.Value, cuts: Sequence[Any], lengths: dict[int, int | None], new: ir.Value
) -> ir.Value:
    """The assigned value in the shape of the block that it goes to."""
    if None in lengths.values():
        axes = [a for a, _, _ in cuts]
        block = op.Slice(x, [c[1] for c in cuts], [c[2] for c in cuts], axes)
        spread = op.Expand(new, op.Shape(block))
    else:
        fits = rank(new) == rank(x) and all(
            static_size(new, a) == lengths[a] if a in lengths else same_size(new, a, x, a)
            for a in range(rank(x))
        )
        if fits:
            return new
        sizes = [lengths[a] if a in lengths else op.dim(x, a) for a in range(rank(x))]
        spread = op.Expand(new, sizes)
    spread.shape = ir.Shape([lengths.get(a, d) for a, d in enumerate(x.shape.dims)])
    return spread


def _block(op: Op, x: ir.Value, cuts: Sequence[tuple[int, Any, Any]], new: ir.Value) -> ir.Value:
    (axis, first, stop), *inner = cuts
    if inner:
        part = op.Slice(x, [first], [stop], [axis])
        part.shape = x.shape.copy()
        part.shape[axis] = None
        new = _block(op, part, inner, new)
    return join_back(op, x, new, axis, first, stop)


def _limits(op: Op, x: ir.Value, item: Any, axis: int) -> tuple[Any, Any]:
    """Where a position or a slice begins and ends: not before it begins."""
    total = x.shape.dims[axis]
    if is_position(item):
        if isinstance(item, ir.Value):
            start: Any = op.Mod(position(op, item), op.dim(x, axis))
            return start, op.Add(start, 1)
        if isinstance_static(item):
            start = item + total if item < 0 and isinstance(total, int) else item
            return start, INT64_MAX if start == -1 else start + 1
        return item, item + 1
    start = 0 if item.start is None else item.start
    stop = INT64_MAX if item.stop is None else item.stop
    if isinstance(total, int) and isinstance_static(start) and isinstance_static(stop):
        start, stop, _ = slice(start, stop).indices(total)
        return start, max(start, stop)
    if isinstance_static(start) and isinstance_static(stop) and (start < 0) == (stop < 0):
        return start, max(start, stop)
    if isinstance_static(start) and start == 0 and not isinstance(stop, ir.Value):
        return start, stop
    if isinstance_static(stop) and stop == INT64_MAX:
        return (position(op, start) if isinstance(start, ir.Value) else start), stop
    return _ordered(op, op.dim(x, axis), start, stop)


def _ordered(op: Op, total: Any, start: Any, stop: Any) -> tuple[ir.Value, ir.Value]:
    """Bounds counted from the start, the second not below the first."""
    first, last = _from_start(op, total, start), _from_start(op, total, stop)
    return first, op.Max(first, last)


def _from_start(op: Op, total: Any, bound: Any) -> ir.Value:
    """A bound that counts from the start, also if it is negative."""
    place = position(op, bound)
    if isinstance(bound, TracedInt) and bound.record.nonnegative:
        return place
    if not isinstance_static(bound):
        return op.Where(op.Less(place, 0), op.Add(place, total), place)
    return op.Add(place, total) if bound < 0 else place


def scatter_rows(
    op: Op, x: ir.Value, lead: Sequence[Any], new: ir.Value, reduction: str | None = None
) -> ir.Value:
    """``ScatterND-18`` at places that positions, arrays and masks choose in the first dims."""
    if len(lead) == 1 and is_mask(lead[0]):
        width = rank(lead[0])
        places = op.Transpose(op.NonZero(op.cast(lead[0], BOOL)), perm=[1, 0])
        places.shape = ir.Shape([None, width])
    else:
        arrays = [i if isinstance(i, ir.Value) else op.operand(i, INT64) for i in lead]
        found = positions_of(op, [(0, a) for a in arrays])
        places, width = stacked(op, [p for _, p in found]), len(found)
    counts = [op.dim(places, axis) for axis in range(rank(places) - 1)]
    update = _widened(op, new, counts, x, width)
    return kernels.scatter(op, "ScatterND", x, places, update, reduction=reduction)


def _assign_positions(
    op: Op, x: ir.Value, items: Sequence[Any], new: ir.Value, *, reduction: str | None = None
) -> ir.Value:
    """Write by flat position: indexing the positions themselves says where."""
    static = static_shape(x)
    if static is None:
        count = op.ReduceProd(op.shape(x), keepdims=0)
    else:
        count = op.constant(np.asarray(math.prod(static)))
    grid = reshape_like(op, op.Range(np.asarray(0), count, np.asarray(1)), x)
    places, arrays = basic(op, grid, items)
    if arrays:
        places = gather_at(op, places, arrays)
    update = _drop_leading(op, new, rank(places))
    update = op.Reshape(op.Expand(update, op.Shape(places)), [-1])
    base, line = op.Reshape(x, [-1]), op.Reshape(places, [-1])
    flat = kernels.scatter(op, "ScatterElements", base, line, update, axis=0, reduction=reduction)
    return reshape_like(op, flat, x)


@lowers(torch.index_put, torch.ops.aten._unsafe_index_put)
def index_put(
    op: Op,
    /,
    input: ir.Value,
    indices: Sequence[Any],
    values: ir.Value,
    accumulate: bool = False,
) -> ir.Value:
    """Lower as an assignment, or to a scatter that adds."""
    index = tuple(slice(None) if i is None else i for i in indices)
    items = normalised(op, index, rank(input))
    (new,) = promote(op, values, to=input.dtype)
    if not accumulate:
        return assign(op, input, items, new)
    arrays = [i for i in items if isinstance(i, ir.Value)]
    if list(items[: len(arrays)]) == arrays and all(is_full(i) for i in items[len(arrays) :]):
        return like_shape(scatter_rows(op, input, arrays, new, "add"), input)
    return like_shape(_assign_positions(op, input, items, new, reduction="add"), input)
