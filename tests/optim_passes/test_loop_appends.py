"""Lists that loops append to under a condition, and numbers that they make of rows."""

import pytest
import torch

import bridge
from tests.optim_passes.running import ops

N = {"x": {0: "n"}}


def stacked(items, x):
    return torch.stack(items) if items else x[:0]


def positive(x):
    kept = []
    for v in x:
        if v > 0:
            kept.append(v)
    return stacked(kept, x)


def every_other(x):
    kept, i = [], 0
    while i < len(x):
        if x[i] > 0:
            kept.append(x[i])
        i += 2
    return stacked(kept, x)


def until(x):
    kept = []
    for v in x:
        if v > 2:
            break
        if v > 0:
            kept.append(v * 2)
    return stacked(kept, x)


def between(x):
    kept = []
    for v in x:
        if v > -1:
            doubled = v * 2
            if doubled < 1:
                kept.append(doubled)
    return stacked(kept, x)


def others(x):
    total, kept, places = torch.zeros(()), [], []
    for i, v in enumerate(x):
        if v > 0:
            total = total + v
        else:
            kept.append(v)
            places.append(i)
    return total, stacked(kept, x), torch.tensor(places, dtype=torch.long)


def after_the_first(x):
    kept = [torch.ones(())]
    for v in x:
        if v > 0:
            kept.append(v)
    return torch.stack(kept)


def rising(x):
    kept = [torch.zeros(())]
    for v in x:
        if v > kept[-1]:
            kept.append(v)
    return torch.stack(kept)


def running(x):
    sums = [x.sum()]
    for j, v in enumerate(x):
        sums.append(torch.maximum(sums[j] * 0.5, v) + sums[-1])
    return torch.stack(sums), sums[-1]


def counted(x):
    """The list is read, and has to stay one."""
    kept = []
    for v in x:
        if v > len(kept):
            kept.append(v)
    return stacked(kept, x)


VECTORS = {
    "positive": (positive, {"Compress": 1}),
    "every_other": (every_other, {"Loop": 1, "Compress": 1}),
    "until": (until, {"Loop": 1, "Compress": 1}),
    "between": (between, {"Compress": 1}),
    "others": (others, {"Compress": 2}),
    "after_the_first": (after_the_first, {"Compress": 1}),
    "rising": (rising, {"Compress": 1, "Concat": 1}),
    "running": (running, {"Concat": 1}),
    "counted": (counted, {"Loop": 1, "Compress": 0}),
}


@pytest.mark.parametrize("name", VECTORS)
def test_lists_are_filtered_behind_the_loop(name):
    function, expected = VECTORS[name]
    x = torch.tensor([0.5, -1.0, 3.0, -0.25, 1.5])
    fast = bridge.optimize(bridge.export(function, x, dynamic_shapes=N), target="cpu")
    counts = ops(fast.model)
    for op_type, count in expected.items():
        assert counts.get(op_type, 0) == count, counts
    inputs = [x, -x, x[:0], x[:1], torch.randn(50), torch.full((7,), -1.0), torch.ones(4)]
    bridge.check(function, fast, [(i,) for i in inputs]).raise_for_mismatch()


def rows_that_point_up(x):
    kept, i = [], 0
    while i < x.size(0):
        if x[i].sum() > 0:
            kept.append(x[i] / 2)
        i += 1
    return torch.stack(kept) if kept else torch.zeros(0, 3)


def best_of_rows(x):
    tokens, previous = [], -1
    for row in x:
        token = int(row.argmax())
        if token != previous:
            tokens.append(token)
        previous = token
    return torch.tensor(tokens, dtype=torch.long)


WEIGHT = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))


def scores_of_rows(x):
    found, loud = [], torch.zeros((), dtype=torch.long)
    for row in x:
        p = row.softmax(0)
        q = (row - row.mean()) @ WEIGHT
        found.append(p.max() + q.abs().sum() - torch.log_softmax(row, -1).min())
        if (row.clamp(min=0.1) * p).sum() > 0.5:
            loud = loud + 1
    return stacked(found, x[:, 0]), loud


def steps_between_rows(x):
    found, before = [], torch.zeros(3)
    for row in x:
        found.append((row - before).abs().amax())
        before = row
    return stacked(found, x[:, 0]), before


MATRICES = {
    "rows_that_point_up": (rows_that_point_up, {"If": 1, "Compress": 1}),
    "best_of_rows": (best_of_rows, {"Loop": 0, "Scan": 0, "ArgMax": 1}),
    "scores_of_rows": (scores_of_rows, {"Loop": 0, "Scan": 0, "Softmax": 1, "LogSoftmax": 1}),
    "steps_between_rows": (steps_between_rows, {"Loop": 0, "Scan": 0}),
}


@pytest.mark.parametrize("name", MATRICES)
def test_numbers_of_rows_are_tables(name):
    function, expected = MATRICES[name]
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    fast = bridge.optimize(bridge.export(function, x, dynamic_shapes=N), target="cpu")
    counts = ops(fast.model)
    for op_type, count in expected.items():
        assert counts.get(op_type, 0) == count, counts
    inputs = [x, -x, x[:1], x[:0], torch.randn(40, 3), torch.full((7, 3), -1.0)]
    bridge.check(function, fast, [(i,) for i in inputs]).raise_for_mismatch()


def test_wide_rows_stay_in_the_loop():
    def function(x):
        found = []
        for row in x:
            found.append(((row * 2).exp() - row).sin().sum())
        return torch.stack(found)

    x = torch.randn(5, 2000)
    fast = bridge.optimize(bridge.export(function, x, dynamic_shapes=N), target="cpu")
    assert ops(fast.model).get("Scan", 0) + ops(fast.model).get("Loop", 0) > 0
    bridge.check(function, fast, [(x,), (torch.randn(9, 2000),)]).raise_for_mismatch()


def test_items_of_a_carried_sequence_may_grow():
    """ONNX's inference takes the size of the first items for that of all."""

    def function(x):
        rows = [[v] for v in x]
        for v in x:
            if v > 0:
                rows[-1].append(v)
        return torch.tensor([len(r) for r in rows], dtype=torch.long)

    x = torch.tensor([1.0, -1.0, 2.0])
    fast = bridge.optimize(
        bridge.export(function, x, dynamic_shapes=N), target="cpu", verify=False
    )
    for i in (x, -x, torch.ones(5)):
        torch.testing.assert_close(fast(i), function(i))
