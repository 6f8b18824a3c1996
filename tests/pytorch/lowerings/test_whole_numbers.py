"""Powers, sums and products of integers have all their digits, and wrap as in eager."""

from __future__ import annotations

import pytest
import torch

from tests.pytorch.lowerings.cases import op_types
from tests.pytorch.opinfo import check_call

WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def whole(dtype: torch.dtype) -> torch.Tensor:
    """Numbers from the whole range of a type."""
    info = torch.iinfo(dtype)
    some = torch.tensor(
        [info.min, info.max, info.max // 3, info.min // 5, 0, 1, 2, 3], dtype=dtype
    )
    return torch.stack([some, some.flip(0) - 1, some * 7])


@pytest.mark.parametrize("dtype", WHOLE, ids=str)
def test_powers_wrap(dtype: torch.dtype) -> None:
    x = whole(dtype)
    exponents = torch.arange(24).reshape(3, 8).to(dtype) * 5
    check_call(
        lambda x, y: (x**0, x**1, x**4, x**5, x**31, 2**y, 10**y, 3**y, 0**y, 1**y, x**y),
        (x, exponents),
    )


def test_of_negative_powers_ones_remain() -> None:
    x, y = torch.meshgrid(torch.arange(-3, 4), torch.arange(-3, 4), indexing="ij")
    check_call(lambda x, y: (x**y, 2**y, torch.pow(-1, y), torch.pow(-2, y)), (x, y))


def test_powers_broadcast_along_dynamic_dims() -> None:
    check_call(
        lambda x, y: (x**y, 2 ** torch.arange(x.shape[0]), x ** x.shape[0]),
        (torch.arange(5)[:, None], torch.arange(3)),
        dynamic_shapes=({0: "n"}, {0: "m"}),
    )


def test_powers_of_a_known_exponent_are_products() -> None:
    traced = check_call(lambda x: x**6, (torch.arange(4),))
    assert op_types(traced) == ["Mul"] * 3


@pytest.mark.parametrize("dtype", WHOLE, ids=str)
def test_sums_and_products_have_all_digits(dtype: torch.dtype) -> None:
    check_call(
        lambda x: (
            x.sum(), x.sum(0), x.sum((0, 1), keepdim=True), x.nansum(1), x.prod(), x.prod(0),
            x.prod(1, keepdim=True), x.prod(1, dtype=dtype), x.sum(1, dtype=dtype), x.cumsum(1),
            x.cumprod(1), x[:, :3].trace(), torch.einsum("ij,ij->i", x, x),
            torch.einsum("ij->", x), torch.tensordot(x, x, 2), x @ x.T,
        ),
        (whole(dtype),),
    )  # fmt: skip


def test_large_sums_and_products_of_dynamic_sizes() -> None:
    x = torch.arange(1, 13).reshape(3, 4) * (2**40 + 1)
    check_call(
        lambda x: (x.sum(0), x.sum(), x.prod(1), x.prod()),
        (x,),
        dynamic_shapes=({0: "n", 1: "m"},),
    )


def test_ordinary_sums_are_one_node() -> None:
    traced = check_call(lambda x: (x.sum(1), x.prod(1)), (torch.arange(6).reshape(2, 3),))
    assert op_types(traced) == ["ReduceSum", "ReduceProd"]
