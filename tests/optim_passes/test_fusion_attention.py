import numpy as np
import pytest

from optim_passes.fusion.attention import AttentionFusionPass
from optim_passes.fusion.attention_layout import AttentionHeadsPass, LongAttentionPass
from optim_passes.fusion.rotary import RotaryHeadsPass, RotaryPass, SharedHeadsPass
from optim_passes.pipeline import Repeat
from optim_passes.simplify.dead_code import DeadCodePass
from optim_passes.simplify.duplicates import CommonSubexpressionPass
from optim_passes.simplify.folding import ConstantFoldPass
from optim_passes.simplify.inference import InferShapesPass
from optim_passes.simplify.noops import NoOpPass
from optim_passes.simplify.rearrangements import RearrangementPass
from optim_passes.simplify.shapes import ShapeChainPass
from tests.optim_passes.running import SIZES, feed_for, optimise, parse, reasons, since_1_28

TIDY = Repeat(NoOpPass(), RearrangementPass(), CommonSubexpressionPass(), DeadCodePass())
TYPES = "float[B,3,S,4] q, float[B,3,M,4] k, float[B,3,M,4] v"
LOWEST = float(np.finfo(np.float32).min)


def attention(scores, *, types=TYPES, weights="w = Softmax<axis=-1>(s)", opset=23, **arrays):
    return parse(
        f"g ({types}) => (y) <float r = {{0.5}}, float low = {{{LOWEST}}}, float zero = {{0}}, "
        f"float inf = {{-1e30}}, int64[2] ax = {{1,2}}> "
        f"{{ t = Transpose<perm=[0,1,3,2]>(k) {scores} {weights} y = MatMul(w, v) }}",
        opset=opset,
        **arrays,
    )


SCORES = [
    ("s = MatMul(q, t)", TYPES),
    ("a = MatMul(q, t) s = Mul(a, r)", TYPES),
    ("a = MatMul(q, t) s = Div(a, r)", TYPES),
    ("c = Mul(r, q) s = MatMul(c, t)", TYPES),
    ("c = Mul(q, r) d = Mul(t, r) s = MatMul(c, d)", TYPES),
    ("a = MatMul(q, t) s = Add(m, a)", f"{TYPES}, float[B,1,S,M] m"),
    ("a = MatMul(q, t) b = Mul(a, r) s = Add(b, m)", f"{TYPES}, float[M] m"),
    ("a = MatMul(q, t) b = Add(a, m) s = Add(b, n)", f"{TYPES}, float[S,1] m, float[3,1,M] n"),
    ("a = MatMul(q, t) s = Where(m, a, low)", f"{TYPES}, bool[B,1,1,M] m"),
    ("a = MatMul(q, t) s = Where(m, inf, a)", f"{TYPES}, bool[S,M] m"),
    ("a = MatMul(q, t) s = Mul(a, m)", f"{TYPES}, float[3,1,1] m"),
    ("a = MatMul(q, t) b = Div(a, m) s = Add(b, n)", f"{TYPES}, float[B,3,1,1] m, float[S,M] n"),
    ("a = MatMul(q, t) b = Add(a, m) s = Div(b, r)", f"{TYPES}, float[S,M] m"),
    (
        "a = MatMul(q, t) b = Add(a, m) c = Mul(b, r) s = Add(c, n)",
        f"{TYPES}, float[B,3,S,M] m, float[M] n",
    ),
]


@pytest.mark.parametrize(("scores", "types"), SCORES)
def test_attention_written_out_becomes_one_node(scores, types):
    counts, _ = optimise(attention(scores, types=types), AttentionFusionPass(), rtol=1e-4)
    assert counts["Attention"] == 1
    assert not counts.keys() & {"Softmax", "MatMul"}


@pytest.mark.parametrize(("scores", "types"), SCORES)
def test_older_opsets_have_onnx_runtimes_own_operator(scores, types):
    model = attention(scores, types=types, opset=17)
    counts, _ = optimise(model, AttentionFusionPass(contrib=True), rtol=1e-4)
    assert counts["microsoft.MultiHeadAttention"] == 1
    assert "Softmax" not in counts


