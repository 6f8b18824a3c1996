"""Stars, and lists that are compared: eager code and ONNX Runtime agree on all ways through."""

from __future__ import annotations

import torch

from tests.script.language import Programs

program = Programs()


@program
def zip_star(x):
    pairs = [(a, a * 2) for a in x]
    p, q = zip(*pairs)
    return torch.stack(p), torch.stack(q)


@program
def star_call(x):
    def g(*rows):
        return torch.stack(rows).sum(0)

    return g(*[a * 2 for a in x])


@program
def star_max(x):
    return max(*x.tolist(), 0.0)


@program
def star_unpack(x):
    first, *rest = x
    return first, len(rest)


@program
def print_star(x):
    print(*[a.item() for a in x if a > 100])
    return x if x.sum() > 0 else -x


@program
def equal_list(x):
    return (x > 0).tolist() == [True, False, True]


@program
def slice_compare(x):
    signs = (x > 0).long().tolist()
    c = 0
    for i in range(len(signs) - 1):
        if signs[i : i + 2] == [1, 0]:
            c += 1
    return c


test_one_way, test_every_way = program.tests()
