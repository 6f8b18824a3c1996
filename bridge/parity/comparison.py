"""Comparing one array with what it should be."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

__all__ = ["Comparison", "Tolerance", "compare", "default_tolerance"]


@dataclasses.dataclass(frozen=True, slots=True)
class Tolerance:
    """How far a value may be off: ``atol * scale + rtol * |expected|``.

    ``scale`` is the largest finite magnitude in the expected array, at least 1, since a sum of
    large terms is only as exact as its terms.

    Attributes:
        rtol: Relative to the expected value.
        atol: Relative to the scale.
    """

    rtol: float
    atol: float


# Kernels differ in summation order: the errors of a deep net in float32 stay well below these.
_TOLERANCES = {
    "float64": Tolerance(1e-7, 1e-9),
    "float32": Tolerance(1e-3, 1e-4),
    "float16": Tolerance(1e-2, 4e-3),
    "bfloat16": Tolerance(5e-2, 2e-2),
    "complex64": Tolerance(1e-3, 1e-4),
    "complex128": Tolerance(1e-7, 1e-9),
}
_EXACT = Tolerance(0.0, 0.0)


def default_tolerance(dtype: np.dtype[Any]) -> Tolerance:
    """The tolerance for an element type; integers and booleans must be equal."""
    return _TOLERANCES.get(dtype.name, _EXACT)


@dataclasses.dataclass(frozen=True, slots=True)
class Comparison:
    """How one output differs from the expected one.

    Attributes:
        name: The output.
        passed: Whether it is within tolerance.
        problem: What is wrong before values are looked at: dtype, shape, NaN or Inf places.
        max_abs: Largest absolute difference.
        max_rel: Largest difference relative to the expected value's magnitude.
        mean_abs: Mean absolute difference.
        snr: Signal to noise ratio in dB; infinite when equal.
        needed: Smallest ``atol`` (of the scale) that would pass with the tolerance's ``rtol``.
        worst: Index of the worst element.
        expected: Its expected value.
        got: Its value.
        shape: The expected shape.
        dtype: The expected dtype.
    """

    name: str
    passed: bool
    problem: str | None
    max_abs: float
    max_rel: float
    mean_abs: float
    snr: float
    needed: float
    worst: tuple[int, ...] | None
    expected: Any
    got: Any
    shape: tuple[int, ...]
    dtype: str

    def __str__(self) -> str:
        state = "ok" if self.passed else "MISMATCH"
        what = f"{self.dtype}{list(self.shape)}"
        if self.problem is not None:
            return f"{self.name}: {state}: {self.problem}"
        text = f"{self.name}: {state}: {what}, max abs error {self.max_abs:.3g}, SNR {self.snr:.1f} dB"
        if not self.passed:
            place = list(self.worst or ())
            text += f"; at {place} {self.got!s} instead of {self.expected!s}; atol {self.needed:.3g} would pass"
        return text


def compare(name: str, expected: Any, got: Any, tolerance: Tolerance | None = None) -> Comparison:
    """Compare arrays, naming differences of dtype, shape and finiteness before those of value."""
    expected, got = np.asarray(expected), np.asarray(got)
    tolerance = tolerance or default_tolerance(expected.dtype)
    problem = None
    if expected.dtype != got.dtype:
        problem = f"dtype is {got.dtype.name} instead of {expected.dtype.name}"
    elif expected.shape != got.shape:
        problem = f"shape is {list(got.shape)} instead of {list(expected.shape)}"
    if problem is not None:
        return _failed(name, problem, expected)
    wide = np.complex128 if expected.dtype.kind == "c" else np.float64
    if expected.dtype.kind in "biu":
        return _exact(name, expected, got)
    a, b = expected.astype(wide), got.astype(wide)
    finite = np.isfinite(a)
    odd = ~finite & ~((a == b) | (np.isnan(a) & np.isnan(b))) | (finite & ~np.isfinite(b))
    if odd.any():
        place = tuple(int(i) for i in np.argwhere(odd)[0])
        return _failed(
            name, f"{int(odd.sum())} of {odd.size} values are not finite alike; at {list(place)} "
            f"{got[place]} instead of {expected[place]}", expected,
        )  # fmt: skip
    a, b = np.where(finite, a, 0), np.where(finite, b, 0)
    error, magnitude = np.abs(a - b), np.abs(a)
    scale = max(1.0, float(magnitude.max(initial=0.0)))
    excess = error - tolerance.rtol * magnitude
    needed = max(0.0, float(excess.max(initial=0.0))) / scale
    worst = np.unravel_index(int(excess.argmax()), excess.shape) if excess.size else None
    place = None if worst is None else tuple(int(i) for i in worst)
    noise = float((error**2).sum())
    return Comparison(
        name=name,
        passed=needed <= tolerance.atol,
        problem=None,
        max_abs=float(error.max(initial=0.0)),
        max_rel=float((error / np.maximum(magnitude, 1e-30)).max(initial=0.0)),
        mean_abs=float(error.mean()) if error.size else 0.0,
        snr=float("inf")
        if noise == 0
        else 10 * float(np.log10(max((magnitude**2).sum(), 1e-300) / noise)),
        needed=needed,
        worst=place,
        expected=None if place is None else expected[place],
        got=None if place is None else got[place],
        shape=expected.shape,
        dtype=expected.dtype.name,
    )


def _failed(name: str, problem: str, expected: Any) -> Comparison:
    nan = float("nan")
    return Comparison(name, False, problem, nan, nan, nan, nan, nan, None, None, None,
                      expected.shape, expected.dtype.name)  # fmt: skip


def _exact(name: str, expected: Any, got: Any) -> Comparison:
    wrong = expected != got
    count = int(wrong.sum())
    place = tuple(int(i) for i in np.argwhere(wrong)[0]) if count else None
    difference = np.abs(expected.astype(np.float64) - got.astype(np.float64))
    return Comparison(
        name=name, passed=count == 0, problem=None, max_abs=float(difference.max(initial=0.0)),
        max_rel=count / max(1, wrong.size), mean_abs=float(difference.mean()) if wrong.size else 0.0,
        snr=float("inf") if count == 0 else 0.0, needed=float(difference.max(initial=0.0)),
        worst=place, expected=None if place is None else expected[place],
        got=None if place is None else got[place], shape=expected.shape, dtype=expected.dtype.name,
    )  # fmt: skip
