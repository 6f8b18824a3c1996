import numpy as np
import pytest

from optim_passes.fusion.batch_norm import BatchNormPass
from optim_passes.fusion.convolution import ConvActivationPass, ConvPadPass
from optim_passes.fusion.group_norm import ChannelAffinePass, GroupNormPass
from optim_passes.fusion.parallel_convolutions import ParallelConvPass
from optim_passes.fusion.scaling import LayerScalePass
from optim_passes.pipeline import run
from optim_passes.pipelines import CPU
from optim_passes.simplify.dead_code import DeadCodePass
from optim_passes.simplify.inference import InferShapesPass
from optim_passes.simplify.noops import NoOpPass
from optim_passes.values import constant
from tests.optim_passes.running import ops, optimise, parse, reasons, since_1_28

RNG = np.random.default_rng(0)


def weights(*shape):
    return RNG.standard_normal(shape).astype(np.float32) * 0.3


def statistics(channels):
    return {
        "s": weights(channels) + 1,
        "o": weights(channels),
        "m": weights(channels),
        "v": np.abs(weights(channels)) + 0.1,
    }


STATISTICS = "float[{0}] s, float[{0}] o, float[{0}] m, float[{0}] v"


@pytest.mark.parametrize(
    ("layer", "shape", "weight", "bias"),
    [
        ("Conv<pads=[1,1,1,1]>(x, w, b)", "N,3,H,W", (4, 3, 3, 3), 4),
        ("Conv<group=3>(x, w)", "N,3,H,W", (6, 1, 2, 2), 6),
        ("ConvTranspose<strides=[2,2]>(x, w, b)", "N,3,H,W", (3, 4, 2, 2), 4),
        ("ConvTranspose<group=2>(x, w)", "N,4,H,W", (4, 3, 2, 2), 6),
        ("Gemm<transB=1, alpha=0.5, beta=2.0>(x, w, b)", "N,3", (4, 3), 4),
        ("Gemm(x, w)", "N,3", (3, 4), 4),
        ("MatMul(x, w)", "N,3", (3, 4), 4),
    ],
)
def test_batch_norm_goes_into_the_layer_before(layer, shape, weight, bias):
    model = parse(
        f"g (float[{shape}] x, float[{','.join(map(str, weight))}] w, float[{bias}] b, "
        f"{STATISTICS.format(bias)}) => (y) "
        f"{{ a = {layer} y = BatchNormalization<epsilon=0.01>(a, s, o, m, v) }}",
        w=weights(*weight),
        b=weights(bias),
        **statistics(bias),
    )
    counts, _ = optimise(model, BatchNormPass(), rtol=1e-4, atol=1e-5)
    assert "BatchNormalization" not in counts


@pytest.mark.parametrize(
    ("layer", "weight"),
    [
        ("MatMul(n, w)", (4, 6)),
        ("Gemm<transB=1, alpha=0.5, beta=2.0>(n, w, b)", (6, 4)),
        ("Gemm(n, w)", (4, 6)),
    ],
)
def test_batch_norm_goes_into_the_product_behind(layer, weight):
    model = parse(
        f"g (float[N,4] x, float[{','.join(map(str, weight))}] w, float[6] b, "
        f"{STATISTICS.format(4)}) => (y) {{ n = BatchNormalization(x, s, o, m, v) y = {layer} }}",
        w=weights(*weight),
        b=weights(6),
        **statistics(4),
    )
    counts, report = optimise(model, BatchNormPass(), DeadCodePass(), rtol=1e-4, atol=1e-5)
    assert counts == {"Gemm": 1}
    assert not report.refusals


@pytest.mark.parametrize(
    ("nodes", "outputs"),
    [
        ("n = BatchNormalization(x, s, o, m, v) y = MatMul(n, w)", "y, n"),
        ("n = BatchNormalization(x, s, o, m, v) y = Gemm<transA=1>(n, d)", "y"),
        ("n = BatchNormalization(x, s, o, m, v) y = MatMul(n, d)", "y"),
    ],
)
def test_batch_norm_whose_values_are_read_elsewhere_stays(nodes, outputs):
    model = parse(
        f"g (float[4,4] x, float[4,6] w, float[4,4] d, {STATISTICS.format(4)}) => ({outputs}) "
        f"{{ {nodes} }}",
        w=weights(4, 6),
        **statistics(4),
    )
    counts, _ = optimise(model, BatchNormPass(), rtol=1e-4, atol=1e-5)
    assert "BatchNormalization" in counts


