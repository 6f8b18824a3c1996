"""Systems of linear equations, inverses and determinants, by way of factorizations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnx_ir as ir
import torch

from exporters.pytorch.lowerings.arithmetic import number
from exporters.pytorch.registry import Unlowerable, decomposes, lowers

if TYPE_CHECKING:
    from exporters.tracing.graph import GraphBuilder as Op

T = torch.Tensor
SYM_MIN: Any = torch.sym_min  # not annotated
aten = torch.ops.aten


def _sign_of_exchanges(pivots: T) -> T:
    """-1 for an odd number of rows that were exchanged."""
    moved = pivots != torch.arange(1, pivots.shape[-1] + 1)
    return 1 - 2 * (moved.sum(-1) % 2)


# Determinants


@lowers(torch.linalg.det, torch.det)
def det(op: Op, /, A: ir.Value) -> ir.Value:
    """Lower to ``Det-11``, of which ORT has a float32 kernel."""
    if A.dtype != ir.DataType.FLOAT or 0 in list(A.shape.dims):
        raise Unlowerable("ORT's Det takes float32")
    return op.Det(A)


@decomposes(torch.linalg.det, torch.det)
def det_by_factors(A: torch.Tensor) -> T:
    if A.shape[-1] == 0:
        return A.new_ones(A.shape[:-2])
    factors, pivots, _ = torch.linalg.lu_factor_ex(A)
    diagonal = factors.diagonal(dim1=-2, dim2=-1)
    return diagonal.prod(-1) * _sign_of_exchanges(pivots).to(A.dtype)


@decomposes(aten._linalg_det)
def _linalg_det(A: torch.Tensor) -> tuple[T, T, T]:
    factors, pivots, _ = torch.linalg.lu_factor_ex(A)
    return torch.linalg.det(A), factors, pivots


def _signed_log(A: T) -> tuple[T, T, T, T]:
    if A.shape[-1] == 0:
        one = A.new_ones(A.shape[:-2])
        return one, torch.zeros_like(one).real, A, A.new_zeros(A.shape[:-1], dtype=torch.int32)
    factors, pivots, _ = torch.linalg.lu_factor_ex(A)
    diagonal = factors.diagonal(dim1=-2, dim2=-1)
    sign = _sign_of_exchanges(pivots).to(A.dtype) * diagonal.sgn().prod(-1)
    return sign, diagonal.abs().log().sum(-1), factors, pivots


@decomposes(torch.linalg.slogdet, torch.slogdet)
def slogdet(A: torch.Tensor) -> tuple[T, T]:
    return _signed_log(A)[:2]


@decomposes(aten._linalg_slogdet)
def _linalg_slogdet(A: torch.Tensor) -> tuple[T, T, T, T]:
    return _signed_log(A)


@decomposes(torch.logdet)
def logdet(input: torch.Tensor) -> T:
    sign, log = slogdet(input)
    return torch.where(sign < 0, torch.full_like(log, torch.nan), log)


# Solutions and inverses


def _is_vector(A: T, B: T) -> bool:
    """Torch's rule for what is one right side per matrix rather than a matrix of them."""
    return B.dim() == 1 or (A.dim() - 1 == B.dim() and list(B.shape) == list(A.shape[:-1]))


def _empty(*tensors: T) -> bool:
    return any(not hasattr(n, "record") and n == 0 for x in tensors for n in x.shape)


@decomposes(torch.linalg.solve)
def solve(A: torch.Tensor, B: torch.Tensor, *, left: bool = True) -> T:
    """By way of matrices with as many dims, and right sides on the left."""
    if _is_vector(A, B):
        return solve(A, B.unsqueeze(-1), left=left).squeeze(-1)
    if _empty(A, B):
        return A @ B if left else B @ A
    if not left:
        return solve(A.mT, B.mT).mT
    dims = max(A.dim(), B.dim())
    return torch.linalg.solve(*(x[(None,) * (dims - x.dim())] for x in (A, B)))


@decomposes(aten._linalg_solve_ex)
def _linalg_solve_ex(
    A: torch.Tensor, B: torch.Tensor, *, left: bool = True, check_errors: bool = False
) -> tuple[T, T, T, T]:
    factors, pivots, info = _factors(A)
    return torch.linalg.solve(A, B, left=left), factors, pivots, info


