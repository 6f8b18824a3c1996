"""Stars, and lists that are compared: eager code and ONNX Runtime agree on all ways through."""

from __future__ import annotations

import pytest
import torch

from tests.script.language import every_way, one_way

PROGRAMS = []


def program(function):
    PROGRAMS.append(function)
    return function


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


@pytest.mark.parametrize("function", PROGRAMS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("example", [0, 1])
def test_agrees_when_one_way_is_the_example(function, example):
    one_way(function, example)


@pytest.mark.parametrize("function", PROGRAMS, ids=lambda f: f.__name__)
def test_agrees_when_every_way_is_an_example(function):
    every_way(function)