def test_batch_norm_goes_into_a_product_with_bias():
    model = parse(
        f"g (float[N,3] x, float[3,4] w, float[4] b, {STATISTICS.format(4)}) => (y) "
        "{ a = MatMul(x, w) c = Add(b, a) y = BatchNormalization(c, s, o, m, v) }",
        w=weights(3, 4),
        b=weights(4),
        **statistics(4),
    )
    counts, _ = optimise(model, BatchNormPass(), rtol=1e-4, atol=1e-5)
    assert counts == {"MatMul": 1, "Add": 1}


def test_batch_norm_goes_into_the_convolution_behind():
    text = (
        f"g (float[N,3,H,W] x, float[4,3,2,2] w, {STATISTICS.format(3)}) => (y) "
        "{{ a = BatchNormalization(x, s, o, m, v) y = Conv<{0}>(a, w) }}"
    )
    constants = {"w": weights(4, 3, 2, 2), **statistics(3)}
    model = parse(text.format("strides=[1,1]"), **constants)
    counts, _ = optimise(model, BatchNormPass(), rtol=1e-4, atol=1e-5)
    assert counts == {"Conv": 1}
    model = parse(text.format("pads=[1,1,1,1]"), **constants)  # the padding is not shifted
    counts, report = optimise(model, BatchNormPass())
    assert counts == {"Conv": 1, "BatchNormalization": 1}
    assert reasons(report) == {"no convolution or matrix product is beside it"}


def test_shared_weights_are_left_to_the_others():
    model = parse(
        f"g (float[N,3,H,W] x, float[3,3,1,1] w, {STATISTICS.format(3)}) => (y) "
        "{ a = Conv(x, w) b = BatchNormalization(a, s, o, m, v) c = Conv(b, w) "
        "y = BatchNormalization(c, o, s, m, v) }",
        w=weights(3, 3, 1, 1),
        **statistics(3),
    )
    counts, _ = optimise(model, BatchNormPass(), rtol=1e-4, atol=1e-5)
    assert counts == {"Conv": 2}


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        ("a = Conv(x, w) y = BatchNormalization(a, s, o, m, v) z = Relu(a)", "another use"),
        ("a = Conv(x, d) y = BatchNormalization(a, s, o, m, v) z = Relu(y)", "not constant"),
        ("a = Conv(x, w) y = BatchNormalization(a, s, k, m, v) z = Relu(y)", "not constant"),
    ],
)
def test_batch_norm_is_refused(nodes, reason):
    model = parse(
        f"g (float[N,3,H,W] x, float[3,3,1,1] d, float[3] k, float[3,3,1,1] w, "
        f"{STATISTICS.format(3)}) => (y, z) {{ {nodes} }}",
        w=weights(3, 3, 1, 1),
        **statistics(3),
    )
    counts, report = optimise(model, BatchNormPass(), rtol=1e-4, atol=1e-5)
    assert counts["BatchNormalization"] == 1
    (told,) = reasons(report)
    assert reason in told


def test_batch_norm_is_folded_in_a_branch():
    model = parse(
        f"g (float[N,3,H,W] x, bool c, float[3,3,1,1] w, {STATISTICS.format(3)}) "
        "=> (float[N,3,H,W] y) { y = If (c) <then_branch = t () => (float[N,3,H,W] p) "
        "{ a = Conv(x, w) p = BatchNormalization(a, s, o, m, v) }, "
        "else_branch = e () => (float[N,3,H,W] q) { q = Neg(x) }> }",
        w=weights(3, 3, 1, 1),
        **statistics(3),
    )
    counts, _ = optimise(model, BatchNormPass(), rtol=1e-4, atol=1e-5)
    assert counts == {"If": 1, "Conv": 1, "Neg": 1}


@pytest.mark.parametrize(
    "nodes",
    [
        "a = MatMul(x, w) b = Add(a, c) y = Mul(b, g)",
        "a = MatMul(x, w) y = Mul(two, a)",
        "t = Transpose<perm=[1,0]>(w) a = MatMul(x, t) b = Add(c, a) y = Div(b, g)",
        "a = MatMul(x, w) b = Transpose<perm=[0,2,1]>(a) y = Mul(b, column)",
    ],
)
def test_scale_goes_into_the_product(nodes):
    model = parse(
        "g (float[N,S,4] x, float[4,4] w, float[4] c, float[4] g, float two, float[4,1] column) "
        f"=> (y) {{ {nodes} }}",
        w=weights(4, 4),
        c=weights(4),
        g=weights(4) + 2,
        two=np.float32(2),
        column=weights(4, 1),
    )
    counts, _ = optimise(model, LayerScalePass(), rtol=1e-4, atol=1e-5)
    assert not counts.keys() & {"Mul", "Div"}


