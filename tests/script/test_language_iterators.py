"""Iterators and heaps: eager code and ONNX Runtime agree on all ways through."""

from __future__ import annotations

import collections
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


@program
def the_rest_after_a_break(x):
    items = iter(x)
    s = x.sum()
    for v in items:
        if v > 2:
            break
        s = s + 1
    return s, sum(items, torch.zeros(()))


@program
def the_next_after_a_break(x):
    items = iter(x)
    for v in items:
        if v > 2:
            break
    return next(items, torch.zeros(()))


@program
def nothing_left(x):
    items = iter(x)
    for v in items:
        pass
    n = 0
    for v in items:
        n += 1
    return x * n


@program
def taking_turns(x):
    items = iter(x)
    return sum(a * b for a, b in zip(items, items)) + x.sum()


@program
def accumulated_of_none(x):
    kept = [v for v in x.tolist() if v > 2]
    return torch.tensor([*itertools.accumulate(kept, lambda a, b: max(a, b) - 0.5), 0.0])


@program
def rounds_of_a_queue(x):
    waiting, done = collections.deque(x.tolist()), []
    while waiting:
        v = waiting.popleft()
        if v > 2:
            waiting.append(v - 2)
        else:
            done.append(v)
    return torch.tensor(done)


def place_of_a_large_one(x):
    for i, v in enumerate(x):
        if v > 2:
            return i
    return None


@program
def place_that_may_be_none(x):
    i = place_of_a_large_one(x)
    if i is None:
        return x.sum(), -1
    return x[i], i


@program
def place_that_may_be_none_among_others(x):
    i = place_of_a_large_one(x)
    s = x[i] if x.sum() > 0 and i is not None else x.sum()
    return s + 1 if i is None or x[i] < 4 else s


test_one_way, test_every_way = program.tests()
