"""Group normalisation, and scales and shifts of channels, as ONNX Runtime's CPU runs them fastest.

Measured on version 1.32 against ``GroupNormalization``, which it writes out as 10 nodes, and
against a Mul and an Add: 1.1 to 2.2 times as fast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import onnx_ir as ir

from optim_passes.rewriting import NodePass, require
from optim_passes.values import attribute, dims, floats_of, only_consumer, producer, rank

if TYPE_CHECKING:
    from optim_passes.builder import Builder

__all__ = ["ChannelAffinePass", "GroupNormPass"]


class GroupNormPass(NodePass):
    """``GroupNormalization`` becomes ``InstanceNormalization`` of the groups and an affine map."""

    op_types: ClassVar[frozenset[str]] = frozenset({"GroupNormalization"})

    def rewrite(self, node: ir.Node, op: Builder) -> Any:
        """The two normalisations."""
        x, scale, bias = node.inputs
        if node.domain or x is None or scale is None or bias is None:
            return None
        shape, groups = dims(x), attribute(node, "num_groups")
        require(shape is not None and isinstance(shape[1], int), "the channels vary", x)
        require(x.dtype == ir.DataType.FLOAT, "the dtype has no kernel", x)
        require(op.opset >= 21, "scale and bias are given for each group", node)
        assert shape is not None
        require(all(isinstance(n, int) for n in shape[2:]), "the sizes of the image vary", x)
        ones, zeros = np.ones(groups, np.float32), np.zeros(groups, np.float32)
        flat = op.Reshape(x, [0, groups, -1])
        epsilon = attribute(node, "epsilon", 1e-5)
        normal = op.InstanceNormalization(flat, ones, zeros, epsilon=epsilon)
        back = op.Reshape(normal, [0, *(int(n) for n in shape[1:])])  # type: ignore[arg-type]
        return _affine(back, scale, bias, int(shape[1]), op)  # type: ignore[arg-type]


def _affine(x: ir.Value, scale: Any, bias: Any, channels: int, op: Builder) -> ir.Value:
    """``scale * x + bias`` for each channel: BatchNormalization with nothing to normalise."""
    zero, one = np.zeros(channels, np.float32), np.ones(channels, np.float32)
    made: ir.Value = op.BatchNormalization(x, scale, bias, zero, one, epsilon=0.0)
    return made


class ChannelAffinePass(NodePass):
    """``x * scale + bias`` with a number for each channel becomes one ``BatchNormalization``."""

    op_types: ClassVar[frozenset[str]] = frozenset({"Add"})

    def rewrite(self, node: ir.Node, op: Builder) -> Any:
        """The one node."""
        size = rank(node.outputs[0])
        if node.domain or size is None or size < 3:
            return None
        for y, shift in (list(node.inputs), list(node.inputs)[::-1]):
            product, bias = producer(y, "Mul"), floats_of(shift)
            if product is None or bias is None or y is None or only_consumer(y) is None:
                continue
            for x, factor in (list(product.inputs), list(product.inputs)[::-1]):
                scale = floats_of(factor)
                channels = (dims(x) or (None, None))[1] if rank(x) == size else None
                if x is None or scale is None or not isinstance(channels, int):
                    continue
                if x.dtype != ir.DataType.FLOAT or channels == 1:
                    continue
                if _is_per_channel(scale, channels, size) and _is_per_channel(
                    bias, channels, size
                ):
                    return _affine(x, scale.reshape(-1), bias.reshape(-1), channels, op)
        return None


def _is_per_channel(array: Any, channels: int, size: int) -> bool:
    shape = [1] * (size - array.ndim) + list(array.shape)
    return len(shape) == size and shape == [1, channels, *[1] * (size - 2)]
