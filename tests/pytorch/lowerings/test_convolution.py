from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bridge
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
SUMS = {"rtol": 1e-4, "atol": 1e-4, "why": "the terms of a sum are added in another order"}
CASES = op_cases(
    """
    nn.functional.conv1d nn.functional.conv2d nn.functional.conv3d
    nn.functional.conv_transpose1d nn.functional.conv_transpose2d nn.functional.conv_transpose3d
    """,
    ALL_FLOATS,
    **SUMS,
)
MODULES = tuple(
    f"nn.{lazy}Conv{kind}{n}d"
    for lazy in ("", "Lazy")
    for kind in ("", "Transpose")
    for n in (1, 2, 3)
)  # fmt: skip
BATCH_AND_SIZES = {0: "b", 2: "h", 3: "w"}
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


@pytest.mark.parametrize(("case", "dtype"), rows(CASES))
def test_matches_eager(case: OpCase, dtype: torch.dtype) -> None:
    check_case(case, dtype)


@pytest.mark.parametrize(("case", "opset"), opset_rows(CASES))
def test_matches_eager_in_other_opsets(case: OpCase, opset: int) -> None:
    check_opset(case, opset)


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_modules_match_eager(name: str, dtype: torch.dtype) -> None:
    check_module(name, dtype, **CLOSE)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2, "padding": 1},
        {"padding": "same"},
        {"padding": "same", "dilation": 3},
        {"padding": "valid"},
        {"padding": (2, 0), "stride": (1, 2), "dilation": (2, 1)},
    ],
    ids=str,
)
@pytest.mark.parametrize("kernel", [(3, 3), (2, 4)], ids=str)  # an odd total for "same"
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_dynamic_sizes(options: dict[str, Any], kernel: tuple[int, int], dtype: Any) -> None:
    weight = R(6, 3, *kernel, dtype=dtype)
    traced = check_call(
        lambda x: F.conv2d(x, weight, **options),
        (R(2, 3, 10, 12, dtype=dtype),),
        dynamic_shapes={"x": BATCH_AND_SIZES},
        others=[(R(1, 3, 9, 15, dtype=dtype),)],
        **CLOSE,
    )
    if dtype == f32:
        assert op_types(traced) == ["Conv"]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("transposed", [False, True])
def test_empty_batch(dtype: torch.dtype, transposed: bool) -> None:
    module = (nn.ConvTranspose2d if transposed else nn.Conv2d)(3, 4, 3, dtype=dtype)
    empty = torch.zeros(0, 3, 8, 8, dtype=dtype)
    check_call(module, (empty,))
    if dtype == f32:
        check_call(
            module,
            (R(2, 3, 8, 8),),
            dynamic_shapes={"input": {0: "b"}},
            others=[(empty,)],
            **CLOSE,
        )


