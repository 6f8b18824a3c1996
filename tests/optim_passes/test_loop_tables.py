"""Counted loops over scalars become operators on whole tensors."""

from __future__ import annotations

import numpy as np
import pytest

from optim_passes.simplify.dead_code import DeadCodePass
from optim_passes.simplify.inference import InferShapesPass
from optim_passes.simplify.loops import LoopInvariantPass
from optim_passes.simplify.tables import LoopTablePass
from tests.optim_passes.running import ops, optimise, parse

WORDS = [
    {"x": np.array(x, np.int64), "n": np.array(n)}
    for x, n in (([3, 3, 0, 5, 0, 5, 5, 1], 8), ([3, 0, 2, 7], 2), ([4], 1), ([4], 0), ([4], -3))
]


def counted(carried, results, lines, *, outputs, condition="t = Constant <value = bool {1}> ()"):
    """A loop over the int64 vector x, of n iterations."""
    names = [c.split()[-1] for c in carried]
    initial = ", ".join(f"{name}0" for name in names)
    return f"""g (int64[N] x, int64 n) => ({outputs}) {{
        {condition}
        one = Constant <value_int=1> ()
        zero = Constant <value_int=0> ()
        axis = Constant <value_ints=[0]> ()
        s0 = Constant <value_int=0> ()
        p0 = Constant <value_int=-7> ()
        size = Constant <value_ints=[9]> ()
        r0 = ConstantOfShape <value = int64[1] {{0}}> (size)
        none = Constant <value_ints=[0]> ()
        l0 = ConstantOfShape <value = int64[1] {{0}}> (none)
        {", ".join(o.split()[-1] for o in outputs.split(", "))} = Loop (n, t, {initial}) <
            body = b (int64 i, bool c, {", ".join(carried)}) => ({results}) {{
            {lines}
            d = Identity(c)
        }}>
    }}"""


TAKE = """v = Gather(x, i)
            fresh = Equal(v, p)
            blank = Equal(v, zero)
            skip = Or(fresh, blank)
            w = Identity(v)
"""
WRITE = """a, q = If (skip) <then_branch = th () => (int64 a1, int64[K] q1) {
                a1 = Identity(s) q1 = Identity(r)
            }, else_branch = el () => (int64 a2, int64[K] q2) {
                u = Unsqueeze(s, axis)
                q2 = ScatterND(r, u, v)
                a2 = Add(s, one)
            }>"""
APPEND = """q = If (skip) <then_branch = th () => (int64[K] q1) { q1 = Identity(l) },
                else_branch = el () => (int64[K] q2) {
                u = Unsqueeze(v, axis) q2 = Concat <axis=0> (l, u)
            }>"""


def test_a_loop_that_writes_what_it_keeps_disappears():
    model = parse(
        counted(
            ["int64 s", "int64 p", "int64[K] r"], "bool d, int64 a, int64 w, int64[K] q",
            TAKE + WRITE, outputs="int64 count, int64 last, int64[K] kept",
        )
    )  # fmt: skip
    optimise(model, InferShapesPass(), LoopTablePass(), DeadCodePass(), feeds=WORDS)
    assert "Loop" not in ops(model)


def test_a_loop_that_appends_what_it_keeps_disappears():
    model = parse(
        counted(
            ["int64 p", "int64[K] l"], "bool d, int64 w, int64[K] q", TAKE + APPEND,
            outputs="int64 last, int64[L] kept",
        )
    )  # fmt: skip
    optimise(model, InferShapesPass(), LoopTablePass(), DeadCodePass(), feeds=WORDS)
    assert "Loop" not in ops(model)


def test_sums_and_scans_of_numbers_are_tables():
    model = parse(
        counted(
            ["int64 s"], "bool d, int64 a, int64 y, int64 z",
            "v = Gather(x, i)  y = Mul(v, s)  a = Add(v, s)  z = Neg(i)",
            outputs="int64 total, int64[L] ys, int64[L] zs",
        )
    )  # fmt: skip
    optimise(model, InferShapesPass(), LoopTablePass(), DeadCodePass(), feeds=WORDS)
    counts = ops(model)
    assert "Loop" not in counts
    assert counts["CumSum"] == 1


