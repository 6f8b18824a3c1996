"""Algebra of the operators that keep every element in its place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from optim_passes.rewriting import NodePass
from optim_passes.simplify.shapes import dim_terms, reshape_target
from optim_passes.values import attribute, input_of, ints, producer

if TYPE_CHECKING:
    import onnx_ir as ir

    from optim_passes.builder import Builder

__all__ = ["ReshapePass"]

_RESHAPES = ("Reshape", "Squeeze", "Unsqueeze", "Flatten")


class ReshapePass(NodePass):
    """A chain of Reshape, Squeeze, Unsqueeze and Flatten becomes one Reshape, or nothing."""

    op_types: ClassVar[frozenset[str]] = frozenset(_RESHAPES)

    def rewrite(self, node: ir.Node, op: Builder) -> Any:
        """The one Reshape from the start of the chain to its end."""
        inner = producer(node.inputs[0], *_RESHAPES)
        if node.domain or inner is None:
            return None
        x = inner.inputs[0]
        given, wanted = dim_terms(x), dim_terms(node.outputs[0])
        if x is None:
            return None
        target = None
        if given is not None and wanted is not None:
            if given == wanted:
                return x
            target = reshape_target(wanted, given)
        if target is None and node.op_type == "Reshape" and not attribute(node, "allowzero", 0):
            explicit = ints(input_of(node, 1))
            target = explicit if explicit is not None and 0 not in explicit else None
        return None if target is None else op.Reshape(x, target)
