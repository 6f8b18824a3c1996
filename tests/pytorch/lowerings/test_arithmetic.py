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
    op_types,
    supported_rows,
)
from tests.pytorch.opinfo import OpCase, check_call

ROUNDED = {"rtol": 1e-2, "atol": 1e-2, "why": "eager rounds once, the graph after each node"}
CASES = [
    *op_cases(
        """
        __radd__ __rdiv__ __rmod__ __rmul__ __rpow__ __rsub__ add atan2 copysign div.floor_rounding
        div.no_rounding_mode div.trunc_rounding floor_divide fmod gcd heaviside hypot lcm ldexp
        logaddexp logaddexp2 mul pow remainder rsub sub true_divide xlogy special.xlog1py dist
        """,
        ALL,
    ),
    *op_cases("addcdiv addcmul lerp", tuple(d for d in ALL if d != f16)),
    *op_cases("addcdiv addcmul lerp", (f16,), **ROUNDED),
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


SHORT = {
    "x + 1": (lambda x: x + 1, ["Add"]),
    "x ** 2": (lambda x: x**2, ["Mul"]),
    "x ** 0.5": (lambda x: x.abs() ** 0.5, ["Abs", "Sqrt"]),
    "x ** -1": (lambda x: x**-1, ["Reciprocal"]),
    "x ** 3": (lambda x: x.pow(3), ["Mul", "Mul"]),
    "x // 2": (lambda x: x // 2, ["Div", "Floor"]),
    "x % 1": (lambda x: x % 1, ["Floor", "Sub"]),
    "add alpha": (lambda x: torch.add(x, x, alpha=2), ["Mul", "Add"]),
    "addcmul": (lambda x: torch.addcmul(x, x, x), ["Mul", "Add"]),
    "rsub": (lambda x: 1 - x, ["Sub"]),
}


@pytest.mark.parametrize("name", SHORT)
def test_common_forms_are_short(name: str) -> None:
    function, nodes = SHORT[name]
    traced = check_call(function, (torch.tensor([0.5, -2.5, 3.0]),))
    assert op_types(traced) == nodes


@pytest.mark.parametrize("name", ["divide", "multiply", "subtract", "true_divide", "arctan2"])
def test_other_names_match_eager(name: str) -> None:
    check_call(getattr(torch, name), (torch.randn(3), torch.randn(3)))


def test_floor_division_is_exact_where_the_quotient_rounds_up() -> None:
    x = torch.tensor([1.0, 0.3, 6.0, -1.0, 7.5], dtype=torch.float64)
    y = torch.tensor([0.1, 0.1, 0.1, 0.1, -0.3], dtype=torch.float64)
    check_call(lambda x, y: (x // y, x % y, x // 0.1, x % 0.1, x % -0.1), (x, y))


def test_int64_arithmetic_keeps_all_digits() -> None:
    x = torch.tensor([2**62 + 1, -(2**61) - 3, 2**53 + 1])
    check_call(lambda x: (x // 7, x % 10, x - 1, x // -3, x.abs(), -x, x & 255, x >> 3), (x,))


def test_sizes_are_operands() -> None:
    check_call(
        lambda x: (
            x * x.shape[0],
            x.shape[1] - x,
            x / x.shape[0],
            x.shape[0] ** 0.5 * x,
            x // x.shape[1],
        ),
        (torch.randn(3, 5),),
        dynamic_shapes=({0: "n", 1: "m"},),
    )


def test_quotients_rounded_down_at_the_ends_of_a_type() -> None:
    ends = torch.tensor([127, -128, 100, -100, 7, 0], dtype=torch.int8)
    check_call(lambda x: (x // -3, x // 7, x // x.flip(0).clamp(min=1)), (ends,))
    wild = torch.tensor([torch.inf, -torch.inf, torch.nan, -0.0, 7.5, -7.5])
    check_call(lambda x: (x // 3, x // 0.7, x // x.flip(0)), (wild,))


def test_logarithms_of_integers_take_the_other_factors_dtype() -> None:
    check_call(torch.xlogy, (torch.tensor([0.5, 0, 2]).half(), torch.tensor([3, 0, 1])))
    for dtype in (torch.float16, torch.float64, torch.int32):
        check_call(
            lambda x: (torch.xlogy(x, 3.3), torch.xlogy(2, x), torch.special.xlog1py(x, 2)),
            (torch.tensor(4).to(dtype),),
            rtol=2e-3,  # eager rounds once in half precision
        )
