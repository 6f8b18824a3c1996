"""Torch kernels that read and write out of bounds where their arguments do not fit.

Eager code is run on sizes that its author never gave it, to see which it accepts. A kernel that
trusts its arguments would then spoil the process's memory, so these are checked before it runs.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any

import torch

from exporters.pytorch.registry import aten_name

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["require_fitting"]


def _fitting_pivots(matrix: torch.Tensor, pivots: torch.Tensor) -> None:
    """Pivots are row numbers from 1 on, one per diagonal element; the kernels swap what they say."""
    rows, least = matrix.shape[-2], min(matrix.shape[-2:])
    if pivots.shape != (*matrix.shape[:-2], least):
        raise RuntimeError(
            f"pivots of shape {list(pivots.shape)} for a factorization of shape {list(matrix.shape)}"
        )
    places = pivots.abs()  # those of ldl_factor are negative in blocks of two
    if places.numel() and not (int(places.min()) >= 1 and int(places.max()) <= rows):
        raise RuntimeError(f"pivots are not in 1..{rows}")


def _fitting_channels(input: torch.Tensor, *per_channel: torch.Tensor | None) -> None:
    """The low-level batch norms take the sizes of weights and statistics on trust."""
    for x in per_channel:
        if isinstance(x, torch.Tensor) and input.dim() > 1 and x.numel() != input.shape[1]:
            raise RuntimeError(f"{x.numel()} values for {input.shape[1]} channels")


def _fitting_places(gradient: torch.Tensor, image: torch.Tensor, indices: torch.Tensor) -> None:
    """The gradient of a maximum pool is added at places that nobody checks."""
    dims = 3 if image.dim() == 5 else 2
    plane = math.prod(image.shape[-dims:])
    if indices.shape != gradient.shape or indices.shape[:-dims] != image.shape[:-dims]:
        raise RuntimeError(f"indices of shape {list(indices.shape)} for {list(image.shape)}")
    if indices.numel() and not (int(indices.min()) >= 0 and int(indices.max()) < plane):
        raise RuntimeError(f"indices are not in 0..{plane - 1}")


def _fitting_segments(
    data: torch.Tensor,
    lengths: torch.Tensor | None,
    offsets: torch.Tensor | None,
    axis: int | None,
) -> None:
    """Segments may be longer than what is cut into them."""
    size = data.shape[axis or 0]
    for x in (lengths, offsets):
        if x is not None and x.shape[:-1] != data.shape[: x.dim() - 1]:
            raise RuntimeError(f"segments of shape {list(x.shape)} for {list(data.shape)}")
    if lengths is not None and lengths.numel() and int(lengths.sum(-1).max()) > size:
        raise RuntimeError(f"segments of more than {size} elements")
    if offsets is not None and offsets.numel() and int(offsets.max()) > size:
        raise RuntimeError(f"segments that end after {size} elements")


def _fitting_rows(
    weight: torch.Tensor, indices: torch.Tensor, offsets: torch.Tensor | None = None
) -> None:
    """Rows of a table are read without a look at how many there are, of no bag too."""
    if offsets is not None and indices.numel() and not offsets.numel():
        raise RuntimeError(f"{indices.numel()} rows of no bag")
    if indices.numel() and weight.dim() == 2:
        if not weight.numel():
            raise RuntimeError(f"rows of a table of shape {list(weight.shape)}")
        if not (int(indices.min()) >= 0 and int(indices.max()) < weight.shape[0]):
            raise RuntimeError(f"rows are not in 0..{weight.shape[0] - 1}")


_CHANNELS = ("weight", "bias", "running_mean", "running_var")
# By operator: what checks it, and the parameters that it checks.
_CHECKS: dict[str, tuple[Callable[..., None], dict[int, str]]] = {
    "lu_unpack": (_fitting_pivots, {0: "LU_data", 1: "LU_pivots"}),
    "lu_solve": (_fitting_pivots, {1: "LU_data", 2: "LU_pivots"}),
    "linalg_lu_solve": (_fitting_pivots, {0: "LU", 1: "pivots"}),
    "linalg_ldl_solve": (_fitting_pivots, {0: "LD", 1: "pivots"}),
    "embedding_bag": (_fitting_rows, {0: "weight", 1: "indices", 2: "offsets"}),
    "embedding_renorm_": (_fitting_rows, {0: "input", 1: "indices"}),
    "segment_reduce": (_fitting_segments, {0: "data", 3: "lengths", 5: "offsets", 6: "axis"}),
    **dict.fromkeys(
        ("max_pool2d_with_indices_backward", "max_pool3d_with_indices_backward"),
        (_fitting_places, {0: "grad_output", 1: "self", 7: "indices"}),
    ),
    **dict.fromkeys(
        ("native_batch_norm", "_native_batch_norm_legit", "_batch_norm_with_update",
         "_native_batch_norm_legit_functional", "_batch_norm_with_update_functional"),
        (_fitting_channels, dict(enumerate(("input", *_CHANNELS)))),
    ),
}  # fmt: skip


# How many of the first parameters must be tensors for the check to make sense; else all.
_NEEDED = {_fitting_channels: 1, _fitting_segments: 1, _fitting_rows: 2}


@functools.cache
def _check_of(func: Any) -> tuple[Callable[..., None], dict[int, str]] | None:
    if func is torch.nn.functional.embedding_bag:  # what it calls is seen by nobody
        return _fitting_rows, {1: "weight", 0: "input", 2: "offsets"}
    return _CHECKS.get(aten_name(func) or "")


def require_fitting(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
    """Raise what the kernel should.

    Raises:
        RuntimeError: The arguments do not fit.
    """
    found = _check_of(func)
    if found is None:
        return
    check, parameters = found
    given = [args[i] if i < len(args) else kwargs.get(n) for i, n in parameters.items()]
    needed = _NEEDED.get(check, len(given))
    if all(isinstance(x, torch.Tensor) for x in given[:needed]):
        with torch._C.DisableTorchFunction():
            check(*given)
