"""What the quantization passes do to graphs, and what they leave alone."""

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.calibration import Calibrator
from optim_passes.pipeline import run
from optim_passes.quantization.blocks import (
    error_corrected,
    half_quadratic,
    least_error,
    round_to_nearest,
)
from optim_passes.quantization.channels import ChannelPaddingPass
from optim_passes.quantization.dynamic import DynamicQuantizationPass
from optim_passes.quantization.pipeline import BEFORE_STATIC, FINISH
from optim_passes.quantization.placement import thin_stem
from optim_passes.quantization.preparation import PlainOperatorsPass
from optim_passes.quantization.static import (
    StaticOptions,
    StaticQuantizationPass,
    observed_values,
)
from optim_passes.quantization.weight_only import WeightOptions, WeightQuantizationPass
from optim_passes.scopes import scopes
from tests.optim_passes.running import ops, optimise, parse, reasons, session

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _same_numbers():
    """Each test draws the same numbers whatever ran before it."""
    RNG.bit_generator.state = np.random.default_rng(0).bit_generator.state


def weights(*shape):
    return (RNG.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


def snr(a, b):  # in dB
    return 10 * np.log10((a.astype(float) ** 2).sum() / ((a - b) ** 2).sum())


def quantized(model, feeds, *, finish=True, options=None):
    """The static model, and its SNR on ``feeds``."""
    options = options or StaticOptions()
    prepared, _ = run(model.clone(), BEFORE_STATIC)
    names = [v.name for s in scopes(prepared) for v in observed_values(s, lambda _: True, options)]
    ranges = Calibrator(prepared, names).run(feeds).ranges("minmax")
    pass_ = StaticQuantizationPass(ranges, options=options)
    made, report = run(prepared.clone(), [pass_, *(FINISH if finish else ())])
    want, got = session(model, plain=True), session(made)
    quality = min(snr(want.run(None, f)[0], got.run(None, f)[0]) for f in feeds)
    return made, report, quality, pass_


def kernels(model, feed):
    """What ONNX Runtime runs, by operator."""
    import onnxruntime

    made = session(model)
    del made
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "model.onnx")
        options.optimized_model_filepath = path
        data = ir.to_proto(model).SerializeToString()
        onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        return ops(ir.load(path))


ACTIVATIONS = ("Relu", "HardSwish", "HardSigmoid", "Sigmoid", "LeakyRelu")


@pytest.mark.parametrize("scale", [0.001, 1.0, 30.0])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_between_convolutions_run_on_integers(activation, scale):
    model = parse(
        f"""g (float[N, 16, 8, 8] x, float[32, 16, 3, 3] a, float[32] b, float[16, 32, 1, 1] c)
            => (float[N, 16, 8, 8] y) {{
            h = Conv<pads = [1, 1, 1, 1]>(x, a, b)
            r = {activation}(h)
            y = Conv(r, c)
        }}""",
        a=weights(32, 16, 3, 3) * np.float32(scale), b=weights(32) * np.float32(scale),
        c=weights(16, 32, 1, 1),
    )  # fmt: skip
    feeds = [{"x": RNG.standard_normal((2, 16, 8, 8)).astype(np.float32)} for _ in range(3)]
    made, _, quality, _ = quantized(model, feeds)
    assert quality > 28
    found = kernels(made, feeds[0])
    assert (
        found["microsoft.QLinearConv" if "microsoft.QLinearConv" in found else "QLinearConv"] == 2
    )
    assert not {"Conv", "FusedConv", "HardSigmoid", "HardSwish"} & set(found)


def test_sums_pools_and_rearrangements_between_convolutions_run_on_integers():
    model = parse(
        """g (float[N, 16, 8, 8] x, float[16, 16, 1, 1] a, float[32, 32, 1, 1] c, float[32, 10] w)
            => (float[N, 10] y) {
            h = Conv(x, a)
            r = Relu(h)
            i = Conv(r, a)
            s = Add(i, r)
            j = Concat<axis = 1>(s, r)
            p = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(j)
            k = Conv(p, c)
            m = GlobalAveragePool(k)
            f = Flatten(m)
            y = MatMul(f, w)
        }""",
        a=weights(16, 16, 1, 1), c=weights(32, 32, 1, 1), w=weights(32, 10),
    )  # fmt: skip
    feeds = [{"x": RNG.standard_normal((2, 16, 8, 8)).astype(np.float32)} for _ in range(3)]
    made, _, quality, pass_ = quantized(model, feeds)
    assert quality > 25
    assert not {"Conv", "Add", "MaxPool", "Relu"} & set(kernels(made, feeds[0]))
    scales = {t.name: t.scale for t in pass_.tensors if t.kind == "activation"}
    assert scales["p"] == scales["j"]


