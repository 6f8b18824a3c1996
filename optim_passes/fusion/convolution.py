"""Convolution, what is added to it, and its activation as one node."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import onnx_ir as ir

from optim_passes.rewriting import NodePass, require, require_dtype
from optim_passes.values import (
    attribute,
    constant,
    dims,
    input_of,
    ints,
    is_op,
    only_consumer,
    producer,
    rank,
    same_shape,
    scalar,
)

if TYPE_CHECKING:
    from optim_passes.builder import Builder

__all__ = ["ConvActivationPass", "ConvPadPass"]

FLOAT = ir.DataType.FLOAT


class ConvPadPass(NodePass):
    """``Conv(Pad(x))`` with zeros around the image becomes a ``Conv`` that pads.

    ONNX Runtime does so too, but not before a convolution that is fused with its activation.
    """

    op_types: ClassVar[frozenset[str]] = frozenset({"Conv"})

    def rewrite(self, node: ir.Node, op: Builder) -> Any:
        """The convolution of what was padded."""
        pad = producer(node.inputs[0], "Pad")
        size = rank(node.inputs[0])
        if node.domain or pad is None or size is None:
            return None
        if attribute(pad, "mode", "constant") != "constant" or input_of(pad, 3) is not None:
            return None
        if attribute(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
            return None
        given, value = ints(input_of(pad, 1)), input_of(pad, 2)
        if given is None or (value is not None and scalar(value) != 0):
            return None
        start, end = given[:size], given[size:]
        outer = [*start[:2], *end[:2]]
        require(not any(outer), "the batch or the channels are padded", pad)
        require(all(n >= 0 for n in given), "the image is cut", pad)
        before = attribute(node, "pads", [0] * 2 * (size - 2))
        pads = [a + b for a, b in zip(before, [*start[2:], *end[2:]], strict=True)]
        return op.node(
            "Conv", pad.inputs[0], *node.inputs[1:], like=node.outputs[0], attributes_of=node,
            pads=pads, auto_pad=None,
        )  # fmt: skip


class ConvActivationPass(NodePass):
    """``act(Conv(x, W) + b + z)`` becomes one ``com.microsoft.FusedConv``.

    For ONNX Runtime's CPU provider: float32, and the activations that its kernel has known since
    version 1.15. The residual ``z`` has the result's shape.

    Args:
        residual: Whether to take it in. Before version 1.28, ONNX Runtime forgets it where it
            brings the convolution into its blocked layout.
    """

    op_types: ClassVar[frozenset[str]] = frozenset(
        {"Relu", "Sigmoid", "Tanh", "LeakyRelu", "Clip", "HardSigmoid", "Add"}
    )

    def __init__(self, *, residual: bool = True) -> None:
        super().__init__()
        self.residual = residual

    def rewrite(self, node: ir.Node, op: Builder) -> Any:
        """The fused convolution."""
        if node.domain:
            return None
        if node.op_type == "Add":
            return self._residual(node, op) if self.residual else None
        x = node.inputs[0]
        conv = _convolution(x)
        if conv is None or x is None or attribute(conv, "activation") is not None:
            return None
        require_dtype(x, FLOAT)
        parameters = _parameters(node)
        require(parameters is not None, "the activation's parameters are not constant", node)
        require(only_consumer(x) is not None, "the convolution's result has another use", x)
        return op.ms(
            "FusedConv", *conv.inputs, like=node.outputs[0], attributes_of=conv,
            activation=node.op_type, activation_params=parameters or None,
        )  # fmt: skip

    def _residual(self, node: ir.Node, op: Builder) -> Any:
        """Only where an activation follows: ONNX Runtime joins a bare Add as well."""
        after = only_consumer(node.outputs[0])
        if after is None or not is_op(after, "Relu"):
            return None
        first, second = node.inputs
        for y, z in ((first, second), (second, first)):
            conv = _convolution(y)
            if conv is None or y is None or z is None or len(conv.inputs) > 3:
                continue
            if attribute(conv, "activation") is not None or only_consumer(y) is None:
                continue
            if y.dtype != FLOAT or constant(z) is not None or not same_shape(y, z):
                continue
            channels = (dims(y) or (None, None))[1]
            bias: Any = input_of(conv, 2)
            if bias is None and isinstance(channels, int):
                # Without one, ONNX Runtime 1.32 leaves the node out of its blocked layout.
                bias = np.zeros(channels, np.float32)
            return op.ms(
                "FusedConv", *conv.inputs[:2], bias, z, like=node.outputs[0], attributes_of=conv
            )
        return None


def _convolution(x: ir.Value | None) -> ir.Node | None:
    return producer(x, "Conv") or producer(x, "FusedConv", domain="com.microsoft")


def _parameters(node: ir.Node) -> list[float] | None:
    """The activation's parameters in the order in which FusedConv takes them."""
    if node.op_type == "LeakyRelu":
        return [attribute(node, "alpha", 0.01)]
    if node.op_type == "HardSigmoid":
        return [attribute(node, "alpha", 0.2), attribute(node, "beta", 0.5)]
    if node.op_type != "Clip":
        return []
    bounds = []
    for index, name, default in ((1, "min", -3.4028235e38), (2, "max", 3.4028235e38)):
        given = input_of(node, index)
        number = attribute(node, name, default) if given is None else scalar(given)
        if number is None:
            return None
        bounds.append(float(number))
    return bounds
