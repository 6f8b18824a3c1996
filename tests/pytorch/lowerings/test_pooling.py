from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.pytorch.lowerings.cases import (
    ALL_FLOATS,
    FLOATS,
    check_case,
    check_module,
    check_opset,
    f32,
    f64,
    op_cases,
    op_types,
    opset_rows,
    rows,
)
from tests.pytorch.opinfo import OpCase, check_call

R = torch.randn


def _draws(sample: Any) -> str | None:
    given = sample.kwargs.get("_random_samples") is not None
    return None if given else "draws the windows at random"


CASES = (
    *op_cases("nn.functional.max_pool1d nn.functional.max_pool2d nn.functional.max_pool3d",
              ALL_FLOATS, every=5),
    *op_cases("nn.functional.avg_pool1d nn.functional.avg_pool2d",
              ALL_FLOATS),
    *op_cases("""
        nn.functional.adaptive_avg_pool1d nn.functional.adaptive_avg_pool2d
        nn.functional.adaptive_avg_pool3d
    """, ALL_FLOATS),
    *op_cases("""
        nn.functional.adaptive_max_pool1d nn.functional.adaptive_max_pool2d
        nn.functional.adaptive_max_pool3d
    """),
    *op_cases("nn.functional.max_unpool1d nn.functional.max_unpool2d nn.functional.max_unpool3d",
              every=4),
    *op_cases("""
        nn.functional.max_unpool1d.grad nn.functional.max_unpool2d.grad
        nn.functional.max_unpool3d.grad
    """),
)  # fmt: skip
RANDOM = op_cases("nn.functional.fractional_max_pool2d nn.functional.fractional_max_pool3d")
MODULES = (
    *(f"nn.{kind}Pool{n}d" for kind in ("Max", "Avg", "LP") for n in (1, 2, 3)),
    *(f"nn.Adaptive{kind}Pool{n}d" for kind in ("Max", "Avg") for n in (1, 2, 3)),
    "nn.FractionalMaxPool2d",
    "nn.FractionalMaxPool3d",
)
SIZES = {"x": {0: "b", 2: "h", 3: "w"}}
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.mark.parametrize(("case", "dtype"), rows(CASES))
def test_matches_eager(case: OpCase, dtype: torch.dtype) -> None:
    check_case(case, dtype)


@pytest.mark.parametrize(("case", "opset"), opset_rows(CASES))
def test_matches_eager_in_other_opsets(case: OpCase, opset: int) -> None:
    check_opset(case, opset)


@pytest.mark.parametrize("case", RANDOM, ids=lambda c: c.name)
def test_random_windows(case: OpCase) -> None:
    given = OpCase(case.name, skip=_draws)
    check_case(given, f32)
    check_case(OpCase(case.name, values=False, why="random", every=4), f32)


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_modules_match_eager(name: str, dtype: torch.dtype) -> None:
    check_module(name, dtype, **(CLOSE if dtype == f32 else {}))


def _call(function: str, options: dict[str, Any]) -> Any:
    return lambda x: getattr(F, function)(x, 3, **options)


