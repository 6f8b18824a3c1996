"""Covariance, correlation, segments and pairs of rows, of sizes that the trace has not seen."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.pytorch.lowerings.cases import FLOATS, check_case, op_cases, rows
from tests.pytorch.opinfo import OpCase, check_call

SUMS = {"rtol": 1e-4, "atol": 1e-4, "why": "sums in another order"}
CASES = [
    *op_cases("cov corrcoef", FLOATS, every=2, **SUMS),
    *op_cases(
        "_segment_reduce.lengths _segment_reduce.offsets",
        FLOATS,
        every=3,
        skip=lambda s: "along another dim" if s.kwargs["axis"] else None,
        **SUMS,
    ),
]


@pytest.mark.parametrize(("case", "dtype"), rows(CASES))
def test_matches_eager(case: OpCase, dtype: torch.dtype) -> None:
    check_case(case, dtype)


CALLS: dict[str, Any] = {
    "cov": torch.cov,
    "corrcoef": torch.corrcoef,
    "cov of numbers": lambda x: torch.cov(x, correction=0),
    "pairs": lambda x: x[torch.triu_indices(x.shape[0], x.shape[0], 1)].sum(0),
    "lower": lambda x: torch.tril_indices(x.shape[0], x.shape[1], -1),
    "pdist": torch.pdist,
    "kron": lambda x: torch.kron(x, x[:2, 0]),
    "qr": lambda x: torch.linalg.qr(x)[1].abs(),
}


@pytest.mark.parametrize("name", CALLS)
def test_other_sizes_match_eager(name: str) -> None:
    generator = torch.manual_seed(0)
    x, *others = (torch.randn(n, 5, generator=generator) for n in (4, 3, 7))
    check_call(
        CALLS[name], (x,), dynamic_shapes=({0: "n"},), others=[(o,) for o in others], rtol=1e-4,
        atol=1e-4,
    )  # fmt: skip


def test_segments_of_rows_of_dynamic_number() -> None:
    def means(x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        return torch.segment_reduce(x, "mean", lengths=lengths, unsafe=True)

    check_call(
        means,
        (torch.randn(5, 2), torch.tensor([2, 0, 3])),
        dynamic_shapes=({0: "n"}, None),
        others=[(torch.randn(9, 2), torch.tensor([1, 4, 0]))],
    )
