import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from optim_passes.pipeline import Repeat
from optim_passes.pipelines import SIMPLIFY
from optim_passes.simplify.branches import KnownBranchPass
from optim_passes.simplify.casts import CastPass
from optim_passes.simplify.constants import DeduplicateInitializersPass, LiftConstantsPass
from optim_passes.simplify.dead_code import DeadCodePass
from optim_passes.simplify.duplicates import CommonSubexpressionPass
from optim_passes.simplify.folding import ConstantFoldPass
from optim_passes.simplify.inference import ForgetSizesPass, InferShapesPass
from optim_passes.simplify.loops import LoopInvariantPass, UnrollPass
from optim_passes.simplify.noops import NoOpPass
from optim_passes.simplify.products import EinsumPass
from optim_passes.simplify.rearrangements import RearrangementPass, TransposeOrderPass
from optim_passes.simplify.sequences import SequenceToScanPass
from optim_passes.simplify.shapes import ShapeChainPass
from optim_passes.simplify.simplifier import OnnxSimplifierPass
from optim_passes.simplify.slices import ConcatPass, SlicePass
from tests.optim_passes.running import HEADER, SIZES, ops, optimise, parse, reasons


@pytest.mark.parametrize(
    "node",
    [
        "Identity(x)",
        "Dropout(x)",
        "Cast<to=1>(x)",
        "Transpose<perm=[0,1,2]>(x)",
        "Reshape(x, c)",
        "Slice(x, zero, far)",
        "Expand(x, one)",
        "Pad(x, none)",
        "Tile(x, ones)",
        "Concat<axis=1>(x)",
        "Add(x, zeros)",
        "Sub(x, zeros)",
        "Mul(unit, x)",
        "Div(x, unit)",
        "Pow(x, unit)",
        "Max(x)",
    ],
)
def test_node_that_changes_nothing_is_removed(node):
    model = parse(
        f"""g (float[N,4,6] w) => (float[N,4,6] y)
        <int64[3] c = {{0,-1,6}}, int64[1] zero = {{0}}, int64[1] far = {{9223372036854775807}},
         int64[1] one = {{1}}, int64[6] none = {{0,0,0,0,0,0}}, int64[3] ones = {{1,1,1}},
         float zeros = {{0}}, float[1] unit = {{1}}>
        {{ x = Relu(w) b = {node} y = Neg(b) }}"""
    )
    counts, _ = optimise(model, NoOpPass())
    assert counts == {"Relu": 1, "Neg": 1}


@pytest.mark.parametrize(
    "node",
    [
        "Add(x, row)",  # broadcasts
        "Mul(x, wide)",  # raises the rank
        "Cast<to=11>(x)",
        "Slice(x, one, far)",
        "Sub(zeros, x)",
    ],
)
def test_node_that_changes_something_stays(node):
    model = parse(
        f"""g (float[N,1] w) => (y)
        <float[3] row = {{0,0,0}}, float[1,1,1] wide = {{1}}, int64[1] one = {{1}}, float zeros
        = {{0}},
         int64[1] far = {{9223372036854775807}}>
        {{ x = Relu(w) y = {node} }}"""
    )
    counts, _ = optimise(model, NoOpPass())
    assert sum(counts.values()) == 2


def test_graph_input_as_output_keeps_its_identity():
    model = parse("g (float[N] x) => (float[N] y, float[N] z) { y = Identity(x) z = Identity(y) }")
    counts, _ = optimise(model, NoOpPass())
    assert counts == {"Identity": 2}


def test_value_before_a_removed_output_node_takes_its_name():
    model = parse("g (float[N] x) => (float[N] y) { a = Relu(x) y = Dropout(a) }")
    counts, _ = optimise(model, NoOpPass())
    assert counts == {"Relu": 1}


def test_constants_fold_through_chains():
    model = parse(
        """g (float[N,4] x) => (float[N,4] y) <float[4] a = {1,2,3,4}>
        { b = Sqrt(a) c = Exp(b) i = Constant<value_ints=[-1,4]>() d = Reshape(c, i) y = Add(x,
        d) }"""
    )
    counts, _ = optimise(model, LiftConstantsPass(), ConstantFoldPass(), DeadCodePass())
    assert counts == {"Add": 1}


