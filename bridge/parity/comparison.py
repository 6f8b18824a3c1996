"""Comparing one array with what it should be."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from bridge.errors import FeedError

__all__ = ["Comparison", "Tolerance", "agrees", "compare", "default_tolerance"]

_CHUNK = 1 << 16  # elements that are widened at a time: they stay in the cache
_MOST_ROWS = 4096  # that are looked through for their five largest elements: no images
_INFINITE_SNR = float("inf")


@dataclasses.dataclass(frozen=True, slots=True)
class Tolerance:
    """How far values may be off: ``atol * scale + rtol * |expected|``.

    ``scale`` is the largest finite magnitude in the expected array, at least :data:`FLOOR`, since
    a sum of large terms is only as exact as its terms. Numbers that stand for infinity in a mask,
    such as -1e9, do not count. For integers ``scale`` is 1.

    Attributes:
        rtol: Relative to the expected value.
        atol: Relative to the scale.
        share: Which share of the elements may be off by more.
    """

    rtol: float
    atol: float
    share: float = 0.0

    def __post_init__(self) -> None:
        if not (self.rtol >= 0 and self.atol >= 0 and 0 <= self.share <= 1):
            raise FeedError(
                f"{self} is no tolerance: rtol and atol are 0 or more, share is 0 to 1"
            )


# What is left of numbers around 1 that cancel has errors of their size, not of its own.
FLOOR = 1e-2
# Beyond these, by element type, a number far from all others stands for infinity.
FAR = {"float16": 6e4, "": 1e8}
_APART = 1e3  # times the others
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
        shape: The expected shape.
        dtype: The expected dtype.
        max_abs: Largest absolute difference.
        max_rel: Largest difference relative to the expected value's magnitude.
        mean_abs: Mean absolute difference.
        snr: Signal to noise ratio in dB; infinite when equal.
        cosine: Cosine of the angle between the two, as vectors.
        ulps: Largest distance in representable numbers; None for what is not floating-point.
        top1: Share of rows whose largest element is at the same place; None without rows.
        top5: How many of the five largest elements of a row are the same ones, on average; None
            where rows have no more than five.
        needed: Smallest ``atol`` that would pass with the tolerance's other fields.
        allowed: The tolerance's own ``atol``.
        off: Share of elements beyond the tolerance.
        worst: Index of the worst element.
        expected: Its expected value.
        got: Its value.
        judged: What float64 says of a difference, where it was asked.
    """

    name: str
    passed: bool
    problem: str | None
    shape: tuple[int, ...]
    dtype: str
    max_abs: float = float("nan")
    max_rel: float = float("nan")
    mean_abs: float = float("nan")
    snr: float = float("nan")
    cosine: float = float("nan")
    ulps: int | None = None
    top1: float | None = None
    top5: float | None = None
    needed: float = float("nan")
    allowed: float = float("nan")
    off: float = float("nan")
    worst: tuple[int, ...] | None = None
    expected: Any = None
    got: Any = None
    judged: str | None = None

    def __str__(self) -> str:
        state = "ok" if self.passed else "MISMATCH"
        what = f"{self.dtype}{list(self.shape)}"
        if self.problem is not None:
            return f"{self.name}: {state}: {self.problem}"
        text = f"{self.name}: {state}: {what}, max abs error {self.max_abs:.3g}"
        text += f", SNR {self.snr:.1f} dB"
        if self.judged is not None:
            text += f"; {self.judged}"
        if not self.passed:
            place = list(self.worst or ())
            text += (
                f"; {self.off:.2%} of the elements are off; at {place} {self.got!s} instead of "
                f"{self.expected!s}; atol {self.needed:.3g} would pass"
            )
        return text

    def to_dict(self) -> dict[str, Any]:
        """The comparison as plain data."""
        data = dataclasses.asdict(self)
        for key in ("expected", "got"):
            value = data[key]
            data[key] = value.item() if isinstance(value, np.generic) else value
        return data


def compare(name: str, expected: Any, got: Any, tolerance: Tolerance | None = None) -> Comparison:
    """Compare arrays, naming differences of dtype, shape and finiteness before those of value."""
    expected, got = np.asarray(expected), np.asarray(got)
    tolerance = tolerance or default_tolerance(expected.dtype)
    shape, dtype = expected.shape, expected.dtype.name
    if expected.dtype != got.dtype:
        return Comparison(
            name, False, f"dtype is {got.dtype.name} instead of {dtype}", shape, dtype
        )
    if shape != got.shape:
        told = f"shape is {list(got.shape)} instead of {list(shape)}"
        return Comparison(name, False, told, shape, dtype)
    if expected.dtype.kind in "OSU":
        return _objects(name, expected, got)
    problem = _unlike_finite(expected, got)
    if problem is not None:
        return Comparison(name, False, problem, shape, dtype)
    return _values(name, expected, got, tolerance)


