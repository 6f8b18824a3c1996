"""Only what is read of a result is computed.

A classifier that reads the first token, or a decoder that reads the last, needs one row of the
last layer: the ``Slice`` behind it moves before everything that treats rows alike.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import onnx_ir as ir

from optim_passes.rewriting import NodePass
from optim_passes.simplify.slices import slice_ranges
from optim_passes.values import (
    attribute,
    dims,
    input_of,
    norm_axis,
    only_consumer,
    rank,
    same_dim,
    scalar,
)
from optim_passes.views import permutation

if TYPE_CHECKING:
    from collections.abc import Callable

    from optim_passes.builder import Builder

__all__ = ["SliceHoistPass"]

# fmt: off
_ELEMENTWISE = frozenset({
    "Abs", "Add", "And", "Cast", "Clip", "Cos", "Div", "Elu", "Equal", "Erf", "Exp", "Gelu",
    "Greater", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Less", "Log", "Max", "Min",
    "Mul", "Neg", "Not", "Or", "Pow", "Reciprocal", "Relu", "Sigmoid", "Sin", "Softplus", "Sqrt",
    "Sub", "Sum", "Tanh", "Where",
})
# fmt: on


class SliceHoistPass(NodePass):
    """``f(x)[a:b]`` becomes ``f(x[a:b])`` where ``f`` treats the rows alike.

    That is for element-wise operators, products, normalisations of later axes, transposes, and
    for the queries of an attention. It is done where at most half of a result is read, and
    nothing else reads it.
    """

    op_types: ClassVar[frozenset[str]] = frozenset({"Slice", "Gather"})

    def rewrite(self, node: ir.Node, op: Builder) -> Any:
        """The operator on the part."""
        x = node.inputs[0]
        cut = _cut(node)
        if node.domain or x is None or cut is None or only_consumer(x) is not node:
            return None
        axis, start, end = cut
        inner = x.producer()
        shape = dims(x)
        if inner is None or shape is None or inner.domain or len(inner.outputs) != 1:
            return None
        if x.graph is not node.graph:
            return None
        size = shape[axis]
        if end - start > (size // 2 if isinstance(size, int) else 1):
            return None
        rule = _RULES.get(inner.op_type)
        made = None if rule is None else rule(inner, axis, start, end, op)
        if made is None or node.op_type == "Slice":
            return made
        return op.Squeeze(made, [axis])


def _cut(node: ir.Node) -> tuple[int, int, int] | None:
    """Axis, start and end of what is read."""
    size = rank(node.inputs[0])
    if size is None:
        return None
    if node.op_type == "Slice":
        ranges = slice_ranges(node)
        if ranges is None or len(ranges) != 1:
            return None
        ((axis, (start, end)),) = ranges.items()
        return axis, start, end
    index = scalar(node.inputs[1])
    if rank(node.inputs[1]) != 0 or not isinstance(index, int):
        return None
    axis = norm_axis(attribute(node, "axis", 0), size)
    length = (dims(node.inputs[0]) or ())[axis]
    if index < 0:
        if not isinstance(length, int):
            return None
        index += length
    return axis, index, index + 1


def _slice(x: ir.Value, axis: int, start: int, end: int, op: Builder) -> ir.Value:
    made: ir.Value = op.Slice(x, [start], [end], [axis])
    made.shape = ir.Shape([end - start if i == axis else d for i, d in enumerate(dims(x) or ())])
    return made


def _again(node: ir.Node, inputs: list[ir.Value | None], op: Builder) -> ir.Value:
    made = op.node(node.op_type, *inputs, attributes_of=node)
    if made.type is None:
        made.type = node.outputs[0].type
    return made


def _elementwise(node: ir.Node, axis: int, start: int, end: int, op: Builder) -> ir.Value | None:
    out = dims(node.outputs[0])
    if out is None or any(v is not None and dims(v) is None for v in node.inputs):
        return None
    inputs: list[ir.Value | None] = []
    for x in node.inputs:
        shape = dims(x)
        place = axis if shape is None else axis - (len(out) - len(shape))
        if x is None or shape is None or place < 0 or shape[place] == 1:
            inputs.append(x)
        elif same_dim(shape[place], out[axis]):
            inputs.append(_slice(x, place, start, end, op))
        else:
            return None
    return _again(node, inputs, op)


def _product(node: ir.Node, axis: int, start: int, end: int, op: Builder) -> ir.Value | None:
    x, weight = node.inputs
    size = rank(x)
    if x is None or size is None or size < 2 or axis >= size - 1 or rank(weight) != 2:
        return None
    return _again(node, [_slice(x, axis, start, end, op), weight], op)


def _normalisation(node: ir.Node, axis: int, start: int, end: int, op: Builder) -> ir.Value | None:
    x = node.inputs[0]
    size = rank(x)
    if x is None or size is None or axis >= norm_axis(attribute(node, "axis", -1), size):
        return None
    return _again(node, [_slice(x, axis, start, end, op), *node.inputs[1:]], op)


def _transpose(node: ir.Node, axis: int, start: int, end: int, op: Builder) -> ir.Value | None:
    x, perm = node.inputs[0], permutation(node)
    if x is None or perm is None:
        return None
    return _again(node, [_slice(x, perm[axis], start, end, op)], op)


def _reshape(node: ir.Node, axis: int, start: int, end: int, op: Builder) -> ir.Value | None:
    """Where the Reshape leaves the axis and those before it as they are."""
    x = node.inputs[0]
    before, after = dims(x), dims(node.outputs[0])
    if x is None or before is None or after is None or len(before) <= axis:
        return None
    if not all(map(same_dim, before[: axis + 1], after[: axis + 1])):
        return None
    rest = list(after[axis + 1 :])
    if not all(isinstance(d, int) for d in rest):
        return None
    target = [0] * (axis + 1) + rest
    return op.Reshape(_slice(x, axis, start, end, op), target)


def _attention(node: ir.Node, axis: int, start: int, end: int, op: Builder) -> ir.Value | None:
    """The queries of an attention are independent of each other, unless it is causal."""
    query, mask = node.inputs[0], input_of(node, 3)
    size = rank(query)
    if query is None or size is None or axis != size - 2 or len(node.inputs) > 4:
        return None
    if attribute(node, "is_causal", 0) or (mask is not None and rank(mask) is None):
        return None
    inputs = [_slice(query, axis, start, end, op), *node.inputs[1:3]]
    if mask is not None:
        inputs.append(_slice(mask, (rank(mask) or 0) - 2, start, end, op))
    return _again(node, inputs, op)


_RULES: dict[str, Callable[[ir.Node, int, int, int, Builder], ir.Value | None]] = {
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
    "MatMul": _product,
    "LayerNormalization": _normalisation,
    "RMSNormalization": _normalisation,
    "Softmax": _normalisation,
    "Transpose": _transpose,
    "Reshape": _reshape,
    "Attention": _attention,
}
