"""Models in 16 bits: where they are enough, inside of If and Loop too, and where they are not."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch

import bridge
from bridge.half_precision import measured_ranges
from bridge.optimizing import OptimizationWarning
from bridge.session import Session
from optim_passes.precision.half import HalfPrecisionPass
from optim_passes.precision.ranges import ranges_of
from tests.optim_passes.running import ops, parse

FLOAT, HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16


def narrowed(model, feeds=(), **options):
    return bridge.optimize(
        model,
        target="portable",
        passes=[],
        precision="fp16",
        inputs=list(feeds) or None,
        **options,
    )


def types(model):
    """The element type of each value of floating-point numbers, by name."""
    return {
        str(v.name): v.dtype
        for n in model.graph.all_nodes()
        for v in n.outputs
        if v.dtype is not None and v.dtype.is_floating_point()
    }


LOOP = """g (float[4] x, int64 n, bool c) => (float[4] y, float[K, 4] z) <float one = {1}> {
    t = Constant <value = bool {1}> ()
    y, z = Loop (n, t, x) <body = b (int64 i, bool ci, float[4] a) => (bool co, float[4] s, float[4] o) {
        co = Identity(ci)
        d = Add(a, a)
        s = If (c) <then_branch = p () => (float[4] u) { u = Neg(d) },
                    else_branch = q () => (float[4] v) { k = Mul(d, d)
                                                         v = Sub(k, one) }>
        o = Mul(s, one)
    }>
}"""


def loop_feed(x, *, n=3, c=False):
    return {"x": np.asarray(x, np.float32), "n": np.array(n), "c": np.array(c)}


def test_ranges_are_measured_in_loops_and_branches():
    model = parse(LOOP)
    feed = loop_feed([0.5, -1, 0.25, 1])
    found = measured_ranges(model, [feed], Session(model).settings)
    a, largest = feed["x"], dict.fromkeys("adkso", 0.0)
    for _ in range(3):
        d = a + a
        k = d * d
        s = k - 1
        for name, value in zip("adkso", (a, d, k, s, s), strict=True):
            largest[name] = max(largest[name], float(np.abs(value).max()))
        a = s
    assert {n: found[n] for n in largest} == pytest.approx(largest)
    assert found["u"] == 0.0  # the branch that was not taken
    assert found["z"] == pytest.approx(largest["o"])


def test_ranges_of_no_iterations_and_empty_values_are_zero():
    model = parse(LOOP)
    found = measured_ranges(model, [loop_feed([1, 1, 1, 1], n=0)], Session(model).settings)
    assert found["d"] == 0.0
    empty = parse("g (float[N] x) => (float[N] y) { y = Neg(x) }")
    feed = {"x": np.zeros(0, np.float32)}
    assert measured_ranges(empty, [feed], Session(empty).settings) == {"x": 0.0, "y": 0.0}


def test_ranges_of_several_runs_are_joined():
    runs = [np.array([1, np.nan], np.float32), np.array([0.5, 2], np.float32)]
    assert ranges_of(["a", "b"], runs) == {"a": 1.0, "b": 2.0}


@pytest.mark.parametrize("condition", [True, False])
@pytest.mark.parametrize("n", [0, 1, 3])
def test_loops_carry_one_type_all_the_way(condition, n):
    feed = loop_feed([0.5, -1, 0.25, 1], n=n, c=condition)
    program = narrowed(parse(LOOP), [feed])
    found = types(program.model)
    assert found.pop("y") is FLOAT
    assert found.pop("z") is FLOAT
    assert set(found.values()) == {HALF} or set(found.values()) == {HALF, FLOAT}
    inner = {n: found[n] for n in ("d", "k", "s", "o", "u", "v")}
    assert set(inner.values()) == {HALF}
    assert program.report.verified[0].passed


def test_a_value_that_grows_in_a_loop_is_carried_in_float32():
    """9 iterations of squaring leave the range of float16."""
    feed = loop_feed([1.5, 1, 1, 1], n=4)
    program = narrowed(parse(LOOP), [feed])
    body = (
        next(n for n in program.model.graph if n.op_type == "Loop").attributes["body"].as_graph()
    )
    assert body.inputs[2].dtype is FLOAT
    assert program.report.verified[0].passed


@pytest.mark.parametrize("keep_io", [True, False])
def test_inputs_and_outputs_are_kept_or_converted(keep_io):
    model = parse("g (float[N, 4] x, int64[N] i) => (float[N, 4] y) { y = Gather(x, i) }")
    feed = {"x": np.ones((2, 4), np.float32), "i": np.array([0, 1])}
    program = narrowed(model, [feed], keep_io=keep_io)
    wanted = FLOAT if keep_io else HALF
    assert [v.dtype for v in program.model.graph.inputs] == [wanted, ir.DataType.INT64]
    assert [(v.name, v.dtype) for v in program.model.graph.outputs] == [("y", wanted)]
    assert ops(program.model) == ({"Cast": 2, "Gather": 1} if keep_io else {"Gather": 1})


@pytest.mark.parametrize(
    ("text", "x", "stays"),
    [
        ("y = Exp(x)", 12.0, "y"),  # 162755
        ("a = Mul(x, x)\n y = Sqrt(a)", 300.0, "a"),
        ("e = Constant <value = float {1e-10}> ()\n a = Add(x, e)\n y = Log(a)", 0.0, "a"),
        ("e = Constant <value = float {1e5}> ()\n a = Add(x, e)\n y = Sub(a, e)", 1.0, "a"),
        ("a = Mul(x, x)\n y = Sin(a)", 40.0, "a"),
        ("y = CumSum(x, zero)", 1.0, "y"),
        ('y = ScatterElements<reduction="add">(x, first, x)', 1.0, "y"),
        ('y = ScatterND<reduction="max">(x, rows, x)', 1.0, "y"),
    ],
)
def test_what_16_bits_cannot_hold_stays(text, x, stays):
    model = parse(
        "g (float[4] x) => (float[4] y) <int64 zero = {0}, int64[4] first = {0,0,1,1}, "
        f"int64[4,1] rows = {{0,1,2,3}}> {{ {text} }}"
    )
    program = narrowed(model, [{"x": np.full(4, x, np.float32)}])
    assert program.report.passes.refusals
    kept = {r.node for r in program.report.passes.refusals}
    makers = {v.name: n for n in program.model.graph for v in n.outputs}
    assert makers[stays].inputs[0].dtype is FLOAT, kept
    assert program.report.verified[0].passed


def test_places_are_computed_in_float32():
    """4001 is no float16: the wrong row would be taken."""
    model = parse("""g (float[N, 1] t, float[2] p) => (float[2, 1] y) {
        k = Constant <value = float {1000}> ()
        q = Mul(p, k)
        i = Cast <to = 7> (q)
        y = Gather(t, i)
    }""")
    feed = {
        "t": np.arange(5000, dtype=np.float32)[:, None] % 7,
        "p": np.array([4.001, 3.003], np.float32),
    }
    program = narrowed(model, [feed])
    assert types(program.model)["q"] is FLOAT
    assert program.report.verified[0].max_abs == 0


def test_masks_stay_finite():
    """The lowest float32 number would be -inf in float16, and a row of those NaN after a softmax."""
    lowest = float(np.finfo(np.float32).min)
    model = parse(
        f"g (float[2, 4] x, bool[2, 4] m) => (float[2, 4] y) <float low = {{{lowest!r}}}>"
        "{ a = Where(m, x, low)\n y = Softmax(a) }"
    )
    feed = {"x": np.ones((2, 4), np.float32), "m": np.array([[1, 1, 0, 0], [0, 0, 0, 0]], bool)}
    program = narrowed(model, [feed])
    assert types(program.model)["a"] is HALF
    assert program.report.verified[0].passed


def test_named_nodes_and_operators_stay():
    model = parse("g (float[4] x) => (float[4] y) { a = Neg(x)\n b = Abs(a)\n y = Neg(b) }")
    program = narrowed(model, [{"x": np.ones(4, np.float32)}], keep=["Abs"])
    assert types(program.model)["b"] is FLOAT
    assert any(r.reason == "asked for" for r in program.report.passes.refusals)


def test_nodes_between_those_that_stay_need_no_casts():
    model = parse("g (float[4] x) => (float[4] y) { a = Exp(x)\n b = Abs(a)\n y = Log(b) }")
    program = narrowed(model, [{"x": np.full(4, 20, np.float32)}])
    assert ops(program.model) == {"Exp": 1, "Abs": 1, "Log": 1}


def test_functions_are_narrowed_too():
    import onnx.parser

    proto = onnx.parser.parse_model("""<ir_version: 10, opset_import: ["": 20, "test": 1]>
