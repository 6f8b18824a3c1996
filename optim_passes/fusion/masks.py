"""Masks of attention that hide nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from optim_passes.rewriting import NodePass
from optim_passes.values import constant, input_of, producer

if TYPE_CHECKING:
    import onnx_ir as ir

    from optim_passes.builder import Builder

__all__ = ["FullMaskPass"]

_LARGE = 1 << 24  # elements of a constant mask that are worth looking at
_PLACES = {"Attention": 3, "MultiHeadAttention": 5}
_REARRANGED = ("Expand", "Identity", "Reshape", "Squeeze", "Tile", "Transpose", "Unsqueeze")


class FullMaskPass(NodePass):
    """``Attention(q, k, v, mask)`` loses a mask that is true, or 0, everywhere.

    Kernels without a mask are faster, and the flash kernels of the CUDA provider take none.
    """

    op_types: ClassVar[frozenset[str]] = frozenset(_PLACES)

    def rewrite(self, node: ir.Node, op: Builder) -> Any:
        """The attention without a mask."""
        place = _PLACES[node.op_type]
        mask = input_of(node, place)
        standard = node.domain == "" and node.op_type == "Attention"
        if mask is None or not (standard or node.op_type == "MultiHeadAttention"):
            return None
        if not _hides_nothing(mask):
            return None
        inputs = list(node.inputs)
        inputs[place] = None
        made = op.node(
            node.op_type, *inputs, domain=node.domain, outputs=len(node.outputs),
            like=node.outputs[0], attributes_of=node,
        )  # fmt: skip
        for before, after in zip(
            node.outputs[1:], made[1:] if len(node.outputs) > 1 else (), strict=True
        ):
            after.type, after.shape = before.type, before.shape
        return made


def _hides_nothing(mask: ir.Value | None) -> bool:
    """Whether a mask is certainly true everywhere, or 0 where it is added."""
    tensor = constant(mask)
    if tensor is not None:
        if tensor.size > _LARGE:
            return False
        array = tensor.numpy()
        return bool(array.all()) if array.dtype == np.bool_ else not array.any()
    node = producer(mask, "Where", "Max", *_REARRANGED)
    if node is None:
        return False
    if node.op_type == "Where":
        condition, chosen, _ = node.inputs
        return _hides_nothing(condition) and _hides_nothing(chosen)
    if node.op_type == "Max":
        return any(_hides_nothing(x) for x in node.inputs) and all(
            _hides_nothing(x) or _is_negative(x) for x in node.inputs
        )
    return _hides_nothing(node.inputs[0])


def _is_negative(value: ir.Value | None) -> bool:
    tensor = constant(value)
    return tensor is not None and tensor.size <= _LARGE and bool((tensor.numpy() <= 0).all())
