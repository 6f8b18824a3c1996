"""Factorizations of complex matrices of known size, one column after the other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from exporters.pytorch.registry import Unlowerable, decomposes
from exporters.tracing.graph import isinstance_static

if TYPE_CHECKING:
    from collections.abc import Sequence

T = torch.Tensor
_LONGEST = 64  # columns that are written out


def _known(sizes: Sequence[Any]) -> tuple[int, int]:
    if not all(isinstance_static(n) for n in sizes) or min(sizes) > _LONGEST:
        raise Unlowerable(f"complex matrices of dynamic size, or of more than {_LONGEST} columns")
    rows, columns = sizes
    return rows, columns


@decomposes(torch.linalg.lu_factor_ex, torch.ops.aten.linalg_lu_factor_ex, pairs=True)
def linalg_lu_factor_ex(
    A: torch.Tensor, *, pivot: bool = True, check_errors: bool = False
) -> tuple[T, T, T]:
    """Gaussian elimination; LAPACK measures a pivot by the sum of its parts."""
    rows, columns = _known(A.shape[-2:])
    x, place, pivots = A, torch.arange(rows), []
    info = torch.zeros(A.shape[:-2], dtype=torch.int32)
    for k in range(min(rows, columns)):
        chosen = torch.full([*A.shape[:-2], 1], k)
        if pivot:
            size = x.real[..., k].abs() + x.imag[..., k].abs()
            chosen = torch.where(place < k, -1.0, size).argmax(-1, keepdim=True)
            order = torch.where(place == chosen, k, place)
            order = torch.where(place == k, chosen, order)
            x = x.gather(-2, order.unsqueeze(-1).expand(x.shape))
        pivots.append(chosen + 1)
        head = x[..., k : k + 1, k]
        nothing = (head == 0).squeeze(-1)
        info = torch.where((info == 0) & nothing, torch.tensor(k + 1, dtype=torch.int32), info)
        factors = x[..., k + 1 :, k] / torch.where(head == 0, torch.ones_like(head), head)
        rest = x[..., k + 1 :, k + 1 :] - factors.unsqueeze(-1) * x[..., k : k + 1, k + 1 :]
        below = torch.cat([x[..., k + 1 :, :k], factors.unsqueeze(-1), rest], -1)
        x = torch.cat([x[..., : k + 1, :], below], -2)
    if not pivots:
        return x, torch.zeros([*A.shape[:-2], 0], dtype=torch.int32), info
    return x, torch.cat(pivots, -1).to(torch.int32), info


@decomposes(torch.lu_unpack, pairs=True)
def lu_unpack(
    LU_data: torch.Tensor, LU_pivots: torch.Tensor, unpack_data: bool = True,
    unpack_pivots: bool = True,
) -> tuple[T, T, T]:  # fmt: skip
    """The triangles of both parts; the permutation is real."""
    real = torch.lu_unpack(LU_data.real, LU_pivots, unpack_data, unpack_pivots)
    if not unpack_data:
        return torch.complex(real[0], real[0] * 0), LU_data.new_zeros(0), LU_data.new_zeros(0)
    least = min(_known(LU_data.shape[-2:]))
    lower, upper = LU_data.imag[..., :least].tril(-1), LU_data.imag[..., :least, :].triu()
    permutation = torch.complex(real[0], torch.zeros_like(real[0]))
    return permutation, torch.complex(real[1], lower), torch.complex(real[2], upper)


@decomposes(torch.linalg.cholesky_ex, torch.ops.aten.linalg_cholesky_ex, pairs=True)
def linalg_cholesky_ex(
    A: torch.Tensor, *, upper: bool = False, check_errors: bool = False
) -> tuple[T, T]:
    """Column after column of the lower triangle, which is all that is read."""
    size, _ = _known(A.shape[-2:])
    half = A.mH if upper else A
    columns: list[T] = []
    info = torch.zeros(A.shape[:-2], dtype=torch.int32)
    for k in range(size):
        column = half[..., k:, k]
        for made in columns:
            column = column - made[..., k:] * made[..., k : k + 1].conj()
        head = column[..., :1].real
        bad = (head <= 0).squeeze(-1)
        info = torch.where((info == 0) & bad, torch.tensor(k + 1, dtype=torch.int32), info)
        column = torch.cat([head.sqrt() + 0j, column[..., 1:] / head.sqrt()], -1)
        columns.append(torch.cat([A.new_zeros([*A.shape[:-2], k]), column], -1))
    factor = torch.stack(columns, -1) if columns else A.clone()
    return factor.mH if upper else factor, info


@decomposes(torch.logdet, pairs=True)
def logdet(input: torch.Tensor) -> T:
    sign, log = torch.linalg.slogdet(input)
    return torch.complex(log, sign.angle())