def test_three_dims_are_one_batch():
    model = parse(
        "g (float[N,S,4] q, float[N,M,4] k, float[N,M,4] v, float[N,S,M] m) => (y) "
        "{ t = Transpose<perm=[0,2,1]>(k) a = MatMul(q, t) s = Add(a, m) w = Softmax<axis=-1>(s) "
        "y = MatMul(w, v) }",
        opset=23,
    )
    counts, _ = optimise(model, AttentionFusionPass(), rtol=1e-4)
    assert counts["Attention"] == 1


@pytest.mark.parametrize("mask", ["B,1,S,M", "1,1,S,M", "B,3,S,M", "1,3,1,M", "B,1,1,M", "S,M"])
@pytest.mark.parametrize(
    "nodes",
    [
        # As BART and its kin wrote it before there was scaled_dot_product_attention.
        "a = MatMul(q, t) b = Reshape(a, apart) s = Add(b, m) e = Reshape(s, joined) "
        "w = Softmax<axis=-1>(e) y = MatMul(w, v)",
        "a = MatMul(q, t) b = Reshape(a, apart) n = Greater(m, r) s = Where(n, low, b) "
        "e = Reshape(s, joined) w = Softmax<axis=-1>(e) y = MatMul(w, v)",
        # As BLOOM does.
        "a = MatMul(q, t) d = Mul(a, r) b = Reshape(d, apart) s = Add(b, m) "
        "w = Softmax<axis=-1>(s) e = Reshape(w, joined) y = MatMul(e, v)",
    ],
)
def test_heads_may_be_put_apart_for_a_mask(nodes, mask):
    types = "float[6,S,4] q, float[6,M,4] k, float[6,M,4] v, int64[2] pair, int64[1] six"
    model = parse(
        f"g ({types}, float[{mask}] m) => (y) <float r = {{0.5}}, float low = {{-1e9}}> {{ "
        "t = Transpose<perm=[0,2,1]>(k) "
        "qs = Shape<start=1,end=2>(q) ks = Shape<start=1,end=2>(k) "
        "apart = Concat<axis=0>(pair, qs, ks) joined = Concat<axis=0>(six, qs, ks) "
        f"{nodes} }}",
        opset=23,
        pair=np.asarray([-1, 3]),
        six=np.asarray([6]),
    )
    sizes = [{"B": 2, "S": 5, "M": 4}, {"B": 2, "S": 1, "M": 7}]
    passes = (InferShapesPass(), AttentionFusionPass(), DeadCodePass())
    counts, _ = optimise(model, *passes, rtol=1e-4, sizes=sizes)
    assert counts["Attention"] == 1
    assert "Softmax" not in counts


GROUPED = "float[B,2,3,5,4] q, float[B,2,3,6,4] k, float[B,2,3,6,4] v"


@pytest.mark.parametrize(
    ("groups", "mask"),
    [
        *[("2", m) for m in ("5,6", "1,3,5,6", "1,1,3,5,6", "1,2,1,5,6", "1,2,3,5,6")],
        *[("N", m) for m in ("5,6", "1,3,5,6", "1,1,3,5,6")],
    ],
)
def test_five_dims_are_a_batch_of_groups(groups, mask):
    model = parse(
        f"g ({GROUPED.replace('B,2', f'B,{groups}')}, float[{mask}] m) => (y) {{ "
        "t = Transpose<perm=[0,1,2,4,3]>(k) "
        "a = MatMul(q, t) s = Add(a, m) w = Softmax<axis=-1>(s) y = MatMul(w, v) }",
        opset=23,
    )
    counts, _ = optimise(model, AttentionFusionPass(), rtol=1e-4)
    assert counts["Attention"] == 1
    assert "Softmax" not in counts


