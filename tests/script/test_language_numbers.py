"""Numbers and `math`: eager code and ONNX Runtime agree on all ways through."""

from __future__ import annotations

import math
from math import hypot, sqrt

from tests.script.language import Programs

program = Programs()


@program
def minmaxabs(x):
    n = int((x > 0).sum())
    m = int((x < 0).sum())
    return (
        min(n, m),
        max(n, m, 2),
        abs(n - m),
        min(x[0].item(), 0.5),
        divmod(n * 7 + 3, m + 2),
        round(x.sum().item(), 1),
        pow(n, 2),
    )


@program
def math_trigonometry(x):
    s = x.sum().item()
    return (
        math.sqrt(abs(s)),
        math.floor(s / 2),
        math.exp(-abs(s)),
        math.hypot(s, 1.0),
        math.atan2(s, 2.0),
        math.log1p(abs(s)),
        math.pi * s,
        math.ceil(s),
        math.fabs(s),
        math.copysign(2.0, s),
        math.isclose(s, 3.0),
    )


@program
def math_hyperbolic(x):
    s = x.sum().item() / 20
    return (
        math.sinh(s),
        math.cosh(s),
        math.asin(s / 2),
        math.acos(s / 2),
        math.atan(s),
        math.asinh(s),
        math.tan(s),
        math.erf(s),
        math.expm1(s),
        math.degrees(s),
        math.radians(s),
        math.pow(abs(s), 1.5),
        math.log(abs(s) + 1, 2),
        math.log(abs(s) + 1),
        sqrt(abs(s)),
        hypot(s, s),
        math.fmod(s, 0.3),
        math.trunc(s * 10),
        math.modf(s),
    )


@program
def math_integers(x):
    n = int(x.abs().sum().item()) + 2
    return (
        math.gcd(n, 6),
        math.isqrt(n),
        math.lcm(n, 4),
        math.prod([n, 2, 3]),
        math.fsum([n, 0.5]),
        math.comb(5, 2),
    )


@program
def math_in_a_loop(x):
    a = x.abs().sum().item() + 1
    t = 0.0
    for v in x:
        t = t + math.sqrt(a) * math.log(a) + v.item()
    return t


@program
def math_signs(x):
    s = x.sum().item()
    return math.log1p(abs(s)), math.copysign(2.0, s)


@program
def math_sums(x):
    n = int(x.abs().sum().item()) + 2
    return math.prod([n, 2, 3]), math.fsum([n, 0.5]), x


@program
def truth_by_identity(x):
    flag, n = bool(x.sum() > 0), 0
    for v in x:
        big = bool(v > 2)
        if big is True:
            n += 1
        elif flag is not False:
            n += 10
    return x + n


@program
def whole_numbers(x):
    total = x.sum().item()
    if total.is_integer():
        return x
    return x * total.real + total.conjugate() + total.imag


test_one_way, test_every_way = program.tests()
