from __future__ import annotations

from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from tests.pytorch.opinfo import OpCase


def _has_nan(sample: Any) -> str | None:
    x = sample.input
    floating = isinstance(x, torch.Tensor) and x.is_floating_point()
    return "ORT 1.32 CPU loses NaN in ReduceMax" if floating and x.isnan().any() else None


CASES = [
    *op_cases(
        """
        all amax amin aminmax any argmax argmin logsumexp max.reduction_no_dim
        max.reduction_with_dim mean min.reduction_no_dim min.reduction_with_dim nanmean nansum prod
        std std.unbiased std_mean std_mean.unbiased sum var var.unbiased var_mean var_mean.unbiased
        cov corrcoef masked.logaddexp masked.logsumexp masked.mean masked.normalize masked.prod
        masked.std masked.sum masked.var
        """,
        ALL,
    ),
    *op_cases(
        "masked.amax masked.amin masked.argmax masked.argmin masked.norm", ALL, skip=_has_nan
    ),
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
