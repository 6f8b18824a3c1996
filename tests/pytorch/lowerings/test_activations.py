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
    log_softmax log_softmax.with_dtype nn.functional.celu nn.functional.elu nn.functional.gelu
    nn.functional.glu nn.functional.hardshrink nn.functional.hardsigmoid
    nn.functional.hardswish nn.functional.hardtanh nn.functional.leaky_relu
    nn.functional.logsigmoid nn.functional.mish nn.functional.prelu nn.functional.relu
    nn.functional.relu6 nn.functional.selu nn.functional.silu nn.functional.softmin
    nn.functional.softmin.with_dtype nn.functional.softplus nn.functional.softshrink
    nn.functional.softsign nn.functional.tanhshrink nn.functional.threshold softmax
    softmax.with_dtype masked.softmax masked.softmin masked.log_softmax
    torch.ops.aten._safe_softmax.default
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
