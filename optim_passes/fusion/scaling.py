"""Multiplications and additions of constants that the weights of a layer can take up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from optim_passes.rewriting import NodePass
from optim_passes.tensors import derived
from optim_passes.values import (
    constant,
    floats_of,
    input_of,
    only_consumer,
    producer,
    rank,
    same_shape,
)
from optim_passes.views import permutation

if TYPE_CHECKING:
    import onnx_ir as ir

    from optim_passes.builder import Builder

__all__ = ["LayerScalePass"]

Array = np.ndarray[Any, Any]


class LayerScalePass(NodePass):
    """``c * (x @ W + b)`` becomes ``x @ (c * W) + c * b``, and the same for convolutions.

    A Transpose between the layer and the scale is passed through. Added constants become the
    bias of a Conv.
    """

    op_types: ClassVar[frozenset[str]] = frozenset({"Mul", "Div", "Add", "Sub"})

    def rewrite(self, node: ir.Node, op: Builder) -> Any:
        """What the layer with other weights returns."""
        if node.domain:
            return None
        y, c, swapped = node.inputs[0], node.inputs[1], False
        if constant(y) is not None:
            y, c, swapped = c, y, True
        number = floats_of(c)
        if y is None or number is None or (swapped and node.op_type in ("Div", "Sub")):
            return None
        if constant(y) is not None or not same_shape(y, node.outputs[0]):
            return None
        number = number.astype(np.float64)
        if node.op_type == "Div":
            if not number.all():
                return None
            number = 1 / number
        if node.op_type == "Sub":
            number = -number
        adds = node.op_type in ("Add", "Sub")
        return _through(y, number, op, adds=adds)


def _through(y: ir.Value, number: Array, op: Builder, *, adds: bool) -> ir.Value | None:
    """``y`` scaled (or shifted) by changing the weights that it is made of."""
    node = producer(y, "Conv", "MatMul", "Add", "Transpose")
    size = rank(y)
    if node is None or size is None or only_consumer(y) is None or number.ndim > size:
        return None
    number = number.reshape([1] * (size - number.ndim) + list(number.shape))
    if node.op_type == "Transpose":
        perm = permutation(node)
        x = node.inputs[0]
        if perm is None or x is None or adds:
            return None
        inner = _through(x, np.transpose(number, np.argsort(perm)), op, adds=adds)
        return None if inner is None else op.Transpose(inner, perm=perm)
    if node.op_type == "Conv":
        return _convolution(node, number, op, adds=adds)
    if adds or not number.ndim or number.size not in (1, number.shape[-1]):
        return None
    return _linear(node, number.reshape(-1), op)


def _convolution(node: ir.Node, number: Array, op: Builder, *, adds: bool) -> ir.Value | None:
    tensor = constant(node.inputs[1])
    bias = None if input_of(node, 2) is None else floats_of(node.inputs[2])
    if tensor is None or (input_of(node, 2) is not None and bias is None):
        return None
    if number.size not in (1, number.shape[1]):
        return None
    channels = int(tensor.shape.numpy()[0])
    per_channel = np.broadcast_to(number.reshape(-1), channels)
    old = np.zeros(channels) if bias is None else bias.astype(np.float64)
    weight: Any = node.inputs[1]
    if adds:
        shift: Array | None = old + per_channel
    else:
        shape = [-1, *[1] * (len(tensor.shape) - 1)]
        weight = op.constant(derived(lambda w: w * per_channel.reshape(shape), tensor))
        shift = None if bias is None else old * per_channel
    return op.node(
        "Conv",
        node.inputs[0],
        weight,
        None if shift is None else shift.astype(tensor.dtype.numpy()),
        like=node.outputs[0],
        attributes_of=node,
    )


def _linear(node: ir.Node, number: Array, op: Builder) -> ir.Value | None:
    """Scale the columns of a product with a constant matrix, and the bias added to it."""
    if node.op_type == "Add":
        product, bias = node.inputs
        if constant(product) is not None:
            product, bias = bias, product
        given = floats_of(bias)
        inner = producer(product, "MatMul")
        if given is None or inner is None or product is None or only_consumer(product) is None:
            return None
        if not same_shape(product, node.outputs[0]):
            return None
        scaled = _linear(inner, number, op)
        if scaled is None:
            return None
        shift = (given.astype(np.float64) * number).astype(given.dtype)
        return op.Add(scaled, shift)
    weight, transposed = node.inputs[1], False
    turned = producer(weight, "Transpose")
    if turned is not None and permutation(turned) == [1, 0]:
        weight, transposed = turned.inputs[0], True
    tensor = constant(weight)
    if tensor is None or len(tensor.shape) != 2:
        return None
    factor = number[:, None] if transposed and number.size > 1 else number
    scaled_weight = op.constant(derived(lambda w: w * factor, tensor))
    if transposed:
        scaled_weight = op.Transpose(scaled_weight, perm=[1, 0])
    return op.MatMul(node.inputs[0], scaled_weight)
