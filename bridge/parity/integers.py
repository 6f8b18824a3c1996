"""Integers that stand for real numbers: scales, zero points, and what is packed into bytes."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = [
    "Pair",
    "constant",
    "filled",
    "fits",
    "parameter",
    "rows_scale",
    "spread",
    "undone",
    "unlike",
    "unpacked",
]

Array = np.ndarray[Any, Any]

_BYTES = 8  # bits
_MOVING = {
    "Pad", "MaxPool", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Gather",
    "Concat", "Identity", "Expand", "Split", "Resize", "DepthToSpace", "SpaceToDepth",
}  # fmt: skip


def undone(node: ir.Node) -> ir.Node | None:
    """The QuantizeLinear that a DequantizeLinear undoes, or whose integers another node takes."""
    source = node.inputs[0]
    while source is not None:
        producer = source.producer()
        if producer is None or producer.op_type == "QuantizeLinear":
            return producer
        if producer.op_type not in (*_MOVING, "Clip"):
            return None
        source = producer.inputs[0]
    return None


def parameter(node: ir.Node, place: int) -> Array | None:
    """The scale or zero point that is an input of a node, flat; None if it is computed."""
    value = node.inputs[place] if len(node.inputs) > place else None
    found = constant(value)
    return None if found is None else found.ravel()


@dataclasses.dataclass(frozen=True, slots=True)
class Pair:
    """What a QuantizeLinear and a DequantizeLinear do: ``clip(x, low, high) * factor + offset``."""

    low: Array
    high: Array
    factor: Array
    offset: Array


def unlike(maker: ir.Node, node: ir.Node) -> Pair | None:
    """What a pair does beside rounding; None if that is nothing, or not known."""
    found = [parameter(n, place) for n in (maker, node) for place in (1, 2)]
    kind = np.dtype(object) if found[1] is None else found[1].dtype
    if kind.kind not in "iu" or any(x is None or x.size != 1 for x in found):
        return None
    made, zero, scale, shift = (np.float64(x[0]) for x in found if x is not None)
    if (made, zero) == (scale, shift):
        return None
    ends = np.iinfo(kind)
    last = ends.max - shift
    if (last - 1) * scale == np.float32(1):  # a gate ends at 1, an integer before the last
        last -= 1
    low, high = ((e - zero) * made for e in (ends.min, last + shift))
    numbers = (low, high, scale / made, (zero - shift) * scale)
    return Pair(*(np.asarray(x, np.float32) for x in numbers))


def fits(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Whether a shape is another, or would be if channels were filled up to a multiple of four."""
    if len(shape) != len(wanted):
        return False
    return all(w == n or w == n + (-n % 4) for n, w in zip(shape, wanted, strict=True))


def filled(x: Array, shape: tuple[int, ...]) -> Array:
    """An array with zeros behind it, as kernels for integers want channels."""
    return np.pad(x, [(0, w - n) for n, w in zip(x.shape, shape, strict=True)])


def constant(value: ir.Value | None) -> Array | None:
    """The numbers of a constant."""
    if value is None:
        return None
    producer = value.producer()
    if producer is not None and producer.op_type == "Constant" and "value" in producer.attributes:
        made: Array = producer.attributes["value"].as_tensor().numpy()
        return made
    return None if value.const_value is None else value.const_value.numpy()


def rows_scale(value: ir.Value | None) -> Array | None:
    """The scales of a table's rows: of one, or gathered as the rows are."""
    found = constant(value)
    if found is None and value is not None:
        producer = value.producer()
        if producer is not None and producer.op_type == "Gather":
            return constant(producer.inputs[0])
    return found


def spread(x: Array | None, shape: tuple[int, ...], axis: int, block: int) -> Array:
    """A scale or zero point for each number; zeros where there is none."""
    if x is None:
        return np.zeros(shape, np.float32)
    x = x.astype(np.float32)
    if x.size == 1:
        return np.broadcast_to(x.reshape(()), shape)
    if block:
        return np.repeat(x, block, axis)[tuple(slice(n) for n in shape)]
    if x.ndim > 1:
        return np.broadcast_to(x, shape)
    across = [1] * len(shape)
    across[axis] = -1
    return np.broadcast_to(x.reshape(across), shape)


def unpacked(
    packed: Array,
    scales: Array,
    zeros: Array | None,
    rows: int,
    columns: int,
    bits: int,
    size: int,
) -> tuple[Array, Array, Array]:
    """Integers, scales and zero points ``[rows, columns]`` of what MatMulNBits reads."""
    blocks = -(-columns // size)
    integers = _nibbles(packed.reshape(rows, -1), bits).reshape(rows, blocks * size)[:, :columns]
    step = np.repeat(scales.reshape(rows, blocks).astype(np.float32), size, 1)[:, :columns]
    if zeros is None:
        return integers, step, np.full((rows, columns), 2 ** (bits - 1), np.float32)
    each = _nibbles(zeros.reshape(rows, -1), bits)[:, :blocks].astype(np.float32)
    return integers, step, np.repeat(each, size, 1)[:, :columns]


def _nibbles(packed: Array, bits: int) -> Array:
    if bits == _BYTES:
        return packed
    return np.stack([packed & 15, packed >> 4], -1).reshape(len(packed), -1)
