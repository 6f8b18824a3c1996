"""In-place writes in branches and loops: to what was there before, and to what they make themselves."""

from __future__ import annotations

import pytest
import torch

from tests.script.harness import T, agree

VECTORS = [
    (T([1.0, 2.0]),),
    (T([-1.0, -2.0]),),
    (T([1.0, -2.0, 7.0]),),
    (T([0.5]),),
]


def own_tensor_of_a_branch(x):
    if x.sum() > 0:
        y = x * 2
        y += 3
    else:
        y = x + 1
        y += 1
        y[0] = 7
    return y


def own_buffer_of_an_iteration(x):
    total = torch.zeros(3)
    for row in x:
        buffer = torch.zeros(3)
        buffer[0] = row
        buffer[1] += row * 2
        total = total + buffer
    return total


def own_buffer_of_a_branch(x):
    if x.sum() > 0:
        buffer = torch.zeros(3)
        buffer[0] = x.sum()
        if x.max() > 2:
            buffer[1] = x.max()
    else:
        buffer = torch.ones(3)
    return buffer


def own_buffer_of_nested_loops(x):
    total = torch.zeros(3)
    for row in x:
        buffer = torch.zeros(3)
        for i in range(3):
            if row > i:
                buffer[i] = row
        while buffer.sum() > 1:
            buffer /= 2
        total += buffer
    return total


PROGRAMS = [
    own_tensor_of_a_branch, own_buffer_of_an_iteration, own_buffer_of_a_branch,
    own_buffer_of_nested_loops,
]  # fmt: skip


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda f: f.__name__)
def test_agrees(program):
    agree(program, [VECTORS[0]], VECTORS[1:], dynamic_shapes={"x": {0: "n"}})
