"""``x[...]``: slices, positions, arrays of positions, masks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import torch

from exporters.pytorch.lowerings import kernels
from exporters.pytorch.lowerings.shaping import (
    broadcast_sizes,
    has_shape_of,
    join_dims,
    permuted,
    rank,
    sizes_of,
)
from exporters.pytorch.lowerings.slicing import position
from exporters.pytorch.registry import lowers
from exporters.tracing.graph import INT64_MAX, isinstance_static, static_shape
from exporters.tracing.scalars import TracedInt

if TYPE_CHECKING:
    from collections.abc import Sequence

    from exporters.tracing.graph import GraphBuilder as Op

T: Any = torch.Tensor
BOOL, INT64 = ir.DataType.BOOL, ir.DataType.INT64
_TRUTHS = (BOOL, ir.DataType.UINT8)


# What an index says


def normalised(op: Op, index: Any, dims: int) -> list[Any]:
    """One entry per indexed dim: an int, a slice, None, or an array of positions or truths."""
    items = [
        _as_array(op, i) if isinstance(i, list | range | np.ndarray) else i
        for i in _entries(index)
    ]
    used = sum(_width(i) for i in items)
    rest = [slice(None)] * (dims - used)
    for at, item in enumerate(items):
        if item is Ellipsis:
            return [*items[:at], *rest, *(i for i in items[at + 1 :] if i is not Ellipsis)]
    return [*items, *rest]


def _entries(index: Any) -> list[Any]:
    """A tuple's entries; a list counts as one where it holds more than numbers."""
    if isinstance(index, tuple):
        return list(index)
    compound = (list, tuple, slice, ir.Value, type(None), type(Ellipsis))
    if isinstance(index, list) and any(isinstance(i, compound) for i in index):
        return index
    return [index]


def _as_array(op: Op, items: Any) -> ir.Value:
    flat: list[Any] = list(items)
    if any(isinstance(i, ir.Value) or hasattr(i, "scalar") for i in flat):
        return op.Concat(*(position(op, i) for i in flat), axis=0)
    array = np.asarray(flat)
    return op.constant(array if array.dtype == bool else array.astype(np.int64))


def _width(item: Any) -> int:
    """How many dims of the indexed tensor an entry stands for."""
    if item is None or item is Ellipsis or isinstance(item, bool):
        return 0
    if isinstance(item, ir.Value) and item.dtype in _TRUTHS:
        return rank(item)
    return 1


def is_full(item: Any) -> bool:
    """Whether an entry is a bare ``:``."""
    return (
        isinstance(item, slice)
        and item.stop is None
        and unit_step(item)
        and (item.start is None or (isinstance_static(item.start) and item.start == 0))
    )


def unit_step(item: Any) -> bool:
    """Whether an entry skips nothing."""
    step = item.step if isinstance(item, slice) else None
    return step is None or (isinstance_static(step) and step == 1)


def is_position(item: Any) -> bool:
    """An int, or a rank-0 tensor of one: it takes its dim away."""
    if isinstance(item, ir.Value):
        return rank(item) == 0 and item.dtype not in _TRUTHS
    return isinstance(item, int) and not isinstance(item, bool)


def is_mask(item: Any) -> bool:
    return isinstance(item, ir.Value) and item.dtype in _TRUTHS


def _covers(op: Op, item: slice, x: ir.Value, axis: int) -> bool:
    """Whether a slice takes all there is."""
    if is_full(item):
        return True
    start, stop = item.start, item.stop
    if not unit_step(item) or isinstance(start, ir.Value) or isinstance(stop, ir.Value):
        return False
    if start is not None and not (isinstance_static(start) and start == 0):
        return False
    total = x.shape.dims[axis]
    if isinstance_static(stop):
        return isinstance(total, int) and stop >= total
    return op.same_size(stop, x, axis)


def _bound(op: Op, bound: Any, default: int) -> Any:
    if bound is None:
        return default
    return position(op, bound) if isinstance(bound, ir.Value) else bound


def basic(
    op: Op, x: ir.Value, items: Sequence[Any]
) -> tuple[ir.Value, list[tuple[int, ir.Value]]]:
    """Apply ints, slices and Nones; return the arrays left over, each with the dim it indexes."""
    slices: list[tuple[int, slice]] = []
    positions: list[tuple[int, Any]] = []
    new_axes: list[int] = []
    arrays: list[tuple[int, ir.Value]] = []
    axis = out = 0  # in the indexed tensor, and in the result
    for item in items:
        if item is None:
            new_axes.append(out)
            out += 1
        elif isinstance(item, bool) or (is_mask(item) and rank(item) == 0):
            # A truth value makes a new dim, which it keeps or empties.
            truth = op.operand(item) if isinstance(item, bool) else op.cast(item, BOOL)
            new_axes.append(out)
            arrays.append((out, op.Reshape(truth, [1])))
            out += 1
        elif is_position(item):
            positions.append((axis, item))
            axis += 1
        elif isinstance(item, ir.Value):
            arrays.append((out, item))
            axis += _width(item)
            out += _width(item)
        else:
            if not _covers(op, item, x, axis):
                slices.append((axis - len(positions), item))
            axis += 1
            out += 1
    for gone, (at, item) in enumerate(positions):  # first, for they leave the least
        x = op.Gather(x, item, axis=at - gone)
    if slices:
        x = _sliced(op, x, slices)
    if new_axes:
        x = op.Unsqueeze(x, new_axes)
    return x, arrays


