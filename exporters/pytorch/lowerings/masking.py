"""Selection by masks, positions of what is not zero."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnx_ir as ir
import torch

from exporters.pytorch.lowerings import kernels
from exporters.pytorch.lowerings.dims import same_size, static_size
from exporters.pytorch.lowerings.indexing import compress
from exporters.pytorch.lowerings.shaping import (
    at_least_1d,
    broadcast_sizes,
    like_shape,
    rank,
    reshape_like,
)
from exporters.pytorch.registry import decomposes, lowers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from exporters.tracing.graph import GraphBuilder as Op

INT64 = ir.DataType.INT64


def _spread_together(op: Op, *values: ir.Value) -> list[ir.Value]:
    """Values broadcast against each other."""
    target = broadcast_sizes(op, values)
    result = []
    for x in values:
        fits = rank(x) == len(target) and all(
            static_size(x, a) == s
            if isinstance(s, int)
            else all(rank(v) == rank(x) and same_size(x, a, v, a) for v in values)
            for a, s in enumerate(target)
        )
        result.append(x if fits or not target else op.Expand(x, target))
    return result


@lowers(torch.masked_select)
def masked_select(op: Op, /, input: ir.Value, mask: ir.Value) -> ir.Value:
    """Lower to ``Compress-11``."""
    x, condition = _spread_together(op, input, mask)
    if not rank(x):
        x, condition = op.Reshape(x, [1]), op.Reshape(condition, [1])
    result = compress(op, x, condition, 0)
    result.shape = ir.Shape([None])
    result.meta["unbacked"] = True
    return result


@lowers(torch.masked_scatter)
def masked_scatter(op: Op, /, input: ir.Value, mask: ir.Value, source: ir.Value) -> ir.Value:
    """Scatter as much of the source as there are truths; whole rows by ``ScatterND-18``."""
    rows = _rows_of(input, mask, source)
    if rows is not None:
        places = op.Transpose(op.NonZero(op.Squeeze(rows, [-1])), perm=[1, 0])
        width = static_size(source, -1)
        parts = op.Reshape(source, [-1, width]) if rank(source) != 2 else source
        written = op.ScatterND(input, places, _first(op, parts, places))
        return like_shape(written, input)
    x, condition = _spread_together(op, input, mask)
    places = op.Reshape(op.NonZero(op.Reshape(condition, [-1])), [-1])
    update = _first(op, op.Reshape(source, [-1]), places)
    flat = op.ScatterElements(op.Reshape(x, [-1]), places, update, axis=0)
    return reshape_like(op, flat, x)


def _first(op: Op, x: ir.Value, like: ir.Value) -> ir.Value:
    """As much of the first dim as another value has."""
    return op.Slice(x, [0], op.Shape(like, start=0, end=1), [0])


def _rows_of(x: ir.Value, mask: ir.Value, source: ir.Value) -> ir.Value | None:
    """The mask before it was spread over the last dim, if it was."""
    node = mask.producer()
    narrow = node.inputs[0] if node is not None and node.op_type == "Expand" else mask
    if narrow is None or narrow.shape is None or rank(narrow) != rank(x) or rank(x) < 2:
        return None
    width = static_size(x, -1)
    fits = static_size(narrow, -1) == 1 and width not in (None, 0, 1)
    fits = fits and rank(source) > 0 and static_size(source, -1) == width
    last = rank(x) - 1
    return narrow if fits and all(same_size(narrow, a, x, a) for a in range(last)) else None


# Positions of what is not zero


@lowers(torch.argwhere)
def argwhere(op: Op, /, input: ir.Value) -> ir.Value:
    return nonzero(op, input)


@lowers(torch.nonzero)
def nonzero(op: Op, /, input: ir.Value, *, as_tuple: bool = False) -> Any:
    """Lower to ``Transpose(NonZero-13)``, or to its rows."""
    if as_tuple:
        return nonzero_tuple(op, input)
    x = at_least_1d(op, input)
    places = op.Transpose(kernels.emit(op, "NonZero", x), perm=[1, 0])
    places.shape = ir.Shape([None, rank(input)])
    if not rank(input):  # as many rows of no positions
        places = op.Slice(places, [0], [0], [1])
    places.meta["unbacked"] = True
    return places


@lowers(torch.where)
def nonzero_tuple(op: Op, /, condition: ir.Value) -> list[ir.Value]:
    """Lower to the rows of ``NonZero-13``."""
    places = kernels.emit(op, "NonZero", at_least_1d(op, condition))
    rows = []
    for axis in range(max(rank(condition), 1)):
        row = op.Gather(places, axis, axis=0)
        row.shape = ir.Shape([None])
        row.meta["unbacked"] = True
        row.meta["count"] = places
        rows.append(row)
    return rows


@lowers(torch.nonzero_static)
def nonzero_static(op: Op, /, input: ir.Value, *, size: int, fill_value: int = -1) -> ir.Value:
    """The first ``size`` positions, or as many and padding."""
    places = nonzero(op, input)
    padding = op.Expand(op.operand(fill_value), [size, rank(input)])
    return op.Slice(op.Concat(places, padding, axis=0), [0], [size], [0])


@decomposes(torch.count_nonzero)
def count_nonzero(input: torch.Tensor, dim: int | Sequence[int] | None = None) -> torch.Tensor:
    truths = input if input.dtype == torch.bool else input != 0
    return truths.sum() if dim is None else truths.sum(dim)