@pytest.mark.parametrize("op_type", ["MatMul", "Gemm"])
def test_products_read_integers_and_return_real_numbers(op_type):
    model = parse(
        "g (float[N, 32] x, float[32, 16] w, float[16] b) => (float[N, 16] y) { "
        + ("h = MatMul(x, w) y = Add(h, b) }" if op_type == "MatMul" else "y = Gemm(x, w, b) }"),
        w=weights(32, 16), b=weights(16),
    )  # fmt: skip
    feeds = [{"x": RNG.standard_normal((9, 32)).astype(np.float32)} for _ in range(3)]
    made, _, quality, _ = quantized(model, feeds)
    assert quality > 35
    assert ops(made)["QuantizeLinear"] == 1
    assert "microsoft.QGemm" in kernels(made, feeds[0])


def test_a_value_without_a_range_stays_in_float_and_says_so():
    model = parse(
        "g (float[N, 8] x, float[8, 8] w) => (float[N, 8] y) { h = MatMul(x, w) y = MatMul(h, w) }",
        w=weights(8, 8),
    )
    made, report = run(model, [StaticQuantizationPass({"x": (-1.0, 1.0)})])
    assert ops(made)["QuantizeLinear"] == 1
    assert "its range was not calibrated" in reasons(report)


def test_a_channel_without_weights_keeps_its_bias():
    a = weights(16, 16, 1, 1)
    a[3] = 0
    b = weights(16)
    b[3] = 700.25
    model = parse(
        """g (float[N, 16, 4, 4] x, float[16, 16, 1, 1] a, float[16] b) => (float[N, 16, 4, 4] y) {
            y = Conv(x, a, b)
        }""",
        a=a, b=b,
    )  # fmt: skip
    feeds = [{"x": RNG.standard_normal((1, 16, 4, 4)).astype(np.float32)}]
    made, *_ = quantized(model, feeds)
    [y] = session(made).run(None, feeds[0])
    assert np.abs(y[:, 3] - 700.25).max() < 2 * 701 / 255


@pytest.mark.parametrize("channels", [24, 40, 72])
def test_depthwise_channels_are_filled_up_without_changing_results(channels):
    c = channels
    model = parse(
        f"""g (float[N, 8, 6, 6] x, float[{c}, 8, 1, 1] a, float[{c}] b, float[{c}, 1, 3, 3] d,
               float[4, {c}, 1, 1] e, float[{c}, 4, 1, 1] f, float[8, {c}, 1, 1] p)
            => (float[N, 8, 6, 6] y) {{
            h = Conv(x, a, b)
            r = HardSwish(h)
            i = Conv<group = {c}, pads = [1, 1, 1, 1]>(r, d)
            j = Relu(i)
            k = GlobalAveragePool(j)
            l = Conv(k, e)
            m = Conv(l, f)
            n = HardSigmoid(m)
            o = Mul(n, j)
            y = Conv(o, p)
        }}""",
        a=weights(c, 8, 1, 1), b=weights(c), d=weights(c, 1, 3, 3), e=weights(4, c, 1, 1),
        f=weights(c, 4, 1, 1), p=weights(8, c, 1, 1),
    )  # fmt: skip
    _, report = optimise(model, ChannelPaddingPass(), rtol=1e-4, atol=1e-5)
    assert report.steps["ChannelPadding"].rewrites == 1
    shapes = [v.const_value.shape.numpy() for v in model.graph.initializers.values() if v.uses()]
    assert all(s[0] % 16 == 0 for s in shapes if s[0] >= c)


def test_channels_that_leave_the_graph_are_left():
    model = parse(
        """g (float[N, 8, 6, 6] x, float[24, 8, 1, 1] a, float[24, 1, 3, 3] d)
            => (float[N, 24, 4, 4] y) {
            h = Conv(x, a)
            y = Conv<group = 24>(h, d)
        }""",
        a=weights(24, 8, 1, 1), d=weights(24, 1, 3, 3),
    )  # fmt: skip
    _, report = optimise(model, ChannelPaddingPass())
    assert "the channels leave the graph" in reasons(report)


def test_the_thin_stem_is_what_has_few_channels_at_the_input():
    model = parse(
        """g (float[N, 3, 8, 8] x, float[16, 3, 1, 1] a, float[16, 1, 3, 3] d, float[64, 16, 1, 1] c,
              float[16, 64, 1, 1] e) => (float[N, 16, 6, 6] y) {
            h = Conv(x, a)
            i = Conv<group = 16>(h, d)
            j = Conv(i, c)
            y = Conv(j, e)
        }""",
        a=weights(16, 3, 1, 1), d=weights(16, 1, 3, 3), c=weights(64, 16, 1, 1),
        e=weights(16, 64, 1, 1),
    )  # fmt: skip
    found = thin_stem(next(iter(scopes(model))))
    assert {n.outputs[0].name for n in found} == {"h", "i"}