def test_fold_never_blows_a_constant_up():
    model = parse(
        """g (float[N] x) => (float[N] y) <int64[2] s = {512, 256}, float one = {1}>
        { e = Expand(one, s) m = ReduceMax<keepdims=0>(e) y = Mul(x, m) }"""
    )
    counts, _ = optimise(model, ConstantFoldPass(limit=1000))
    assert counts["Expand"] == 1


def test_large_fold_is_made_only_when_it_is_read():
    weight = np.zeros((700, 800), np.float32)
    model = parse(
        """g (float[N,800] x, float[700,800] w) => (float[N,700] y) { t =
        Transpose<perm=[1,0]>(w) y = MatMul(x, t) }""",
        w=weight,
    )
    counts, _ = optimise(model, ConstantFoldPass())
    assert counts == {"Transpose": 1, "MatMul": 1}
    counts, _ = optimise(model, ConstantFoldPass(large=True), DeadCodePass())
    assert counts == {"MatMul": 1}
    (value,) = model.graph.initializers.values()
    assert isinstance(value.const_value, ir.LazyTensor)


def test_default_of_a_graph_input_is_no_constant():
    model = parse(
        "g (float[N] x, float[1] c) => (float[N] y) { y = Add(x, c) }", c=np.zeros(1, np.float32)
    )
    model.graph.inputs.append(model.graph.initializers["c"])
    counts, _ = optimise(model, NoOpPass(), ConstantFoldPass())
    assert counts == {"Add": 1}


def test_random_and_training_nodes_do_not_fold():
    model = parse(
        """g (float[N] x) => (float[N] y) <float[1] c = {1}, float r = {0.5}, bool t = {1}>
        { a = RandomNormalLike(c) b, m = Dropout(c, r, t) d = Mul(a, b) e = Sub(d, d) y = Add(x,
        e) }"""
    )
    counts, _ = optimise(model, ConstantFoldPass(), CommonSubexpressionPass())
    assert counts["RandomNormalLike"] == 1
    assert counts["Dropout"] == 1


ELEMENTS = "c = Gather(s, i0) d = Gather(s, i1)"
RESHAPES = [
    ("B,S,8", f"{ELEMENTS} t = Concat<axis=0>(c, d, i4, i2)", [0, 0, 4, 2]),
    ("B,S,8", "c = Slice(s, i0, i2) t = Concat<axis=0>(c, i4, i2)", [0, 0, 4, 2]),
    ("B,S,8", f"{ELEMENTS} e = Mul(c, d) t = Concat<axis=0>(e, i8)", [-1, 8]),
    ("B,4,8", f"{ELEMENTS} e = Gather(s, i2) m = Mul(d, e) t = Concat<axis=0>(c, m)", [-1, 32]),
]


@pytest.mark.parametrize(("shape", "chain", "target"), RESHAPES)
def test_reshape_target_from_shapes_becomes_constant(shape, chain, target):
    model = parse(
        f"""g (float[{shape}] x) => (y)
        <int64[1] i0 = {{0}}, int64[1] i1 = {{1}}, int64[1] i2 = {{2}}, int64[1] i4 = {{4}},
        int64[1] i8 = {{8}}>
        {{ s = Shape(x) {chain} y = Reshape(x, t) }}"""
    )
    counts, _ = optimise(model, ShapeChainPass(), DeadCodePass())
    assert counts == {"Reshape": 1}
    node = next(iter(model.graph))
    assert list(node.inputs[1].const_value.numpy()) == target


def test_reshape_that_takes_zeros_literally_is_followed_too():
    model = parse(
        "g (float[B,S,8] x) => (y) <int64[1] n8 = {8}, int64[2] flat = {-1,8}> { "
        "b = Shape<start=0,end=1>(x) s = Shape<start=1,end=2>(x) t = Concat<axis=0>(b, s, n8) "
        "f = Reshape(x, flat) r = Reshape<allowzero=1>(f, t) y = Relu(r) }"
    )
    sizes = (SIZES, {"B": 0, "S": 3}, {"B": 2, "S": 0})
    counts, _ = optimise(model, *SIMPLIFY, sizes=sizes)
    assert counts == {"Relu": 1}


