"""Products in the bodies of loops: there a node costs more than the little that it computes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from optim_passes.rewriting import NodePass
from optim_passes.scopes import in_loop
from optim_passes.values import attribute, constant, input_of, only_consumer, producer, rank

if TYPE_CHECKING:
    import onnx_ir as ir

    from optim_passes.builder import Builder

__all__ = ["GemmSumPass"]


class GemmSumPass(NodePass):
    """``Gemm(x, W, b) + Gemm(h, V, c)`` becomes ``Gemm(h, V, Gemm(x, W, b + c))`` in a loop.

    That is the sum in every recurrent cell.
    """

    op_types: ClassVar[frozenset[str]] = frozenset({"Add"})

    def rewrite(self, node: ir.Node, op: Builder) -> Any:
        """The second product, on top of the first."""
        if node.domain or not in_loop(op.scope):
            return None
        first, second = (_product(v, node) for v in node.inputs)
        if first is None or second is None or first is second:
            return None
        bias = op.Add(first.inputs[2], second.inputs[2])
        inner = op.node("Gemm", *first.inputs[:2], bias, attributes_of=first)
        return op.node("Gemm", *second.inputs[:2], inner, attributes_of=second)


def _product(value: ir.Value | None, user: ir.Node) -> ir.Node | None:
    """The Gemm with constant weights that makes a value only ``user`` reads."""
    node = producer(value, "Gemm")
    if value is None or node is None or only_consumer(value) is not user:
        return None
    bias = input_of(node, 2)
    plain = attribute(node, "alpha", 1.0) == 1 and attribute(node, "beta", 1.0) == 1
    if not plain or rank(bias) != 1 or constant(bias) is None or constant(node.inputs[1]) is None:
        return None
    return node
