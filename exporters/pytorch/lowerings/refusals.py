"""Calls that no graph can repeat, and what to call instead."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from exporters.pytorch.registry import Unlowerable, lowers

if TYPE_CHECKING:
    from collections.abc import Callable

aten = torch.ops.aten


def _refusal(reason: str) -> Callable[..., Any]:
    def refuse(op: object, /, *arguments: object, **options: object) -> Any:
        raise Unlowerable(reason)

    return refuse


lowers(torch.linalg.eig, aten.linalg_eig)(
    _refusal(
        "the eigenvalues of a matrix come in the order in which LAPACK finds them; "
        "torch.linalg.eigh and eigvalsh, of symmetric ones, are exported"
    )
)
lowers(aten.linalg_ldl_factor_ex, aten.linalg_ldl_solve)(
    _refusal(
        "the pivots of LDL are LAPACK's choice; torch.linalg.cholesky and lu_factor are exported"
    )
)
for _call in (aten._linalg_eigh, aten._linalg_svd):
    lowers(_call, pairs=True)(
        _refusal(
            "complex vectors are known up to a factor only; torch.linalg.eigvalsh and svdvals, of "
            "complex matrices too, are exported"
        )
    )
