"""``[x] * n`` of a size that varies: tables of dynamic programming and their kin."""

from __future__ import annotations

import pytest
import torch

import bridge

ROWS = {"x": {0: "rows"}}
X = torch.arange(6.0).view(3, 2)


def length(x):
    return x + len([0] * x.shape[0])


def weights(x):
    return x.sum(1) * torch.tensor([0.5] * x.shape[0])


def counts(x):
    runs = [0] * x.shape[0]
    for i in range(x.shape[0]):
        if x[i].sum() > 0:
            runs[i] = runs[i - 1] + 1
    return torch.tensor(runs)


def states(x):
    hidden = [torch.zeros(2)] * x.shape[0]
    for i in range(1, x.shape[0]):
        hidden[i] = hidden[i - 1] + x[i]
    return torch.stack(hidden)


def several_items(x):
    return torch.stack([x[0], x[1]] * x.shape[0])


def reflected(x):
    return x.sum() * sum(x.shape[0] * [1, 2])


def nothing(x):
    return x + len([] * x.shape[0])


def table(x):
    rows = [[0.0] * x.shape[0], [1.0] * x.shape[0]]
    return x.sum(1) + torch.tensor(rows[0]) - torch.tensor(rows[1])


@pytest.mark.parametrize(
    "function", [length, weights, counts, states, several_items, reflected, nothing, table]
)
def test_agrees_at_every_size(function):
    program = bridge.export(function, X, dynamic_shapes=ROWS)
    for rows in (2, 3, 7):
        x = torch.randn(rows, 2, generator=torch.Generator().manual_seed(rows))
        torch.testing.assert_close(program(x), function(x))


def test_other_sequences_say_where_their_length_is_frozen():
    def text(x):
        return x + len("ab" * x.shape[0])

    with pytest.raises(bridge.DisagreeingBranchError, match=r"int\(\) of .*: 3, 7") as caught:
        bridge.export(text, X, dynamic_shapes=ROWS)
    assert "bridge.script" not in caught.value.hint  # the function was compiled, to no avail
