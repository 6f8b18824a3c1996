import math

import numpy as np
import pytest

from optim_passes.fusion.gelu import GeluPass, HardSwishPass, QuickGeluPass
from optim_passes.fusion.linear import (
    GemmPass,
    GemmToMatMulPass,
    PlainProductPass,
    PostNormResidualPass,
    ProductOrderPass,
)
from optim_passes.fusion.normalization import NormAffinePass, NormPass
from optim_passes.fusion.packed_products import UnpackProductPass
from optim_passes.fusion.row_gather import RowGatherPass
from optim_passes.fusion.skip_norm import SkipNormPass
from optim_passes.pipeline import Repeat
from optim_passes.simplify.dead_code import DeadCodePass
from optim_passes.simplify.duplicates import CommonSubexpressionPass
from optim_passes.simplify.hoisting import SliceHoistPass
from optim_passes.simplify.inference import InferShapesPass
from optim_passes.simplify.noops import NoOpPass
from optim_passes.simplify.rearrangements import RearrangementPass
from tests.optim_passes.running import optimise, parse, reasons

RNG = np.random.default_rng(0)
TIDY = Repeat(NoOpPass(), RearrangementPass(), CommonSubexpressionPass(), DeadCodePass())
NUMBERS = "<" + ", ".join(
    [f"float {name} = {{{number}}}" for name, number in {
        "root": math.sqrt(2), "inverse": 1 / math.sqrt(2), "one": 1, "half": 0.5, "two": 2,
        "three": 3, "six": 6, "zero": 0, "c": 0.044715, "k": math.sqrt(2 / math.pi),
        "kc": math.sqrt(2 / math.pi) * 0.044715, "a": 1.702, "sixth": 1 / 6,
    }.items()] + ["float[1,1,1] wide = {0.5}>"]
)  # fmt: skip

ERF = "d = Div(x, root) e = Erf(d) f = Add(e, one)"
TANH = "p = Pow(x, three) q = Mul(p, c) r = Add(x, q) s = Mul(r, k) t = Tanh(s) f = Add(one, t)"
GELUS = [
    (f"{ERF} g = Mul(x, f) y = Mul(g, half)", None),
    (f"{ERF} g = Mul(half, f) y = Mul(g, x)", None),
    (f"{ERF} g = Mul(half, x) y = Mul(f, g)", None),
    (f"{ERF} g = Mul(x, f) y = Div(g, two)", None),
    ("d = Mul(inverse, x) e = Erf(d) f = Add(one, e) g = Mul(x, f) y = Mul(g, half)", None),
    (f"{TANH} g = Mul(x, half) y = Mul(g, f)", "tanh"),
    (
        "p = Mul(x, x) q = Mul(p, kc) r = Add(q, k) s = Mul(x, r) t = Tanh(s) f = Add(t, one) "
        "g = Mul(x, f) y = Mul(half, g)",
        "tanh",
    ),
    (
        "p = Mul(x, x) q = Mul(c, p) r = Add(one, q) m = Mul(x, k) s = Mul(m, r) t = Tanh(s) "
        "f = Add(t, one) g = Mul(x, half) y = Mul(g, f)",
        "tanh",
    ),
]


def model_of(nodes, *, opset=20, shape="N,6"):
    return parse(f"g (float[{shape}] x) => (y) {NUMBERS} {{ {nodes} }}", opset=opset)


@pytest.mark.parametrize(("nodes", "approximate"), GELUS)
def test_gelu_written_out_becomes_one_node(nodes, approximate):
    model = model_of(nodes)
    counts, _ = optimise(model, GeluPass(), rtol=1e-4, atol=1e-5)
    assert counts == {"Gelu": 1}
    (node,) = model.graph
    given = node.attributes.get("approximate")
    assert (given and given.value) == approximate


@pytest.mark.parametrize(("nodes", "approximate"), GELUS)
def test_gelu_of_older_opsets_is_onnx_runtimes_own(nodes, approximate):
    counts, _ = optimise(model_of(nodes, opset=17), GeluPass(contrib=True), rtol=1e-4, atol=1e-5)
    name = "FastGelu" if approximate else "Gelu"
    assert counts == {f"microsoft.{name}": 1}