g (float[N] x) => (float[N] y) { a = test.f(x)
  y = test.f(a) }
<opset_import: ["": 20], domain: "test">
f (x) => (y) { t = Sigmoid(x)
  y = Add(t, x) }""")
    program = narrowed(proto, [{"x": np.ones(3, np.float32)}])
    found = [d for n, d in types(program.model).items() if n != "y"]
    assert found.count(HALF) >= 4
    assert program.report.verified[0].passed


def test_sequences_and_fixed_types_stay():
    model = parse("""g (float[1, 1, 4, 4] x) => (float[1, 1, 8, 8] y) {
        r = Constant <value = float[0] {}> ()
        s = Constant <value = float[4] {1, 1, 2, 2}> ()
        e = SequenceConstruct(x)
        z = Constant <value = int64 {0}> ()
        a = SequenceAt(e, z)
        y = Resize <mode = "nearest"> (a, r, s)
    }""")
    program = narrowed(model, [{"x": np.ones((1, 1, 4, 4), np.float32)}])
    assert program.report.verified[0].passed


def test_weights_are_stored_once_and_in_16_bits():
    w = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    model = parse(
        "g (float[N, 64] x, float[64, 64] w) => (float[N, 64] y) { a = MatMul(x, w)\n y = MatMul(a, w) }",
        w=w,
    )
    program = narrowed(model)
    weights = [v.const_value for v in program.model.graph.initializers.values()]
    assert [(t.dtype, t.nbytes) for t in weights] == [(HALF, 64 * 64 * 2)]


def test_outputs_that_nobody_reads_need_no_type():
    model = parse("""g (float[2, 3, 8] x, float[8] g) => (float[2, 3, 8] y) {
        y, , , s = com.microsoft.SkipLayerNormalization(x, x, g)
    }""")
    feed = {"x": np.ones((2, 3, 8), np.float32), "g": np.ones(8, np.float32)}
    program = narrowed(model, [feed], keep_io=False)
    assert ops(program.model) == {"microsoft.SkipLayerNormalization": 1}


def test_bfloat16_needs_no_ranges():
    model = parse("g (float[4] x) => (float[4] y) { a = Exp(x)\n y = Log(a) }", opset=23)
    copy = model.clone()
    outcome = HalfPrecisionPass(ir.DataType.BFLOAT16, ranges={"a": 1e10})(copy)
    assert types(copy)["a"] is ir.DataType.BFLOAT16
    assert outcome.refusals == []


def test_what_the_target_has_no_kernels_for_stays():
    """ONNX Runtime's CPU provider widens float16 by itself, and has few kernels for bfloat16."""
    text = """g (float[2, 4] x) => (float[2, 2] y) {
        t = Transpose <perm = [1, 0]> (x)
        a = MatMul(x, t)
        y = Relu(a)
    }"""
    model = parse(text, opset=22)
    feed = {"x": np.ones((2, 4), np.float32)}
    program = bridge.optimize(
        model, target="cpu", passes=[], precision="bf16", inputs=[feed], keep_io=False
    )
    assert program.report.verified[0].passed
    assert "there is no kernel of MatMul in 16 bits" in {
        r.reason for r in program.report.passes.refusals
    }