def test_fused_operators_are_taken_apart_again():
    model = parse(
        """g (float[N, 4, 6, 6] x, float[4, 4, 1, 1] a, float[N, 4, 6, 6] z) => (float[N, 4, 6, 6] y) {
            h = com.microsoft.FusedConv<activation = "Clip", activation_params = [-0.5, 0.5]>(x, a)
            i = com.microsoft.FusedConv<activation = "LeakyRelu", activation_params = [0.2]>(h, a)
            y = com.microsoft.FusedMatMul<transB = 1, alpha = 2.0>(i, z)
        }""",
        a=weights(4, 4, 1, 1),
    )  # fmt: skip
    for value in ("h", "i"):
        made = next(v for n in model.graph for v in n.outputs if v.name == value)
        made.type, made.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(["N", 4, 6, 6])
    found, _ = optimise(model, PlainOperatorsPass())
    assert found == {"Conv": 2, "Clip": 1, "LeakyRelu": 1, "Transpose": 1, "MatMul": 1, "Mul": 1}


def test_products_of_one_value_share_its_integers():
    model = parse(
        """g (float[N, S, 32] x, float[32, 16] a, float[32, 16] b, float[16] c)
            => (float[N, S, 16] y, float[N, S, 16] z) {
            y = MatMul(x, a)
            h = MatMul(x, b)
            z = Add(h, c)
        }""",
        a=weights(32, 16), b=weights(32, 16), c=weights(16),
    )  # fmt: skip
    found, _ = optimise(model, DynamicQuantizationPass(), rtol=0.2, atol=0.2)
    assert found == {"DynamicQuantizeLinear": 1, "microsoft.MatMulIntegerToFloat": 2}


def test_products_of_products_are_quantized():
    model = parse(
        "g (float[N, 32] x, float[32, 32] a) => (float[N, 32] z, float[N, 32] u) "
        "{ y = MatMul(x, a) z = MatMul(y, a) u = MatMul(y, a) }",
        a=weights(32, 32),
    )
    found, _ = optimise(model, DynamicQuantizationPass(), rtol=0.3, atol=0.3)
    assert found["microsoft.DynamicQuantizeMatMul"] == 1
    assert found["microsoft.MatMulIntegerToFloat"] == 2


@pytest.mark.parametrize("directions", [1, 2])
def test_lstms_are_quantized_and_small_grus_say_why_not(directions):
    way = "bidirectional" if directions == 2 else "forward"
    model = parse(
        f"""g (float[S, N, 16] x, float[{directions}, 32, 16] w, float[{directions}, 32, 8] r,
               float[{directions}, 24, 16] v, float[{directions}, 24, 8] q)
            => (float[S, {directions}, N, 8] y, float[S, {directions}, N, 8] z) {{
            y = LSTM<hidden_size = 8, direction = "{way}">(x, w, r)
            z = GRU<hidden_size = 8, direction = "{way}">(x, v, q)
        }}""",
        w=weights(directions, 32, 16), r=weights(directions, 32, 8),
        v=weights(directions, 24, 16), q=weights(directions, 24, 8),
    )  # fmt: skip
    found, report = optimise(model, DynamicQuantizationPass(), rtol=0.1, atol=0.05)
    assert found == {"microsoft.DynamicQuantizeLSTM": 1, "GRU": 1}
    assert "its layout has no form in integers" in reasons(report)


@pytest.mark.parametrize("start", [False, True])
@pytest.mark.parametrize("way", ["forward", "reverse", "bidirectional"])
def test_large_grus_become_scans_with_products_of_integers(way, start):
    d, size = 1 + (way == "bidirectional"), 384
    h = "h" if start else ""
    model = parse(
        f"""g (float[S, N, 8] x, float[{d}, N, {size}] h, float[{d}, {3 * size}, 8] w,
               float[{d}, {3 * size}, {size}] r, float[{d}, {6 * size}] b)
            => (float[S, {d}, N, {size}] y, float[{d}, N, {size}] z) {{
            y, z = GRU<hidden_size = {size}, direction = "{way}", linear_before_reset = 1>
                (x, w, r, b, , {h})
        }}""",
        w=weights(d, 3 * size, 8), r=weights(d, 3 * size, size), b=weights(d, 6 * size),
    )  # fmt: skip
    feed = {"x": RNG.standard_normal((5, 2, 8)), "h": RNG.standard_normal((d, 2, size))}
    feed = {k: v.astype(np.float32) for k, v in feed.items()}
    made, report = run(model.clone(), [DynamicQuantizationPass()])
    assert report.steps["DynamicQuantization"].rewrites == 1
    assert ops(made)["Scan"] == d
    assert ops(made)["microsoft.DynamicQuantizeMatMul"] == 2 * d
    want = session(model).run(None, feed)
    got = session(made).run(None, feed)
    assert min(snr(a, b) for a, b in zip(want, got, strict=True)) > 28