@pytest.mark.parametrize(
    ("nodes", "opset", "reason"),
    [
        (f"{ERF} g = Mul(x, f) y = Mul(g, half)", 17, "opset 17 has no Gelu"),
        (f"{ERF} g = Mul(x, f) h = Mul(g, half) y = Add(h, f)", 20, "an intermediate result"),
    ],
)
def test_gelu_is_refused(nodes, opset, reason):
    counts, report = optimise(model_of(nodes, opset=opset), GeluPass(), rtol=1e-4, atol=1e-5)
    assert counts["Erf"] == 1
    (told,) = reasons(report)
    assert told.startswith(reason)


@pytest.mark.parametrize(
    "nodes",
    [
        f"{ERF} g = Mul(x, f) y = Mul(g, two)",  # another constant
        "d = Div(x, two) e = Erf(d) f = Add(e, one) g = Mul(x, f) y = Mul(g, half)",
        f"{ERF} g = Mul(x, f) y = Mul(g, wide)",  # raises the rank
        f"z = Neg(x) {ERF} g = Mul(z, f) y = Mul(g, half)",  # another operand
    ],
)
def test_what_is_not_gelu_is_left_alone(nodes):
    counts, _ = optimise(model_of(nodes), GeluPass(), rtol=1e-4, atol=1e-5)
    assert counts["Erf"] == 1


def test_gelu_is_found_in_a_loop():
    model = parse(
        f"g (float[N] x0, int64 n) => (float[N] y) {NUMBERS[:-1]}, bool go = {{1}}> {{ y = Loop "
        "(n, go, x0) <body = b (int64 i, bool on, float[N] x) => (bool out, float[N] h) "
        f"{{ out = Identity(on) {ERF} g = Mul(x, f) h = Mul(g, half) }}> }}"
    )
    counts, _ = optimise(model, GeluPass(), rtol=1e-4, atol=1e-5)
    assert counts == {"Loop": 1, "Identity": 1, "Gelu": 1}


@pytest.mark.parametrize(
    "nodes",
    [
        "s = Sigmoid(x) y = Mul(x, s)",
        "m = Mul(x, a) s = Sigmoid(m) y = Mul(s, x)",
    ],
)
def test_gate_by_sigmoid_becomes_quick_gelu(nodes):
    counts, _ = optimise(model_of(nodes), QuickGeluPass(silu=True), rtol=1e-4, atol=1e-5)
    assert counts == {"microsoft.QuickGelu": 1}


def test_only_the_gate_that_is_nearly_gelu_is_taken_unless_asked_for():
    text = "g (float[N] x) => (y) <float a = {{{0}}}> {{ m = Mul(x, a) s = Sigmoid(m) y = Mul(s, x) }}"
    for number, taken in ((1.702, True), (1.7, False), (1, False)):
        counts, _ = optimise(parse(text.format(number)), QuickGeluPass(), rtol=1e-4, atol=1e-5)
        assert ("microsoft.QuickGelu" in counts) == taken


@pytest.mark.parametrize(
    "nodes",
    [
        "s = HardSigmoid<alpha=0.16666667, beta=0.5>(x) y = Mul(x, s)",
        "p = Add(x, three) s = Clip(p, zero, six) g = Mul(x, s) y = Div(g, six)",
        "p = Add(x, three) s = Clip(p, zero, six) g = Mul(s, sixth) y = Mul(x, g)",
    ],
)
def test_hard_swish_written_out_becomes_one_node(nodes):
    counts, _ = optimise(model_of(nodes), HardSwishPass(), rtol=1e-4, atol=1e-5)
    assert counts == {"HardSwish": 1}


