"""Which of many right arrays an array is, by its numbers."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from bridge.parity.comparison import compare, is_floating
from bridge.parity.forcing import local_tolerance

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["RightNumbers"]

Array = np.ndarray[Any, Any]


@dataclasses.dataclass(slots=True)
class RightNumbers:
    """Right arrays, found by the numbers in them, in another order if they have other dims.

    Numbers that are all the same say nothing: many a mask and many a bias is 0.

    Args:
        arrays: In the order in which they are made.
    """

    arrays: list[Array]
    _ends: list[tuple[float, float]] = dataclasses.field(init=False)
    _by_size: dict[int, list[int]] = dataclasses.field(init=False)

    def __init__(self, arrays: Iterable[Array]) -> None:
        self.arrays = list(arrays)
        self._ends, self._by_size = [], {}
        for place, x in enumerate(self.arrays):
            plain = x.size and x.dtype.kind not in "OSUc"
            ends = (float(x.min()), float(x.max())) if plain else (0.0, 0.0)
            self._ends.append(ends)
            if plain and ends[0] != ends[1]:
                self._by_size.setdefault(x.size, []).append(place)

    def places(self, got: Any) -> Iterator[int]:
        """Where an array stands among the right ones, each place at which it does."""
        got = np.asarray(got)
        if not got.size or got.dtype.kind in "OSUc":
            return
        low, high = float(got.min()), float(got.max())
        if low == high:
            return
        floating = is_floating(got.dtype)
        for place in self._by_size.get(got.size, ()):
            expected = self.arrays[place]
            if floating != is_floating(expected.dtype):
                continue
            if not floating:
                if got.shape == expected.shape and np.array_equal(got, expected):
                    yield place
            elif self._near(place, low, high, got.dtype) and _same(expected, got):
                yield place

    def has_like(self, got: Any) -> bool:
        """Whether any right array has the shape and kind of an array."""
        got = np.asarray(got)
        return any(
            self.arrays[i].shape == got.shape and self.arrays[i].dtype.kind == got.dtype.kind
            for i in self._by_size.get(got.size, ())
        )

    def _near(self, place: int, low: float, high: float, dtype: np.dtype[Any]) -> bool:
        ends = np.asarray(self._ends[place]).astype(dtype)
        return compare("ends", ends, np.asarray([low, high], dtype), local_tolerance(dtype)).passed


def _same(expected: Array, got: Array) -> bool:
    expected = expected.astype(got.dtype)
    tolerance = local_tolerance(got.dtype)
    if expected.shape == got.shape:
        return compare("all", expected, got, tolerance).passed
    return compare("all", np.sort(expected, None), np.sort(got, None), tolerance).passed
