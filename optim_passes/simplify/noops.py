"""Nodes that return what they are given."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from optim_passes.purity import is_training
from optim_passes.rewriting import NodePass
from optim_passes.values import (
    attribute,
    constant,
    dims,
    input_of,
    ints,
    producer,
    rank,
    same_dim,
    same_shape,
    scalar,
    small_array,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx_ir as ir

    from optim_passes.builder import Builder

__all__ = ["NoOpPass"]


class NoOpPass(NodePass):
    """Removes nodes whose result is one of their operands.

    Identity, inference Dropout, casts to the same dtype, transposes that move nothing, reshapes,
    slices, pads, tiles and expands that change nothing, ``x + 0``, ``x * 1``, ``x / 1``,
    ``x ** 1``, concatenations and sums of one operand.
    """

    op_types: ClassVar[frozenset[str]] = frozenset()  # filled below

    def rewrite(self, node: ir.Node, op: Builder) -> Any:
        """The operand that the node returns."""
        if node.domain or not node.inputs or node.inputs[0] is None:
            return None
        kept = _RULES[node.op_type](node)
        if kept is None:
            return None
        if any(v.uses() or v.is_graph_output() for v in node.outputs[1:]):
            return None
        result = node.outputs[0]
        if kept.shape is None and result.shape is not None:
            kept.shape = result.shape
        return [kept, *[None] * (len(node.outputs) - 1)]


def _identity(node: ir.Node) -> ir.Value | None:
    x = node.inputs[0]
    assert x is not None
    if node.outputs[0].is_graph_output() and (
        x.producer() is None or x.graph is not node.graph or x.is_graph_output()
    ):
        return None  # such a value cannot be an output itself
    return x


def _dropout(node: ir.Node) -> ir.Value | None:
    return None if is_training(node) else node.inputs[0]


def _cast(node: ir.Node) -> ir.Value | None:
    (x,) = node.inputs
    assert x is not None
    return x if x.dtype is not None and x.dtype == attribute(node, "to") else None


def _cast_like(node: ir.Node) -> ir.Value | None:
    x, like = node.inputs
    assert x is not None
    return x if like is not None and x.dtype is not None and x.dtype == like.dtype else None


def _transpose(node: ir.Node) -> ir.Value | None:
    perm = attribute(node, "perm")
    return node.inputs[0] if perm is not None and perm == sorted(perm) else None


def _reshape(node: ir.Node) -> ir.Value | None:
    x, target = node.inputs[0], ints(input_of(node, 1))
    assert x is not None
    shape = dims(x)
    if shape is None:
        return None
    literal = target is not None and 0 in target and attribute(node, "allowzero", 0)
    if target is not None and len(target) == len(shape) and not literal:
        free = [i for i, n in enumerate(target) if n not in (0, shape[i])]
        if not free or (len(free) == 1 and target[free[0]] == -1):
            return x
    return x if same_shape(x, node.outputs[0]) else None


def _squeeze(node: ir.Node) -> ir.Value | None:
    x = node.inputs[0]
    axes = ints(input_of(node, 1)) if len(node.inputs) > 1 else attribute(node, "axes")
    return x if axes == [] else None


def _flatten(node: ir.Node) -> ir.Value | None:
    x = node.inputs[0]
    return x if rank(x) == 2 and attribute(node, "axis", 1) == 1 else None


def _slice(node: ir.Node) -> ir.Value | None:
    starts, ends = ints(input_of(node, 1)), ints(input_of(node, 2))
    steps = ints(input_of(node, 4)) if input_of(node, 4) is not None else None
    if starts is None or ends is None or (input_of(node, 4) is not None and steps is None):
        return None
    if any(starts) or any(n != 1 for n in steps or ()):
        return None
    x = node.inputs[0]
    axes = ints(input_of(node, 3)) if input_of(node, 3) is not None else list(range(len(ends)))
    if axes is None:
        return None
    shape = dims(x)
    for axis, end in zip(axes, ends, strict=True):
        size = None if shape is None else shape[axis]
        if end < 2**31 - 1 and not (isinstance(size, int) and end >= size):
            return None
    return x


def _expand(node: ir.Node) -> ir.Value | None:
    x, target = node.inputs
    shape = ints(target)
    size = dims(x)
    if shape is not None and size is not None and len(shape) <= len(size):
        tail = size[len(size) - len(shape) :]
        if all(n == 1 or same_dim(n, d) for n, d in zip(shape, tail, strict=True)):
            return x
    return x if same_shape(x, node.outputs[0]) else None


def _pad(node: ir.Node) -> ir.Value | None:
    pads = ints(input_of(node, 1)) if len(node.inputs) > 1 else attribute(node, "pads")
    return node.inputs[0] if pads is not None and not any(pads) else None


def _tile(node: ir.Node) -> ir.Value | None:
    repeats = ints(input_of(node, 1))
    return node.inputs[0] if repeats is not None and all(n == 1 for n in repeats) else None


def _single(node: ir.Node) -> ir.Value | None:
    return node.inputs[0] if len(node.inputs) == 1 else None


def _split(node: ir.Node) -> ir.Value | None:
    return node.inputs[0] if len(node.outputs) == 1 and len(node.inputs) < 2 else None


def _where(node: ir.Node) -> ir.Value | None:
    condition, x, y = node.inputs
    if x is y and same_shape(x, node.outputs[0]):
        return x
    known = small_array(condition)
    if known is None or not known.size or known.all() != known.any():
        return None
    chosen = x if known.all() else y
    return chosen if same_shape(chosen, node.outputs[0]) else None


def _positive(node: ir.Node) -> ir.Value | None:
    return node.inputs[0] if producer(node.inputs[0], "Abs") is not None else None


def _neutral(number: float, *, right_only: bool) -> Callable[[ir.Node], ir.Value | None]:
    """A binary operator with an operand that changes nothing and does not broadcast the other."""

    def rule(node: ir.Node) -> ir.Value | None:
        for index in (1,) if right_only else (1, 0):
            x, y = node.inputs[1 - index], node.inputs[index]
            if x is None or y is None or not _is_all(y, number):
                continue
            if x.dtype is None or x.dtype != (node.outputs[0].dtype or x.dtype):
                continue
            tensor, size = constant(y), rank(x)
            assert tensor is not None
            one = tensor.size == 1 and size is not None and len(tensor.shape) <= size
            if one or same_shape(x, node.outputs[0]):
                return x
        return None

    return rule


def _is_all(value: ir.Value, number: float) -> bool:
    one = scalar(value)
    if one is not None:
        return one == number
    array = small_array(value)
    return array is not None and array.size > 0 and bool(np.all(array == number))


def _boolean(number: bool) -> Callable[[ir.Node], ir.Value | None]:  # noqa: FBT001
    rule = _neutral(number, right_only=False)
    return lambda node: node.inputs[0] if node.inputs[0] is node.inputs[1] else rule(node)


_RULES: dict[str, Callable[[ir.Node], ir.Value | None]] = {
    "Abs": _positive,
    "Identity": _identity,
    "Dropout": _dropout,
    "Cast": _cast,
    "CastLike": _cast_like,
    "Transpose": _transpose,
    "Reshape": _reshape,
    "Squeeze": _squeeze,
    "Unsqueeze": _squeeze,
    "Flatten": _flatten,
    "Slice": _slice,
    "Expand": _expand,
    "Pad": _pad,
    "Tile": _tile,
    "Concat": _single,
    "Sum": _single,
    "Max": _single,
    "Min": _single,
    "Mean": _single,
    "Split": _split,
    "Where": _where,
    "Add": _neutral(0, right_only=False),
    "Sub": _neutral(0, right_only=True),
    "Mul": _neutral(1, right_only=False),
    "Div": _neutral(1, right_only=True),
    "Pow": _neutral(1, right_only=True),
    "And": _boolean(True),
    "Or": _boolean(False),
}
NoOpPass.op_types = frozenset(_RULES)
