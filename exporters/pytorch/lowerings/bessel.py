"""``torch.special``: Bessel and Airy functions.

Below a bound, Bessel's integrals by the trapezoidal rule, which converges geometrically for
periodic integrands: means over a table. Above it, Hankel's asymptotic series.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from exporters.pytorch.lowerings.special import in_float64, polynomial
from exporters.pytorch.registry import decomposes

Tensor = torch.Tensor
prims = torch.ops.prims

_BOUND = 30.0
_POINTS = 80
_ANGLES = (torch.arange(_POINTS, dtype=torch.float64) + 0.5) * (math.pi / _POINTS)
_COSINES, _SINES = torch.cos(_ANGLES), torch.sin(_ANGLES)
_EULER = 0.57721566490153286061


def _hankel_terms(order: float, count: int) -> list[float]:
    """``a_k`` of the series in ``1 / x``."""
    terms = [1.0]
    for k in range(1, count):
        terms.append(terms[-1] * (4 * order * order - (2 * k - 1) ** 2) / (8 * k))
    return terms


# Modified Bessel functions of the first kind


def _scaled_i(x: Tensor, order: int) -> Tensor:
    """``exp(-|x|) I(x)``."""
    size = x.abs()
    near = size.clamp(max=_BOUND).unsqueeze(-1)
    weight = torch.ones_like(_COSINES) if order == 0 else _COSINES
    inner = (torch.exp(near * (_COSINES - 1)) * weight).mean(-1)
    far = size.clamp(min=_BOUND)
    signed = [(-1) ** k * a for k, a in enumerate(_hankel_terms(order, 16))]
    outer = polynomial(1 / far, signed) / torch.sqrt(2 * math.pi * far)
    result = torch.where(size < _BOUND, inner, outer)
    return torch.where(x < 0, -result, result) if order else result


@decomposes(torch.i0, torch.special.i0, torch.special.modified_bessel_i0, prims.bessel_i0)
@in_float64
def i0(input: Tensor) -> Tensor:
    return _scaled_i(input, 0) * torch.exp(input.abs())


@decomposes(torch.special.i0e, prims.bessel_i0e)
@in_float64
def i0e(input: Tensor) -> Tensor:
    return _scaled_i(input, 0)


@decomposes(torch.special.i1, torch.special.modified_bessel_i1, prims.bessel_i1)
@in_float64
def i1(input: Tensor) -> Tensor:
    return _scaled_i(input, 1) * torch.exp(input.abs())


@decomposes(torch.special.i1e, prims.bessel_i1e)
@in_float64
def i1e(input: Tensor) -> Tensor:
    return _scaled_i(input, 1)


# Modified Bessel functions of the second kind


_SPREAD = torch.arange(97, dtype=torch.float64) / 96
_TRAPEZOID = torch.ones_like(_SPREAD) / 96
_TRAPEZOID[0] = _TRAPEZOID[-1] = 0.5 / 96
_EVEN = sum(torch.cos(2 * k * _ANGLES) / k for k in range(1, 24))
_ODD = sum(torch.cos((2 * k + 1) * _ANGLES) * (2 * k + 1) / (k * (k + 1)) for k in range(1, 24))


def _scaled_k(x: Tensor, order: float) -> Tensor:
    """``exp(x) K(x)`` for ``x >= 1``: the integral of ``exp(x - x cosh t) cosh(order t)``."""
    x = x.unsqueeze(-1)
    end = torch.acosh(1 + 40 / x)  # the rest is less than exp(-40)
    t = end * _SPREAD
    curve = torch.exp(-x * (torch.cosh(t) - 1)) * torch.cosh(order * t)
    return (curve * _TRAPEZOID).sum(-1) * end.squeeze(-1)


def _small_k(x: Tensor, order: int) -> Tensor:
    """``K(x)`` for ``x < 2``, by Neumann's series of modified functions of the first kind."""
    curve = torch.exp(x.unsqueeze(-1) * _COSINES)
    log = torch.log(x / 2) + _EULER
    if order == 0:
        return -log * curve.mean(-1) + 2 * (curve * _EVEN).mean(-1)
    first = (curve * _COSINES).mean(-1)
    return curve.mean(-1) / x + (log - 1) * first - (curve * _ODD).mean(-1)


def _k(x: Tensor, order: int, *, scaled: bool) -> Tensor:
    small = _small_k(x.clamp(min=0, max=2), order)
    large = _scaled_k(x.clamp(min=2), order)
    decay = torch.exp(-x)
    small = small / decay if scaled else small
    large = large if scaled else large * decay
    result = torch.where(x < 2, small, large)
    result = torch.where(x == math.inf, 0.0, result)
    return torch.where(x == 0, math.inf, torch.where(x < 0, math.nan, result))


@decomposes(torch.special.modified_bessel_k0)
@in_float64
def k0(input: Tensor) -> Tensor:
    return _k(input, 0, scaled=False)


@decomposes(torch.special.modified_bessel_k1)
@in_float64
def k1(input: Tensor) -> Tensor:
    return _k(input, 1, scaled=False)


@decomposes(torch.special.scaled_modified_bessel_k0)
@in_float64
def k0e(x: Tensor) -> Tensor:
    return _k(x, 0, scaled=True)


