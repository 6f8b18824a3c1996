"""BatchNormalization with known statistics, which is a scale and a shift of each channel."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from optim_passes.rewriting import NodePass, RefusedError, require
from optim_passes.tensors import derived
from optim_passes.values import (
    attribute,
    constant,
    dims,
    floats_of,
    input_of,
    only_consumer,
    producer,
    rank,
    same_dim,
)
from optim_passes.views import permutation

if TYPE_CHECKING:
    import onnx_ir as ir

    from optim_passes.builder import Builder

__all__ = ["BatchNormPass", "channels_of"]

Array = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class _Channels:
    """``y = scale * x + shift`` for each channel, in float64."""

    scale: Array
    shift: Array


class BatchNormPass(NodePass):
    """BatchNormalization goes into the weights of the convolution or product beside it.

    ``BN(Conv(x, W) + b) = Conv(x, W * f) + (b - mean) * f + beta`` with ``f = scale / sqrt(var +
    epsilon)``; before a product, or a Conv without padding, the inputs' channels of ``W`` are
    scaled instead. A weight that others use too is left to them as it is.
    """

    op_types: ClassVar[frozenset[str]] = frozenset({"BatchNormalization", "Gemm", "MatMul"})

    def rewrite(self, node: ir.Node, op: Builder) -> Any:
        """What the layer with the folded weights returns."""
        if node.domain or node.inputs[0] is None:
            return None
        if node.op_type != "BatchNormalization":
            return _after_norm(node, op)
        if not node.outputs[0].uses() and not node.outputs[0].is_graph_output():
            return None
        require(not attribute(node, "training_mode", 0), "it normalises by the batch's statistics")
        used = [v for v in node.outputs[1:] if v.uses() or v.is_graph_output()]
        require(not used, "its statistics are read", node)
        channels = channels_of(node)
        before = producer(node.inputs[0], *_INTO)
        flattened = None if before is not None else _flattened(node.inputs[0])
        if flattened is not None:
            before = producer(flattened.inputs[0], "MatMul", "Add")
        if before is not None and before.op_type == "Add":
            before = _linear_below(before)
        folded: ir.Value | None = None
        reason: RefusedError | None = None
        if before is not None:
            try:
                folded = _INTO[before.op_type](before, node, channels, op)
            except RefusedError as error:
                reason = error
        if folded is not None and flattened is not None:
            folded = op.Reshape(folded, flattened.inputs[1])
        if folded is None:
            folded = self._into_next(node, channels, op)
        if folded is None and reason is not None:
            raise reason
        require(folded is not None, "no convolution or matrix product is beside it", node)
        return [folded, *[None] * (len(node.outputs) - 1)]

    def _into_next(self, node: ir.Node, channels: _Channels, op: Builder) -> ir.Value | None:
        """Fold into a Conv that alone reads the result; returns what that Conv reads now."""
        conv = only_consumer(node.outputs[0])
        x = node.inputs[0]
        if (
            conv is None
            or conv.op_type != "Conv"
            or conv.domain
            or attribute(conv, "group", 1) != 1
        ):
            return None
        weight = floats_of(conv.inputs[1])
        tensor = constant(conv.inputs[1])
        padded = any(attribute(conv, "pads", [])) or attribute(conv, "auto_pad") not in (
            None, "NOTSET", "VALID",
        )  # fmt: skip
        if weight is None or tensor is None or padded or conv.inputs[0] is not node.outputs[0]:
            return None
        sums = weight.astype(np.float64).reshape(*weight.shape[:2], -1).sum(-1)
        extra = sums @ channels.shift
        bias = _bias(conv, 2, len(extra))
        if bias is None:
            return None
        shape = [1, -1, *[1] * (weight.ndim - 2)]
        scale = channels.scale.reshape(shape)
        conv.replace_input_with(1, op.constant(derived(lambda w: w * scale, tensor)))
        shifted = op.constant((bias + extra).astype(weight.dtype))
        if len(conv.inputs) < 3:
            conv.resize_inputs(3)
        conv.replace_input_with(2, shifted)
        return x


def _after_norm(node: ir.Node, op: Builder) -> ir.Value | None:
    """A product of what a BatchNormalization alone gives it, with that in its weights."""
    norm = producer(node.inputs[0], "BatchNormalization")
    if norm is None or attribute(norm, "training_mode", 0) or rank(node.inputs[0]) != 2:
        return None
    if only_consumer(norm.outputs[0]) is not node or attribute(node, "transA", 0):
        return None
    if producer(norm.inputs[0], *_INTO) is not None:
        return None  # better there
    turned = producer(node.inputs[1], "Transpose") if node.op_type == "MatMul" else None
    if turned is not None and permutation(turned) != [1, 0]:
        turned = None
    tensor = constant(node.inputs[1] if turned is None else turned.inputs[0])
    given = input_of(node, 2)
    bias = np.zeros(1) if given is None else floats_of(given)
    if tensor is None or len(tensor.shape) != 2 or bias is None:
        return None
    channels = channels_of(norm)
    transposed = turned is not None or attribute(node, "transB", 0)
    scale = channels.scale if transposed else channels.scale[:, None]
    weight = tensor.numpy().astype(np.float64)
    sums = (weight if transposed else weight.T) @ channels.shift
    shift = attribute(node, "beta", 1.0) * bias + attribute(node, "alpha", 1.0) * sums
    return op.Gemm(
        norm.inputs[0],
        op.constant(derived(lambda w: w * scale, tensor)),
        op.constant(shift.astype(tensor.dtype.numpy())),
        alpha=attribute(node, "alpha"),
        transB=1 if transposed else None,
    )


def channels_of(node: ir.Node) -> _Channels:
    """What a BatchNormalization does to each channel; refuses where that is not constant."""
    arrays = [floats_of(v) for v in node.inputs[1:5]]
    require(all(a is not None for a in arrays), "its statistics are not constant", node)
    scale, bias, mean, var = (a.astype(np.float64) for a in arrays if a is not None)
    factor = scale / np.sqrt(var + attribute(node, "epsilon", 1e-5))
    return _Channels(factor, bias - mean * factor)


def _flattened(value: ir.Value | None) -> ir.Node | None:
    """The Reshape that made a matrix of what had the same last axis, and that alone reads it."""
    node = producer(value, "Reshape")
    if node is None or node.inputs[0] is None or rank(value) != 2:
        return None
    sizes, flat = dims(node.inputs[0]), dims(value)
    if not sizes or not flat or not same_dim(sizes[-1], flat[-1]):
        return None
    alone = only_consumer(node.inputs[0]) and only_consumer(node.outputs[0])
    return None if alone is None else node


def _linear_below(add: ir.Node) -> ir.Node | None:
    """The Add itself where it adds a constant to a matrix product."""
    sides = [producer(v, "MatMul") is not None for v in add.inputs]
    return add if any(sides) and any(constant(v) is not None for v in add.inputs) else None


def _require_alone(layer: ir.Node) -> None:
    alone = only_consumer(layer.outputs[0]) is not None
    require(alone, "the result before it has another use", layer.outputs[0])


def _bias(layer: ir.Node, index: int, size: int) -> Array | None:
    given = input_of(layer, index)
    if given is None:
        return np.zeros(size)
    array = floats_of(given)
    return None if array is None else array.astype(np.float64).reshape(-1)


def _into_convolution(layer: ir.Node, node: ir.Node, channels: _Channels, op: Builder) -> ir.Value:
    tensor = constant(layer.inputs[1])
    bias = _bias(layer, 2, len(channels.scale))
    require(tensor is not None and bias is not None, "the weights are not constant", layer)
    _require_alone(layer)
    assert tensor is not None
    assert bias is not None
    size, dtype = len(tensor.shape), tensor.dtype.numpy()
    scale = channels.scale
    if layer.op_type == "Conv":
        weight = derived(lambda w: w * scale.reshape(-1, *[1] * (size - 1)), tensor)
    else:  # ConvTranspose: [in, out / group, ...]; the groups' outputs follow each other
        groups = attribute(layer, "group", 1)
        weight = derived(lambda w: _scaled_by_group(w, scale, groups), tensor)
    shift = (bias * scale + channels.shift).astype(dtype)
    return op.node(
        layer.op_type, layer.inputs[0], op.constant(weight), op.constant(shift),
        like=node.outputs[0], attributes_of=layer,
    )  # fmt: skip


def _scaled_by_group(weight: Array, scale: Array, groups: int) -> Array:
    rows = weight.reshape(groups, -1, *weight.shape[1:])
    factors = scale.reshape(groups, 1, -1, *[1] * (weight.ndim - 2))
    return (rows * factors).reshape(weight.shape)


def _into_gemm(layer: ir.Node, node: ir.Node, channels: _Channels, op: Builder) -> ir.Value:
    tensor = constant(layer.inputs[1])
    bias = _bias(layer, 2, len(channels.scale))
    require(tensor is not None and bias is not None, "the weights are not constant", layer)
    _require_alone(layer)
    assert tensor is not None
    assert bias is not None
    scale, transposed = channels.scale, attribute(layer, "transB", 0)
    weight = derived(lambda w: w * (scale[:, None] if transposed else scale), tensor)
    shift = attribute(layer, "beta", 1.0) * bias * scale + channels.shift
    return op.Gemm(
        layer.inputs[0],
        op.constant(weight),
        op.constant(shift.astype(tensor.dtype.numpy())),
        alpha=attribute(layer, "alpha", 1.0),
        transA=attribute(layer, "transA", 0),
        transB=transposed,
    )


def _into_matmul(layer: ir.Node, node: ir.Node, channels: _Channels, op: Builder) -> ir.Value:
    require(rank(node.inputs[0]) == 2, "the product's last axis is not the channel axis", layer)
    bias = np.zeros(len(channels.scale))
    product = layer
    if layer.op_type == "Add":
        sides = [producer(v, "MatMul") for v in layer.inputs]
        given = floats_of(layer.inputs[1 if sides[0] is not None else 0])
        product = sides[0] or sides[1] or layer
        require(given is not None and given.size == len(bias), "the bias is not constant", layer)
        assert given is not None
        bias = given.reshape(-1)
        _require_alone(layer)
    turned = producer(product.inputs[1], "Transpose")
    if turned is not None and permutation(turned) != [1, 0]:
        turned = None
    tensor = constant(product.inputs[1] if turned is None else turned.inputs[0])
    require(tensor is not None and len(tensor.shape) == 2, "the weights are not constant", product)
    _require_alone(product)
    assert tensor is not None
    scale = channels.scale if turned is None else channels.scale[:, None]
    weight = op.constant(derived(lambda w: w * scale, tensor))
    if turned is not None:
        weight = op.Transpose(weight, perm=[1, 0])
    shift = (bias * channels.scale + channels.shift).astype(tensor.dtype.numpy())
    return op.Add(op.MatMul(product.inputs[0], weight), shift)


_INTO = {
    "Conv": _into_convolution,
    "ConvTranspose": _into_convolution,
    "Gemm": _into_gemm,
    "MatMul": _into_matmul,
    "Add": _into_matmul,
}