def test_zero_that_is_literal_stays():
    model = parse(
        "g (float[B,0,8] x) => (y) <int64[2] t = {0,3}> { r = Reshape<allowzero=1>(x, t) "
        "y = Relu(r) }"
    )
    counts, _ = optimise(model, *SIMPLIFY)
    assert counts == {"Reshape": 1, "Relu": 1}


def test_sizes_that_nothing_is_known_of_are_followed():
    model = parse(
        "g (float[N] x, int64[3] t) => (y) <int64[1] n2 = {2}, int64[1] n4 = {4}, "
        "int64[3] three = {0,0,-1}> { r = Reshape(x, t) a = Shape<start=0,end=1>(r) "
        "c = Shape<start=1,end=2>(r) d = Shape<start=2,end=3>(r) u = Concat<axis=0>(a, c, d) "
        "m = Exp(r) y = Reshape(m, u) }"
    )
    feed = {"x": np.arange(12, dtype=np.float32), "t": np.asarray([2, 3, 2])}
    counts, _ = optimise(model, *SIMPLIFY, ForgetSizesPass(), feeds=[feed])
    assert counts == {"Reshape": 1, "Exp": 1}
    names = {str(d) for n in model.graph for v in n.outputs for d in v.shape or ()}
    assert not any("_size" in name for name in names)


def test_only_the_interface_keeps_the_names_of_sizes():
    model = parse("g (float[N,4] x) => (float[N,4] y) { a = Relu(x) y = Exp(a) }")
    ForgetSizesPass(names=True)(model)
    a, y = (n.outputs[0].shape.dims for n in model.graph)
    assert [a[0].value, a[1]] == [None, 4]
    assert [y[0].value, y[1]] == ["N", 4]
    assert model.graph.inputs[0].shape[0].value == "N"


def test_nodes_of_wrong_types_are_left_to_the_runtime():
    text = (
        HEADER.format(opset=20)
        + "g (float[N] x, int64[2] s) => (float[M] y) { y = Compress(x, s) }"
    )
    model = ir.from_proto(onnx.parser.parse_model(text))
    InferShapesPass()(model)
    assert ops(model) == {"Compress": 1}


def test_reshape_with_two_new_sizes_is_refused():
    model = parse(
        """g (float[B,S,8] x, float[M,4] z) => (y)
        <int64[1] i0 = {0}, int64[1] i1 = {1}, int64[1] i8 = {8}>
        { s = Shape(x) c = Gather(s, i1) d = Gather(s, i0) t = Concat<axis=0>(c, d, i8) y =
        Reshape(x, t) }"""
    )
    _, report = optimise(model, ShapeChainPass())
    assert reasons(report) == {"more than one size is new in the shape"}


def test_static_shape_arithmetic_becomes_constant():
    model = parse(
        """g (float[N,4,6] x) => (float[N,24] y, int64 n)
        <int64 one = {1}, int64[1] two = {2}, int64[1] three = {3}, int64[1] ax = {0},
         int64[1] m = {-1}, int64 zero = {0}>
        { s = Shape(x) a = Gather(s, one) b = Slice(s, two, three) c = Squeeze(b, ax) d = Mul(a, c)
          e = Unsqueeze(d, ax) f = Concat<axis=0>(m, e) y = Reshape(x, f) n = Add(d, zero) }"""
    )
    counts, _ = optimise(
        model, Repeat(ShapeChainPass(), ConstantFoldPass(), NoOpPass(), DeadCodePass())
    )
    assert counts.keys() <= {"Reshape", "Add", "Identity"}