def _factors(A: T) -> tuple[T, T, T]:
    if _empty(A):
        whole = A.new_zeros(A.shape[:-1], dtype=torch.int32)
        return A.clone(), whole, A.new_zeros(A.shape[:-2], dtype=torch.int32)
    return torch.linalg.lu_factor_ex(A)


@decomposes(torch.linalg.solve_ex)
def solve_ex(
    A: torch.Tensor, B: torch.Tensor, *, left: bool = True, check_errors: bool = False
) -> tuple[T, T]:
    return torch.linalg.solve(A, B, left=left), _factors(A)[2]


@decomposes(torch.linalg.inv, torch.inverse)
def inv(A: torch.Tensor) -> T:
    unit = torch.eye(A.shape[-1], dtype=A.dtype)
    return A.clone() if _empty(A) else torch.linalg.solve(A, unit.expand(A.shape))


@decomposes(torch.linalg.inv_ex)
def inv_ex(A: torch.Tensor, *, check_errors: bool = False) -> tuple[T, T]:
    return inv(A), _factors(A)[2]


@decomposes(torch.linalg.lu_factor)
def lu_factor(A: torch.Tensor, *, pivot: bool = True) -> tuple[T, T]:
    factors, pivots, _ = torch.linalg.lu_factor_ex(A, pivot=pivot)
    return factors, pivots


@decomposes(torch.linalg.lu)
def lu(A: torch.Tensor, *, pivot: bool = True) -> tuple[T, T, T]:
    factors, pivots, _ = torch.linalg.lu_factor_ex(A, pivot=pivot)
    permutation, lower, upper = torch.lu_unpack(factors, pivots)
    return permutation if pivot else A.new_zeros(0), lower, upper


@decomposes(torch.linalg.lu_solve)
def linalg_lu_solve(
    LU: torch.Tensor, pivots: torch.Tensor, B: torch.Tensor, *, left: bool = True,
    adjoint: bool = False,
) -> T:  # fmt: skip
    if _empty(LU, B):
        return LU @ B if left else B @ LU
    permutation, lower, upper = torch.lu_unpack(LU, pivots)
    right = B if left else B.mT
    right = right.conj() if adjoint else right  # A^H X = B is A.T conj(X) = conj(B)
    if left != adjoint:  # X A = B is A.T X.T = B.T
        x = torch.linalg.solve_triangular(
            lower, permutation.mT @ right, upper=False, unitriangular=True
        )
        x = torch.linalg.solve_triangular(upper, x, upper=True)
    else:
        x = torch.linalg.solve_triangular(upper.mT, right, upper=False)
        x = torch.linalg.solve_triangular(lower.mT, x, upper=True, unitriangular=True)
        x = permutation @ x
    x = x if left else x.mT
    return x.conj() if adjoint else x


@decomposes(torch.lu_solve)
def lu_solve(input: torch.Tensor, LU_data: torch.Tensor, LU_pivots: torch.Tensor) -> T:
    return linalg_lu_solve(LU_data, LU_pivots, input)


@decomposes(torch.triangular_solve)
def triangular_solve(
    input: torch.Tensor, A: torch.Tensor, upper: bool = True, transpose: bool = False,
    unitriangular: bool = False,
) -> tuple[T, T]:  # fmt: skip
    a = A.mT if transpose else A
    x = torch.linalg.solve_triangular(
        a, input, upper=upper != transpose, unitriangular=unitriangular
    )
    return x, A.clone()


# By way of Cholesky's factor


@decomposes(torch.linalg.cholesky)
def linalg_cholesky(input: torch.Tensor, *, upper: bool = False) -> T:
    if _empty(input):
        return input.clone()
    return torch.linalg.cholesky_ex(input, upper=upper)[0]


@decomposes(torch.cholesky)
def cholesky(input: torch.Tensor, upper: bool = False) -> T:
    return linalg_cholesky(input, upper=upper)


@decomposes(torch.cholesky_solve)
def cholesky_solve(B: torch.Tensor, L: torch.Tensor, upper: bool = False) -> T:
    if _empty(B, L):
        return L @ B
    lower = L.mH if upper else L
    x = torch.linalg.solve_triangular(lower.tril(), B, upper=False)
    return torch.linalg.solve_triangular(lower.mH.triu(), x, upper=True)


@decomposes(torch.cholesky_inverse)
def cholesky_inverse(L: torch.Tensor, upper: bool = False) -> T:
    unit = torch.eye(L.shape[-1], dtype=L.dtype)
    return cholesky_solve(unit.expand(L.shape), L, upper)


