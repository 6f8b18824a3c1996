"""Passes that make the bodies of loops smaller: flags, products, reductions, minima."""

from __future__ import annotations

import numpy as np
import pytest

from optim_passes.fusion.linear import GemmToMatMulPass
from optim_passes.fusion.reductions import ReductionPass
from optim_passes.fusion.small_products import GemmSumPass
from optim_passes.simplify.flags import LoopFlagPass
from optim_passes.simplify.noops import NoOpPass
from optim_passes.simplify.selection import MinMaxPass
from tests.optim_passes.running import ops, optimise, parse

RNG = np.random.default_rng(0)


def array(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("reduction", ["ReduceMax", "ReduceMin"])
@pytest.mark.parametrize(("dims", "nodes"), [("3,4", 1), ("N,4", 3), ("0,4", 3)])
def test_any_and_all_are_one_node_where_there_is_something(reduction, dims, nodes):
    model = parse(
        f"""g (bool[{dims}] x) => (bool y) {{
            a = Cast <to=2> (x)
            b = {reduction} <keepdims=0> (a)
            y = Cast <to=9> (b)
        }}"""
    )
    optimise(model, ReductionPass(), sizes=({"N": 3}, {"N": 0}))
    assert sum(ops(model).values()) == nodes


def test_any_keeps_its_casts_before_opset_20():
    model = parse(
        """g (bool[4] x) => (bool y) {
            a = Cast <to=2> (x)
            b = ReduceMax <keepdims=0> (a)
            y = Cast <to=9> (b)
        }""",
        opset=18,
    )
    optimise(model, ReductionPass())
    assert ops(model) == {"Cast": 2, "ReduceMax": 1}


def test_norms_are_one_node():
    model = parse(
        """g (float[N,4] x, int64[1] axes) => (float[N] y, float z) {
            a = Abs(x)
            b = Mul(a, a)
            c = ReduceSum <keepdims=0> (b, axes)
            y = Sqrt(c)
            z = ReduceSum <keepdims=0> (a)
        }""",
        axes=np.array([1]),
    )
    optimise(model, ReductionPass())
    assert ops(model) == {"ReduceL2": 1, "ReduceL1": 1}


def test_a_product_of_different_sizes_is_no_square():
    model = parse("g (float[N] x, float[N] z) => (float[N] y) { a = Abs(x) y = Mul(a, z) }")
    optimise(model, ReductionPass())
    assert ops(model) == {"Abs": 1, "Mul": 1}


@pytest.mark.parametrize(
    ("comparison", "operands", "kind"),
    [("Less", "a, b", "Min"), ("Greater", "a, b", "Max"), ("LessOrEqual", "b, a", "Max"),
     ("GreaterOrEqual", "b, a", "Min")],
)  # fmt: skip
def test_a_choice_of_the_smaller_number_is_a_minimum(comparison, operands, kind):
    model = parse(
        f"""g (int64[N] a, int64[N] b, int64[N] d) => (int64[N] y) {{
            c = {comparison}(a, b)
            e = Where(c, {operands})
            y = {kind}(e, d)
        }}"""
    )
    optimise(model, MinMaxPass())
    assert ops(model) == {kind: 1}


def test_a_choice_of_floats_or_of_other_numbers_stays():
    model = parse(
        """g (float[N] a, float[N] b, int64[N] i, int64[N] j) => (float[N] y, int64[N] z) {
            c = Less(a, b)
            y = Where(c, a, b)
            z = Where(c, i, j)
        }"""
    )
    optimise(model, MinMaxPass())
    assert ops(model) == {"Less": 1, "Where": 2}


FLAG = """g (float[N] x, bool f0, bool go) => (float[N] y, bool f) {{
    n = Constant <value_int=5> ()
    {first}
    y, f = Loop ({inputs}, x, f0) <body = b (int64 i, bool c, float[N] h, bool g) =>
        (bool d, float[N] k, bool e) {{
        two = Constant <value_float=2.0> ()
        k = Add(h, two)
        m = ReduceMax <keepdims=0> (k)
        high = Constant <value_float=5.5> ()
        s = Greater(m, high)
        e = Or(s, g)
        {last}
    }}>
}}"""


@pytest.mark.parametrize(
    "last", ["d = Not(e)", "t = Or(e, s) d = Not(t)", "t = Not(e) d = And(c, t)"]
)
def test_a_flag_that_ends_the_loop_is_not_read_in_it(last):
    model = parse(FLAG.format(first="start = Not(f0)", inputs="n, start", last=last))
    optimise(model, LoopFlagPass(), NoOpPass())
    assert "Or" not in ops(model)


@pytest.mark.parametrize(
    ("first", "inputs", "last"),
    [("", "n, go", "d = Not(e)"),  # it may be true at the start
     ("start = Not(f0)", "n, start", "d = Not(s)"),  # the loop may go on although it is true
     ("start = Not(f0)", "n, start", "t = And(e, s) d = Not(t)")],
)  # fmt: skip
def test_a_flag_that_may_be_true_in_the_loop_stays(first, inputs, last):
    model = parse(FLAG.format(first=first, inputs=inputs, last=last))
    optimise(model, LoopFlagPass(), NoOpPass())
    assert ops(model)["Or"] == 1


WEIGHTS = "float[5,4] w, float[5,5] v, float[5] p, float[5] q"
CELL = f"""g (float[3,4] x, float[3,5] h0, {WEIGHTS}) => (float[3,5] h) {{
    n = Constant <value_int=3> ()
    t = Constant <value = bool {{1}}> ()
    h = Loop (n, t, h0) <body = b (int64 i, bool c, float[3,5] s) => (bool d, float[3,5] r) {{
        a = Gemm <transB=1> (x, w, p)
        e = Gemm <transB=1> (s, v, q)
        z = Add(a, e)
        r = Tanh(z)
        d = Identity(c)
    }}>
}}"""


def test_the_products_of_a_cell_are_two_nodes():
    weights = {"w": array(5, 4), "v": array(5, 5), "p": array(5), "q": array(5)}
    model = parse(CELL, **weights)
    optimise(model, GemmSumPass(), GemmToMatMulPass())
    counts = ops(model)
    assert (counts["Gemm"], counts["Add"]) == (2, 1)  # of the biases, for constant folding
    assert "MatMul" not in counts


def test_products_outside_of_loops_stay_apart():
    model = parse(
        f"""g (float[3,4] x, float[3,5] s, {WEIGHTS}) => (float[3,5] z) {{
            a = Gemm <transB=1> (x, w, p)
            e = Gemm <transB=1> (s, v, q)
            z = Add(a, e)
        }}""",
        w=array(5, 4), v=array(5, 5), p=array(5), q=array(5),
    )  # fmt: skip
    optimise(model, GemmSumPass())
    assert ops(model) == {"Gemm": 2, "Add": 1}