def test_transposes_merge_and_cancel():
    model = parse(
        """g (float[N,4,6] x) => (y, z)
        { a = Transpose<perm=[0,2,1]>(x) b = Transpose<perm=[0,2,1]>(a) y = Relu(b)
          c = Transpose<perm=[1,0,2]>(x) z = Transpose<perm=[2,0,1]>(c) }"""
    )
    counts, _ = optimise(model, RearrangementPass(), DeadCodePass())
    assert counts == {"Relu": 1, "Transpose": 1}


def test_transpose_of_axes_of_size_one_is_a_reshape():
    model = parse("g (float[N,1,6] x) => (y) { y = Transpose<perm=[1,0,2]>(x) }")
    counts, _ = optimise(model, RearrangementPass())
    assert counts == {"Reshape": 1}
    model = parse("g (float[N,S,1] x) => (y) { y = Transpose<perm=[0,2,1]>(x) }")
    counts, _ = optimise(model, RearrangementPass())
    assert counts == {"Transpose": 1}


def test_reshape_chains_merge():
    model = parse(
        """g (float[N,4,6] x) => (y, z) <int64[2] a = {0,24}, int64[3] b = {0,4,6}, int64[1] one
        = {1}>
        { c = Reshape(x, a) d = Reshape(c, b) y = Relu(d)
          e = Unsqueeze(x, one) f = Flatten<axis=2>(e) z = Relu(f) }"""
    )
    counts, _ = optimise(model, RearrangementPass(), DeadCodePass())
    assert counts == {"Relu": 2, "Reshape": 1}


def test_casts_merge_unless_the_first_loses_something():
    model = parse(
        """g (float[N] x, int32[N] i) => (y, z, u)
        { a = Cast<to=11>(x) y = Cast<to=7>(a) b = Cast<to=7>(i) z = Cast<to=6>(b)
          c = Cast<to=7>(x) u = Cast<to=1>(c) }"""
    )
    counts, _ = optimise(model, CastPass(), DeadCodePass())
    assert counts == {"Cast": 3, "Identity": 1}


def test_slices_merge():
    model = parse(
        """g (float[8,N,6] x) => (y) <int64[1] a = {1}, int64[1] b = {7}, int64[1] c = {2},
        int64[1] d = {100},
            int64[1] e = {0}>
        { s = Slice(x, a, b, e) t = Slice(s, c, d, e) y = Slice(t, a, b, c) }"""
    )
    counts, _ = optimise(model, Repeat(SlicePass(), DeadCodePass()))
    assert counts == {"Slice": 1}


def test_concat_of_a_whole_split_vanishes():
    model = parse(
        """g (float[N,6] x) => (y, z) { a, b = Split<axis=1,num_outputs=2>(x) c =
        Concat<axis=1>(a, b) y = Relu(c)
        d = Concat<axis=0>(x, x) z = Concat<axis=0>(d, x) }"""
    )
    counts, _ = optimise(model, ConcatPass(), DeadCodePass())
    assert counts == {"Relu": 1, "Concat": 1}


def test_equal_nodes_are_computed_once_across_bodies():
    model = parse(
        """g (float[N] x, bool c) => (float[N] y) {
        a = Exp(x)
        b = If (c) <then_branch = t () => (float[N] p) { q = Exp(x) p = Neg(q) },
                    else_branch = e () => (float[N] r) { s = Sqrt(x) u = Sqrt(x) r = Add(s, u) }>
        y = Add(a, b) }"""
    )
    counts, _ = optimise(model, CommonSubexpressionPass())
    assert counts == {"Exp": 1, "If": 1, "Neg": 1, "Sqrt": 1, "Add": 2}


def test_value_of_one_branch_is_not_used_in_the_other():
    model = parse(
        """g (float[N] x, bool c) => (float[N] y) {
        y = If (c) <then_branch = t () => (float[N] p) { q = Exp(x) p = Neg(q) },
                    else_branch = e () => (float[N] r) { s = Exp(x) r = Abs(s) }> }"""
    )
    counts, _ = optimise(model, CommonSubexpressionPass())
    assert counts["Exp"] == 2


