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
from tests.pytorch.opinfo import OpCase

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