@pytest.mark.parametrize(
    ("types", "scores", "reason"),
    [
        ("float[1] m", "s = MatMul(q, t)", "sizes beside five dims vary"),
        ("bool[1,2,1,5,6] m", "a = MatMul(q, t) s = Where(m, a, low)", "its mask has rank 5"),
        ("float[B,1,1,5,6] m", "a = MatMul(q, t) s = Add(a, m)", "the mask has a batch of its own"),
        ("float[1,M,1,5,6] m", "a = MatMul(q, t) s = Add(a, m)", "the number of windows varies"),
    ],
)  # fmt: skip
def test_five_dims_are_refused(types, scores, reason):
    grouped = GROUPED.replace("5,4", "S,4") if "vary" in reason else GROUPED
    grouped = grouped.replace("B,2", "B,M") if "windows" in reason else grouped
    model = parse(
        f"g ({grouped}, {types}) => (y) <float low = {{-1e30}}> {{ t = Transpose<perm=[0,1,2,4,3]>(k) "
        f"{scores} w = Softmax<axis=-1>(s) y = MatMul(w, v) }}",
        opset=23,
    )
    counts, report = optimise(model, AttentionFusionPass(), rtol=1e-4)
    assert "Attention" not in counts
    assert reason in reasons(report)


def test_causal_mask_becomes_an_attribute():
    mask = np.where(np.tri(5, dtype=bool), 0, -np.inf).astype(np.float32)
    types = "float[B,3,5,4] q, float[B,3,5,4] k, float[B,3,5,4] v, float[5,5] m"
    model = attention("a = MatMul(q, t) s = Add(a, m)", types=types, m=mask)
    counts, _ = optimise(model, AttentionFusionPass(), rtol=1e-4)
    assert counts == {"Attention": 1}


def test_rows_masked_by_the_lowest_number_keep_the_mean():
    model = attention("a = MatMul(q, t) s = Add(a, m)", types=f"{TYPES}, float[S,M] m")
    feed = feed_for(model, SIZES)
    feed["m"][:] = 0
    feed["m"][2] = LOWEST
    optimise(model, AttentionFusionPass(), feeds=[feed], rtol=1e-4)


@since_1_28
def test_rows_of_nan_that_become_zero_stay_zero():
    guarded = "p = Softmax<axis=-1>(s) n = IsNaN(p) w = Where(n, zero, p)"
    model = attention(
        "a = MatMul(q, t) s = Add(a, m)", types=f"{TYPES}, float[S,M] m", weights=guarded
    )
    feed = feed_for(model, SIZES)
    feed["m"][:] = 0
    feed["m"][2], feed["m"][3] = -np.inf, LOWEST
    counts, _ = optimise(model, AttentionFusionPass(), feeds=[feed], rtol=1e-4)
    assert counts == {"Max": 1, "IsInf": 1, "Where": 1, "Unsqueeze": 1, "Attention": 1}


@since_1_28
@pytest.mark.parametrize("fill", [-np.inf, LOWEST])
@pytest.mark.parametrize("guarded", [True, False])
def test_chosen_masks_keep_what_they_say_of_rows_without_keys(fill, guarded):
    weights = "p = Softmax<axis=-1>(s) n = IsNaN(p) w = Where(n, zero, p)"
    model = attention(
        "b = Where(m, zero, f) a = MatMul(q, t) s = Add(a, b)",
        types=f"{TYPES}, bool[S,M] m, float[1] f",
        f=np.asarray([fill], np.float32),
        **({"weights": weights} if guarded else {}),
    )
    feed = feed_for(model, SIZES)
    feed["m"][:] = True
    if guarded or fill == LOWEST:
        feed["m"][2] = False
    counts, _ = optimise(model, AttentionFusionPass(), feeds=[feed], rtol=1e-4)
    assert counts == {"Where": 1, "Unsqueeze": 1, "Attention": 1}