@pytest.mark.parametrize("condition", [True, False])
def test_known_branch_is_inlined(condition):
    model = parse(
        """g (float[N] x, bool c) => (float[N] y, float[N] z) {
        a, z = If (c) <then_branch = t () => (float[N] p, float[N] v) { k =
        Constant<value_float=2.0>() p = Mul(x, k) v = Identity(x) },
                    else_branch = e () => (float[N] p, float[N] v) { q = Neg(x) p = Abs(q) v =
                    Relu(p) }>
        y = Add(a, x) }""",
        c=np.asarray(condition),
    )
    counts, _ = optimise(model, KnownBranchPass())
    assert "If" not in counts


LOOP = """g (float[N] x, int64 n) => (float[N] y{typed}) <bool t = {{1}}> {{
    y{outputs} = Loop (n, t, x) <body = b (int64 i, bool c, float[N] h) => (bool d, float[N]
        k{results}) {{
        d = Identity(c)
        e = Exp(x)
        f = Sigmoid(e)
        k = Add(h, f)
        {extra}
    }}> }}"""


def test_loop_invariant_work_leaves_the_loop():
    model = parse(LOOP.format(typed="", outputs="", results="", extra=""))
    optimise(model, LoopInvariantPass())
    assert [n.op_type for n in model.graph] == ["Exp", "Sigmoid", "Loop"]


def test_operators_that_can_fail_stay_in_the_loop():
    text = LOOP.format(typed="", outputs="", results="", extra="").replace(
        "e = Exp(x)", "j = Gather(x, far) e = Exp(j)"
    )
    text = text.replace("<bool t", "<int64[1] far = {100}, bool t").replace(
        "=> (float[N] y)", "=> (float[K] y)"
    )
    model = parse(text)
    _, _ = optimise(
        model, LoopInvariantPass(), feeds=[{"x": np.ones(1, np.float32), "n": np.asarray(0)}]
    )
    assert [n.op_type for n in model.graph] == ["Loop"]


@pytest.mark.parametrize("trips", [1, 3])
def test_short_loop_is_written_out(trips):
    model = parse(
        LOOP.format(
            typed=", float[T,N] s", outputs=", s", results=", float[N] r", extra="r = Neg(k)"
        ),
        n=np.asarray(trips),
    )
    counts, _ = optimise(model, UnrollPass())
    assert counts["Exp"] == trips
    assert "Loop" not in counts


def test_long_loop_stays():
    model = parse(LOOP.format(typed="", outputs="", results="", extra=""), n=np.asarray(50))
    counts, _ = optimise(model, UnrollPass())
    assert counts["Loop"] == 1


SEQUENCE = """g (float[N,4] x, int64 n) => (float[{out}] y, float[N,4] z) <bool t = {{1}}> {{
    q = SequenceEmpty<dtype=1>()
    z, r = Loop (n, t, x, q) <body = b (int64 i, bool c, float[N,4] h, seq(float[N,4]) s) =>
        (bool d, float[N,4] k, seq(float[N,4]) u) {{
        d = Identity(c)
        k = Tanh(h)
        {append}
    }}>
    y = ConcatFromSequence<{how}>(r) }}"""


@pytest.mark.parametrize(
    "how", ["axis=0, new_axis=1", "axis=-1, new_axis=1", "axis=1, new_axis=1"]
)
def test_appended_sequence_becomes_scan_output(how):
    model = parse(SEQUENCE.format(append="u = SequenceInsert(s, k)", how=how, out="A,B,C"))
    feeds = [{"x": np.ones((2, 4), np.float32), "n": np.asarray(n)} for n in (1, 4)]
    counts, _ = optimise(model, SequenceToScanPass(), DeadCodePass(), feeds=feeds)
    assert "SequenceInsert" not in counts
    assert "SequenceEmpty" not in counts


def test_sequence_of_items_of_dynamic_size_is_joined_as_before():
    model = parse(SEQUENCE.format(append="u = SequenceInsert(s, k)", how="axis=0", out="A,B"))
    feeds = [{"x": np.ones((2, 4), np.float32), "n": np.asarray(3)}]
    counts, report = optimise(model, SequenceToScanPass(), feeds=feeds)
    assert counts["SequenceInsert"] == 1
    assert reasons(report) == {"the items differ in size"}


