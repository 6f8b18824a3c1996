"""Tensors taken apart into as many pieces as only run time knows; tables made of them."""

from __future__ import annotations

import pytest
import torch

from tests.script.harness import agree
from tests.script.language import Programs

program = Programs()


@program
def split(x):
    out = []
    for c in x.split(2):
        out.append(c.sum())
    return torch.stack(out)


@program
def pieces_indexed(x):
    parts = x.split(2)
    return parts[0].sum() + parts[-1].sum() + len(parts)


@program
def pieces_joined(x):
    return torch.cat([c * 2 for c in x.split(2)])


@program
def split_by_a_number_that_depends_on_data(x):
    n = int(x.abs().max()) + 1
    return torch.cat([c * c.numel() for c in x.split(n)])


@program
def chunks(x):
    k = int(x.abs().max()) + 1
    tot = 0.0
    for c in x.chunk(k):
        tot = tot + c.sum() * c.numel()
    return tot


@program
def unbind(x):
    return torch.stack([v * 2 for v in x.unbind()])


@program
def rows_indexed(x):
    u = torch.unbind(x)
    return u[0] + u[-1] * len(u)


@program
def rows_side_by_side(x):
    s = x.sum() * 0
    for i, (a, b) in enumerate(zip(x.unbind(0), torch.unbind(x * 2, dim=0))):
        s = s * 0.5 + a * b * i
    return s


@program
def tensor_split(x):
    k = int(x.abs().max()) + 1
    out = x.sum() * 0
    for c in torch.tensor_split(x, k):
        out = out * 0.5 + c.sum()
    return out


@program
def rows_of_what_a_mask_keeps(x):
    s = x.sum() * 0
    for v in x[x > 0].unbind():
        s = s * 0.5 + v
    return s


@program
def split_by_keyword(x):
    return torch.stack([c.max() for c in torch.split(x, split_size_or_sections=3, dim=0)])


@program
def first_piece_and_rest(x):
    first, *rest = x.split(1)
    s = first.sum()
    for r in rest:
        s = s * 2 + r.sum()
    return s


test_one_way, test_every_way = program.tests()


def columns(x):
    s = torch.zeros(x.shape[0])
    for c in x.unbind(1):
        s = s * 0.5 + c
    return s


def islands(x):
    g = [[1 if v % 3 != 0 else 0 for v in row] for row in x.long().tolist()]
    n, m = (len(g), len(g[0]))
    count = 0
    for i in range(n):
        for j in range(m):
            if g[i][j] == 1:
                count += 1
                stack = [(i, j)]
                g[i][j] = 0
                while stack:
                    a, b = stack.pop()
                    for da, db in ((0, 1), (1, 0), (0, -1), (-1, 0)):
                        c, d = (a + da, b + db)
                        if 0 <= c < n and 0 <= d < m and (g[c][d] == 1):
                            g[c][d] = 0
                            stack.append((c, d))
    return torch.tensor(count)


def column_groups(x):
    return torch.cat([c.sum(1, keepdim=True) for c in x.split(2, dim=1)], 1)


def cheapest_path(x):
    g = x.tolist()
    n, m = (len(g), len(g[0]))
    d = [[0.0] * m for _ in range(n)]
    for i in range(n):
        for j in range(m):
            if i == 0 and j == 0:
                d[i][j] = g[0][0]
            elif i == 0:
                d[i][j] = d[i][j - 1] + g[i][j]
            elif j == 0:
                d[i][j] = d[i - 1][j] + g[i][j]
            else:
                d[i][j] = min(d[i - 1][j], d[i][j - 1]) + g[i][j]
    return torch.tensor(d[-1][-1])


GRIDS = [(torch.arange(float(n * m)).view(n, m),) for n, m in ((2, 3), (4, 5), (1, 1), (4, 2))]


@pytest.mark.parametrize("function", [columns, islands, column_groups, cheapest_path])
def test_both_sizes_of_a_table_vary(function):
    agree(function, GRIDS[:1], GRIDS[1:], dynamic_shapes={"x": {0: "n", 1: "m"}})
    agree(function, GRIDS)
