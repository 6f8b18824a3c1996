"""Many intermediate values, in memory as far as they fit and in a temporary folder beyond that."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["ValueStore"]

_IN_MEMORY = 2**30  # bytes


class ValueStore(Mapping[str, np.ndarray[Any, Any]]):
    """Arrays by value name.

    Args:
        budget: Bytes to keep in memory; further arrays are mapped from files.
    """

    def __init__(self, budget: int = _IN_MEMORY) -> None:
        self._arrays: dict[str, np.ndarray[Any, Any]] = {}
        self._budget = budget
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def add(self, name: str, array: np.ndarray[Any, Any]) -> None:
        """Keep an array; it must not change any more."""
        self._budget -= array.nbytes
        if self._budget < 0 and array.nbytes and array.dtype.isbuiltin == 1:
            if self._folder is None:
                self._folder = tempfile.TemporaryDirectory(prefix="bridge-")
            path = Path(self._folder.name) / f"{len(self._arrays)}.npy"
            np.save(path, array)
            array = np.load(path, mmap_mode="r")
        self._arrays[name] = array

    def __getitem__(self, name: str) -> np.ndarray[Any, Any]:
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)