def test_weights_that_are_inputs() -> None:
    check_call(
        lambda x, w, b: F.conv2d(x, w, b, stride=2),
        (R(2, 3, 9, 9), R(4, 3, 3, 3), R(4)),
        dynamic_shapes={"x": BATCH_AND_SIZES, "w": {0: "o"}, "b": {0: "o"}},
        others=[(R(1, 3, 7, 8), R(5, 3, 3, 3), R(5))],
        **CLOSE,
    )


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize("opset", [17, 23])
def test_padding_modes(mode: str, opset: int) -> None:
    traced = check_call(
        nn.Conv2d(3, 4, 3, padding=(1, 2), padding_mode=mode),
        (R(2, 3, 8, 9),),
        dynamic_shapes={"input": BATCH_AND_SIZES},
        others=[(R(1, 3, 5, 6),)],
        opset=opset,
        **CLOSE,
    )
    if mode != "circular" or opset == 23:
        assert op_types(traced) == ["Pad", "Conv"]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize(
    "options",
    [
        {"stride": 2, "padding": 1, "output_padding": 1},
        {"stride": (3, 1), "dilation": (1, 2)},
        {"stride": 1, "dilation": 3, "output_padding": 2},
        {"groups": 2, "stride": 2},
    ],
    ids=str,
)
def test_transposed(options: dict[str, Any], dtype: torch.dtype) -> None:
    weight = R(4, 6 // options.get("groups", 1), 3, 2, dtype=dtype)
    traced = check_call(
        lambda x: F.conv_transpose2d(x, weight, **options),
        (R(2, 4, 5, 6, dtype=dtype),),
        dynamic_shapes={"x": BATCH_AND_SIZES},
        others=[(R(1, 4, 3, 7, dtype=dtype),)],
        **CLOSE,
    )
    if dtype == f32 and options.get("output_padding", 0) < 2:
        assert op_types(traced) == ["ConvTranspose"]


def test_output_padding_that_follows_a_size() -> None:
    weight = R(3, 4, 3, 3)

    def call(x: Any) -> Any:
        extra = (x.shape[2] % 2, x.shape[3] % 2)
        return F.conv_transpose2d(x, weight, stride=2, padding=1, output_padding=extra)

    check_call(
        call,
        (R(2, 3, 5, 6),),
        dynamic_shapes={"x": BATCH_AND_SIZES},
        others=[(R(2, 3, 4, 4),), (R(2, 3, 5, 5),)],
        **CLOSE,
    )


def test_output_size_of_a_factor() -> None:
    module = nn.ConvTranspose2d(3, 4, 3, stride=2, padding=1)
    check_call(
        lambda x: module(x, output_size=(x.shape[2] * 2, x.shape[3] * 2)),
        (R(2, 3, 5, 6),),
        dynamic_shapes={"x": BATCH_AND_SIZES},
        others=[(R(1, 3, 4, 9),)],
        **CLOSE,
    )


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_operators_below_the_functions(transposed: bool, dtype: torch.dtype) -> None:
    weight, bias = R(4, 4, 3, 3, dtype=dtype), R(4, dtype=dtype)

    def call(x: Any) -> Any:
        return torch.ops.aten.convolution(
            x, weight, bias, [2, 2], [1, 1], [1, 1], transposed, [0, 0], 1
        )

    check_call(call, (R(2, 4, 7, 7, dtype=dtype),), **CLOSE)


def test_time_first() -> None:
    weight, bias = R(3, 4, 5), R(5)
    check_call(lambda x: torch.conv_tbc(x, weight, bias, 1), (R(7, 2, 4),), **CLOSE)


def test_every_convolution_is_one_node() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv1d(3, 4, 3, padding="same"), nn.Conv1d(4, 2, 1)

        def forward(self, x: Any) -> Any:
            return self.two(self.one(x))

    assert op_types(check_call(Net(), (R(2, 3, 9),), **CLOSE)) == ["Conv", "Conv"]
    assert op_types(check_call(Net(), (R(3, 9),), **CLOSE)).count("Conv") == 2


@pytest.mark.parametrize("transposed", [False, True])
def test_a_kernel_for_each_sample(transposed: bool) -> None:
    """Groups are an attribute of ``Conv``, and here there are as many as samples."""

    def modulated(x: torch.Tensor, kernels: torch.Tensor) -> torch.Tensor:
        n, channels, *size = x.shape
        call = F.conv_transpose2d if transposed else F.conv2d
        weight = kernels.transpose(1, 2) if transposed else kernels
        wide = x.reshape(1, n * channels, *size)
        y = call(wide, weight.flatten(0, 1), stride=2, padding=1, groups=n)
        return y.view(n, kernels.shape[1], *y.shape[2:])

    program = bridge.export(
        modulated,
        (torch.randn(2, 3, 6, 5), torch.randn(2, 4, 3, 3, 3)),
        dynamic_shapes=({0: "n", 2: "h"}, {0: "n"}),
    )
    for n, height in ((1, 4), (5, 9)):
        inputs = torch.randn(n, 3, height, 5), torch.randn(n, 4, 3, 3, 3)
        torch.testing.assert_close(program(*inputs), modulated(*inputs), **CLOSE)
