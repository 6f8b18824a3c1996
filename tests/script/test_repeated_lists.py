"""``[x] * n`` of a size that varies: tables of dynamic programming and their kin."""

from __future__ import annotations

import pytest
import torch

import bridge
from tests.script.language import Programs

ROWS = {"x": {0: "rows"}}
X = torch.arange(6.0).view(3, 2)
program = Programs()


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


@program
def nones_replaced(x):
    n = x.shape[0]
    memo = [None] * n
    for i in range(n):
        memo[i] = x[i] * 2
    return torch.stack(memo)


@program
def nones_asked_for(x):
    n = x.shape[0]
    memo = [None] * n
    s = x.sum() * 0
    for i in range(n):
        j = int(x[i].abs()) % n
        if memo[j] is None:
            memo[j] = x[i]
            s = s + x[i]
        else:
            s = s * 0.5
    return s


@program
def nones_of_a_number_that_depends_on_data(x):
    n = int(x.abs().max()) + 1
    memo = [None] * n
    memo[0] = 1
    for i in range(1, n):
        memo[i] = memo[i - 1] + i
    return torch.tensor(memo)


@program
def path_of_links(x):
    n = x.shape[0]
    prev = [None] * n
    best = 0
    for i in range(1, n):
        if x[i] > x[best]:
            prev[i] = best
            best = i
    path = []
    cur = best
    while cur is not None:
        path.append(cur)
        cur = prev[cur]
    return torch.tensor(path)


@program
def nones_counted(x):
    n = x.shape[0]
    a = [None] * n
    for i in range(n):
        if x[i] > 0:
            a[i] = x[i]
    c = 0
    for v in a:
        if v is None:
            c += 1
    return x * c


@program
def equal_strings_counted(x):
    out = []
    for v in x:
        out.append("a")
    return x * len(out)


@program
def only_nones(x):
    out = []
    for v in x:
        if v > 0:
            out.append(None)
    return x * len(out)


@program
def table_of_nones(x):
    n = x.shape[0]
    g = [[None] * n for _ in range(n)]
    g[0][0] = 1
    for i in range(n):
        for j in range(n):
            if g[i][j] is None:
                g[i][j] = i + j
    return torch.tensor(g)


@program
def tuples_repeated(x):
    n = x.shape[0]
    a = [(0, 0.5)] * n
    for i in range(n):
        a[i] = (i, x[i].item())
    return torch.tensor([v for _, v in a]) * torch.tensor([k for k, _ in a])


@program
def several_repeated(x):
    n = int(x.abs().max())
    a = [1, 2] * n
    return x * (sum(a) + len(a))


@program
def tensors_repeated(x):
    n = x.shape[0]
    a = [x[:2]] * n
    return torch.cat(a)


@program
def tensors_of_a_run_time_size_repeated(x):
    n = x.shape[0]
    a = [x] * n
    a[0] = x * 2
    return torch.cat(a)


test_one_way, test_every_way = program.tests()
