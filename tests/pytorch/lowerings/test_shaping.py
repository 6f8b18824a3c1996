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
    H T atleast_1d atleast_2d atleast_3d broadcast_tensors broadcast_to expand expand_as
    expand_copy flatten mH mT meshgrid.list_of_tensors meshgrid.variadic_tensors movedim
    permute permute_copy ravel reshape reshape_as squeeze squeeze.multiple squeeze_copy
    sum_to_size t t_copy transpose transpose_copy unflatten unsqueeze unsqueeze_copy view
    view_as view_copy
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