@pytest.mark.parametrize(
    "lines",
    [
        # the places may be the same ones: the last one counts
        "v = Gather(x, i)  u = Unsqueeze(v, axis)  q = ScatterND(r, u, i)",
        # what was written is read
        "u = Unsqueeze(i, axis)  m = ReduceMax <keepdims=0> (r)  q = ScatterND(r, u, m)",
        "u = Unsqueeze(i, axis)  j = Identity(r)  m = ReduceMax <keepdims=0> (j)  q = ScatterND(r, u, m)",
    ],
)
def test_elements_that_depend_on_each_other_stay_in_the_loop(lines):
    model = parse(
        counted(["int64[K] r"], "bool d, int64[K] q", lines, outputs="int64[K] kept"),
    )
    optimise(model, InferShapesPass(), LoopTablePass(), DeadCodePass(), feeds=WORDS)
    assert ops(model)["Loop"] == 1


def test_a_loop_with_a_condition_stays():
    model = parse(
        counted(
            ["int64 s"], "bool e, int64 a", "v = Gather(x, i)  a = Add(v, s)  e = Less(a, size0)",
            outputs="int64 total", condition="t = Constant <value = bool {1}> ()  size0 = "
            "Constant <value_int=5> ()",
        ).replace("d = Identity(c)", "")
    )  # fmt: skip
    optimise(model, InferShapesPass(), LoopTablePass(), DeadCodePass(), feeds=WORDS)
    assert ops(model)["Loop"] == 1


def test_what_does_not_depend_on_the_state_leaves_the_loop():
    model = parse(
        counted(
            ["int64[K] r"], "bool d, int64[K] q",
            """v = Gather(x, i)  same = Equal(v, one)  k = Where(same, zero, v)  f = Mul(k, k)
            m = ReduceMax <keepdims=0> (r)  y = Add(m, f)  u = Unsqueeze(i, axis)
            q = ScatterND(r, u, y)""",
            outputs="int64[K] kept",
        )
    )  # fmt: skip
    optimise(model, InferShapesPass(), LoopTablePass(), DeadCodePass(), feeds=WORDS)
    body = next(n for n in model.graph if n.op_type == "Loop").attributes["body"].as_graph()
    assert sorted(n.op_type for n in body) == [
        "Add", "Gather", "Identity", "ReduceMax", "ScatterND", "Unsqueeze",
    ]  # fmt: skip


NESTED = """g (int64[N] x, int64[M] z) => (int64 s) {{
    t = Constant <value = bool {{1}}> ()
    axis = Constant <value_ints=[0]> ()
    s0 = Constant <value_int=0> ()
    a = Shape(x)
    n = Squeeze(a, axis)
    b = Shape({other})
    m = Squeeze(b, axis)
    s = Loop (m, t, s0) <body = b1 (int64 i, bool c, int64 p) => (bool d, int64 q) {{
        d = Identity(c)
        q = Loop (n, t, p) <body = b2 (int64 j, bool e, int64 u) => (bool f, int64 w) {{
            v = Gather(x, i)
            k = Mul(u, v)
            w = Add(k, j)
            f = Identity(e)
        }}>
    }}>
}}"""


@pytest.mark.parametrize(("other", "moved"), [("x", True), ("z", False)])
def test_a_row_that_is_certainly_there_leaves_the_loop(other, moved):
    model = parse(NESTED.format(other=other))
    feeds = [{"x": np.arange(n), "z": np.arange(m)} for n, m in ((3, 2), (0, 0), (1, 1))]
    optimise(model, LoopInvariantPass(), feeds=feeds)
    outer = next(n for n in model.graph if n.op_type == "Loop").attributes["body"].as_graph()
    assert any(n.op_type == "Gather" for n in outer) is moved