@pytest.mark.parametrize("nodes", ["y = Mul(a, g)", "y = Add(g, a)", "y = Sub(a, g)"])
def test_scale_and_shift_go_into_the_convolution(nodes):
    model = parse(
        f"g (float[N,3,H,W] x, float[5,3,2,2] w, float[5,1,1] g) => (y) "
        f"{{ a = Conv(x, w) {nodes} }}",
        w=weights(5, 3, 2, 2),
        g=weights(5, 1, 1),
    )
    counts, _ = optimise(model, LayerScalePass(), rtol=1e-4, atol=1e-5)
    assert counts == {"Conv": 1}


def test_scale_of_rows_stays():
    model = parse(
        "g (float[N,4,4] x, float[4,4] w, float[4,1] g) => (y) { a = MatMul(x, w) y = Mul(a, g) }",
        w=weights(4, 4),
        g=weights(4, 1),
    )
    counts, _ = optimise(model, LayerScalePass())
    assert counts == {"MatMul": 1, "Mul": 1}


def test_scale_of_a_number_stays():
    model = parse(
        "g (float[4] x, float[4] w, float two) => (y) { a = MatMul(x, w) y = Mul(a, two) }",
        w=weights(4),
        two=np.float32(2),
    )
    counts, _ = optimise(model, LayerScalePass())
    assert counts == {"MatMul": 1, "Mul": 1}


ACTIVATIONS = (
    "Relu(a)",
    "Sigmoid(a)",
    "Tanh(a)",
    "LeakyRelu<alpha=0.2>(a)",
    "HardSigmoid<alpha=0.3>(a)",
    "Clip(a, low, high)",
    "Clip(a, low)",
)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_convolution_and_activation_become_one_node(activation):
    model = parse(
        "g (float[N,3,H,W] x, float[4,3,3,3] w) => (y) <float low = {0.1}, float high = {0.5}> "
        f"{{ a = Conv<pads=[1,1,1,1], strides=[2,2]>(x, w) y = {activation} }}",
        w=weights(4, 3, 3, 3),
    )
    counts, _ = optimise(model, ConvActivationPass(), rtol=1e-4, atol=1e-5)
    assert counts == {"microsoft.FusedConv": 1}


@since_1_28
def test_residual_joins_the_convolution_before_an_activation():
    model = parse(
        "g (float[N,3,H,W] x, float[3,3,3,3] w, float[3] b) => (float[N,3,H,W] y) "
        "{ a = Conv<pads=[1,1,1,1]>(x, w, b) c = Add(x, a) y = Relu(c) }",
        w=weights(3, 3, 3, 3),
        b=weights(3),
    )
    counts, _ = optimise(model, InferShapesPass(), ConvActivationPass(), rtol=1e-4, atol=1e-5)
    assert counts == {"microsoft.FusedConv": 1}


LARGE = {"sizes": [{"N": 2, "H": 6, "W": 7}], "rtol": 1e-4, "atol": 1e-5}
PADDED = (
    "g (float[N,3,H,W] x, float[4,3,3,3] w) => (y) <int64[8] p = {0,0,1,0,0,0,2,1}, "
    "int64[8] c = {0,1,0,0,0,0,0,0}, int64[8] m = {0,0,-1,0,0,0,0,0}, float z = {0}, float o = {1}>"
)


@pytest.mark.parametrize(
    "nodes",
    [
        "a = Pad(x, p) y = Conv(a, w)",
        "a = Pad(x, p, z) y = Conv<pads=[1,1,1,1], strides=[2,2]>(a, w)",
        'a = Pad(x, p, z) b = Conv<auto_pad="VALID">(a, w) y = Relu(b)',
    ],
)
def test_zeros_around_an_image_are_padding(nodes):
    counts, _ = optimise(
        parse(f"{PADDED} {{ {nodes} }}", w=weights(4, 3, 3, 3)), ConvPadPass(), **LARGE
    )
    assert "Pad" not in counts


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        ("a = Pad(x, p, o) y = Conv(a, w)", None),
        ('a = Pad<mode="edge">(x, p) y = Conv(a, w)', None),
        ('a = Pad(x, p) y = Conv<auto_pad="SAME_UPPER">(a, w)', None),
        ("a = Pad(x, m) y = Conv(a, w)", "the image is cut"),
        ("s = Slice(x, z0, z2, z1) a = Pad(s, c) y = Conv(a, w)", "the batch or the channels are padded"),
    ],
)  # fmt: skip
def test_other_padding_stays(nodes, reason):
    text = PADDED.replace(
        "<int64[8] p", "<int64[1] z0 = {0}, int64[1] z1 = {1}, int64[1] z2 = {2}, int64[8] p"
    )
    counts, report = optimise(
        parse(f"{text} {{ {nodes} }}", w=weights(4, 3, 3, 3)), ConvPadPass(), **LARGE
    )
    assert "Pad" in counts
    assert reasons(report) == ({reason} if reason else set())


