"""Scales, zero points and quantized values, equal to the ONNX reference bit for bit."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx_ir as ir

__all__ = [
    "Affine",
    "affine_of_range",
    "dequantize",
    "integer_limits",
    "pack_nibbles",
    "quantize",
    "symmetric_scales",
]

Array = np.ndarray[Any, Any]

_TINY = float(np.finfo(np.float32).tiny)  # a smaller scale is subnormal, and kernels flush it to 0


@dataclasses.dataclass(frozen=True, slots=True)
class Affine:
    """``real = scale * (integer - zero_point)``.

    Attributes:
        scale: float32, rank 0, or one for each channel.
        zero_point: Of the integers' dtype, shaped like ``scale``.
    """

    scale: Array
    zero_point: Array

    @property
    def dtype(self) -> np.dtype[Any]:
        """The integers' dtype."""
        return self.zero_point.dtype

    @property
    def range(self) -> tuple[float, float]:
        """The smallest and the largest number that integers stand for; scale of rank 0."""
        low, high = integer_limits(self.dtype)
        scale, zero = float(self.scale), int(self.zero_point)
        return (low - zero) * scale, (high - zero) * scale


def integer_limits(dtype: Any, bits: int | None = None) -> tuple[int, int]:
    """The smallest and the largest integer of a dtype, or of its lowest ``bits``."""
    kind = np.dtype(dtype)
    bits = kind.itemsize * 8 if bits is None else bits
    return (0, 2**bits - 1) if kind.kind == "u" else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def affine_of_range(
    low: float, high: float, dtype: Any = np.uint8, *, symmetric: bool = False
) -> Affine:
    """What maps ``[low, high]``, made to hold 0, onto the integers of ``dtype``.

    Asymmetric uint8 parameters are those of ONNX's DynamicQuantizeLinear.

    Args:
        low: Smallest number.
        high: Largest number.
        dtype: uint8, int8, uint16 or int16.
        symmetric: Whether 0 becomes the middle of the integers.

    Raises:
        ValueError: A bound is NaN or infinite.
    """
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError(f"the range [{low}, {high}] is not finite")
    kind = np.dtype(dtype)
    least, most = integer_limits(kind)
    minimum, maximum = np.minimum(np.float32(0), np.float32(low)), np.float32(max(0.0, high))
    if symmetric:
        middle = (least + most + 1) // 2
        bound = np.maximum(-minimum, maximum)
        scale = np.float32(1) if bound == 0 else bound / np.float32(most - middle)
        return Affine(_normal(scale), np.asarray(middle, kind))
    with np.errstate(over="ignore"):
        extent = np.float32(maximum - minimum)
    if not np.isfinite(extent):  # both bounds are near the largest float32
        extent = np.finfo(np.float32).max
    scale = np.float32(1.0 if maximum == minimum else extent) / np.float32(most - least)
    scale = _normal(scale)
    zero = np.rint(np.clip(np.float32(least) - minimum / scale, least, most))
    return Affine(scale, np.asarray(zero, kind))


def _normal(scale: Any) -> Array:
    return np.asarray(np.maximum(np.float32(scale), np.float32(_TINY)), np.float32)


def quantize(x: Array, affine: Affine, axis: int | None = None) -> Array:
    """The integers nearest to ``x``, ties to even, saturated: ONNX's QuantizeLinear.

    Args:
        x: float32, finite.
        affine: Scales; rank 1 with ``axis``.
        axis: The axis of ``x`` that the scales go along.
    """
    least, most = integer_limits(affine.dtype)
    scale, zero = _along(affine.scale, x.ndim, axis), _along(affine.zero_point, x.ndim, axis)
    work = np.divide(x, scale, dtype=np.float32)
    np.rint(work, out=work)
    if affine.zero_point.any():
        work += zero.astype(np.float32)
    np.clip(work, least, most, out=work)
    return work.astype(affine.dtype)


def dequantize(q: Array, affine: Affine, axis: int | None = None) -> Array:
    """The float32 numbers that integers stand for: ONNX's DequantizeLinear."""
    scale, zero = _along(affine.scale, q.ndim, axis), _along(affine.zero_point, q.ndim, axis)
    return (q.astype(np.int32) - zero.astype(np.int32)).astype(np.float32) * scale


def _along(parameters: Array, rank: int, axis: int | None) -> Array:
    if axis is None or parameters.ndim == 0:
        return parameters
    shape = [1] * rank
    shape[axis] = -1
    return parameters.reshape(shape)


def symmetric_scales(x: Array, axis: int | None, most: int = 127) -> Array:
    """Scales that map the largest magnitude, along each index of ``axis``, to ``most``.

    Args:
        x: float32 weights.
        axis: The channel axis; None for one scale.
        most: The integer that the largest magnitude becomes: 127, or 63 where two products of
            full range would saturate.
    """
    axes = None if axis is None else tuple(i for i in range(x.ndim) if i != axis % x.ndim)
    bound = np.maximum(x.max(axis=axes, initial=0), -x.min(axis=axes, initial=0))
    bound = np.where(bound == 0, np.float32(most), bound)
    return _normal(bound / np.float32(most))


def pack_nibbles(q: Array) -> Array:
    """Two 4-bit integers in each byte, the first in the low half, along the last axis."""
    if q.shape[-1] % 2:
        q = np.concatenate([q, np.zeros_like(q[..., :1])], -1)
    packed: Array = (q[..., ::2] & 0xF) | (q[..., 1::2] << 4)
    return packed.astype(np.uint8)


def dtype_of(kind: Any) -> ir.DataType:
    """The element type of a NumPy dtype."""
    return ir.DataType.from_numpy(np.dtype(kind))