def test_sequence_of_items_of_one_size_is_joined():
    text = SEQUENCE.format(append="u = SequenceInsert(s, k)", how="axis=1", out="A,B").replace(
        "[N,4]", "[3,4]"
    )
    model = parse(text)
    feeds = [{"x": np.ones((3, 4), np.float32), "n": np.asarray(n)} for n in (1, 4)]
    counts, _ = optimise(model, SequenceToScanPass(), DeadCodePass(), feeds=feeds)
    assert "SequenceInsert" not in counts


def test_unread_results_of_branches_and_loops_are_not_computed():
    model = parse(
        """g (float[N] x, bool c, int64 n) => (float[N] y, float[N] w) <bool t = {1}> {
        a, y = If (c) <then_branch = p () => (float[N] p1, float[N] p2) { p1 = Exp(x) p2 =
        Neg(x) },
                       else_branch = q () => (float[N] q1, float[N] q2) { q1 = Sqrt(x) q2 =
                       Abs(x) }>
        u, w, s, r = Loop (n, t, x, x) <body = b (int64 i, bool k, float[N] h, float[N] g1) =>
        (bool d, float[N] o, float[N] v, float[N] s1, float[N] r1) {
            d = Identity(k) o = Sin(x) v = Tanh(g1) s1 = Cos(v) r1 = Relu(v) }> }"""
    )
    counts, _ = optimise(model, DeadCodePass())
    assert counts == {"If": 1, "Neg": 1, "Abs": 1, "Loop": 1, "Identity": 1, "Tanh": 1}


def test_equal_initializers_become_one():
    weight = np.arange(6, dtype=np.float32).reshape(2, 3)
    model = parse(
        """g (float[N,2] x, float[2,3] a, float[2,3] b, float[3,2] c) => (y) { p = MatMul(x, a)
        q = MatMul(x, b) r = MatMul(p, c) s = MatMul(q, c) y = Sub(r, s) }""",
        a=weight, b=weight.copy(), c=weight.reshape(3, 2),
    )  # fmt: skip
    optimise(model, DeduplicateInitializersPass())
    assert len(model.graph.initializers) == 2


def test_passes_reach_functions_and_nested_bodies():
    text = """g (float[N] x, int64 n) => (float[N] y) <bool t = {1}> {
        y = Loop (n, t, x) <body = b (int64 i, bool c, float[N] h) => (bool d, float[N] k) {
            d = Identity(c)
            j = Identity(h)
            k = If (c) <then_branch = p () => (float[N] p1) { m = Dropout(j) p1 = local.twice(m) },
                        else_branch = q () => (float[N] q1) { o = Cast<to=1>(j) q1 = Neg(o) }>
        }> }
        <domain: "local", opset_import: ["" : 20]> twice (a) => (b) { e = Identity(a) b = Add(e,
        e) }"""
    header = '<ir_version: 10, opset_import: ["" : 20, "local" : 1]>'
    import onnx.parser

    model = ir.from_proto(
        onnx.shape_inference.infer_shapes(onnx.parser.parse_model(header + text))
    )
    counts, _ = optimise(
        model, NoOpPass(), feeds=[{"x": np.ones(2, np.float32), "n": np.asarray(2)}]
    )
    assert counts == {"Loop": 1, "Identity": 1, "If": 1, "local.twice": 1, "Neg": 1, "Add": 1}


EINSUMS = [
    ("bij,bjk->bik", "float[B,3,4] x, float[B,4,5] y", {"MatMul": 1}),
    ("bij,bkj->bik", "float[B,3,4] x, float[B,5,4] y", {"Transpose": 1, "MatMul": 1}),
    ("abc,cde->abde", "float[B,S,6] x, float[6,2,3] y", {"Reshape": 2, "MatMul": 1}),
    ("abcd,cde->abe", "float[B,S,2,3] x, float[2,3,5] y", {"Reshape": 2, "MatMul": 1}),
    ("aecd,abcd->acbe", "float[B,S,2,3] x, float[B,M,2,3] y", {"Transpose": 2, "MatMul": 1}),
    ("ij,jk->ki", "float[N,4] x, float[4,5] y", {"Transpose": 2, "MatMul": 1}),
]