def agrees(expected: Any, got: Any, tolerance: Tolerance) -> bool:
    """Whether :func:`compare` passes numbers of one shape and kind; it says no sooner."""
    if _unlike_finite(expected, got) is not None:
        return False
    a, b = np.ascontiguousarray(expected).reshape(-1), np.ascontiguousarray(got).reshape(-1)
    limit = tolerance.atol * _scale(a)
    chunks = range(0, a.size, _CHUNK)
    return all(
        bool((_excess(a[s : s + _CHUNK], b[s : s + _CHUNK], tolerance)[3] <= limit).all())
        for s in chunks
    )


def _objects(name: str, expected: np.ndarray[Any, Any], got: np.ndarray[Any, Any]) -> Comparison:
    off = float(np.mean(expected != got)) if expected.size else 0.0
    return Comparison(
        name, off == 0, None, expected.shape, expected.dtype.name, max_abs=off, max_rel=off,
        mean_abs=off, snr=_INFINITE_SNR if off == 0 else 0.0, cosine=1.0 - off, needed=off,
        off=off,
    )  # fmt: skip


def is_floating(dtype: np.dtype[Any]) -> bool:
    """Whether values of the dtype are approximations, ml_dtypes' included."""
    return dtype.kind in "fc" or (dtype.kind == "V" and "float" in dtype.name)


def _unlike_finite(expected: np.ndarray[Any, Any], got: np.ndarray[Any, Any]) -> str | None:
    """Where one array is NaN or infinite and the other is not, or not alike; None if nowhere."""
    if not is_floating(expected.dtype):
        return None
    a, b = np.isfinite(expected), np.isfinite(got)
    if a.all() and b.all():
        return None
    wide_a: np.ndarray[Any, Any] = expected.astype(_wide(expected))
    wide_b: np.ndarray[Any, Any] = got.astype(_wide(expected))
    alike = (a & b) | (wide_a == wide_b) | (np.isnan(wide_a) & np.isnan(wide_b))
    if alike.all():
        return None
    place = tuple(int(i) for i in np.argwhere(~alike)[0])
    count = int((~alike).sum())
    return (
        f"{count} of {alike.size} values are not finite alike; at {list(place)} {got[place]} "
        f"instead of {expected[place]}"
    )


def _wide(x: np.ndarray[Any, Any]) -> type:
    return np.complex128 if x.dtype.kind == "c" else np.float64


@dataclasses.dataclass(slots=True)
class _Sums:
    """What is added up over the chunks of two arrays."""

    signal: float = 0.0
    noise: float = 0.0
    product: float = 0.0
    other: float = 0.0
    error: float = 0.0
    max_abs: float = 0.0
    max_rel: float = 0.0
    excess: float = 0.0
    worst: int | None = None


def _values(
    name: str, expected: np.ndarray[Any, Any], got: np.ndarray[Any, Any], tolerance: Tolerance
) -> Comparison:
    a, b = np.ascontiguousarray(expected).reshape(-1), np.ascontiguousarray(got).reshape(-1)
    scale = _scale(a)
    sums = _Sums()
    excesses = []
    for start in range(0, a.size, _CHUNK):
        excess = _add(sums, a[start : start + _CHUNK], b[start : start + _CHUNK], start, tolerance)
        if tolerance.share:
            excesses.append(excess)
    limit = tolerance.atol * scale
    needed = max(0.0, sums.excess)
    off = 0.0
    if needed > limit:
        off = _share_off(a, b, tolerance, limit)
        if tolerance.share:
            kept = np.sort(np.concatenate(excesses))
            needed = max(0.0, float(kept[-1 - int(tolerance.share * kept.size)]))
    place = None
    if sums.worst is not None:
        place = tuple(int(i) for i in np.unravel_index(sums.worst, expected.shape))
    norms = (sums.signal * sums.other) ** 0.5
    return Comparison(
        name=name,
        passed=needed <= limit,
        problem=None,
        shape=expected.shape,
        dtype=expected.dtype.name,
        max_abs=sums.max_abs,
        max_rel=sums.max_rel,
        mean_abs=sums.error / max(1, a.size),
        snr=_snr(sums.signal, sums.noise),
        cosine=sums.product / norms if norms else float(sums.noise == 0),
        ulps=_ulps(a, b),
        top1=_top(expected, got, 1),
        top5=_top(expected, got, 5),
        needed=needed / scale,
        allowed=tolerance.atol,
        off=off,
        worst=place,
        expected=None if place is None else expected[place],
        got=None if place is None else got[place],
    )


