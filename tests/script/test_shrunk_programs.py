"""What random programs that disagreed were shrunk to."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import torch

import bridge
from tests.script.harness import T, agree
from tests.script.language import Programs

# Loops that only some worlds run, in every order of the worlds.
program = Programs(
    [
        (T([-1.0, 0.5]),),
        (T([3.0, 1.0, 0.0]),),
        (T([2.5]),),
        (T([-0.5, -2.0, 0.25, -1.0]),),
    ]
)


@dataclasses.dataclass
class Box:
    y: Any
    n: int
    f: float


class Pair(NamedTuple):
    y: Any
    n: Any


@program
def writes_through_a_view_in_a_loop(x):
    n = 0
    z = x.clone()
    while z.sum() > 1 and n < 5:
        z.view(-1)[0] = 0.5
        n += 1
    return z


@program
def writes_through_a_slice_in_a_loop(x):
    n = 0
    z = x.clone()
    while z.sum() > 1 and n < 5:
        z[:2][0] = 0.5
        n += 1
    return z


@program
def changes_a_view_in_a_loop(x):
    n = 0
    z = x.clone()
    while z.sum() > 1 and n < 5:
        y = z.view(-1)
        y += -1
        n += 1
    return z


@program
def writes_to_what_a_loop_of_no_iterations_leaves(x):
    z, n = x.clone(), 0
    while x.sum() < 0.7 and n < 0:
        z = x * 2
        n += 1
    for v in x:
        if v > 0:
            z.view(-1)[0] = v
    return z


@program
def an_object_of_an_input_is_made_anew_in_each_iteration(x):
    o = Box(x, 0, 0.5)
    for _ in x:
        o = Box(x, o.n, 1.5)
        o.n += 2
    return o.n, o.f


@program
def an_object_is_changed_and_then_made_anew(x):
    o = Box(x, 0, 0.5)
    for v in x:
        o.n += 2
        if v > 0.1:
            o = Box(x, o.n, 1.5)
    return o.n, o.f


@program
def an_empty_list_beside_the_input_in_a_branch(x):
    p = []
    if x.sum() > 0.7:
        for a, b in zip(p[:3], x, strict=False):
            x = x + a * b
    return x


@program
def an_object_is_made_anew_on_a_way_that_no_input_takes(x):
    o = Box(x, 0, 0.5)
    for v in x:
        if x.mean() < -7:
            o = Box(x, o.n, 1.5)
        o.f = x.sum().item() + v
    return o.f


@program
def a_dict_is_made_anew_or_changed_by_a_loop(x):
    e = {"a": 0.5, "b": x}
    for _ in range(x.shape[0]):
        if e["a"] > 0.3:
            n = 0
            while n < x.shape[0]:
                n += 1
                e["a"] = 1.25
        else:
            e = {"a": 0.5, "b": -x}
    return e["a"]


@program
def a_key_is_set_by_a_loop_in_a_loop(x):
    d = {}
    for _ in x:
        for _ in range(int(x.max())):
            d["f"] = 0.5
    return d.get("f", 0.25)


def first_above(y, limit):
    for v in y:
        if v > limit:
            return v.item()
    return limit


@program
def a_chain_of_comparisons_in_a_loop_of_several_recordings(x):
    f = 0.5
    u, v = x, x * 0.5
    for _ in range(2, -1, -1):
        if v.sum() > 1.3:
            return f
        elif -0.6 < f <= f + 1 < 2.3:
            f = first_above(u, f)
    return f


@program
def rows_that_grow_in_loops_of_loops(x):
    i, j, f, g = 1, 2, 0.5, 1.5
    t = [[0.5, -1.0] for _ in range(x.shape[0])]
    for _ in range(len(t)):
        n = 0
        while n < x.shape[0] and j < 1:
            n += 1
            m = 0
            while m < 3 and j > x.shape[0]:
                m += 1
                t.append([f, f])
        for n in range(min(len(t), 3)):
            g = g * 0.5 + t[n % len(t)][0]
        else:
            t[-1].append(f)
            i, j = j, i
            t.append([g, f])
    return t[-1][0]


@program
def only_sizes_are_returned(x):
    t = [[0.5, -1.0] for _ in range(x.shape[0])]
    for _ in range(x.shape[0]):
        t[-1].append(0.5)
        t.append([0.5, 1.5])
    return sum(len(r) for r in t)


@program
def loops_that_return_one_after_the_other_in_a_branch(x):
    f = 0.5
    if x.sum() > -9:
        for v in x:
            if v > 0:
                return x * f
        f = f + 1
        for v in x:
            f = f + v.item()
            if f > 1:
                return x * f
        else:
            f = f - 2
        x = x + f
    return x * 3


@program
def loops_that_return_one_after_the_other_in_a_context(x):
    f = 0.5
    with torch.no_grad():
        for v in x:
            if v > 0:
                return x * f
        while f < 3:
            f = f + x.abs().sum().item() + 0.25
            if f > 1:
                return x * f
    return x * 3


test_one_way, test_every_way = program.tests()


def a_tuple_of_an_input_is_returned_from_a_loop(x):
    u, q = x, Pair(x, 2)
    for v in x:
        if (u > 1).any():
            if (v < 0).all():
                q = Pair(-x, x.sum())
            return (q.y,)
        u = -x
    return (q.y,)


def test_a_container_holds_the_input_of_each_world():
    inputs = [(T([1.0, -2.0, 0.5]),), (T([-0.25, 0.75]),), (T([2.5]),)]
    agree(a_tuple_of_an_input_is_returned_from_a_loop, inputs, [(T([0.3, 0.2, -1.5, 4.2]),)])


def rows_become_shorter(x):
    f, n = 0.5, 0
    t = [[0.5, 1.0] for _ in range(x.shape[0])]
    while n < 3 and t[0][0] > 0:
        n += 1
        t[0] = [f]
    return sum(len(r) for r in t)


def windows_are_resized(x):
    starts = (x > 1).nonzero()
    widths = (starts[:, 0] + 1).clamp(min=1)
    found = []
    for i in range(len(widths)):
        w = int(widths[i])
        resized = torch.nn.functional.interpolate(x[None, None], size=w, mode="linear")
        found.append(resized.sum())
    return torch.stack(found) if found else x[:0]


def test_sizes_that_a_loop_without_iterations_reads_are_not_zero():
    agree(
        windows_are_resized,
        [(T([0.5, 0.25]),)],
        [(T([0.5, 2.0, 3.0]),), (T([0.0]),)],
        dynamic_shapes={"x": {0: "n"}},
    )


def test_rows_of_changing_length_are_counted_when_optimised():
    inputs = program.vectors
    optimised = bridge.optimize(agree(rows_become_shorter, inputs), target="cpu", verify=False)
    for x in inputs:
        assert optimised(*x) == rows_become_shorter(*x)
