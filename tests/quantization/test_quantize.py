"""``bridge.quantize`` and ``bridge quantize``: the gate, recipes, reports."""

import json

import numpy as np
import pytest
import torch

import bridge
from bridge.cli import main
from bridge.quantization import QuantizedProgram
from bridge.quantizing import gate
from bridge.quantizing.measuring import Accuracy, Latency, output_accuracy, side_by_side
from bridge.quantizing.processor import processor_of
from bridge.quantizing.recipes import RECIPES, Recipe, find_recipe
from bridge.quantizing.report import QuantizationReport


@pytest.fixture(scope="module")
def net():
    """Convolutions large enough that integers are faster on any machine."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(16, 64, 3, padding=1), torch.nn.ReLU(),
        torch.nn.Conv2d(64, 64, 3, padding=1), torch.nn.ReLU(),
        torch.nn.Conv2d(64, 64, 3, padding=1), torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(64, 10),
    ).eval()  # fmt: skip
    batches = [torch.randn(2, 16, 40, 40) for _ in range(6)]
    program = bridge.export(model, (batches[0],), dynamic_shapes=({0: "batch"},), verify=False)
    return model, program, batches


def test_a_quantized_program_is_called_like_the_model(net):
    model, program, batches = net
    made = bridge.quantize(program, "int8-static", calibration=batches, gate=False)
    assert isinstance(made, QuantizedProgram)
    got = made(batches[0])
    with torch.no_grad():
        want = model(batches[0])
    assert isinstance(got, torch.Tensor)
    assert float(((got - want) ** 2).sum() / (want**2).sum()) < 1e-3
    assert program(batches[0]).allclose(want, atol=1e-4)


def test_the_gate_measures_and_the_report_says_it_in_every_form(net, tmp_path):
    _, program, batches = net
    report = bridge.quantize(
        program, "int8-static", calibration=batches, max_drop=0.2
    ).quantization
    assert report.latency.before > 0
    assert report.size[1] < 0.3 * report.size[0]
    assert report.accuracy.snr > 25
    text = str(report)
    for part in ("weights", "latency", "output SNR", "quantized: 3 Conv", "coarsest tensors"):
        assert part in text
    data = json.loads(report.to_json())
    assert data["speedup"] == pytest.approx(report.latency.speedup)
    rows = {r["name"]: r for r in data["tensors"] if r["kind"] == "activation"}
    assert all(r["snr"] > 20 and 0 <= r["clipped"] < 0.01 and r["seen"] for r in rows.values())
    page = report.to_html()
    assert page.count("<svg") == len(rows)
    for name in ("r.json", "r.html", "r.txt"):
        report.save(tmp_path / name)
        assert (tmp_path / name).stat().st_size > 200


def test_what_is_slower_than_float_is_refused(net, monkeypatch):
    _, program, batches = net
    monkeypatch.setattr("bridge.quantization.latency", lambda *_: Latency(1e-3, 2e-3, 9))
    with pytest.raises(
        bridge.QuantizationRejected, match=r"slower than float: 2\.00 ms"
    ) as caught:
        bridge.quantize(program, "int8-static", calibration=batches)
    assert caught.value.report.latency.speedup == 0.5
    assert "latency" in str(caught.value)
    made = bridge.quantize(program, "int8-static", calibration=batches, gate=False)
    assert made.quantization.rejected == ""


def test_noise_is_refused_even_without_a_budget():
    report = QuantizationReport("int8-static", accuracy=Accuracy(3.0))
    assert "noise" in gate.accuracy_problem(report, None)
    report.accuracy = Accuracy(40.0, finite=False)
    assert "NaN" in gate.accuracy_problem(report, None)
    report.accuracy, report.float_metric = Accuracy(40.0, metric=float("nan")), 0.9
    assert "the metric" in gate.accuracy_problem(report, 0.01)


def test_auto_returns_the_front_and_its_fastest(net):
    _, program, batches = net
    made = bridge.quantize(program, calibration=batches, max_drop=0.2)
    assert made.quantization is made.front[0]
    speeds = [r.latency.after / r.latency.before for r in made.front]
    assert speeds == sorted(speeds)
    assert made.quantization.recipe in RECIPES


def test_auto_that_finds_nothing_says_why_for_each_recipe(net, monkeypatch):
    _, program, batches = net
    monkeypatch.setattr("bridge.quantization.latency", lambda *_: Latency(1e-3, 2e-3, 9))
    with pytest.raises(bridge.QuantizationRejected) as caught:
        bridge.quantize(program, calibration=batches[:2])
    for recipe in ("int8-static", "int8-dynamic", "int4-weights"):
        assert f"{recipe}: slower than float" in str(caught.value)


@pytest.mark.parametrize("recipe", ["int8-static", "int8-mixed"])
def test_what_is_in_integers_is_not_said_to_be_in_float(net, recipe):
    _, program, batches = net
    made = bridge.quantize(program, recipe, calibration=batches, gate=False)
    report = made.quantization
    assert not report.kept_float
    assert report.quantized["Conv"] == 3


def test_auto_takes_no_recipe_that_changes_nothing():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU()).eval()
    x = torch.randn(1, 3, 8, 8)
    program = bridge.export(model, (x,), verify=False)
    with pytest.raises(bridge.QuantizationRejected, match="int8-dynamic: nothing was quantized"):
        bridge.quantize(program, calibration=[x])
    made = bridge.quantize(program, "int8-dynamic", gate=False)
    assert made.quantization.warnings[0].startswith("nothing was quantized: ONNX Runtime has no")


def test_dynamic_leaves_convolutions_alone(net):
    _, program, _ = net
    made = bridge.quantize(program, "int8-dynamic", gate=False)
    assert made.report.op_counts.get("FusedConv") == 3
    assert "ConvInteger" not in made.report.op_counts
    assert sum("no fast kernel" in r for r in made.quantization.kept_float.values()) == 3


def test_named_nodes_and_modules_stay_in_float(net):
    _, program, batches = net
    made = bridge.quantize(
        program, "int8-static", calibration=batches, gate=False, keep_float=["2"]
    )
    assert made.quantization.quantized["Conv"] == 2
    assert "asked to stay in float" in made.quantization.kept_float.values()
    with pytest.raises(bridge.RecipeError, match="'nothing'"):
        bridge.quantize(program, "int8-static", calibration=batches, keep_float=["nothing"])


def test_what_cannot_be_used_is_said_before_the_work(net, tmp_path):
    _, program, batches = net
    options = {"calibration": batches, "gate": False}
    with pytest.raises(bridge.CalibrationError, match="calibration is 5, which holds no batches"):
        bridge.quantize(program, "int8-static", calibration=5)
    with pytest.raises(bridge.RecipeError, match="metric returned a NoneType"):
        bridge.quantize(program, "int8-static", metric=lambda _: None, **options)
    with pytest.raises(bridge.ModelFileError, match="is no folder"):
        bridge.quantize(program, "int8-static", resume=tmp_path / "no" / "state.npz", **options)
    kept = bridge.quantize(program, "int8-static", keep_float="2", **options).quantization
    assert len(kept.kept_float) == 1


def test_a_generator_is_read_once_and_whole(net):
    _, program, batches = net
    seen = []

    def stream():
        for number, batch in enumerate(batches):
            seen.append(number)
            yield batch

    made = bridge.quantize(program, "int8-static", calibration=stream(), max_drop=0.5)
    assert seen == list(range(6))
    assert made.quantization.calibrated == 6


def test_recipes_say_what_they_do_not_know(net):
    _, program, batches = net
    with pytest.raises(bridge.CalibrationError, match="needs calibration batches"):
        bridge.quantize(program, "int8-static")
    with pytest.raises(bridge.RecipeError, match="no field 'bit'"):
        bridge.quantize(program, "int4-weights", bit=4)
    with pytest.raises(bridge.RecipeError, match="blocks of 48"):
        bridge.quantize(program, "int4-weights", block_size=48)
    with pytest.raises(bridge.RecipeError, match="correction is 'best'"):
        bridge.quantize(program, "int4-weights", correction="best")
    with pytest.raises(bridge.RecipeError, match="weights of 3 bits"):
        Recipe("mine", "weights", bits=3)
    with pytest.raises(bridge.RecipeError, match="a Linear cannot be quantized"):
        bridge.quantize(torch.nn.Linear(2, 2), "int8-dynamic")
    with pytest.raises(bridge.RecipeError, match="measures"):
        bridge.quantize(program, gate=False)
    with pytest.raises(bridge.CalibrationError, match="'median'"):
        bridge.quantize(program, "int8-static", calibration=batches, method="median")
    assert find_recipe("int8-static", method="entropy").method == "entropy"


def test_bias_correction_lowers_the_mean_error(net):
    model, program, batches = net
    with torch.no_grad():
        want = torch.cat([model(b) for b in batches])
    options = {"calibration": batches, "gate": False, "per_channel": False}
    errors = []
    for corrected in (False, True):
        made = bridge.quantize(program, "int8-static", bias_correction=corrected, **options)
        got = torch.cat([made(b) for b in batches])
        errors.append(float((got - want).mean(0).norm()))
    assert errors[1] < errors[0]


def test_half_precision_comes_from_the_precision_pass(net):
    _, program, batches = net
    made = bridge.quantize(program, "fp16", calibration=batches, gate=False)
    assert made.quantization.size[1] < 0.6 * made.quantization.size[0]
    assert float((made(batches[0]) - program(batches[0])).abs().max()) < 1e-2


@pytest.mark.parametrize("activation", [torch.nn.ReLU(), torch.nn.ReLU6(), torch.nn.Hardswish()])
def test_symmetric_activations_cost_a_bit_at_most(activation):
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(32, 32, 3), activation, torch.nn.Conv2d(32, 32, 3)
    ).eval()
    batches = [torch.randn(1, 32, 12, 12) for _ in range(3)]
    program = bridge.export(model, (batches[0],), verify=False)
    options = {"calibration": batches, "max_drop": 1.0, "metric": lambda _: 0.0, "gate": False}
    found = [
        bridge.quantize(program, "int8-static", symmetric=s, **options).quantization.accuracy.snr
        for s in (False, True)
    ]
    assert found[1] > found[0] - 7


def test_half_precision_of_attention_does_not_crash_the_runtime():
    torch.manual_seed(0)
    model = torch.nn.TransformerEncoderLayer(32, 4, 64, batch_first=True).eval()
    x = torch.randn(2, 7, 32)
    program = bridge.export(model, (x,), verify=False)
    made = bridge.quantize(program, "fp16", calibration=[x], gate=False)
    with torch.no_grad():
        assert float((made(x) - model(x)).abs().max()) < 0.02


def test_cpus_that_saturate_get_smaller_weights(net, monkeypatch):
    _, program, batches = net
    old = processor_of("x86_64", frozenset({"avx2", "fma"}))
    assert (old.weight_most, "saturate" in old.reason) == (63, True)
    assert processor_of("x86_64", frozenset({"avx2", "avx512_vnni"})).weight_most == 127
    assert processor_of("x86_64", frozenset({"avx2", "avx_vnni"})).weight_most == 127
    assert processor_of("aarch64", frozenset()).weight_most == 127
    monkeypatch.setattr("bridge.quantizing.building.this_processor", lambda: old)
    made = bridge.quantize(program, "int8-static", calibration=batches, gate=False)
    tensors = [v.const_value for v in made.model.graph.initializers.values()]
    integers = [
        t.numpy() for t in tensors if t is not None and t.dtype.name == "INT8" and t.size > 99
    ]
    assert len(integers) == 4
    assert all(np.abs(x.astype(int)).max() == 63 for x in integers)


def test_measurements_take_turns():
    calls = []
    measured = side_by_side([lambda: calls.append("a"), lambda: calls.append("b")], seconds=0)
    assert [n for _, n in measured] == [7, 7]
    assert calls[4:10] == list("abbaab")


def test_outputs_that_are_infinite_alike_are_compared_elsewhere():
    a = np.asarray([[1.0, -np.inf]], np.float32)
    found = output_accuracy([{"y": a}], [{"y": a + np.float32(0.01)}])
    assert found.finite
    assert 35 < found.snr < 45
    assert not output_accuracy([{"y": a}], [{"y": np.nan_to_num(a)}]).finite


def test_the_command_line_does_the_same(net, tmp_path, capsys):
    _, program, batches = net
    source, target = tmp_path / "float.onnx", tmp_path / "int8.onnx"
    program.save(source)
    folder = tmp_path / "batches"
    folder.mkdir()
    for number, batch in enumerate(batches):
        np.save(folder / f"{number}.npy", batch.numpy())
    common = ["quantize", str(source), str(target), "--calibration", str(folder), "--quiet"]
    page = tmp_path / "report.html"
    code = main(
        [*common, "--recipe", "int8-static", "--no-gate", "--set", "method=percentile",
         "--format", "json", "--html", str(page)]
    )  # fmt: skip
    assert code == 0
    data = json.loads(capsys.readouterr().out)
    assert data["recipe"] == "int8-static"
    assert "<svg" in page.read_text()
    assert bridge.load(target)(batches[0]).shape == (2, 10)
    code = main([*common, "--recipe", "int8-static", "--max-drop", "-1"])
    captured = capsys.readouterr()
    assert code == 1
    assert "rejected: top-1 agreement lost" in captured.out
    assert "QuantizationRejected" in captured.err
    (tmp_path / "task.py").write_text("def score(run):\n    return 0.25\n")
    metric = ["--metric", f"{tmp_path / 'task.py'}:score", "--format", "json"]
    assert main([*common, "--recipe", "int8-static", "--no-gate", *metric]) == 0
    assert json.loads(capsys.readouterr().out)["float_metric"] == 0.25
    assert main([*common, "--metric", f"{tmp_path / 'task.py'}:missing"]) == 2
    assert main([*common, "--set", "method"]) == 2


class Uneven(torch.nn.Module):
    """The inputs of one layer have weights of very different size, which a block cannot hold."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = (torch.nn.Linear(128, 128) for _ in range(3))
        with torch.no_grad():
            self.second.weight[:, ::9] *= 200

    def forward(self, x):
        small = torch.arange(128) % 9 != 0
        h = torch.tanh(self.first(x)) * torch.where(small, 1.0, 0.001)
        return self.third(torch.tanh(self.second(h))).tanh()


