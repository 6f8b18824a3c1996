from __future__ import annotations

from typing import Any

import pytest
import torch

import bridge
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
    alias_copy bfloat16 bool byte char clone contiguous double fill float half int item long
    short to zero_
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


# What the samples do not call.
CONVERSIONS = {
    "to dtype": lambda x, y: x.to(torch.float64),
    "to dtype and copy": lambda x, y: x.to(torch.int32, False, True),
    "to other": lambda x, y: x.to(y),
    "to device": lambda x, y: x.to("cpu") + 1,
    "to device and dtype": lambda x, y: x.to("cpu", torch.float16),
    "to by keyword": lambda x, y: x.to(dtype=torch.bool, copy=True),
    "type_as": lambda x, y: x.type_as(y),
    "type": lambda x, y: x.type(torch.int64),
    "type by name": lambda x, y: x.type("torch.HalfTensor"),
    "cpu": lambda x, y: x.cpu() * 2,
    "data": lambda x, y: x.data * 2,
    "detach": lambda x, y: x.detach() + y,
    "copy_": lambda x, y: y.clone().copy_(x),
    "copy_ broadcast": lambda x, y: x.clone().copy_(x[:1]),
    "fill_ with a tensor": lambda x, y: x.clone().fill_(y[0, 0]),
    "zero_": lambda x, y: x.clone().zero_() + y,
    "requires_grad_": lambda x, y: x.clone().requires_grad_(False).sin(),
}


@pytest.mark.parametrize("name", CONVERSIONS)
def test_conversions_match_eager(name: str) -> None:
    x, y = torch.tensor([[0.0, 1.5, -2.5], [3.0, -0.0, 7.0]]), torch.arange(6).reshape(2, 3)
    check_call(CONVERSIONS[name], (x, y))


def test_asking_for_the_type_is_not_a_conversion() -> None:
    def f(x: torch.Tensor) -> torch.Tensor:
        return x * 2 if x.type() == "torch.FloatTensor" else x

    check_call(f, (torch.ones(2),))


def test_a_cast_to_the_same_dtype_is_no_node() -> None:
    traced = check_call(lambda x: x.float().to(torch.float32).contiguous().sin(), (torch.ones(2),))
    assert op_types(traced) == ["Sin"]


def test_bfloat16_where_operators_lack_it() -> None:
    def call(x: torch.Tensor, mask: torch.Tensor, places: torch.Tensor) -> Any:
        flat = x.flatten()
        return (
            x.topk(2).values,
            x.median(1).values,
            x.sort(0).values,
            x[mask],
            flat.unique(),
            x.scatter_add(1, places, x),
            x.index_put((places[:, 0],), x[:1], accumulate=True),
            x.scatter_reduce(1, places, x, "amax"),
        )

    torch.manual_seed(0)
    x = torch.randn(3, 4).bfloat16()
    arguments = x, x > 0, torch.randint(0, 3, (3, 4))
    expected = call(*arguments)
    for got, wanted in zip(bridge.export(call, arguments)(*arguments), expected, strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-2, rtol=1.6e-2)
