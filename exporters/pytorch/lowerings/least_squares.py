"""Systems that have no solution, or many: the closest, and of these the shortest."""

from __future__ import annotations

from typing import Any

import torch

from exporters.pytorch.lowerings.arithmetic import number
from exporters.pytorch.registry import Unlowerable, decomposes

T = torch.Tensor
SYM_MAX: Any = torch.sym_max  # not annotated


def _of_full_rank(A: T, B: T, *, tall: bool) -> T:
    """By the triangle of the matrix, or of its transpose."""
    if tall:
        q, r = torch.linalg.qr(A)
        return torch.linalg.solve_triangular(r, q.mT @ B, upper=True)
    q, r = torch.linalg.qr(A.mT)
    return q @ torch.linalg.solve_triangular(r.mT, B, upper=False)


@decomposes(torch.linalg.lstsq)
def lstsq(
    input: torch.Tensor, b: torch.Tensor, rcond: Any = None, *, driver: str | None = None
) -> tuple[T, T, T, T]:
    """``gels`` trusts the matrix to be of full rank; the others cut small singular values off."""
    if not input.is_floating_point():
        raise Unlowerable("least squares of complex numbers")
    rows, columns = number(input.shape[-2]), number(input.shape[-1])
    excess = 0.0
    if rows is not None and columns is not None:
        excess = rows - columns
    elif driver not in (None, "gelsy"):
        raise Unlowerable("whether there are residuals depends on the number of rows and columns")
    lead = list(input.shape[:-1])
    vector = b.dim() == 1 or (input.dim() - 1 == b.dim() and list(b.shape) == lead)
    right = b.unsqueeze(-1) if vector else b
    nothing = input.new_zeros(0)
    values, rank = nothing, torch.zeros(0, dtype=torch.int64)
    if driver == "gels":
        x = _of_full_rank(input, right, tall=excess >= 0)
    else:
        left, sizes, turned = torch.linalg.svd(input, full_matrices=False)
        largest = SYM_MAX(input.shape[-2], input.shape[-1])
        cut = largest * torch.finfo(input.dtype).eps if rcond is None else rcond
        kept = sizes > sizes.amax(-1, keepdim=True) * cut
        inverse = torch.where(kept, 1 / sizes, 0.0)
        x = turned.mT @ (inverse.unsqueeze(-1) * (left.mT @ right))
        rank = kept.sum(-1)
        values = sizes if driver in ("gelsd", "gelss") else nothing
    residuals = nothing
    if driver not in (None, "gelsy") and excess > 0:
        residuals = (input @ x - right).square().sum(-2)
    return x.squeeze(-1) if vector else x, residuals, rank, values