def test_four_bit_weights_are_rescued_by_the_layer_that_breaks():
    torch.manual_seed(0)
    batches = [torch.randn(64, 128) for _ in range(2)]
    model = Uneven().eval()
    program = bridge.export(model, (batches[0],), verify=False)
    with torch.no_grad():
        want = model(batches[0])

    def metric(run):
        return -float((run(batches[0]) - want).norm() / want.norm())

    options = {"calibration": batches, "metric": metric, "gate": False}
    rough = bridge.quantize(program, "int4-weights", **options)
    report = bridge.quantize(program, "int4-weights", max_drop=0.1, **options).quantization
    assert report.sensitivity[0].node.startswith("second")
    assert [n.split("/")[0] for n in report.kept_float] == ["second"]
    assert report.drop <= 0.1
    assert rough.quantization.drop > 0.3
    assert rough.quantization.quantized == {"MatMulNBits": 3}


class Recurrent(torch.nn.Module):
    """An LSTM some of whose weights vanish within a step of the largest."""

    def __init__(self):
        super().__init__()
        self.lstm = torch.nn.LSTM(16, 32, batch_first=True)
        self.head = torch.nn.Linear(32, 8)
        with torch.no_grad():
            self.lstm.weight_hh_l0[:, 0] *= 300
            self.lstm.weight_ih_l0[:, 0] *= 300

    def forward(self, x):
        return self.head(self.lstm(x)[0])