# By way of reflections


@decomposes(torch.linalg.qr)
def linalg_qr(A: torch.Tensor, mode: str = "reduced") -> tuple[T, T]:
    rows, columns = A.shape[-2], A.shape[-1]
    least: Any = SYM_MIN(rows, columns)
    wanted = rows if mode == "complete" else least
    if _empty(A):
        unit = torch.eye(rows, wanted, dtype=A.dtype).expand(*A.shape[:-2], rows, wanted)
        return A.new_zeros(0) if mode == "r" else unit.clone(), A.new_zeros(
            *A.shape[:-2], wanted, columns
        )
    stored, tau = torch.geqrf(A)
    upper = stored[..., :wanted, :].triu()
    if mode == "r":
        return A.new_zeros(0), upper
    vectors = stored[..., :least]
    if mode == "complete" and (number(wanted) is None or wanted > least):
        zeros = A.new_zeros(*A.shape[:-1], wanted - least)
        vectors = torch.cat([vectors, zeros], -1)
    return torch.linalg.householder_product(vectors, tau), upper


@decomposes(torch.qr)
def qr(input: torch.Tensor, some: bool = True) -> tuple[T, T]:
    return linalg_qr(input, "reduced" if some else "complete")


@decomposes(torch.ormqr)
def ormqr(
    input: torch.Tensor, tau: torch.Tensor, other: torch.Tensor, left: bool = True,
    transpose: bool = False,
) -> T:  # fmt: skip
    rows, count = input.shape[-2], tau.shape[-1]
    if _empty(input, tau, other):
        return other.clone()
    zeros = input.new_zeros(*input.shape[:-1], rows - count)
    vectors = torch.cat([input[..., :count], zeros], -1) if rows > count else input[..., :rows]
    q = torch.linalg.householder_product(vectors, tau)
    q = q.mT if transpose else q
    return q @ other if left else other @ q


# By way of singular values


def _cutoff(values: T, shape: Any, atol: Any, rtol: Any) -> T:
    largest = values.amax(-1, keepdim=True)
    if rtol is None:
        known = isinstance(atol, torch.Tensor) or (atol is not None and atol > 0)
        rtol = 0.0 if known else max(shape[-2:]) * torch.finfo(values.dtype).eps
    rtol = rtol.unsqueeze(-1) if isinstance(rtol, torch.Tensor) else rtol
    atol = atol.unsqueeze(-1) if isinstance(atol, torch.Tensor) else atol or 0.0
    return torch.maximum(largest * rtol, torch.zeros_like(largest) + atol)


@decomposes(torch.linalg.pinv)
def pinv(A: torch.Tensor, *, atol: Any = None, rtol: Any = None, hermitian: bool = False) -> T:
    if _empty(A):
        return A.mT.clone()
    if hermitian:
        values, vectors = torch.linalg.eigh(A)
        sizes = values.abs()
        kept = sizes > _cutoff(sizes, A.shape, atol, rtol)
        inverse = torch.where(kept, 1 / values, torch.zeros_like(values))
        return (vectors * inverse.unsqueeze(-2)) @ vectors.mT
    left, values, right = torch.linalg.svd(A, full_matrices=False)
    kept = values > _cutoff(values, A.shape, atol, rtol)
    inverse = torch.where(kept, 1 / values, torch.zeros_like(values))
    return (right.mT * inverse.unsqueeze(-2)) @ left.mT


@decomposes(torch.linalg.pinv)
def pinv_of_rcond(A: torch.Tensor, rcond: Any, hermitian: bool = False) -> T:
    return pinv(A, atol=0.0, rtol=rcond, hermitian=hermitian)


@decomposes(torch.pinverse)
def pinverse(input: torch.Tensor, rcond: float = 1e-15) -> T:
    return pinv(input, atol=0.0, rtol=rcond)


# Exponentials

_SQUARINGS = 20  # norms up to a million
_TERMS = 18  # of Taylor's series for norms below 1


@decomposes(torch.linalg.matrix_exp, torch.matrix_exp)
def matrix_exp(A: torch.Tensor) -> T:
    """Taylor's series of a matrix halved until its norm is below 1, squared as often."""
    unit = torch.eye(A.shape[-1], dtype=A.dtype)
    if _empty(A):
        return A.clone()
    norm = A.abs().sum(-1).amax(-1)[..., None, None]
    halvings = norm.clamp(min=1).log2().ceil().clamp(max=_SQUARINGS)
    x = A / torch.exp2(halvings)
    term = y = unit.expand(A.shape)
    for i in range(1, _TERMS + 1):
        term = term @ x / i
        y = y + term
    for i in range(_SQUARINGS):
        y = torch.where(halvings > i, y @ y, y)
    return y


