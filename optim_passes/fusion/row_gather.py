"""Several nodes that move rows about become one ``Gather``."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from optim_passes.rewriting import NodePass
from optim_passes.simplify.slices import slice_ranges
from optim_passes.values import (
    attribute,
    constant,
    input_of,
    ints,
    norm_axis,
    producer,
    static_shape,
)
from optim_passes.views import permutation

if TYPE_CHECKING:
    import onnx_ir as ir

    from optim_passes.builder import Builder

__all__ = ["RowGatherPass"]

_MOVES = ("Reshape", "Squeeze", "Unsqueeze", "Flatten", "Transpose", "Slice", "Split", "Concat")
_COPIES = frozenset({"Transpose", "Slice", "Split", "Concat"})
_ROW = 16  # elements from which copying rows one by one is as fast as a transpose
_ROWS = 1 << 20

Array = np.ndarray[Any, Any]


class RowGatherPass(NodePass):
    """Reshapes, transposes, slices and concatenations of static shape become one ``Gather``.

    That is where they only move rows of the last axis, and copy at least twice: the rolls and
    windows of Swin, its merging of patches.
    """

    op_types: ClassVar[frozenset[str]] = frozenset(_MOVES)
    repeat: ClassVar[bool] = False

    def rewrite(self, node: ir.Node, op: Builder) -> Any:
        """The rows in their new order."""
        if node.domain or static_shape(node.outputs[0]) is None:
            return None
        if any(use.node.op_type in _MOVES and not use.node.domain for use in _uses(node)):
            return None  # what follows moves them further
        source, copies = _source(node.outputs[0])
        shape = static_shape(source)
        if source is None or shape is None or copies < 2 or shape[-1:] == ():
            return None
        width, rows = shape[-1], math.prod(shape[:-1])
        out = static_shape(node.outputs[0])
        assert out is not None
        if width < _ROW or rows > _ROWS or rows < 2 or out[-1] % width:
            return None
        start = np.arange(rows).reshape(*shape[:-1], 1)
        index = _moved(node.outputs[0], source, start, width)
        if index is None or index.size > _ROWS:
            return None
        flat = op.Reshape(source, [rows, width])
        moved = op.Gather(flat, op.constant(index.reshape(-1).astype(np.int64)), axis=0)
        return op.Reshape(moved, list(out))


def _uses(node: ir.Node) -> list[Any]:
    return [use for value in node.outputs for use in value.uses()]


def _source(value: ir.Value) -> tuple[ir.Value | None, int]:
    """The one value that everything is taken from, and how many nodes copy on the way."""
    nodes: set[ir.Node] = set()
    pending: list[ir.Value | None] = [value]
    while pending:
        node = producer(pending.pop(), *_MOVES)
        if node is not None and node not in nodes and constant(node.inputs[0]) is None:
            nodes.add(node)
            pending += _data(node)
    last = value.producer()
    while shared := [n for n in nodes if n is not last and _is_read_elsewhere(n, nodes)]:
        nodes.difference_update(shared)
    made = {v for n in nodes for v in n.outputs}
    sources = {v for n in nodes for v in _data(n)} - made
    if len(sources) != 1:
        return None, 0
    return next(iter(sources)), sum(n.op_type in _COPIES for n in nodes)


def _is_read_elsewhere(node: ir.Node, nodes: set[ir.Node]) -> bool:
    read = any(use.node not in nodes for use in _uses(node))
    return read or any(v.is_graph_output() for v in node.outputs)


def _data(node: ir.Node) -> list[ir.Value | None]:
    return list(node.inputs) if node.op_type == "Concat" else [node.inputs[0]]


def _moved(value: ir.Value, source: ir.Value, start: Array, width: int) -> Array | None:
    """Which row of the source stands where; the last axis counts rows of ``width`` elements."""
    if value is source:
        return start
    node, shape = value.producer(), static_shape(value)
    if node is None or shape is None or not shape or shape[-1] % width:
        return None
    parts = [_moved(v, source, start, width) for v in _data(node) if v is not None]
    if any(p is None for p in parts):
        return None
    x = parts[0]
    assert x is not None
    size = x.ndim
    if node.op_type == "Transpose":
        perm = permutation(node)
        return None if perm is None or perm[-1] != size - 1 else np.transpose(x, perm)
    if node.op_type == "Concat":
        axis = norm_axis(attribute(node, "axis"), size)
        return np.concatenate([p for p in parts if p is not None], axis)
    if node.op_type == "Slice":
        return _sliced(node, x)
    if node.op_type == "Split":
        return _split(node, value, x)
    before = static_shape(node.inputs[0])
    if before is None or math.prod(shape[:-1]) * (shape[-1] // width) != x.size:
        return None
    return x.reshape(*shape[:-1], shape[-1] // width)


def _sliced(node: ir.Node, x: Array) -> Array | None:
    ranges = slice_ranges(node)
    if ranges is not None:
        if x.ndim - 1 in ranges:
            return None
        return x[tuple(slice(*ranges.get(axis, (None, None))) for axis in range(x.ndim))]
    starts, ends, axes, steps = (ints(input_of(node, i)) for i in range(1, 5))
    if starts is None or ends is None or axes is None or steps is None:
        return None
    cut: list[Any] = [slice(None)] * x.ndim
    for start, end, raw, step in zip(starts, ends, axes, steps, strict=True):
        axis = norm_axis(raw, x.ndim)
        if axis == x.ndim - 1 or step < 1:
            return None
        cut[axis] = slice(start, min(end, x.shape[axis]), step)
    return x[tuple(cut)]


def _split(node: ir.Node, value: ir.Value, x: Array) -> Array | None:
    axis = norm_axis(attribute(node, "axis", 0), x.ndim)
    sizes = [(static_shape(v) or (0,) * x.ndim)[axis] for v in node.outputs]
    if axis == x.ndim - 1 or sum(sizes) != x.shape[axis]:
        return None
    first = sum(sizes[: value.index() or 0])
    return np.take(x, range(first, first + sizes[value.index() or 0]), axis)