@pytest.mark.parametrize("recipe", ["int8-dynamic", "int8-static"])
def test_a_budget_can_leave_an_lstm_in_float(recipe):
    torch.manual_seed(0)
    model = Recurrent().eval()
    batches = [torch.randn(4, 12, 16) for _ in range(3)]
    program = bridge.export(model, (batches[0],), verify=False)
    with torch.no_grad():
        want = model(batches[0])

    def metric(run):
        return -float((run(batches[0]) - want).norm() / want.norm())

    options = {"calibration": batches, "metric": metric, "gate": False}
    rough = bridge.quantize(program, recipe, **options).quantization
    report = bridge.quantize(program, recipe, max_drop=0.03, **options).quantization
    assert rough.drop > 0.03 >= report.drop
    assert [n.split("/")[0] for n in report.kept_float] == ["lstm"]
    assert "DynamicQuantizeLSTM" not in report.quantized


def test_a_budget_that_only_float_holds_is_not_held():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Tanh(), torch.nn.Linear(64, 9))
    batches = [torch.randn(32, 64) for _ in range(2)]
    program = bridge.export(model.eval(), (batches[0],), verify=False)
    options = {"calibration": batches, "metric": lambda run: -float(len(run.source.graph))}
    with pytest.raises(bridge.QuantizationRejected, match="most damage comes from"):
        bridge.quantize(program, "int4-weights", max_drop=-100.0, **options)


def test_a_model_of_pictures_is_compared_on_the_examples_of_its_export():
    """Sizes of two pixels, as they are made up, are none that its layers accept."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 7),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(8, 64),
        torch.nn.Linear(64, 4),
    ).eval()
    shapes = ({0: "batch", 2: "height", 3: "width"},)
    program = bridge.export(model, torch.randn(2, 3, 16, 24), dynamic_shapes=shapes)
    made = bridge.quantize(program, "int8-dynamic", max_drop=0.5, gate=False)
    assert made.quantization.accuracy is not None
    assert made.quantization.quantized
    assert [x.shape for x in made.probes[0].values()] == [(2, 3, 16, 24)]
    foreign = bridge.quantize(program.model, "int8-dynamic", max_drop=0.5, gate=False)
    assert foreign.quantization.accuracy is not None
