"""Which of many right arrays an array is, by its numbers."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from bridge.parity.comparison import FAR, agrees, default_tolerance, is_floating
from bridge.parity.forcing import local_tolerance

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from bridge.parity.comparison import Tolerance

__all__ = ["RightNumbers"]

Array = np.ndarray[Any, Any]


@dataclasses.dataclass(slots=True)
class RightNumbers:
    """Right arrays, found by the numbers in them, in another order if they have other dims.

    Numbers that are all the same say nothing: many a mask and many a bias is 0.

    Args:
        arrays: In the order in which they are made.
        coarse: A less precise element type that what is looked for was computed in.
        whole: Whether what is looked for carries the rounding of a whole model.
    """

    arrays: list[Array]
    coarse: np.dtype[Any] | None
    whole: bool
    _by_size: dict[int, tuple[Array, Array]] = dataclasses.field(init=False)

    def __init__(
        self,
        arrays: Iterable[Array],
        coarse: np.dtype[Any] | None = None,
        *,
        whole: bool = False,
    ) -> None:
        self.arrays = [unmasked(x) for x in arrays]
        self.coarse = coarse
        self.whole = whole
        places: dict[int, list[int]] = {}
        ends: dict[int, list[tuple[float, float]]] = {}
        for place, x in enumerate(self.arrays):
            if not x.size or x.dtype.kind in "OSUc" or x.min() == x.max():
                continue
            places.setdefault(x.size, []).append(place)
            ends.setdefault(x.size, []).append((float(x.min()), float(x.max())))
        self._by_size = {
            n: (np.asarray(found), np.asarray(ends[n])) for n, found in places.items()
        }

    def places(self, got: Any) -> Iterator[int]:
        """Where an array stands among the right ones, each place at which it does."""
        got = unmasked(np.asarray(got))
        if not got.size or got.dtype.kind in "OSUc":
            return
        low, high = float(got.min()), float(got.max())
        if low == high:
            return
        floating = is_floating(got.dtype)
        for place in self._near(got.size, low, high, got.dtype):
            expected = self.arrays[place]
            if floating != is_floating(expected.dtype):
                continue
            if not floating:
                if got.shape == expected.shape and np.array_equal(got, expected):
                    yield place
            elif _same(expected, got, self.tolerance(got.dtype)):
                yield place

    def tolerance(self, dtype: np.dtype[Any]) -> Tolerance:
        """How far numbers of an element type may be off and still be right."""
        kind = self.coarse or dtype
        return default_tolerance(kind) if self.whole else local_tolerance(kind)

    def of_size(self, size: int) -> list[int]:
        """Where the right arrays stand that have as many numbers."""
        return [int(i) for i in self._by_size.get(size, ((),))[0]]

    def has_like(self, got: Any) -> bool:
        """Whether any right array has the shape and kind of an array."""
        got = np.asarray(got)
        return any(
            self.arrays[i].shape == got.shape and self.arrays[i].dtype.kind == got.dtype.kind
            for i in self._by_size.get(got.size, ((),))[0]
        )

    def _near(self, size: int, low: float, high: float, dtype: np.dtype[Any]) -> list[int]:
        """Where arrays of a size stand whose least and largest numbers are about the given ones."""
        if size not in self._by_size:
            return []
        places, ends = self._by_size[size]
        tolerance = self.tolerance(dtype)
        limit = 2 * (tolerance.rtol + tolerance.atol) * np.abs(ends).max(1)
        with np.errstate(invalid="ignore"):  # infinities
            near = (np.abs(ends - (low, high)) <= limit[:, None]).all(1)
        near |= ~np.isfinite(ends).all(1)
        found: list[int] = places[near].tolist()
        return found


def unmasked(x: Array) -> Array:
    """An array in which what stands for minus infinity is that: exporters choose other numbers."""
    if not is_floating(x.dtype) or x.dtype.kind == "c" or not x.size:
        return x
    far = x < -FAR.get(x.dtype.name, FAR[""])
    return np.where(far, x.dtype.type(-np.inf), x) if far.any() else x


def _same(expected: Array, got: Array, tolerance: Tolerance) -> bool:
    expected = expected.astype(got.dtype)
    if expected.shape == got.shape:
        return agrees(expected, got, tolerance)
    return agrees(np.sort(expected, None), np.sort(got, None), tolerance)
