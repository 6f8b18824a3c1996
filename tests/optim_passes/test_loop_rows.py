"""Rows that a loop looks at: what is computed of them, and axes of size 1 around them."""

from __future__ import annotations

import pytest
import torch

import bridge
from optim_passes.simplify.dead_code import DeadCodePass
from optim_passes.simplify.inference import InferShapesPass
from optim_passes.simplify.unit_axes import LeadingAxisPass, UnitAxisPass
from tests.optim_passes.running import ops, optimise, parse
from tests.script.harness import assert_same


def body(program):
    (loop,) = [n for n in program.model.graph if n.op_type == "Loop"]
    return [n.op_type for n in loop.attributes["body"].as_graph().all_nodes()]


def walk(boxes, start):
    """From box to box: what is next depends on where it is, and how large."""
    i, total = start, torch.zeros(())
    while total < 30:
        box = boxes[i]
        area = (box[2] - box[0]) * (box[3] - box[1]) * 0.5 + 1
        total = total + area
        i = (i + area.abs().long() + 1) % boxes.shape[0]
    return total, i


def spread(boxes, start):
    """Rows that a condition chooses."""
    chosen, rounds, mean = boxes[:, 0] > start, 0, start
    while rounds < start * 20:
        rows = boxes[torch.where(chosen)[0]]
        width, height = rows[:, 2] - rows[:, 0], rows[:, 3] - rows[:, 1]
        mean = (width * height * 2 - 1).abs().sum() / 7
        chosen = chosen & (boxes[:, 1] < mean)
        rounds += 1
    return chosen, mean


def boxes(n):
    generator = torch.Generator().manual_seed(n)
    corner = torch.rand(n, 2, generator=generator)
    return torch.cat([corner, corner + 1 + torch.rand(n, 2, generator=generator)], 1)


@pytest.mark.parametrize(
    ("function", "start", "gathers"),
    [(walk, torch.tensor(1), 2), (spread, torch.tensor(0.2), 2)],
)
def test_what_is_computed_of_rows_is_computed_before_the_loop(function, start, gathers):
    program = bridge.export(function, (boxes(5), start), dynamic_shapes=({0: "n"}, {}))
    fast = bridge.optimize(program, target="cpu")
    assert body(program).count("Gather") >= 4
    assert body(fast).count("Gather") <= gathers
    assert body(fast).count("Sub") == 0
    for n in (5, 2, 30):
        inputs = (boxes(n), start)
        assert_same(fast(*inputs), function(*inputs), rtol=1e-5, atol=1e-6, inputs=inputs)


def of_wide_rows(x, start):
    i, total = start, torch.zeros(())
    while total < 3:
        row = x[i]
        total = total + ((row * 2 + 1).abs() * 3 - 1).tanh().sum().abs() / 16 + 0.1
        i = (i + 1) % x.shape[0]
    return total


def test_wide_rows_are_computed_one_by_one():
    x = torch.rand(6, 64)
    program = bridge.export(of_wide_rows, (x, torch.tensor(0)), dynamic_shapes=({0: "n"}, {}))
    fast = bridge.optimize(program, target="cpu")
    assert "Tanh" in body(fast)
    inputs = (x[:4], torch.tensor(2))
    assert_same(fast(*inputs), of_wide_rows(*inputs), rtol=1e-5, atol=1e-6, inputs=inputs)


def test_an_axis_that_is_taken_away_is_not_made():
    model = parse(
        """g (float[4] x, float[N,4] y) => (float[N,2] z, float[N] w) {
            first = Constant <value_ints=[0]> ()
            second = Constant <value_ints=[1]> ()
            two = Constant <value_ints=[2]> ()
            number = Constant <value_int=0> ()
            half = Constant <value_float=0.5> ()
            a = Unsqueeze(x, first)
            b = Slice(a, first, two, second)
            c = Unsqueeze(b, second)
            d = Slice(y, first, two, second)
            e = Unsqueeze(d, first)
            f = Max(c, e)
            h = Mul(f, half)
            z = Gather(h, number)
            k = Gather <axis=1> (a, number)
            l = Unsqueeze(k, second)
            m = Gather <axis=2> (e, number)
            n = Sub(m, l)
            w = Squeeze(n, first)
        }"""
    )
    passes = (InferShapesPass(), UnitAxisPass(), LeadingAxisPass(), DeadCodePass())
    optimise(model, *passes)
    counts = ops(model)
    assert "Squeeze" not in counts
    assert counts.get("Unsqueeze", 0) == 0


@pytest.mark.parametrize(("other", "left"), [("float[M,3] y", 0), ("float[3] y", 1)])
def test_a_leading_axis_that_the_other_operand_has_is_not_made(other, left):
    model = parse(
        f"""g (float[3] x, {other}) => (float[M,3] z) {{
            first = Constant <value_ints=[0]> ()
            a = Unsqueeze(x, first)
            z = Sub(a, y)
        }}""".replace("float[M,3] z", "float[M,3] z" if "M" in other else "float[1,3] z")
    )
    optimise(model, InferShapesPass(), LeadingAxisPass(), DeadCodePass())
    assert ops(model).get("Unsqueeze", 0) == left


def test_what_else_is_read_keeps_its_axis():
    model = parse(
        """g (float[N] x, float[N] y) => (float[N] z, float[1,N] w) {
            first = Constant <value_ints=[0]> ()
            a = Unsqueeze(x, first)
            b = Unsqueeze(y, first)
            c = Add(a, b)
            z = Squeeze(c, first)
            w = Exp(c)
        }"""
    )
    optimise(model, InferShapesPass(), UnitAxisPass(), DeadCodePass())
    assert ops(model)["Squeeze"] == 1


def written_until(x, k):
    y, h = torch.ones(2, x.shape[0] + 1, 3), torch.zeros(3)
    for t in range(x.shape[0]):
        h = h + x[t]
        y[k, t] = h
        if h.max() > 2:
            break
    return y, h


def written_alone(x, k):
    y = torch.zeros(x.shape[0] + 1, 2, 3)
    for t in range(x.shape[0]):
        for s in range(x.shape[0]):
            y[s, k] = (x[s] + t) * x[t, 0]
    return y


def read_again(x, k):
    y = torch.zeros(x.shape[0], 3)
    for t in range(x.shape[0]):
        y[t] = x[t] + y[k]
        if y[t].max() > 2:
            break
    return y


def written_twice(x, k):
    y, h = torch.zeros(2, 3), torch.zeros(3)
    for t in range(x.shape[0]):
        h = h + x[t]
        y[t % 2] = h
        if h.max() > 2:
            break
    return y


@pytest.mark.parametrize(
    ("function", "inside"),
    [(written_until, 0), (written_alone, 1), (read_again, 1), (written_twice, 1)],
)
def test_rows_with_places_of_their_own_are_written_behind_the_loop(function, inside):
    x, k = torch.rand(6, 3, generator=torch.Generator().manual_seed(1)), torch.tensor(1)
    program = bridge.export(function, (x, k), dynamic_shapes=({0: "n"}, {}))
    fast = bridge.optimize(program, target="cpu")
    assert body(fast).count("ScatterND") == inside
    for n in (6, 2, 30):
        inputs = (x.repeat(n, 1)[:n] * 0.3, k)
        assert_same(fast(*inputs), function(*inputs), rtol=1e-5, atol=1e-6, inputs=inputs)
