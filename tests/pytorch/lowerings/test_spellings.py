"""Calls as torch lets users write them: other names of arguments, numbers of NumPy's, keywords."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import bridge
from tests.pytorch.opinfo import check_call

X = torch.randn(2, 3, 4)
CALLS: dict[str, Any] = {
    "axis": lambda x: x.mean(axis=1),
    "axes and keepdims": lambda x: torch.sum(x, axis=(0, 1), keepdims=True),
    "axis beside out": lambda x: torch.sum(x, axis=0, out=torch.empty(3, 4)),
    "axis of two results": lambda x: x.max(axis=1).values,
    "axis of cat": lambda x: torch.cat([x, x], axis=1),
    "axis of stack": lambda x: torch.stack([x, x], axis=2),
    "axis of cumsum": lambda x: x.cumsum(axis=1),
    "size of new_ones": lambda x: x.new_ones(size=(2, x.shape[1])) + x[0, 0, 0],
    "size of zeros": lambda x: torch.zeros(size=(2, x.shape[1])) + x[0, 0, 0],
    "size of rand": lambda x: torch.rand(size=(2, x.shape[1])) * 0 + x[0, 0, 0],
    "size of view": lambda x: x.view(size=(-1, 4)),
    "size of expand": lambda x: x[:, :, :1].expand(size=(2, x.shape[1], 4)),
    "shape of reshape": lambda x: x.reshape(shape=(-1,)),
    "dims of permute": lambda x: x.permute(dims=(2, 0, 1)),
    "dims of flip": lambda x: x.flip(dims=(0,)),
    "dims of tile": lambda x: x.tile(dims=(2,)),
    "repeats": lambda x: x.repeat(repeats=(2, 1, 1)),
    "sections": lambda x: torch.tensor_split(x, sections=2, dim=1),
    "indices": lambda x: torch.hsplit(x, indices=[1, 2]),
    "size of sum_to_size": lambda x: x.sum_to_size(size=(1, 4)),
    "mat2": lambda x: torch.bmm(x, mat2=x.transpose(1, 2)),
    "numbers of NumPy's": lambda x: x * np.sqrt(16.0) + np.float32(2) - np.int64(1),
    "in place, with NumPy's": lambda x: x.clone().mul_(np.sqrt(2.0)),
}  # fmt: skip


@pytest.mark.parametrize("sizes", [None, ({1: "n"},)], ids=["static", "dynamic"])
@pytest.mark.parametrize("name", CALLS)
def test_matches_eager(name: str, sizes: Any) -> None:
    check_call(CALLS[name], (X,), dynamic_shapes=sizes)


def test_a_flag_that_run_time_knows() -> None:
    @bridge.script
    def attend(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        kept = x[:, :, mask]
        causal = kept.shape[2] > 2 and x.shape[1] == 3
        return F.scaled_dot_product_attention(kept, kept, kept, is_causal=causal)

    x = torch.randn(2, 3, 5, 4)
    program = bridge.export(attend, (x, torch.tensor([True, False, True, True, False])))
    for mask in ([True, True, False, False, False], [True] * 5):
        torch.testing.assert_close(
            program(x, torch.tensor(mask)), attend(x, torch.tensor(mask)), rtol=1e-4, atol=1e-5
        )


def test_lengths_of_data() -> None:
    check_call(
        lambda x, n: (x.narrow(1, 0, n[0]), x.narrow(2, n[0], n[1])),
        (X, torch.tensor([1, 3])),
        others=[(X, torch.tensor([2, 2]))],
    )


def test_libraries_see_an_export() -> None:
    def ask(x: torch.Tensor) -> torch.Tensor:
        if torch.compiler.is_exporting() and not torch.compiler.is_compiling():
            return x + 1
        return x - 1

    program = bridge.export(ask, X)
    torch.testing.assert_close(program(X), X + 1)
    assert not torch.compiler.is_exporting()


i = np.int64
NUMPY: dict[str, Any] = {
    "dims": lambda x: (
        x.sum(i(1)),
        x.softmax(i(-1)),
        x.max(i(1)).values,
        x.flatten(i(1)),
        x.std(i(0)),
    ),
    "sizes": lambda x: (x.reshape(i(4), i(6)), x.view(i(4), -1), x.repeat(i(2), 1, 1)),
    "places": lambda x: (
        x[i(1)],
        x[: i(2), i(0)],
        x.narrow(i(0), i(1), i(2)),
        x.select(i(0), i(1)),
    ),
    "counts": lambda x: (x.topk(i(2), i(1)).values, *x.split([i(1), i(3)]), x.roll(i(1), i(0))),
    "numbers": lambda x: (
        x * np.float32(2),
        F.leaky_relu(x, np.float32(0.1)),
        x > np.float64(0.5),
    ),
    "joined": lambda x: (torch.cat([x, x], i(1)), torch.stack([x, x], i(1)), x.unbind(i(1))),
}


@pytest.mark.parametrize("name", NUMPY)
def test_numbers_of_numpy_are_numbers(name: str) -> None:
    check_call(NUMPY[name], (torch.randn(4, 3, 2),))
