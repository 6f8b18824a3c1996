"""Products, powers and linear algebra of complex tensors.

A complex matrix ``A + iB`` acts on pairs as the real matrix ``[[A, -B], [B, A]]``: equations in the
one are equations in the other, and every eigenvalue and singular value is there twice.
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import torch

from exporters.pytorch.dtypes import is_complex
from exporters.pytorch.lowerings.arithmetic import number
from exporters.pytorch.lowerings.complex_numbers import by_parts, mul, pad, reciprocal, where
from exporters.pytorch.registry import Unlowerable, decomposes

T = torch.Tensor
aten = torch.ops.aten

for _function in (torch.index_put, torch.put, aten.index, aten.index_put):
    decomposes(_function, pairs=True)(by_parts(_function))

_REPEATED = 8  # powers up to which multiplying is cheaper than a logarithm


def _parts(x: Any) -> tuple[Any, Any]:
    if isinstance(x, T):
        return (x.real, x.imag) if x.is_complex() else (x, torch.zeros_like(x))
    return (x.real, x.imag) if is_complex(x) else (x, 0)


@decomposes(torch.full_like, aten.full_like, pairs=True)
def full_like(input: torch.Tensor, fill_value: Any, *, dtype: Any = None, **_: Any) -> T:
    wanted = dtype or input.dtype
    a, b = _parts(fill_value)
    if not wanted.is_complex:
        return torch.full_like(input.real, a, dtype=wanted)
    whole = (torch.full_like(input.real, x, dtype=wanted.to_real()) for x in (a, b))
    return torch.complex(*whole)


@decomposes(torch.fill, T.fill_, pairs=True)
def fill(input: torch.Tensor, value: Any) -> T:
    a, b = (torch.as_tensor(x, dtype=input.real.dtype) for x in _parts(value))
    return torch.complex(a.expand(input.shape), b.expand(input.shape))


@decomposes(torch.constant_pad_nd, pairs=True)
def constant_pad_nd(input: torch.Tensor, padding: Any, value: Any = 0) -> T:
    return pad(input, padding, "constant", value)


@decomposes(torch.lerp, pairs=True)
def lerp(input: torch.Tensor, end: torch.Tensor, weight: Any) -> T:
    return input + (end - input) * weight


# Products and powers


@decomposes(torch.prod, torch.ops.prims.prod, pairs=True)
def prod(input: torch.Tensor, dim: Any = None, keepdim: bool = False, **_: Any) -> T:
    """Sizes are multiplied and angles added."""
    if dim is None:
        input, dim = input.reshape(-1), 0
    dims = [dim] if isinstance(dim, int) else sorted((d % input.dim() for d in dim), reverse=True)
    if len(dims) == 1 and input.dim() and 1 < (number(input.shape[dims[0]]) or 0) <= _REPEATED:
        factors = input.unbind(dims[0])
        y = functools.reduce(mul, factors)
        return y.unsqueeze(dims[0]) if keepdim else y
    size, angle = input.abs(), input.angle()
    for d in dims if input.dim() else ():
        size = size.prod(d, keepdim=keepdim)
    return torch.polar(size, angle.sum(dims, keepdim=keepdim) if input.dim() else angle)


@decomposes(torch.cumprod, pairs=True)
def cumprod(input: torch.Tensor, dim: int, *, dtype: Any = None) -> T:
    x = input if dtype is None else input.to(dtype)
    if x.dim() and 0 < (number(x.shape[dim]) or 0) <= _REPEATED:
        return torch.stack(list(itertools.accumulate(x.unbind(dim), mul)), dim)
    return torch.polar(x.abs().cumprod(dim), x.angle().cumsum(dim))


def _repeated(x: T, count: int) -> T:
    y = x
    for _ in range(count - 1):
        y = mul(y, x)
    return y


@decomposes(torch.pow, torch.ops.prims.pow, pairs=True)
def pow(input: Any, exponent: Any) -> T:
    if isinstance(exponent, int) and 1 <= abs(exponent) <= _REPEATED:
        y = _repeated(input, abs(exponent))
        return y if exponent > 0 else reciprocal(y)
    dtype = torch.result_type(input, exponent)
    base, power = (
        x if isinstance(x, T) else torch.tensor(x, dtype=dtype) for x in (input, exponent)
    )
    base, power = base.to(dtype), power.to(dtype)
    y = mul(power, base.log()).exp()
    of_zero = torch.where(power == 0, 1.0, 0.0).to(y.real.dtype)
    return where(base == 0, of_zero, y)


@decomposes(torch.float_power, pairs=True)
def float_power(input: Any, exponent: Any) -> T:
    wide = torch.complex128
    base, power = (
        x.to(wide) if isinstance(x, T) else torch.tensor(x, dtype=wide) for x in (input, exponent)
    )
    return pow(base, power)


# Inverse functions, after Kahan: nothing cancels near the branch points


def _rotated(x: T) -> T:
    """``i x``."""
    return torch.complex(-x.imag, x.real)


def _back(x: T) -> T:
    """``-i x``."""
    return torch.complex(x.imag, -x.real)


@decomposes(torch.acos, pairs=True)
def acos(input: torch.Tensor) -> T:
    below, above = (1 - input).sqrt(), (1 + input).sqrt()
    imag = (above.real * below.imag - above.imag * below.real).asinh()
    return torch.complex(2 * torch.atan2(below.real, above.real), imag)


@decomposes(torch.asin, pairs=True)
def asin(input: torch.Tensor) -> T:
    below, above = (1 - input).sqrt(), (1 + input).sqrt()
    real = torch.atan2(input.real, below.real * above.real - below.imag * above.imag)
    return torch.complex(real, (below.real * above.imag - below.imag * above.real).asinh())


@decomposes(torch.acosh, pairs=True)
def acosh(input: torch.Tensor) -> T:
    below, above = (input - 1).sqrt(), (input + 1).sqrt()
    real = (below.real * above.real + below.imag * above.imag).asinh()
    return torch.complex(real, 2 * torch.atan2(below.imag, above.real))


@decomposes(torch.asinh, pairs=True)
def asinh(input: torch.Tensor) -> T:
    return _back(asin(_rotated(input)))


@decomposes(torch.atanh, pairs=True)
def atanh(input: torch.Tensor) -> T:
    return (input.log1p() - (-input).log1p()) * 0.5


@decomposes(torch.atan, pairs=True)
def atan(input: torch.Tensor) -> T:
    return _back(atanh(_rotated(input)))


# Linear algebra


def _as_real(x: T) -> T:
    """``[[A, -B], [B, A]]``."""
    a, b = _parts(x)
    return torch.cat([torch.cat([a, -b], -1), torch.cat([b, a], -1)], -2)


def _solved(A: T, B: T) -> T:
    upper, lower = torch.linalg.solve(_as_real(A), torch.cat(_parts(B), -2)).chunk(2, -2)
    return torch.complex(upper, lower)


@decomposes(torch.linalg.solve, pairs=True)
def solve(A: torch.Tensor, B: torch.Tensor, *, left: bool = True) -> T:
    vector = B.dim() == 1 or (A.dim() - 1 == B.dim() and list(B.shape) == list(A.shape[:-1]))
    right = B.unsqueeze(-1) if vector else B
    y = _solved(A, right) if left else _solved(A.mT, right.mT).mT
    return y.squeeze(-1) if vector else y


@decomposes(torch.linalg.solve_ex, pairs=True)
def solve_ex(
    A: torch.Tensor, B: torch.Tensor, *, left: bool = True, check_errors: bool = False
) -> tuple[T, T]:
    return solve(A, B, left=left), torch.zeros(A.shape[:-2], dtype=torch.int32)


@decomposes(torch.linalg.inv_ex, pairs=True)
def inv_ex(A: torch.Tensor, *, check_errors: bool = False) -> tuple[T, T]:
    return inv(A), torch.zeros(A.shape[:-2], dtype=torch.int32)


@decomposes(torch.linalg.tensorsolve, pairs=True)
def tensorsolve(A: torch.Tensor, B: torch.Tensor, dims: Any = None) -> T:
    if dims is not None:
        raise Unlowerable("tensorsolve of complex tensors with dims")
    x = solve(A.reshape(B.numel(), -1), B.reshape(-1))
    return x.reshape(A.shape[B.dim() :])


@decomposes(torch.linalg.tensorinv, pairs=True)
def tensorinv(A: torch.Tensor, ind: int = 2) -> T:
    size = math.prod(A.shape[ind:])
    return inv(A.reshape(-1, size)).reshape(*A.shape[ind:], *A.shape[:ind])


@decomposes(torch.linalg.inv, torch.inverse, pairs=True)
def inv(A: torch.Tensor) -> T:
    size = A.shape[-1]
    left = torch.linalg.inv(_as_real(A))[..., :size]
    return torch.complex(left[..., :size, :], left[..., size:, :])


@decomposes(torch.linalg.solve_triangular, pairs=True)
def solve_triangular(
    input: torch.Tensor, B: torch.Tensor, *, upper: bool, left: bool = True,
    unitriangular: bool = False,
) -> T:  # fmt: skip
    a = input.triu(int(unitriangular)) if upper else input.tril(-int(unitriangular))
    if unitriangular:
        a = a + torch.eye(input.shape[-1], dtype=input.real.dtype)
    return _solved(a, B) if left else _solved(a.mT, B.mT).mT


@decomposes(torch.linalg.eigvalsh, pairs=True)
def eigvalsh(A: torch.Tensor, UPLO: str = "L") -> T:
    half = A.tril(-1) if UPLO.upper() == "L" else A.triu(1)
    real = half.real + half.real.mT
    whole = torch.complex(
        real + torch.diag_embed(A.real.diagonal(0, -2, -1)), half.imag - half.imag.mT
    )
    return torch.linalg.eigvalsh(_as_real(whole))[..., ::2]


@decomposes(torch.linalg.svdvals, pairs=True)
def svdvals(A: torch.Tensor, *, driver: object = None) -> T:
    return torch.linalg.svdvals(_as_real(A))[..., ::2]
