"""Sets of numbers that only run time knows: asked, counted, filled and emptied."""

from __future__ import annotations

import torch

from tests.script.harness import agree
from tests.script.language import OR_NONE, Programs

program = Programs(OR_NONE)


@program
def added_on_one_way(x):
    s = {1, 2}
    if x.sum() > 6:
        s.add(3)
    return x + 1 if 3 in s else x


@program
def duplicates(x):
    seen, again = set(), 0
    for v in x.long().tolist():
        if v in seen:
            again += 1
        else:
            seen.add(v)
    return again, len(seen), sum(seen)


@program
def comprehended(x):
    a = {int(v) for v in x}
    return len(a), max(a, default=0), torch.tensor(sorted(a), dtype=torch.long)


@program
def algebra(x):
    a = {int(v) for v in x if v > 0}
    b = {1, 5, 7}
    return len(a | b), len(a & b), len(a - b), len(b - a)


@program
def emptied(x):
    left = set(range(4))
    for v in x.long().tolist():
        left.discard(v)
    return len(left), sum(left)


@program
def asked_for_its_truth(x):
    s = set()
    for v in x:
        if v > 4:
            s.add(1)
    if not s:
        return x
    return x * 2


@program
def given_to_a_function(x):
    def visit(v, seen):
        if v in seen:
            return 0
        seen.add(v)
        return 1

    seen = set()
    return sum(visit(v, seen) for v in x.long().tolist())


@program
def of_texts(x):
    names = {"a", "b"}
    for n in ("a", "c"):
        if n in names:
            x = x + 1
    for k in sorted(names):
        x = x * 2
    return x - 1 if x.sum() > 3 else x, len(names)


@program
def items_kept_in_place(x):
    xs = list(x.tolist())
    same = xs
    xs[:] = [v for v in xs if v > 0]
    ys = [1.0, 2.0, 3.0]
    ys[1:2] = [v for v in xs if v > 2]
    return x.sum() + sum(same) + len(ys) + sum(ys)


def note(x, seen):
    if x.sum() > 3:
        seen.add(3)


@program
def made_in_another_function(x):
    seen = {1}
    note(x, seen)
    return x * len(seen) + (1 if 3 in seen else 0)


test_one_way, test_every_way = program.tests()


def cells_reached(walls):
    seen, waiting = set(), [(0, 0)]
    while waiting:
        r, c = waiting.pop()
        if (r, c) in seen or r >= walls.shape[0] or c >= walls.shape[1] or walls[r, c]:
            continue
        seen.add((r, c))
        waiting.append((r + 1, c))
        waiting.append((r, c + 1))
    return len(seen)


def test_sets_of_places():
    walls = torch.arange(12).reshape(3, 4) % 5 == 4
    others = [(torch.ones(2, 2) > 0,), (torch.zeros(1, 3) > 0,)]
    agree(cells_reached, [(walls,)], others, dynamic_shapes={"walls": {0: "h", 1: "w"}})


def steps_until_a_repetition(successors):
    visited, here = set(), 0
    while here not in visited:
        visited.add(here)
        here = int(successors[here])
    return len(visited), here


def test_a_cycle_is_found():
    inputs = [(torch.tensor(x),) for x in ([1, 2, 0, 4, 4], [0], [3, 0, 1, 2])]
    agree(
        steps_until_a_repetition, inputs[:1], inputs[1:], dynamic_shapes={"successors": {0: "n"}}
    )


def common_divisor(a, b, calls=12):
    if calls == 0 or b == 0:
        return a
    return common_divisor(b, a % b, calls - 1)


def test_a_remainder_by_zero_on_a_way_that_is_not_taken_does_not_stop_the_trace():
    def program(a, b):
        return common_divisor(a, b)

    pairs = [tuple(map(torch.tensor, p)) for p in ((48, 18), (7, 0), (17, 5))]
    agree(program, pairs[:1], pairs[1:])
