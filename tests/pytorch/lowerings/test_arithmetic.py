from __future__ import annotations

import pytest
import torch

from tests.pytorch.lowerings.cases import (
    ALL,
    check_case,
    check_opsets,
    check_small_integers,
    f16,
    op_cases,
    supported_rows,
)
from tests.pytorch.opinfo import OpCase

ROUNDED = {"rtol": 1e-2, "atol": 1e-2, "why": "eager rounds once, the graph after each node"}
CASES = [
    *op_cases(
        """
        __radd__ __rdiv__ __rmod__ __rmul__ __rpow__ __rsub__ add atan2 copysign div.floor_rounding
        div.no_rounding_mode div.trunc_rounding floor_divide fmod gcd heaviside hypot lcm ldexp
        logaddexp logaddexp2 mul pow remainder rsub sub true_divide xlogy special.xlog1py dist
        """,
        ALL,
    ),
    *op_cases("addcdiv addcmul lerp", tuple(d for d in ALL if d != f16)),
    *op_cases("addcdiv addcmul lerp", (f16,), **ROUNDED),
]


@pytest.mark.parametrize(("case", "dtype"), supported_rows(CASES))
def test_matches_eager(case: OpCase, dtype: torch.dtype) -> None:
    check_case(case, dtype)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_matches_eager_in_other_opsets(case: OpCase) -> None:
    check_opsets(case)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_matches_eager_for_small_integers(case: OpCase) -> None:
    check_small_integers(case)