@settings(deadline=None, max_examples=25)
@given(
    st.integers(1, 90), st.integers(1, 5), st.sampled_from([4, 8]), st.sampled_from([16, 32]),
    st.booleans(), st.sampled_from(["rtn", "mse", "hqq"]), st.booleans(),
)  # fmt: skip
def test_blocks_are_what_matmul_n_bits_computes_with(k, n, bits, size, symmetric, method, biased):
    rng = np.random.default_rng(k * 97 + n)
    w = rng.standard_normal((k, n)).astype(np.float32)
    text = "y = MatMul(x, w) }" if not biased else "h = MatMul(x, w) y = Add(h, b) }"
    model = parse(
        f"g (float[M, {k}] x, float[{k}, {n}] w, float[{n}] b) => (float[M, {n}] y) {{ {text}",
        w=w, b=np.arange(n, dtype=np.float32),
    )  # fmt: skip
    options = WeightOptions(
        bits=bits,
        block_size=size,
        symmetric=symmetric,
        method=method,
        accuracy_level=0,
        smallest=0,
    )
    made, _ = run(model, [WeightQuantizationPass(options)])
    assert ops(made) == {"microsoft.MatMulNBits": 1}
    functions = {"rtn": round_to_nearest, "mse": least_error, "hqq": half_quadratic}
    function = functions[method]
    real = function(w.T, bits, size, symmetric=symmetric).floats(k).T
    x = rng.standard_normal((3, k)).astype(np.float32)
    [got] = session(made).run(None, {"x": x})
    want = x @ real + (np.arange(n) if biased else 0)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_error_correction_beats_rounding_where_inputs_are_correlated():
    rng = np.random.default_rng(0)
    w = weights(64, 96)
    x = rng.standard_normal((500, 12)) @ rng.standard_normal((12, 96))
    x = (x + 0.1 * rng.standard_normal(x.shape)).astype(np.float32)
    moments = x.T @ x / len(x)
    want = x @ w.T
    rounded = round_to_nearest(w, 4, 32).floats(96)
    fitted = half_quadratic(w, 4, 32).floats(96)
    corrected = error_corrected(w, moments, 4, 32).floats(96)
    assert snr(w, fitted) > snr(w, rounded)
    assert snr(want, x @ corrected.T) > snr(want, x @ rounded.T) + 6


@pytest.mark.parametrize("symmetric", [False, True])
def test_searched_scales_are_better_in_every_block(symmetric):
    w = np.random.default_rng(0).standard_t(4, (64, 512)).astype(np.float32)
    w[0, :128] = 0
    errors = [
        ((f(w, 4, 128, symmetric=symmetric).floats(512) - w) ** 2).reshape(64, 4, 128).sum(-1)
        for f in (round_to_nearest, half_quadratic, least_error)
    ]
    assert (errors[2] <= errors[0] * 1.0001).all()
    assert errors[2].sum() < 0.97 * errors[1].sum()


def test_blocks_are_large_where_products_are():
    model = parse(
        "g (float[M, 512] x, float[512, 64] a, float[64, 64] b) => (float[M, 64] y)"
        "{ h = MatMul(x, a) y = MatMul(h, b) }",
        a=weights(512, 64), b=weights(64, 64),
    )  # fmt: skip
    made, _ = run(model, [WeightQuantizationPass()])
    sizes = [n.attributes["block_size"].as_int() for n in made.graph]
    assert sizes == [128, 32]


def test_inputs_that_are_always_zero_do_not_stop_error_correction():
    w = weights(8, 32)
    moments = np.zeros((32, 32), np.float32)
    assert np.isfinite(error_corrected(w, moments, 4, 16).floats(32)).all()


def test_embedding_rows_have_scales_of_their_own():
    table = weights(50, 16) * np.logspace(-3, 3, 50, dtype=np.float32)[:, None]
    model = parse(
        "g (int64[N, M] i, float[50, 16] t) => (float[N, M, 16] y) { y = Gather(t, i) }", t=table
    )
    made, _ = run(model, [WeightQuantizationPass(WeightOptions(smallest=0))])
    ids = np.arange(50).reshape(5, 10)
    [got] = session(made).run(None, {"i": ids})
    error = np.abs(got - table[ids]).max(-1)
    assert (error <= np.abs(table[ids]).max(-1) / 127 * 0.51).all()
    assert max(v.const_value.nbytes for v in made.graph.initializers.values() if v.uses()) == 800
