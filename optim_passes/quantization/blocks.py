"""Weights as 4-bit or 8-bit integers with a scale for each block of inputs."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from optim_passes.quantization.arithmetic import pack_nibbles

__all__ = ["Blocks", "error_corrected", "half_quadratic", "least_error", "round_to_nearest"]

Array = np.ndarray[Any, Any]

_ROWS = 1024  # output channels that are worked on at a time: they stay in the cache
_SHRUNK = 0.7  # the p of the norm that half-quadratic splitting makes small
_STEPS = 5  # of half-quadratic splitting
_PENALTY = 1e4  # of what splitting leaves over, for weights around 0.01
_CACHED = 1 << 16  # weights that are worked on at a time
_SHRINKS = (1.0, 0.9)  # of the scale: clipping a little pays where a block is large
_DAMPING = 0.01  # added to the diagonal of the second moments, as a share of its mean


@dataclasses.dataclass(frozen=True, slots=True)
class Blocks:
    """``W[n, k] = scales[n, b] * (q[n, k] - zeros[n, b])`` with ``b = k // size``.

    Attributes:
        integers: uint8, ``[N, blocks, size]``, not packed.
        scales: float32, ``[N, blocks]``.
        zeros: uint8, ``[N, blocks]``.
        bits: 4 or 8.
        symmetric: Whether all zero points are the middle.
    """

    integers: Array
    scales: Array
    zeros: Array
    bits: int
    symmetric: bool

    def packed(self) -> Array:
        """The integers as ``MatMulNBits`` stores them."""
        return pack_nibbles(self.integers) if self.bits == 4 else self.integers

    def packed_zeros(self) -> Array:
        """The zero points as ``MatMulNBits`` stores them."""
        return pack_nibbles(self.zeros) if self.bits == 4 else self.zeros

    def floats(self, columns: int) -> Array:
        """The weights that they stand for, ``[N, columns]``."""
        real = (self.integers.astype(np.float32) - self.zeros[..., None]) * self.scales[..., None]
        return np.ascontiguousarray(real.reshape(len(real), -1)[:, :columns])


def _blocked(weights: Array, size: int) -> Array:
    """``[N, K]`` as ``[N, blocks, size]``, filled up with zeros."""
    rows, columns = weights.shape
    missing = -columns % size
    if missing:
        weights = np.pad(weights, ((0, 0), (0, missing)))
    return np.ascontiguousarray(weights, np.float32).reshape(rows, -1, size)


def _scales(blocks: Array, bits: int, *, symmetric: bool) -> tuple[Array, Array]:
    """Scale and zero point of each block, from its largest and smallest weight."""
    levels, middle = 2**bits - 1, 2 ** (bits - 1)
    low, high = np.minimum(blocks.min(-1), 0), np.maximum(blocks.max(-1), 0)
    if symmetric:
        # The side with the larger magnitude gets the integer 0, one further from the middle.
        bound = np.where(-low >= high, low, high)
        scale = -bound / np.float32(middle)
        scale = np.where(scale == 0, np.float32(1), scale)
        return scale.astype(np.float32), np.full(scale.shape, middle, np.uint8)
    extent = high - low
    scale = np.where(extent == 0, 1, extent / np.float32(levels)).astype(np.float32)
    return scale, np.clip(np.rint(-low / scale), 0, levels).astype(np.uint8)


def _rounded(blocks: Array, scales: Array, zeros: Array, bits: int) -> Array:
    work = blocks / scales[..., None]
    work += zeros[..., None].astype(np.float32)
    np.rint(work, out=work)
    np.clip(work, 0, 2**bits - 1, out=work)
    return work.astype(np.uint8)


def round_to_nearest(
    weights: Array, bits: int = 4, size: int = 32, *, symmetric: bool = False
) -> Blocks:
    """The nearest integers.

    Args:
        weights: ``[N, K]``: a row for each output channel.
        bits: 4 or 8.
        size: Inputs in a block.
        symmetric: Whether every zero point is the middle.
    """
    blocks = _blocked(weights, size)
    integers = np.empty(blocks.shape, np.uint8)
    scales = np.empty(blocks.shape[:2], np.float32)
    zeros = np.empty(blocks.shape[:2], np.uint8)
    for start in range(0, len(blocks), _ROWS):
        part = slice(start, start + _ROWS)
        scales[part], zeros[part] = _scales(blocks[part], bits, symmetric=symmetric)
        integers[part] = _rounded(blocks[part], scales[part], zeros[part], bits)
    return Blocks(integers, scales, zeros, bits, symmetric)


def least_error(
    weights: Array, bits: int = 4, size: int = 32, *, symmetric: bool = False
) -> Blocks:
    """Scales with the least squared error of those that are tried: no calibration is needed.

    Args:
        weights: ``[N, K]``.
        bits: 4 or 8.
        size: Inputs in a block.
        symmetric: Whether every zero point is the middle.
    """
    blocks = _blocked(weights, size)
    integers = np.empty(blocks.shape, np.uint8)
    scales = np.empty(blocks.shape[:2], np.float32)
    zeros = np.empty(blocks.shape[:2], np.uint8)
    rows = max(1, _CACHED // max(1, blocks[:1].size))
    buffer = np.empty((min(rows, len(blocks)), *blocks.shape[1:]), np.float32)
    for start in range(0, len(blocks), rows):
        part = slice(start, start + rows)
        x = blocks[part]
        steps = buffer[: len(x)]
        first, zeros[part] = _scales(x, bits, symmetric=symmetric)
        zero = zeros[part].astype(np.float32)[..., None]
        bounds = -zero, np.float32(2**bits - 1) - zero
        gain, best = np.full(first.shape, -1, np.float32), first
        for shrink in _SHRINKS:
            scale = first * np.float32(shrink)
            _steps(x, scale, bounds, steps)
            length, product = _dot(steps, steps), _dot(steps, x)
            fits = (length > 0) & (product * scale > 0)
            fitted = np.divide(product, length, out=scale, where=fits)
            saved = np.where(fits, product * fitted, 0)  # of the squares of the weights
            best, gain = np.where(saved > gain, fitted, best), np.maximum(saved, gain)
        _steps(x, best, bounds, steps)
        steps += zero
        integers[part], scales[part] = steps, best
    return Blocks(integers, scales, zeros, bits, symmetric)


def _dot(a: Array, b: Array) -> Array:
    made: Array = np.einsum("nbk,nbk->nb", a, b)
    return made


def _steps(x: Array, scale: Array, bounds: tuple[Array, Array], out: Array) -> None:
    """Integers before the zero point is added."""
    np.divide(x, scale[..., None], out=out)
    np.rint(out, out=out)
    np.clip(out, *bounds, out=out)


def half_quadratic(
    weights: Array, bits: int = 4, size: int = 32, *, symmetric: bool = False
) -> Blocks:
    """Scales and zero points that leave few large errors (half-quadratic quantization).

    Alternates between the errors that may be large and the zero points that explain the rest, then
    fits scales by least squares. No calibration is needed.

    Args:
        weights: ``[N, K]``.
        bits: 4 or 8.
        size: Inputs in a block.
        symmetric: Whether every zero point stays the middle; then only scales are fitted.
    """
    blocks = _blocked(weights, size)
    made = round_to_nearest(weights, bits, size, symmetric=symmetric)
    integers, scales, zeros = made.integers, made.scales, made.zeros
    rows = max(1, _CACHED // max(1, blocks[:1].size))
    for start in range(0, len(blocks), rows):
        part = slice(start, start + rows)
        found = _fit(blocks[part], scales[part], zeros[part], bits, symmetric=symmetric)
        integers[part], scales[part], zeros[part] = found
    return Blocks(integers, scales, zeros, bits, symmetric)


def _fit(
    blocks: Array, scales: Array, zeros: Array, bits: int, *, symmetric: bool
) -> tuple[Array, Array, Array]:
    first = _rounded(blocks, scales, zeros, bits), scales, zeros
    rounded = zeros if symmetric else _split(blocks, scales, zeros, bits)
    integers = first[0] if symmetric else _rounded(blocks, scales, rounded, bits)
    fitted = _least_squares(blocks, integers, rounded, scales)
    integers = _rounded(blocks, fitted, rounded, bits)
    fitted = _least_squares(blocks, integers, rounded, fitted)
    better = _error(blocks, integers, fitted, rounded) < _error(blocks, *first)
    return (
        np.where(better[..., None], integers, first[0]),
        np.where(better, fitted, first[1]),
        np.where(better, rounded, first[2]),
    )


def _split(blocks: Array, scales: Array, zeros: Array, bits: int) -> Array:
    """Zero points by half-quadratic splitting, rounded."""
    scaled = blocks / scales[..., None]
    zero = zeros.astype(np.float32)[..., None]
    # The penalty of a pair (beta), in weights that are divided by their scale.
    strength = np.float32(_PENALTY) * scales[..., None] ** np.float32(2 - _SHRUNK)
    work, error = np.empty_like(scaled), np.empty_like(scaled)
    for _ in range(_STEPS):
        np.add(scaled, zero, out=work)
        np.rint(work, out=work)
        np.clip(work, 0, 2**bits - 1, out=work)
        work -= zero
        np.subtract(scaled, work, out=error)
        magnitude = np.abs(error)
        np.maximum(magnitude, np.float32(1e-6), out=magnitude)
        shrink = magnitude ** np.float32(_SHRUNK - 1)
        shrink /= strength
        magnitude -= shrink
        np.maximum(magnitude, 0, out=magnitude)
        np.copysign(magnitude, error, out=magnitude)
        # What the large errors do not explain is up to the zero point.
        zero = zero + (work - scaled + magnitude).mean(-1, keepdims=True)
        np.clip(zero, 0, 2**bits - 1, out=zero)
    return np.rint(zero[..., 0]).astype(np.uint8)


def _error(blocks: Array, integers: Array, scales: Array, zeros: Array) -> Array:
    real = (integers.astype(np.float32) - zeros[..., None]) * scales[..., None]
    real -= blocks
    return np.einsum("nbk,nbk->nb", real, real)


def _least_squares(blocks: Array, integers: Array, zeros: Array, before: Array) -> Array:
    steps = integers.astype(np.float32) - zeros[..., None]
    length = np.einsum("nbk,nbk->nb", steps, steps)
    product = np.einsum("nbk,nbk->nb", steps, blocks)
    fits = (length > 0) & (product * before > 0)
    return np.where(fits, product / np.maximum(length, 1), before).astype(np.float32)


def error_corrected(
    weights: Array,
    moments: Array,
    bits: int = 4,
    size: int = 32,
    *,
    symmetric: bool = False,
) -> Blocks:
    """Integers one input after the other, each making up for the errors before it (GPTQ).

    Args:
        weights: ``[N, K]``.
        moments: ``[K, K]``: the mean of ``x x^T`` over calibration inputs ``x``.
        bits: 4 or 8.
        size: Inputs in a block.
        symmetric: Whether every zero point is the middle.
    """
    rows, columns = weights.shape
    inverse = _inverse_factor(moments)
    work = np.asarray(weights, np.float32).copy()
    count = -(-columns // size)
    integers = np.zeros((rows, count, size), np.uint8)
    scales = np.ones((rows, count), np.float32)
    zeros = np.full((rows, count), 2 ** (bits - 1), np.uint8)
    for block in range(count):
        first, last = block * size, min((block + 1) * size, columns)
        made = least_error(work[:, first:last], bits, size, symmetric=symmetric)
        scales[:, block], zeros[:, block] = made.scales[:, 0], made.zeros[:, 0]
        scale, zero = scales[:, block], zeros[:, block].astype(np.float32)
        errors = np.empty((rows, last - first), np.float32)
        for index in range(last - first):
            column = first + index
            q = np.clip(np.rint(work[:, column] / scale + zero), 0, 2**bits - 1)
            integers[:, block, index] = q
            error = (work[:, column] - (q - zero) * scale) / inverse[column, column]
            errors[:, index] = error
            rest = inverse[column, column + 1 : last]
            work[:, column + 1 : last] -= np.outer(error, rest)
        integers[:, block, last - first :] = zeros[:, block, None]
        if last < columns:
            work[:, last:] -= errors @ inverse[first:last, last:]
    return Blocks(integers, scales, zeros, bits, symmetric)


def _inverse_factor(moments: Array) -> Array:
    """The upper Cholesky factor of the inverse of the damped second moments."""
    hessian = np.asarray(moments, np.float64).copy()
    diagonal = np.einsum("ii->i", hessian)
    diagonal[diagonal <= 0] = 1.0  # inputs that are always 0
    diagonal += _DAMPING * float(diagonal.mean())
    upper: Array = np.linalg.cholesky(np.linalg.inv(hessian)).T.astype(np.float32)
    return upper
