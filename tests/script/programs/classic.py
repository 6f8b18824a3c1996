"""Algorithms on grids, strings, graphs and numbers."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tests.script.programs.case import Case, integers, normal, uniform


def levenshtein(a, b):
    """Edit distance by a table."""
    n, m = len(a), len(b)
    d = torch.zeros(n + 1, m + 1, dtype=torch.long)
    d[:, 0] = torch.arange(n + 1)
    d[0, :] = torch.arange(m + 1)
    for i in range(1, n + 1):
        for j in range(1, m + 1):
            cost = 0 if a[i - 1] == b[j - 1] else 1
            d[i, j] = min(d[i - 1, j] + 1, d[i, j - 1] + 1, d[i - 1, j - 1] + cost)
    return d[n, m]


def levenshtein_rows(a, b):
    """The same with lists of ints, two rows at a time."""
    a, b = a.tolist(), b.tolist()
    previous = list(range(len(b) + 1))
    for i, x in enumerate(a):
        current = [i + 1]
        for j, y in enumerate(b):
            current.append(min(previous[j + 1] + 1, current[j] + 1, previous[j] + (x != y)))
        previous = current
    return torch.tensor(previous[-1])


def game_of_life(board, steps):
    """Conway's game; stops when the board is empty or still."""
    kernel = torch.ones(1, 1, 3, 3)
    kernel[0, 0, 1, 1] = 0
    generation = 0
    for _ in range(int(steps)):
        neighbours = F.conv2d(board[None, None].float(), kernel, padding=1)[0, 0]
        new = ((board == 1) & ((neighbours == 2) | (neighbours == 3))) | (
            (board == 0) & (neighbours == 3)
        )
        new = new.to(board.dtype)
        if torch.equal(new, board) or new.sum() == 0:
            board = new
            break
        board = new
        generation += 1
    return board, generation


def game_of_life_cells(board):
    """One generation, cell by cell."""
    rows, columns = board.shape
    new = board.clone()
    for i in range(rows):
        for j in range(columns):
            alive = 0
            for di in (-1, 0, 1):
                for dj in (-1, 0, 1):
                    if di != 0 or dj != 0:
                        alive += board[(i + di) % rows, (j + dj) % columns]
            if board[i, j] == 1:
                if alive < 2 or alive > 3:
                    new[i, j] = 0
            elif alive == 3:
                new[i, j] = 1
    return new


def dynamic_time_warping(x, y):
    """Alignment cost of two series."""
    n, m = x.shape[0], y.shape[0]
    cost = torch.cdist(x, y)
    table = torch.full((n + 1, m + 1), float("inf"))
    table[0, 0] = 0
    for i in range(1, n + 1):
        for j in range(1, m + 1):
            best = torch.min(torch.stack([table[i - 1, j], table[i, j - 1], table[i - 1, j - 1]]))
            table[i, j] = cost[i - 1, j - 1] + best
    return table[n, m]


def longest_common_subsequence(a, b):
    """Its length and the matched positions."""
    n, m = a.shape[0], b.shape[0]
    table = torch.zeros(n + 1, m + 1, dtype=torch.int64)
    for i in range(n):
        for j in range(m):
            if a[i] == b[j]:
                table[i + 1, j + 1] = table[i, j] + 1
            else:
                table[i + 1, j + 1] = torch.maximum(table[i, j + 1], table[i + 1, j])
    matched = []
    i, j = n, m
    while i > 0 and j > 0:
        if a[i - 1] == b[j - 1]:
            matched.append(i - 1)
            i -= 1
            j -= 1
        elif table[i - 1, j] >= table[i, j - 1]:
            i -= 1
        else:
            j -= 1
    return table[n, m], torch.tensor(matched[::-1], dtype=torch.long)


def reachable(adjacency, start):
    """Breadth first, a frontier at a time."""
    visited = torch.zeros(adjacency.shape[0], dtype=torch.bool)
    frontier = torch.zeros_like(visited)
    frontier[start] = True
    distance = torch.full((adjacency.shape[0],), -1)
    level = 0
    while frontier.any():
        distance[frontier] = level
        visited |= frontier
        frontier = (adjacency[frontier].any(0)) & ~visited
        level += 1
    return distance


def bfs_queue(neighbours, start):
    """Breadth first with a queue; ``neighbours`` is padded with -1."""
    seen = torch.zeros(neighbours.shape[0], dtype=torch.bool)
    queue = [int(start)]
    seen[start] = True
    order = []
    while queue:
        node = queue.pop(0)
        order.append(node)
        for other in neighbours[node]:
            if other >= 0 and not seen[other]:
                seen[other] = True
                queue.append(int(other))
    return torch.tensor(order)


