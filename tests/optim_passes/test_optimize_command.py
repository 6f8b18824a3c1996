"""``bridge optimize`` on files that anybody wrote."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest

import bridge
from bridge.cli import main
from tests.optim_passes.running import parse

MODEL = """g (float[N, 4] x, float[4, 4] w) => (float[N, 4] y) {
    a = MatMul(x, w)
    b = Neg(a)
    c = Neg(b)
    y = Relu(c)
}"""


@pytest.fixture
def path(tmp_path):
    target = tmp_path / "model.onnx"
    model = parse(MODEL, w=np.eye(4, dtype=np.float32))
    bridge.Program(model, None, bridge.ExportReport()).save(target)
    return target


def run(*arguments):
    return main(["optimize", *map(str, arguments)])


def test_a_model_is_optimised_saved_and_reported(path, tmp_path, capsys):
    assert run(path, "-o", tmp_path / "fast.onnx") == 0
    captured = capsys.readouterr()
    assert "4 nodes became" in captured.out
    assert "verified" in captured.out
    assert "saving" in captured.err
    x = np.array([[1, -2, 3, -4]], np.float32)
    session = bridge.load(tmp_path / "fast.onnx")
    np.testing.assert_array_equal(session(x), np.maximum(x, 0))


def test_a_file_is_replaced_in_place(path):
    before = path.read_bytes()
    assert run(path, "-o", path, "--quiet") == 0
    assert path.read_bytes() != before
    assert [p.name for p in path.parent.iterdir()] == ["model.onnx"]


def test_weights_in_a_file_of_their_own_are_replaced_in_place(path):
    assert run(path, "-o", path, "--quiet", "--external-data") == 0
    assert run(path, "-o", path, "--quiet", "--external-data") == 0
    assert bridge.load(path)(np.ones((1, 4), np.float32)).sum() == 4


def test_reports_are_written_for_machines(path, tmp_path):
    assert run(path, "--format", "json", "--report", tmp_path / "r.json", "--quiet") == 0
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["rolled_back"] == {}
    assert report["verified"][0]["passed"]
    assert run(path, "--format", "junit", "--report", tmp_path / "r.xml", "--quiet") == 0
    assert "<testsuite" in (tmp_path / "r.xml").read_text()


def test_given_inputs_are_the_probes(path, tmp_path, capsys):
    np.savez(tmp_path / "x.npz", x=np.ones((7, 4), np.float32))
    assert run(path, "--inputs", tmp_path / "x.npz", "--quiet") == 0
    assert "float32[7, 4]" in capsys.readouterr().out
    assert run(path, "--input", "float32[5,4]", "--quiet") == 0
    assert "float32[5, 4]" in capsys.readouterr().out


def test_precision_and_target(path, tmp_path, capsys):
    target = tmp_path / "half.onnx"
    wanted = ["--target", "onnxruntime==1.24,cuda", "--precision", "fp16", "--convert-io"]
    assert run(path, "-o", target, *wanted, "--quiet") == 0
    model = onnx.load(target)
    assert {v.type.tensor_type.elem_type for v in model.graph.input} == {10}
    assert "onnxruntime==1.24,cuda" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--target", "gpu"], "is no target"),
        (["--input", "float32[2,4]", "--input", "float32[2,4]"], "2 inputs given"),
        (["--input", "z=float32[2,4]"], "unknown z"),
        (["-o", "/no/such/folder/x.onnx"], "cannot write"),
    ],
)
def test_what_cannot_be_done_is_told(path, arguments, told, capsys):
    assert run(path, *arguments, "--quiet") == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"no model", b"\x08\x08" * 100])
def test_broken_files_are_told(tmp_path, content, capsys):
    path = tmp_path / "broken.onnx"
    path.write_bytes(content)
    assert run(path, "--quiet") == 2
    assert "ModelFileError" in capsys.readouterr().err
