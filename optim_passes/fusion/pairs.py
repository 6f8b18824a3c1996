"""Differences of all pairs of rows: sums over a few columns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from optim_passes.rewriting import NodePass
from optim_passes.values import (
    attribute,
    dims,
    input_of,
    ints,
    only_consumer,
    producer,
    rank,
)

if TYPE_CHECKING:
    import onnx_ir as ir

    from optim_passes.builder import Builder

__all__ = ["ArgTransposePass", "PairReductionPass"]

_REDUCTIONS = frozenset(
    {"ReduceL1", "ReduceL2", "ReduceMax", "ReduceMin", "ReduceSum", "ReduceSumSquare"}
)
_NARROW = 16  # elements up to which an axis is too short for operators to run along
_MANY = 64


class PairReductionPass(NodePass):
    """``Reduce(x[:, None] - y[None, :], axis=2)`` is computed with the last axis first.

    That is for a short last axis, along which ONNX Runtime's operators would run: distances of
    points in the plane and in space. The results are the same numbers, up to the order of sums.
    """

    op_types: ClassVar[frozenset[str]] = _REDUCTIONS
    repeat: ClassVar[bool] = False

    def rewrite(self, node: ir.Node, op: Builder) -> Any:
        """The reduction over the first axis."""
        between = node.inputs[0]
        if node.domain or ints(input_of(node, 1)) not in ([2], [-1]) or rank(between) != 3:
            return None
        chain: list[ir.Node] = []
        step = _elementwise(between, node)
        while step is not None and step.op_type not in ("Add", "Sub"):
            chain.append(step)
            step = _elementwise(step.inputs[0], step)
        if step is None or attribute(node, "keepdims", 1):
            return None
        perm = _order(step)
        if perm is None:
            return None
        made = op.node(step.op_type, *(op.Transpose(v, perm=perm) for v in step.inputs))
        for each in reversed(chain):
            again = [made if v is each.inputs[0] else v for v in each.inputs]
            made = op.node(each.op_type, *again, attributes_of=each)
        reduced = op.node(node.op_type, made, [0], attributes_of=node)
        return reduced if perm == [2, 0, 1] else op.Transpose(reduced, perm=[1, 0])


def _elementwise(value: ir.Value | None, user: ir.Node) -> ir.Node | None:
    """The node that makes a value for ``user`` alone: a difference, or what is made of one."""
    node = producer(value, "Abs", "Add", "Mul", "Neg", "Sub")
    if node is None or value is None or only_consumer(value) is not user:
        return None
    square = node.op_type != "Mul" or node.inputs[0] is node.inputs[1]
    return node if square else None


def _order(node: ir.Node) -> list[int] | None:
    """In which order the axes make long runs; None if they are that as they are."""
    shapes = [dims(v) for v in node.inputs]
    out = dims(node.outputs[0])
    if out is None or any(s is None or len(s) != 3 for s in shapes):
        return None
    ends = [s[2] for s in shapes if s is not None]
    single = [s is not None and s[1] == 1 for s in shapes]
    if single[0] == single[1] or any(not isinstance(n, int) for n in ends):
        return None
    if ends[0] != ends[1] or ends[0] not in range(2, _NARROW + 1):
        return None
    rows, columns = (n if isinstance(n, int) else _MANY for n in out[:2])
    if max(rows, columns) < _MANY:
        return None
    return [2, 0, 1] if columns >= min(rows, _MANY) else [2, 1, 0]


class ArgTransposePass(NodePass):
    """``ArgMax(Transpose(x), axis=1)`` of a matrix becomes ``ArgMax(x, axis=0)``."""

    op_types: ClassVar[frozenset[str]] = frozenset({"ArgMax", "ArgMin"})

    def rewrite(self, node: ir.Node, op: Builder) -> Any:
        """The operator along the other axis."""
        turned = producer(node.inputs[0], "Transpose")
        if node.domain or turned is None or rank(turned.inputs[0]) != 2:
            return None
        if attribute(turned, "perm", [1, 0]) != [1, 0] or attribute(node, "keepdims", 1):
            return None
        axis = 1 - attribute(node, "axis", 0) % 2
        return op.node(node.op_type, turned.inputs[0], attributes_of=node, axis=axis)
