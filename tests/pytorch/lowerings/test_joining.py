from __future__ import annotations

from typing import Any

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


def _has_tensor_sections(sample: Any) -> str | None:
    given = sample.args[0] if sample.args else None
    return "sections that are data" if isinstance(given, torch.Tensor) else None


CASES = [
    *op_cases(
        """
        _chunk_cat block_diag cartesian_prod cat chunk column_stack combinations dsplit dstack flip
        fliplr flipud hsplit hstack repeat repeat_interleave roll rot90 split split.list_args
        split_with_sizes split_with_sizes_copy stack tile unbind unbind_copy unsafe_chunk
        unsafe_split vsplit vstack
        """,
        ALL,
    ),
    OpCase("tensor_split", ALL, skip=_has_tensor_sections),
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
