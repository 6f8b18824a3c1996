"""Masks of attention that hide nothing, or every key from a query."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import onnx_ir as ir

from optim_passes.rewriting import NodePass, require
from optim_passes.values import attribute, constant, dims, input_of, producer, rank

if TYPE_CHECKING:
    from optim_passes.builder import Builder

__all__ = ["FullMaskPass", "UnseenRowsPass"]

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


class UnseenRowsPass(NodePass):
    """``Attention`` with a mask gives 0 for queries that may see no key.

    What ONNX leaves open, ONNX Runtime does since version 1.28, and eager code does. Older kernels
    give the mean of all values for a boolean mask, and NaN for one of -inf.
    """

    op_types: ClassVar[frozenset[str]] = frozenset({"Attention"})
    repeat: ClassVar[bool] = False

    def rewrite(self, node: ir.Node, op: Builder) -> Any:
        """The attention where a key is seen, 0 elsewhere."""
        mask = input_of(node, 3)
        if node.domain or mask is None or mask.dtype is None or _shows_all_rows(mask):
            return None
        size, outer = rank(node.outputs[0]), rank(mask)
        require(size in (3, 4) and outer in (2, 3, 4), "the rank is not known", node)
        assert outer is not None
        made = op.node(
            "Attention", *node.inputs, outputs=len(node.outputs), like=node.outputs[0],
            attributes_of=node,
        )  # fmt: skip
        y, *others = [made] if len(node.outputs) == 1 else made
        for before, after in zip(node.outputs[1:], others, strict=True):
            after.type, after.shape = before.type, before.shape
        if mask.dtype == ir.DataType.BOOL:
            numbers = op.Cast(mask, to=int(ir.DataType.INT32))
            seen = op.Cast(op.ReduceMax(numbers, [-1], keepdims=1), to=int(ir.DataType.BOOL))
        else:
            low = op.number(-np.inf, mask)
            seen = op.Greater(op.ReduceMax(mask, [-1], keepdims=1), low)
        zero = op.number(0, y)
        if size == 4:
            return [op.Where(seen, y, zero), *others]
        heads = attribute(node, "q_num_heads")
        if outer == 4 and (dims(mask) or (None, None))[1] == 1:
            seen = op.Squeeze(seen, [1])  # one mask for all heads
        elif outer > 2:
            seen = seen if outer == 4 else op.Unsqueeze(seen, [0])
            seen = op.Transpose(seen, perm=[0, 2, 1, 3])
            apart = op.Where(seen, op.Reshape(y, [0, 0, heads, -1]), zero)
            return [op.Reshape(apart, op.Shape(y)), *others]
        return [op.Where(seen, y, zero), *others]


def _shows_all_rows(mask: ir.Value) -> bool:
    """Whether a mask certainly shows some key to every query, or has no -inf at all."""
    tensor = constant(mask)
    if tensor is not None and tensor.size <= _LARGE:
        array = tensor.numpy()
        shown = array if array.dtype == np.bool_ else array > -np.inf
        return bool(np.atleast_1d(shown).any(-1).all())
    node = producer(mask, "Where", "Max", *_REARRANGED)
    if node is None or mask.dtype == ir.DataType.BOOL:
        return _hides_nothing(mask)
    if node.op_type == "Where":
        return all(v is not None and _shows_all_rows(v) for v in node.inputs[1:])
    if node.op_type == "Max":
        return any(_shows_all_rows(v) for v in node.inputs if v is not None)
    return node.inputs[0] is not None and _shows_all_rows(node.inputs[0])
