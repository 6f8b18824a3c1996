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
    __rand__ __ror__ __rxor__ allclose bitwise_and bitwise_left_shift bitwise_not bitwise_or
    bitwise_right_shift bitwise_xor clamp clamp_max clamp_min eq fmax fmin ge gt isclose le
    logical_and logical_not logical_or logical_xor lt masked_fill max.binary maximum min.binary
    minimum ne where
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
