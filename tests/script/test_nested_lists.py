"""Lists of lists whose lengths only run time knows: tables, graphs, groups."""

from __future__ import annotations

import copy

import torch

from tests.script.language import Programs

program = Programs()


@program
def table_filled_by_items(x):
    n = x.shape[0]
    t = [[0] * n for _ in range(n)]
    for i in range(n):
        for j in range(n):
            t[i][j] = i * j + (t[i - 1][j] if i > 0 else 0)
    return torch.tensor(t)


@program
def table_of_a_width_that_depends_on_data(x):
    n = x.shape[0]
    m = int(x.abs().max()) + 1
    t = [[0] * (m + 1) for _ in range(n + 1)]
    for i in range(1, n + 1):
        for j in range(1, m + 1):
            t[i][j] = max(t[i - 1][j], t[i][j - 1]) + 1
    return torch.tensor(t[n][m])


@program
def rows_that_grow(x):
    rows = []
    n = x.shape[0]
    for i in range(n):
        row = []
        for j in range(i + 1):
            row.append(i + j)
        rows.append(row)
    s = 0
    for r in rows:
        for v in r:
            s += v
    return x * s


@program
def pascals_triangle(x):
    n = x.shape[0]
    tri = [[1]]
    for i in range(n):
        prev = tri[-1]
        new = [1]
        for j in range(len(prev) - 1):
            new.append(prev[j] + prev[j + 1])
        new.append(1)
        tri.append(new)
    return torch.tensor(tri[-1])


@program
def levenshtein(x):
    a = x.long().tolist()
    b = [1, 3, 0, 2]
    n, m = (len(a), len(b))
    d = [[0] * (m + 1) for _ in range(n + 1)]
    for i in range(n + 1):
        d[i][0] = i
    for j in range(m + 1):
        d[0][j] = j
    for i in range(1, n + 1):
        for j in range(1, m + 1):
            c = 0 if a[i - 1] == b[j - 1] else 1
            d[i][j] = min(d[i - 1][j] + 1, d[i][j - 1] + 1, d[i - 1][j - 1] + c)
    return torch.tensor(d[n][m])


@program
def longest_common_subsequence(x):
    a = x.long().tolist()
    b = (x + 1).long().tolist()
    n, m = (len(a), len(b))
    d = [[0 for _ in range(m + 1)] for _ in range(n + 1)]
    for i in range(n):
        for j in range(m):
            if a[i] == b[j]:
                d[i + 1][j + 1] = d[i][j] + 1
            else:
                d[i + 1][j + 1] = max(d[i][j + 1], d[i + 1][j])
    return torch.tensor(d)


@program
def breadth_first_search(x):
    n = x.shape[0]
    g = [[] for _ in range(n)]
    for i in range(n):
        for j in range(n):
            if x[i] < x[j]:
                g[i].append(j)
    dist = [-1] * n
    dist[0] = 0
    q = [0]
    while q:
        u = q.pop(0)
        for v in g[u]:
            if dist[v] < 0:
                dist[v] = dist[u] + 1
                q.append(v)
    return torch.tensor(dist)


@program
def floyd_warshall(x):
    n = x.shape[0]
    xs = x.tolist()
    t = [[abs(a - b) for b in xs] for a in xs]
    for k in range(n):
        for i in range(n):
            for j in range(n):
                if t[i][k] + t[k][j] < t[i][j]:
                    t[i][j] = t[i][k] + t[k][j]
    return torch.tensor(t)


@program
def table_of_tensors(x):
    n = x.shape[0]
    t = [[v * w for w in x] for v in x]
    s = x.sum() * 0
    for row in t:
        s = s * 0.5 + row[0] + row[-1]
    return s


@program
def runs(x):
    groups = []
    for v in x.tolist():
        if groups and v > groups[-1][-1]:
            groups[-1].append(v)
        else:
            groups.append([v])
    return torch.tensor([len(g) for g in groups])


@program
def transposed(x):
    n = x.shape[0]
    t = [[i * 2 + j for j in range(n + 1)] for i in range(n)]
    tt = [[t[i][j] for i in range(n)] for j in range(n + 1)]
    return torch.tensor(tt)


@program
def sums_of_rows(x):
    n = x.shape[0]
    t = [[i * j for j in range(n)] for i in range(n)]
    return torch.tensor([sum(r) for r in t]) + sum((max(r) for r in t))


@program
def rows_replaced(x):
    n = x.shape[0]
    t = [[0] * n for _ in range(n)]
    t[0] = [i for i in range(n)]
    t[n - 1] = [7] * n
    return torch.tensor(t)


@program
def rows_copied(x):
    n = x.shape[0]
    t = [[i + j for j in range(n)] for i in range(n)]
    new = [row[:] for row in t]
    for i in range(n):
        new[i][0] = t[i][n - 1]
    return torch.tensor(new) - torch.tensor(t)


@program
def weighted_edges(x):
    n = x.shape[0]
    g = [[] for _ in range(n)]
    for i in range(n):
        for j in range(n):
            if x[i] < x[j]:
                g[i].append((j, (x[j] - x[i]).item()))
    tot = 0.0
    for i in range(n):
        for j, w in g[i]:
            tot += w * j
    return torch.tensor(tot)


@program
def buckets(x):
    b = [[] for _ in range(3)]
    for v in x.tolist():
        if v < 0:
            b[0].append(v)
        elif v < 2:
            b[1].append(v)
        else:
            b[2].append(v)
    out = []
    for c in b:
        for v in sorted(c):
            out.append(v)
    return torch.tensor(out)


@program
def ints_that_become_floats(x):
    n = x.shape[0]
    t = [[0] * n for _ in range(n)]
    for i in range(n):
        t[i][0] = x[i].item()
    return torch.tensor(t)


