"""Kernels of torch that trust their arguments are given what fits, whatever size is tried."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from exporters.pytorch.unchecked import require_fitting
from tests.pytorch.opinfo import check_call

aten: Any = torch.ops.aten
MATRIX, PIVOTS = torch.linalg.lu_factor(torch.randn(4, 4, generator=torch.manual_seed(0)))
STATISTICS = [torch.ones(n) for n in (3, 3, 2, 3)]
UNFIT = {
    "few pivots": (torch.lu_unpack, (MATRIX, PIVOTS[:3]), {}),
    "pivots of more rows": (torch.lu_unpack, (MATRIX[:2, :2], PIVOTS[:2] + 2), {}),
    "pivots by name": (torch.linalg.lu_solve, (MATRIX, PIVOTS + 4, MATRIX), {}),
    "of a method": (torch.Tensor.lu_solve, (MATRIX, MATRIX, PIVOTS[:1]), {}),
    "statistics of other channels": (
        torch.native_batch_norm,
        (torch.ones(2, 3), *STATISTICS, True, 0.1, 1e-5),
        {},
    ),
    "rows of an empty table": (
        torch.embedding_bag,
        (torch.ones(0, 3), torch.tensor([1, 0]), torch.tensor([0])),
        {},
    ),
    "rows that are missing": (
        torch.embedding_bag,
        (torch.ones(2, 3), torch.tensor([1, 2]), torch.tensor([0])),
        {},
    ),
    "rows of no bag": (
        torch.embedding_bag,
        (torch.ones(2, 3), torch.tensor([1]), torch.tensor([], dtype=int)),
        {},
    ),
    "rows that a module reads": (
        torch.nn.functional.embedding_bag,
        (torch.tensor([[1, 2]]), torch.ones(2, 3)),
        {},
    ),
    "keywords": (
        torch.lu_unpack,
        (),
        {"LU_data": MATRIX, "LU_pivots": PIVOTS[:2]},
    ),
    "indices of a larger image": (
        aten.max_pool2d_with_indices_backward,
        (torch.ones(1, 1, 1), torch.ones(1, 2, 2), 2, 2, 0, 1, False, torch.full((1, 1, 1), 9)),
        {},
    ),
}


@pytest.mark.parametrize("name", UNFIT)
def test_what_does_not_fit_is_refused(name: str) -> None:
    function, args, kwargs = UNFIT[name]
    with pytest.raises(RuntimeError):
        require_fitting(function, args, kwargs)


def test_what_fits_passes() -> None:
    require_fitting(torch.lu_unpack, (MATRIX, PIVOTS), {})
    require_fitting(torch.native_batch_norm, (torch.ones(2, 3), None, None, None, None), {})
    require_fitting(
        torch._native_batch_norm_legit, (torch.ones(2, 3), None, None, True, 0.1, 1e-5), {}
    )


def test_sizes_are_tried_without_harm() -> None:
    def unpacked(data: torch.Tensor, pivots: torch.Tensor) -> Any:
        return torch.lu_unpack(data, pivots)

    check_call(unpacked, (MATRIX, PIVOTS), dynamic_shapes="auto")
