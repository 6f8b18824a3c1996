"""Einstein sums of two operands, which are matrix products of rearranged operands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from optim_passes.rewriting import NodePass, require
from optim_passes.values import attribute, dims

if TYPE_CHECKING:
    import onnx_ir as ir

    from optim_passes.builder import Builder

__all__ = ["EinsumPass"]


class EinsumPass(NodePass):
    """``Einsum`` of two operands becomes ``MatMul``, which fusions know and runtimes run faster.

    Axes that are summed over, or of the second operand only, are joined; their sizes are static
    where there are several. With axes of both operands in the result, there may be one of each
    operand alone. Diagonals, ellipses and sums of one operand stay.
    """

    op_types: ClassVar[frozenset[str]] = frozenset({"Einsum"})

    def rewrite(self, node: ir.Node, op: Builder) -> Any:
        """The product, rearranged."""
        equation = str(attribute(node, "equation", "")).replace(" ", "")
        if node.domain or len(node.inputs) != 2 or "->" not in equation or "." in equation:
            return None
        operands, out = equation.split("->")
        left, right = operands.split(",")
        x, y = node.inputs
        if x is None or y is None or any(len(set(t)) != len(t) for t in (left, right, out)):
            return None
        require(set(left) ^ set(right) <= set(out), "it sums over an axis of one operand", node)
        # The operand whose own axes come last in the result is the second one.
        only_left = [a for a in out if a not in right]
        only_right = [a for a in out if a not in left]
        if only_left and only_right and out.index(only_left[0]) > out.index(only_right[-1]):
            left, right, x, y = right, left, y, x
            only_left, only_right = only_right, only_left
        return _product(_Side(x, left, only_left), _Side(y, right, only_right), out, op)


class _Side:
    """An operand: its axes, and which of them are in the result and not the other operand's."""

    def __init__(self, value: ir.Value, axes: str, own: list[str]) -> None:
        self.value = value
        self.axes = axes
        self.own = own
        shape = dims(value)
        require(shape is not None and len(shape) == len(axes), "the rank is not known", value)
        assert shape is not None
        self.sizes = dict(zip(axes, shape, strict=True))

    def arranged(self, order: list[str], joined: int, op: Builder) -> ir.Value:
        """The operand with its axes in an order, and the last ``joined`` of them as one."""
        perm = [self.axes.index(a) for a in order]
        value: ir.Value = self.value
        if perm != sorted(perm):
            value = op.Transpose(value, perm=perm)
        if joined == 1:
            return value
        size = _size(order[-joined:], self.sizes, self.value)
        made: ir.Value = op.Reshape(value, [0] * (len(order) - joined) + [size])
        return made


def _size(axes: list[str], sizes: dict[str, Any], value: ir.Value) -> int:
    total = 1
    for axis in axes:
        require(isinstance(sizes[axis], int), "a joined axis has no static size", value)
        total *= sizes[axis]
    return total


def _product(left: _Side, right: _Side, out: str, op: Builder) -> ir.Value:
    both = [a for a in out if a in left.axes and a in right.axes]
    summed = [a for a in left.axes if a in right.axes and a not in out]
    require(summed and left.own and right.own, "it is no matrix product", left.value)
    if both:
        single = len(left.own) == len(right.own) == len(summed) == 1
        require(single, "a batch of products has several axes", left.value)
        x = left.arranged([*both, *left.own, *summed], 1, op)
        y = right.arranged([*both, *summed, *right.own], 1, op)
        return _ordered(op.MatMul(x, y), [*both, *left.own, *right.own], out, op)
    x = left.arranged([*left.own, *summed], len(summed), op)
    y = right.arranged([*summed, *right.own], len(right.own), op)
    if len(summed) > 1:
        width = _size(right.own, right.sizes, right.value)
        y = op.Reshape(y, [_size(summed, right.sizes, right.value), width])
    product: ir.Value = op.MatMul(x, y)
    if len(right.own) > 1:
        sizes = [_size([a], right.sizes, right.value) for a in right.own]
        product = op.Reshape(product, [0] * len(left.own) + sizes)
    return _ordered(product, [*left.own, *right.own], out, op)


def _ordered(value: ir.Value, axes: list[str], out: str, op: Builder) -> ir.Value:
    perm = [axes.index(a) for a in out]
    made: ir.Value = value if perm == sorted(perm) else op.Transpose(value, perm=perm)
    return made
