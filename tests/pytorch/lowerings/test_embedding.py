from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from exporters.pytorch.frontend import trace
from tests.pytorch.lowerings.cases import (
    ALL_FLOATS,
    check_case,
    check_module,
    check_opset,
    f32,
    op_cases,
    op_types,
    opset_rows,
    rows,
)
from tests.pytorch.opinfo import OpCase, check_call, run_onnx

R = torch.randn
CASES = (
    *op_cases("nn.functional.embedding", ALL_FLOATS),
    *op_cases("nn.functional.embedding_bag", rtol=1e-5, atol=1e-5, why="sums in another order"),
)
I64 = torch.int64


@pytest.mark.parametrize(("case", "dtype"), rows(CASES))
def test_matches_eager(case: OpCase, dtype: torch.dtype) -> None:
    check_case(case, dtype)


@pytest.mark.parametrize(("case", "opset"), opset_rows(CASES))
def test_matches_eager_in_other_opsets(case: OpCase, opset: int) -> None:
    check_opset(case, opset)


def test_module_matches_eager() -> None:
    check_module("nn.Embedding", f32)


def test_embedding_is_one_node() -> None:
    table = nn.Embedding(10, 4, padding_idx=0)
    traced = check_call(
        lambda x: table(x),
        (torch.randint(10, (2, 5)),),
        dynamic_shapes={"x": {0: "b", 1: "t"}},
        others=[(torch.zeros(1, 1, dtype=I64),), (torch.zeros(0, 3, dtype=I64),)],
    )
    assert op_types(traced) == ["Gather"]


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("padding_idx", [None, 2])
def test_bags_of_equal_size(mode: str, padding_idx: int | None) -> None:
    bag = nn.EmbeddingBag(10, 4, mode=mode, padding_idx=padding_idx)
    check_call(
        lambda x: bag(x),
        (torch.randint(10, (3, 5)),),
        dynamic_shapes={"x": {0: "b", 1: "t"}},
        others=[(torch.full((1, 2), 2),)],
        rtol=1e-5,
        atol=1e-5,
    )


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("last", [False, True])
def test_bags_by_offset(mode: str, last: bool) -> None:
    table = R(10, 4)

    def call(x: Any, offsets: Any) -> Any:
        return F.embedding_bag(x, table, offsets, mode=mode, include_last_offset=last)

    check_call(
        call,
        (torch.randint(10, (7,)), torch.tensor([0, 3, 3, 7] if last else [0, 3, 3])),
        dynamic_shapes=None if last else {"x": {0: "n"}},
        others=[] if last else [(torch.randint(10, (4,)), torch.tensor([0, 1, 4]))],
        rtol=1e-5,
        atol=1e-5,
    )


def test_rows_are_kept_short_in_the_table() -> None:
    table = nn.Parameter(F.normalize(R(6, 4)) * 3, requires_grad=False)

    def call(x: Any) -> Any:
        first = F.embedding(x, table, max_norm=1.0)
        return first, table * 1

    before = table.clone()
    expected = before.clone()
    expected[1:3] = F.normalize(before[1:3]) * 1.0
    x = torch.tensor([1, 2, 1])
    first, whole = run_onnx(trace(call, (x,)), [x])
    torch.testing.assert_close(torch.tensor(whole), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(torch.tensor(first), expected[x], rtol=1e-5, atol=1e-5)
    assert torch.equal(table, before)  # the export leaves the table alone
