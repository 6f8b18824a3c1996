from __future__ import annotations

import pytest
import torch

from tests.pytorch.lowerings.cases import (
    ALL,
    check_case,
    check_opsets,
    check_small_integers,
    op_cases,
    op_types,
    supported_rows,
)
from tests.pytorch.opinfo import OpCase, check_call

CASES = op_cases(
    """
    argwhere count_nonzero masked_scatter masked_select nonzero nonzero_static
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


def test_rows_of_embeddings_are_replaced_whole() -> None:
    def merge(x: torch.Tensor, mask: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return x.masked_scatter(mask.unsqueeze(-1).expand_as(x), rows)

    mask = torch.tensor([[True, False, True], [False, False, True]])
    x, rows = torch.randn(2, 3, 4), torch.randn(200, 4)
    traced = check_call(
        merge,
        (x, mask, rows),
        dynamic_shapes=({0: "n", 1: "m"}, {0: "n", 1: "m"}, {0: "k"}),
        others=[(x, torch.zeros_like(mask), rows[:0])],
    )
    assert "ScatterND" in op_types(traced)
    assert "ScatterElements" not in op_types(traced)
