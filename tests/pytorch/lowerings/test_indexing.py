from __future__ import annotations

from typing import Any

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
    __getitem__ _unsafe_masked_index _unsafe_masked_index_put_accumulate index_put index_select
    nn.functional.one_hot
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


READS = {
    "x[:, 0]": (lambda x, i: x[:, 0], ["Gather"]),
    "x[()]": (lambda x, i: x[()].sin(), ["Sin"]),
    "x[..., 1:3]": (lambda x, i: x[..., 1:3], ["Slice"]),
    "x[:, None]": (lambda x, i: x[:, None], ["Unsqueeze"]),
    "x[:, i]": (lambda x, i: x[:, i], ["Gather"]),
    "x[:, :]": (lambda x, i: x[:, :].sin(), ["Sin"]),
    "x[:, :4]": (lambda x, i: x[:, :4].sin(), ["Sin"]),
    "x[i]": (lambda x, i: x[i], ["Gather"]),
    "x[mask]": (lambda x, i: x[x[:, 0] > 0], ["Gather", "Greater", "Compress"]),
    "x[i[:, None], i]": (
        lambda x, i: x[i[:, None], i],
        ["Unsqueeze", "Reshape", "Gather", "Gather"],
    ),
    "x[[0, 1], [1, 2]]": (lambda x, i: x[[0, 1], [1, 2]], ["GatherND"]),
    "masked fill": (lambda x, i: _assigned(x, x > 0, 0.0), ["Greater", "Where"]),
    "row": (lambda x, i: _assigned(x, 0, x[1]), ["Gather", "ScatterND"]),
    "column": (
        lambda x, i: _assigned(x, (slice(None), 1), x[:, 0]),
        ["Gather", "Unsqueeze", "Slice", "Slice", "Concat"],
    ),
    "rows": (lambda x, i: _assigned(x, i, x[:2]), ["Slice", "Unsqueeze", "ScatterND"]),
}


def _assigned(x: torch.Tensor, index: Any, value: Any) -> torch.Tensor:
    x = x.clone()
    x[index] = value
    return x


@pytest.mark.parametrize("name", READS)
def test_hot_forms_are_short(name: str) -> None:
    function, nodes = READS[name]
    assert op_types(check_call(function, (torch.randn(3, 4), torch.tensor([2, 0])))) == nodes