MEAN = "m = ReduceMean<keepdims=1>(x, last) d = Sub(x, m)"
VARIANCE = "p = Pow(d, two) v = ReduceMean<keepdims=1>(p, last) e = Add(v, eps) s = Sqrt(e)"
AFFINE = "o = Mul(n, scale) y = Add(o, bias)"
NORMS = [
    (f"{MEAN} {VARIANCE} n = Div(d, s) {AFFINE}", "LayerNormalization"),
    (f"{MEAN} {VARIANCE} i = Reciprocal(s) n = Mul(d, i) {AFFINE}", "LayerNormalization"),
    (
        f"{MEAN} p = Mul(d, d) v = ReduceMean<keepdims=1>(p, last) e = Add(eps, v) s = Sqrt(e) "
        f"f = Sub(x, m) n = Div(f, s) {AFFINE}",
        "LayerNormalization",
    ),
    (
        f"d = Identity(x) {VARIANCE} i = Div(one, s) n = Mul(d, i) y = Mul(scale, n)",
        "RMSNormalization",
    ),
    (
        "p = Mul(x, x) v = ReduceMean<keepdims=1>(p, last) e = Add(v, eps) i = Pow(e, minus) "
        "n = Mul(x, i) y = Mul(n, scale)",
        "RMSNormalization",
    ),
    (
        f"{MEAN} {VARIANCE} o = Mul(scale, d) n = Div(o, s) y = Add(n, bias)",
        "LayerNormalization",
    ),
    (
        "p = Mul(x, x) v = ReduceMean<keepdims=1>(p, last) e = Add(v, eps) s = Sqrt(e) "
        "i = Reciprocal(s) o = Mul(x, scale) y = Mul(i, o)",
        "RMSNormalization",
    ),
]


def norm(nodes, *, opset=23, last=-1, width=6):
    return parse(
        f"g (float[N,S,{width}] x, float[6] scale, float[6] bias) => (y) <float two = {{2}}, "
        f"float one = {{1}}, float eps = {{0.01}}, float minus = {{-0.5}}, "
        f"int64[1] last = {{{last}}}> {{ {nodes} }}",
        opset=opset,
    )


@pytest.mark.parametrize(("nodes", "name"), NORMS)
def test_normalisation_written_out_becomes_one_node(nodes, name):
    passes = (NoOpPass(), NormPass(), NormAffinePass())
    counts, _ = optimise(norm(nodes), *passes, rtol=1e-4, atol=1e-5)
    assert counts == {name: 1}


def test_normalisation_is_refused_with_reasons():
    _, report = optimise(norm(NORMS[3][0], opset=20), NoOpPass(), NormPass(), rtol=1e-4, atol=1e-5)
    assert reasons(report) == {"opset 20 is older than 23"}
    nodes = NORMS[0][0].replace("scale", "one").replace("bias", "one")
    _, report = optimise(norm(nodes, width=0), NormPass())
    assert reasons(report) == {"there is nothing to normalise"}
    _, report = optimise(norm(nodes, last=1), NormPass(), rtol=1e-4, atol=1e-5)
    assert reasons(report) == {"the axes are not the last ones"}


def weights(*shape):
    return RNG.standard_normal(shape).astype(np.float32) * 0.3


def test_gemm_becomes_a_product_of_what_was_flattened():
    model = parse(
        "g (float[B,S,4] x, float[6,4] w, float[6] b) => (y) <int64[2] flat = {-1,4}, "
        "int64[3] back = {-1,5,6}> { a = Reshape(x, flat) c = Gemm<transB=1>(a, w, b) "
        "y = Reshape(c, back) }",
        w=weights(6, 4),
        b=weights(6),
    )
    sizes = [{"B": 2, "S": 5}, {"B": 1, "S": 5}]
    counts, _ = optimise(model, GemmToMatMulPass(), TIDY, sizes=sizes, rtol=1e-4, atol=1e-5)
    assert counts == {"Transpose": 1, "MatMul": 1, "Add": 1, "Reshape": 1}


