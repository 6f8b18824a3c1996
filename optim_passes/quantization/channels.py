"""Channels in numbers that kernels for integers like."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from optim_passes.builder import Builder
from optim_passes.rewriting import Outcome, Pass
from optim_passes.scopes import Names
from optim_passes.values import attribute, constant, input_of, is_op

if TYPE_CHECKING:
    from optim_passes.scopes import Scope

__all__ = ["ChannelPaddingPass"]

_MULTIPLE = 16  # channels that ONNX Runtime's depthwise kernel for integers takes at a time
_MOST_ADDED = 0.34  # as a share of the channels

# What treats each channel alone, and channels alike.
_CHANNELWISE = frozenset({
    "Relu", "Clip", "HardSwish", "HardSigmoid", "Sigmoid", "LeakyRelu", "Mul", "Add",
    "GlobalAveragePool", "AveragePool", "MaxPool", "Tanh", "Elu", "Gelu", "Identity",
})  # fmt: skip


@dataclasses.dataclass(slots=True)
class _Group:
    """Values that have the same channels, and the convolutions around them.

    Attributes:
        values: The values.
        makers: Convolutions whose output channels they are.
        depthwise: Convolutions that have them on both sides.
        readers: Convolutions that sum over them.
    """

    values: set[ir.Value] = dataclasses.field(default_factory=set)
    makers: set[ir.Node] = dataclasses.field(default_factory=set)
    depthwise: set[ir.Node] = dataclasses.field(default_factory=set)
    readers: set[ir.Node] = dataclasses.field(default_factory=set)


class ChannelPaddingPass(Pass):
    """Depthwise convolutions get channels in multiples of 16, those added with weights of zero.

    ONNX Runtime's kernel for integers (version 1.32) computes the channels beyond a multiple of 16
    one by one: 72 channels take two and a half times as long as 80. The convolution before makes
    the added channels and the one behind multiplies them by zero, so no result changes.
    """

    def run(self, scope: Scope, outcome: Outcome) -> None:
        """Pad the channels of each depthwise convolution that has both sides open."""
        seen: set[ir.Node] = set()
        names = Names(scope.model)
        for node in list(scope.body):
            count = _depthwise(node)
            if count is None or count % _MULTIPLE == 0 or node in seen:
                continue
            added = -count % _MULTIPLE
            if added > _MOST_ADDED * count:
                continue
            group = _Group()
            reason = _collect(node.outputs[0], group, scope)
            seen |= group.depthwise
            if reason is not None:
                self.refuse(outcome, node, *reason)
                continue
            _pad(group, added, scope, names)
            outcome.rewrites += 1


def _depthwise(node: ir.Node) -> int | None:
    """The channels of a depthwise convolution of as many outputs."""
    weight = constant(input_of(node, 1)) if is_op(node, "Conv") else None
    if weight is None or weight.dtype != ir.DataType.FLOAT:
        return None
    outputs, inputs = weight.shape.numpy()[:2]
    same = inputs == 1 and attribute(node, "group", 1) == outputs and outputs > 1
    return int(outputs) if same else None


def _dense(node: ir.Node) -> bool:
    weight = constant(input_of(node, 1)) if is_op(node, "Conv") else None
    return (
        weight is not None
        and weight.dtype == ir.DataType.FLOAT
        and attribute(node, "group", 1) == 1
    )


def _collect(
    value: ir.Value, group: _Group, scope: Scope
) -> tuple[str, ir.Node | ir.Value | None] | None:
    """All that shares the channels of ``value``; why they cannot change, None if they can."""
    pending = [value]
    while pending:
        value = pending.pop()
        if value in group.values:
            continue
        group.values.add(value)
        node = value.producer()
        if value.is_graph_output() or node is None or node.graph is not scope.body:
            return "the channels leave the graph", value
        if not _joins(node, value, group, pending, made=True):
            return "the channels are made by what is no convolution", node
        for use in value.uses():
            if use.node.graph is not scope.body:
                return "the channels are read in a subgraph", use.node
            if not _joins(use.node, value, group, pending, made=False):
                return "the channels are read by what is no convolution", use.node
    return None


def _joins(
    node: ir.Node, value: ir.Value, group: _Group, pending: list[ir.Value], *, made: bool
) -> bool:
    """Take in a node that makes or reads a value of the group."""
    if _depthwise(node) is not None:
        group.depthwise.add(node)
        pending += [v for v in (node.inputs[0], node.outputs[0]) if v is not None]
        return made or node.inputs[0] is value
    if _dense(node):
        (group.makers if made else group.readers).add(node)
        return made or node.inputs[0] is value
    if node.domain or node.op_type not in _CHANNELWISE or len(node.outputs) > 1:
        return False
    operands = [v for v in node.inputs if v is not None]
    if node.op_type in ("Mul", "Add"):
        if any(v.shape is None or len(v.shape) != 4 for v in operands):
            return False
        if any(v.shape[1] != value.shape[1] for v in operands):  # type: ignore[index]
            return False
        if any(constant(v) is not None for v in operands):
            return False
        pending += operands
    else:
        pending.append(operands[0])
    pending.append(node.outputs[0])
    return True


def _pad(group: _Group, added: int, scope: Scope, names: Names) -> None:
    for node in group.makers | group.depthwise:
        _pad_constant(node, 1, 0, added, scope, names)
        if input_of(node, 2) is not None:
            _pad_constant(node, 2, 0, added, scope, names)
    for node in group.readers:
        _pad_constant(node, 1, 1, added, scope, names)
    for node in group.depthwise:
        node.attributes["group"] = ir.AttrInt64("group", attribute(node, "group") + added)
    for value in group.values:
        dims = list(value.shape.dims) if value.shape is not None else []
        if len(dims) > 1 and isinstance(dims[1], int):
            dims[1] += added
            value.shape = ir.Shape(dims)


def _pad_constant(
    node: ir.Node, index: int, axis: int, added: int, scope: Scope, names: Names
) -> None:
    value = node.inputs[index]
    tensor = constant(value)
    assert tensor is not None
    assert value is not None
    array = tensor.numpy()
    widths = [(0, 0)] * array.ndim
    widths[axis] = (0, added)
    op = Builder(scope, names, [node])
    padded = op.constant(np.pad(array, widths), f"{value.name}.padded")
    for made in op.initializers:
        scope.model.graph.initializers.add(made)
    scope.body.insert_before(node, op.nodes)
    node.replace_input_with(index, padded)
