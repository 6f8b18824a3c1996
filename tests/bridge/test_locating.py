"""Locating: inside of control flow, in kernels, lowerings, fusions and scales."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch

import bridge
from bridge.parity.checking import check
from bridge.parity.relations import relation
from bridge.parity.surgery import cut, value_types
from bridge.runtime import Runtime
from exporters.pytorch.registry import lowers
from tests.bridge.graphs import graph
from tests.bridge.zoo import exported

FLOW = """g(float[N] x, int64 n, float[N] w) => (float[N] y, float[N] z)
<bool c = {1}, float[1] k = {2}, int64 three = {3}, float[1] half = {0.5}> {
    v = Mul(w, k)
    total = ReduceSum <keepdims = 0> (w)
    zero = CastLike(c, total)
    positive = Greater(total, zero)
    u = If(positive) <then_branch = t () => (float[N] a1) {
        s1 = Sin(v)
        a1 = Add(s1, x)
    }, else_branch = e () => (float[N] a2) { a2 = Neg(v) }>
    y = Loop(n, c, u) <body = b (int64 i, bool ci, float[N] a) => (bool co, float[N] ao) {
        co = Identity(ci)
        t = Mul(a, v)
        third = Equal(i, three)
        f = If(third) <then_branch = t2 () => (float[1] p) { p = Abs(k) },
                       else_branch = e2 () => (float[1] q) { q = Identity(k) }>
        r = Mul(t, half)
        ao = Add(r, f)
    }>
    z = Neg(y)
}"""
FEED = {"x": np.arange(4, dtype=np.float32) / 4, "n": np.array(6), "w": np.ones(4, np.float32)}


@pytest.mark.parametrize(
    ("right", "wrong", "op_type", "around"),
    [
        ("v = Mul(w, k)", "v = Add(w, k)", "Add", ()),
        ("z = Neg(y)", "z = Abs(y)", "Abs", ()),
        ("s1 = Sin(v)", "s1 = Cos(v)", "Cos", ("the then branch of If",)),
        ("r = Mul(t, half)", "r = Sub(t, half)", "Sub", ("iteration 0 of Loop",)),
        (
            "p = Abs(k)",
            "p = Neg(k)",
            "Neg",
            ("iteration 3 of Loop", "the then branch of If"),
        ),
    ],
)
def test_control_flow_is_stepped_into(right, wrong, op_type, around):
    report = check(graph(FLOW), bridge.Session(graph(FLOW.replace(right, wrong))), FEED)
    found = report.divergence
    assert found.op_type == op_type
    assert len(found.around) == len(around)
    for place, expected in zip(found.around, around, strict=True):
        assert place.startswith(expected)


def test_a_branch_that_is_not_taken_may_be_wrong():
    text = FLOW.replace("a2 = Neg(v)", "a2 = Abs(v)")
    assert check(graph(FLOW), bridge.Session(graph(text)), FEED).passed


def test_the_smallest_failing_part_reproduces(tmp_path):
    model, args, program = exported("encoder")
    planted = program.model.clone()
    for node in planted.graph:
        if node.op_type == "Softmax":
            node.attributes.add(ir.AttrInt64("axis", 2))
    report = check(model, bridge.Session(planted), args)
    folder = report.divergence.extract(tmp_path / "case")
    feed = dict(np.load(folder / "inputs.npz"))
    expected = dict(np.load(folder / "expected.npz"))
    session = bridge.load(folder / "model.onnx")
    assert len(list(session.source and ir.load(folder / "model.onnx").graph)) == 1
    got = session.run(feed)
    (name,) = expected
    assert got[name].shape == expected[name].shape
    assert np.abs(got[name] - expected[name]).max() > 0.01
    repaired = check(program.model, bridge.Session(planted), args)
    assert repaired.divergence.node == report.divergence.node


def test_module_and_line_are_named():
    model, args, program = exported("encoder")
    planted = program.model.clone()
    node = next(n for n in planted.graph if n.metadata_props.get("bridge.module") == "norm2")
    node.attributes.add(ir.AttrFloat32("epsilon", 0.5))
    report = check(model, bridge.Session(planted), args)
    assert report.divergence.module == "norm2"
    assert "zoo.py:" in report.divergence.source
    assert "Encoder.forward" in report.divergence.source
    assert "in module norm2" in str(report)
    assert report.to_dict()["divergence"]["module"] == "norm2"
    assert report.divergence.growth[-1][1] > report.divergence.growth[0][1]


def test_a_wrong_kernel_is_told_from_a_wrong_graph(monkeypatch):
    """A runtime whose Softmax is off: the graph is right, and ONNX's own implementation agrees."""
    source = Runtime._source

    def faulty(self, model, options):
        if self.settings.config.get("tests.faulty") and isinstance(model, ir.Model):
            model = _off_kernel(model, self.settings.config["tests.faulty"])
        return source(self, model, options)

    monkeypatch.setattr(Runtime, "_source", faulty)
    model, args, program = exported("resnet")
    session = bridge.Session(program, config={"tests.faulty": "Softmax"})
    report = check(model, session, args)
    assert report.divergence.op_type == "Softmax"
    assert any("the provider's kernel is wrong" in v for v in report.verdicts)