def dbscan(points, radius):
    """Density clustering; -1 is noise."""
    n = points.shape[0]
    near = torch.cdist(points, points) <= radius
    core = near.sum(1) >= 3
    labels = torch.full((n,), -1)
    cluster = 0
    for i in range(n):
        if labels[i] != -1 or not core[i]:
            continue
        members = torch.zeros(n, dtype=torch.bool)
        members[i] = True
        while True:
            grown = members | near[members & core].any(0)
            if torch.equal(grown, members):
                break
            members = grown
        labels[members & (labels == -1)] = cluster
        cluster += 1
    return labels, cluster


def connected_components(adjacency):
    """Labels spread until they stop."""
    labels = torch.arange(adjacency.size(0))
    while True:
        spread = torch.where(adjacency, labels.unsqueeze(0), labels.size(0)).min(1).values
        new = torch.minimum(labels, spread)
        if (new == labels).all():
            return labels
        labels = new


def shortest_paths(weights):
    """Floyd and Warshall."""
    d = weights.clone()
    for k in range(d.shape[0]):
        d = torch.minimum(d, d[:, k : k + 1] + d[k : k + 1, :])
    return d


def decision_tree(x, feature, threshold, left, right, value):
    """Each row walks from the root to a leaf."""
    results = []
    for row in x:
        node = 0
        while left[node] != -1:
            if row[feature[node]] <= threshold[node]:
                node = left[node]
            else:
                node = right[node]
        results.append(value[node])
    return torch.stack(results)


def binary_search(values, key):
    """The first place where ``key`` fits."""
    low, high = 0, values.shape[0]
    while low < high:
        middle = (low + high) // 2
        if values[middle] < key:
            low = middle + 1
        else:
            high = middle
    return torch.tensor(low)


def bubble_sort(x):
    """Swaps until nothing moves."""
    x = x.clone()
    n = len(x)
    swapped = True
    while swapped:
        swapped = False
        for i in range(n - 1):
            if x[i] > x[i + 1]:
                x[i], x[i + 1] = x[i + 1].clone(), x[i].clone()
                swapped = True
    return x


def insertion_sort(x):
    """With an inner loop that runs backwards."""
    x = x.clone()
    for i in range(1, x.shape[0]):
        key = x[i].clone()
        j = i - 1
        while j >= 0 and x[j] > key:
            x[j + 1] = x[j]
            j -= 1
        x[j + 1] = key
    return x


def collatz(n):
    """Steps to one."""
    steps = 0
    while n != 1:
        if n % 2 == 0:
            n = n // 2
        else:
            n = 3 * n + 1
        steps += 1
    return torch.tensor(steps)


def gcd(a, b):
    """Euclid."""
    while b != 0:
        a, b = b, a % b
    return a


def fibonacci(n):
    """As everybody writes it."""
    a, b = 0, 1
    for _ in range(int(n)):
        a, b = b, a + b
    return torch.tensor(a)


def sieve(limit):
    """The primes below a number."""
    n = int(limit)
    prime = torch.ones(n, dtype=torch.bool)
    prime[:2] = False
    i = 2
    while i * i < n:
        if prime[i]:
            prime[i * i :: i] = False
        i += 1
    return prime.nonzero().squeeze(1)


def knapsack(weights, values, capacity):
    """The best value that fits."""
    best = torch.zeros(int(capacity) + 1)
    for w, v in zip(weights.tolist(), values):
        shifted = torch.cat([torch.full((w,), float("-inf")), best[: len(best) - w]])
        best = torch.maximum(best, shifted + v)
    return best.max()


def run_lengths(x):
    """Values and how often each repeats."""
    values, counts = [], []
    i = 0
    while i < len(x):
        j = i
        while j < len(x) and x[j] == x[i]:
            j += 1
        values.append(x[i])
        counts.append(j - i)
        i = j
    return torch.stack(values), torch.tensor(counts)


def flood_fill(image, row, column):
    """Grows a region of one colour."""
    colour = image[row, column]
    region = torch.zeros_like(image, dtype=torch.bool)
    region[row, column] = True
    size = 0
    while region.sum() > size:
        size = region.sum()
        grown = F.max_pool2d(region[None, None].float(), 3, stride=1, padding=1)[0, 0] > 0
        region = grown & (image == colour)
    return region


