from __future__ import annotations

import pytest
import torch

from tests.pytorch.lowerings.cases import (
    ALL,
    ALL_FLOATS,
    check_case,
    check_opsets,
    check_small_integers,
    f64,
    op_cases,
    supported_rows,
)
from tests.pytorch.opinfo import OpCase, check_call

EAGER = {"atol": 1e-6, "why": "torch's rational approximation is good to 1e-6 beyond 5"}
CASES = [
    *op_cases(
        """
        digamma erf erfc erfinv i0 igamma igammac lgamma mvlgamma.mvlgamma_p_1
        mvlgamma.mvlgamma_p_3 mvlgamma.mvlgamma_p_5 special.airy_ai special.bessel_j1
        special.bessel_y0 special.chebyshev_polynomial_t special.chebyshev_polynomial_u
        special.chebyshev_polynomial_v special.chebyshev_polynomial_w special.entr special.erfcx
        special.hermite_polynomial_h special.hermite_polynomial_he special.i0e special.i1
        special.i1e special.laguerre_polynomial_l special.legendre_polynomial_p special.log_ndtr
        special.modified_bessel_i0 special.modified_bessel_i1 special.modified_bessel_k0
        special.modified_bessel_k1 special.ndtr special.ndtri special.scaled_modified_bessel_k0
        special.scaled_modified_bessel_k1 special.shifted_chebyshev_polynomial_t
        special.shifted_chebyshev_polynomial_u special.shifted_chebyshev_polynomial_v
        special.shifted_chebyshev_polynomial_w special.spherical_bessel_j0 special.zeta
        """,
        ALL,
    ),
    *op_cases("special.bessel_j0 special.bessel_y1", tuple(d for d in ALL if d != f64)),
    *op_cases("special.bessel_j0 special.bessel_y1", (f64,), **EAGER),
]
# At the poles torch's value for integers is that of a sine that rounding keeps from 0.
POLYGAMMA = op_cases(
    """
    polygamma.polygamma_n_0 polygamma.polygamma_n_1 polygamma.polygamma_n_2
    polygamma.polygamma_n_3 polygamma.polygamma_n_4 special.polygamma.special_polygamma_n_0
    """,
    ALL_FLOATS,
)


@pytest.mark.parametrize(("case", "dtype"), supported_rows([*CASES, *POLYGAMMA]))
def test_matches_eager(case: OpCase, dtype: torch.dtype) -> None:
    check_case(case, dtype)


@pytest.mark.parametrize("case", [*CASES, *POLYGAMMA], ids=lambda c: c.name)
def test_matches_eager_in_other_opsets(case: OpCase) -> None:
    check_opsets(case)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_matches_eager_for_small_integers(case: OpCase) -> None:
    check_small_integers(case)


D = torch.float64
LINE = torch.cat([torch.linspace(-20, 20, 801, dtype=D), torch.logspace(-8, 2, 60, dtype=D)])
BESIDE = (LINE - LINE.round()).abs()
LINE = LINE[(BESIDE == 0) | (BESIDE > 1e-9)]  # torch's digamma is 1e-3 off right beside a pole
POSITIVE = LINE[LINE > 0]
UNIT = torch.cat([torch.linspace(-1, 1, 401, dtype=D), 1 - torch.logspace(-15, -1, 60, dtype=D)])
# Function, arguments, relative and absolute tolerance of the comparison in float64.
GRIDS = {
    "erfc": (torch.erfc, LINE, 1e-12, 0),
    "erfcx": (torch.special.erfcx, LINE.clamp(min=-20), 1e-12, 0),
    "log_ndtr": (torch.special.log_ndtr, LINE, 1e-12, 0),
    "erfinv": (torch.erfinv, UNIT, 1e-12, 0),
    "ndtri": (torch.special.ndtri, (UNIT + 1) / 2, 1e-11, 1e-13),
    "lgamma": (torch.lgamma, LINE, 1e-10, 1e-10),
    "gammaln": (torch.special.gammaln, POSITIVE, 1e-12, 1e-12),
    "digamma": (torch.digamma, LINE, 1e-10, 1e-10),
    "psi": (torch.special.psi, POSITIVE, 1e-12, 1e-12),
    "i0": (torch.i0, LINE, 1e-12, 0),
    "i0e": (torch.special.i0e, LINE, 1e-12, 0),
    "i1": (torch.special.i1, LINE, 1e-12, 1e-15),
    "i1e": (torch.special.i1e, LINE, 1e-12, 1e-15),
    "k0": (torch.special.modified_bessel_k0, POSITIVE, 1e-11, 0),
    "k1": (torch.special.modified_bessel_k1, POSITIVE, 1e-11, 0),
    "spherical_j0": (torch.special.spherical_bessel_j0, LINE, 1e-12, 1e-15),
    "erf": (torch.special.erf, LINE, 1e-13, 0),
}


@pytest.mark.parametrize("name", GRIDS)
def test_special_functions_reach_float64(name: str) -> None:
    function, x, rtol, atol = GRIDS[name]
    check_call(lambda x: function(x), (x,), rtol=rtol, atol=atol)


@pytest.mark.parametrize("name", ["gammainc", "gammaincc"])
def test_incomplete_gamma_functions_hold_everywhere(name: str) -> None:
    a = torch.tensor([0.1, 1.0, 5.5, 19.0, 21.0, 100.0, 1000.0], dtype=D)
    x = torch.tensor([0.0, 1e-3, 1.0, 7.0, 40.0, 149.0, 160.0, 1000.0, torch.inf], dtype=D)
    a, x = torch.meshgrid(a, x, indexing="ij")
    function = getattr(torch.special, name)
    check_call(lambda a, x: function(a, x), (a.contiguous(), x.contiguous()), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "name", ["erf", "asin", "acos", "atan", "acosh", "asinh", "atanh", "tan", "sinh"]
)
def test_float64_functions_without_a_kernel_reach_float64(name: str) -> None:
    x = UNIT if name in ("asin", "acos", "atanh") else POSITIVE + 1 if name == "acosh" else LINE
    check_call(lambda x: getattr(torch, name)(x), (x,), rtol=1e-12, atol=1e-15)


def test_softmax_by_its_special_name() -> None:
    check_call(
        lambda x: (
            torch.special.softmax(x, 1),
            torch.special.log_softmax(x, 0, dtype=torch.float64),
        ),
        (torch.randn(2, 3),),
    )
