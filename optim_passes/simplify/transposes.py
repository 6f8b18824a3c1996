"""Algebra of ``Transpose``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from optim_passes.rewriting import NodePass
from optim_passes.values import attribute, dims, producer, rank

if TYPE_CHECKING:
    import onnx_ir as ir

    from optim_passes.builder import Builder

__all__ = ["TransposePass", "permutation"]


def permutation(node: ir.Node) -> list[int] | None:
    """The order of axes; the reverse where none is given."""
    perm: list[int] | None = attribute(node, "perm")
    size = rank(node.inputs[0])
    if perm is None and "perm" not in node.attributes and size is not None:
        return list(range(size))[::-1]
    return perm


class TransposePass(NodePass):
    """Two transposes become one; one that moves only axes of size 1 becomes a Reshape."""

    op_types: ClassVar[frozenset[str]] = frozenset({"Transpose"})

    def rewrite(self, node: ir.Node, op: Builder) -> Any:
        """The shorter form."""
        x, perm = node.inputs[0], permutation(node)
        if node.domain or x is None or perm is None:
            return None
        inner = producer(x, "Transpose")
        if inner is not None:
            before = permutation(inner)
            if before is None:
                return None
            both = [before[i] for i in perm]
            source = inner.inputs[0]
            return source if both == sorted(both) else op.Transpose(source, perm=both)
        target = _as_reshape(x, perm)
        return None if target is None else op.Reshape(x, target)


def _as_reshape(x: ir.Value, perm: list[int]) -> list[int] | None:
    """The target of an equal Reshape, which copies nothing; None if there is none."""
    shape = dims(x)
    if shape is None or len(shape) != len(perm):
        return None
    moved = [i for i in perm if shape[i] != 1]
    dynamic = [i for i in moved if not isinstance(shape[i], int)]
    if moved != sorted(moved) or len(dynamic) > 1 or 0 in shape:
        return None
    return [n if isinstance(n, int) else -1 for n in (shape[i] for i in perm)]
