"""``torch.special``: error functions, the gamma family, the zeta function.

ONNX has none of them but ``Erf``. They are computed in float64, by formulas that hold everywhere:
sums of few terms over a table, and recurrences to where an asymptotic series is exact.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any

import torch

from exporters.pytorch.lowerings import transcendental
from exporters.pytorch.registry import decomposes

if TYPE_CHECKING:
    from collections.abc import Callable

Tensor = torch.Tensor
prims = torch.ops.prims


def in_float64(body: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Compute in float64, and return the operands' dtype, or floats for integers."""

    @functools.wraps(body)
    def wide(*operands: Any) -> Tensor:
        tensors = [x for x in operands if isinstance(x, torch.Tensor)]
        dtype = functools.reduce(torch.promote_types, [x.dtype for x in tensors])
        if not dtype.is_floating_point:
            dtype = torch.get_default_dtype()
        return body(*(x.double() if isinstance(x, torch.Tensor) else x for x in operands)).to(
            dtype
        )

    return wide


def polynomial(x: Tensor, coefficients: Any) -> Tensor:
    """``c[0] + c[1] x + c[2] x^2 + ...``."""
    result: Any = coefficients[-1]
    for c in coefficients[-2::-1]:
        result = result * x + c
    return result


# Error functions

_STEP = 0.5  # of the sum: its error is exp(-(pi / step)^2)
_NODES = torch.arange(1, 14, dtype=torch.float64) * _STEP


def _scaled_complement(x: Tensor) -> Tensor:
    """``exp(x^2) erfc(x)`` for ``x >= 0.5``: a rational sum, and the residue of its pole."""
    square = (x * x).unsqueeze(-1)
    terms = (torch.exp(-_NODES * _NODES) / (square + _NODES * _NODES)).sum(-1)
    total = (_STEP * x / math.pi) * (1 / (x * x) + 2 * terms)
    near = x.clamp(max=math.pi / _STEP)
    residue = 2 * torch.exp(near * near) / (1 - torch.exp(2 * math.pi * near / _STEP))
    return torch.where(x < math.pi / _STEP, total + residue, total)


def _erfc(x: Tensor) -> Tensor:
    size = x.abs()
    tail = torch.exp(-size * size) * _scaled_complement(size.clamp(min=0.5, max=30.0))
    tail = torch.where(x < 0, 2 - tail, tail)
    return torch.where(size < 0.5, 1 - torch.erf(x), tail)


@decomposes(torch.erfc, torch.special.erfc, prims.erfc)
@in_float64
def erfc(input: Tensor) -> Tensor:
    return _erfc(input)


def _erfcx(x: Tensor) -> Tensor:
    size = x.abs()
    large = _scaled_complement(size.clamp(min=0.5))
    large = torch.where(x < 0, 2 * torch.exp(x * x) - large, large)
    large = torch.where(size == math.inf, torch.where(x < 0, math.inf, 0.0), large)
    small = torch.exp(x * x) * (1 - torch.erf(x))
    return torch.where(size < 0.5, small, large)


@decomposes(torch.special.erfcx, prims.erfcx)
@in_float64
def erfcx(input: Tensor) -> Tensor:
    return _erfcx(input)


@decomposes(torch.special.ndtr)
@in_float64
def ndtr(input: Tensor) -> Tensor:
    return 0.5 * _erfc(-input * math.sqrt(0.5))


@decomposes(torch.special.log_ndtr)
@in_float64
def log_ndtr(input: Tensor) -> Tensor:
    t = input * math.sqrt(0.5)
    below = torch.log(_erfcx(-t) / 2) - t * t
    return torch.where(input < -1, below, torch.log1p(-_erfc(t) / 2))


def _inverse_of_tail(tail: Tensor, size: Tensor) -> Tensor:
    """``y`` with ``erfc(y) = tail``, ``erf(y) = size``: Halley's method, Winitzki's guess."""
    a = 0.147
    log = torch.log(tail * (2 - tail))
    first = 2 / (math.pi * a) + log / 2
    y = torch.sqrt(torch.sqrt(first * first - log / a) - first)
    for _ in range(3):
        error = torch.where(size < 0.5, torch.erf(y) - size, tail - _erfc(y))
        newton = error * torch.exp(y * y) * (math.sqrt(math.pi) / 2)
        y = y - newton / (1 + y * newton)
    return torch.where(size == 0, 0.0, torch.where(tail == 0, math.inf, y))


def _erfinv(x: Tensor) -> Tensor:
    size = x.abs()
    inverse = _inverse_of_tail(1 - size, size)
    return torch.where(x < 0, -inverse, inverse)


