from __future__ import annotations

from typing import Any

import pytest
import torch

from exporters.errors import UnsupportedOpError
from tests.pytorch.lowerings.cases import (
    FLOATS,
    check_case,
    check_opset,
    f32,
    f64,
    op_cases,
    op_types,
    opset_rows,
    rows,
)
from tests.pytorch.opinfo import OpCase, check_call

STEPS = {"rtol": 1e-3, "atol": 1e-3, "why": "another order of elimination; conditions up to 100"}
NAMES = """
    cholesky cholesky_inverse cholesky_solve geqrf linalg.cholesky linalg.cholesky_ex linalg.cond
    linalg.det linalg.eigvalsh linalg.householder_product linalg.inv linalg.inv_ex linalg.lu
    linalg.lu_factor linalg.lu_factor_ex linalg.matrix_norm linalg.matrix_power
    linalg.matrix_rank linalg.matrix_rank.hermitian linalg.norm linalg.pinv
    linalg.pinv.hermitian linalg.pinv.singular linalg.qr linalg.slogdet linalg.solve
    linalg.solve_ex linalg.tensorinv linalg.tensorsolve logdet lu lu_solve lu_unpack matrix_exp
    linalg.lstsq.grad_oriented
    norm.nuc pinverse qr triangular_solve
"""
MANY = (
    "linalg.lu_solve linalg.norm.subgradients_at_zero linalg.solve_triangular linalg.svdvals ormqr"
)
CASES = (
    *op_cases(NAMES, (f32,), **STEPS),
    *op_cases(NAMES, (f64,), rtol=1e-6, atol=1e-6, why=STEPS["why"]),
    *op_cases(MANY, (f32,), every=4, **STEPS),
    *op_cases(MANY, (f64,), every=4, rtol=1e-6, atol=1e-6, why=STEPS["why"]),
)


def _whole_again(name: str) -> Any:
    """The matrix from its parts: vectors may have either sign."""

    def eigh(x: Any, **options: Any) -> Any:
        values, vectors = torch.linalg.eigh(x, **options)
        return values, vectors @ torch.diag_embed(values) @ vectors.mT, vectors.mT @ vectors

    def svd(x: Any, **options: Any) -> Any:
        left, values, right = torch.linalg.svd(x, **options)
        k = values.shape[-1]
        whole = (left[..., :k] * values[..., None, :]) @ right[..., :k, :]
        return values, whole, left.mT @ left, right @ right.mT

    return {"linalg.eigh": eigh, "linalg.svd": svd}[name]


VECTORS = tuple(
    OpCase(name, dtypes=FLOATS, call=_whole_again(name), rtol=1e-3, atol=1e-3, every=3,
           why="rotations in another order")
    for name in ("linalg.eigh", "linalg.svd")
)  # fmt: skip
UNSUPPORTED = ("linalg.eig", "linalg.eigvals", "linalg.ldl_factor", "linalg.ldl_solve")


@pytest.mark.filterwarnings("ignore:torch.qr is deprecated")  # torch makes samples with it
@pytest.mark.parametrize(("case", "dtype"), rows((*CASES, *VECTORS)))
def test_matches_eager(case: OpCase, dtype: torch.dtype) -> None:
    check_case(case, dtype)


@pytest.mark.parametrize(
    ("case", "opset"), opset_rows([c for c in CASES if f32 in c.dtypes], (17, 18))
)
def test_matches_eager_in_other_opsets(case: OpCase, opset: int) -> None:
    check_opset(case, opset)


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_complex_results_and_pivoted_ldl_are_refused(name: str) -> None:
    from tests.pytorch.opinfo import check_sample, samples

    with pytest.raises(UnsupportedOpError):
        check_sample(OpCase(name), next(samples(name, f32)))


def _positive(x: torch.Tensor) -> torch.Tensor:
    return x @ x.mT + torch.diag_embed(torch.arange(x.shape[-1]) + 1.0)


def _random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=f64)


CALLS = {
    "inv": torch.linalg.inv,
    "solve": lambda x: torch.linalg.solve(x, x.mT + 1),
    "cholesky": torch.linalg.cholesky,
    "qr": lambda x: torch.linalg.qr(x),
    "slogdet": lambda x: torch.linalg.slogdet(x),
    "det": torch.linalg.det,
    "matrix_exp": lambda x: torch.linalg.matrix_exp(x / 10),
}


@pytest.mark.parametrize("name", CALLS)
def test_dynamic_batch_and_size(name: str) -> None:
    check_call(
        lambda x: CALLS[name](_positive(x)),  # repeated rows alone would be singular
        (_random(2, 4, 4),),
        dynamic_shapes={"x": {0: "b", 1: "n", 2: "n"}},
        others=[(_random(1, 6, 6),), (_random(3, 1, 1),)],
        rtol=1e-7,
        atol=1e-7,
    )