@pytest.mark.parametrize("node", ["Gemm<alpha=0.5>(x, w)", "Gemm<transA=1>(x, w)", "Gemm(x, d)"])
def test_other_gemms_stay(node):
    model = parse(
        f"g (float[4,4] x, float[4,4] d, float[4,4] w) => (y) {{ y = {node} }}", w=weights(4, 4)
    )
    counts, _ = optimise(model, GemmToMatMulPass(), rtol=1e-4, atol=1e-5)
    assert counts == {"Gemm": 1}


def test_product_takes_the_weight_as_it_is_stored():
    model = parse(
        "g (float[B,S,4] x, float[6,4] w, float[6] b, float[4,6] v) => (y, z, u) "
        "{ t = Transpose<perm=[1,0]>(w) y = MatMul(x, t) a = MatMul(x, v) z = Add(b, a) "
        "u = MatMul(x, v) }",
        w=weights(6, 4),
        b=weights(6),
        v=weights(4, 6),
    )
    counts, _ = optimise(model, PlainProductPass(), rtol=1e-4, atol=1e-5)
    assert counts == {"microsoft.FusedMatMul": 2, "Add": 1, "MatMul": 1}


@pytest.mark.parametrize(
    ("nodes", "fused"),
    [
        ("a = MatMul(x, w) y = Add(a, b)", True),
        ("t = Transpose<perm=[1,0]>(v) a = MatMul(x, t) y = Add(b, a)", True),
        ("a = MatMul(x, w) y = Add(a, n)", False),  # not constant
        ("a = MatMul(x, w) c = Add(a, b) y = Mul(c, a)", False),  # read elsewhere
        ("u = Unsqueeze(x, z) a = MatMul(u, w) y = Add(a, b)", False),  # three dims
    ],
)
def test_product_and_bias_of_matrices_are_one_node(nodes, fused):
    model = parse(
        "g (float[B,4] x, float[4,6] w, float[6,4] v, float[6] b, float[6] n) => (y) "
        f"<int64[1] z = {{0}}> {{ {nodes} }}",
        w=weights(4, 6),
        v=weights(6, 4),
        b=weights(6),
    )
    counts, _ = optimise(model, GemmPass(), rtol=1e-4, atol=1e-5)
    assert ("Gemm" in counts) == fused
    assert ("MatMul" in counts) != fused


def test_residual_before_a_norm_is_subtracted():
    model = parse(
        "g (float[B,S,4] x, float[4,4] w, float[4] b, float[4] s) => (y) { a = MatMul(x, w) "
        "c = Add(a, b) d = Add(c, x) y = LayerNormalization<axis=-1>(d, s, b) }",
        w=weights(4, 4),
        b=weights(4),
        s=weights(4),
    )
    passes = (InferShapesPass(), PlainProductPass(), PostNormResidualPass())
    counts, _ = optimise(model, *passes, rtol=1e-4, atol=1e-5)
    assert counts == {"microsoft.FusedMatMul": 1, "Sub": 2, "LayerNormalization": 1}


@pytest.mark.parametrize(
    ("before", "after", "left"),
    [
        (
            "a = Transpose<perm=[1,0,2]>(x)",
            "e = Transpose<perm=[1,0,2]>(d) y = Neg(e)",
            {"Neg": 1},
        ),
        ("a = Reshape(x, flat)", "e = Reshape(d, back) y = Neg(e)", {"Neg": 1}),
        ("a = Transpose<perm=[1,0,2]>(x)", "y = Relu(d)", {"Transpose": 1, "Relu": 1}),
        ("a = Reshape(x, flat)", "y = Relu(d)", {"Reshape": 1, "Relu": 1}),
    ],
)
def test_product_goes_before_a_rearrangement_that_is_taken_back(before, after, left):
    model = parse(
        "g (float[B,5,4] x, float[4,6] w, float[6] b) => (y) <int64[2] flat = {-1,4}, "
        f"int64[3] back = {{-1,5,6}}> {{ {before} c = MatMul(a, w) d = Add(c, b) {after} }}",
        w=weights(4, 6),
        b=weights(6),
    )
    passes = (InferShapesPass(), Repeat(ProductOrderPass(), *TIDY.passes))
    counts, _ = optimise(model, *passes, rtol=1e-4, atol=1e-5)
    assert counts == {"MatMul": 1, "Add": 1, **left}


