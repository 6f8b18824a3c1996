"""``bisect``, ``heapq``, ``itertools.groupby``, ``collections.Counter``, and slices of lists that change."""

from __future__ import annotations

import bisect
import collections
import dataclasses
import heapq
import itertools

import torch

from tests.script.language import Programs

program = Programs()


class Tally:
    __slots__ = ("n", "total")

    def __init__(self, total):
        self.total, self.n = total, 0

    def step(self, v):
        if v > 0:
            self.total = self.total + v
            self.n += 1


@dataclasses.dataclass(slots=True)
class Mean:
    total: torch.Tensor
    count: int = 0

    @property
    def value(self):
        return self.total / self.count if self.count > 0 else self.total

    def add(self, v):
        self.total = self.total + v
        self.count += 1


@program
def object_with_slots(x):
    tally = Tally(x.sum() * 0)
    for v in x:
        tally.step(v)
    if tally.n > 1:
        tally.n = tally.n * 10
    return tally.total + tally.n


@program
def dataclass_with_slots(x):
    mean = Mean(x.sum() * 0)
    for v in x:
        if v > 0:
            mean.add(v)
    return mean.value


@program
def zipped_to_the_longest(x):
    s = x.sum() * 0
    pos = [v for v in x if v > 0]
    for a, b in itertools.zip_longest(pos, x, fillvalue=1.0):
        s = s * 0.5 + a * b
    return s


@program
def zipped_with_none(x):
    pos = [v for v in x if v > 0]
    s = x.sum() * 0
    for a, b in itertools.zip_longest(pos, x):
        s = s * 0.5 + (b if a is None else a)
    return s


@program
def counts(x):
    c = collections.Counter(x.abs().long().tolist())
    return c[0] + c[1] * 2


@program
def most_common(x):
    c = collections.Counter(x.abs().long().tolist())
    return c.most_common(1)[0][1]


@program
def counted_items(x):
    c = collections.Counter(x.abs().long().tolist())
    s = 0
    for k, v in c.items():
        s += k * v * v
    return torch.tensor(s + len(c) * 100)


@program
def values_by_count(x):
    c = collections.Counter((x > 0).long().tolist())
    return torch.tensor([k for k, _ in c.most_common()])


@program
def groups(x):
    s = 0
    for k, g in itertools.groupby(x.long().tolist()):
        s += k * len(list(g))
    return s


@program
def groups_by_key(x):
    return torch.tensor(
        [len(list(g)) for k, g in itertools.groupby(x.tolist(), key=lambda v: v > 0)]
    )


@program
def places_in_order(x):
    xs = sorted(x.tolist())
    return bisect.bisect_left(xs, 0.6) * 10 + bisect.bisect(xs, -1.0)


@program
def inserted_in_order(x):
    xs = []
    for v in x.tolist():
        bisect.insort(xs, v)
    return torch.tensor(xs)


@program
def longest_increasing_subsequence(x):
    tails = []
    for v in x.tolist():
        k = bisect.bisect_left(tails, v)
        if k == len(tails):
            tails.append(v)
        else:
            tails[k] = v
    return torch.tensor(len(tails))


@program
def largest_two(x):
    return torch.tensor(heapq.nlargest(2, x.tolist()))


@program
def smallest_two(x):
    return torch.tensor(heapq.nsmallest(2, x.tolist()))


@program
def largest_pairs(x):
    return torch.tensor(
        [i for _, i in heapq.nlargest(2, [(v, i) for i, v in enumerate(x.tolist())])]
    )


@program
def pairs_sorted(x):
    ps = sorted([(abs(v), i) for i, v in enumerate(x.long().tolist())], reverse=True)
    return torch.tensor([i for _, i in ps])


@program
def known_pairs_sorted(x):
    a = [(x[0].item(), 0), (x.sum().item(), 1), (x[-1].item(), 2)]
    a.sort()
    return x * a[0][1] + a[2][1]


@program
def sorted_by_pairs(x):
    a = sorted(x.tolist(), key=lambda v: (v > 0, -v))
    return torch.tensor(a)


@program
def pairs_looked_for(x):
    seen = []
    i, j = (0, 0)
    steps = 0
    while (i, j) not in seen and steps < 20:
        seen.append((i, j))
        i = (i + int(x[steps % x.shape[0]].abs())) % 3
        j = (j + 1) % 4
        steps += 1
    return x * steps + seen.index((i, j)) if (i, j) in seen else x


@program
def index_and_count(x):
    xs = x.tolist()
    return xs.index(max(xs)) * 10 + xs.count(min(xs))


@program
def place_of_the_least(x):
    xs = x.tolist()
    return min(range(len(xs)), key=lambda i: xs[i])


@program
def largest_or_none(x):
    pos = [i for i in range(x.shape[0]) if x[i] > 0]
    return max(pos, default=-1)


@program
def tail_replaced(x):
    a = [0] * x.shape[0]
    k = int(x.abs().max()) % x.shape[0]
    a[k:] = [5, 6]
    return torch.tensor(a)


@program
def middle_replaced(x):
    a = [i for i in range(x.shape[0])]
    k = int(x.abs().max()) % x.shape[0]
    a[k : k + 1] = [7, 7, 7]
    return torch.tensor(a)


@program
def empty_slices(x):
    a = [i for i in range(x.shape[0])]
    a[1:0] = [9]
    a[-1:] = []
    return torch.tensor(a + [1])


@program
def tail_deleted(x):
    a = x.tolist()
    del a[1:]
    return sum(a)


@program
def middle_deleted(x):
    a = x.tolist()
    del a[1:-1]
    return torch.tensor(a)


test_one_way, test_every_way = program.tests()