@since_1_28
@pytest.mark.parametrize("fill", ["inf", "low"])
@pytest.mark.parametrize("kept", ["m, a, {0}", "m, {0}, a"])
def test_weights_that_are_hidden_twice_are_zero_in_rows_without_keys(fill, kept):
    model = attention(
        f"a = MatMul(q, t) s = Where({kept.format(fill)})",
        types=f"{TYPES}, bool[S,M] m",
        weights=f"p = Softmax<axis=-1>(s) w = Where({kept.replace('a', 'p').format('zero')})",
    )
    feed = feed_for(model, SIZES)
    feed["m"][:] = kept == "m, a, {0}"
    feed["m"][1, 1:] ^= True
    feed["m"][2] ^= True
    counts, _ = optimise(model, AttentionFusionPass(), feeds=[feed], rtol=1e-4)
    assert counts == {"Where": 1, "Unsqueeze": 1, "Attention": 1}


def test_weights_that_are_hidden_by_another_mask_are_left_alone():
    model = attention(
        "a = MatMul(q, t) s = Where(m, a, inf)",
        types=f"{TYPES}, bool[S,M] m, bool[S,M] n",
        weights="p = Softmax<axis=-1>(s) w = Where(n, p, zero)",
    )
    counts, _ = optimise(model, AttentionFusionPass(), rtol=1e-4)
    assert "Attention" not in counts


@pytest.mark.parametrize(
    ("scores", "weights", "options", "reason"),
    [
        (
            "s = MatMul(q, t)",
            "w = Softmax<axis=-1>(s)",
            {"opset": 20},
            "opset 20 has no Attention",
        ),
        (
            "s = MatMul(q, t)",
            "w = Softmax<axis=-1>(s) z = Neg(w)",
            {},
            "the attention weights have another use",
        ),
        (
            "s = MatMul(q, t)",
            "w = Softmax<axis=-1>(s) z = Neg(s)",
            {},
            "the attention weights have another use",
        ),
    ],
)
def test_attention_is_refused(scores, weights, options, reason):
    model = attention(scores, weights=weights, **options)
    if "z =" in weights:
        model.graph.outputs.append(next(n for n in model.graph if n.op_type == "Neg").outputs[0])
    counts, report = optimise(model, AttentionFusionPass(), rtol=1e-4)
    assert counts["Softmax"] == 1
    assert reasons(report) == {reason}


@pytest.mark.parametrize(
    "scores",
    [
        "s = MatMul(q, k)",  # no transposed keys
        "c = Transpose<perm=[0,1,3,2]>(q) s = MatMul(c, q)",
    ],
)
def test_other_products_of_softmax_are_left_alone(scores):
    types = "float[B,3,4,4] q, float[B,3,4,4] k, float[B,3,4,4] v"
    counts, _ = optimise(attention(scores, types=types), AttentionFusionPass(), rtol=1e-4)
    assert counts["Softmax"] == 1


def test_softmax_over_another_axis_is_left_alone():
    model = attention("s = MatMul(q, t)", weights="w = Softmax<axis=2>(s)")
    counts, _ = optimise(model, AttentionFusionPass(), rtol=1e-4)
    assert counts["Softmax"] == 1


SPLIT = "{0}1 = Reshape({0}, heads) {0}2 = Transpose<perm=[0,2,1,3]>({0}1)"
JOIN = "z = Transpose<perm=[0,2,1,3]>(a) y = Reshape(z, flat)"
CONSTANTS = "<int64[4] heads = {0,0,3,4}, int64[3] flat = {0,0,12}>"


def heads(splits, attention="a = Attention(q2, k2, v2)", inputs="q", shape="B,S,12", join=JOIN):
    values = ", ".join(f"float[{shape}] {x}" for x in inputs)
    return parse(f"g ({values}) => (y) {CONSTANTS} {{ {splits} {attention} {join} }}", opset=23)


def test_attention_takes_heads_side_by_side():
    model = heads(" ".join(SPLIT.format(x) for x in "qkv"), inputs="qkv")
    counts, _ = optimise(model, InferShapesPass(), AttentionHeadsPass(), TIDY, rtol=1e-4)
    assert counts == {"Attention": 1}