@pytest.mark.parametrize("weight", ["w", "t"])
@pytest.mark.parametrize(
    ("cut", "parts"),
    [
        ("p, q, r = Split<axis=-1, num_outputs=3>(a) y = Sum(p, q, r)", 3),
        ("p, q = Split<axis=2>(a, sizes) y = Concat<axis=-1>(q, p)", 2),
        ("p = Slice(a, c0, c2, ax) q = Slice(a, c2, c6, ax) y = Concat<axis=-1>(q, p)", 2),
    ],
)
def test_parts_of_one_product_become_products(weight, cut, parts):
    model = parse(
        "g (float[B,S,4] x, float[4,6] w, float[6,4] v, float[6] b) => (y) "
        "<int64[2] sizes = {2,4}, int64[1] c0 = {0}, int64[1] c2 = {2}, int64[1] c6 = {6}, int64[1] ax = {2}>"
        f"{{ t = Transpose<perm=[1,0]>(v) m = MatMul(x, {weight}) a = Add(m, b) {cut} }}",
        w=weights(4, 6),
        v=weights(6, 4),
        b=weights(6),
    )
    counts, _ = optimise(model, UnpackProductPass(), DeadCodePass(), rtol=1e-4, atol=1e-5)
    assert counts["MatMul"] == parts
    assert not counts.keys() & {"Split", "Slice"}


def test_product_that_is_read_whole_stays_whole():
    model = parse(
        "g (float[B,S,4] x, float[4,6] w) => (y, z) "
        "{ a = MatMul(x, w) y, q = Split<axis=-1, num_outputs=2>(a) z = Relu(a) }",
        w=weights(4, 6),
    )
    counts, _ = optimise(model, UnpackProductPass(), rtol=1e-4, atol=1e-5)
    assert counts["MatMul"] == 1


BLOCK = (
    "n = LayerNormalization<axis=-1>(x, s, s) h = MatMul(n, w) c = Add(h, s) d = Gelu(c) "
    "e = Add(d, x)"
)


@pytest.mark.parametrize(
    "read",
    [
        "y = Gather<axis=1>(e, zero)",
        "y = Slice(e, c0, c1, c1)",
        "t = Transpose<perm=[1,0,2]>(e) y = Gather<axis=0>(t, zero)",
    ],
)
def test_only_the_row_that_is_read_is_computed(read):
    model = parse(
        "g (float[B,S,4] x, float[4,4] w, float[4] s) => (y) <int64 zero = {0}, "
        f"int64[1] c0 = {{0}}, int64[1] c1 = {{1}}> {{ {BLOCK} {read} }}",
        w=weights(4, 4),
        s=weights(4),
    )
    passes = (InferShapesPass(), Repeat(SliceHoistPass(), *TIDY.passes))
    optimise(model, *passes, rtol=1e-4, atol=1e-5)
    assert next(iter(model.graph)).op_type == "Slice"


def test_queries_of_attention_are_cut_and_keys_are_not():
    model = parse(
        "g (float[B,5,4] x) => (y) <int64 last = {-1}> "
        "{ a = Attention<q_num_heads=2, kv_num_heads=2>(x, x, x) y = Gather<axis=1>(a, last) }",
        opset=23,
    )
    passes = (InferShapesPass(), SliceHoistPass())
    optimise(model, *passes, rtol=1e-4, atol=1e-5)
    assert [n.op_type for n in model.graph] == ["Slice", "Attention", "Squeeze"]


@pytest.mark.parametrize(
    "nodes",
    [
        "a = Relu(x) y = Gather<axis=1>(a, zero) z = Neg(a)",  # read whole as well
        "a = Softmax<axis=1>(x) y = Gather<axis=1>(a, zero) z = Neg(y)",  # rows are not alike
        "a = Relu(x) y = Slice(a, c1, far, c1) z = Neg(y)",  # nearly all is read
    ],
)
def test_slices_stay_where_moving_them_gains_nothing(nodes):
    model = parse(
        "g (float[B,S,4] x) => (y, z) <int64 zero = {0}, int64[1] c1 = {1}, "
        f"int64[1] far = {{9223372036854775807}}> {{ {nodes} }}"
    )
    before = [n.op_type for n in model.graph]
    optimise(model, SliceHoistPass())
    assert [n.op_type for n in model.graph] == before


