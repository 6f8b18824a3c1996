"""Locating in quantized graphs: what rounding explains is told from what it does not."""

from __future__ import annotations

import functools

import numpy as np
import onnx_ir as ir
import pytest
import torch

import bridge
from bridge.parity.checking import check
from tests.bridge import faults


class Perceptron(torch.nn.Module):
    """Large enough for every recipe."""

    def __init__(self):
        super().__init__()
        self.norm = torch.nn.LayerNorm(64)
        self.up = torch.nn.Linear(64, 128)
        self.down = torch.nn.Linear(128, 64)

    def forward(self, x):
        hidden = torch.nn.functional.gelu(self.up(self.norm(x)))
        return torch.softmax(x + self.down(hidden), -1)


@functools.cache
def quantized(recipe):
    torch.manual_seed(0)
    model, x = Perceptron().eval(), 3 * torch.randn(2, 5, 64)
    program = bridge.export(model, x)
    calibration = {"calibration": [(x,)]} if "static" in recipe else {}
    return model, x, bridge.quantize(program, recipe, gate=False, **calibration).model


def _integers(change):
    """Change the integers of the second weight that is stored so."""

    def plant(graph):
        stored = [v for n, v in graph.graph.initializers.items() if n.endswith(".quantized")]
        stored = [v for v in stored if len(v.shape) > 1 and v.uses()]  # no biases
        array = np.ascontiguousarray(change(stored[1].const_value.numpy()))
        stored[1].const_value = ir.tensor(array, name=stored[1].name)
        return [n.name for n, _ in stored[1].uses()]

    return plant


QUANTIZED_FAULTS = {
    "eps": faults.attribute("LayerNormalization", "epsilon", 0.05),
    "gelu": faults.attribute("Gelu", "approximate", "tanh"),
    "residual": faults.operator("Add", "Sub", nth=-1),
    "rows": _integers(lambda x: np.roll(x, 1, 0)),
    "softmax": faults.attribute("Softmax", "axis", 1),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("recipe", ["int8-static", "int8-dynamic", "int4-weights"])
@pytest.mark.parametrize("fault", list(QUANTIZED_FAULTS))
def test_faults_that_rounding_would_hide_are_located_in_quantized_graphs(fault, recipe):
    model, args, base = quantized(recipe)
    planted = base.clone()
    guilty = set(QUANTIZED_FAULTS[fault](planted))
    report = check(model, bridge.Session(planted), args, tolerance=bridge.Tolerance(0, 1e-6))
    assert report.divergence.node in faults.with_readers(planted, guilty), str(report)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("recipe", ["int8-static", "int8-dynamic", "int4-weights"])
def test_rounding_alone_is_told_from_a_fault(recipe):
    model, args, base = quantized(recipe)
    report = check(model, bridge.Session(base), args, tolerance=bridge.Tolerance(0, 1e-6))
    assert any("quantization itself makes the difference" in v for v in report.verdicts)
    assert report.divergence.others == ()


@pytest.mark.filterwarnings("ignore")
def test_a_scale_that_undoes_another_is_named():
    model, args, base = quantized("int8-static")
    planted = base.clone()
    node = next(
        n for n in planted.graph if n.op_type == "DequantizeLinear" and n.inputs[0].producer()
    )
    scale = node.inputs[1].const_value.numpy() * np.float32(1.01)
    new = ir.Value(name="bad", const_value=ir.tensor(scale, name="bad"), shape=ir.Shape(scale.shape),
                   type=ir.TensorType(ir.DataType.FLOAT))  # fmt: skip
    planted.graph.initializers.add(new)
    node.replace_input_with(1, new)
    report = check(model, bridge.Session(planted), args, tolerance=bridge.Tolerance(0, 1e-6))
    assert report.divergence.node == node.name
    assert f"the scale of {node.name!r} is not that of" in report.verdicts[0]
    assert report.divergence.source is not None  # of what reads it


class Gates(torch.nn.Module):
    """HardSwish and HardSigmoid, whose bounds are those of integers when quantized."""

    def __init__(self):
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 32, 3, padding=1)
        self.gate = torch.nn.Conv2d(32, 32, 1)
        self.last = torch.nn.Conv2d(32, 32, 1)

    def forward(self, x):
        x = torch.nn.functional.hardswish(3 * self.stem(x))
        gate = torch.nn.functional.hardsigmoid(5 * self.gate(x).mean((2, 3), keepdim=True))
        return torch.nn.functional.hardswish(0.1 * self.last(x * gate))


@functools.cache
def gates():
    torch.manual_seed(0)
    model, x = Gates().eval(), 2 * torch.randn(2, 3, 12, 12)
    program = bridge.quantize(
        bridge.export(model, x), "int8-static", gate=False, calibration=[(x,)]
    )
    return model, x, program.model


@pytest.mark.filterwarnings("ignore")
def test_integers_that_do_the_work_of_a_gate_are_no_wrong_scale():
    model, x, base = gates()
    report = check(model, bridge.Session(base), x, tolerance=bridge.Tolerance(0, 1e-6))
    assert any("quantization itself makes the difference" in v for v in report.verdicts)


