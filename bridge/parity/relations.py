"""What a wrong array is to the right one: scaled, shifted, moved along a dim, in another order."""

from __future__ import annotations

import itertools
from typing import Any

import ml_dtypes
import numpy as np

from bridge.parity.comparison import is_floating

__all__ = ["relation"]

_CLOSE = 1e-3  # of the largest magnitude
_SAME = 1e-6
_HALF_MAX = 65504.0
_MOST_TRANSPOSED = 5  # dims: 120 orders to try


def relation(expected: Any, got: Any) -> str | None:
    """What explains the difference, None if nothing simple does."""
    expected, got = np.asarray(expected), np.asarray(got)
    if expected.dtype.kind in "OSUc" or not expected.size:
        return None
    a, b = expected.astype(np.float64), got.astype(np.float64)
    if a.shape != b.shape:
        return _transposed(a, b) if a.size == b.size else None
    if is_floating(got.dtype) and not np.isfinite(b).all():
        return _overflow(a, b, got.dtype)
    if not np.isfinite(a).all():
        return None
    if not b.any():
        return "it is all zeros"
    for found in (_linear, _shifted, _transposed, _reversed):
        told = None if _close(a, b) else found(a, b)  # else they are nearly the same
        if told is not None:
            return told
    rounded = _rounded(expected, got)
    if rounded is not None:
        return rounded
    if np.array_equal(np.sort(a, None), np.sort(b, None)):
        return "it has the right values in another order"
    return None


def _rounded(expected: np.ndarray[Any, Any], got: np.ndarray[Any, Any]) -> str | None:
    """Whether the numbers went through a coarser element type."""
    if not is_floating(expected.dtype) or expected.dtype.itemsize <= 2:
        return None
    for name, coarse in (("whole numbers", np.trunc), ("whole numbers", np.rint)):
        if np.array_equal(coarse(expected), got):
            return f"it is rounded to {name}"
    for kind in (np.dtype(np.float16), ml_dtypes.bfloat16):
        with np.errstate(over="ignore"):
            narrow = expected.astype(kind).astype(got.dtype)
        scale = float(np.abs(expected).max())
        if (
            np.abs(narrow - got).max() <= _SAME * scale
            and np.abs(expected - got).max() > _SAME * scale
        ):
            return f"it is rounded to {np.dtype(kind).name}"
    return None


def _close(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> bool:
    scale = float(np.abs(a).max(initial=0.0))
    return bool(np.abs(a - b).max(initial=0.0) <= _CLOSE * scale)


def _overflow(
    a: np.ndarray[Any, Any], b: np.ndarray[Any, Any], dtype: np.dtype[Any]
) -> str | None:
    finite = a[np.isfinite(a)]
    largest = float(np.abs(finite).max(initial=0.0))
    if dtype == np.float16 and largest > _HALF_MAX:
        return f"float16 overflows: the right values reach {largest:.4g}, beyond {_HALF_MAX:.0f}"
    if np.isnan(b).any() and not np.isnan(a).any():
        return "it has NaN where the right values have none"
    return None


def _linear(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> str | None:
    """``b = factor * a + offset``, for the whole array or for each channel."""
    fit = _fit(a.reshape(1, -1), b.reshape(1, -1))
    if fit is not None:
        factor, offset = float(fit[0][0]), float(fit[1][0])
        if abs(offset) <= _CLOSE * float(np.abs(b).max()):
            if abs(factor - 1) < _CLOSE:
                return None
            return "its sign is wrong" if abs(factor + 1) < _CLOSE else (
                f"it is {factor:.4g} times the right value"
            )  # fmt: skip
        if abs(factor - 1) < _CLOSE:
            return f"it is the right value plus {offset:.4g}"
        return f"it is {factor:.4g} times the right value plus {offset:.4g}"
    for axis in range(a.ndim if a.ndim > 1 else 0):
        count = a.shape[axis]
        if count < 2 or a.size // count < 4:
            continue
        rows = [np.moveaxis(x, axis, 0).reshape(count, -1) for x in (a, b)]
        if _fit(*rows) is not None:
            return f"it is scaled or shifted differently for each index of dim {axis}"
    return None


def _fit(
    a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]] | None:
    """Factor and offset of each row, None if lines do not describe ``b``."""
    if a.shape[1] < 3:
        return None
    mean_a, mean_b = a.mean(1, keepdims=True), b.mean(1, keepdims=True)
    spread = ((a - mean_a) ** 2).sum(1, keepdims=True)
    if not (spread > 0).all():
        return None
    factor = ((a - mean_a) * (b - mean_b)).sum(1, keepdims=True) / spread
    offset = mean_b - factor * mean_a
    scale = float(np.abs(b).max())
    if np.abs(factor * a + offset - b).max() > _CLOSE * scale or not (np.abs(factor) > 0).all():
        return None
    return factor[:, 0], offset[:, 0]


def _shifted(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> str | None:
    for axis, by in itertools.product(range(a.ndim), (1, -1)):
        size = a.shape[axis]
        if size < 3:
            continue
        moved = np.roll(b, by, axis)
        inside = (slice(None),) * axis + (slice(1, -1),)
        if _close(a[inside], moved[inside]):
            return f"it is off by one along dim {axis}"
    return None


def _transposed(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> str | None:
    if not 1 < b.ndim <= _MOST_TRANSPOSED:
        return None
    for order in itertools.permutations(range(b.ndim)):
        turned = b.transpose(order)
        if order != tuple(range(b.ndim)) and turned.shape == a.shape and _close(a, turned):
            return f"its dims are in another order: {list(order)} would be right"
    return None


def _reversed(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> str | None:
    for axis in range(a.ndim):
        if a.shape[axis] > 1 and _close(a, np.flip(b, axis)):
            return f"it is reversed along dim {axis}"
    return None