@pytest.mark.parametrize(
    ("function", "options", "wanted"),
    [
        ("max_pool2d", {}, ["MaxPool"]),
        ("max_pool2d", {"stride": 2, "padding": 1, "ceil_mode": True}, ["MaxPool"]),
        ("max_pool2d", {"stride": 2, "dilation": 2, "return_indices": True}, None),
        ("avg_pool2d", {"stride": 2, "padding": 1}, ["AveragePool"]),
        ("avg_pool2d", {"stride": 2, "padding": 1, "ceil_mode": True}, ["AveragePool"]),
        ("avg_pool2d", {"padding": 1, "count_include_pad": False}, ["AveragePool"]),
        ("avg_pool2d", {"stride": 2, "ceil_mode": True, "divisor_override": 4}, None),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_dynamic_sizes(function: str, options: Any, wanted: Any, dtype: torch.dtype) -> None:
    traced = check_call(
        _call(function, options),
        (R(2, 3, 8, 9, dtype=dtype),),
        dynamic_shapes=SIZES,
        others=[(R(1, 3, s, 10, dtype=dtype),) for s in (7, 11, 12)],
        **CLOSE,
    )
    if wanted is not None and dtype == f32:
        assert op_types(traced) == wanted


@pytest.mark.parametrize("size", [1, 3, (2, None), (4, 7)], ids=str)
@pytest.mark.parametrize("function", ["adaptive_avg_pool2d", "adaptive_max_pool2d"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_adaptive_pools_of_dynamic_images(function: str, size: Any, dtype: torch.dtype) -> None:
    check_call(
        lambda x: getattr(F, function)(x, size),
        (R(2, 3, 8, 9, dtype=dtype),),
        dynamic_shapes=SIZES,
        others=[(R(1, 3, 4, 7, dtype=dtype),), (R(1, 3, 13, 10, dtype=dtype),)],
        **CLOSE,
    )


def test_output_size_that_is_a_size() -> None:
    check_call(
        lambda x, y: F.adaptive_avg_pool2d(x, y.shape[-2:]),
        (R(2, 3, 8, 9), R(2, 3, 4, 5)),
        dynamic_shapes={**SIZES, "y": {0: "b", 2: "hh", 3: "ww"}},
        others=[(R(1, 3, 6, 6), R(1, 3, 2, 3))],
        **CLOSE,
    )


@pytest.mark.parametrize("pool", [
    nn.MaxPool2d(2), nn.AvgPool2d(3, 2, ceil_mode=True), nn.AdaptiveAvgPool2d(1),
    nn.LPPool2d(2, 2),
])  # fmt: skip
def test_empty_batch(pool: nn.Module) -> None:
    check_call(
        lambda x: pool(x),
        (R(2, 3, 8, 9),),
        dynamic_shapes=SIZES,
        others=[(torch.zeros(0, 3, 6, 6),)],
        **CLOSE,
    )


@pytest.mark.parametrize(
    ("module", "wanted"),
    [
        (nn.AdaptiveAvgPool2d(1), ["GlobalAveragePool"]),
        (nn.AdaptiveAvgPool2d(4), ["AveragePool"]),
        (nn.AdaptiveMaxPool2d(4), ["MaxPool"]),
        (nn.AdaptiveAvgPool2d((3, 5)), ["MatMul", "MatMul"]),
        (nn.LPPool2d(2, 3), ["LpPool"]),
        (nn.MaxPool2d(3, 2, 1), ["MaxPool"]),
    ],
    ids=str,
)
def test_pools_are_one_node(module: nn.Module, wanted: list[str]) -> None:
    assert op_types(check_call(module, (R(1, 2, 8, 8),), **CLOSE)) == wanted


def test_unpooling_with_the_indices_of_a_pool() -> None:
    def call(x: Any) -> Any:
        pooled, indices = F.max_pool2d(x, 2, return_indices=True)
        return F.max_unpool2d(pooled, indices, 2)

    check_call(
        call, (R(2, 3, 8, 10),), dynamic_shapes=SIZES, others=[(R(1, 3, 4, 6),), (R(3, 3, 2, 2),)]
    )


@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.int64, f64], ids=str)
def test_maxima_of_other_dtypes(dtype: torch.dtype) -> None:
    x = torch.randint(-9, 9, (2, 3, 6, 6)).to(dtype)
    check_call(lambda x: F.max_pool2d(x, 2), (x,))


def test_windows_with_gaps_may_see_nothing_but_padding() -> None:
    check_call(
        lambda x: F.max_pool2d(x, 2, stride=1, padding=1, dilation=2, return_indices=False),
        (torch.randn(1, 1, 6, 6),),
        dynamic_shapes=({2: "h", 3: "w"},),
        others=[(torch.randn(1, 1, 1, 1),), (torch.randn(1, 1, 2, 3),)],
    )


@pytest.mark.parametrize("ceil_mode", [False, True])
def test_means_of_integers_are_integers(ceil_mode: bool) -> None:
    x = torch.randint(-9, 9, (1, 2, 5, 5))
    check_call(lambda x: F.avg_pool2d(x, 2, padding=1, ceil_mode=ceil_mode), (x,))
