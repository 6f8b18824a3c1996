"""Rotary position embedding, and keys and values that several heads share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from optim_passes.fusion.attention_layout import flat_heads
from optim_passes.fusion.rotary_pairs import is_turned, once
from optim_passes.rewriting import NodePass, require, require_opset
from optim_passes.simplify.slices import slice_ranges
from optim_passes.values import (
    attribute,
    constant,
    dims,
    input_of,
    ints,
    norm_axis,
    only_consumer,
    producer,
    rank,
    same_dim,
    small_array,
)

if TYPE_CHECKING:
    import onnx_ir as ir

    from optim_passes.builder import Builder

Dims = tuple["int | ir.SymbolicDim", ...]

__all__ = ["RotaryHeadsPass", "RotaryPass", "SharedHeadsPass"]


class RotaryPass(NodePass):
    """``x * cos + rotate_half(x) * sin`` becomes ``RotaryEmbedding`` (opset 23 and later).

    ``rotate_half(x)`` is ``concat(-x[..., half:], x[..., :half])``. Cosines and sines hold each
    number twice, side by side; that is seen where they are ``concat(f, f)``. The halves may be
    written apart, ``concat(a * cos - b * sin, b * cos + a * sin)``, and what is left of the heads
    may be put behind them. Neighbours may be turned in place of halves.
    """

    op_types: ClassVar[frozenset[str]] = frozenset({"Add", "Concat"})

    def rewrite(self, node: ir.Node, op: Builder) -> Any:
        """The embedding."""
        if node.domain:
            return None
        if node.op_type == "Concat":
            return _joined(node, op)
        for first, second in (list(node.inputs), list(node.inputs)[::-1]):
            straight, turned = producer(first, "Mul"), producer(second, "Mul")
            if straight is None or turned is None:
                continue
            for x, cos in (list(straight.inputs), list(straight.inputs)[::-1]):
                for half, sin in (list(turned.inputs), list(turned.inputs)[::-1]):
                    if x is None or cos is None or sin is None:
                        continue
                    pairs = any(is_turned(half, s) for s in _spans(x))
                    if pairs or _is_rotated(half, x):
                        return self._fuse(x, cos, sin, op, pairs=pairs)
        return None

    def _fuse(
        self, x: ir.Value, cos: ir.Value, sin: ir.Value, op: Builder, *, pairs: bool
    ) -> ir.Value:
        require_opset(op, 23)
        tables = []
        for name, table in (("cosines", cos), ("sines", sin)):
            half = _half(table, op, pairs=pairs)
            parts = "pairs of equal ones" if pairs else "two equal halves"
            require(half is not None, f"the {name} are not {parts}", table)
            assert half is not None
            tables.append(half)
        return _embedding(x, tables, op, pairs=pairs)


def _joined(node: ir.Node, op: Builder) -> ir.Value | None:
    """The embedding of halves that are put together, or of the first part of each head."""
    size = rank(node.outputs[0])
    if size is None or norm_axis(attribute(node, "axis"), size) != size - 1:
        return None
    first, *others = node.inputs
    embedding = producer(first, "RotaryEmbedding")
    if embedding is not None and len(others) == 1 and first is not None:
        part, width = _span(embedding.inputs[0]), _width(embedding.inputs[0])
        rest = _span(others[0])
        whole = part is not None and (part[0], 0, width) == part and rest is not None
        if not whole or rest != (part[0], width, _width(part[0])):  # type: ignore[index]
            return None
        if only_consumer(first) is None or "rotary_embedding_dim" in embedding.attributes:
            return None
        x = part[0]  # type: ignore[index]
        return op.node(
            "RotaryEmbedding", x, *embedding.inputs[1:], attributes_of=embedding,
            rotary_embedding_dim=width,
        )  # fmt: skip
    halves = _halves(first, others[0]) if 1 <= len(others) <= 2 else None
    if halves is None or op.opset < 23:
        return None
    x, end, tables = halves
    width = _width(x)
    if end != width:
        rest = _span(others[1]) if len(others) == 2 else None
        if rest == (x, end, width):
            return _embedding(x, tables, op, dim=end)
        x = op.Slice(x, [0], [end], [size - 1])
    return _embedding(x, tables, op) if len(others) == 1 else None


def _halves(
    first: ir.Value | None, second: ir.Value | None
) -> tuple[ir.Value, int, list[ir.Value]] | None:
    """``x``, where its halves end, cosines and sines of ``a * c - b * s`` and ``b * c + a * s``."""
    minus, plus = producer(first, "Sub"), producer(second, "Add")
    if minus is None or plus is None:
        return None
    products = [producer(v, "Mul") for v in (*minus.inputs, *plus.inputs)]
    if any(p is None for p in products):
        return None
    ac, bs, *crossed = (set(p.inputs) for p in products if p is not None)
    for a in ac:
        for b in bs:
            (c,), (s,) = ac - {a} or (None,), bs - {b} or (None,)
            if {b, c} not in crossed or {a, s} not in crossed:
                continue
            low, high = _span(a), _span(b)
            if low is None or high is None or low[0] is not high[0] or low[1] != 0:
                continue
            if low[2] == high[1] and high[2] == 2 * low[2] and c is not None and s is not None:
                return low[0], high[2], [c, s]
    return None


def _width(value: ir.Value | None) -> int | None:
    width = (dims(value) or (None,))[-1]
    return width if isinstance(width, int) else None


def _span(value: ir.Value | None) -> tuple[ir.Value, int, int] | None:
    """The part of the last axis of another value that this one is; of itself if of no other."""
    size = rank(value)
    node = producer(value, "Slice", "Split")
    source = None if node is None else node.inputs[0]
    if value is None:
        return None
    found = None
    if node is not None and source is not None and _width(source) is not None and size:
        found = _sliced(node, size) if node.op_type == "Slice" else _split(node, value, size)
    if found is None:
        width = _width(value)
        return None if width is None else (value, 0, width)
    assert source is not None
    outer = _span(source)
    start, end = found
    return (source, start, end) if outer is None else (outer[0], outer[1] + start, outer[1] + end)


def _sliced(node: ir.Node, size: int) -> tuple[int, int] | None:
    ranges = slice_ranges(node)
    return ranges[size - 1] if ranges is not None and set(ranges) == {size - 1} else None


def _split(node: ir.Node, value: ir.Value, size: int) -> tuple[int, int] | None:
    widths = [_width(v) for v in node.outputs[: (value.index() or 0) + 1]]
    if norm_axis(attribute(node, "axis", 0), size) != size - 1 or None in widths:
        return None
    known = [n for n in widths if n is not None]
    return sum(known[:-1]), sum(known)


def _spans(x: ir.Value) -> list[tuple[ir.Value, int, int]]:
    """A value, and the part of another one that it is."""
    width, part = _width(x), _span(x)
    return [] if width is None or part is None or width % 2 else [(x, 0, width), part]


def _embedding(
    x: ir.Value,
    tables: list[ir.Value],
    op: Builder,
    *,
    dim: int | None = None,
    pairs: bool = False,
) -> ir.Value:
    """The one node, for heads before or behind the sequence."""
    shape = dims(x)
    require(shape is not None and len(shape) == 4, f"the rank is {rank(x)}", x)
    assert shape is not None
    require(isinstance(shape[3], int), "the size of the heads varies", x)
    if not all(map(_is_behind, tables)):
        made = [_table(t, x, op, axis=1) for t in tables]
        y: ir.Value = op.RotaryEmbedding(
            x, *made, rotary_embedding_dim=dim, interleaved=1 if pairs else None
        )
        return y
    heads, width = shape[2:]
    require(isinstance(heads, int), "the number of heads varies", x)
    flat = op.Reshape(x, [0, 0, heads * width])
    made = [_table(t, x, op, axis=2) for t in tables]
    y = op.RotaryEmbedding(
        flat, *made, num_heads=heads, rotary_embedding_dim=dim, interleaved=1 if pairs else None
    )
    return op.Reshape(y, [0, 0, heads, width])


def _is_behind(table: ir.Value) -> bool:
    """Whether a table is for heads behind the sequence: ``[.., sequence, 1, half]``."""
    shape = dims(table)
    return shape is not None and len(shape) > 2 and shape[-2] == 1 and shape[-3] != 1


def _is_rotated(value: ir.Value | None, x: ir.Value) -> bool:
    """Whether the value is the second half of ``x``, negated, and then the first half."""
    concat = producer(value, "Concat")
    size = rank(x)
    if concat is None or len(concat.inputs) != 2 or size is None:
        return False
    if norm_axis(attribute(concat, "axis"), size) != size - 1:
        return False
    negated = producer(concat.inputs[0], "Neg")
    width = _width(x)
    if negated is None or width is None or width % 2:
        return False
    half = width // 2
    return _is_part(negated.inputs[0], x, half, width) and _is_part(concat.inputs[1], x, 0, half)


def _is_part(value: ir.Value | None, x: ir.Value, low: int, high: int) -> bool:
    part, whole = _span(value), _span(x)
    if part is None or whole is None:
        return False
    return part in ((x, low, high), (whole[0], whole[1] + low, whole[1] + high))


def _half(table: ir.Value, op: Builder, *, pairs: bool = False) -> ir.Value | None:
    """The first half of a table whose halves are equal along the last axis, or one of each pair.

    Nodes that keep the last axis (Unsqueeze, Cast, a function of each element) are passed through.
    """
    array = constant(table)
    if array is not None:
        whole = array.numpy()
        middle = whole.shape[-1] // 2
        low, high = whole[..., :middle], whole[..., middle:]
        if pairs:
            low, high = whole[..., ::2], whole[..., 1::2]
        return op.constant(np.ascontiguousarray(low)) if np.array_equal(low, high) else None
    found = once(table, op) if pairs else None
    if found is not None:
        return found
    node = producer(table, "Concat", "Unsqueeze", "Cast", "Cos", "Sin", "Mul", "Gather")
    size = rank(table)
    if node is None or size is None:
        return None
    if node.op_type == "Concat":
        if pairs:
            parts = [None if v is None else _half(v, op, pairs=True) for v in node.inputs]
            axis = norm_axis(attribute(node, "axis"), size)
            return None if None in parts else op.Concat(*parts, axis=axis)
        equal = len(node.inputs) == 2 and node.inputs[0] is node.inputs[1]
        last = norm_axis(attribute(node, "axis"), size) == size - 1
        return node.inputs[0] if equal and last else None
    first = node.inputs[0]
    inner = None if first is None else _half(first, op, pairs=pairs)
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


def _table(table: ir.Value, x: ir.Value, op: Builder, *, axis: int) -> ir.Value:
    """The table as ``[batch, sequence, half]``, which the operator wants without positions.

    Args:
        table: It is broadcast to ``x``.
        x: What is embedded, of four dims.
        op: Makes the nodes.
        axis: That of the heads.
    """
    shape, wanted = dims(table), dims(x)
    require(shape is not None, "the rank of the tables is not known", table)
    assert shape is not None
    assert wanted is not None
    size = len(shape)
    require(2 <= size <= 4, f"the rank of the tables is {size}", table)
    heads = axis - 4 + size  # where the axis of the heads is in the table
    if heads >= 0:
        require(shape[heads] == 1, "the tables differ between heads", table)
        table, shape = op.Squeeze(table, [heads]), (*shape[:heads], *shape[heads + 1 :])
    if len(shape) == 2:
        table, shape = op.Unsqueeze(table, [0]), (1, *shape)
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
    """``[b, heads, s, d]`` before each head was repeated: Expand or Tile, and Reshape; or Gather."""
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
    expand = None if reshape is None else producer(reshape.inputs[0], "Expand", "Tile")
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
    return source if _repeats_only(expand, before, wide) else None


def _repeats_only(expand: ir.Node, before: Dims, wide: Dims) -> bool:
    """Whether an Expand or Tile leaves all axes but the third one as they are."""
    given, kept = ints(input_of(expand, 1)), (0, 1, 3, 4)
    if expand.op_type == "Tile":
        return given is not None and all(given[i] == 1 for i in kept)
    if given is not None and len(given) == 5:
        return all(given[i] in (1, before[i]) for i in kept)
    return all(same_dim(before[i], wide[i]) for i in kept)