@decomposes(torch.special.scaled_modified_bessel_k1)
@in_float64
def k1e(x: Tensor) -> Tensor:
    return _k(x, 1, scaled=True)


# Bessel functions


def _far(x: Tensor, order: float) -> tuple[Tensor, Tensor, Tensor]:
    """Amplitude and the cosine and sine coefficients of Hankel's series."""
    terms = _hankel_terms(order, 20)
    inverse = 1 / x
    square = inverse * inverse
    p = polynomial(square, [(-1) ** k * a for k, a in enumerate(terms[::2])])
    q = inverse * polynomial(square, [(-1) ** k * a for k, a in enumerate(terms[1::2])])
    return torch.sqrt(2 / (math.pi * x)), p, q


def _rotated(x: Tensor, order: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine of ``x - order pi / 2 - pi / 4``, without subtracting from a large ``x``."""
    cosine, sine = torch.cos(x), torch.sin(x)
    half = math.sqrt(0.5)
    c, s = half * (cosine + sine), half * (sine - cosine)
    return (c, s) if order == 0 else (s, -c)


def _j(x: Tensor, order: int) -> Tensor:
    size = x.abs()
    near = size.clamp(max=_BOUND).unsqueeze(-1)
    if order == 0:
        inner = torch.cos(near * _SINES).mean(-1)
    else:
        inner = (torch.sin(near * _SINES) * _SINES).mean(-1)
    far = size.clamp(min=_BOUND)
    scale, p, q = _far(far, order)
    c, s = _rotated(far, order)
    result = torch.where(size < _BOUND, inner, scale * (p * c - q * s))
    return torch.where(x < 0, -result, result) if order else result


@decomposes(torch.special.bessel_j0, prims.bessel_j0)
@in_float64
def j0(input: Tensor) -> Tensor:
    return _j(input, 0)


@decomposes(torch.special.bessel_j1, prims.bessel_j1)
@in_float64
def j1(input: Tensor) -> Tensor:
    return _j(input, 1)


_EVEN_SIGNED = sum((-1) ** k * torch.cos(2 * k * _ANGLES) / k for k in range(1, 36))
_ODD_SIGNED = sum(
    (-1) ** k * torch.sin((2 * k + 1) * _ANGLES) * (2 * k + 1) / (k * (k + 1))
    for k in range(1, 36)
)


def _y(x: Tensor, order: int) -> Tensor:
    """Neumann's series of functions of the first kind, all taken from one table."""
    near = x.clamp(min=0, max=_BOUND)
    log = torch.log(near / 2) + _EULER
    phase = near.unsqueeze(-1) * _SINES
    if order == 0:
        inner = 2 * log * _j(near, 0) - 4 * (torch.cos(phase) * _EVEN_SIGNED).mean(-1)
    else:
        series = (torch.sin(phase) * _ODD_SIGNED).mean(-1)
        inner = 2 * ((log - 1) * _j(near, 1) - _j(near, 0) / near - series)
    far = x.clamp(min=_BOUND)
    scale, p, q = _far(far, order)
    c, s = _rotated(far, order)
    result = torch.where(x < _BOUND, inner / math.pi, scale * (p * s + q * c))
    return torch.where(x == 0, -math.inf, torch.where(x < 0, math.nan, result))


@decomposes(torch.special.bessel_y0)
@in_float64
def y0(input: Tensor) -> Tensor:
    return _y(input, 0)


@decomposes(torch.special.bessel_y1)
@in_float64
def y1(input: Tensor) -> Tensor:
    return _y(input, 1)


@decomposes(torch.special.spherical_bessel_j0, prims.spherical_bessel_j0)
@in_float64
def spherical_j0(x: Tensor) -> Tensor:
    value = torch.where(x == 0, 1.0, torch.sin(x) / x)
    return torch.where(x.abs() == math.inf, 0.0, value)


# The Airy function


def _airy_series(x: Tensor) -> Tensor:
    """Maclaurin's series, for ``|x| < 6``."""
    cube = x * x * x
    first: Any = 0.0
    second: Any = 0.0
    term = other = torch.ones_like(x)
    for k in range(1, 40):
        first, second = first + term, second + other
        term = term * cube / ((3 * k - 1) * (3 * k))
        other = other * cube / ((3 * k) * (3 * k + 1))
    return 0.35502805388781723926 * first - 0.25881940379280679841 * x * second


@decomposes(torch.special.airy_ai)
@in_float64
def airy_ai(x: Tensor) -> Tensor:
    """Of order 1/3 modified Bessel functions above 2, by Hankel's series below -6."""
    series = _airy_series(x.clamp(min=-6.0, max=2.0))
    above = x.clamp(min=2.0)
    angle = above * torch.sqrt(above) * (2 / 3)
    positive = torch.sqrt(above / 3) / math.pi * _scaled_k(angle, 1 / 3) * torch.exp(-angle)
    below = (-x).clamp(min=6.0)
    phase = below * torch.sqrt(below) * (2 / 3)
    _, p, q = _far(phase, 1 / 3)
    shifted = phase - math.pi / 4
    negative = (torch.cos(shifted) * p - torch.sin(shifted) * q) / (
        math.sqrt(math.pi) * torch.sqrt(torch.sqrt(below))
    )
    return torch.where(x > 2.0, positive, torch.where(x < -6.0, negative, series))
