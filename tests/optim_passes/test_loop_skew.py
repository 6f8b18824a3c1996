"""Two loops that fill a table from neighbouring cells fill it by diagonals."""

from __future__ import annotations

import pytest
import torch

import bridge
from optim_passes.pipeline import run
from optim_passes.pipelines import SIMPLIFY
from tests.optim_passes.running import ops
from tests.script.harness import T, assert_same

SIZES = ({0: "n"}, {0: "m"})


def distance(a, b):
    d = torch.zeros(len(a) + 1, len(b) + 1, dtype=torch.long)
    d[:, 0], d[0, :] = torch.arange(len(a) + 1), torch.arange(len(b) + 1)
    for i in range(1, len(a) + 1):
        for j in range(1, len(b) + 1):
            cost = 0 if a[i - 1] == b[j - 1] else 1
            d[i, j] = min(d[i - 1, j] + 1, d[i, j - 1] + 1, d[i - 1, j - 1] + cost)
    return d


def common(a, b):
    t = torch.zeros(len(a) + 1, len(b) + 1, dtype=torch.long)
    for i in range(len(a)):
        for j in range(len(b)):
            if a[i] == b[j]:
                t[i + 1, j + 1] = t[i, j] + 1
            else:
                t[i + 1, j + 1] = torch.maximum(t[i, j + 1], t[i + 1, j])
    return t


def warping(a, b):
    cost = (a[:, None] - b[None, :]).abs().float()
    t = torch.full((a.shape[0] + 1, b.shape[0] + 1), float("inf"))
    t[0, 0] = 0
    for i in range(1, a.shape[0] + 1):
        for j in range(1, b.shape[0] + 1):
            t[i, j] = cost[i - 1, j - 1] + torch.min(
                torch.stack([t[i - 1, j], t[i, j - 1], t[i - 1, j - 1]])
            )
    return t


def alignment(a, b):
    h = torch.ones(len(a) + 3, len(b) + 2)
    for i in range(len(a)):
        for j in range(len(b)):
            gain = 2.0 if a[i] == b[j] else -0.5 * i
            h[i + 2, j + 1] = torch.clamp(
                torch.maximum(h[i + 1, j] + gain, h[i + 2, j] - j), min=0
            )
    return h, h.max()


WORDS = [
    (T(a), T(b))
    for a, b in (
        ([1, 0, 2, 2], [0, 1, 2, 1, 2]), ([3], [3]), ([1, 2, 3, 1, 0, 2, 2], [3, 1, 0, 2]),
        ([2], [0, 2, 1]), ([1, 2, 0], [1]), ([1] * 40, [1, 0]), ([0, 1], [1] * 9),
    )
]  # fmt: skip
EMPTY = torch.zeros(0, dtype=torch.long)


@pytest.mark.parametrize("function", [distance, common, warping, alignment])
def test_a_table_is_filled_by_diagonals(function):
    words = [*WORDS, (EMPTY, T([1, 2])), (T([1]), EMPTY), (EMPTY, EMPTY)]
    program = bridge.export(function, WORDS[0], dynamic_shapes=SIZES)
    fast = bridge.optimize(program, target="cpu")
    (choice,) = [n for n in fast.model.graph if n.op_type == "If"]
    ways = [choice.attributes[f"{way}_branch"].as_graph() for way in ("then", "else")]
    loops = [[n for n in way.all_nodes() if n.op_type in ("Loop", "Scan")] for way in ways]
    assert [[n.op_type for n in found] for found in loops] == [["Scan"], ["Loop", "Loop"]]
    for inputs in words:
        assert_same(fast(*inputs), function(*inputs), rtol=0, atol=0, inputs=inputs)


def test_a_table_is_taken_apart_once():
    program = bridge.export(distance, WORDS[0], dynamic_shapes=SIZES)
    model, _ = run(program.model.clone(), SIMPLIFY)
    before = ops(model)
    model, _ = run(model, SIMPLIFY)
    assert ops(model)["If"] == before["If"] == 1


def from_the_upper_right(a, b):
    t = torch.ones(len(a) + 1, len(b) + 2)
    for i in range(len(a)):
        for j in range(len(b)):
            t[i + 1, j + 1] = t[i, j + 2] * 0.5 + t[i + 1, j]
    return t


def from_far_above(a, b):
    t = torch.ones(len(a) + 2, len(b) + 1)
    for i in range(len(a)):
        for j in range(len(b)):
            t[i + 2, j + 1] = t[i, j + 1] * 0.5 + t[i + 2, j]
    return t


def with_a_count(a, b):
    t, n = torch.zeros(len(a) + 1, len(b) + 1), 0
    for i in range(len(a)):
        for j in range(len(b)):
            n = n + a[i] * b[j] * n + 1
            t[i + 1, j + 1] = t[i, j] + n
    return t


def read_twice(a, b):
    t = torch.ones(len(a) + 1, len(b) + 1)
    for i in range(len(a)):
        for j in range(len(b)):
            t[i + 1, j + 1] = t[i, j] * 0.5
            t[i + 1, j + 1] = t[i + 1, j + 1] + t[i, j + 1]
    return t


def behind_a_condition(a, b):
    t = torch.ones(len(a) + 1, len(b) + 1)
    for i in range(len(a)):
        for j in range(len(b)):
            if a[i] == b[j]:
                t[i + 1, j + 1] = t[i, j] + t[i + 1, j]
    return t


def of_an_element_that_may_not_be_there(a, b):
    t = torch.ones(len(a) + 1, len(b) + 1)
    for i in range(len(a)):
        for j in range(len(b)):
            if a[i] > 1:
                t[i + 1, j + 1] = t[i, j] + b[a[i] - 2]
            else:
                t[i + 1, j + 1] = t[i, j + 1] * 0.5
    return t


@pytest.mark.parametrize(
    "function",
    [
        from_the_upper_right, from_far_above, with_a_count, read_twice, behind_a_condition,
        of_an_element_that_may_not_be_there,
    ],
)  # fmt: skip
def test_other_tables_are_filled_cell_by_cell(function):
    program = bridge.export(function, WORDS[0], dynamic_shapes=SIZES)
    fast = bridge.optimize(program, target="cpu")
    counts = ops(fast.model)
    assert counts["Loop"] == 2
    for inputs in (WORDS[0], WORDS[2], WORDS[3]):
        assert_same(fast(*inputs), function(*inputs), rtol=1e-6, atol=0, inputs=inputs)
