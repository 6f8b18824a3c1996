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
PRODUCTS = """
    addbmm addmm addmm.decomposed addmv addr baddbmm bmm dot einsum inner matmul mm mv
    nn.functional.bilinear nn.functional.linear outer tensordot vdot
"""
CASES = (
    *op_cases(PRODUCTS, FLOATS, **SUMS),
    *op_cases("addmm bmm einsum matmul mm nn.functional.linear", ALL_FLOATS[2:], rtol=2e-2,
              atol=2e-2, why="half precision: " + SUMS["why"]),
    *op_cases("addbmm addmm addmv addr baddbmm bmm dot inner matmul mm mv outer", (torch.int64,)),
    *op_cases("einsum matmul nn.functional.linear", (torch.int64,)),
    *op_cases("""
        block_diag cdist corrcoef cov cross dist kron linalg.cross linalg.diagonal
        linalg.multi_dot linalg.vander linalg.vecdot linalg.vector_norm
        nn.functional.pdist norm norm.fro norm.inf renorm trace
    """, FLOATS, **SUMS),
)  # fmt: skip
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


@pytest.mark.parametrize(("case", "dtype"), rows(CASES))
def test_matches_eager(case: OpCase, dtype: torch.dtype) -> None:
    check_case(case, dtype)


@pytest.mark.parametrize(
    ("case", "opset"), opset_rows([c for c in CASES if f32 in c.dtypes], (17, 18, 21, 24))
)
def test_matches_eager_in_other_opsets(case: OpCase, opset: int) -> None:
    check_opset(case, opset)


