"""The smaller or larger of two whole numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import onnx_ir as ir

from optim_passes.rewriting import NodePass
from optim_passes.values import only_consumer, producer

if TYPE_CHECKING:
    from optim_passes.builder import Builder

__all__ = ["MinMaxPass"]

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