@pytest.mark.parametrize(("equation", "types", "left"), EINSUMS)
def test_sums_of_two_operands_become_products(equation, types, left):
    model = parse(f'g ({types}) => (z) {{ z = Einsum<equation="{equation}">(x, y) }}')
    counts, _ = optimise(model, EinsumPass())
    assert counts == left


@pytest.mark.parametrize(
    ("equation", "types"),
    [
        ("ij,kl->ik", "float[N,4] x, float[3,5] y"),
        ("ij,ij->ij", "float[N,4] x, float[N,4] y"),
        ("ii,ij->j", "float[4,4] x, float[4,5] y"),
        ("...ij,jk->...ik", "float[N,3,4] x, float[4,5] y"),
        ("ij,kl->ijkl", "float[N,4] x, float[3,5] y"),
    ],
)
def test_other_sums_stay(equation, types):
    model = parse(f'g ({types}) => (z) {{ z = Einsum<equation="{equation}">(x, y) }}')
    counts, _ = optimise(model, EinsumPass())
    assert counts == {"Einsum": 1}


@pytest.mark.parametrize(
    "nodes",
    [
        "a = Transpose<perm=[0,2,1]>(x) b = Relu(a) y = Transpose<perm=[0,2,1]>(b)",
        "a = Transpose<perm=[1,2,0]>(x) b = Transpose<perm=[1,2,0]>(z) c = Add(a, b) d = Tanh(c) "
        "y = Transpose<perm=[2,0,1]>(d)",
    ],
)
def test_transposes_meet_over_what_is_between(nodes):
    model = parse(f"g (float[B,3,4] x, float[B,3,4] z) => (y) {{ {nodes} }}")
    counts, _ = optimise(model, Repeat(TransposeOrderPass(), RearrangementPass()))
    assert "Transpose" not in counts


def test_transposes_stay_where_others_read_what_is_between():
    model = parse(
        "g (float[B,3,4] x) => (y, z) { a = Transpose<perm=[0,2,1]>(x) b = Relu(a) "
        "y = Transpose<perm=[0,2,1]>(b) z = Neg(b) }"
    )
    counts, _ = optimise(model, TransposeOrderPass())
    assert counts == {"Transpose": 2, "Relu": 1, "Neg": 1}


def test_onnx_simplifier_says_what_it_still_finds():
    weight = np.ones((64, 64, 3, 3), np.float32)
    model = parse(
        "g (float[1,64,8,8] x, float[64,64,3,3] w, float[64] s, float[64] b, float[64] m, "
        "float[64] v) => (y) { c = Conv(x, w) n = Identity(c) p = Transpose<perm=[0,1,3,2]>(n) "
        "q = Transpose<perm=[0,1,3,2]>(p) y = Add(q, s1) }".replace("s1", "q"),
        **{k: np.ones(64, np.float32) for k in "sbmv"},
        w=weight,
    )
    before = model.graph.initializers["w"].const_value
    step = OnnxSimplifierPass()
    counts, report = optimise(model, step, rtol=1e-3, atol=1e-4)
    assert step.found == {"Identity": 1, "Transpose": 2}
    assert counts == {"Conv": 1, "Add": 1}
    assert report.steps["OnnxSimplifier"].rewrites == 3
    assert model.graph.initializers["w"].const_value is before  # no copy
    again = OnnxSimplifierPass()
    assert not again(model).modified
    assert again.found == {}


def test_onnx_simplifier_that_fails_changes_nothing(monkeypatch):
    def fail(*_args, **_options):
        raise RuntimeError("it is broken")

    monkeypatch.setattr("onnxsim.simplify", fail)
    model = parse("g (float[2] x) => (y) { i = Identity(x) y = Relu(i) }")
    counts, report = optimise(model, OnnxSimplifierPass())
    assert counts == {"Identity": 1, "Relu": 1}
    assert reasons(report) == {"it failed: it is broken"}
