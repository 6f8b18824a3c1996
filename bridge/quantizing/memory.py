"""Memory that is free but not yet the system's again."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["give_back"]

_WORTH = 1 << 25  # bytes of weights; below, looking for garbage takes longer than it is worth


def give_back(model: ir.Model) -> None:
    """Return what building ``model`` and its session took: graphs are cycles, weights hang on them."""
    tensors = (v.const_value for v in model.graph.initializers.values())
    if sum(t.nbytes for t in tensors if t is not None) < _WORTH:
        return
    gc.collect()
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # musl has no malloc_trim
            ctypes.CDLL(None).malloc_trim(0)