@decomposes(torch.erfinv, torch.special.erfinv, prims.erf_inv)
@in_float64
def erfinv(input: Tensor) -> Tensor:
    return _erfinv(input)


@decomposes(torch.special.ndtri, prims.ndtri)
@in_float64
def ndtri(input: Tensor) -> Tensor:
    """The inverse of :func:`ndtr`, from the nearer tail."""
    tail = 2 * torch.minimum(input, 1 - input)
    inverse = math.sqrt(2) * _inverse_of_tail(tail, 1 - tail)
    return torch.where(input < 0.5, -inverse, inverse)


# The gamma family

_SHIFT = 10  # from here on the asymptotic series reach float64's precision
_BERNOULLI = (1 / 6, -1 / 30, 1 / 42, -1 / 30, 5 / 66, -691 / 2730, 7 / 6, -3617 / 510)
_STIRLING = [b / (2 * k * (2 * k - 1)) for k, b in enumerate(_BERNOULLI, 1)]
_DIGAMMA = [b / (2 * k) for k, b in enumerate(_BERNOULLI, 1)]
_STEPS = torch.arange(_SHIFT, dtype=torch.float64)


def _log_gamma_positive(x: Tensor) -> Tensor:
    small = x < _SHIFT
    shifted = torch.where(small, x + _SHIFT, x)
    factors = (torch.where(small, x, 1.0).unsqueeze(-1) + _STEPS).prod(-1)
    inverse = 1 / shifted
    series = inverse * polynomial(inverse * inverse, _STIRLING)
    result = (shifted - 0.5) * torch.log(shifted) - shifted + 0.5 * math.log(2 * math.pi) + series
    result = torch.where(small, result - torch.log(factors), result)
    return torch.where(x == math.inf, x, result)


def _log_gamma(x: Tensor) -> Tensor:
    """By Euler's reflection below 1/2; infinite at the poles."""
    mirrored = _log_gamma_positive(torch.where(x < 0.5, 1 - x, x))
    reflected = (
        math.log(math.pi) - torch.log(torch.sin(math.pi * (x - x.round())).abs()) - mirrored
    )
    pole = (x <= 0) & (x == x.floor())
    return torch.where(pole, math.inf, torch.where(x < 0.5, reflected, mirrored))


@decomposes(torch.lgamma, torch.special.gammaln, prims.lgamma)
@in_float64
def lgamma(input: Tensor) -> Tensor:
    return _log_gamma(input)


def _digamma(x: Tensor) -> Tensor:
    positive = torch.where(x < 0.5, 1 - x, x)
    small = positive < _SHIFT
    shifted = torch.where(small, positive + _SHIFT, positive)
    inverse = 1 / (shifted * shifted)
    result = torch.log(shifted) - 0.5 / shifted - inverse * polynomial(inverse, _DIGAMMA)
    steps = (1 / (torch.where(small, positive, 1.0).unsqueeze(-1) + _STEPS)).sum(-1)
    result = torch.where(small, result - steps, result)
    rest = x - torch.round(x)
    reflected = result - math.pi * torch.cos(math.pi * rest) / torch.sin(math.pi * rest)
    result = torch.where(x < 0.5, reflected, result)
    result = torch.where((x < 0) & (x == x.floor()), math.nan, result)
    return torch.where(x == 0, -math.inf * torch.where(torch.signbit(x), -1.0, 1.0), result)


@decomposes(torch.digamma, torch.special.digamma, torch.special.psi, prims.digamma)
@in_float64
def digamma(input: Tensor) -> Tensor:
    return _digamma(input)


_ZETA_TERMS = 48  # summed one by one: the series after them needs an argument above 9
_ZETA_STEPS = torch.arange(_ZETA_TERMS, dtype=torch.float64)


def _zeta(s: Tensor, q: Tensor) -> Tensor:
    """Hurwitz's zeta function by the formula of Euler and Maclaurin."""
    s, q = _both(s, q)
    total = torch.pow(q.unsqueeze(-1) + _ZETA_STEPS, -s.unsqueeze(-1)).sum(-1)
    end = q + _ZETA_TERMS
    power = torch.pow(end, -s)
    total = total + power * end / (s - 1) + power / 2
    rising, factorial = s, 2.0
    for k, b in enumerate(_BERNOULLI, 1):
        total = total + b / factorial * rising * power * torch.pow(end, 1.0 - 2 * k)
        rising = rising * (s + (2 * k - 1)) * (s + 2 * k)
        factorial *= (2 * k + 1) * (2 * k + 2)
    pole = (q <= 0) & (q == q.floor())
    total = torch.where(pole, math.inf, torch.where(q == math.inf, 0.0, total))
    total = torch.where((q <= 0) & ~pole & (s != s.floor()), math.nan, total)
    return torch.where(s == 1, math.inf, torch.where(s < 1, math.nan, total))