def _off_kernel(model, op_type):
    model = model.clone()
    for node in [n for n in model.graph if n.op_type == op_type]:
        value = node.outputs[0]
        factor = ir.Value(name="off", const_value=ir.tensor(np.float32(1.1), name="off"))
        model.graph.initializers.add(factor)
        raw = ir.Value(name=f"{value.name}/raw", type=value.type)
        scaled = ir.node("Mul", [raw, factor])
        name, last = value.name, scaled.outputs[0]
        value.replace_all_uses_with(last, replace_graph_outputs=True)
        value.name, last.name, last.type = raw.name, name, value.type
        scaled.replace_input_with(0, value)
        model.graph.insert_after(node, scaled)
    return model


def test_a_wrong_lowering_is_told_from_a_wrong_kernel():
    """The tracer makes the same wrong nodes again, so eager code is what proves them wrong."""

    @torch.library.custom_op("bridge_tests::twice", mutates_args=())
    def twice(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    @twice.register_fake
    def _(x):
        return torch.empty_like(x)

    @lowers(torch.ops.bridge_tests.twice)
    def wrong(op, /, x: ir.Value):
        return op.Add(op.Mul(x, 2.0), op.Mul(x, 0.5))

    def model(x):
        return torch.sin(torch.ops.bridge_tests.twice(x + 1))

    x = torch.randn(3, 4)
    report = check(model, bridge.export(model, x, verify=False), x)
    assert report.divergence.op_type == "Add"
    assert any(
        "(Mul, Mul, Add) do not compute what eager model computes" in v for v in report.verdicts
    )
    assert any("1.25 times the right value" in v for v in report.verdicts)
    assert ":" in report.divergence.source


def test_a_broken_fusion_is_found_by_the_values_that_survive(tmp_path):
    """A graph that a runtime or a pass has fused: the fused node keeps its result's name."""
    model, args, program = exported("encoder")
    path = tmp_path / "fused.onnx"
    bridge.Session(program, optimization="extended").with_settings(optimized_path=str(path))
    fused = ir.load(path)
    gelu = next(n for n in fused.graph if n.op_type == "BiasGelu")
    gelu.op_type, gelu.domain = "Add", ""  # the activation got lost
    report = check(model, bridge.Session(fused), args)
    assert report.divergence.node == gelu.name


def quantized(model, name, factor):
    """A weight as int8 behind a DequantizeLinear whose scale is off by a factor."""
    model = model.clone()
    value = model.graph.initializers[name]
    array = value.const_value.numpy()
    scale = np.abs(array).max() / 127
    parts = {
        "int8": np.round(array / scale).astype(np.int8),
        "scale": np.float32(scale * factor),
        "zero": np.int8(0),
    }
    inputs = []
    for key, part in parts.items():
        made = ir.Value(
            name=f"{name}.{key}",
            shape=ir.Shape(part.shape),
            type=ir.TensorType(ir.DataType.from_numpy(part.dtype)),
            const_value=ir.tensor(part, name=f"{name}.{key}"),
        )
        model.graph.initializers.add(made)
        inputs.append(made)
    node = ir.node("DequantizeLinear", inputs, name=f"{name}/DequantizeLinear")
    node.outputs[0].name = f"{name}/dequantized"
    value.replace_all_uses_with(node.outputs[0])
    model.graph.insert_before(model.graph[0], node)
    return model


def test_a_bad_scale_is_found_in_a_quantized_graph():
    model, args, program = exported("resnet")
    planted = quantized(quantized(program.model, "conv1.weight", 1.0), "stem.weight", 1.5)
    report = check(model, bridge.Session(planted), args)
    assert report.divergence.module == "stem"


def test_rounding_that_is_amplified_blames_no_node():
    text = """g(float[64] x) => (float[64] y) <float k = {1000000.0}, float three = {3.0}> {
        m = Mul(x, x)
        l = Mul(m, k)
        y = Sin(l)
    }"""
    roundabout = text.replace(
        "m = Mul(x, x)", "a = Mul(x, three)\n b = Div(a, three)\n m = Mul(b, x)"
    )
    feed = {"x": np.random.default_rng(0).standard_normal(64).astype(np.float32)}
    report = check(graph(text), bridge.Session(graph(roundabout)), feed)
    assert not report.passed
    assert report.divergence.comparison is None
    assert report.divergence.op_type in ("Mul", "Sin")
    assert any("no node is wrong by itself" in v for v in report.verdicts)


def test_an_optimizer_that_changes_the_result_is_named():
    model, args, program = exported("encoder")
    tight = bridge.parity.comparison.Tolerance(1e-6, 1e-6)
    session = bridge.Session(
        program, config={"optimization.enable_gelu_approximation": "1"}, optimization="all"
    )
    report = check(model, session, args, tolerance=tight, judge=False)
    assert not report.passed
    assert "the optimizer is GeluApproximation" in report.verdicts


# Cutting


def test_cutting_keeps_the_model_and_its_types():
    model = graph(FLOW)
    before = ir.to_proto(model).SerializeToString()
    types = value_types(model)
    part, inputs = cut(model, ["v", "z"], {"y": types["y"]})
    assert inputs == {"w": "w", "y": "y/given"}
    assert [n.op_type for n in part.graph] == ["Mul", "Neg"]
    assert ir.to_proto(model).SerializeToString() == before


# What a wrong array is to the right one

RIGHT = np.random.default_rng(0).standard_normal((4, 5, 6)).astype(np.float32)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (RIGHT * 255, "it is 255 times the right value"),
        (RIGHT + 3, "it is the right value plus 3"),
        (RIGHT * 2 - 1, "it is 2 times the right value plus -1"),
        (-RIGHT, "its sign is wrong"),
        (RIGHT * 0, "it is all zeros"),
        (RIGHT * np.arange(1, 6, dtype=np.float32)[:, None], "each index of dim 1"),
        (np.roll(RIGHT, 1, 2), "off by one along dim 2"),
        (RIGHT.transpose(0, 2, 1), "another order: [0, 2, 1]"),
        (RIGHT[:, ::-1], "reversed along dim 1"),
        (
            np.random.default_rng(1).permutation(RIGHT.reshape(-1)).reshape(RIGHT.shape),
            "another order",
        ),
        (RIGHT * np.float32(np.nan), "it has NaN"),
        (np.random.default_rng(2).standard_normal(RIGHT.shape), None),
        (RIGHT * (1 + 5e-4 * np.sin(np.arange(6, dtype=np.float32))), None),
    ],
)
def test_relations_are_put_into_words(wrong, told):
    found = relation(RIGHT, wrong)
    assert found is None if told is None else told in found


