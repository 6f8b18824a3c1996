"""Rotary position embedding of neighbours: each pair of numbers is turned by one angle."""

from __future__ import annotations

from typing import TYPE_CHECKING

from optim_passes.values import attribute, dims, ints, norm_axis, producer, rank, same_dim, scalar

if TYPE_CHECKING:
    import onnx_ir as ir

    from optim_passes.builder import Builder

__all__ = ["is_turned", "once"]

Span = tuple["ir.Value", int, int]


def is_turned(value: ir.Value | None, whole: Span) -> bool:
    """Whether the value is ``(-x1, x0, -x3, x2, ..)`` for ``x``, a part of a value's last axis."""
    pairs = _flattened(value)
    concat = producer(pairs, "Concat")
    if pairs is None or concat is None or len(concat.inputs) != 2 or not _is_last(concat, pairs):
        return False
    if not _keeps_front(value, pairs):
        return False
    odd, even = (_widened(v) for v in concat.inputs)
    negated = producer(odd, "Neg")
    return (
        negated is not None and _is_every_second(negated.inputs[0], whole, 1)
        and _is_every_second(even, whole, 0)
    )  # fmt: skip


def once(table: ir.Value, op: Builder) -> ir.Value | None:
    """``f`` of a table ``(f0, f0, f1, f1, ..)`` along the last axis; None if it is none."""
    pairs = _flattened(table)
    node = producer(pairs, "Expand", "Concat")
    single = _single(node, pairs)
    if pairs is None or single is None:
        return None
    if _keeps_front(table, pairs):
        return single
    reshape = producer(table, "Reshape")
    target = ints(reshape.inputs[1] if reshape is not None else None)
    if target is None or reshape is None or attribute(reshape, "allowzero", 0):
        return None
    width = (dims(single) or (None,))[-1]
    found: ir.Value = op.Reshape(single, [*target[:-1], width])
    return found


def _single(node: ir.Node | None, pairs: ir.Value | None) -> ir.Value | None:
    """``f`` where a node makes ``pairs`` of it, ``[.., n, 2]``."""
    if node is None or pairs is None:
        return None
    if node.op_type == "Concat":
        equal = len(node.inputs) == 2 and node.inputs[0] is node.inputs[1]
        return _widened(node.inputs[0]) if equal and _is_last(node, pairs) else None
    narrow, wide = dims(node.inputs[0]), dims(pairs)
    if narrow is None or wide is None or len(narrow) != len(wide):
        return None
    if not all(map(same_dim, narrow[:-1], wide[:-1])):
        target = ints(node.inputs[1])
        if target is None or any(n != 1 for n in target[:-1]):
            return None
    return _widened(node.inputs[0])


def _flattened(value: ir.Value | None) -> ir.Value | None:
    """``[.., n, 2]`` of which rows ``2 n`` were made."""
    node = producer(value, "Reshape")
    inner = None if node is None else node.inputs[0]
    outer, pairs = dims(value), dims(inner)
    if not outer or pairs is None or len(pairs) < 2 or pairs[-1] != 2:
        return None
    return inner if isinstance(pairs[-2], int) and outer[-1] == 2 * pairs[-2] else None


def _keeps_front(value: ir.Value | None, pairs: ir.Value) -> bool:
    """Whether ``[.., n, 2]`` and the rows made of it have the same sizes in front."""
    outer, inner, node = dims(value), dims(pairs), producer(value, "Reshape")
    if outer is None or inner is None or node is None or len(inner) != len(outer) + 1:
        return False
    target = ints(node.inputs[1])
    if target is not None and not any(target[:-1]) and not attribute(node, "allowzero", 0):
        return True
    differ = [a for a, b in zip(outer[:-1], inner[:-2], strict=True) if not same_dim(a, b)]
    return len(differ) < 2 and 0 not in outer  # one size cannot differ where all others are equal


def _widened(value: ir.Value | None) -> ir.Value | None:
    """``x`` of ``Unsqueeze(x)``, whose new axis is the last one."""
    node = producer(value, "Unsqueeze")
    axes, size = ints(None if node is None else node.inputs[1]), rank(value)
    if node is None or axes is None or size is None or len(axes) != 1:
        return None
    return node.inputs[0] if norm_axis(axes[0], size) == size - 1 else None


def _is_last(node: ir.Node, like: ir.Value) -> bool:
    size = rank(like)
    return size is not None and norm_axis(attribute(node, "axis", 0), size) == size - 1


def _is_every_second(value: ir.Value | None, whole: Span, first: int) -> bool:
    """Whether the value is every second number of a part of a last axis, from one of the first two."""
    x, low, high = whole
    node = producer(value, "Slice", "Gather")
    if node is None or node.inputs[0] is None:
        return False
    if node.op_type == "Gather":
        apart = producer(node.inputs[0], "Reshape")
        split, source = dims(node.inputs[0]), dims(x)
        if apart is None or apart.inputs[0] is not x or split is None or source is None:
            return False
        paired = split[-1] == 2 and len(split) == len(source) + 1
        index = scalar(node.inputs[1])
        if not paired or not _is_last(node, node.inputs[0]) or rank(node.inputs[1]) != 0:
            return False
        # Of all of x: the sizes in front are the same, for as many numbers are left in each row.
        whole_row = (low, high) == (0, source[-1]) and split[-2] == high // 2
        return whole_row and index is not None and int(index) % 2 == first
    starts, ends, axes, steps = (ints(v) for v in (*node.inputs[1:], *[None] * 4)[:4])
    if node.inputs[0] is not x or not starts or not ends or steps != [2] or axes is None:
        return False
    shape = dims(x)
    if len(axes) != 1 or shape is None or norm_axis(axes[0], len(shape)) != len(shape) - 1:
        return False
    width = shape[-1]
    if not isinstance(width, int):
        return False
    return range(width)[starts[0] : ends[0] : 2] == range(low + first, high, 2)
