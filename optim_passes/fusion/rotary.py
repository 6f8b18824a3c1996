"""Rotary position embedding, and keys and values that several heads share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from optim_passes.fusion.attention_layout import flat_heads
from optim_passes.rewriting import NodePass, require, require_opset
from optim_passes.simplify.slices import slice_ranges
from optim_passes.values import (
    attribute,
    constant,
    dims,
    input_of,
    norm_axis,
    producer,
    rank,
    same_dim,
    small_array,
)

if TYPE_CHECKING:
    import onnx_ir as ir

    from optim_passes.builder import Builder

__all__ = ["RotaryHeadsPass", "RotaryPass", "SharedHeadsPass"]


class RotaryPass(NodePass):
    """``x * cos + rotate_half(x) * sin`` becomes ``RotaryEmbedding`` (opset 23 and later).

    ``rotate_half(x)`` is ``concat(-x[..., half:], x[..., :half])``. Cosines and sines hold each
    number twice, side by side; that is seen where they are ``concat(f, f)``.
    """

    op_types: ClassVar[frozenset[str]] = frozenset({"Add"})

    def rewrite(self, node: ir.Node, op: Builder) -> Any:
        """The embedding."""
        if node.domain:
            return None
        for first, second in (list(node.inputs), list(node.inputs)[::-1]):
            straight, turned = producer(first, "Mul"), producer(second, "Mul")
            if straight is None or turned is None:
                continue
            for x, cos in (list(straight.inputs), list(straight.inputs)[::-1]):
                for half, sin in (list(turned.inputs), list(turned.inputs)[::-1]):
                    if x is None or cos is None or sin is None or not _is_rotated(half, x):
                        continue
                    return self._fuse(x, cos, sin, op)
        return None

    def _fuse(self, x: ir.Value, cos: ir.Value, sin: ir.Value, op: Builder) -> ir.Value:
        require_opset(op, 23)
        shape = dims(x)
        require(shape is not None and len(shape) == 4, f"the rank is {rank(x)}", x)
        assert shape is not None
        require(isinstance(shape[3], int), "the size of the heads varies", x)
        tables = []
        for name, table in (("cosines", cos), ("sines", sin)):
            half = _half(table, op)
            require(half is not None, f"the {name} are not two equal halves", table)
            tables.append(half)
        y: ir.Value = op.RotaryEmbedding(x, *(_table(t, x, op) for t in tables if t is not None))
        return y


def _is_rotated(value: ir.Value | None, x: ir.Value) -> bool:
    """Whether the value is the second half of ``x``, negated, and then the first half."""
    concat = producer(value, "Concat")
    size = rank(x)
    if concat is None or len(concat.inputs) != 2 or size is None:
        return False
    if norm_axis(attribute(concat, "axis"), size) != size - 1:
        return False
    negated = producer(concat.inputs[0], "Neg")
    width = (dims(x) or (None,))[-1]
    if negated is None or not isinstance(width, int) or width % 2:
        return False
    half = width // 2
    return _is_part(negated.inputs[0], x, half, width) and _is_part(concat.inputs[1], x, 0, half)


def _is_part(value: ir.Value | None, x: ir.Value, low: int, high: int) -> bool:
    node = producer(value, "Slice", "Split")
    size = rank(x)
    if node is None or node.inputs[0] is not x or size is None or value is None:
        return False
    if node.op_type == "Slice":
        return slice_ranges(node) == {size - 1: (low, high)}
    if norm_axis(attribute(node, "axis", 0), size) != size - 1 or len(node.outputs) != 2:
        return False
    return value.index() == (1 if low else 0) and dims(value) is not None


def _half(table: ir.Value, op: Builder) -> ir.Value | None:
    """The first half of a table whose halves are equal along the last axis.

    Nodes that keep the last axis (Unsqueeze, Cast, a function of each element) are passed through.
    """
    array = constant(table)
    if array is not None:
        whole = array.numpy()
        half = whole.shape[-1] // 2
        if whole.shape[-1] % 2 or not np.array_equal(whole[..., :half], whole[..., half:]):
            return None
        return op.constant(whole[..., :half])
    node = producer(table, "Concat", "Unsqueeze", "Cast", "Cos", "Sin", "Mul", "Gather")
    size = rank(table)
    if node is None or size is None:
        return None
    if node.op_type == "Concat":
        equal = len(node.inputs) == 2 and node.inputs[0] is node.inputs[1]
        last = norm_axis(attribute(node, "axis"), size) == size - 1
        return node.inputs[0] if equal and last else None
    first = node.inputs[0]
    inner = None if first is None else _half(first, op)
    if inner is None:
        return None
    if node.op_type == "Unsqueeze":
        axes = small_array(node.inputs[1])
        if axes is None or any(norm_axis(int(a), size) == size - 1 for a in axes.reshape(-1)):
            return None
        return op.Unsqueeze(inner, np.asarray([norm_axis(int(a), size) for a in axes.reshape(-1)]))
    if node.op_type == "Gather":
        return op.Gather(inner, node.inputs[1], axis=0) if _is_rows(node) else None
    if node.op_type == "Mul":
        number = constant(node.inputs[1])
        return op.Mul(inner, node.inputs[1]) if number is not None and number.size == 1 else None
    return op.node(node.op_type, inner, attributes_of=node)


def _is_rows(node: ir.Node) -> bool:
    return not attribute(node, "axis", 0) and rank(node.inputs[0]) == 2


def _table(table: ir.Value, x: ir.Value, op: Builder) -> ir.Value:
    """The table as ``[batch, sequence, half]``, which the operator wants without positions."""
    shape, wanted = dims(table), dims(x)
    require(shape is not None, "the rank of the tables is not known", table)
    assert shape is not None
    assert wanted is not None
    if len(shape) == 4:
        require(shape[1] == 1, "the tables differ between heads", table)
        table, shape = op.Squeeze(table, [1]), (shape[0], *shape[2:])
    if len(shape) == 2:
        table, shape = op.Unsqueeze(table, [0]), (1, *shape)
    require(len(shape) == 3, f"the rank of the tables is {len(shape)}", table)
    if same_dim(shape[0], wanted[0]):
        return table
    require(shape[0] == 1, "the tables' batch is not that of the operand", table)
    batch = op.Shape(x, start=0, end=1)
    return op.Expand(table, op.Concat(batch, np.asarray([1, 1], np.int64), axis=0))


class RotaryHeadsPass(NodePass):
    """``RotaryEmbedding`` of heads that were split goes before that: it takes them either way."""

    op_types: ClassVar[frozenset[str]] = frozenset({"RotaryEmbedding"})

    def rewrite(self, node: ir.Node, op: Builder) -> Any:
        """The embedding of three dims, split into heads afterwards."""
        x = node.inputs[0]
        shape = dims(x)
        if node.domain or x is None or shape is None or len(shape) != 4:
            return None
        if not isinstance(shape[1], int) or not isinstance(shape[3], int):
            return None
        flat = flat_heads(x, op)
        if flat is None:
            return None
        y = op.node(
            "RotaryEmbedding", flat, *node.inputs[1:], like=flat, attributes_of=node,
            num_heads=shape[1],
        )  # fmt: skip
        split = op.Reshape(y, [0, 0, shape[1], shape[3]])
        return op.Transpose(split, perm=[0, 2, 1, 3])


class SharedHeadsPass(NodePass):
    """``Attention`` reads keys and values that heads share without the copies for each head."""

    op_types: ClassVar[frozenset[str]] = frozenset({"Attention"})

    def rewrite(self, node: ir.Node, op: Builder) -> Any:
        """The attention on fewer heads of keys and values."""
        if node.domain or rank(node.inputs[0]) != 4 or len(node.inputs) > 4:
            return None
        key, value = _unrepeated(node.inputs[1]), _unrepeated(node.inputs[2])
        if key is None or value is None:
            return None
        made = op.node(
            "Attention", node.inputs[0], key, value, input_of(node, 3), outputs=1,
            like=node.outputs[0], attributes_of=node,
        )  # fmt: skip
        return made if len(node.outputs) == 1 else None


def _unrepeated(value: ir.Value | None) -> ir.Value | None:
    """``[b, heads, s, d]`` before each head was repeated, by Expand and Reshape or by Gather."""
    shape = dims(value)
    if shape is None or not isinstance(shape[1], int):
        return None
    gather = producer(value, "Gather")
    if gather is not None and attribute(gather, "axis", 0) == 1:
        source, index = gather.inputs[0], small_array(gather.inputs[1])
        heads = (dims(source) or (None,) * 4)[1]
        if index is None or not isinstance(heads, int) or shape[1] % heads:
            return None
        repeated = np.repeat(np.arange(heads), shape[1] // heads)
        return source if np.array_equal(index, repeated) else None
    reshape = producer(value, "Reshape")
    expand = None if reshape is None else producer(reshape.inputs[0], "Expand")
    if expand is None:
        return None
    wide = dims(expand.outputs[0])
    single = producer(expand.inputs[0], "Unsqueeze", "Reshape")
    if single is None or wide is None or len(wide) != 5:
        return None
    source = single.inputs[0]
    before = dims(expand.inputs[0])
    if before is None or len(before) != 5 or before[2] != 1 or before[1] != wide[1]:
        return None
    if rank(source) != 4 or (dims(source) or (None, None))[1] != wide[1]:
        return None
    return source
