"""Axes of size 1 that broadcasting supplies, or that are taken away again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from optim_passes.rewriting import NodePass
from optim_passes.simplify.tables import ELEMENTWISE
from optim_passes.values import attribute, dims, input_of, ints, norm_axis, producer, rank, scalar

if TYPE_CHECKING:
    import onnx_ir as ir

    from optim_passes.builder import Builder

__all__ = ["LeadingAxisPass", "UnitAxisPass"]

_DEPTH = 40  # nodes that are looked through
_TYPES = frozenset({*ELEMENTWISE, "HardSigmoid", "LeakyRelu", "Softplus"})


class LeadingAxisPass(NodePass):
    """``Unsqueeze(x, [0]) + y`` becomes ``x + y`` where ``y`` has as many axes."""

    op_types: ClassVar[frozenset[str]] = ELEMENTWISE

    def rewrite(self, node: ir.Node, op: Builder) -> Any:
        """The operator on the operand as it was."""
        ranks = [rank(v) for v in node.inputs]
        if node.domain or len(ranks) < 2 or None in ranks:
            return None
        for index, value in enumerate(node.inputs):
            others = [r for i, r in enumerate(ranks) if i != index and r is not None]
            axes = _leading(value)
            if axes is None or value is None or max(others) < (ranks[index] or 0):
                continue
            operands = list(node.inputs)
            operands[index] = axes.inputs[0]
            return op.node(node.op_type, *operands, attributes_of=node, like=node.outputs[0])
        return None


def _leading(value: ir.Value | None) -> ir.Node | None:
    """The Unsqueeze that puts axes before all others."""
    node = producer(value, "Unsqueeze")
    axes, size = None if node is None else ints(input_of(node, 1)), rank(value)
    if axes is None or size is None:
        return None
    return node if sorted(norm_axis(a, size) for a in axes) == list(range(len(axes))) else None


class UnitAxisPass(NodePass):
    """A first axis of size 1 that is taken away in the end is not made in the first place.

    ``Squeeze(f(Unsqueeze(x, [0])), [0])`` becomes ``f(x)``, for element-wise operators, slices and
    choices along other axes.
    """

    op_types: ClassVar[frozenset[str]] = frozenset({"Gather", "Squeeze"})

    def rewrite(self, node: ir.Node, op: Builder) -> Any:
        """The value without the axis."""
        x = node.inputs[0]
        if node.domain or x is None or not _takes_first(node):
            return None
        return _Without(node, op).first_axis(x)


def _takes_first(node: ir.Node) -> bool:
    shape = dims(node.inputs[0])
    if not shape or shape[0] != 1:
        return False
    if node.op_type == "Squeeze":
        return ints(input_of(node, 1)) == [0]
    number, index = scalar(node.inputs[1]), node.inputs[1]
    return attribute(node, "axis", 0) == 0 and rank(index) == 0 and number in (0, -1)


class _Without:
    """Values without their first axis.

    Args:
        end: The node that takes it away.
        op: Makes the nodes.
    """

    def __init__(self, end: ir.Node, op: Builder) -> None:
        self.end, self.op = end, op
        self.nodes: set[ir.Node] = {end}
        self.made: dict[ir.Value, ir.Value] = {}

    def first_axis(self, x: ir.Value) -> ir.Value | None:
        """``x`` without it; None if that would take more nodes than there are."""
        if producer(x, *_TYPES) is None or not self._collect(x, 0):
            return None
        for node in self.nodes:
            if node.op_type != "Unsqueeze" and node is not self.end:
                users = {u.node for u in node.outputs[0].uses()}
                if node.outputs[0].is_graph_output() or not users <= self.nodes:
                    return None
        return self._again(x)

    def _collect(self, x: ir.Value | None, depth: int) -> bool:
        """Whether all that ``x`` is made of can do without the axis."""
        node, shape = None if x is None else x.producer(), dims(x)
        if node is None or node.domain or not shape or shape[0] != 1 or depth > _DEPTH:
            return False
        if node in self.nodes:
            return True
        if len(node.outputs) != 1 or node.graph is not self.end.graph:
            return False
        self.nodes.add(node)
        if node.op_type == "Unsqueeze":
            axes = self._axes(node)
            return axes is not None and (0 in axes or self._collect(node.inputs[0], depth + 1))
        if node.op_type == "Slice":
            axes = ints(input_of(node, 3))
            later = axes is not None and all(norm_axis(a, len(shape)) > 0 for a in axes)
            return later and self._collect(node.inputs[0], depth + 1)
        if node.op_type == "Gather":
            size = rank(node.inputs[0])
            later = size is not None and norm_axis(attribute(node, "axis", 0), size) > 0
            return later and self._collect(node.inputs[0], depth + 1)
        if node.op_type not in _TYPES:
            return False
        return all(
            self._broadcasts(v, len(shape)) or self._collect(v, depth + 1) for v in node.inputs
        )

    def _broadcasts(self, x: ir.Value | None, size: int) -> bool:
        """Whether an operand has fewer axes than the result."""
        given = rank(x)
        return x is None or (given is not None and given < size)

    def _axes(self, node: ir.Node) -> list[int] | None:
        axes, size = ints(input_of(node, 1)), rank(node.outputs[0])
        if axes is None or size is None:
            return None
        return sorted(norm_axis(a, size) for a in axes)

    def _again(self, x: ir.Value) -> ir.Value:
        if x not in self.made:
            node = x.producer()
            assert node is not None
            self.made[x] = self._remade(node, x)
        return self.made[x]

    def _remade(self, node: ir.Node, x: ir.Value) -> ir.Value:
        op, (first, *rest) = self.op, node.inputs
        assert first is not None
        made: ir.Value
        if node.op_type == "Unsqueeze":
            axes = self._axes(node) or []
            inner = first if 0 in axes else self._again(first)
            left = [a - 1 for a in axes if a]
            return op.Unsqueeze(inner, left) if left else inner
        if node.op_type == "Slice":
            axes = [norm_axis(a, rank(x) or 0) - 1 for a in ints(rest[2]) or ()]
            made = op.Slice(self._again(first), *rest[:2], axes, *rest[3:])
            return made
        if node.op_type == "Gather":
            axis = norm_axis(attribute(node, "axis", 0), rank(first) or 0) - 1
            made = op.Gather(self._again(first), *rest, axis=axis)
            return made
        size = rank(x) or 0
        operands = [v if v is None or self._broadcasts(v, size) else self._again(v)
                    for v in node.inputs]  # fmt: skip
        made = op.node(node.op_type, *operands, attributes_of=node)
        return made
