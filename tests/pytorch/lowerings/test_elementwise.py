from __future__ import annotations

import operator

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
    abs acos acosh angle asin asinh atan atanh ceil cos cosh deg2rad exp exp2 expm1 float_power
    floor frac frexp isfinite isinf isnan isneginf isposinf isreal log log10 log1p log2 logit
    nan_to_num neg positive rad2deg real reciprocal resolve_conj resolve_neg conj conj_physical
    round round.decimals_0 round.decimals_3 round.decimals_neg_3 rsqrt sgn sigmoid sign signbit
    sin sinc sinh sqrt square tan tanh trunc
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


ALIASES = """
    absolute arccos arccosh arcsin arcsinh arctan arctanh fix negative special.expit special.exp2
    special.expm1 special.log1p special.sinc special.round
"""


@pytest.mark.parametrize("name", ALIASES.split())
def test_other_names_match_eager(name: str) -> None:
    function = operator.attrgetter(name)(torch)
    x = torch.tensor([1.0, 1.5, 0.5, 0.0])
    check_call(function, (x,))


ONE_NODE = {
    "abs": "Abs", "ceil": "Ceil", "cos": "Cos", "erf": "Erf", "exp": "Exp", "floor": "Floor",
    "frac": "Mod", "isnan": "IsNaN", "log": "Log", "neg": "Neg", "reciprocal": "Reciprocal",
    "round": "Round", "sigmoid": "Sigmoid", "sign": "Sign", "sin": "Sin", "sqrt": "Sqrt",
    "tanh": "Tanh",
}  # fmt: skip


@pytest.mark.parametrize("name", ONE_NODE)
def test_functions_are_one_node_where_one_exists(name: str) -> None:
    traced = check_call(getattr(torch, name), (torch.tensor([0.5, -2.5, 3.0]),))
    assert op_types(traced) == [ONE_NODE[name]]


@pytest.mark.parametrize("base", [2, 10])
def test_logarithms_of_powers_are_whole(base: int) -> None:
    powers = torch.tensor([float(base) ** n for n in range(12)])
    check_call(getattr(torch, f"log{base}"), (powers,), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["expm1", "log1p", "asinh", "sinh", "tanh", "atan"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_small_arguments_keep_their_digits(name: str, dtype: torch.dtype) -> None:
    x = torch.logspace(-12, -1, 40, dtype=dtype)
    eps = 8 * torch.finfo(dtype).eps
    check_call(getattr(torch, name), (torch.cat([x, -x]),), rtol=eps, atol=0)
