"""Sizes that are known, values that are not: eager code and ONNX Runtime agree on all ways through."""

from __future__ import annotations

import pytest
import torch

from tests.script.harness import T, agree

INPUTS = [
    (T([1.0, -2.0, 3.0]),),
    (T([4.0, 0.5, -9.0]),),
    (T([-3.0, -1.0, -2.0]),),
    (T([9.0, 1.0, 2.0]),),
]


def next_of_a_generator(x):
    return next((v for v in x if v > 2), torch.tensor(-1.0))


def generators_with_tests(x):
    place = next((i for i, v in enumerate(x.tolist()) if v < 0), -1)
    return sum(1 for v in x if v > 0), sum(v for v in x if v > -100), place


def counts_strings(x):
    names = ["up" if v > 0 else "down" for v in x]
    return sum(1 for name in names if name == "up")


def a_number_in_a_list(x):
    numbers = x.long().tolist()
    return x * 2 if 4 in numbers else x


def loops_over_a_run_time_range(x):
    for i in torch.arange((x > 0).sum()):
        x = x - i
    return x


def best_of_a_nested_function(x):
    best, place = -1e9, 0

    def visit(i, v):
        nonlocal best, place
        if v > best:
            best, place = v.item(), i

    for i, v in enumerate(x):
        visit(i, v)
    return best, place


@pytest.mark.parametrize("example", [0, 2])
@pytest.mark.parametrize(
    "function",
    [next_of_a_generator, generators_with_tests, counts_strings, a_number_in_a_list,
     loops_over_a_run_time_range, best_of_a_nested_function],
    ids=lambda f: f.__name__,
)  # fmt: skip
def test_agrees(function, example):
    inputs = INPUTS[example:] + INPUTS[:example]
    agree(function, inputs[:1], inputs[1:])