@pytest.mark.filterwarnings("ignore")
def test_a_wrong_scale_beside_a_gate_of_integers_is_found_in_its_activation():
    model, x, base = gates()
    planted = base.clone()
    undoing = [n for n in planted.graph if n.op_type == "DequantizeLinear"]
    node = next(n for n in undoing if n.name.startswith("HardSwish/") and n.inputs[0].producer())
    scale = node.inputs[1].const_value.numpy() * np.float32(1.1)
    bad = ir.Value(name="bad", const_value=ir.tensor(scale, name="bad"), shape=ir.Shape([]),
                   type=ir.TensorType(ir.DataType.FLOAT))  # fmt: skip
    planted.graph.initializers.add(bad)
    node.replace_input_with(1, bad)
    report = check(model, bridge.Session(planted), x, tolerance=bridge.Tolerance(0, 1e-6))
    assert report.divergence.node.startswith("HardSwish/"), str(report)
    assert not any("quantization itself" in v for v in report.verdicts)


@pytest.mark.filterwarnings("ignore")
def test_what_half_precision_rounds_is_no_wrong_node_where_some_of_it_stays_in_single():
    class Powers(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.up = torch.nn.Linear(32, 64)

        def forward(self, x):
            x = self.up(x)
            x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
            return torch.nn.functional.gelu(x)

    torch.manual_seed(0)
    model, x = Powers().eval(), torch.randn(4, 32)
    planted = bridge.quantize(bridge.export(model, x), "fp16", gate=False).model
    assert any(n.op_type == "Cast" and n.attributes["to"].value == 1 for n in planted.graph)
    (gelu,) = (n for n in planted.graph if n.op_type == "Gelu")
    gelu.op_type = "Relu"
    gelu.attributes.clear()
    report = check(model, bridge.Session(planted), x)
    assert report.divergence.node == gelu.name, str(report)


class Convolved(torch.nn.Module):
    """A convolution whose geometry matters, and products whose weights lose their names."""

    def __init__(self):
        super().__init__()
        self.stem = torch.nn.Conv1d(3, 16, 3, padding=2, dilation=2)
        self.up = torch.nn.Linear(16, 48)
        self.down = torch.nn.Linear(48, 16)

    def forward(self, x):
        x = torch.relu(self.stem(x)).transpose(1, 2)
        return torch.softmax(x + self.down(torch.tanh(self.up(x))), -1)


@functools.cache
def quantized_elsewhere():
    """By ONNX Runtime, of what torch.onnx exports."""
    import tempfile
    from pathlib import Path

    from onnxruntime.quantization import quantize_dynamic

    torch.manual_seed(0)
    model, x = Convolved().eval(), 3 * torch.randn(2, 3, 12)
    with tempfile.TemporaryDirectory() as folder:
        plain, rounded = (Path(folder) / f"{n}.onnx" for n in ("plain", "rounded"))
        torch.onnx.export(model, (x,), plain, dynamo=False, opset_version=17)
        quantize_dynamic(plain, rounded)
        graph = ir.load(rounded)
        assert any(n.startswith("onnx::MatMul") for n in graph.graph.initializers)
        return model, x, ir.from_proto(ir.to_proto(graph))


@pytest.mark.filterwarnings("ignore")
def test_weights_without_names_are_known_by_their_numbers():
    model, x, base = quantized_elsewhere()
    tight = bridge.Tolerance(0, 1e-6)
    report = check(model, bridge.Session(base), x, tolerance=tight)
    assert any("quantization itself makes the difference" in v for v in report.verdicts)
    planted = base.clone()
    name = next(
        n for n in planted.graph.initializers
        if n.startswith("onnx::MatMul") and n.endswith("_quantized")
    )  # fmt: skip
    value = planted.graph.initializers[name]
    integers = value.const_value.numpy().copy()
    integers[::5] ^= 64  # bits that have flipped
    value.const_value = ir.tensor(integers, name=name)
    report = check(model, bridge.Session(planted), x, tolerance=tight)
    assert report.divergence.node in faults.readers(value), str(report)


@pytest.mark.filterwarnings("ignore")
def test_a_node_beside_unnamed_integers_is_blamed():
    model, x, base = quantized_elsewhere()
    planted = base.clone()
    guilty = set(faults.operator("Tanh", "Erf")(planted))
    report = check(model, bridge.Session(planted), x, tolerance=bridge.Tolerance(0, 1e-6))
    assert report.divergence.node in guilty, str(report)


@pytest.mark.filterwarnings("ignore")
def test_a_range_that_is_too_small_is_found_where_names_are_not_ours(tmp_path):
    from onnxruntime.quantization import QuantFormat, quantize_static

    class Once:
        def __init__(self, feed):
            self.feeds = [feed]

        def get_next(self):
            return self.feeds.pop() if self.feeds else None

    torch.manual_seed(0)
    model, x = Convolved().eval(), 3 * torch.randn(2, 3, 12)
    torch.onnx.export(model, (x,), tmp_path / "plain.onnx", dynamo=False, opset_version=17)
    graph = ir.load(tmp_path / "plain.onnx")
    feed = {graph.graph.inputs[0].name: x.numpy()}
    quantize_static(tmp_path / "plain.onnx", tmp_path / "int8.onnx", Once(feed),
                    per_channel=True, quant_format=QuantFormat.QDQ)  # fmt: skip
    planted = ir.load(tmp_path / "int8.onnx")
    tanh = next(n for n in planted.graph if n.op_type == "Tanh")
    node = next(n for n, _ in tanh.outputs[0].uses() if n.op_type == "QuantizeLinear")
    scale = node.inputs[1]
    array = scale.const_value.numpy()
    scale.const_value = ir.tensor((array * 0.3).astype(array.dtype), name=scale.name)
    report = check(model, bridge.Session(planted), x, tolerance=bridge.Tolerance(0, 1e-6))
    assert report.divergence.node in faults.readers(scale), str(report)
    assert "its scale is too small" in report.verdicts[0]