def test_residual_joins_a_convolution_that_has_a_bias():
    """Of one without, ONNX Runtime makes no convolution of its blocked layout."""
    model = parse(
        "g (float[N,3,H,W] x, float[3,3,3,3] w) => (float[N,3,H,W] y) "
        "{ a = Conv<pads=[1,1,1,1]>(x, w) c = Add(x, a) y = Relu(c) }",
        w=weights(3, 3, 3, 3),
    )
    made, _ = run(model, (InferShapesPass(), ConvActivationPass()))
    (node,) = made.graph
    assert constant(node.inputs[2]).size == 3


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        ("y = Relu(a) z = Neg(a)", "the convolution's result has another use"),
        ("y = Clip(a, k) z = Neg(y)", "the activation's parameters are not constant"),
    ],
)
def test_activation_is_refused(nodes, reason):
    model = parse(
        f"g (float[N,3,H,W] x, float k, float[3,3,1,1] w) => (y, z) {{ a = Conv(x, w) {nodes} }}",
        w=weights(3, 3, 1, 1),
    )
    counts, report = optimise(model, ConvActivationPass(), rtol=1e-4, atol=1e-5)
    assert counts["Conv"] == 1
    assert reasons(report) == {reason}


def test_float64_convolution_has_no_fused_kernel():
    model = parse(
        "g (double[N,3,H,W] x, double[3,3,1,1] w) => (y) { a = Conv(x, w) y = Relu(a) }",
        w=weights(3, 3, 1, 1).astype(np.float64),
    )
    from optim_passes.pipeline import run

    _, report = run(model, [ConvActivationPass()])
    assert reasons(report) == {"the dtype is DOUBLE"}


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_group_norm_becomes_instance_norm(groups):
    model = parse(
        f"g (float[N,4,6,2] x, float[4] s, float[4] b) => (y) "
        f"{{ y = GroupNormalization<num_groups={groups}, epsilon=0.01>(x, s, b) }}",
        opset=21,
        s=weights(4),
        b=weights(4),
    )
    counts, _ = optimise(model, GroupNormPass(), rtol=1e-4, atol=1e-5)
    assert counts == {"Reshape": 2, "InstanceNormalization": 1, "BatchNormalization": 1}


def test_scale_and_shift_of_channels_become_one_node():
    model = parse(
        "g (float[N,4,H,W] x, float[4,1,1] s, float[1,4,1,1] b) => (y) "
        "{ a = Mul(s, x) y = Add(a, b) }",
        s=weights(4, 1, 1),
        b=weights(1, 4, 1, 1),
    )
    counts, _ = optimise(model, NoOpPass(), ChannelAffinePass(), rtol=1e-4, atol=1e-5)
    assert counts == {"BatchNormalization": 1}


BRANCHES = {
    "w": (6, 6, 3, 3), "one": (6, 6, 1, 1), "deep": (6, 1, 3, 3), "deep1": (6, 1, 1, 1),
    "deep5": (6, 1, 5, 5), "half": (6, 3, 3, 3), "wide": (6, 6, 1, 3), "high": (6, 6, 3, 1),
    "b": (6,), "c": (6,),
}  # fmt: skip


def branches(nodes):
    """Branches over one image of six channels."""
    types = ", ".join(f"float[{','.join(map(str, s))}] {n}" for n, s in BRANCHES.items())
    return parse(
        f"g (float[N,6,H,W] x, {types}, {STATISTICS.format(6)}) => (y) {{ {nodes} }}",
        **{name: weights(*shape) for name, shape in BRANCHES.items()},
        **statistics(6),
    )