def test_heads_from_one_product_are_sliced_from_it():
    text = (
        "p = Reshape(x, five) t = Transpose<perm=[2,0,3,1,4]>(p) q2 = Gather<axis=0>(t, i0) "
        "k2 = Gather<axis=0>(t, i1) v2 = Gather<axis=0>(t, i2) a = Attention(q2, k2, v2)"
    )
    model = parse(
        "g (float[B,S,36] x) => (y) <int64[5] five = {0,0,3,3,4}, int64 i0 = {0}, int64 i1 = {1}, "
        f"int64 i2 = {{2}}, int64[3] flat = {{0,0,12}}> {{ {text} {JOIN} }}",
        opset=23,
    )
    counts, _ = optimise(model, InferShapesPass(), AttentionHeadsPass(), TIDY, rtol=1e-4)
    assert counts == {"Slice": 3, "Attention": 1}


def test_sequence_first_layout_keeps_one_transpose_of_each():
    splits = " ".join(
        f"{x}1 = Reshape({x}, heads) {x}2 = Transpose<perm=[1,2,0,3]>({x}1)" for x in "qkv"
    )
    join = "z = Transpose<perm=[2,0,1,3]>(a) y = Reshape(z, flat)"
    model = heads(splits, inputs="qkv", shape="S,B,12", join=join)
    counts, _ = optimise(model, InferShapesPass(), AttentionHeadsPass(), TIDY, rtol=1e-4)
    assert counts == {"Transpose": 4, "Attention": 1}


def test_heads_of_unknown_number_are_refused():
    model = parse("g (float[B,H,S,4] q) => (y) { y = Attention(q, q, q) }", opset=23)
    _, report = optimise(model, AttentionHeadsPass(), rtol=1e-4)
    assert reasons(report) == {"number or size of heads of the queries varies"}


def test_heads_that_were_never_split_are_refused():
    model = parse("g (float[B,3,S,4] q) => (y) { y = Attention(q, q, q) }", opset=23)
    _, report = optimise(model, AttentionHeadsPass(), rtol=1e-4)
    assert reasons(report) == {"the queries are not split from one product"}


REPEATS = (
    "k1 = Unsqueeze(k, two) k3 = Expand(k1, wide) k2 = Reshape(k3, four) "
    "v1 = Unsqueeze(v, two) v3 = Expand(v1, wide) v2 = Reshape(v3, four)",
    "k2 = Gather<axis=1>(k, index) v2 = Gather<axis=1>(v, index)",
)


@pytest.mark.parametrize("repeat", REPEATS)
def test_shared_heads_are_not_repeated(repeat):
    model = parse(
        "g (float[2,6,S,4] q, float[2,3,5,4] k, float[2,3,5,4] v) => (y) "
        "<int64[1] two = {2}, int64[5] wide = {2,3,2,5,4}, int64[4] four = {2,6,5,4}, "
        f"int64[6] index = {{0,0,1,1,2,2}}> {{ {repeat} y = Attention(q, k2, v2) }}",
        opset=23,
    )
    counts, _ = optimise(model, InferShapesPass(), SharedHeadsPass(), DeadCodePass(), rtol=1e-4)
    assert counts == {"Attention": 1}


def test_heads_repeated_in_another_order_stay():
    model = parse(
        "g (float[2,6,S,4] q, float[2,3,5,4] k, float[2,3,5,4] v) => (y) "
        "<int64[6] index = {0,1,2,0,1,2}> "
        "{ a = Gather<axis=1>(k, index) b = Gather<axis=1>(v, index) y = Attention(q, a, b) }",
        opset=23,
    )
    counts, _ = optimise(model, SharedHeadsPass(), rtol=1e-4)
    assert counts == {"Gather": 2, "Attention": 1}


ROTARY = (
    "h = Slice(x, c2, c4, c3) l = Slice(x, c0, c2, c3) n = Neg(h) r = Concat<axis=-1>(n, l) "
    "p = Mul(x, cos) q = Mul(r, sin) y = Add(p, q)"
)
ROTARY_CONSTANTS = "<int64[1] c0 = {0}, int64[1] c2 = {2}, int64[1] c3 = {3}, int64[1] c4 = {4}>"