def test_rolls_and_windows_become_one_gather():
    model = parse(
        "g (float[1,4,6,16] x) => (y, z) <int64[1] c0 = {0}, int64[1] c1 = {1}, "
        "int64[1] far = {99}, int64[6] six = {1,2,2,3,2,16}, int64[3] three = {6,4,16}, "
        "int64[1] step = {2}> "
        "{ a = Slice(x, c1, far, c1) b = Slice(x, c0, c1, c1) c = Concat<axis=1>(a, b) "
        "d = Reshape(c, six) e = Transpose<perm=[0,1,3,2,4,5]>(d) y = Reshape(e, three) "
        "f = Slice(x, c0, far, c1, step) g1 = Slice(x, c1, far, c1, step) "
        "z = Concat<axis=-1>(f, g1) }"
    )
    counts, _ = optimise(model, RowGatherPass(), DeadCodePass())
    assert counts == {"Reshape": 4, "Gather": 2}


def test_elements_that_leave_their_rows_are_left_alone():
    model = parse(
        "g (float[4,16] x) => (y) <int64[2] two = {8,8}> "
        "{ a = Transpose<perm=[1,0]>(x) b = Reshape(a, two) y = Transpose<perm=[1,0]>(b) }"
    )
    counts, _ = optimise(model, RowGatherPass())
    assert "Gather" not in counts


SKIPS = [
    ("t = Add(x, r) y = LayerNormalization(t, g, s)", 17, {"microsoft.SkipLayerNormalization": 1}),
    (
        "a = Add(x, b) t = Add(r, a) y = LayerNormalization(t, g, s)",
        17,
        {"microsoft.SkipLayerNormalization": 1},
    ),
    (
        "a = Add(b, x) t = Add(a, r) y = LayerNormalization<epsilon=0.1>(t, g) z = Neg(t)",
        17,
        {"microsoft.SkipLayerNormalization": 1, "Neg": 1},
    ),
    (
        "a = Add(x, b) t = Add(a, r) y = RMSNormalization(t, g) z = Mul(t, y)",
        23,
        {"microsoft.SkipSimplifiedLayerNormalization": 1, "Mul": 1},
    ),
]


def skips(nodes, opset):
    outputs = "(y, z)" if "z =" in nodes else "(y)"
    model = parse(
        f"g (float[B,S,6] x, float[B,S,6] r, float[6] g, float[6] s, float[6] b) => {outputs} "
        f"{{ {nodes} }}",
        opset=opset,
        **{name: RNG.standard_normal(6).astype(np.float32) for name in "gsb"},
    )
    return optimise(model, InferShapesPass(), SkipNormPass(), DeadCodePass(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("nodes", "opset", "left"), SKIPS)
def test_residual_bias_and_norm_become_one_node(nodes, opset, left):
    counts, _ = skips(nodes, opset)
    assert counts == left


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        ("t = Add(x, r) y = LayerNormalization<axis=1>(t, w)", "it is not of rows"),
        ("t = Add(x, r) z = Neg(t) y = LayerNormalization(t, g)", "the sum is read before"),
    ],
)
def test_residual_stays_where_the_kernel_does_not_fit(nodes, reason):
    outputs = "(y, z)" if "z =" in nodes else "(y)"
    model = parse(
        f"g (float[B,3,6] x, float[B,3,6] r, float[6] g, float[3,6] w) => {outputs} {{ {nodes} }}",
        g=np.ones(6, np.float32),
        w=np.ones((3, 6), np.float32),
    )
    _, report = optimise(model, InferShapesPass(), SkipNormPass())
    assert reasons(report) == {reason}