@pytest.mark.parametrize(
    "nodes",
    [
        "p = Conv<pads=[1,1,1,1]>(x, w, b) q = Conv(x, one, c) y = Add(p, q)",
        "p = Conv<pads=[1,1,1,1]>(x, w) q = Conv(x, one, c) y = Sub(q, p)",
        "p = Conv<pads=[1,1,1,1],strides=[2,2]>(x, w, b) q = Conv<strides=[2,2]>(x, one) y = Add(q, p)",
        "p = Conv<pads=[1,1,1,1]>(x, w, b) q = BatchNormalization(x, s, o, m, v) y = Add(p, q)",
        "p = Conv<pads=[1,1,1,1],group=2>(x, half) q = BatchNormalization(x, s, o, m, v) y = Add(q, p)",
        "p = Conv<pads=[1,1,1,1],group=6>(x, deep) q = Conv<group=6>(x, deep1, b) r = Add(p, q) "
        "y = Sub(r, x)",
        "p = Conv<pads=[2,2,2,2],group=6>(x, deep5) q = Conv<pads=[1,1,1,1],group=6>(x, deep, c) "
        "y = Sub(p, q)",
        "p = Conv<pads=[2,0,0,2]>(x, w) q = Conv(x, one) y = Add(p, q)",
        "p = Conv<pads=[0,1,0,1]>(x, wide) y = Add(p, p)",
    ],
)  # fmt: skip
def test_convolutions_of_one_image_become_one(nodes):
    passes = (InferShapesPass(), ParallelConvPass())
    counts, _ = optimise(branches(nodes), *passes, rtol=1e-4, atol=1e-5)
    assert counts == {"Conv": 1}


@pytest.mark.parametrize(
    "nodes",
    [
        "p = Conv<pads=[1,1,1,1]>(x, w) z = Relu(x) q = Conv(z, one) y = Add(p, q)",
        "p = Conv<pads=[1,1,1,1]>(x, w) q = Conv(x, one) r = Relu(q) t = Add(p, q) y = Add(t, r)",
        "p = Conv<pads=[2,2,2,2],dilations=[2,2]>(x, w) q = Conv(x, one) y = Add(p, q)",
        "p = Conv<pads=[1,1,1,1],group=6>(x, deep) q = Conv(x, one) y = Add(p, q)",
        "p = Conv<pads=[0,1,0,1]>(x, wide) q = Conv<pads=[1,0,1,0]>(x, high) y = Add(p, q)",
        "p = Conv<pads=[1,1,1,1]>(x, w) y = Add(p, x)",
        'p = Conv<auto_pad="SAME_UPPER">(x, w) q = Conv(x, one) y = Add(p, q)',
    ],
)
def test_other_branches_stay_apart(nodes):
    model = branches(nodes)
    before = ops(model)
    counts, _ = optimise(model, InferShapesPass(), ParallelConvPass(), rtol=1e-4, atol=1e-5)
    assert counts == before


def test_a_network_of_branches_becomes_a_chain():
    block = (
        "a{0} = Conv<pads=[1,1,1,1]>({1}, w) b{0} = BatchNormalization(a{0}, s, o, m, v) "
        "c{0} = Conv({1}, one) d{0} = BatchNormalization(c{0}, o, s, m, v) "
        "e{0} = BatchNormalization({1}, s, o, m, v) f{0} = Add(b{0}, d{0}) g{0} = Add(f{0}, e{0}) "
    )
    model = branches(
        block.format(0, "x") + "r = Relu(g0) " + block.format(1, "r") + "y = Relu(g1)"
    )
    counts, _ = optimise(model, *CPU, rtol=1e-3, atol=1e-4)
    assert counts == {"microsoft.FusedConv": 2}


@pytest.mark.parametrize("product", ["MatMul(x, w)", "MatMul(x, t)"])
def test_batch_norm_goes_through_the_rows_that_a_product_was_flattened_to(product):
    model = parse(
        f"g (float[N,S,3] x, float[3,4] w, float[4,3] u, {STATISTICS.format(4)}, int64[2] flat) "
        f"=> (y) {{ t = Transpose<perm=[1,0]>(u) a = {product} r = Reshape(a, flat) "
        "y = BatchNormalization(r, s, o, m, v) }",
        w=weights(3, 4),
        u=weights(4, 3),
        flat=np.asarray([-1, 4]),
        **statistics(4),
    )
    counts, _ = optimise(model, InferShapesPass(), BatchNormPass(), rtol=1e-4, atol=1e-5)
    assert "BatchNormalization" not in counts


def test_batch_norm_of_other_columns_than_the_product_s_is_left():
    model = parse(
        f"g (float[N,2,2] x, float[2,2] w, {STATISTICS.format(4)}, int64[2] flat) => (y) "
        "{ a = MatMul(x, w) r = Reshape(a, flat) y = BatchNormalization(r, s, o, m, v) }",
        w=weights(2, 2),
        flat=np.asarray([-1, 4]),
        **statistics(4),
    )
    counts, _ = optimise(model, InferShapesPass(), BatchNormPass())
    assert counts["BatchNormalization"] == 1