def test_rotary_embedding_written_out_becomes_one_node():
    tables = "e = Concat<axis=-1>(f, f) g1 = Cos(e) h1 = Sin(e)"
    tables += " cos = Unsqueeze(g1, one) sin = Unsqueeze(h1, one)"
    model = parse(
        "g (float[B,3,S,4] x, float[B,S,2] f) => (y) "
        f"{ROTARY_CONSTANTS[:-1]}, int64[1] one = {{1}}> {{ {tables} {ROTARY} }}",
        opset=23,
    )
    counts, _ = optimise(model, InferShapesPass(), RotaryPass(), TIDY, rtol=1e-4)
    assert counts == {"RotaryEmbedding": 1, "Cos": 1, "Sin": 1}


def test_rotary_tables_may_be_constant():
    angles = np.random.default_rng(0).standard_normal((1, 1, 5, 2)).astype(np.float32)
    whole = np.concatenate([angles, angles], -1)
    model = parse(
        "g (float[B,3,5,4] x, float[1,1,5,4] cos, float[1,1,5,4] sin) => (y) "
        f"{ROTARY_CONSTANTS} {{ {ROTARY} }}",
        opset=23,
        cos=np.cos(whole),
        sin=np.sin(whole),
    )
    passes = (InferShapesPass(), RotaryPass(), ConstantFoldPass(), TIDY)
    counts, _ = optimise(model, *passes, rtol=1e-4)
    assert counts.keys() <= {"RotaryEmbedding", "Expand", "Shape", "Concat"}


APART = "p = Mul(a, c) q = Mul(b, s) u = Sub(p, q) p2 = Mul(c, b) q2 = Mul(s, a) v = Add(p2, q2) "


@pytest.mark.parametrize(
    ("shape", "table", "nodes", "left"),
    [
        ("B,3,S,4", "S,2", f"a, b = Split(x) {APART} y = Concat(u, v)", {}),
        ("B,3,S,4", "B,1,S,2", f"a, b = Split(x) {APART} y = Concat(u, v)", {}),
        ("B,S,3,4", "S,1,2", f"a, b = Split(x) {APART} y = Concat(u, v)", {"Reshape": 2}),
        ("B,S,3,4", "B,S,1,2", f"a, b = Split(x) {APART} y = Concat(u, v)", {"Reshape": 2}),
        ("B,3,S,6", "S,2", f"a = Slice(x, n0, n2, n3) b = Slice(x, n2, n4, n3) {APART} "
         "r = Slice(x, n4, n6, n3) y = Concat(u, v, r)", {}),
        ("B,3,S,6", "S,2", f"e = Slice(x, n0, n4, n3) a, b = Split(e) {APART} w = Concat(u, v) "
         "r = Slice(x, n4, n6, n3) y = Concat(w, r)", {}),
        ("B,3,S,6", "S,4", "x4, r = Split(x, n42) h = Slice(x4, n2, n4, n3) l = Slice(x4, n0, n2, n3) "
         "n = Neg(h) t = Concat(n, l) c2 = Cos(c) d = Concat(f, f) c3 = Cos(d) s3 = Sin(d) "
         "p = Mul(x4, c3) q = Mul(t, s3) e = Add(p, q) y = Concat(e, r)", {"Cos": 1, "Sin": 1}),
    ],
)  # fmt: skip
def test_rotary_embedding_of_halves_and_of_parts_of_heads(shape, table, nodes, left):
    nodes = nodes.replace("Concat(", "Concat<axis=-1>(").replace("Split(x)", "Split(x, n22)")
    nodes = nodes.replace("Split(e)", "Split(e, n22)").replace("Split(", "Split<axis=-1>(")
    model = parse(
        f"g (float[{shape}] x, float[{table}] c, float[{table}] s, float[S,2] f) => (y) <"
        "int64[1] n0 = {0}, int64[1] n2 = {2}, int64[1] n3 = {3}, int64[1] n4 = {4}, "
        f"int64[1] n6 = {{6}}, int64[2] n22 = {{2,2}}, int64[2] n42 = {{4,2}}> {{ {nodes} }}",
        opset=23,
    )
    passes = (InferShapesPass(), RotaryPass(), ShapeChainPass(), DeadCodePass())
    counts, _ = optimise(model, *passes, rtol=1e-4, atol=1e-5)
    moved = {"Unsqueeze", "Squeeze", "Shape", "Concat", "Expand"}
    assert {k: n for k, n in counts.items() if k not in moved} == {"RotaryEmbedding": 1, **left}