def _snr(signal: float, noise: float) -> float:
    if noise == 0:
        return _INFINITE_SNR
    return 10 * float(np.log10(max(signal, 1e-300) / noise))


def _scale(flat: np.ndarray[Any, Any]) -> float:
    if not is_floating(flat.dtype):
        return 1.0
    scale = _largest(flat, np.inf)
    if scale > FAR.get(flat.dtype.name, FAR[""]):
        others = _largest(flat, scale / _APART)
        scale = scale if _largest(flat, scale / 2) * _APART > scale else others
    return max(FLOOR, scale)


def _largest(flat: np.ndarray[Any, Any], limit: float) -> float:
    """The largest finite magnitude up to a limit."""
    found = 0.0
    for start in range(0, flat.size, _CHUNK):
        magnitude = np.abs(flat[start : start + _CHUNK].astype(_wide(flat)))
        kept = magnitude[np.isfinite(magnitude) & (magnitude <= limit)]
        found = max(found, float(kept.max(initial=0.0)))
    return found


def _excess(
    a: np.ndarray[Any, Any], b: np.ndarray[Any, Any], tolerance: Tolerance
) -> tuple[np.ndarray[Any, Any], ...]:
    """Both arrays widened, their difference, and what of it the relative tolerance leaves."""
    unlike = a != b
    exact = not is_floating(a.dtype)
    a, b = a.astype(_wide(a)), b.astype(_wide(a))
    if exact:  # float64 cannot tell large integers apart
        error = np.where(unlike, np.maximum(np.abs(a - b), 1.0), 0.0)
        return a, b, error, error - tolerance.rtol * np.abs(a)
    finite = np.isfinite(a) & np.isfinite(b)
    if not finite.all():  # infinite alike, or the arrays would not have come here
        a, b = np.where(finite, a, 0), np.where(finite, b, 0)
    error = np.abs(a - b)
    return a, b, error, error - tolerance.rtol * np.abs(a)


def _add(
    sums: _Sums, a: np.ndarray[Any, Any], b: np.ndarray[Any, Any], start: int, tolerance: Tolerance
) -> np.ndarray[Any, Any]:
    a, b, error, excess = _excess(a, b, tolerance)
    magnitude = np.abs(a)
    sums.signal += float((magnitude**2).sum())
    sums.other += float((np.abs(b) ** 2).sum())
    sums.noise += float((error**2).sum())
    sums.product += float((a * np.conj(b)).real.sum())
    sums.error += float(error.sum())
    sums.max_abs = max(sums.max_abs, float(error.max()))
    sums.max_rel = max(sums.max_rel, float((error / np.maximum(magnitude, 1e-30)).max()))
    index = int(excess.argmax())
    if sums.worst is None or float(excess[index]) > sums.excess:
        sums.excess, sums.worst = float(excess[index]), start + index
    return excess


def _share_off(
    a: np.ndarray[Any, Any], b: np.ndarray[Any, Any], tolerance: Tolerance, limit: float
) -> float:
    count = sum(
        int((_excess(a[s : s + _CHUNK], b[s : s + _CHUNK], tolerance)[3] > limit).sum())
        for s in range(0, a.size, _CHUNK)
    )
    return count / a.size


def _ulps(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> int | None:
    """The largest number of steps between neighbours that lead from one value to the other."""
    if a.dtype.kind == "c" or not is_floating(a.dtype):
        return None
    kind = np.dtype(f"u{a.dtype.itemsize}")
    sign = np.array(1, kind) << np.array(kind.itemsize * 8 - 1, kind)
    most = 0
    for start in range(0, a.size, _CHUNK):
        part = a[start : start + _CHUNK]
        p, q = part.view(kind), b[start : start + _CHUNK].view(kind)
        up, uq = p & ~sign, q & ~sign  # how many numbers lie between zero and each
        apart = np.where((p ^ q) & sign, up + uq, np.maximum(up, uq) - np.minimum(up, uq))
        most = max(most, int(np.where(np.isfinite(part), apart, 0).max(initial=0)))
    return most


def _top(expected: np.ndarray[Any, Any], got: np.ndarray[Any, Any], count: int) -> float | None:
    """The share of a row's largest elements that are the same ones, on average."""
    if expected.ndim < 2 or expected.shape[-1] <= count or not expected.size:
        return None
    if expected.dtype.kind == "c" or not is_floating(expected.dtype):
        return None
    if count > 1 and expected.size // expected.shape[-1] > _MOST_ROWS:
        return None
    if count == 1:
        return float(np.mean(expected.argmax(-1) == got.argmax(-1)))
    rows = [
        np.argpartition(x.astype(np.float32), -count, -1)[..., -count:].reshape(-1, count)
        for x in (expected, got)
    ]
    return float((rows[0][:, :, None] == rows[1][:, None, :]).any(-1).mean())
