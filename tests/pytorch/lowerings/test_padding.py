from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.pytorch.lowerings.cases import (
    ALL_FLOATS,
    FLOATS,
    check_case,
    check_module,
    check_opset,
    f32,
    op_cases,
    op_types,
    opset_rows,
    rows,
)
from tests.pytorch.opinfo import OpCase, check_call

R = torch.randn
CASES = (
    *op_cases("""
        constant_pad_nd nn.functional.pad.circular nn.functional.pad.constant
        nn.functional.pad.reflect nn.functional.pad.replicate
        nn.functional.pad.replicate_negative
    """, (*ALL_FLOATS, torch.int64)),
    *op_cases("nn.functional.unfold", ALL_FLOATS, every=2),
)  # fmt: skip
CASES = tuple(
    OpCase(c.name, dtypes=FLOATS) if c.name in ("nn.functional.pad.reflect",) else c for c in CASES
)
MODULES = tuple(
    f"nn.{kind}Pad{n}d"
    for kind in ("Reflection", "Replication", "Zero", "Constant", "Circular")
    for n in (1, 2, 3)
)
SIZES = {"x": {0: "b", 2: "h", 3: "w"}}


@pytest.mark.parametrize(("case", "dtype"), rows(CASES))
def test_matches_eager(case: OpCase, dtype: torch.dtype) -> None:
    check_case(case, dtype)


@pytest.mark.parametrize(("case", "opset"), opset_rows(CASES))
def test_matches_eager_in_other_opsets(case: OpCase, opset: int) -> None:
    check_opset(case, opset)


@pytest.mark.parametrize("name", MODULES)
def test_modules_match_eager(name: str) -> None:
    check_module(name, f32)


@pytest.mark.parametrize("mode", ["constant", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("opset", [17, 19, 23])
def test_padding_of_dynamic_images(mode: str, opset: int) -> None:
    traced = check_call(
        lambda x: F.pad(x, (1, 2, 3, 0), mode=mode),
        (R(2, 3, 8, 9),),
        dynamic_shapes=SIZES,
        others=[(R(1, 3, 5, 4),)],
        opset=opset,
    )
    if mode != "circular" or opset >= 19:
        assert op_types(traced) == ["Pad"]


def test_padding_to_a_multiple() -> None:
    check_call(
        lambda x: F.pad(x, (0, -x.shape[3] % 8, 0, -x.shape[2] % 8), value=1.5),
        (R(2, 3, 8, 9),),
        dynamic_shapes=SIZES,
        others=[(R(1, 3, 5, 16),)],
    )


def test_padding_to_a_length_crops_too() -> None:
    check_call(
        lambda x: F.pad(x, (0, 10 - x.shape[1])),
        (R(2, 7),),
        dynamic_shapes={"x": {0: "b", 1: "t"}},
        others=[(R(1, 13),), (R(3, 1),)],
    )


@pytest.mark.parametrize("dtype", [torch.int16, torch.uint8, torch.bool, torch.int32], ids=str)
def test_padding_of_other_dtypes(dtype: torch.dtype) -> None:
    check_call(lambda x: F.pad(x, (1, 2), value=1), (torch.ones(2, 3).to(dtype),))


def test_fill_that_is_computed() -> None:
    def call(x: Any) -> Any:
        return F.pad(x, (1, 1), value=x.shape[0] * 0.5)

    check_call(call, (R(2, 3),), dynamic_shapes={"x": {0: "b"}}, others=[(R(5, 3),)])


@pytest.mark.parametrize(
    "options",
    [{}, {"stride": 2, "padding": 1}, {"dilation": 2, "padding": (0, 3), "stride": (2, 1)}],
    ids=str,
)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("opset", [17, 23])
def test_columns_there_and_back(options: dict[str, Any], dtype: Any, opset: int) -> None:
    def call(x: Any) -> Any:
        columns = F.unfold(x, (3, 2), **options)
        return columns, F.fold(columns * 2, x.shape[-2:], (3, 2), **options)

    traced = check_call(
        call,
        (R(2, 3, 8, 9, dtype=dtype),),
        dynamic_shapes=SIZES,
        others=[(R(1, 3, 11, 6, dtype=dtype),)],
        opset=opset,
        rtol=1e-5,
        atol=1e-5,
    )
    whole = dtype == f32 and opset == 23
    assert op_types(traced).count("Col2Im") == whole


def test_columns_without_a_batch() -> None:
    check_call(lambda x: F.fold(F.unfold(x, 2), (4, 5), 2), (R(3, 4, 5),), rtol=1e-5, atol=1e-5)
