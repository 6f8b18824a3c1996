"""NaN, infinities, signed zeros, and the largest numbers are treated as in eager."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.pytorch.lowerings.cases import op_types
from tests.pytorch.opinfo import check_call

inf, nan = math.inf, math.nan
VALUES = [0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 2.5, -2.5, 3.0, 1e-30, -1e-30, 1e30, inf, -inf, nan]
DTYPES = (torch.float32, torch.float64)
UNARY = [
    "abs",
    "acos",
    "acosh",
    "angle",
    "asin",
    "asinh",
    "atan",
    "atanh",
    "ceil",
    "cos",
    "cosh",
    "digamma",
    "erf",
    "erfc",
    "erfinv",
    "exp",
    "exp2",
    "expm1",
    "floor",
    "frac",
    "isfinite",
    "isinf",
    "isnan",
    "isneginf",
    "isposinf",
    "lgamma",
    "log",
    "log10",
    "log1p",
    "log2",
    "logit",
    "logical_not",
    "nan_to_num",
    "neg",
    "positive",
    "reciprocal",
    "relu",
    "round",
    "rsqrt",
    "sgn",
    "sigmoid",
    "sign",
    "sin",
    "sinc",
    "sinh",
    "sqrt",
    "square",
    "tan",
    "tanh",
    "trunc",
    "signbit",
    "i0",
]
ACTIVATIONS = [
    "celu",
    "elu",
    "gelu",
    "hardshrink",
    "hardsigmoid",
    "hardtanh",
    "leaky_relu",
    "logsigmoid",
    "relu6",
    "selu",
    "softplus",
    "softshrink",
    "tanhshrink",
]
BINARY = [
    "add",
    "atan2",
    "copysign",
    "div",
    "eq",
    "floor_divide",
    "fmax",
    "fmin",
    "fmod",
    "ge",
    "gt",
    "heaviside",
    "hypot",
    "le",
    "logaddexp",
    "logaddexp2",
    "logical_and",
    "lt",
    "maximum",
    "minimum",
    "mul",
    "ne",
    "pow",
    "remainder",
    "sub",
    "xlogy",
]
# What eager cannot tell apart, or what a kernel of ONNX Runtime 1.32 on CPU gets wrong.
LEFT_OUT: dict[str, tuple[float, ...]] = {
    "gelu": (-inf, inf),  # eager says NaN of both
    "fmod": (1e30,),  # eager divides first
    "remainder": (1e30,),
    "floor_divide": (-inf, inf),  # NaN in eager; the quotient by a power of two stays infinite
    "cos": (1e30,),  # of large arguments the last digits decide
    "sin": (1e30,),
    "tan": (1e30,),
    "sinc": (1e30,),
    "lgamma": (-inf,),
    "frac": (-inf, inf),
}


def numbers(name: str, dtype: torch.dtype) -> torch.Tensor:
    left_out = LEFT_OUT.get(name, ())
    return torch.tensor([v for v in VALUES if v not in left_out], dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", UNARY)
def test_functions_of_one_number(name: str, dtype: torch.dtype) -> None:
    check_call(getattr(torch, name), (numbers(name, dtype),), rtol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name: str, dtype: torch.dtype) -> None:
    check_call(getattr(F, name), (numbers(name, dtype),), rtol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", BINARY)
def test_functions_of_two_numbers(name: str, dtype: torch.dtype) -> None:
    x = numbers(name, dtype)
    first, second = torch.meshgrid(x, x, indexing="ij")
    check_call(getattr(torch, name), (first.contiguous(), second.contiguous()), rtol=1e-5)


@pytest.mark.parametrize("number", [2, -2, 3, 0.5, -0.5, 1, 0.3, -0.3, inf])
@pytest.mark.parametrize("name", ["floor_divide", "remainder", "fmod", "pow", "copysign", "clamp"])
def test_functions_of_a_tensor_and_a_number(name: str, number: float) -> None:
    x = numbers(name, torch.float32)
    check_call(lambda x: getattr(torch, name)(x, number), (x,))


@pytest.mark.parametrize("mode", ["floor", "trunc"])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int8])
def test_integer_division_rounds_as_torch_does(mode: str, dtype: torch.dtype) -> None:
    a, b = torch.meshgrid(torch.arange(-7, 8), torch.tensor([-3, -2, -1, 1, 2, 3]), indexing="ij")
    a, b = a.to(dtype), b.to(dtype)
    check_call(
        lambda a, b: (
            torch.div(a, b, rounding_mode=mode),
            a % b,
            torch.fmod(a, b),
            a // 2,
            a % -3,
        ),
        (a, b),
    )


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8])
def test_shifts_and_bits_wrap_as_torch_does(dtype: torch.dtype) -> None:
    info = torch.iinfo(dtype)
    x = torch.tensor([info.min, info.max, 0, 1, 5, info.max // 3], dtype=dtype)
    y = torch.tensor([0, 1, 2, 3, info.bits - 1, 4], dtype=dtype)
    for opset in (17, 23):
        check_call(
            lambda x, y: (x << y, x >> y, x >> 2, x << 3, x & y, x | y, x ^ y, ~x, x + x, x * y),
            (x, y),
            opset=opset,
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_sorting_puts_nan_last(dtype: torch.dtype) -> None:
    x = torch.tensor([[nan, 1.0, -inf, inf], [2.0, nan, nan, -1.0]], dtype=dtype)
    check_call(
        lambda x: (
            *x.sort(dim=1, stable=True),
            *x.topk(2),
            *x.median(1),
            *x.nanmedian(1),
            *x.cummax(1),
            *x.cummin(1),
            x.nansum(1),
            x.nan_to_num(0.0, 5.0, -5.0),
        ),
        (x,),
    )


def test_reductions_of_extremes() -> None:
    x = torch.tensor([[inf, 1.0, -inf], [-inf, -inf, -inf], [1e30, 1e30, 1.0]])
    check_call(
        lambda x: (
            x.sum(1),
            x.mean(1),
            x.logsumexp(1),
            x.softmax(1),
            x.prod(1),
            x.any(1),
            x.var(1),
        ),
        (x,),
    )


def strange(dtype: torch.dtype) -> torch.Tensor:
    """Images with NaN and infinities at several places."""
    torch.manual_seed(0)
    x = torch.randn(3, 4, 6, 8)
    x[0, 1, 2, 3] = x[2, 1, 1, 1] = nan
    x[1, :, 0, 0] = nan
    x[2, 0, 0], x[2, 2] = inf, -inf
    return x.to(dtype)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16], ids=str)
def test_extremes_keep_nan(dtype: torch.dtype) -> None:
    index = torch.tensor([0, 0, 1])
    check_call(
        lambda x: (
            x.amax(), x.amin((0, -1), True), *x.max(1), *x.min(-1, keepdim=True), x.max(), x.min(),
            *x.aminmax(), *x.aminmax(dim=2), x.argmax(), x.argmax(1), x.argmin(-1, True),
            x.logsumexp(1), *x.cummax(1), *x.cummin(0), x.log_softmax(-1), x.softmax(-1), x.sign(),
            torch.linalg.vector_norm(x, inf, 1), torch.maximum(x, x.flip(0)), x.clamp(-1, 1),
            x.index_reduce(0, index, x, "amin"),
            x.scatter_reduce(0, index.view(3, 1, 1, 1).expand_as(x), x, "amax"),
        ),
        (strange(dtype),),
    )  # fmt: skip


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16], ids=str)
def test_maximum_pools_keep_nan_and_infinity(dtype: torch.dtype) -> None:
    check_call(
        lambda x: (
            F.max_pool2d(x, 3, 2, 1), *F.max_pool2d(x, 3, 2, 1, return_indices=True),
            *F.max_pool1d(x[0], 2, return_indices=True), F.max_pool3d(x, 2),
            F.max_pool2d(x, 2, dilation=2), F.adaptive_max_pool2d(x, 2),
            *F.adaptive_max_pool2d(x, (4, 5), return_indices=True),
        ),
        (strange(dtype),),
    )  # fmt: skip


def test_running_extremes_keep_nan_along_a_dynamic_dim() -> None:
    check_call(lambda x: x.cummax(1), (strange(torch.float32),), dynamic_shapes=({1: "n"},))


def test_only_examples_with_nan_are_guarded() -> None:
    traced = check_call(
        lambda x: (x.amax(1), x.argmax(1), F.max_pool2d(x, 2)), (torch.randn(1, 2, 4, 4),)
    )
    assert op_types(traced) == ["ReduceMax", "ArgMax", "MaxPool"]


def test_comparisons_promote_as_torch_does() -> None:
    f, i, b = (
        torch.tensor([0.5, 1.0, 2.0]),
        torch.tensor([0, 1, 2]),
        torch.tensor([False, True, True]),
    )
    scalar = torch.tensor(1.5, dtype=torch.float64)

    def compare(f: Any, i: Any, b: Any, s: Any) -> Any:
        return (
            f > i, i == 1.5, b == 1, b < i, i + s, f + s, b + 1, b * f, i / 2, i // 2, i * 1.5, b & True,
            torch.where(b, i, f), torch.where(b, 1, f), torch.where(b, 1.0, 2.0), torch.where(b, 1, 0),
            torch.maximum(i, f), i.clamp(0.5), i.clamp(max=1), f.clamp(min=s), 2**i, f**2, i**2, 1 - i,
            1 / i.clamp(min=1), f.to(torch.int32) + i, torch.cat([f, i]), torch.stack([i, b]),
        )  # fmt: skip

    check_call(compare, (f, i, b, scalar))