@pytest.mark.parametrize("name", ["nn.Linear", "nn.Bilinear"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_modules_match_eager(name: str, dtype: torch.dtype) -> None:
    check_module(name, dtype, **(CLOSE if dtype == f32 else {}))


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [
        ((2, 8), ["Gemm"]),
        ((2, 3, 8), ["Transpose", "MatMul", "Add"]),
        ((8,), ["Transpose", "MatMul", "Add"]),
    ],
)
def test_linear_of_dynamic_batch(shape: tuple[int, ...], wanted: list[str]) -> None:
    layer = nn.Linear(8, 4)
    dynamic = {"x": {0: "b"}} if len(shape) > 1 else None
    others = [(R(n, *shape[1:]),) for n in (0, 1, 5)] if dynamic else []
    traced = check_call(
        lambda x: layer(x), (R(shape),), dynamic_shapes=dynamic, others=others, **CLOSE
    )
    assert op_types(traced) == wanted


def test_a_weight_is_transposed_once() -> None:
    layer = nn.Linear(8, 8)
    traced = check_call(lambda x: layer(layer(x)), (R(2, 3, 8),), **CLOSE)
    assert op_types(traced).count("Transpose") == 1


EQUATIONS = [
    ("bhid,bhjd->bhij", [(2, 3, 4, 5), (2, 3, 6, 5)]),
    ("bij,bjk->bik", [(2, 3, 4), (2, 4, 5)]),
    ("bqhd,bkhd->bhqk", [(2, 3, 4, 5), (2, 6, 4, 5)]),
    ("bn,anm,bm->ba", [(2, 5), (3, 5, 4), (2, 4)]),
    ("abc,cde,ae->bd", [(2, 3, 4), (4, 5, 6), (2, 6)]),
    ("nhwc,hkc->nhwk", [(2, 3, 4, 5), (3, 6, 5)]),
    ("ij,ij->", [(2, 3), (2, 3)]),
    ("ij,kl->ijkl", [(2, 3), (4, 5)]),
    ("ijkl,klmn->mnij", [(2, 3, 4, 5), (4, 5, 6, 7)]),
    ("btd,hde->bthe", [(2, 3, 4), (5, 4, 6)]),
    ("bqc,bckd->bqkd", [(2, 3, 4), (2, 4, 5, 6)]),
    ("bi,bi->b", [(2, 3), (2, 3)]),
    ("ab->ba", [(2, 3)]),
    ("abc->b", [(2, 3, 4)]),
]


PLAIN = ("bhid,bhjd->bhij", "bqhd,bkhd->bhqk")


@pytest.mark.parametrize(("equation", "shapes"), EQUATIONS, ids=str)
def test_einsum_of_dynamic_sizes(equation: str, shapes: list[tuple[int, ...]]) -> None:
    letters = equation.partition("->")[0].split(",")
    sizes = {
        x: n for term, shape in zip(letters, shapes, strict=True)
        for x, n in zip(term, shape, strict=True)
    }  # fmt: skip

    def call(*operands: Any) -> Any:
        return torch.einsum(equation, *operands)

    def operands(change: int) -> Any:
        return tuple(R([sizes[x] + change for x in term]) for term in letters)

    # ORT's Einsum would end the process; its fusion of Reshape takes no dim to be 0.
    several = max(len(x) for x in letters) > 3 or len(letters) > 2
    empty = tuple(R([0 if x == letters[0][0] else sizes[x] for x in term]) for term in letters)
    others = [operands(2)] if several and equation not in PLAIN else [operands(2), empty]
    traced = check_call(
        call,
        operands(0),
        dynamic_shapes={"operands": [dict(enumerate(term)) for term in letters]},
        others=others,
        **CLOSE,
    )
    assert "Einsum" not in op_types(traced)


@pytest.mark.parametrize(
    ("equation", "shapes"),
    [("ii->i", [(3, 3)]), ("ii,ij->j", [(3, 3), (3, 2)]), ("...ij,...jk", [(2, 3, 4), (4, 5)]),
     ("ai,bi->ab", [(1, 3), (2, 3)])],
    ids=str,
)  # fmt: skip
def test_other_equations(equation: str, shapes: list[tuple[int, ...]]) -> None:
    check_call(
        lambda *x: torch.einsum(equation, *x), tuple(R(s) for s in shapes), opset=17, **CLOSE
    )
    check_call(lambda *x: torch.einsum(equation, *x), tuple(R(s) for s in shapes), **CLOSE)


def test_einsum_by_numbers() -> None:
    check_call(
        lambda a, b: torch.einsum(a, [0, 1], b, [1, 2], [2, 0]), (R(2, 3), R(3, 4)), **CLOSE
    )


def test_beta_of_zero_forgets_the_input() -> None:
    nan = torch.full((2, 4), torch.nan)
    check_call(lambda i, a, b: torch.addmm(i, a, b, beta=0), (nan, R(2, 3), R(3, 4)), **CLOSE)


@pytest.mark.parametrize("rows", [5, 40])  # torch uses a product from 26 rows on
def test_distances(rows: int) -> None:
    check_call(
        lambda x, y: torch.cdist(x, y),
        (R(2, rows, 8), R(2, 7, 8)),
        dynamic_shapes={"x": {0: "b", 1: "n"}, "y": {0: "b", 1: "m"}},
        others=[(R(1, rows + 1, 8), R(1, 3, 8))],
        rtol=1e-3,
        atol=1e-3,
    )


def test_products_of_dynamic_operands() -> None:
    def call(x: Any, y: Any) -> Any:
        return x @ y.mT, torch.tensordot(x, y, dims=([2], [2])), F.linear(x, y[0])

    check_call(
        call,
        (R(2, 3, 4), R(2, 5, 4)),
        dynamic_shapes={"x": {0: "b", 1: "n"}, "y": {0: "b", 1: "m"}},
        others=[(R(1, 1, 4), R(1, 2, 4))],
        **CLOSE,
    )


@pytest.mark.parametrize("opset", [17, 23])
def test_rows_in_groups_have_a_matrix_each(opset: int) -> None:
    weights = torch.randn(4, 8, 16)

    def experts(x: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
        return F.grouped_mm(x, weights, offs=ends)

    ends = torch.tensor([0, 3, 3, 6], dtype=torch.int32)
    # Verification would give ends in another order, of which torch makes nothing either.
    program = bridge.export(experts, (torch.randn(6, 8), ends), opset=opset, verify=False)
    for counts in ([0, 3, 3, 6], [6, 6, 6, 6], [1, 2, 4, 6]):
        x, ends = torch.randn(6, 8), torch.tensor(counts, dtype=torch.int32)
        torch.testing.assert_close(program(x, ends), experts(x, ends), rtol=1e-4, atol=1e-5)


def test_groups_of_equal_size() -> None:
    check_call(lambda x, w: F.grouped_mm(x, w), (torch.randn(3, 8, 8), torch.randn(3, 8, 16)))


def test_norms_of_dims_that_may_have_size_one():
    def unit(x):
        return torch.nn.functional.normalize(x, dim=-1)

    program = bridge.export(unit, torch.randn(2, 3, 1), dynamic_shapes={"x": {0: "a", 2: "b"}})
    for shape in [(1, 3, 1), (2, 3, 4), (0, 3, 2)]:
        x = torch.randn(shape)
        torch.testing.assert_close(program(x), unit(x))


@pytest.mark.parametrize(
    ("call", "wanted"),
    [
        (lambda a, v: a @ v, ["Unsqueeze", "MatMul", "Squeeze"]),
        (lambda a, v: v @ a, ["MatMul"]),
        (lambda a, v: a.t() @ v, ["MatMul"]),
        (lambda a, v: v @ a.t(), ["Transpose", "MatMul"]),
    ],
)
def test_products_with_a_vector_are_right_and_of_matrices(call: Any, wanted: list[str]) -> None:
    inputs = (R(6, 6), R(6))
    traced = check_call(call, inputs, others=[(R(6, 6), R(6))], **CLOSE)
    assert [o for o in op_types(traced) if o != "Identity"] == wanted
