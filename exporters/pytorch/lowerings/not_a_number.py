"""Extremes of what holds a NaN, which torch makes NaN.

ONNX Runtime's CPU kernels of ``ReduceMax``, ``ReduceLogSumExp``, ``ArgMax`` and ``MaxPool`` lose a
NaN that is not the first element. An example that holds one gets a guard around them; other models
keep the one node.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any

import torch

from exporters.pytorch.registry import decomposes

if TYPE_CHECKING:
    from collections.abc import Callable

T = torch.Tensor
nn = torch._C._nn
prims = torch.ops.prims


def holds_nan(input: torch.Tensor, *_: object, **__: object) -> bool:
    return input.is_floating_point() and bool(input.isnan().any())


def _guard(
    reduction: Callable[[T], T], input: T, neutral: float = -math.inf, largest: Any = None
) -> T:
    """``reduction(input)``, or NaN where it sees one; ``neutral`` stands for these.

    ``largest`` is the maximum over the same elements, if the reduction is none.
    """
    strange = input.isnan()
    marks = strange.to(input.dtype)
    found = (largest or reduction)(marks if neutral < 0 else -marks)
    seen = found > 0 if neutral < 0 else found < 0
    return torch.where(seen, math.nan, reduction(torch.where(strange, neutral, input)))


def _place(search: Callable[[T], T], input: T, neutral: float, seen: T) -> T:
    """Where ``search`` finds the extreme, or the first NaN where ``seen`` is one."""
    strange = input.isnan()
    first = search(torch.where(strange, -neutral, neutral))
    return torch.where(seen.isnan(), first, search(torch.where(strange, neutral, input)))


@decomposes(torch.amax, prims.amax, when=holds_nan)
def amax(input: torch.Tensor, dim: Any = (), keepdim: bool = False) -> T:
    return _guard(lambda x: x.amax(dim, keepdim), input)


@decomposes(torch.amin, prims.amin, when=holds_nan)
def amin(input: torch.Tensor, dim: Any = (), keepdim: bool = False) -> T:
    return _guard(lambda x: x.amin(dim, keepdim), input, math.inf)


@decomposes(torch.aminmax, when=holds_nan)
def aminmax(input: torch.Tensor, *, dim: int | None = None, keepdim: bool = False) -> tuple[T, T]:
    dims = () if dim is None else dim
    return input.amin(dims, keepdim), input.amax(dims, keepdim)


@decomposes(torch.logsumexp, torch.special.logsumexp, when=holds_nan)
def logsumexp(input: torch.Tensor, dim: Any, keepdim: bool = False) -> T:
    reduction = functools.partial(torch.logsumexp, dim=dim, keepdim=keepdim)
    return _guard(reduction, input, largest=lambda x: x.amax(dim, keepdim))


def _over_dim(name: str, neutral: float) -> Callable[..., Any]:
    def reduce(input: torch.Tensor, dim: int, keepdim: bool = False) -> tuple[T, T]:
        values = (torch.amax if neutral < 0 else torch.amin)(input, dim, keepdim)
        return values, getattr(input, f"arg{name}")(dim, keepdim)

    return reduce


def _over_all(name: str) -> Callable[..., Any]:
    def reduce(input: torch.Tensor) -> T:
        found: T = getattr(input, f"a{name}")()
        return found

    return reduce


def _argument(name: str, neutral: float) -> Callable[..., Any]:
    def search(input: torch.Tensor, dim: int | None = None, keepdim: bool = False) -> T:
        extreme = torch.amax if neutral < 0 else torch.amin
        seen = extreme(input, () if dim is None else dim, keepdim)
        return _place(lambda x: getattr(x, name)(dim, keepdim), input, neutral, seen)

    return search


for _name, _neutral in (("max", -math.inf), ("min", math.inf)):
    _call = getattr(torch, _name)
    decomposes(_call, when=holds_nan)(_over_dim(_name, _neutral))
    decomposes(_call, when=holds_nan)(_over_all(_name))
    decomposes(getattr(torch, f"arg{_name}"), when=holds_nan)(_argument(f"arg{_name}", _neutral))


# Running and scattered extremes, signs, logarithms of sums


def _running(name: str, neutral: float) -> Callable[..., tuple[T, T]]:
    def running(input: torch.Tensor, dim: int) -> tuple[T, T]:
        """Torch says where the last NaN so far is."""
        strange = input.isnan()
        after = input.dim() - 1 - dim % input.dim()
        places = torch.arange(input.shape[dim]).reshape([-1] + [1] * after)
        last = torch.where(strange, places, -1).cummax(dim)[0]
        values, indices = getattr(torch.where(strange, neutral, input), name)(dim)
        seen = last >= 0
        return torch.where(seen, math.nan, values), torch.where(seen, last, indices)

    return running


decomposes(torch.cummax, when=holds_nan)(_running("cummax", -math.inf))
decomposes(torch.cummin, when=holds_nan)(_running("cummin", math.inf))


def _scatters_nan(
    input: torch.Tensor, dim: int, index: torch.Tensor, source: torch.Tensor, reduce: str,
    **_: object,
) -> bool:  # fmt: skip
    return reduce in ("amax", "amin") and (holds_nan(input) or holds_nan(source))


def _scattered(name: str) -> Callable[..., T]:
    def scatter(
        input: torch.Tensor, dim: int, index: torch.Tensor, source: torch.Tensor, reduce: str, *,
        include_self: bool = True,
    ) -> T:  # fmt: skip
        neutral = -math.inf if reduce == "amax" else math.inf

        def combine(a: T, b: T) -> T:
            made: T = getattr(a, name)(dim, index, b, reduce, include_self=include_self)
            return made

        seen = combine(
            *(torch.where(x.isnan(), -neutral, neutral).to(x.dtype) for x in (input, source))
        )
        y = combine(*(torch.where(x.isnan(), neutral, x) for x in (input, source)))
        return torch.where(seen == -neutral, math.nan, y)

    return scatter


decomposes(torch.scatter_reduce, when=_scatters_nan)(_scattered("scatter_reduce"))
decomposes(torch.index_reduce, when=_scatters_nan)(_scattered("index_reduce"))


@decomposes(torch.sign, torch.sgn, prims.sign, when=holds_nan)
def sign(input: torch.Tensor) -> T:
    """0 for a NaN, which ``Sign-13`` keeps."""
    return torch.where(input.isnan(), 0.0, input).sign()


def _is_double_with_nan(input: torch.Tensor, *_: object, **__: object) -> bool:
    return input.dtype == torch.float64 and holds_nan(input)


@decomposes(torch.log_softmax, when=_is_double_with_nan)
def log_softmax(input: torch.Tensor, dim: int, dtype: torch.dtype | None = None) -> T:
    wide = input if dtype is None else input.to(dtype)
    return wide - wide.logsumexp(dim, keepdim=True)


# Maximum pools, which also take minus infinity for the lowest number


def _is_unusual(input: torch.Tensor, *_: object, **__: object) -> bool:
    return input.is_floating_point() and not bool((input > -math.inf).all())


def _max_pool(pool: Callable[..., tuple[T, T]], n: int) -> Callable[..., tuple[T, T]]:
    def guarded(
        input: torch.Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0,
        dilation: Any = 1, ceil_mode: bool = False,
    ) -> tuple[T, T]:  # fmt: skip
        """Torch says where the last NaN of a window is."""
        rest = (kernel_size, stride or kernel_size, padding, dilation, ceil_mode)
        strange, lowest = input.isnan(), torch.finfo(input.dtype).min
        places = torch.arange(1, math.prod(input.shape[-n:]) + 1).reshape(input.shape[-n:])
        last, _ = pool(strange.double() * places, *rest)
        values, indices = pool(torch.where(strange, lowest, input).clamp(min=lowest), *rest)
        values = torch.where(last > 0, math.nan, values.masked_fill(values <= lowest, -math.inf))
        return values, torch.where(last > 0, last.long() - 1, indices)

    return guarded


def _max_pool_alone(pool: Callable[..., tuple[T, T]]) -> Callable[..., T]:
    def guarded(
        input: torch.Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0,
        dilation: Any = 1, ceil_mode: bool = False,
    ) -> T:  # fmt: skip
        return pool(input, kernel_size, stride, padding, dilation, ceil_mode)[0]

    return guarded


for _n, _pool, _indexed in (
    (1, torch.max_pool1d, torch.max_pool1d_with_indices),
    (2, torch.max_pool2d, nn.max_pool2d_with_indices),
    (3, torch.max_pool3d, nn.max_pool3d_with_indices),
):
    _guarded = _max_pool(_indexed, _n)
    decomposes(_indexed, when=_is_unusual)(_guarded)
    decomposes(_pool, when=_is_unusual)(_max_pool_alone(_guarded))
