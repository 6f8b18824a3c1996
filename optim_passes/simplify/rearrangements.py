"""Chains of Reshape, Squeeze, Unsqueeze, Flatten and Transpose."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from optim_passes.rewriting import NodePass
from optim_passes.values import input_of, ints, is_op, only_consumer, producer
from optim_passes.views import RESHAPES, emit, permutation, plan, view_of

if TYPE_CHECKING:
    import onnx_ir as ir

    from optim_passes.builder import Builder

__all__ = ["RearrangementPass", "TransposeOrderPass"]

_COST = {"Transpose": 10}  # a Transpose moves memory; the others only rename it


class RearrangementPass(NodePass):
    """A chain becomes at most Reshape, Transpose, Reshape, if that is cheaper."""

    op_types: ClassVar[frozenset[str]] = frozenset({*RESHAPES, "Transpose"})

    def rewrite(self, node: ir.Node, op: Builder) -> Any:
        """The shorter chain."""
        if node.domain or node.inputs[0] is None:
            return None
        view = view_of(node.outputs[0])
        if view is None or not view.nodes:
            return self._without_shapes(node, op)
        steps = plan(view)
        if steps is None:
            return self._without_shapes(node, op)
        dying = [n.op_type for n in _dying(view.nodes)]
        return emit(view, op) if _cost([s[0] for s in steps]) < _cost(dying) else None

    def _without_shapes(self, node: ir.Node, op: Builder) -> Any:
        """What holds for values of any shape."""
        inner = producer(node.inputs[0], *self.op_types)
        if inner is None:
            return None
        x = inner.inputs[0]
        if node.op_type == inner.op_type == "Transpose":
            first, second = permutation(inner), permutation(node)
            if first is None or second is None:
                return None
            both = [first[i] for i in second]
            return x if both == sorted(both) else op.Transpose(x, perm=both)
        if node.op_type == "Reshape" and inner.op_type != "Transpose":
            target = ints(input_of(node, 1))
            if target is not None and 0 not in target:
                return op.Reshape(x, target)
        return None


def _dying(chain: tuple[ir.Node, ...]) -> list[ir.Node]:
    """The end of the chain that nothing else uses."""
    dying = [chain[-1]]
    for node in reversed(chain[:-1]):
        if only_consumer(node.outputs[0]) is None:
            break
        dying.append(node)
    return dying


def _cost(op_types: list[str]) -> int:
    return sum(_COST.get(t, 1) for t in op_types)


# fmt: off
_UNARY = frozenset({
    "Abs", "Cast", "Ceil", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish",
    "LeakyRelu", "Log", "Mish", "Neg", "Reciprocal", "Relu", "Selu", "Sigmoid", "Softplus", "Sqrt",
    "Swish", "Tanh",
})
# fmt: on
_BINARY = frozenset({"Add", "Div", "Max", "Min", "Mul", "Sub"})


class TransposeOrderPass(NodePass):
    """``Transpose(f(Transpose(x)))`` becomes ``Transpose(Transpose(f(x)))``, which may cancel.

    For ``f`` of each element alone, also of two operands that are transposed alike. tf2onnx leaves
    such pairs around every activation of a network whose channels come last.
    """

    op_types: ClassVar[frozenset[str]] = _UNARY | _BINARY

    def rewrite(self, node: ir.Node, op: Builder) -> Any:
        """The Transpose of the result."""
        y = node.outputs[0]
        wanted = 2 if node.op_type in _BINARY else 1
        if node.domain or len(node.inputs) != wanted:
            return None
        turned_back = y.uses() and all(is_op(u.node, "Transpose") for u in y.uses())
        if wanted == 1 and (y.is_graph_output() or not turned_back):
            return None  # nothing is gained; of two operands, one Transpose is
        turns = [producer(v, "Transpose") for v in node.inputs]
        perms = [None if t is None else permutation(t) for t in turns]
        if any(p is None or p != perms[0] for p in perms):
            return None
        if any(v is None or only_consumer(v) is not node for v in node.inputs):
            return None
        operands = [t.inputs[0] for t in turns if t is not None]
        made = op.node(node.op_type, *operands, attributes_of=node)
        return op.Transpose(made, perm=perms[0])
