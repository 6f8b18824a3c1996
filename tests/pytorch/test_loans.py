"""Writes to and through views of constants whose bounds are sizes or data of the input."""

from __future__ import annotations

import pytest
import torch

import bridge

X, LARGER = torch.randn(3, 5), torch.randn(6, 5)


def copied(x: torch.Tensor) -> torch.Tensor:
    table = torch.zeros(10, 5)
    table[: x.shape[0]].copy_(x)
    return table


def added(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    table = torch.zeros(10, 5)
    part = table.narrow(0, 0, x.shape[0])
    part.add_(x)
    return table, part


def through_a_view_of_the_view(x: torch.Tensor) -> torch.Tensor:
    table = torch.zeros(10, 5)
    part = table[1 : x.shape[0] + 1]
    part[0] += x[0]
    part.T[1].mul_(2)
    return table


def under_the_view(x: torch.Tensor) -> torch.Tensor:
    table = torch.zeros(10, 5)
    part = table[: x.shape[0]]
    table[0] = 7
    return part + x


def as_out(x: torch.Tensor) -> torch.Tensor:
    table = torch.zeros(10, 5)
    torch.mul(x, 2, out=table[: x.shape[0]])
    return table


@pytest.mark.parametrize(
    "function", [copied, added, through_a_view_of_the_view, under_the_view, as_out]
)
def test_writes_reach_the_constant(function):
    program = bridge.export(function, X, dynamic_shapes=({0: "n"},))
    torch.testing.assert_close(program(LARGER), function(LARGER))


def test_data_may_say_where_a_write_goes():
    def write(x: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
        table, start = torch.zeros(3, 5), 0
        for end in ends.tolist():
            if start == end:
                continue
            torch.mul(x[start:end], end, out=table[start:end])
            start = end
        return table

    program = bridge.export(write, (X, torch.tensor([2, 2, 3])))
    ends = torch.tensor([1, 2, 3])
    torch.testing.assert_close(program(X, ends), write(X, ends))


class Cache(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("rows", torch.zeros(10, 5))

    def forward(self, x):
        self.rows[: x.shape[0]].copy_(x)
        return self.rows.sum(0)


def test_buffers_are_as_they_were_after_the_export():
    model = Cache().eval()
    program = bridge.export(model, X, dynamic_shapes=({0: "n"},))
    assert torch.equal(model.rows, torch.zeros(10, 5))
    torch.testing.assert_close(program(LARGER), LARGER.sum(0))


def test_a_table_that_is_only_read_stays_a_constant():
    table = torch.randn(10, 5)
    program = bridge.export(lambda x: table[: x.shape[0]] + x, X, dynamic_shapes=({0: "n"},))
    assert "ScatterND" not in program.report.op_counts
    torch.testing.assert_close(program(LARGER), table[:6] + LARGER)
