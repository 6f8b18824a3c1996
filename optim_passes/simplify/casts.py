"""Algebra of ``Cast``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from onnx_ir import DataType

from optim_passes.rewriting import NodePass
from optim_passes.values import attribute, only_consumer, producer, scalar

if TYPE_CHECKING:
    import onnx_ir as ir

    from optim_passes.builder import Builder

__all__ = ["CastPass", "is_widening"]

# What each type can be cast to without loss.
_WIDER = {
    DataType.BOOL: (
        DataType.UINT8, DataType.INT8, DataType.INT16, DataType.INT32, DataType.INT64,
        DataType.FLOAT16, DataType.BFLOAT16, DataType.FLOAT, DataType.DOUBLE,
    ),
    DataType.UINT8: (
        DataType.INT16, DataType.INT32, DataType.INT64, DataType.FLOAT16, DataType.FLOAT,
        DataType.DOUBLE,
    ),
    DataType.INT8: (
        DataType.INT16, DataType.INT32, DataType.INT64, DataType.FLOAT16, DataType.FLOAT,
        DataType.DOUBLE,
    ),
    DataType.INT16: (DataType.INT32, DataType.INT64, DataType.FLOAT, DataType.DOUBLE),
    DataType.INT32: (DataType.INT64, DataType.DOUBLE),
    DataType.FLOAT16: (DataType.FLOAT, DataType.DOUBLE),
    DataType.BFLOAT16: (DataType.FLOAT, DataType.DOUBLE),
    DataType.FLOAT: (DataType.DOUBLE,),
}  # fmt: skip


def is_widening(source: ir.DataType | None, target: ir.DataType) -> bool:
    """Whether every number of ``source`` is one of ``target``."""
    return source is not None and (source == target or target in _WIDER.get(source, ()))


class CastPass(NodePass):
    """``Cast(Cast(x))`` becomes one cast where the first one loses nothing.

    The cast of a choice between two constants becomes the choice between their casts.
    """

    op_types: ClassVar[frozenset[str]] = frozenset({"Cast"})

    def rewrite(self, node: ir.Node, op: Builder) -> Any:
        """The one cast, or none at all."""
        choice = producer(node.inputs[0], "Where")
        if choice is not None and not node.domain:
            return _choice(node, choice, op)
        inner = producer(node.inputs[0], "Cast")
        if node.domain or inner is None or inner.inputs[0] is None:
            return None
        x = inner.inputs[0]
        middle, last = attribute(inner, "to"), attribute(node, "to")
        if middle is None or last is None or not is_widening(x.dtype, DataType(middle)):
            return None
        return x if x.dtype == last else op.Cast(x, to=last)


def _choice(node: ir.Node, choice: ir.Node, op: Builder) -> Any:
    condition, *options = choice.inputs
    if any(scalar(v) is None for v in options) or only_consumer(choice.outputs[0]) is not node:
        return None
    casts = [op.Cast(v, to=attribute(node, "to")) for v in options]
    return op.Where(condition, *casts)
