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
    gather index_add index_copy index_fill index_reduce.amax index_reduce.amin
    index_reduce.mean index_reduce.prod put scatter scatter_add scatter_reduce.amax
    scatter_reduce.amin scatter_reduce.mean scatter_reduce.prod scatter_reduce.sum take
    take_along_dim
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