def _sliced(op: Op, x: ir.Value, slices: Sequence[tuple[int, slice]]) -> ir.Value:
    steps = [1 if s.step is None else s.step for _, s in slices]
    starts = [_bound(op, s.start, 0) for _, s in slices]
    stops = [_bound(op, s.stop, INT64_MAX) for _, s in slices]
    unit = all(isinstance_static(s) and s == 1 for s in steps)
    result = op.Slice(x, starts, stops, [axis for axis, _ in slices], None if unit else steps)
    if any(isinstance(b, ir.Value) for _, s in slices for b in (s.start, s.stop)) or any(
        _cuts_short(x, axis, s) for axis, s in slices
    ):
        result.meta["unbacked"] = True
    single = [axis for axis, s in slices if _takes_one(s)]
    if single and result.shape is not None:
        dims = list(result.shape.dims)
        result.shape = ir.Shape([1 if axis in single else d for axis, d in enumerate(dims)])
    return result


def _takes_one(item: slice) -> bool:
    """Whether a slice is ``i : i + 1`` for an ``i`` of the graph, which is taken to be in range."""
    if isinstance(item.start, TracedInt) and isinstance(item.stop, TracedInt):
        first, last = (b.record.base or (b.record, 0) for b in (item.start, item.stop))
        if first[0] is last[0] and last[1] - first[1] == 1:
            return unit_step(item)
    start, stop = (_written(b) for b in (item.start, item.stop))
    node = None if stop is None else stop.producer()
    if start is None or node is None or node.op_type != "Add" or not unit_step(item):
        return False
    rest = [v for v in node.inputs if v is not start]
    one = rest[0].const_value if len(rest) == 1 else None
    return one is not None and one.size == 1 and one.numpy().item() == 1


def _written(bound: Any) -> ir.Value | None:
    """A bound's value in the graph, if it is not a constant."""
    if not isinstance(bound, TracedInt):
        return bound if isinstance(bound, ir.Value) else None
    return bound.vector() if bound.record.prefers_vector else bound.scalar()


def _cuts_short(x: ir.Value, axis: int, item: slice) -> bool:
    """Whether ``x[:k]`` of a dynamic dim gives k items only where there are as many.

    A single one is taken for granted.
    """
    start, stop = 0 if item.start is None else item.start, item.stop
    if isinstance(x.shape.dims[axis], int) or not (
        isinstance_static(start) and isinstance_static(stop)
    ):
        return False
    if stop is None:
        return start < -1
    return start >= 0 and stop - start > 1


# Reading


def getitem(op: Op, /, input: ir.Value, index: Any) -> ir.Value:
    """Lower to ``Slice``, ``Gather``, ``Compress``, ``GatherND`` by torch's rules, not NumPy's.

    Ints are applied before arrays, so they never separate arrays; arrays that a slice separates
    put their dims first.
    """
    x, arrays = basic(op, input, normalised(op, index, rank(input)))
    return gather_at(op, x, arrays) if arrays else x


@lowers(torch.ops.aten.index, torch.ops.aten._unsafe_index)
def index(op: Op, /, self: ir.Value, indices: Sequence[Any]) -> ir.Value:
    """As :func:`getitem`; None stands for a whole dim."""
    return getitem(op, self, tuple(slice(None) if i is None else i for i in indices))


def gather_at(op: Op, x: ir.Value, arrays: Sequence[tuple[int, ir.Value]]) -> ir.Value:
    """Index dims of ``x`` with arrays that broadcast against each other."""
    meta = x.meta
    if len(arrays) == 1 and is_mask(arrays[0][1]):
        axis, mask = arrays[0]
        result = compress(op, x, mask, axis)
    else:
        places = positions_of(op, arrays)
        axes = [axis for axis, _ in places]
        result = _gather(op, x, axes, [p for _, p in places])
    if meta.get("unbacked") or any(is_mask(a) for _, a in arrays):
        result.meta["unbacked"] = True
    return result


def compress(op: Op, x: ir.Value, mask: ir.Value, axis: int) -> ir.Value:
    """Lower ``x[mask]`` to ``Compress-11``, the masked dims made one."""
    condition = op.cast(mask, BOOL)
    width = rank(mask)
    if width == 1:
        result = kernels.emit(op, "Compress", x, condition, axis=axis)
    elif width == rank(x):
        result = kernels.emit(op, "Compress", x, op.Reshape(condition, [-1]))
    else:
        joined = join_dims(op, x, sizes_of(op, x), axis, axis + width - 1)
        result = kernels.emit(op, "Compress", joined, op.Reshape(condition, [-1]), axis=axis)
    dims = x.shape.dims
    result.shape = ir.Shape([*dims[:axis], None, *dims[axis + width :]])
    return result