def test_half_precision_overflow_is_put_into_words():
    right = RIGHT * 1e5
    with np.errstate(over="ignore"):
        assert "float16 overflows" in relation(right, right.astype(np.float16))


# After passes and quantization


class _Once:
    """Calibration data of one batch."""

    def __init__(self, feed):
        self._feeds = iter([feed])

    def get_next(self):
        return next(self._feeds, None)


def statically_quantized(name, tmp_path):
    """A model of the zoo as int8, scales and zero points on every activation and weight."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    model, args, program = exported(name, 20)
    program.save(tmp_path / "float.onnx")
    session = program.session()
    leaves = session.flatten(args, {})
    feed = {n: x.numpy() for n, x in zip(session.input_names, leaves, strict=True)}
    quantize_static(
        tmp_path / "float.onnx", tmp_path / "int8.onnx", _Once(feed), per_channel=True,
        quant_format=QuantFormat.QDQ, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
    )  # fmt: skip
    return model, args, ir.load(tmp_path / "int8.onnx")


SCALES = {
    "resnet": ("head/Gemm_scale", "Relu_1_scale", "stem.bias_quantized_scale"),
    "mobilenet": ("output_scale", "depth.weight_scale", "HardSwish_scale"),
    "unet": ("down/Conv_scale", "leave.weight_scale", "up.bias_quantized_scale"),
    "detector": ("score/MatMul_scale", "box/Add_scale", "output.1_scale"),
}


@pytest.mark.filterwarnings("ignore")  # of the quantizer
@pytest.mark.parametrize("name", list(SCALES))
def test_a_bad_scale_is_told_from_rounding(name, tmp_path):
    model, args, base = statically_quantized(name, tmp_path)
    loose = bridge.Tolerance(0, 0.05)
    sound = check(model, bridge.Session(base), args, tolerance=loose)
    assert sound.passed
    for scale in SCALES[name]:
        planted = base.clone()
        value = planted.graph.initializers[scale]
        array = value.const_value.numpy()
        bad = ir.Value(name="bad", type=value.type, shape=value.shape,
                       const_value=ir.tensor(array * array.dtype.type(2), name="bad"))  # fmt: skip
        planted.graph.initializers.add(bad)
        nodes = [n for n, _ in value.uses() if n.op_type == "DequantizeLinear"]
        for node in nodes:
            node.replace_input_with(1, bad)
        report = check(model, bridge.Session(planted), args, tolerance=bridge.Tolerance(0, 0.02))
        readers = {r.name for n in nodes for v in n.outputs for r in v.consumers()}
        assert report.divergence.node in readers | {n.name for n in nodes}, scale


@pytest.mark.parametrize("target", ["cpu", "portable"])
@pytest.mark.parametrize("name", ["resnet", "encoder", "decoder", "unet"])
def test_faults_are_located_after_passes(name, target):
    """Values that passes keep are known by name; what lies between is one region."""
    model, args, program = exported(name)
    optimized = bridge.optimize(program, target=target).model
    weights = [n for n, v in optimized.graph.initializers.items() if v.uses() and "." in n]
    for name in weights[::3]:
        planted = optimized.clone()
        value = planted.graph.initializers[name]
        array = value.const_value.numpy()
        if array.dtype != np.float32 or array.size < 8:
            continue
        value.const_value = ir.tensor(np.roll(array, 1, -1), name=name)
        report = check(model, bridge.Session(planted), args)
        if report.passed:
            continue
        guilty = {n for n, _ in value.uses()}
        guilty |= {c for n in guilty for v in n.outputs for c in v.consumers()}
        assert report.divergence.node in {n.name for n in guilty}, name


class Rotary(torch.nn.Module):
    """Attention with rotary positions, which passes fuse and lay out anew."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.q, self.k, self.v, self.o = (torch.nn.Linear(16, 16, bias=False) for _ in range(4))
        angles = torch.arange(6.0)[:, None] / 10 ** torch.arange(4.0)
        self.register_buffer("cos", torch.cat([angles, angles], -1).cos())
        self.register_buffer("sin", torch.cat([angles, angles], -1).sin())

    def forward(self, x):
        q, k, v = (f(x).view(2, 6, 2, 8).transpose(1, 2) for f in (self.q, self.k, self.v))
        q, k = (h * self.cos + self.turned(h) * self.sin for h in (q, k))
        y = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        return self.o(y.transpose(1, 2).reshape(2, 6, 16))

    def turned(self, h):
        return torch.cat([-h[..., 4:], h[..., :4]], -1)