@program
def topological_order(x):
    n = x.shape[0]
    indeg = [0] * n
    out = [[] for _ in range(n)]
    for i in range(n):
        for j in range(i + 1, n):
            if x[i] > x[j]:
                out[i].append(j)
                indeg[j] += 1
    stack = [i for i in range(n) if indeg[i] == 0]
    order = []
    while stack:
        u = stack.pop()
        order.append(u)
        for v in out[u]:
            indeg[v] -= 1
            if indeg[v] == 0:
                stack.append(v)
    return torch.tensor(order)


@program
def dijkstra(x):
    n = x.shape[0]
    INF = 1000000000.0
    w = [[abs(a - b) + 0.5 for b in x.tolist()] for a in x.tolist()]
    dist = [INF] * n
    done = [False] * n
    dist[0] = 0.0
    for _ in range(n):
        u = -1
        for i in range(n):
            if not done[i] and (u < 0 or dist[i] < dist[u]):
                u = i
        done[u] = True
        for v in range(n):
            if dist[u] + w[u][v] < dist[v]:
                dist[v] = dist[u] + w[u][v]
    return torch.tensor(dist)


@program
def sums_of_subsets(x):
    res = [[]]
    for v in x.long().tolist():
        res = res + [r + [v] for r in res]
    return torch.tensor([sum(r) for r in res])


@program
def lists_of_tensors(x):
    n = x.shape[0]
    rows = [[] for _ in range(n)]
    for i in range(n):
        for v in x:
            if v > x[i]:
                rows[i].append(v)
    s = x.sum() * 0
    for r in rows:
        if len(r) > 0:
            s = s + torch.stack(r).mean()
    return s


@program
def knapsack(x):
    w = [int(v) + 1 for v in x.abs()]
    cap = 7
    best = [[0] * (cap + 1) for _ in range(len(w) + 1)]
    for i in range(1, len(w) + 1):
        for c in range(cap + 1):
            best[i][c] = best[i - 1][c]
            if w[i - 1] <= c:
                best[i][c] = max(best[i][c], best[i - 1][c - w[i - 1]] + w[i - 1])
    return torch.tensor(best[-1][-1])


@program
def spiral(x):
    n = x.shape[0]
    m = [[i * n + j for j in range(n)] for i in range(n)]
    top, bot, left, right = (0, n - 1, 0, n - 1)
    out = []
    while top <= bot and left <= right:
        for j in range(left, right + 1):
            out.append(m[top][j])
        top += 1
        for i in range(top, bot + 1):
            out.append(m[i][right])
        right -= 1
        if top <= bot:
            for j in range(right, left - 1, -1):
                out.append(m[bot][j])
            bot -= 1
        if left <= right:
            for i in range(bot, top - 1, -1):
                out.append(m[i][left])
            left += 1
    return torch.tensor(out)


@program
def game_of_life(x):
    n = x.shape[0] + 2
    g = [[(i * j + i) % 2 for j in range(n)] for i in range(n)]
    for step in range(2):
        new = [[0] * n for _ in range(n)]
        for i in range(n):
            for j in range(n):
                c = 0
                for di in (-1, 0, 1):
                    for dj in (-1, 0, 1):
                        if (di != 0 or dj != 0) and 0 <= i + di < n and (0 <= j + dj < n):
                            c += g[i + di][j + dj]
                new[i][j] = 1 if c == 3 or (c == 2 and g[i][j] == 1) else 0
        g = new
    return torch.tensor(g)


@program
def rows_changed_in_turn(x):
    n = x.shape[0]
    t = [[0] * n for _ in range(n)]
    for i, row in enumerate(t):
        row[i] = 1
    return torch.tensor(t)


@program
def table_copied(x):
    n = x.shape[0]
    t = [[i] * n for i in range(n)]
    u = copy.deepcopy(t)
    u[0][0] = 99
    return torch.tensor(t) + torch.tensor(u)


@program
def rows_swapped(x):
    n = x.shape[0]
    t = [[i * 10 + j for j in range(n)] for i in range(n)]
    t[0], t[n - 1] = (t[n - 1], t[0])
    return torch.tensor(t)


@program
def turned_by_a_quarter(x):
    n = x.shape[0]
    t = [[i * 10 + j for j in range(n)] for i in range(n)]
    r = [[t[n - 1 - j][i] for j in range(n)] for i in range(n)]
    return torch.tensor(r)


@program
def rows_to_columns(x):
    n = x.shape[0]
    t = [[i * 10 + j for j in range(2)] for i in range(n)]
    a, b = zip(*t)
    return torch.tensor(a) - torch.tensor(b)


@program
def row_taken_out(x):
    n = x.shape[0]
    t = [[i] * (i + 1) for i in range(n)]
    r = t.pop()
    r.append(5)
    return torch.tensor(r).sum() + len(t)


@program
def any_and_all_of_rows(x):
    n = x.shape[0]
    t = [[v > w for w in x.tolist()] for v in x.tolist()]
    return torch.tensor([any(r) for r in t]).long() + torch.tensor([all(r) for r in t]).long()


@program
def rows_compared(x):
    n = x.shape[0]
    t = [[i % 2, 1] for i in range(n)]
    c = 0
    for r in t:
        if r == [0, 1]:
            c += 1
    return x * c


@program
def lists_of_ranges(x):
    rows = []
    for v in x.abs().long().tolist():
        rows.append(list(range(v)))
    return torch.tensor([len(r) for r in rows])


@program
def lists_in_a_dict(x):
    d = {"pos": [], "neg": []}
    for v in x.tolist():
        if v > 0:
            d["pos"].append(v)
        else:
            d["neg"].append(v)
    return torch.tensor(len(d["pos"]) * 10 + len(d["neg"]))


test_one_way, test_every_way = program.tests()
