"""Counted loops over rows become scans, where what they carry keeps its shape."""

from __future__ import annotations

import pytest
import torch

import bridge
from tests.optim_passes.running import ops
from tests.script.harness import assert_same


def best_path(x):
    score, history = x[0], []
    for t in range(1, x.shape[0]):
        score, index = (score[:, None] + x[t]).view(3, 3).max(0)
        history.append(index)
    best = score.argmax()
    path = [best]
    for index in reversed(history):
        best = index[best]
        path.append(best)
    return torch.stack(path), score


def of_the_number(x):
    total, worst, seen = torch.zeros(3), torch.zeros(()), []
    for i in range(x.shape[0]):
        total = total * 0.5 + x[i] * i
        worst = torch.maximum(worst, total.max()) + x[x.shape[0] - 1 - i, 0]
        seen.append(worst)
    return total, torch.stack(seen) if seen else torch.zeros(0)


def written(x):
    y = torch.zeros_like(x)
    h = torch.zeros(3)
    for t in range(x.shape[0]):
        h = torch.tanh(h + x[t])
        y[t] = h
    return y, h


def with_a_branch(x):
    state, count = torch.zeros(3), 0
    for i, row in enumerate(x):
        if row.sum() > 0:
            state = state + row * i
            count += 1
        else:
            state = state * 0.5
    return state, count


CELL = torch.nn.GRUCell(3, 4)


def rows_of_a_cell(x):
    h = torch.zeros(1, 4)
    y = torch.zeros(x.shape[0] + 2, 4)
    for t in range(x.shape[0]):
        h = CELL(x[t : t + 1], h)
        y[t + 1] = h[0]
    return y, h


def columns(x):
    total, seen = torch.zeros(2), []
    for t in range(x.shape[0]):
        total = total * 0.5 + x.t()[:2, t]
        seen.append(total.max())
    return total, torch.stack(seen)


def of_nothing(x):
    a, b = torch.zeros(()), x.sum()
    for _ in range(x.shape[0]):
        a, b = b, a * 0.5 - b
    return a


INPUTS = [torch.randn(n, 3, generator=torch.Generator().manual_seed(n)) for n in (6, 1, 4, 5, 40)]


@pytest.mark.parametrize(
    "function",
    [best_path, of_the_number, written, with_a_branch, rows_of_a_cell, columns, of_nothing],
)
def test_a_loop_over_rows_is_scanned(function):
    program = bridge.export(function, (INPUTS[0],), dynamic_shapes=({0: "n"},))
    fast = bridge.optimize(program, target="cpu")
    assert ops(fast.model)["Scan"] == ops(program.model)["Loop"]
    scans = [n for n in fast.model.graph.all_nodes() if n.op_type == "Scan"]
    bodies = [n.op_type for scan in scans for n in scan.attributes["body"].as_graph()]
    assert "ScatterND" not in bodies
    assert bodies.count("Gemm") + bodies.count("Slice") <= 1
    for x in INPUTS:
        with torch.no_grad():
            expected = function(x)
        assert_same(fast(x), expected, rtol=1e-5, atol=1e-6, inputs=x)
    again = bridge.optimize(fast, target="cpu")
    assert ops(again.model)["Scan"] == ops(fast.model)["Scan"]


def test_no_rows_are_no_iterations():
    program = bridge.export(of_the_number, (INPUTS[0],), dynamic_shapes=({0: "n"},))
    fast, none = bridge.optimize(program, target="cpu"), torch.zeros(0, 3)
    assert_same(fast(none), of_the_number(none), rtol=0, atol=0, inputs=none)


def repeated(x, n):
    for _ in range(n):
        x = torch.sin(x) * 0.5 + x
    return x


def test_a_loop_over_nothing_is_scanned():
    program = bridge.export(repeated, (INPUTS[0], 6), examples=[(INPUTS[0], 3)])
    fast = bridge.optimize(program, target="cpu")
    assert ops(fast.model)["Scan"] == 1
    for n in (0, 1, 4, 5, 40):
        assert_same(fast(INPUTS[0], n), repeated(INPUTS[0], n), rtol=1e-5, atol=1e-6, inputs=n)


def test_large_weights_are_in_one_body():
    weight = torch.randn(600, 600, generator=torch.Generator().manual_seed(0)) / 30

    def multiplied(x):
        h = torch.zeros(600)
        for row in x:
            h = torch.tanh(weight @ h + row[0])
        return h

    fast = bridge.optimize(
        bridge.export(multiplied, (INPUTS[0],), dynamic_shapes=({0: "n"},)), target="cpu"
    )
    assert "Scan" not in ops(fast.model)


def growing(x):
    y = x[:0, 0]
    for row in x:
        if row[0] > 0:
            y = torch.cat([y * 0.5, row[1:2]])
    return y


def that_ends_early(x):
    total = torch.zeros(3)
    for row in x:
        total = total + row
        if total.max() > 2:
            break
    return total


@pytest.mark.parametrize("function", [growing, that_ends_early])
def test_other_loops_stay(function):
    program = bridge.export(function, (INPUTS[0],), dynamic_shapes=({0: "n"},))
    fast = bridge.optimize(program, target="cpu")
    assert "Scan" not in ops(fast.model)
    for x in INPUTS:
        assert_same(fast(x), function(x), rtol=1e-5, atol=1e-6, inputs=x)