@pytest.mark.parametrize("name", ["eigh", "svd"])
def test_larger_matrices(name: str) -> None:
    x = torch.randn(20, 20, dtype=f64)
    x = x + x.mT if name == "eigh" else x[:, :15]
    check_call(_whole_again(f"linalg.{name}"), (x,), rtol=1e-9, atol=1e-9)


def test_rotations_of_a_dynamic_number_of_columns() -> None:
    check_call(
        lambda x: _whole_again("linalg.eigh")(x + x.mT),
        (_random(2, 4, 4),),
        dynamic_shapes={"x": {1: "n", 2: "n"}},
        others=[(_random(2, 7, 7),), (_random(2, 1, 1),)],
        rtol=1e-9,
        atol=1e-9,
    )


def test_singular_values_of_matrices_of_any_size() -> None:
    def call(x):
        left, values, right = torch.linalg.svd(x, full_matrices=False)
        return values, (left * values.unsqueeze(-2)) @ right

    check_call(
        call,
        (_random(4, 6),),
        dynamic_shapes={"x": {0: "m", 1: "n"}},
        others=[(_random(7, 3),), (_random(1, 5),), (_random(5, 1),), (_random(3, 3),)],
        rtol=1e-9,
        atol=1e-9,
    )


@pytest.mark.parametrize("rank", [0, 1, 2, 3])
def test_singular_vectors_of_singular_matrices_are_orthogonal(rank: int) -> None:
    def call(x):
        left, values, right = torch.linalg.svd(x, full_matrices=False)
        return values, (left * values.unsqueeze(-2)) @ right, left.mT @ left, right @ right.mT

    flat = _random(2, 5, rank) @ _random(2, rank, 3)
    check_call(call, (flat,), rtol=1e-9, atol=1e-7)
    check_call(call, (flat.mT,), rtol=1e-9, atol=1e-7)


def test_least_squares_of_a_dynamic_number_of_rows() -> None:
    check_call(
        lambda a, b: torch.linalg.lstsq(a, b).solution,
        (_random(9, 4), _random(9, 2)),
        dynamic_shapes={"a": {0: "rows"}, "b": {0: "rows"}},
        others=[(_random(30, 4), _random(30, 2)), (_random(3, 4), _random(3, 2))],
        rtol=1e-8,
        atol=1e-8,
    )


@pytest.mark.parametrize(
    "values", [[1.0] * 6, [1, 1, 1, 2, 2, 2], [0, 0, 0, 0, 0, 1], [-1, 0, 1e-9, 1e-9, 1, 5]]
)
def test_eigenvalues_that_are_the_same(values: list[float]) -> None:
    turned, _ = torch.linalg.qr(_random(6, 6))
    x = (turned * torch.tensor(values, dtype=f64)) @ turned.mT
    check_call(_whole_again("linalg.eigh"), (x + x.mT,), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("shape", "other"),
    [
        ((3, 3), (3,)),
        ((2, 3, 3), (2, 3)),
        ((2, 3, 3), (3, 4)),
        ((3, 3), (2, 3, 4)),
        ((5, 1, 3, 3), (2, 3, 4)),
        ((1, 1), (1,)),
    ],
)
def test_right_sides_of_every_shape(shape: tuple[int, ...], other: tuple[int, ...]) -> None:
    a, b = _positive(_random(*shape)), _random(*other)
    check_call(torch.linalg.solve, (a, b), rtol=1e-9, atol=1e-9)
    if other[-1] == 4:
        check_call(
            lambda a, b: torch.linalg.solve(a, b.mT, left=False), (a, b), rtol=1e-9, atol=1e-9
        )


def test_pivots_that_have_to_be_looked_for() -> None:
    a = torch.tensor([[0.0, 2, 1], [1e-20, 0, 3], [4, 0, 0]])
    check_call(torch.linalg.solve, (a, torch.arange(3.0)))
    check_call(torch.linalg.inv, (torch.stack([a, a.mT, a.flip(0)]),))


def test_one_scan_per_factorization() -> None:
    traced = check_call(torch.linalg.inv, (_positive(_random(8, 8)),), rtol=1e-7, atol=1e-7)
    assert op_types(traced).count("Scan") == 1
    assert len(op_types(traced)) < 12


def test_determinant_is_one_node() -> None:
    assert op_types(check_call(torch.linalg.det, (torch.randn(2, 4, 4),), rtol=1e-4)) == ["Det"]


def test_too_many_columns_to_rotate() -> None:
    with pytest.raises(UnsupportedOpError, match="too many to rotate"):
        check_call(torch.linalg.eigvalsh, (torch.eye(257),))


def test_an_empty_example_says_nothing_of_other_sizes() -> None:
    check_call(
        lambda x: torch.linalg.cholesky_ex(x).info,
        (torch.zeros(0, 3, 3),),
        dynamic_shapes=({0: "n"},),
        others=[(-torch.eye(3).expand(2, 3, 3),)],
    )
