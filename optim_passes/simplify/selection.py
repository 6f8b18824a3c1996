"""Choices between two numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import onnx_ir as ir

from optim_passes.rewriting import NodePass
from optim_passes.values import attribute, only_consumer, producer, rank, same_shape, scalar

if TYPE_CHECKING:
    from optim_passes.builder import Builder

__all__ = ["FilledOperandPass", "MinMaxPass", "TruthPass"]

_WHOLE = (ir.DataType.INT32, ir.DataType.INT64)
_CHOICES = {"Less": "Min", "LessOrEqual": "Min", "Greater": "Max", "GreaterOrEqual": "Max"}
_OTHER = {"Min": "Max", "Max": "Min"}


class MinMaxPass(NodePass):
    """``Where(a < b, a, b)`` becomes ``Min(a, b)``, and ``Min(Min(a, b), c)`` one node.

    Of whole numbers only: a NaN is not less than anything, and 0.0 is not less than -0.0.
    """

    op_types: ClassVar[frozenset[str]] = frozenset({"Where", "Min", "Max"})

    def rewrite(self, node: ir.Node, op: Builder) -> Any:
        """The smallest or largest operand."""
        if node.domain or node.outputs[0].dtype not in _WHOLE:
            return None
        if node.op_type != "Where":
            return _together(node, op)
        condition, then, orelse = node.inputs
        comparison = producer(condition, *_CHOICES)
        if comparison is None:
            return None
        kind, (a, b) = _CHOICES[comparison.op_type], comparison.inputs
        if then is b and orelse is a:
            kind = _OTHER[kind]
        elif then is not a or orelse is not b:
            return None
        return op.node(kind, a, b, like=node.outputs[0])


def _together(node: ir.Node, op: Builder) -> Any:
    operands: list[ir.Value | None] = []
    for value in node.inputs:
        inner = producer(value, node.op_type)
        if inner is not None and value is not None and only_consumer(value) is node:
            operands += inner.inputs
        else:
            operands.append(value)
    if len(operands) == len(node.inputs):
        return None
    return op.node(node.op_type, *operands, like=node.outputs[0])


class TruthPass(NodePass):
    """``Where(c, 1, 0)`` becomes ``Cast(c)``, and ``Where(c, 0, 1)`` a cast of its opposite."""

    op_types: ClassVar[frozenset[str]] = frozenset({"Where"})

    def rewrite(self, node: ir.Node, op: Builder) -> Any:
        """The condition as a number."""
        condition, *numbers = node.inputs
        found = [scalar(v) if rank(v) == 0 else None for v in numbers]
        dtype = node.outputs[0].dtype
        if node.domain or found not in ([1, 0], [0, 1]) or dtype is None:
            return None
        truth = condition if found[0] else op.Not(condition)
        return truth if dtype == ir.DataType.BOOL else op.Cast(truth, to=dtype)


class FilledOperandPass(NodePass):
    """An operand that is one number in the shape of another operand becomes the number."""

    op_types: ClassVar[frozenset[str]] = frozenset(
        {
            "Add", "And", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual",
            "Max", "Min", "Mul", "Or", "Pow", "Sub", "Where",
        }
    )  # fmt: skip

    def rewrite(self, node: ir.Node, op: Builder) -> Any:
        """The operator on the number."""
        if node.domain:
            return None
        for index, value in enumerate(node.inputs):
            filled = producer(value, "ConstantOfShape")
            if filled is None or not any(
                _is_shaped_like(filled, v) for i, v in enumerate(node.inputs) if i != index
            ):
                continue
            tensor = attribute(filled, "value")
            number = np.float32(0) if tensor is None else tensor.numpy().reshape(-1)[0]
            operands = list(node.inputs)
            operands[index] = op.constant(np.asarray(number))
            return op.node(node.op_type, *operands, attributes_of=node, like=node.outputs[0])
        return None


def _is_shaped_like(filled: ir.Node, value: ir.Value | None) -> bool:
    """Whether a ConstantOfShape has another value's shape, which is not one itself."""
    if value is None or producer(value, "ConstantOfShape") is not None:
        return False
    shape = producer(filled.inputs[0], "Shape")
    if shape is not None and shape.inputs[0] is value:
        return not {"start", "end"} & shape.attributes.keys()
    return same_shape(filled.outputs[0], value)
