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
    __rand__ __ror__ __rxor__ allclose bitwise_and bitwise_left_shift bitwise_not bitwise_or
    bitwise_right_shift bitwise_xor clamp clamp_max clamp_min eq fmax fmin ge gt isclose le
    logical_and logical_not logical_or logical_xor lt masked_fill max.binary maximum min.binary
    minimum ne where
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


CHOICES = {
    "where of bools": (
        lambda x, m: torch.where(m, m, x > 0),
        ["Greater", "And", "Not", "And", "Or"],
    ),
    "masked_fill of bools": (lambda x, m: m.masked_fill(x > 0, True), ["Greater", "Or"]),
    "where of numbers": (lambda x, m: torch.where(m, 1.0, 0.0), ["Where"]),
    "masked_fill": (lambda x, m: x.masked_fill(m, float("-inf")), ["Where"]),
    "clamp": (lambda x, m: x.clamp(-1, 1), ["Clip"]),
    "clamp from 0": (lambda x, m: x.clamp(min=0), ["Relu"]),
    "clamp above": (lambda x, m: x.clamp(max=1), ["Min"]),
    "not equal of bools": (lambda x, m: m != (x > 0), ["Greater", "Xor"]),
    "equal to True": (lambda x, m: (m == True) | (m == False), ["Not", "Or"]),  # noqa: E712
    "isfinite": (lambda x, m: x.isfinite(), ["Abs", "Less"]),
}


@pytest.mark.parametrize("name", CHOICES)
def test_choices_are_short(name: str) -> None:
    function, nodes = CHOICES[name]
    x, m = torch.tensor([0.5, -2.5, 3.0]), torch.tensor([True, False, True])
    assert op_types(check_call(function, (x, m))) == nodes


def test_in_place_comparisons_keep_the_dtype() -> None:
    check_call(lambda x: (x.clone().gt_(0), x.clone().logical_not_()), (torch.randn(4),))
