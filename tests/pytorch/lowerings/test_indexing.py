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
    __getitem__ _unsafe_masked_index _unsafe_masked_index_put_accumulate index_put index_select
    nn.functional.one_hot
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