def test_tables_for_each_head_are_refused():
    model = parse(
        "g (float[2,2,S,4] x, float[2,S,2] c, float[2,S,2] s) => (y) <int64[2] n22 = {2,2}> {"
        f"a, b = Split<axis=-1>(x, n22) {APART} y = Concat<axis=-1>(u, v) }}",
        opset=23,
    )
    _, report = optimise(model, InferShapesPass(), RotaryPass())
    assert reasons(report) == {"the tables differ between heads"}


def test_rotary_tables_with_different_halves_are_refused():
    model = parse(
        "g (float[B,3,S,4] x, float[B,1,S,4] cos, float[B,1,S,4] sin) => (y) "
        f"{ROTARY_CONSTANTS} {{ {ROTARY} }}",
        opset=23,
    )
    _, report = optimise(model, RotaryPass())
    assert reasons(report) == {"the cosines are not two equal halves"}


def test_rotary_embedding_goes_before_the_heads_are_split():
    model = parse(
        "g (float[B,S,12] x, float[B,S,2] c, float[B,S,2] s) => (y) "
        "<int64[4] heads = {0,0,3,4}> { a = Reshape(x, heads) b = Transpose<perm=[0,2,1,3]>(a) "
        "y = RotaryEmbedding(b, c, s) }",
        opset=23,
    )
    optimise(model, InferShapesPass(), RotaryHeadsPass(), TIDY, rtol=1e-4)
    assert [n.op_type for n in model.graph] == ["RotaryEmbedding", "Reshape", "Transpose"]


@pytest.mark.parametrize(("keys", "fused"), [(1024, True), (256, False)])
def test_long_attention_never_holds_all_weights(keys, fused):
    model = parse(
        f"g (float[1,4,8] q, float[1,{keys},8] k) => (y) "
        "{ y = Attention<q_num_heads=2, kv_num_heads=2>(q, k, k) }",
        opset=23,
    )
    counts, _ = optimise(model, LongAttentionPass(), rtol=1e-4)
    assert counts == ({"microsoft.MultiHeadAttention": 1} if fused else {"Attention": 1})


def test_long_causal_attention_is_refused():
    model = parse(
        "g (float[1,1024,8] q) => (y) "
        "{ y = Attention<q_num_heads=2, kv_num_heads=2, is_causal=1>(q, q, q) }",
        opset=23,
    )
    _, report = optimise(model, LongAttentionPass(), rtol=1e-4)
    assert reasons(report) == {"it is causal"}


@pytest.mark.parametrize(
    ("scores", "types", "reason"),
    [
        (
            "s = MatMul(q, t)",
            "float[1,3,S,4] q, float[B,3,M,4] k, float[B,3,M,4] v",
            "an operand has one batch for many",
        ),
        (
            "s = MatMul(q, t)",
            "float[B,3,S,4] q, float[B,1,M,4] k, float[B,1,M,4] v",
            "an operand has one batch for many",
        ),
        (
            "a = MatMul(q, t) s = Add(a, m)",
            "float[1,3,S,4] q, float[1,3,M,4] k, float[1,3,M,4] v, float[B,1,S,M] m",
            "the mask has more batches than the operands",
        ),
        (
            "s = MatMul(q, t)",
            "float[B,3,S,4] q, float[B,3,M,4] k, float[3,M,4] v",
            "an operand has rank 3 beside scores of 4",
        ),
    ],
)
def test_operands_that_broadcast_are_refused(scores, types, reason):
    counts, report = optimise(attention(scores, types=types), AttentionFusionPass(), rtol=1e-4)
    assert counts["Softmax"] == 1
    assert reasons(report) == {reason}
