"""Old models are written anew, and what old operators meant stays."""

import numpy as np
import onnx_ir as ir
import pytest

import bridge
from optim_passes.opsets import RaiseOpsetPass
from optim_passes.pipelines import CPU, CUDA, PORTABLE
from tests.optim_passes.running import check_same, feed_for, ops, optimise, parse, reasons

RNG = np.random.default_rng(0)
X = "g (float[N,4,6] x) => (y) "
IMAGE = "g (float[N,4,6,6] x) => (y) "


@pytest.mark.parametrize(
    ("opset", "text"),
    [
        (12, X + "{ u = Unsqueeze<axes=[0,-1]>(x) y = Squeeze<axes=[0]>(u) }"),
        (11, X + "{ y = ReduceSum<axes=[1], keepdims=0>(x) }"),
        (12, X + "{ y = ReduceMean<axes=[-1]>(x) }"),
        (11, X + "{ y = ReduceMax(x) }"),
        (11, X + "{ y = Softmax(x) }"),
        (11, X + "{ y = Softmax<axis=-1>(x) }"),
        (12, X + "{ y = LogSoftmax<axis=0>(x) }"),
        (12, X + "{ y = Hardmax<axis=1>(x) }"),
        (11, X + "{ a, b = Split<axis=2, split=[2,4]>(x) c = Neg(b) y = Concat<axis=2>(c, a) }"),
        (12, X + "{ a, b = Split<axis=-1>(x) y = Concat<axis=2>(b, a) }"),
        (11, X + "{ d = Dropout<ratio=0.3>(x) y = Neg(d) }"),
        (10, X + "{ y = Clip<min=-0.5, max=0.5>(x) }"),
        (9, X + "{ y = Clip<max=0.5>(x) }"),
        (10, X + "{ y = Pad<pads=[0,1,0,0,0,2], value=1.5>(x) }"),
        (9, X + '{ y = Pad<mode="reflect", pads=[0,1,0,0,0,2]>(x) }'),
        (9, X + "{ y = Slice<axes=[2,1], starts=[1,-3], ends=[-1,9000]>(x) }"),
        (9, X + "{ y = Slice<starts=[0,1], ends=[9000,3]>(x) }"),
        (9, X + "{ y, i = TopK<k=2>(x) }"),
        (9, IMAGE + "<float[4] s = {1,1,2,2}> { y = Upsample(x, s) }"),
        (10, IMAGE + '<float[4] s = {1,1,2,1.5}> { y = Resize<mode="linear">(x, s) }'),
        (10, IMAGE + "<float[4] s = {1,1,0.5,2}> { y = Resize(x, s) }"),
        (9, X + "<int64[1,1,1] i = {2}, float[1,1,1] u = {7}> { y = Scatter<axis=1>(x, i, u) }"),
        (9, X + "{ f = Flatten<axis=2>(x) y = Relu(f) }"),
        (11, "g (float[N,4] x, bool c) => (y) { y = If(c) <then_branch = a () => (float[N,4,1] u) "
             "{ u = Unsqueeze<axes=[2]>(x) }, else_branch = b () => (float[N,4,1] v) "
             "{ w = Softmax(x) v = Unsqueeze<axes=[-1]>(w) }> }"),
    ],
)  # fmt: skip
def test_models_of_old_opsets_are_converted(opset, text):
    counts, report = optimise(parse(text, opset=opset), RaiseOpsetPass(23))
    assert not report.refusals
    assert counts.get("Softmax", 0) + counts.get("Resize", 0) < 2


@pytest.mark.parametrize("pipeline", [CPU, PORTABLE, CUDA], ids=["cpu", "portable", "cuda"])
def test_models_of_old_opsets_are_optimised(pipeline):
    """Passes write operators as they are since opset 13: a model of opset 11 has to get there."""
    text = X + (
        "<int64 three = {3}, int64 zero = {0}> { s = Shape(x) n = Gather<axis=0>(s, zero) "
        "u = Unsqueeze<axes=[0]>(n) m = Constant<value = int64[1] {-1}>() t = Concat<axis=0>(u, m) "
        "r = Reshape(x, t) k = Constant<value = bool {1}>() c = Identity(k) "
        "h = Loop(three, c, r) <body = b (int64 i, bool go, float[N,24] a) => (bool on, float[N,24] z, "
        "float[N,24] e) { on = Identity(go) z = Tanh(a) e = Relu(z) }> y = Unsqueeze<axes=[1]>(h#0) }"
    ).replace("h = Loop", "h, rows = Loop").replace("h#0", "h")
    counts, _ = optimise(parse(text.replace("=> (y)", "=> (y, rows)"), opset=11), *pipeline)
    assert "Loop" not in counts


def test_what_old_operators_did_beside_is_refused():
    model = parse(X + "{ y, m = Dropout<ratio=0.5>(x) }".replace("=> (y)", "=> (y, m)"), opset=11)
    model.graph.outputs.append(model.graph.node(0).outputs[1])
    _, report = optimise(model, RaiseOpsetPass(23))
    assert reasons(report) == {"the mask of Dropout had another type"}


def old_weights():
    """A convolution and a norm as IR version 3 has them: every weight is an input, too."""
    text = (
        "g (float[N,3,8,8] x, float[4,3,3,3] w, float[4] a, float[4] b, float[4] m, float[4] v) => (y) "
        "{ c = Conv(x, w) n = BatchNormalization(c, a, b, m, v) y = Relu(n) }"
    )
    shapes = {"w": (4, 3, 3, 3)} | dict.fromkeys("abmv", (4,))
    weights = {k: np.abs(RNG.standard_normal(s)).astype(np.float32) for k, s in shapes.items()}
    model = parse(text, opset=9, **weights)
    model.graph.inputs.extend(model.graph.initializers[n] for n in weights)
    return model


def test_weights_that_are_listed_as_inputs_are_folded_where_they_cannot_be_given():
    model = old_weights()
    model.ir_version = 3
    program = bridge.optimize(ir.to_proto(model))
    assert ops(program.model) == {"microsoft.FusedConv": 1}
    assert [v.name for v in program.model.graph.inputs] == ["x"]
    assert not program.report.rolled_back
    assert program.report.verified
    assert all(r.passed for r in program.report.verified)


def test_weights_that_may_be_given_stay_inputs_and_are_told():
    model = old_weights()
    program = bridge.optimize(ir.to_proto(model))
    assert [v.name for v in program.model.graph.inputs] == ["x", "w", "a", "b", "m", "v"]
    assert "BatchNormalization" in ops(program.model)
    assert any("5 inputs have a default (first: 'w')" in w for w in program.report.warnings)
    feed = feed_for(model, {"N": 2}, 1)
    feed["v"] = np.abs(feed["v"])
    check_same(model, program.model, [feed], rtol=1e-4, atol=1e-5)
