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
from tests.pytorch.opinfo import OpCase, check_call

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


def test_narrowing_from_the_end() -> None:
    x, rows = torch.randn(10, 4), torch.randn(3)
    check_call(
        lambda x, i: (x.narrow(0, -3, 3), x.narrow(0, -3, 2), x.narrow(0, i, 3)),
        (x, torch.tensor(-3)),
        others=[(x, torch.tensor(2)), (x, torch.tensor(-5))],
    )
    check_call(
        lambda x, y: (x.narrow(0, -y.shape[0], y.shape[0]), x.narrow(0, -y.shape[0], 1)),
        (x, rows),
        dynamic_shapes=(None, {0: "n"}),
        others=[(x, torch.randn(7))],
    )
