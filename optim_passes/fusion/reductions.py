"""Reductions that one operator can do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import onnx_ir as ir

from optim_passes.rewriting import NodePass
from optim_passes.values import attribute, dims, producer, rank, scalar

if TYPE_CHECKING:
    from optim_passes.builder import Builder

__all__ = ["ReductionPass"]

_BOOL, _UINT8, _FLOAT = ir.DataType.BOOL, ir.DataType.UINT8, ir.DataType.FLOAT


class ReductionPass(NodePass):
    """``all`` and ``any`` need no casts (opset 20), ``Sqrt(ReduceSum(x * x))`` is ``ReduceL2``.

    ``ReduceSum(Abs(x))`` becomes ``ReduceL1``, and ``Abs(x) * Abs(x)`` becomes ``x * x``. Whether
    the number of truths is 0 is asked of the largest of them.
    """

    op_types: ClassVar[frozenset[str]] = frozenset(
        {"Cast", "Equal", "Greater", "Mul", "ReduceSum", "Sqrt"}
    )

    def rewrite(self, node: ir.Node, op: Builder) -> Any:
        """The reduction."""
        return None if node.domain else _RULES[node.op_type](node, op)


def _again(op: Builder, op_type: str, x: ir.Value, like: ir.Node, result: ir.Value) -> Any:
    made = op.node(op_type, x, *like.inputs[1:], like=result, attributes_of=like)
    made.type = result.type
    return made


def _truth(node: ir.Node, op: Builder) -> Any:
    """``Cast(Reduce(Cast(x)))`` of truth values."""
    reduction = producer(node.inputs[0], "ReduceMax", "ReduceMin")
    if op.opset < 20 or attribute(node, "to") != _BOOL or reduction is None:
        return None
    cast = producer(reduction.inputs[0], "Cast")
    x = None if cast is None else cast.inputs[0]
    if cast is None or x is None or attribute(cast, "to") != _UINT8 or x.dtype != _BOOL:
        return None
    # ORT 1.32 refuses to reduce no truth values, but not no numbers.
    if not all(isinstance(d, int) and d > 0 for d in dims(x) or (0,)):
        return None
    return _again(op, reduction.op_type, x, reduction, node.outputs[0])


def _length(node: ir.Node, op: Builder) -> Any:
    """``Sqrt(ReduceSum(x * x))``."""
    reduction = producer(node.inputs[0], "ReduceSum")
    square = None if reduction is None else producer(reduction.inputs[0], "Mul")
    if reduction is None or square is None or square.inputs[0] is not square.inputs[1]:
        return None
    x = square.inputs[0]
    if x is None or x.dtype != _FLOAT:
        return None
    return _again(op, "ReduceL2", x, reduction, node.outputs[0])


def _distance(node: ir.Node, op: Builder) -> Any:
    """``ReduceSum(Abs(x))``."""
    size = producer(node.inputs[0], "Abs")
    x = None if size is None else size.inputs[0]
    if x is None or x.dtype != _FLOAT:
        return None
    return _again(op, "ReduceL1", x, node, node.outputs[0])


def _square(node: ir.Node, op: Builder) -> Any:
    """``Abs(x) * Abs(x)``."""
    size = producer(node.inputs[0], "Abs")
    if size is None or node.inputs[0] is not node.inputs[1]:
        return None
    return op.Mul(size.inputs[0], size.inputs[0])


def _some(node: ir.Node, op: Builder) -> Any:
    """``ReduceSum(Cast(x)) > 0`` and ``== 0`` of truth values."""
    count = producer(node.inputs[0], "ReduceSum")
    cast = None if count is None else producer(count.inputs[0], "Cast")
    x = None if cast is None else cast.inputs[0]
    if count is None or x is None or x.dtype != _BOOL or scalar(node.inputs[1]) != 0:
        return None
    if rank(node.inputs[1]) != 0 or attribute(count, "keepdims", 1) or len(count.inputs) > 1:
        return None
    if attribute(count, "noop_with_empty_axes", 0):
        return None
    found = op.Cast(op.ReduceMax(op.Cast(x, to=_UINT8), keepdims=0), to=_BOOL)
    return found if node.op_type == "Greater" else op.Not(found)


_RULES = {
    "Cast": _truth,
    "Equal": _some,
    "Greater": _some,
    "Mul": _square,
    "ReduceSum": _distance,
    "Sqrt": _length,
}