def positions_of(op: Op, arrays: Sequence[tuple[int, ir.Value]]) -> list[tuple[int, ir.Value]]:
    """Truth arrays as arrays of positions, one for each of their dims."""
    found: list[tuple[int, ir.Value]] = []
    for axis, array in arrays:
        if not is_mask(array):
            found.append((axis, array))
            continue
        places = op.NonZero(op.cast(array, BOOL))  # [rank, count]
        for i in range(rank(array)):
            row = op.Gather(places, i, axis=0)
            row.shape = ir.Shape([None])
            row.meta["count"] = places  # rows of one mask are equally long
            found.append((axis + i, row))
    return found


def _gather(op: Op, x: ir.Value, axes: list[int], places: list[ir.Value]) -> ir.Value:
    if len(places) == 1:
        return op.Gather(x, places[0], axis=axes[0])
    adjacent = axes == list(range(axes[0], axes[0] + len(axes)))
    if adjacent and (grid := _as_grid(op, places)) is not None:
        for axis, line in zip(axes, grid, strict=True):
            x = op.Gather(x, line, axis=axis)
        return x
    return _gather_nd(op, x, axes, places, adjacent=adjacent)


def _as_grid(op: Op, places: Sequence[ir.Value]) -> list[ir.Value] | None:
    """The arrays as lines of a grid, if each alone runs along the dim that is its own."""
    dims = max(rank(p) for p in places)
    if dims != len(places):
        return None
    lines = []
    for own, p in enumerate(places):
        sizes = [1] * (dims - rank(p)) + list(p.shape.dims)
        if any(size != 1 for axis, size in enumerate(sizes) if axis != own):
            return None
        lines.append(p if rank(p) == 1 else op.Reshape(p, [-1]))
    return lines


def _gather_nd(
    op: Op, x: ir.Value, axes: list[int], places: list[ir.Value], *, adjacent: bool
) -> ir.Value:
    others = [a for a in range(rank(x)) if a not in axes]
    x = permuted(op, x, [*axes, *others])
    dims = max(rank(p) for p in places)
    result = op.GatherND(x, stacked(op, places))
    count, before = dims + len(others), axes[0]
    result.shape = ir.Shape([None] * count)
    if not adjacent or before == 0:
        return result
    order = [*range(dims, dims + before), *range(dims), *range(dims + before, count)]
    return permuted(op, result, order)


def stacked(op: Op, places: Sequence[ir.Value]) -> ir.Value:
    """Position arrays, broadcast against each other, along a new last dim."""
    if all(p.const_value is not None for p in places):
        arrays = np.broadcast_arrays(*(p.const_value.numpy() for p in places))
        return op.constant(np.stack(arrays, axis=-1).astype(np.int64))
    places = [op.cast(p, INT64) for p in places]
    if not _have_one_shape(places):
        target = broadcast_sizes(op, places)
        shape = op.operand(target) if target else op.constant(np.zeros([0], np.int64))
        places = [
            p if list(static_shape(p) or [None]) == target else op.Expand(p, shape) for p in places
        ]
    if len(places) == 1:
        return op.Unsqueeze(places[0], [-1])
    return op.Concat(*(op.Unsqueeze(p, [-1]) for p in places), axis=-1)


def _have_one_shape(places: Sequence[ir.Value]) -> bool:
    first = places[0]
    count = first.meta.get("count")
    return all(
        has_shape_of(p, first) or (count is not None and p.meta.get("count") is count)
        for p in places[1:]
    )


@lowers(torch.index_select)
def index_select(op: Op, /, input: ir.Value, dim: int, index: ir.Value) -> ir.Value:
    """Lower to ``Gather-13``."""
    flat = op.Reshape(index, [-1]) if rank(index) != 1 else index
    if rank(input) == 0:
        return op.Reshape(op.Gather(op.Reshape(input, [1]), flat, axis=0), [])
    return op.Gather(input, flat, axis=dim % rank(input))


@lowers(torch.nn.functional.one_hot)
def one_hot(op: Op, /, input: ir.Value, num_classes: Any = -1) -> ir.Value:
    """Lower to ``OneHot-11``; without a number of classes there are as many as needed."""
    if isinstance_static(num_classes) and num_classes == -1:
        classes = op.Add(op.ReduceMax(input, keepdims=0), 1)
    else:
        classes = op.operand(num_classes, INT64)
    flat = input if rank(input) else op.Reshape(input, [1])
    result = op.OneHot(flat, classes, np.asarray([0, 1]), axis=-1)
    result = result if rank(input) else op.Squeeze(result, [0])
    known = num_classes if isinstance_static(num_classes) and num_classes != -1 else None
    result.shape = ir.Shape([*input.shape.dims, known])
    result.meta["unbacked"] = known is None
    return result


@lowers(torch.embedding)
def embedding(
    op: Op,
    /,
    weight: ir.Value,
    indices: ir.Value,
    padding_idx: object = -1,
    scale_grad_by_freq: object = False,
    sparse: object = False,
) -> ir.Value:
    """Lower to ``Gather-13``."""
    return op.Gather(weight, indices, axis=0)
