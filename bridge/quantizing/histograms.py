"""Histograms of values that come a batch at a time, in constant memory, and ranges from them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["METHODS", "Histogram"]

Array = np.ndarray[Any, Any]

_SIDE = 2048  # bins on each side of zero
_SAMPLED = 1 << 16  # elements of a batch that are counted; bounds are taken from all of them
_LEAST_EXPONENT = -100  # of the bound: the inverse of a bin's width is a float32 too
_MOMENTUM = 0.99  # of the moving average, per batch
_CUTS = 64  # thresholds that are tried on each side
_LEVELS = 256


class Histogram:
    """How often a value took which numbers.

    Bins are symmetric about zero; their width doubles whenever a larger number comes, and
    neighbours are added up. So the counts depend on neither batch order nor a range known before.

    Attributes:
        counts: Numbers in each bin; the first half is negative, and bin ``2048`` starts at 0.
        bound: Upper edge of the last bin, a power of two; 0 before the first number.
        low: The smallest number, exactly.
        high: The largest.
        average: Moving averages of each batch's smallest and largest number.
        batches: Batches that had numbers.
        total: Numbers seen, whether counted or not.
        not_finite: NaN and infinite values, which are left out.
    """

    def __init__(self) -> None:
        self.counts: Array = np.zeros(2 * _SIDE, np.int64)
        self.bound = 0.0
        self.low, self.high = np.inf, -np.inf
        self.average = (0.0, 0.0)
        self.batches = 0
        self.total = 0
        self.not_finite = 0

    # Counting

    def add(self, x: Array) -> None:
        """Count a batch's numbers.

        Args:
            x: Floating-point, any shape; empty ones are ignored.
        """
        flat = np.ascontiguousarray(x).reshape(-1)
        if not flat.size:
            return
        if flat.dtype != np.float32:
            flat = flat.astype(np.float32)
        low, high = float(flat.min()), float(flat.max())
        if not (np.isfinite(low) and np.isfinite(high)):  # NaN spreads through min and max
            finite = flat[np.isfinite(flat)]
            self.not_finite += flat.size - finite.size
            flat = finite
            if not flat.size:
                return
            low, high = float(flat.min()), float(flat.max())
        self._bounds(low, high)
        self.total += flat.size
        step = (
            -(-flat.size // _SAMPLED) | 1
        )  # odd: even steps would keep meeting the same channels
        sample = flat if flat.size <= _SAMPLED else flat[self.batches % step :: step]
        self._count(sample)

    def _bounds(self, low: float, high: float) -> None:
        self.low, self.high = min(self.low, low), max(self.high, high)
        if not self.batches:
            self.average = (low, high)
        else:
            a, b = self.average
            self.average = (
                a + (low - a) * (1 - _MOMENTUM), b + (high - b) * (1 - _MOMENTUM)
            )  # fmt: skip
        self.batches += 1
        largest = max(-self.low, self.high)
        if largest > self.bound:
            self._widen(largest)

    def _widen(self, largest: float) -> None:
        bound = 2.0 ** max(_LEAST_EXPONENT, np.ceil(np.log2(largest)))
        if self.bound:
            factor = int(min(bound / self.bound, 2.0 * _SIDE))
            self.counts = _coarser(self.counts, factor)
        self.bound = bound

    def _count(self, sample: Array) -> None:
        if not self.bound:  # nothing but zeros so far
            self.counts[_SIDE] += sample.size
            return
        scaled = sample * np.float32(_SIDE / self.bound)
        scaled += np.float32(_SIDE)
        bins = scaled.astype(np.int32)
        np.clip(bins, 0, 2 * _SIDE - 1, out=bins)
        self.counts += np.bincount(bins, minlength=2 * _SIDE)

    def edges(self) -> Array:
        """Edges of the bins, one more than there are bins."""
        return np.linspace(-self.bound, self.bound, 2 * _SIDE + 1)

    # Ranges

    def range(self, method: str) -> tuple[float, float]:
        """The range that a method chooses; within the smallest and the largest number seen.

        Args:
            method: One of :data:`METHODS`.

        Raises:
            ValueError: No finite number was seen.
        """
        if not self.batches:
            raise ValueError("no finite number was seen")
        if not self.bound or self.low == self.high:
            return self.low, self.high
        low, high = METHODS[method](self)
        low, high = max(low, self.low), min(high, self.high)
        return (low, high) if low <= high else (self.low, self.high)

    def clipped(self, low: float, high: float) -> float:
        """The share of counted numbers outside a range, to the width of a bin."""
        total = int(self.counts.sum())
        if not total or not self.bound:
            return 0.0
        middles = (self.edges()[:-1] + self.edges()[1:]) / 2
        width = self.bound / _SIDE
        outside = self.counts[(middles < low - width) | (middles > high + width)].sum()
        return float(outside / total)

    def noise(self, low: float, high: float, levels: int = _LEVELS) -> tuple[float, float]:
        """Power of the signal, and of the error of ``levels`` integers between two bounds."""
        low, high = min(low, 0.0), max(high, 0.0)
        middles = (self.edges()[:-1] + self.edges()[1:]) / 2
        total = max(1, int(self.counts.sum()))
        share = self.counts / total
        signal = float((share * middles**2).sum())
        beyond = np.maximum(middles - high, 0) + np.maximum(low - middles, 0)
        inside = float(share[beyond == 0].sum())
        step = (high - low) / (levels - 1)
        return signal, float((share * beyond**2).sum()) + inside * step**2 / 12

    # State, to go on later

    def state(self) -> dict[str, Array]:
        """The histogram as arrays."""
        numbers = [
            self.bound, self.low, self.high, *self.average, self.batches, self.total,
            self.not_finite,
        ]  # fmt: skip
        return {"counts": self.counts, "numbers": np.asarray(numbers, np.float64)}

    @classmethod
    def from_state(cls, counts: Array, numbers: Array) -> Histogram:
        """The histogram that :meth:`state` wrote down."""
        made = cls()
        made.counts = counts.astype(np.int64)
        made.bound, made.low, made.high = (float(x) for x in numbers[:3])
        made.average = (float(numbers[3]), float(numbers[4]))
        made.batches, made.total, made.not_finite = (int(x) for x in numbers[5:8])
        return made


def _coarser(counts: Array, factor: int) -> Array:
    """Counts in bins that are ``factor`` times as wide; a power of two."""
    if factor >= 2 * _SIDE:
        factor = 2 * _SIDE
    made = np.zeros_like(counts)
    negative, positive = counts[:_SIDE][::-1], counts[_SIDE:]
    for side, place in ((positive, slice(_SIDE, None)), (negative, slice(0, _SIDE))):
        size = max(1, _SIDE // factor)
        sums = side.reshape(size, -1).sum(1)
        half = np.zeros(_SIDE, np.int64)
        half[:size] = sums
        made[place] = half if place.start else half[::-1]
    return made


def _minmax(h: Histogram) -> tuple[float, float]:
    return h.low, h.high


def _moving_average(h: Histogram) -> tuple[float, float]:
    return h.average


def _percentile(h: Histogram, share: float = 0.9999) -> tuple[float, float]:
    cumulative = np.cumsum(h.counts)
    edges = h.edges()
    cut = cumulative[-1] * (1 - share) / 2
    first = int(np.searchsorted(cumulative, cut, side="right"))
    last = int(np.searchsorted(cumulative, cumulative[-1] - cut, side="left"))
    return float(edges[first]), float(edges[min(last, 2 * _SIDE - 1) + 1])


def _mse(h: Histogram) -> tuple[float, float]:
    """The range with the least squared error, of rounding inside and of clipping outside."""
    middles = (h.edges()[:-1] + h.edges()[1:]) / 2
    share = h.counts / max(1, int(h.counts.sum()))
    fractions = np.linspace(1 / _CUTS, 1, _CUTS)
    # The clipping error of each threshold on each side, from sums that are made once.
    above = _clipping(middles[_SIDE:], share[_SIDE:], fractions * max(h.high, 0.0))
    below = _clipping(-middles[:_SIDE][::-1], share[:_SIDE][::-1], fractions * max(-h.low, 0.0))
    width = np.add.outer(fractions * max(-h.low, 0.0), fractions * max(h.high, 0.0))
    error = np.add.outer(below, above) + (width / (_LEVELS - 1)) ** 2 / 12
    i, j = np.unravel_index(int(error.argmin()), error.shape)
    return float(fractions[i]) * min(h.low, 0.0), float(fractions[j]) * max(h.high, 0.0)


def _clipping(middles: Array, share: Array, cuts: Array) -> Array:
    """``sum(share * max(middles - cut, 0)^2)`` for each cut."""
    tails = [np.cumsum((share * middles**p)[::-1])[::-1] for p in range(3)]
    index = np.searchsorted(middles, cuts, side="right")
    padded = [np.append(t, 0.0) for t in tails]
    error = padded[2][index] - 2 * cuts * padded[1][index] + cuts**2 * padded[0][index]
    return np.maximum(error, 0.0)


def _entropy(h: Histogram) -> tuple[float, float]:
    """The threshold where integers lose the least information (Kullback-Leibler)."""
    magnitudes = h.counts[_SIDE:] + h.counts[:_SIDE][::-1]
    magnitudes[0] = magnitudes[1]  # zeros lose nothing, and after Relu there are many
    last = int(np.flatnonzero(magnitudes)[-1]) + 1 if magnitudes.any() else 0
    # Of the integers, those that the side with the larger numbers gets; outliers do not count.
    low, high = _percentile(h)
    low, high = min(low, 0.0), max(high, 0.0)
    levels = int(_LEVELS * max(-low, high) / (high - low))
    if last <= levels:
        return h.low, h.high
    best, chosen = np.inf, last
    for bins in np.unique(np.linspace(levels, last, 128).astype(int)):
        loss = _divergence(magnitudes[:last].astype(np.float64), int(bins), levels)
        if loss < best:
            best, chosen = loss, int(bins)
    threshold = chosen * h.bound / _SIDE
    return max(h.low, -threshold), min(h.high, threshold)


def _divergence(counts: Array, bins: int, levels: int) -> float:
    """Information lost when ``bins`` bins become ``levels`` and what lies beyond joins the last."""
    reference = counts[:bins].copy()
    reference[-1] += counts[bins:].sum()
    group = np.minimum(np.arange(bins) * levels // bins, levels - 1)
    filled = counts[:bins] > 0
    sums = np.bincount(group, counts[:bins], levels)
    members = np.bincount(group, filled, levels)
    average = np.divide(sums, members, out=np.zeros(levels), where=members > 0)
    candidate = np.where(filled, average[group], 0.0)
    p, q = reference / reference.sum(), candidate / max(candidate.sum(), 1e-300)
    mask = p > 0
    return float((p[mask] * np.log(p[mask] / np.maximum(q[mask], 1e-12))).sum())


METHODS: dict[str, Callable[[Histogram], tuple[float, float]]] = {
    "minmax": _minmax,
    "moving-average": _moving_average,
    "percentile": _percentile,
    "entropy": _entropy,
    "mse": _mse,
}