def hungarian_greedy(cost):
    """Greedy assignment: the cheapest pair first, until none is left below the limit."""
    cost = cost.clone()
    pairs = []
    for _ in range(min(cost.shape[0], cost.shape[1])):
        index = cost.argmin()
        row, column = index // cost.shape[1], index % cost.shape[1]
        if cost[row, column] > 0.5:
            break
        pairs.append(torch.stack([row, column]))
        cost[row, :] = float("inf")
        cost[:, column] = float("inf")
    return torch.stack(pairs) if pairs else torch.zeros(0, 2, dtype=torch.long)


def tree_depth(parent):
    """The depth of each node, by walking up."""
    depth = torch.zeros_like(parent)
    for i in range(parent.shape[0]):
        node = i
        while parent[node] >= 0:
            node = parent[node]
            depth[i] += 1
    return depth


def _words(n, m, seed=0):
    return integers(4, n, seed=seed), integers(4, m, seed=seed + 1)


def _series(n, m, seed=0):
    return normal(n, 2, seed=seed), normal(m, 2, seed=seed + 1)


def _board(n, m, seed=0, share=0.4):
    return (uniform(n, m, seed=seed) < share).long()


def _graph(n, seed=0, share=0.2):
    a = uniform(n, n, seed=seed) < share
    return a | a.t()


def _padded_graph(n, seed=0):
    return integers(n + 1, n, 3, seed=seed) - 1


def _tree():
    """feature, threshold, left, right, value of a tree of depth 2 or 3."""
    t = torch.tensor
    return (t([0, 1, 0, 2, 0, 0, 0]), t([0.0, 0.5, 0.0, -0.3, 0.0, 0.0, 0.0]),
            t([1, 3, -1, 5, -1, -1, -1]), t([2, 4, -1, 6, -1, -1, -1]),
            t([0.0, 0.0, 1.0, 0.0, 2.0, 3.0, 4.0]))  # fmt: skip


