"""Passes that make the bodies of loops smaller: flags, products, reductions, minima."""

from __future__ import annotations

import numpy as np
import pytest

from optim_passes.fusion.linear import GemmToMatMulPass
from optim_passes.fusion.pairs import ArgTransposePass, PairReductionPass
from optim_passes.fusion.reductions import ReductionPass
from optim_passes.fusion.small_products import GemmSumPass
from optim_passes.simplify.casts import CastPass
from optim_passes.simplify.dead_code import DeadCodePass
from optim_passes.simplify.flags import LoopFlagPass
from optim_passes.simplify.inference import InferShapesPass
from optim_passes.simplify.noops import NoOpPass
from optim_passes.simplify.selection import FilledOperandPass, MinMaxPass, TruthPass
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


DISTANCES = """g (float[N,D] x, float[{m},D] c, int64[1] last, int64[1] first, int64[1] middle)
    => (float[N,{m}] y, int64[N] z) {{
    a = Unsqueeze(x, middle)
    b = Unsqueeze(c, first)
    d = Sub(a, b)
    e = {step}
    y = {reduction} <keepdims=0> (e, last)
    z = ArgMin <axis=1, keepdims=0> (y)
}}"""


@pytest.mark.parametrize("reduction", ["ReduceL2", "ReduceL1", "ReduceSum", "ReduceMax"])
@pytest.mark.parametrize("step", ["Abs(d)", "Mul(d, d)"])
@pytest.mark.parametrize(("m", "moved"), [("3", 1), ("M", 0)])
def test_distances_of_points_run_along_the_points(reduction, step, m, moved):
    text = DISTANCES.format(m=m, step=step, reduction=reduction).replace("D]", "2]")
    axes = {"last": np.array([2]), "first": np.array([0]), "middle": np.array([1])}
    model = parse(text, **axes)
    passes = (InferShapesPass(), PairReductionPass(), ArgTransposePass())
    sizes = ({"N": 5, "M": 4}, {"N": 0, "M": 3}, {"N": 300, "M": 70})[:: 2 if m == "M" else 1]
    optimise(model, *passes, rtol=1e-5, sizes=sizes)
    (arg,) = [n for n in model.graph if n.op_type == "ArgMin"]
    assert arg.attributes["axis"].value == 1 - moved
    (difference,) = [n for n in model.graph if n.op_type == "Sub"]
    assert difference.outputs[0].shape[0] == 2


def test_distances_in_a_wide_space_stay():
    text = DISTANCES.format(m="M", step="Abs(d)", reduction="ReduceL2").replace("D]", "64]")
    axes = {"last": np.array([2]), "first": np.array([0]), "middle": np.array([1])}
    model = parse(text, **axes)
    optimise(model, InferShapesPass(), PairReductionPass(), rtol=1e-5)
    assert "Transpose" not in ops(model)


@pytest.mark.parametrize(("comparison", "nots"), [("Equal", 1), ("Greater", 0)])
@pytest.mark.parametrize("kind", [1, 7])
def test_whether_there_are_truths_needs_no_sum(comparison, nots, kind):
    model = parse(
        f"""g (float[N] x, {"float" if kind == 1 else "int64"} zero) => (bool y) {{
            b = Sqrt(x)
            c = Greater(x, b)
            d = Cast <to={kind}> (c)
            n = ReduceSum <keepdims=0> (d)
            y = {comparison}(n, zero)
        }}""",
        zero=np.array(0, np.float32 if kind == 1 else np.int64),
    )
    feeds = [{"x": np.array(x, np.float32)} for x in ([0.5, 4.0, 2.0], [0.5, 0.25], [])]
    optimise(model, ReductionPass(), feeds=feeds)
    assert "ReduceSum" not in ops(model)
    assert ops(model).get("Not", 0) == nots


def test_a_choice_of_one_and_nought_is_a_cast():
    model = parse(
        """g (bool[N] c) => (float[N] y, int64[N] z, int64[N] w) {
            one = Constant <value = double {1}> ()
            nought = Constant <value = double {0}> ()
            two = Constant <value_int = 2> ()
            no = Constant <value_int = 0> ()
            yes = Constant <value_int = 1> ()
            a = Where(c, one, nought)
            y = Cast <to=1> (a)
            z = Where(c, no, yes)
            w = Where(c, two, no)
        }"""
    )
    feeds = [{"c": np.array([True, False, True])}, {"c": np.zeros(0, bool)}]
    optimise(model, TruthPass(), CastPass(), DeadCodePass(), feeds=feeds)
    counts = ops(model)
    assert (counts["Cast"], counts["Not"], counts["Where"]) == (2, 1, 1)


def test_a_number_in_the_shape_of_another_operand_is_the_number():
    model = parse(
        """g (bool[N] c, float[N] x, float[1] u) => (float[N] y, float[N] z) {
            s = Shape(x)
            k = ConstantOfShape <value = float[1] {3}> (s)
            y = Where(c, k, x)
            z = Add(k, u)
        }"""
    )
    optimise(model, FilledOperandPass(), DeadCodePass())
    assert ops(model)["ConstantOfShape"] == 1  # the shape of z is nowhere else


UNREAD = """g (float x) => (float{final} y) {{
    t = Constant <value = bool {{1}}> ()
    half = Constant <value = float {{0.5}}> ()
    y0, y1 = Loop (, t, x, x) <body = b (int64 i, bool c, float a, float v) => (bool e, float w, float s) {{
        w = Mul(a, half)
        d = Sub(v, w)
        f = Less(d, half)
        s = Where(f, v, w)
        e = Not(f)
    }}>
    y = Identity({read})
}}"""


@pytest.mark.parametrize(("read", "choices"), [("y0", 0), ("y1", 1)])
def test_a_choice_that_only_another_iteration_reads_is_made(read, choices):
    model = parse(UNREAD.format(final="", read=read))
    feeds = [{"x": np.array(x, np.float32)} for x in (40.0, 1.0, -3.0, np.inf)][:3]
    optimise(model, LoopFlagPass(), DeadCodePass(), feeds=feeds)
    assert ops(model).get("Where", 0) == choices
