"""A call's arguments in other forms."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from exporters.pytorch.specialisation import tensors_of

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["plain_arguments", "repaired_arguments"]


def plain_arguments(
    args: Sequence[Any], kwargs: dict[str, Any]
) -> tuple[Sequence[Any], dict[str, Any]]:
    """The arguments with Python's numbers in place of NumPy's: ``x[np.int64(1)]`` is ``x[1]``."""
    if any(map(_holds_any, args)):
        args = [_plain(x) for x in args]
    if kwargs and any(map(_holds_any, kwargs.values())):
        kwargs = {k: _plain(x) for k, x in kwargs.items()}
    return args, kwargs


def _holds_any(x: Any) -> bool:
    kind = type(x)
    if kind is tuple or kind is list:
        return any(map(_holds_any, x))
    if kind is slice:
        return any(isinstance(i, np.generic) for i in (x.start, x.stop, x.step))
    return isinstance(x, np.generic)


def _plain(x: Any) -> Any:
    kind = type(x)
    if kind is tuple or kind is list:
        return kind(map(_plain, x))
    if kind is slice:
        return slice(_plain(x.start), _plain(x.stop), _plain(x.step))
    return x.item() if isinstance(x, np.generic) else x


def repaired_arguments(
    error: Exception, args: Any, kwargs: dict[str, Any]
) -> tuple[Any, dict[str, Any]] | None:
    """Other arguments for a call that failed, of which only the result's kind matters."""
    if any(told in str(error) for told in ("ZeroDivisionError", "greater than 0")):
        return _without_zeros(args), _without_zeros(kwargs)
    if not all(t.numel() for t in tensors_of((args, kwargs))):
        return _filled(args), _filled(kwargs)
    if isinstance(error, IndexError) and len(args) > 1:
        return (args[0], *_at_the_start(tuple(args[1:]))), kwargs
    return None


def _at_the_start(x: Any) -> Any:
    """``x`` with 0 for every place."""

    def first(t: Any) -> Any:
        if isinstance(t, torch.Tensor):
            places = not t.is_floating_point() and t.dtype != torch.bool
            return torch.zeros_like(t) if places else t
        return 0 if type(t) is int else t

    return torch.utils._pytree.tree_map(first, x)


def _without_zeros(x: Any) -> Any:
    """``x`` with 1 in the place of zeros: to divide by, or as a size."""

    def fill(t: Any) -> Any:
        if isinstance(t, torch.Tensor):
            return torch.where(t == 0, 1, t)
        return 1 if type(t) in (int, float) and t == 0 else t

    return torch.utils._pytree.tree_map(fill, x)


def _filled(x: Any) -> Any:
    """``x`` with a zero in every tensor that has no elements."""

    def fill(t: Any) -> Any:
        if not isinstance(t, torch.Tensor) or t.numel():
            return t
        return t.new_zeros([max(n, 1) for n in t.shape])

    return torch.utils._pytree.tree_map(fill, x)