@pytest.mark.parametrize(
    ("op_type", "attribute", "value"),
    [("RotaryEmbedding", "interleaved", 1), ("Attention", "scale", 0.9)],
)
def test_a_fused_node_in_another_layout_is_blamed_itself(op_type, attribute, value):
    model, x = Rotary().eval(), torch.randn(2, 6, 16)
    program = bridge.optimize(bridge.export(model, x, verify=False), target="cpu", verify=False)
    node = next(n for n in program.model.graph if n.op_type == op_type)
    node.attributes.add(ir.convenience.convert_attribute(attribute, value))
    report = check(model, program, x)
    assert report.divergence.node == node.name
    assert "eager Rotary" in report.divergence.verdicts[0]


def test_changed_weights_are_told_from_what_feeds_them():
    model, args, base = exported("encoder")
    program = bridge.optimize(base, target="cpu", verify=False)
    node = next(n for n in program.model.graph if n.name == "value/Add")
    bias = next(v for v in node.inputs if v.const_value is not None)
    bias.const_value = ir.tensor(bias.const_value.numpy() + 3, name=bias.name)
    divergence = check(model, program, args).divergence
    readers = [n.name for n, _ in bias.uses()]
    assert divergence.node in readers


class Pair(torch.nn.Module):
    def forward(self, x, n):
        y = x * n
        return y.sin(), y.cos()


