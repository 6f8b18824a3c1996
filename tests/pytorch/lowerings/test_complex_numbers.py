"""Complex tensors, which the graph holds as pairs of real numbers."""

from __future__ import annotations

import pytest
import torch

import bridge
from tests.pytorch.lowerings.cases import check_case, f32, op_cases, supported_rows
from tests.pytorch.opinfo import OpCase, check_call

c64 = torch.complex64
CASES = [
    *op_cases("complex polar view_as_complex", (f32, torch.float64)),
    *op_cases("chalf", (f32, torch.int64)),
    *op_cases(
        """
        T abs add addmm addmv angle as_strided as_strided_scatter bmm bool cat cfloat chunk clone
        conj conj_physical constant_pad_nd contiguous corrcoef cos cosh cov cumprod cumsum
        diag_embed diagonal diagonal_scatter div.no_rounding_mode double eq exp2 expand expand_as
        expm1 fill flatten flip float full_like gather half imag index_add index_put index_select
        int isfinite isinf isnan lerp linalg.vecdot log log10 log1p log2 long mH mT masked.prod
        masked_fill masked_select matmul mean mm movedim mul narrow ne neg nonzero ones_like
        permute prod put ravel real reciprocal repeat reshape resolve_conj roll rsqrt scatter
        scatter_add select sgn sigmoid sin sinh slice split split_with_sizes sqrt square squeeze
        stack std std_mean sub sum t take_along_dim tan tanh tile transpose tril triu unbind
        unflatten unsqueeze var var_mean view view_as view_as_real where zeros_like
        """,
        (c64,),
        every=2,
        rtol=1e-5,
        why="products of four real numbers",
    ),
    *op_cases(
        """
        acos acosh asin asinh atan atanh float_power ldexp linalg.eigvalsh linalg.inv linalg.inv_ex
        linalg.matrix_power linalg.solve linalg.solve_ex linalg.svdvals linalg.tensorinv
        linalg.vander pow triangular_solve cholesky_solve
        """,
        (c64,),
        every=3,
        rtol=1e-3,
        atol=1e-3,
        why="by way of logarithms, or of equations twice as large",
    ),
    *op_cases(
        """
        cholesky_inverse linalg.cholesky linalg.cholesky_ex linalg.det linalg.lu linalg.lu_factor_ex
        linalg.lu_solve linalg.slogdet logdet lu_unpack
        """,
        (c64,),
        every=3,
        rtol=1e-3,
        atol=1e-3,
        why="products of four real numbers, column after column",
    ),
    *op_cases("linalg.solve_triangular", (c64,), every=9, rtol=1e-3, atol=1e-3, why="as above"),
]


@pytest.mark.parametrize(("case", "dtype"), supported_rows(CASES))
def test_matches_eager(case: OpCase, dtype: torch.dtype) -> None:
    check_case(case, dtype)


def test_rotary_embeddings_in_complex_numbers() -> None:
    angles = torch.outer(torch.arange(64.0), 1 / 10 ** (torch.arange(4) / 4))
    table = torch.polar(torch.ones_like(angles), angles)

    def rotate(x: torch.Tensor) -> torch.Tensor:
        pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
        turned = pairs * table[: x.shape[1]].view(1, x.shape[1], 1, 4)
        return torch.view_as_real(turned).flatten(3).type_as(x)

    check_call(
        rotate,
        (torch.randn(2, 5, 3, 8),),
        dynamic_shapes=({0: "batch", 1: "length"},),
        others=[(torch.randn(1, 64, 3, 8),), (torch.randn(3, 1, 3, 8),)],
    )


def test_writes_through_the_parts_of_a_complex_tensor() -> None:
    def write(x: torch.Tensor) -> torch.Tensor:
        z = torch.complex(x, x)
        z.real.mul_(2)
        z.imag[0] = 7
        z += 1j
        z[1] = 0
        return torch.view_as_real(z)

    check_call(write, (torch.randn(3, 4),))


def test_programs_take_and_give_complex_tensors() -> None:
    z = torch.randn(2, 3, dtype=c64)
    program = bridge.export(
        lambda z: {"square": z * z, "size": z.abs()}, (z,), dynamic_shapes=({0: "n"},)
    )
    z = torch.randn(5, 3, dtype=c64)
    got = program(z)
    torch.testing.assert_close(got["square"], z * z)
    torch.testing.assert_close(got["size"], z.abs())


def test_values_of_nothing_are_real() -> None:
    nothing = torch.zeros(2, 0, 0, dtype=c64)
    check_call(lambda x: (torch.linalg.eigh(x).eigenvalues, torch.linalg.svd(x).S), (nothing,))


def test_other_precisions() -> None:
    check_call(lambda x: (x.cdouble() * 1j).imag + x.cfloat().real, (torch.randn(3),))


def test_numbers_with_an_imaginary_part() -> None:
    check_call(lambda x: (x * 1j + (2 - 1j)).abs() + (1j * x).imag, (torch.randn(3),))