@decomposes(torch.special.zeta, prims.zeta)
def zeta(input: Any, other: Any) -> Tensor:
    numbers = [
        x if isinstance(x, torch.Tensor) else torch.tensor(float(x)) for x in (input, other)
    ]
    return in_float64(_zeta)(*numbers)


def _polygamma(n: int, x: Tensor) -> Tensor:
    order = torch.tensor(float(n + 1), dtype=torch.float64)
    return (-1.0) ** (n + 1) * math.factorial(n) * _zeta(order, x)


def _trigamma(x: Tensor) -> Tensor:
    """By reflection below 1/2, as torch computes it."""
    positive = _polygamma(1, torch.where(x < 0.5, 1 - x, x))
    return torch.where(x < 0.5, (math.pi / torch.sin(math.pi * x)) ** 2 - positive, positive)


@decomposes(torch.Tensor.polygamma)
def polygamma_method(input: Tensor, n: int) -> Tensor:
    if n < 2:
        return in_float64(_trigamma if n else _digamma)(input)
    return in_float64(lambda x: _polygamma(n, x))(input)


@decomposes(torch.polygamma, torch.special.polygamma)
def polygamma(n: int, input: Tensor) -> Tensor:
    return polygamma_method(input, n)


_NEAR, _WEIGHT = (torch.from_numpy(a) for a in transcendental.quadrature(128))
_TERMS = torch.arange(1, 321, dtype=torch.float64)
_LARGE_ORDER = 20.0


def _gamma_series(a: Tensor, x: Tensor) -> Tensor:
    """The power series, all terms of which are positive, for ``a < 20`` and ``x < 150``."""
    logs = torch.log(x.unsqueeze(-1) / (a.unsqueeze(-1) + _TERMS)).cumsum(-1)
    total = 1 + torch.exp(logs).sum(-1)
    return torch.exp(a * torch.log(x) - x - _log_gamma_positive(a + 1)) * total


def _gamma_integral(a: Tensor, x: Tensor) -> Tensor:
    """The integral over the bell of the integrand, for ``a >= 20``."""
    width = 12 * torch.sqrt(a)
    low = (a - width).clamp(min=0)
    high = torch.maximum(torch.minimum(x, a + width + 40), low)
    t = low.unsqueeze(-1) + (high - low).unsqueeze(-1) * _NEAR
    curve = torch.exp(
        (a - 1).unsqueeze(-1) * torch.log(t) - t - _log_gamma_positive(a).unsqueeze(-1)
    )
    return (curve * _WEIGHT).sum(-1) * (high - low)


def _lower_gamma(a: Tensor, x: Tensor) -> Tensor:
    """The regularised lower incomplete gamma function."""
    inside = (x > 0) & (a > 0) & (x < math.inf) & (a < math.inf)
    base, order = torch.where(inside, x, 1.0), torch.where(inside, a, 1.0)
    series = _gamma_series(order.clamp(max=_LARGE_ORDER), base.clamp(max=150))
    series = torch.where(base > 150, 1.0, series)
    integral = _gamma_integral(order.clamp(min=_LARGE_ORDER), base)
    result = torch.where(order < _LARGE_ORDER, series, integral).clamp(max=1.0)
    result = torch.where((x == 0) | (a == math.inf), 0.0, torch.where(x == math.inf, 1.0, result))
    result = torch.where((a == 0) & (x > 0), 1.0, result)
    invalid = (x < 0) | (a < 0) | ((a == 0) & (x == 0)) | ((a == math.inf) & (x == math.inf))
    return torch.where(invalid | x.isnan() | a.isnan(), math.nan, result)


def _both(a: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    first, second = torch.broadcast_tensors(a, x)  # type: ignore[no-untyped-call]
    return first, second


@decomposes(torch.igamma, torch.special.gammainc, prims.igamma)
@in_float64
def igamma(input: Tensor, other: Tensor) -> Tensor:
    return _lower_gamma(*_both(input, other))


@decomposes(torch.igammac, torch.special.gammaincc, prims.igammac)
@in_float64
def igammac(input: Tensor, other: Tensor) -> Tensor:
    return 1 - _lower_gamma(*_both(input, other))