@pytest.mark.parametrize(
    ("plant", "told"),
    [
        (lambda o: o.reverse(), "'output.1' should be what 'output.0' is"),
        (lambda o: o.__setitem__(0, o[0].producer().inputs[0]), "should be what 'output.0' is"),
    ],
    ids=["swapped", "another value"],
)
def test_outputs_that_are_another_value_are_told(plant, told):
    model, args = Pair().eval(), (torch.rand(4), torch.tensor(3.0))
    program = bridge.export(model, args, verify=False)
    outputs = list(program.model.graph.outputs)
    plant(outputs)
    program.model.graph.outputs.clear()
    program.model.graph.outputs.extend(outputs)
    divergence = check(model, program, args).divergence
    assert divergence.node == outputs[0].producer().name
    assert "the graph returns the wrong value" in divergence.verdicts[0]
    assert told in divergence.verdicts[0]


def test_scalar_inputs_stay_scalars_when_eager_is_traced_again():
    model, args = Pair().eval(), (torch.rand(4), torch.tensor(3.0))
    program = bridge.export(model, args, verify=False)
    program.model.graph.node(1).op_type = "Sinh"
    divergence = check(model, program, args).divergence
    assert divergence.op_type == "Sinh"
    assert not divergence.others


def test_a_relu_that_saturation_does_is_no_wrong_scale():
    """Its DequantizeLinear gives what the Relu gives, not what went into it."""
    model = torch.nn.Sequential(
        torch.nn.Conv2d(2, 4, 3), torch.nn.ReLU(), torch.nn.Conv2d(4, 3, 3)
    ).eval()
    x = torch.randn(1, 2, 8, 8)
    program = bridge.export(model, x, verify=False)
    graph = program.model.graph
    relu = next(n for n in graph if n.op_type == "Relu")
    scale, zero = (
        ir.Value(name=name, const_value=ir.tensor(np.asarray(array), name=name))
        for name, array in (("scale", np.float32(0.02)), ("zero", np.uint8(0)))
    )
    for value in (scale, zero):
        graph.initializers.add(value)
    name = relu.outputs[0].name
    first = ir.node("QuantizeLinear", [relu.inputs[0], scale, zero], name=f"{name}/QuantizeLinear")
    last = ir.node("DequantizeLinear", [first.outputs[0], scale, zero], name="last")
    first.outputs[0].name, last.outputs[0].name = first.name, f"{name}/DequantizeLinear"
    graph.insert_after(relu, [first, last])
    relu.outputs[0].replace_all_uses_with(last.outputs[0])
    graph.remove(relu, safe=True)
    planted = quantized(program.model, "2.weight", 1.5)
    divergence = check(model, planted, x).divergence
    assert divergence.node == "2.weight/DequantizeLinear"


@pytest.mark.parametrize("op_type", ["Sin", "Exp", "Tanh"])
def test_a_graph_with_names_of_its_own_is_located_in_by_its_numbers(op_type):
    """As other exporters make it: nothing but the outputs is known, and these by their order."""
    text = """g(float[N, 4] input) => (float[M, 4] last) <float[4] w = {1, -2, 3, 0.5}> {
        half = Constant <value_float = 0.5> ()
        scale = Mul(w, half)
        v1 = Mul(input, scale)
        v2 = Sin(v1)
        v3 = Exp(v2)
        v4 = Tanh(input)
        v5 = Add(v3, v4)
        last = Neg(v5)
    }"""

    def model(x):
        w = torch.tensor([0.5, -1, 1.5, 0.25])
        return -((x * w).sin().exp() + x.tanh())

    x = torch.randn(3, 4)
    assert check(model, bridge.Session(graph(text)), x).passed
    planted = graph(text)
    node = next(n for n in planted.graph if n.op_type == op_type)
    node.op_type = "Atan"
    divergence = check(model, bridge.Session(planted), x).divergence
    assert divergence.op_type == "Atan"