def test_too_little_precision_is_told():
    model = parse("g (float[4] x) => (float[4] y) { a = Mul(x, x)\n y = Exp(a) }")
    with pytest.warns(OptimizationWarning, match="16 bits are not enough"):
        program = narrowed(
            model,
            [{"x": np.full(4, 2.1, np.float32)}],
            tolerance=bridge.Tolerance(0, 1e-6),
            keep_io=False,  # or ONNX Runtime's CPU provider computes all of it in float32
        )
    assert any("16 bits" in w for w in program.report.warnings)


@bridge.script
def clipped_walk(x, n: int):
    h = torch.zeros(4)
    steps = []
    for i in range(n):
        if h.sum() > 3:
            h = torch.tanh(h + x[i])
        else:
            h = h * x[i] + 1
        steps.append(h * 300)
    return torch.stack(steps), h


def test_an_exported_loop_agrees_with_eager():
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    program = bridge.export(
        lambda x: clipped_walk(x, x.shape[0]), (x,), dynamic_shapes=({0: "n"},)
    )
    half = bridge.optimize(program, precision="fp16")
    assert half.report.verified
    y, h = half(x)
    expected = clipped_walk(x, 5)
    torch.testing.assert_close(y, expected[0], rtol=1e-2, atol=1)
    torch.testing.assert_close(h, expected[1], rtol=1e-2, atol=1e-2)
