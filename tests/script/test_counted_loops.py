"""Counted loops over scalars that become operators on whole tensors compute the same."""

from __future__ import annotations

import pytest
import torch

import bridge
from tests.optim_passes.running import ops

SIZES = {"x": {0: "n"}}


@bridge.script
def halves(x):
    found = []
    for i in range(x.shape[0]):
        found.append(x[i] * 2 + i)
    return torch.stack(found) if x.shape[0] > 0 else x


@bridge.script
def collapse(x):
    kept, last = [], x[0] * 0 - 1
    for i in range(x.shape[0]):
        if x[i] != last:
            kept.append(x[i])
        last = x[i]
    return torch.stack(kept)


@bridge.script
def positives(x):
    count, first = 0, x[0]
    for i in range(x.shape[0]):
        if x[i] > 0:
            count += 2
        first = x[i]
    return torch.tensor(count) + first


@bridge.script
def squares(x):
    y = torch.zeros(x.shape[0])
    for i in range(x.shape[0]):
        y[i] = x[i] * x[i]
    return y


@bridge.script
def compact(x):
    y, place = torch.zeros(x.shape[0]), 0
    for i in range(x.shape[0]):
        if x[i] > 0:
            y[place] = x[i]
            place += 1
    return y + place


@bridge.script
def last_written(x):
    y = torch.zeros(2)
    for i in range(x.shape[0]):
        y[i % 2] = x[i]  # places come again: what is written last stays
    return y


@bridge.script
def sum_of_others(x):
    total = x[0]
    for i in range(x.shape[0]):
        total = total * 0.5 + x[i]  # each needs the one before
    return total


@pytest.mark.parametrize(
    ("function", "stays"),
    [
        (halves, False),
        (collapse, False),
        (positives, False),
        (squares, False),
        (compact, False),
        (last_written, True),
        (sum_of_others, True),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_tables_compute_what_the_loop_does(function, stays):
    program = bridge.export(
        function, torch.tensor([1.0, -2.0, -2.0, 3.0, 0.0]), dynamic_shapes=SIZES
    )
    assert ops(program.model)["Loop"]
    fast = bridge.optimize(program, target="cpu", verify=False)
    assert bool(ops(fast.model).get("Loop")) is stays
    for x in ([2.0], [-1.0, 4.0], [3.0, 3.0, 3.0], [0.5, -1.0, 0.0, 7.0, 7.0, -1.0, 2.0]):
        given = torch.tensor(x)
        torch.testing.assert_close(fast(given), function(given))
