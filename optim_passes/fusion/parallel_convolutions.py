"""Convolutions of one image whose results are added become one convolution."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from optim_passes.fusion.batch_norm import channels_of
from optim_passes.rewriting import NodePass, RefusedError
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
    same_shape,
)

if TYPE_CHECKING:
    import onnx_ir as ir

    from optim_passes.builder import Builder

__all__ = ["ParallelConvPass"]

Array = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class _Branch:
    """A convolution, or what a convolution with a kernel of size 1 could compute as well.

    Attributes:
        x: The image.
        conv: The node; None for the image itself, scaled and shifted by channel.
        kernel: Its spatial sizes.
        pads: At the start and the end of each spatial axis.
        scale: The numbers on the diagonal where there is no node.
        shift: The bias; None for none.
    """

    x: ir.Value
    conv: ir.Node | None
    kernel: tuple[int, ...]
    pads: tuple[int, ...]
    scale: Array | None
    shift: Array | None


class ParallelConvPass(NodePass):
    """``Conv(x, V) + Conv(x, W)`` becomes ``Conv(x, V + W)``, the smaller kernel within the larger.

    So does a BatchNormalization of ``x`` beside a Conv, and ``x`` itself beside a depthwise one:
    what networks that are trained with branches and meant to run without them are made of. After
    :class:`~optim_passes.fusion.batch_norm.BatchNormPass`.
    """

    op_types: ClassVar[frozenset[str]] = frozenset({"Add", "Sub"})

    def rewrite(self, node: ir.Node, op: Builder) -> Any:
        """The one convolution."""
        first, second = node.inputs
        if node.domain or first is None or second is None or not same_shape(first, second):
            return None
        sign = -1.0 if node.op_type == "Sub" else 1.0
        for large, small, signs in ((first, second, (1.0, sign)), (second, first, (sign, 1.0))):
            conv = producer(large, "Conv")
            outer = None if conv is None else _convolution(conv)
            if outer is None or outer.conv is None:
                continue
            inner = _branch(small, outer.x)
            if inner is None or inner.x is not outer.x:
                continue
            offset = _offset(outer, inner)
            if offset is not None and _is_alike(outer.conv, inner):
                return _joined(outer, inner, offset, signs, node, op)
        return None


def _convolution(node: ir.Node) -> _Branch | None:
    weight, x = constant(node.inputs[1]), node.inputs[0]
    bias = input_of(node, 2)
    shift = None if bias is None else floats_of(bias)
    if weight is None or x is None or (bias is not None and shift is None):
        return None
    if only_consumer(node.outputs[0]) is None or attribute(node, "auto_pad", "NOTSET") != "NOTSET":
        return None
    kernel = tuple(int(n) for n in weight.shape.numpy()[2:])
    pads = tuple(attribute(node, "pads", [0] * 2 * len(kernel)))
    return _Branch(x, node, kernel, pads, None, shift)


def _branch(value: ir.Value, x: ir.Value) -> _Branch | None:
    """What is added to a convolution of ``x``."""
    node = value.producer()
    axes = (rank(value) or 2) - 2
    channels = (dims(x) or (None, None))[1]
    if not isinstance(channels, int):
        return None
    if value is x:
        return _Branch(x, None, (1,) * axes, (0,) * 2 * axes, np.ones(channels), None)
    if node is None or node.domain:
        return None
    if node.op_type == "Conv":
        return _convolution(node)
    if node.op_type != "BatchNormalization" or node.inputs[0] is not x:
        return None
    if only_consumer(value) is None or attribute(node, "training_mode", 0):
        return None
    try:
        found = channels_of(node)
    except RefusedError:
        return None
    return _Branch(x, None, (1,) * axes, (0,) * 2 * axes, found.scale, found.shift)


def _offset(outer: _Branch, inner: _Branch) -> list[int] | None:
    """Where the inner kernel lies within the outer one; None if it does not."""
    count, found = len(outer.kernel), []
    for axis in range(count):
        start = outer.pads[axis] - inner.pads[axis]
        end = outer.pads[count + axis] - inner.pads[count + axis]
        if start < 0 or end < 0 or start + inner.kernel[axis] + end != outer.kernel[axis]:
            return None
        found.append(start)
    return found


def _is_alike(conv: ir.Node, inner: _Branch) -> bool:
    """Whether both step and group alike; a kernel of size 1 has no dilation."""
    ones, groups = [1] * len(inner.kernel), attribute(conv, "group", 1)
    strides = attribute(conv, "strides", ones)
    dilations = attribute(conv, "dilations", ones)
    other = inner.conv
    if other is None:
        depthwise = inner.shift is not None or groups == len(inner.scale)  # type: ignore[arg-type]
        return depthwise and strides == ones and dilations == ones
    return bool(
        strides == attribute(other, "strides", ones)
        and groups == attribute(other, "group", 1)
        and dilations == attribute(other, "dilations", ones) == ones
    )


def _joined(
    outer: _Branch, inner: _Branch, offset: list[int], signs: tuple[float, float],
    node: ir.Node, op: Builder,
) -> ir.Value:  # fmt: skip
    """The convolution with the sum of the weights."""
    assert outer.conv is not None
    tensor = constant(outer.conv.inputs[1])
    assert tensor is not None
    other = None if inner.conv is None else constant(inner.conv.inputs[1])
    place = (slice(None), slice(None), *map(slice, offset, np.add(offset, inner.kernel)))
    groups = attribute(outer.conv, "group", 1)

    def added(weight: Array) -> Array:
        total = weight.astype(np.float64) * signs[0]
        if other is not None:
            total[place] += signs[1] * other.numpy()
        elif inner.scale is not None:
            rows = np.arange(total.shape[0])
            width = total.shape[0] // groups
            center = (rows, rows % width, *(np.full_like(rows, o) for o in offset))
            total[center] += signs[1] * inner.scale
        return total

    bias = None
    for sign, shift in zip(signs, (outer.shift, inner.shift), strict=True):
        if shift is not None:
            bias = sign * shift.astype(np.float64) + (0.0 if bias is None else bias)
    if bias is not None:
        bias = bias.astype(tensor.dtype.numpy())
    made: ir.Value = op.node(
        "Conv", outer.x, op.constant(derived(added, tensor)), bias, like=node.outputs[0],
        attributes_of=outer.conv,
    )  # fmt: skip
    return made