# Of nothing: the factorizations need a column to begin with


def _of_nothing(input: T, *rest: Any, **_: object) -> bool:
    return _empty(input, *(x for x in rest if isinstance(x, torch.Tensor)))


def _require_nothing(*tensors: T) -> None:
    """Refuse what is empty in the example only."""
    if not _empty(*tensors):
        raise Unlowerable("it is not always empty")


@decomposes(torch.geqrf, when=_of_nothing)
def geqrf_of_nothing(input: torch.Tensor) -> tuple[T, T]:
    _require_nothing(input)
    return input.clone(), input.new_zeros(*input.shape[:-2], min(input.shape[-2:]))


@decomposes(torch.linalg.cholesky_ex, when=_of_nothing)
def cholesky_ex_of_nothing(
    input: torch.Tensor, *, upper: bool = False, check_errors: bool = False
) -> tuple[T, T]:
    _require_nothing(input)
    return input.clone(), input.new_zeros(input.shape[:-2], dtype=torch.int32)


@decomposes(torch.linalg.householder_product, when=_of_nothing)
def householder_product_of_nothing(input: torch.Tensor, tau: torch.Tensor) -> T:
    _require_nothing(input, tau)
    rows, columns = input.shape[-2:]
    return torch.eye(rows, columns, dtype=input.dtype).expand(input.shape).clone()


@decomposes(aten._linalg_eigh, when=_of_nothing)
def eigh_of_nothing(A: torch.Tensor, UPLO: str = "L", compute_v: bool = True) -> tuple[T, T]:
    _require_nothing(A)
    return A.real.new_zeros(A.shape[:-1]), A.clone()


@decomposes(aten._linalg_svd, when=_of_nothing)
def svd_of_nothing(
    A: torch.Tensor, full_matrices: bool = False, compute_uv: bool = True, *, driver: Any = None
) -> tuple[T, T, T]:
    _require_nothing(A)
    *batch, rows, columns = A.shape
    least = min(rows, columns)
    values = A.real.new_zeros(*batch, least)
    if not compute_uv:
        return A.new_zeros(0), values, A.new_zeros(0)
    left, right = (rows, columns) if full_matrices else (least, least)
    one, other = torch.eye(rows, left, dtype=A.dtype), torch.eye(right, columns, dtype=A.dtype)
    one, other = one.expand(*batch, rows, left), other.expand(*batch, right, columns)
    return one.clone(), values, other.clone()


@decomposes(aten._linalg_svd)
def svd_with_null_space(
    A: torch.Tensor, full_matrices: bool = False, compute_uv: bool = True, *, driver: Any = None
) -> tuple[T, T, T]:
    """The lowering refuses singular vectors that no singular value belongs to."""
    left, values, right = aten._linalg_svd(A, False, True)
    least = values.shape[-1]
    if A.shape[-2] > least:
        left = torch.cat([left, linalg_qr(left, "complete")[0][..., least:]], -1)
    else:
        more = linalg_qr(right.mT, "complete")[0][..., least:]
        right = torch.cat([right, more.mT], -2)
    return left, values, right


@decomposes(aten._linalg_check_errors)
def _linalg_check_errors(info: torch.Tensor, api_name: str, *, is_matrix: bool) -> None:
    """Eager raises for singular matrices; a graph has no exceptions."""


# Of tensors


@decomposes(torch.linalg.tensorinv)
def tensorinv(A: torch.Tensor, ind: int = 2) -> T:
    shape = list(A.shape)
    size = 1
    for n in shape[ind:]:
        size = size * n
    return inv(A.reshape(-1, size)).reshape(*shape[ind:], *shape[:ind])


@decomposes(torch.linalg.tensorsolve)
def tensorsolve(A: torch.Tensor, B: torch.Tensor, dims: Any = None) -> T:
    moved = [d % A.dim() for d in dims or ()]
    a = A.permute(*(d for d in range(A.dim()) if d not in moved), *moved)
    shape = list(a.shape)[B.dim() :]
    return solve(a.reshape(B.numel(), -1), B.reshape(-1)).reshape(shape)
