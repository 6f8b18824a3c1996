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

ROUNDED = {"rtol": 1e-2, "atol": 1e-2, "why": "eager counts in float16, the graph in float64"}
CASES = [
    *op_cases(
        """
        arange empty empty_like empty_permuted empty_strided eye full full_like linspace logspace
        new_empty new_empty_strided new_full new_ones new_zeros ones ones_like scalar_tensor
        tril_indices triu_indices zeros zeros_like signal.windows.bartlett signal.windows.blackman
        signal.windows.cosine signal.windows.exponential signal.windows.gaussian
        signal.windows.general_cosine signal.windows.general_hamming signal.windows.hamming
        signal.windows.hann signal.windows.kaiser signal.windows.nuttall
        """,
        ALL,
    ),
    *op_cases(
        "linspace.tensor_overload logspace.tensor_overload",
        tuple(d for d in ALL if d != f16),
        every=7,
    ),
    *op_cases("linspace.tensor_overload logspace.tensor_overload", (f16,), every=7, **ROUNDED),
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