def _parents(n):
    return torch.tensor([-1, *((i - 1) // 2 for i in range(1, n))])


T = torch.tensor

CASES = {
    "levenshtein": Case(
        lambda: levenshtein,
        _words(4, 5),
        (_words(1, 1, 2), _words(0, 3, 4), _words(9, 7, 6)),
        ({0: "n"}, {0: "m"}),
        _words(30, 40, 8),
    ),
    "levenshtein_rows": Case(
        lambda: levenshtein_rows,
        _words(4, 5),
        (_words(1, 1, 2), _words(0, 3, 4), _words(9, 7, 6)),
        ({0: "n"}, {0: "m"}),
        _words(30, 40, 8),
    ),
    "game_of_life": Case(
        lambda: game_of_life,
        (_board(6, 7), T(5)),
        ((_board(1, 1, 1), T(3)), (_board(12, 9, 2), T(0)), (_board(12, 9, 2), T(20))),
        ({0: "rows", 1: "columns"}, {}),
        (_board(64, 64, 3), T(30)),
    ),
    "game_of_life_cells": Case(
        lambda: game_of_life_cells,
        (_board(4, 5),),
        ((_board(1, 1, 1),), (_board(7, 6, 2),)),
        ({0: "rows", 1: "columns"},),
        (_board(16, 16, 3),),
    ),
    "dynamic_time_warping": Case(
        lambda: dynamic_time_warping,
        _series(4, 5),
        (_series(1, 1, 2), _series(9, 7, 6)),
        ({0: "n"}, {0: "m"}),
        _series(25, 30, 8),
    ),
    "longest_common_subsequence": Case(
        lambda: longest_common_subsequence,
        _words(4, 5),
        (_words(1, 1, 2), _words(9, 7, 6)),
        ({0: "n"}, {0: "m"}),
        _words(25, 30, 8),
    ),
    "reachable": Case(
        lambda: reachable,
        (_graph(6), T(0)),
        ((_graph(1, 1), T(0)), (_graph(20, 2, 0.05), T(7)), (_graph(9, 3, 0.0), T(3))),
        ({0: "n", 1: "n"}, {}),
        (_graph(200, 4, 0.01), T(5)),
    ),
    "bfs_queue": Case(
        lambda: bfs_queue,
        (_padded_graph(6), T(0)),
        ((_padded_graph(1, 1), T(0)), (_padded_graph(15, 2), T(7))),
        ({0: "n"}, {}),
        (_padded_graph(60, 3), T(7)),
    ),
    "dbscan": Case(
        lambda: dbscan,
        (uniform(10, 2), T(0.3)),
        (
            (uniform(1, 2, seed=1), T(0.3)),
            (uniform(40, 2, seed=2), T(0.12)),
            (uniform(6, 2), T(9.0)),
        ),
        ({0: "n"}, {}),
        (uniform(120, 2, seed=3), T(0.1)),
    ),
    "connected_components": Case(
        lambda: connected_components,
        (_graph(6),),
        ((_graph(1, 1),), (_graph(20, 2, 0.05),)),
        ({0: "n", 1: "n"},),
        (_graph(150, 3, 0.01),),
    ),
    "shortest_paths": Case(
        lambda: shortest_paths,
        (uniform(5, 5),),
        ((uniform(1, 1, seed=1),), (uniform(14, 14, seed=2),)),
        ({0: "n", 1: "n"},),
        (uniform(60, 60, seed=2),),
    ),
    "decision_tree": Case(
        lambda: decision_tree,
        (normal(4, 3), *_tree()),
        ((normal(1, 3, seed=1), *_tree()), (normal(15, 3, seed=2), *_tree())),
        ({0: "rows"}, {}, {}, {}, {}, {}),
        (normal(100, 3, seed=2), *_tree()),
    ),
    "binary_search": Case(
        lambda: binary_search,
        (T([1.0, 3.0, 5.0, 8.0]), T(4.0)),
        (
            (torch.zeros(0), T(4.0)),
            (T([1.0]), T(0.0)),
            (torch.arange(50.0), T(100.0)),
            (torch.arange(50.0), T(31.5)),
        ),
        ({0: "n"}, {}),
        (torch.arange(1e5), T(31415.5)),
    ),
    "bubble_sort": Case(
        lambda: bubble_sort,
        (normal(5),),
        ((normal(1, seed=1),), (torch.arange(6.0),), (normal(11, seed=2),)),
        ({0: "n"},),
        (normal(24, seed=3),),
    ),
    "insertion_sort": Case(
        lambda: insertion_sort,
        (normal(5),),
        ((normal(1, seed=1),), (torch.arange(6.0),), (normal(11, seed=2),)),
        ({0: "n"},),
        (normal(40, seed=3),),
    ),
    "collatz": Case(lambda: collatz, (T(6),), ((T(1),), (T(27),), (T(8),)), None, (T(871),)),
    "gcd": Case(
        lambda: gcd,
        (T(12), T(18)),
        ((T(7), T(0)), (T(1071), T(462))),
        None,
        (T(832040), T(514229)),
    ),
    "fibonacci": Case(lambda: fibonacci, (T(5),), ((T(0),), (T(1),), (T(60),)), None, (T(80),)),
    "sieve": Case(lambda: sieve, (T(12),), ((T(3),), (T(100),)), None, (T(5000),)),
    "knapsack": Case(
        lambda: knapsack,
        (T([2, 3, 4]), T([3.0, 4.0, 6.0]), T(6)),
        ((T([1]), T([2.0]), T(1)), (T([2, 3, 4, 5, 9]), normal(5).abs(), T(20))),
        ({0: "items"}, {0: "items"}, {}),
        (1 + integers(20, 40), uniform(40), T(100)),
    ),
    "run_lengths": Case(
        lambda: run_lengths,
        (T([1, 1, 2, 3, 3, 3]),),
        ((T([5]),), (T([1, 2, 3, 4]),), (integers(2, 30),)),
        ({0: "n"},),
        (integers(2, 100),),
    ),
    "flood_fill": Case(
        lambda: flood_fill,
        (_board(6, 7), T(0), T(0)),
        ((_board(1, 1, 1), T(0), T(0)), (_board(15, 12, 2), T(7), T(3))),
        ({0: "rows", 1: "columns"}, {}, {}),
        (_board(64, 64, 3, 0.2), T(7), T(3)),
    ),
    "hungarian_greedy": Case(
        lambda: hungarian_greedy,
        (uniform(3, 4),),
        ((uniform(1, 1, seed=1) + 1,), (uniform(6, 5, seed=2),), (uniform(5, 2, seed=3) * 2,)),
        ({0: "rows", 1: "columns"},),
        (uniform(30, 30, seed=4),),
    ),
    "tree_depth": Case(
        lambda: tree_depth,
        (_parents(6),),
        ((_parents(1),), (_parents(20),)),
        ({0: "nodes"},),
        (_parents(63),),
    ),
}
