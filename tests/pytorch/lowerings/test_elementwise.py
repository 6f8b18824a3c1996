from __future__ import annotations

import pytest
import torch

from tests.pytorch.lowerings.cases import (
    ALL,
    check_case,
    check_opsets,
    check_small_integers,
    op_cases,
    supported_rows,
)
from tests.pytorch.opinfo import OpCase

CASES = op_cases(
    """
    abs acos acosh angle asin asinh atan atanh ceil cos cosh deg2rad exp exp2 expm1 float_power
    floor frac frexp isfinite isinf isnan isneginf isposinf isreal log log10 log1p log2 logit
    nan_to_num neg positive rad2deg real reciprocal resolve_conj resolve_neg conj conj_physical
    round round.decimals_0 round.decimals_3 round.decimals_neg_3 rsqrt sgn sigmoid sign signbit
    sin sinc sinh sqrt square tan tanh trunc
    """,
    ALL,
)


@pytest.mark.parametrize(("case", "dtype"), supported_rows(CASES))
def test_matches_eager(case: OpCase, dtype: torch.dtype) -> None:
    check_case(case, dtype)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_matches_eager_in_other_opsets(case: OpCase) -> None:
    check_opsets(case)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_matches_eager_for_small_integers(case: OpCase) -> None:
    check_small_integers(case)
