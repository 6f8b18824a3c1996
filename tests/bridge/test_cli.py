"""The command line: what it does, what it says, and its exit codes."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from xml.etree import ElementTree

import numpy as np
import onnx_ir as ir
import pytest
import torch

import bridge
from bridge.cli import COMMANDS, main
from bridge.commands.inputs import parse_input
from bridge.commands.targets import find_target

NET = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.up = torch.nn.Linear(4, 8)
        self.norm = torch.nn.LayerNorm(8)
        self.drop = torch.nn.Dropout(0.5)

    def forward(self, x, scale=2.0):
        return self.drop(self.norm(torch.relu(self.up(x)))) * scale

def make():
    return Net().eval()

def with_inputs():
    return make(), (torch.ones(3, 4),), {"scale": 3.0}

def product(x, w):
    return x @ w

def unsupported():
    return lambda x: x.numpy() + 1, (torch.ones(2),)

def broken():
    raise ValueError("no weights here")

NUMBER = 3
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "net.py").write_text(NET)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("net", None)


@pytest.fixture
def exported(folder):
    assert main(["export", "net.py:make", "m.onnx", "--input", "float32[batch=2,4]"]) == 0
    return folder / "m.onnx"


@pytest.mark.parametrize(
    "target",
    [
        ["net.py:make", "--input", "float32[batch=2,4]"],
        ["net:make", "--input", "x=float32[batch=2,4]", "--input", "scale=3.5"],
        ["net.py:Net", "--eval", "--input", "x=float32[3,4]", "--dynamic", "x=0:batch"],
        ["net:with_inputs", "--dynamic", "auto"],
        ["net:product", "--input", "float32[batch=2,4]", "--input", "w=float32[4,k=3]"],
    ],
)
def test_models_are_exported_from_whatever_names_them(folder, target):
    assert main(["export", target[0], "m.onnx", *target[1:]]) == 0
    session = bridge.load(folder / "m.onnx")
    assert session.inputs[0].dims[0] in ("batch", "x_dim_0")


def test_the_report_of_an_export_is_data(folder, capsys):
    assert main(["export", "net:with_inputs", "m.onnx", "--format", "json", "--quiet"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["op_counts"]["LayerNormalization"] == 1
    assert err == ""


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["export", "net.py:mak", "m.onnx"], "did you mean 'make'?"),
        (["export", "nat.py:make", "m.onnx"], "there is no file nat.py"),
        (["export", "nat:make", "m.onnx"], "there is no module 'nat'"),
        (["export", "net.py:NUMBER", "m.onnx"], "gives a int, which is no model"),
        (["export", "net.py:broken", "m.onnx"], "net.py:28 in broken"),
        (
            ["export", "net.py:make", "m.onnx", "--input", "float33[2]"],
            "no element type 'float33'",
        ),
        (["export", "net.py:make", "m.onnx", "--input", "float32[b]"], "'b' is no size"),
        (["export", "net.py:make", "m.onnx", "--input", "x=what"], "cannot be read"),
        (["export", "net.py:make", "m.onnx", "--inputs", "no.npz"], "cannot read arrays"),
        (["export", "net.py:make", "m.onnx", "--dynamic", "x"], "write x=0:batch"),
        (["export", "net.py:make", "m.onnx"], "the arguments do not fit Net"),
        (["export", "net.py:unsupported", "m.onnx"], "UntraceableError"),
        (
            ["export", "net.py:make", "m.onnx", "--input", "float32[2,5]"],
            "at net.py:13 in Net.forward",
        ),
        (["export", "net.py:with_inputs", "no/m.onnx"], "cannot write no/m.onnx"),
        (["export", "net.onnx", "m.onnx"], "is no eager code"),
        (["check", "no.onnx"], "there is no file no.onnx"),
        (["run", "net.py"], "write net.py:factory"),
        (
            ["run", "net.py:make", "--inputs", "net.py"],
            "cannot read arrays from net.py: it is no .npz",
        ),
    ],
)
def test_what_cannot_be_done_is_told_with_a_remedy(folder, capsys, arguments, told):
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert told in err
    assert out == ""
    assert "Traceback" not in err
    assert not (folder / "m.onnx").exists()


def test_debugging_shows_the_traceback(folder):
    with pytest.raises(ValueError, match="no weights here"):
        main(["export", "net.py:broken", "m.onnx", "--debug"])


def test_train_mode_is_a_warning(folder, capsys):
    main(["export", "net.py:Net", "m.onnx", "--input", "float32[2,4]"])
    assert "warning: 4 modules are in train mode" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_weights_are_loaded_without_running_pickles(folder, capsys, name):
    state = {k: torch.zeros_like(v) for k, v in torch.nn.Linear(4, 4).state_dict().items()}
    if name.endswith("pt"):
        torch.save(state, name)
    else:
        from safetensors.torch import save_file

        save_file(state, name)
    (folder / "lin.py").write_text("import torch\ndef make(): return torch.nn.Linear(4, 4)\n")
    common = ["lin.py:make", "m.onnx", "--eval", "--input", "float32[2,4]"]
    assert main(["export", *common, "--weights", name]) == 0
    y = bridge.load("m.onnx").run({"input": np.ones((2, 4), np.float32)})
    assert not next(iter(y.values())).any()


def test_pickles_that_run_code_are_refused(folder, capsys):
    class Evil:
        def __reduce__(self):
            return (print, ("ran",))

    torch.save({"w": Evil()}, "w.pt")
    arguments = ["export", "net.py:make", "m.onnx", "--input", "float32[2,4]", "--weights", "w.pt"]
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert "--unpickle" in err
    assert "ran" not in out


# check and locate


def test_check_compares_a_file_with_eager(exported, capsys):
    assert main(["check", "net.py:make", "m.onnx", "--vary"]) == 0
    assert "parity passed: m.onnx on cpu against eager Net" in capsys.readouterr().out
    assert main(["check", "m.onnx", "m.onnx", "--size", "batch=5"]) == 0
    assert "float32[5, 8]" in capsys.readouterr().out


def test_check_exports_what_is_not_given(folder, capsys):
    arguments = ["check", "net.py:with_inputs", "--optimization", "none,all", "--opset", "17,23"]
    assert main([*arguments, "--format", "json"]) == 0
    cells = json.loads(capsys.readouterr().out)["cells"]
    assert {(c["optimization"], c["opset"]) for c in cells} == {
        ("none", 17), ("all", 17), ("none", 23), ("all", 23),
    }  # fmt: skip


def plant(path):
    model = ir.load(path)
    node = next(n for n in model.graph if n.op_type == "LayerNormalization")
    node.attributes.add(ir.AttrFloat32("epsilon", 0.5))
    ir.save(model, path)


def test_check_fails_and_locates(exported, capsys):
    plant(exported)
    assert main(["check", "net.py:make", "m.onnx", "--format", "junit", "--report", "r.xml"]) == 1
    assert capsys.readouterr().out == ""
    suite = ElementTree.parse("r.xml").getroot()
    assert suite.get("failures") == "1"
    assert main(["locate", "net.py:make", "m.onnx", "--extract", "part"]) == 1
    out, err = capsys.readouterr()
    assert "first divergence: LayerNormalization" in out
    assert "in module norm" in out
    assert "net.py:13" in out
    assert "the smallest failing part is in part" in err
    assert main(["run", "part/model.onnx", "--inputs", "part/inputs.npz"]) == 0


def test_a_tolerance_decides(exported):
    plant(exported)
    assert main(["check", "net.py:make", "m.onnx", "--no-locate", "--atol", "0.9"]) == 0
    assert (
        main(["check", "net.py:make", "m.onnx", "--no-locate", "--tolerance", "output=0,1"]) == 0
    )
    assert main(["check", "net.py:make", "m.onnx", "--no-locate", "--rtol", "1e-3"]) == 1


def test_a_check_in_which_nothing_runs_is_refused(exported, capsys):
    arguments = ["check", "net.py:make", "m.onnx", "--providers", "rocm"]
    assert main(arguments) == 2
    assert main([*arguments, "--providers", "cpu"]) == 1


def test_a_name_that_leads_nowhere_is_a_target_error(folder):
    options = argparse.Namespace()
    with pytest.raises(bridge.TargetError, match="there is no module 'nowhere'"):
        find_target("nowhere:make", options)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--optimization", "fast"], "no level 'fast'; there are none, basic"),
        (["--opset", "17;20"], "'17;20' cannot be read"),
    ],
)
def test_lists_that_make_no_sense_are_refused(folder, capsys, arguments, told):
    with pytest.raises(SystemExit) as exit_:
        main(["check", "net.py:with_inputs", *arguments])
    assert exit_.value.code == 2
    assert told in capsys.readouterr().err


def test_a_place_that_cannot_be_written_is_told_before_the_work(folder, capsys):
    assert main(["export", "net.py:broken", "no/m.onnx"]) == 2
    assert "cannot write no/m.onnx: no is no folder" in capsys.readouterr().err


# run and doctor


def test_run_reports_and_writes_outputs(exported, capsys):
    x = np.ones((6, 4), np.float32)
    np.savez("x.npz", x=x)
    arguments = ["run", "m.onnx", "--inputs", "x.npz", "--outputs", "y.npz", "--repeat", "3"]
    assert main([*arguments, "--profile", "--placement"]) == 0
    out = capsys.readouterr().out
    assert "ran 3 times on CPUExecutionProvider" in out
    assert "by module:" in out
    assert "float32[6, 8]" in out
    assert np.load("y.npz")["output"].shape == (6, 8)
    assert main([*arguments, "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["outputs"][0]["shape"] == [6, 8]


def test_run_takes_eager_code(folder, capsys):
    assert main(["run", "net.py:with_inputs"]) == 0
    assert "float32[3, 8]" in capsys.readouterr().out


def test_unknown_inputs_are_named(exported, capsys):
    assert main(["run", "m.onnx", "--input", "z=float32[2,4]"]) == 2
    assert "no input 'z'; its inputs are x" in capsys.readouterr().err


def test_doctor_reports(capsys):
    main(["doctor", "--format", "json", "--quiet"])
    assert {f["about"] for f in json.loads(capsys.readouterr().out)["findings"]} >= {"onnxruntime"}
    main(["doctor", "--format", "junit", "--quiet"])
    assert "<testsuite" in capsys.readouterr().out


# The command itself


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_what_a_command_takes(name, capsys):
    with pytest.raises(SystemExit) as exit_:
        main([name, "--help"])
    assert exit_.value.code == 0
    out = capsys.readouterr().out
    assert f"  bridge {name}" in out
    assert "exit codes" in out


def test_commands_are_listed_and_misspelt_ones_corrected(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert all(f"  {name} " in capsys.readouterr().out for name in list(COMMANDS)[:1])
    with pytest.raises(SystemExit) as exit_:
        main(["chekc"])
    assert exit_.value.code == 2
    assert "did you mean 'check'?" in capsys.readouterr().err


@pytest.mark.e2e
def test_doctor_and_help_need_nothing_but_python(tmp_path):
    blocked = ["torch", "numpy", "onnxruntime", "onnx", "onnx_ir", "onnxscript", "rich"]
    code = (
        f"import sys\nfor n in {blocked!r}: sys.modules[n] = None\nfrom bridge.cli import main\n"
    )
    for call, rc in (("doctor", None), ("run', 'm.onnx", 2)):
        done = subprocess.run(
            [sys.executable, "-c", f"{code}sys.exit(main(['{call}']))"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert "Traceback" not in done.stderr, done.stderr
        assert rc is None or (done.returncode == rc and "bridge doctor" in done.stderr)


@pytest.mark.parametrize(
    ("text", "name", "shape", "symbols"),
    [
        ("float32[batch=2, 3]", None, (2, 3), {0: "batch"}),
        ("x.y=int64[2,n=5]<7", "x.y", (2, 5), {1: "n"}),
        ("mask=bool[4]", "mask", (4,), {}),
        ("bfloat16[]", None, (), {}),
    ],
)
def test_inputs_are_read(text, name, shape, symbols):
    found = parse_input(text, np.random.default_rng(0))
    assert (found.name, found.value.shape, found.symbols) == (name, shape, symbols)
    if text.endswith("<7"):
        assert 1 < found.value.max() < 7


# bench


def test_bench_measures_the_forms_side_by_side(folder, capsys):
    arguments = ["bench", "net.py:with_inputs", "--rounds", "2", "--threads", "1"]
    assert main([*arguments, "--forms", "eager,float,optimized", "--format", "json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert [r["form"] for r in data["rows"]] == ["eager", "float", "optimized"]
    for row in data["rows"]:
        assert row["error"] is None
        assert 0 < row["median"] <= row["p95"]
        assert row["throughput"] == pytest.approx(3 / row["median"])
        assert row["load"] > 0
        assert row["off"] < 1e-4
    assert data["inputs"] == {"x": "float32[3, 4]"}


def test_forms_that_cannot_be_had_are_told(exported, capsys):
    arguments = ["bench", "m.onnx", "--rounds", "1", "--size", "batch=4"]
    assert main([*arguments, "--forms", "float,eager,int3-odd", "--providers", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "| float | cpu | 0." in out
    assert "| eager | cpu | an ONNX model has no form 'eager' |" in out
    assert "int3-odd" in out
    assert main([*arguments, "--providers", "rocm"]) == 2


def test_a_wrong_form_shows_in_its_error(folder):
    from bridge.benchmarking import benchmark

    report = benchmark(lambda x: x * 2, torch.ones(3), forms=("float", "eager"), rounds=1)
    assert [r.off for r in report.rows] == [0.0, 0.0]
    assert not report.failed
