"""``x[...]``, ``x[...] = y``, gather and scatter."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import torch

from exporters.pytorch.lowerings.shaping import rank
from exporters.pytorch.registry import lowers
from exporters.tracing.graph import INT64_MAX, isinstance_static

if TYPE_CHECKING:
    from collections.abc import Sequence

    from exporters.tracing.graph import GraphBuilder as Op

T = torch.Tensor


def _normalised(op: Op, index: Any, dims: int) -> list[Any]:
    """One entry per indexed dim: an int, a slice, None, or an array of positions or truths."""
    items = list(index) if isinstance(index, tuple) else [index]
    items = [_as_array(op, i) if isinstance(i, list | range | np.ndarray) else i for i in items]
    used = sum(_width(i) for i in items)
    rest = [slice(None)] * (dims - used)
    for position, item in enumerate(items):
        if item is Ellipsis:
            return [*items[:position], *rest, *(i for i in items[position + 1 :] if i is not Ellipsis)]
    return [*items, *rest]


def _as_array(op: Op, items: Any) -> ir.Value:
    flat: list[Any] = list(items)
    if any(isinstance(i, ir.Value) or hasattr(i, "scalar") for i in flat):
        parts = [op.Reshape(op.operand(i, ir.DataType.INT64), [1]) for i in flat]
        return op.Concat(*parts, axis=0)
    array = np.asarray(flat)
    return op.constant(array if array.dtype == bool else array.astype(np.int64))


def _width(item: Any) -> int:
    """How many dims of the indexed tensor an entry stands for."""
    if item is None or item is Ellipsis or isinstance(item, bool):
        return 0
    if isinstance(item, ir.Value) and item.dtype in (ir.DataType.BOOL, ir.DataType.UINT8):
        return rank(item)
    return 1


def _is_full(item: Any) -> bool:
    return isinstance(item, slice) and item == slice(None)


def _is_position(item: Any) -> bool:
    """An int, or a rank-0 tensor of one: it takes its dim away."""
    if isinstance(item, ir.Value):
        return rank(item) == 0 and item.dtype not in (ir.DataType.BOOL, ir.DataType.UINT8)
    return isinstance(item, int) and not isinstance(item, bool)


def _basic(op: Op, x: ir.Value, items: Sequence[Any]) -> tuple[ir.Value, list[tuple[int, ir.Value]]]:
    """Apply ints, slices and Nones; return the arrays left over, each with the dim it indexes."""
    starts, ends, axes, steps = [], [], [], []
    positions: list[tuple[int, Any]] = []
    new_axes: list[int] = []
    arrays: list[tuple[int, ir.Value]] = []
    axis = out = 0
    for item in items:
        if item is None:
            new_axes.append(out)
            out += 1
        elif isinstance(item, bool):
            new_axes.append(out)
            arrays.append((out, op.constant(np.asarray([item]))))
            out += 1
        elif _is_position(item):
            positions.append((axis, item))
            axis += 1
        elif isinstance(item, ir.Value):
            if rank(item) == 0:  # a truth value: a new dim that it keeps or empties
                new_axes.append(out)
                arrays.append((out, op.Unsqueeze(op.cast(item, ir.DataType.BOOL), [0])))
                out += 1
                continue
            arrays.append((out, item))
            axis += _width(item)
            out += _width(item)
        else:
            if not _is_full(item):
                starts.append(0 if item.start is None else item.start)
                ends.append(INT64_MAX if item.stop is None else item.stop)
                steps.append(1 if item.step is None else item.step)
                axes.append(axis)
            axis += 1
            out += 1
    if axes:
        unit = all(isinstance_static(s) and s == 1 for s in steps)
        x = op.Slice(x, starts, ends, axes, None if unit else steps)
    for at, item in reversed(positions):
        x = op.Gather(x, item, axis=at)
    if new_axes:
        x = op.Unsqueeze(x, new_axes)
    return x, arrays


def _positions_of(op: Op, arrays: Sequence[tuple[int, ir.Value]]) -> list[tuple[int, ir.Value, bool]]:
    """Truth arrays as positions; the flag says that their number is known at run time only."""
    found: list[tuple[int, ir.Value, bool]] = []
    for axis, array in arrays:
        if array.dtype not in (ir.DataType.BOOL, ir.DataType.UINT8):
            found.append((axis, op.cast(array, ir.DataType.INT64), False))
            continue
        places = op.NonZero(op.cast(array, ir.DataType.BOOL))  # [rank, count]
        for i in range(rank(array)):
            row = op.Gather(places, i, axis=0)
            row.shape = ir.Shape([None])
            found.append((axis + i, row, True))
    return found


def _setitem_back(op: Op, base: ir.Value, view: ir.Value, index: Any) -> ir.Value:
    return setitem(op, base, index, view)


@lowers(T.__getitem__, put_back=_setitem_back)
def getitem(op: Op, /, input: ir.Value, index: Any) -> ir.Value:
    """Lower to ``Slice``, ``Gather`` and ``GatherND`` by torch's rules, which are not NumPy's.

    Ints are applied before arrays, so they never separate arrays; arrays that a slice separates put
    their dims first.
    """
    x, arrays = _basic(op, input, _normalised(op, index, rank(input)))
    if not arrays:
        return x
    return gather_at(op, x, arrays)


def gather_at(op: Op, x: ir.Value, arrays: Sequence[tuple[int, ir.Value]]) -> ir.Value:
    """Index dims of ``x`` with arrays that broadcast against each other."""
    places = _positions_of(op, arrays)
    unbacked = any(flag for _, _, flag in places)
    axes = [axis for axis, _, _ in places]
    if len(places) == 1:
        result = op.Gather(x, places[0][1], axis=axes[0])
    else:
        result = _gather_nd(op, x, axes, [p for _, p, _ in places])
    if unbacked:
        result.meta["unbacked"] = True
    return result


def _joined(op: Op, places: Sequence[ir.Value]) -> tuple[ir.Value, int]:
    """Broadcast position arrays and stack them along a new last dim."""
    dims = max(rank(p) for p in places)
    shapes = [tuple(p.shape.dims) for p in places]
    if len(set(map(str, shapes))) > 1 or any(not isinstance(d, int) for s in shapes for d in s):
        shape = op.Shape(places[0])
        if len({rank(p) for p in places}) > 1 or len(places) > 1:
            total = places[0]
            for p in places[1:]:
                total = op.Add(total, p)
            shape = op.Shape(total)
        places = [op.Expand(p, shape) for p in places]
    stacked = op.Concat(*(op.Unsqueeze(p, [-1]) for p in places), axis=-1)
    return stacked, dims


def _gather_nd(op: Op, x: ir.Value, axes: list[int], places: list[ir.Value]) -> ir.Value:
    others = [a for a in range(rank(x)) if a not in axes]
    order = [*axes, *others]
    total = rank(x)
    if order != list(range(total)):
        x = op.Transpose(x, perm=order)
    stacked, dims = _joined(op, places)
    result = op.GatherND(x, stacked)
    adjacent = axes == list(range(axes[0], axes[0] + len(axes)))
    if adjacent and axes[0] > 0:
        before = axes[0]
        count = dims + len(others)
        perm = [*range(dims, dims + before), *range(dims), *range(dims + before, count)]
        result = op.Transpose(result, perm=perm)
    return result


def _value_for(op: Op, value: Any, x: ir.Value) -> ir.Value:
    return op.cast(value, x.dtype) if isinstance(value, ir.Value) else op.operand(value, x.dtype)


@lowers(T.__setitem__)
def setitem(op: Op, /, input: ir.Value, index: Any, value: Any) -> ir.Value:
    """The tensor after ``input[index] = value``."""
    dims = rank(input)
    items = _normalised(op, index, dims)
    new = _value_for(op, value, input)
    kept = [i for i in items if i is not None]
    if all(_is_full(i) for i in kept):
        return op.Expand(_drop_leading(op, new, dims), op.shape(input))
    masks = [i for i in kept if isinstance(i, ir.Value) and i.dtype == ir.DataType.BOOL]
    if len(masks) == 1 and kept[0] is masks[0] and all(_is_full(i) for i in kept[1:]):
        mask = masks[0]
        if rank(new) <= dims - rank(mask):
            extra = dims - rank(mask)
            wide = op.Unsqueeze(mask, list(range(rank(mask), dims))) if extra else mask
            return op.Where(wide, new, input)
    if None not in items and all(isinstance(i, slice) or _is_position(i) for i in items):
        lead = [i for i in items if _is_position(i)]
        if items[: len(lead)] == lead and all(_is_full(i) for i in items[len(lead) :]):
            return _set_row(op, input, lead, new)
        if all(_step(i) == 1 for i in items if isinstance(i, slice)):
            return _set_block(op, input, items, new, 0)
    return _set_positions(op, input, items, new)


def _step(item: slice) -> Any:
    return 1 if item.step is None else item.step


def _drop_leading(op: Op, new: ir.Value, dims: int) -> ir.Value:
    """Torch lets an assigned value have extra leading dims of size 1."""
    extra = rank(new) - dims
    return op.Squeeze(new, list(range(extra))) if extra > 0 else new


def _set_row(op: Op, x: ir.Value, lead: Sequence[Any], new: ir.Value) -> ir.Value:
    parts = [op.Reshape(op.operand(i, ir.DataType.INT64), [1]) if not isinstance(i, ir.Value)
             else op.Reshape(op.cast(i, ir.DataType.INT64), [1]) for i in lead]
    place = parts[0] if len(parts) == 1 else op.Concat(*parts, axis=0)
    rest = rank(x) - len(lead)
    new = _drop_leading(op, new, rest)
    tail = op.Shape(x, start=len(lead)) if rest else None
    update = op.Unsqueeze(op.Expand(new, tail) if rest else new, [0])
    return op.ScatterND(x, op.Unsqueeze(place, [0]), update)


def _set_block(op: Op, x: ir.Value, items: Sequence[Any], new: ir.Value, axis: int) -> ir.Value:
    """Cut ``x`` before and after the written block, dim by dim, and join the parts anew."""
    while axis < len(items) and _is_full(items[axis]):
        axis += 1
    if axis == len(items):
        return op.Expand(new, op.Shape(x))
    item = items[axis]
    if _is_position(item):
        start, stop = item, None if isinstance(item, int) and not hasattr(item, "record") and item == -1 else _next(op, item)
        new = _insert_dim(op, new, len(items), axis, items)
    else:
        start, stop = item.start, item.stop
    first = 0 if start is None else start
    inner = op.Slice(x, [first], [INT64_MAX if stop is None else stop], [axis])
    inner.shape = ir.Shape([None] * rank(x))
    parts = [_set_block(op, inner, items, new, axis + 1)]
    if not (isinstance_static(first) and first == 0):
        parts.insert(0, op.Slice(x, [0], [first], [axis]))
    if stop is not None:
        after = stop
        if not (isinstance_static(stop) and isinstance_static(first)):
            after = op.Max(_vector(op, stop), _vector(op, first))
        elif isinstance(stop, int) and isinstance(first, int) and (stop < 0) == (first < 0):
            after = max(stop, first)
        parts.append(op.Slice(x, [after], [INT64_MAX], [axis]))
    return parts[0] if len(parts) == 1 else op.Concat(*parts, axis=axis)


def _vector(op: Op, x: Any) -> ir.Value:
    if isinstance(x, ir.Value):
        return op.Reshape(op.cast(x, ir.DataType.INT64), [1])
    return op.operand([x])


def _next(op: Op, item: Any) -> Any:
    return op.Add(item, 1) if isinstance(item, ir.Value) else item + 1


def _insert_dim(op: Op, new: ir.Value, total: int, axis: int, items: Sequence[Any]) -> ir.Value:
    """Give the assigned value the dim of size 1 that an int index took away."""
    after = sum(1 for i in items[axis + 1 :] if not _is_position(i))
    if rank(new) <= after:  # the new dim would only be a leading 1
        return new
    return op.Unsqueeze(new, [rank(new) - after])


def _set_positions(op: Op, x: ir.Value, items: Sequence[Any], new: ir.Value, *, reduction: str | None = None) -> ir.Value:
    """Write by flat position: indexing the positions themselves says where."""
    shape = op.shape(x)
    grid = op.Reshape(op.Range(0, op.ReduceProd(shape, keepdims=0), 1), shape)
    grid.shape = x.shape
    places, arrays = _basic(op, grid, items)
    if arrays:
        places = gather_at(op, places, arrays)
    target = op.Shape(places)
    known = places.shape
    if known is not None:
        new = _drop_leading(op, new, len(known.dims))
    update = op.Reshape(op.Expand(new, target), [-1])
    flat = op.ScatterElements(op.Reshape(x, [-1]), op.Reshape(places, [-1]), update, axis=0, reduction=reduction)
    return op.Reshape(flat, shape)


@lowers(torch.index_put)
def index_put(op: Op, /, input: ir.Value, indices: Sequence[Any], values: ir.Value, accumulate: bool = False) -> ir.Value:
    items = [slice(None) if i is None else i for i in indices]
    items = _normalised(op, tuple(items), rank(input))
    new = _value_for(op, values, input)
    if not accumulate:
        return setitem(op, input, tuple(items), new)
    return _set_positions(op, input, items, new, reduction="add")


@lowers(torch.index_select)
def index_select(op: Op, /, input: ir.Value, dim: int, index: ir.Value) -> ir.Value:
    if rank(input) == 0:
        return input
    flat = op.Reshape(index, [-1]) if rank(index) != 1 else index
    return op.Gather(input, flat, axis=dim % rank(input))


@lowers(torch.gather)
def gather(op: Op, /, input: ir.Value, dim: int, index: ir.Value, *, sparse_grad: object = False) -> ir.Value:
    if rank(input) == 0:
        return input if rank(index) == 0 else op.Expand(input, op.shape(index))
    return op.GatherElements(input, index, axis=dim % rank(input))


@lowers(torch.embedding)
def embedding(op: Op, /, weight: ir.Value, indices: ir.Value, padding_idx: object = -1,
              scale_grad_by_freq: object = False, sparse: object = False) -> ir.Value:
    return op.Gather(weight, indices, axis=0)
