from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.pytorch.lowerings.cases import (
    ALL,
    check_case,
    check_opsets,
    check_small_integers,
    op_cases,
    supported_rows,
)

if TYPE_CHECKING:
    import torch

    from tests.pytorch.opinfo import OpCase

CASES = op_cases(
    """
    as_strided as_strided_copy as_strided_scatter constant_pad_nd diag diag_embed diagflat
    diagonal diagonal_copy diagonal_scatter linalg.diagonal narrow narrow_copy select
    select_scatter slice slice_scatter trace tril triu unfold unfold_copy
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
