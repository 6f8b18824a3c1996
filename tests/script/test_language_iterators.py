"""Iterators and heaps: eager code and ONNX Runtime agree on all ways through."""

from __future__ import annotations

import functools
import heapq
import itertools
import operator

import torch

from tests.script.language import Programs

program = Programs()


@program
def reduce_(x):
    return functools.reduce(lambda a, b: a * 0.5 + b, x)


@program
def reduce_init(x):
    return functools.reduce(lambda a, b: a + b if b > 0 else a - 1, x, torch.zeros(()))


@program
def accumulate_(x):
    return torch.stack(list(itertools.accumulate(x)))


@program
def accumulate_fn(x):
    return torch.stack(list(itertools.accumulate(x, lambda a, b: torch.maximum(a, b))))


@program
def product_tensor(x):
    t = torch.zeros(())
    for a, b in itertools.product(x, x):
        if a < b:
            t = t + a * b
    return t


@program
def combinations_(x):
    t = torch.zeros(())
    for a, b in itertools.combinations(x, 2):
        t = t + (a - b).abs()
    return t


@program
def pairwise_(x):
    c = 0
    for a, b in itertools.pairwise(x):
        if b > a:
            c += 1
    return c


@program
def chain_(x):
    return torch.stack([a * 2 for a in itertools.chain(x, -x)])


@program
def count_(x):
    for i in itertools.count():
        if i >= len(x) or x[i] < 0:
            break
    return i


@program
def islice_step(x):
    return torch.stack(list(itertools.islice(x, 0, None, 2)))


@program
def cycle_zip(x):
    return sum(s * a for s, a in zip(itertools.cycle([1, -1]), x))


@program
def map_filter(x):
    return sum(map(lambda a: a * 2, filter(lambda a: a > 0, x)), torch.zeros(()))


@program
def map_list(x):
    return torch.stack(list(map(torch.sin, x)))


@program
def map_two(x):
    return sum(map(operator.mul, x, reversed(x)))


@program
def filter_none(x):
    return len(list(filter(None, x.tolist())))


@program
def star_map(x):
    return sum(itertools.starmap(lambda i, a: i * a, enumerate(x)))


@program
def heap_push(x):
    h = []
    for a in x.tolist():
        heapq.heappush(h, a)
    return torch.tensor([heapq.heappop(h) for _ in range(len(h))])


@program
def next_default(x):
    return next((a for a in x if a > 2), torch.tensor(-1.0))


@program
def iter_next(x):
    it = iter(x)
    t = next(it)
    for a in it:
        t = t * 0.5 + a
    return t


@program
def max_key(x):
    return max(x, key=lambda a: abs(a))


@program
def max_default(x):
    return max([a.item() for a in x if a > 0], default=-1.0)


@program
def max_enum(x):
    return max(enumerate(x.tolist()), key=lambda p: p[1])


@program
def min_range(x):
    return min(range(len(x)), key=lambda i: x[i])


@program
def tuple_cmp(x):
    best = (-1e9, -1)
    for i, a in enumerate(x.tolist()):
        best = max(best, (a, i))
    return best


@program
def tuple_lt(x):
    a, b = x.max().item(), x.min().item()
    return (a, b) > (1.0, 0.0)


test_one_way, test_every_way = program.tests()
