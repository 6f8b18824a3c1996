"""Which pass, ours or ONNX Runtime's, is to blame, and the smallest model that shows it."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

import bridge
from optim_passes.rewriting import NodePass
from tests.optim_passes.running import parse, session
from tests.optim_passes.test_verified import DoubleNegPass, RaisingPass, ReluToAbsPass

MODEL = """g (float[N, 4] x, float[4, 4] w) => (float[N, 4] y) {
    a = MatMul(x, w)
    b = Softmax(a)
    c = Add(b, x)
    d = Relu(c)
    e = Neg(d)
    f = Neg(e)
    h = Tanh(f)
    i = MatMul(h, w)
    y = Sigmoid(i)
}"""


class RoundingPass(NodePass):
    """Rounds to steps of 1/16."""

    op_types = frozenset({"Tanh"})
    repeat = False

    def rewrite(self, node, op):
        steps = op.number(16, node.outputs[0])
        return op.Div(op.Round(op.Mul(op.Tanh(node.inputs[0]), steps)), steps)


def model():
    return parse(MODEL, w=np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32))


@pytest.mark.parametrize(
    ("bad", "nodes"), [(ReluToAbsPass, ["Relu"]), (RoundingPass, ["Tanh"]), (RaisingPass, ["Add"])]
)
def test_our_culprit_is_found_and_cut_out(bad, nodes, tmp_path):
    report = bridge.bisect(
        model(), path=tmp_path / "case", passes=[DoubleNegPass(), bad(), *bridge.passes.cpu]
    )
    assert (report.culprit, report.kind) == (bad.__name__.removesuffix("Pass"), "pass")
    assert report.index == 1
    assert [n.op_type for n in report.reproducer.model.graph] == nodes
    part = onnx.load(tmp_path / "case" / "model.onnx")
    with (
        np.load(tmp_path / "case" / "inputs.npz") as feed,
        np.load(tmp_path / "case" / "expected.npz") as expected,
    ):
        got = session(ir.from_proto(part)).run(None, dict(feed))
        np.testing.assert_allclose(got[0], next(iter(expected.values())), rtol=1e-5)
    assert "the culprit is the pass" in str(report)
    assert json.loads(json.dumps(report.to_dict(), default=str))["nodes"] == nodes


def test_the_first_of_several_culprits_is_named():
    report = bridge.bisect(model(), passes=[RoundingPass(), ReluToAbsPass()])
    assert report.culprit == "Rounding"


def test_a_wrong_pass_before_one_that_raises_is_named():
    report = bridge.bisect(model(), passes=[ReluToAbsPass(), RaisingPass()])
    assert report.culprit == "ReluToAbs"


def test_right_pipelines_pass():
    assert bridge.bisect(model()).passed
    assert "no pass" in str(bridge.bisect(model(), passes=[]))


def test_the_runtime_s_own_optimizer_is_found_and_cut_out(tmp_path):
    """GeluApproximation is off by more than rounding, and has to be asked for."""
    gelu = parse("""g (float[N, 8] x) => (float[N, 8] y) {
        a = Neg(x)
        b = com.microsoft.Gelu(a)
        c = Softmax(b)
        y = Add(c, x)
    }""")
    feed = {"x": np.linspace(-4, 4, 16, dtype=np.float32).reshape(2, 8)}
    report = bridge.bisect(
        gelu,
        feed,
        tmp_path,
        passes=[],
        tolerance=bridge.Tolerance(0, 1e-6),
        config={"optimization.enable_gelu_approximation": "1"},
    )
    assert (report.culprit, report.kind) == ("GeluApproximation", "runtime")
    assert "ONNX Runtime's optimizer GeluApproximation" in str(report)
    assert report.comparison is not None


def test_culprits_in_bodies_are_found():
    loop = parse("""g (float[4] x, int64 n) => (float[4] y) {
        t = Constant <value = bool {1}> ()
        z = Neg(x)
        y = Loop (n, t, z) <body = b (int64 i, bool ci, float[4] a) => (bool co, float[4] s) {
            co = Identity(ci)
            r = Relu(a)
            s = Sub(r, x)
        }>
    }""")
    feed = {"x": np.array([1, -2, 3, -4], np.float32), "n": np.array(3)}
    report = bridge.bisect(loop, feed, passes=[ReluToAbsPass()])
    assert report.culprit == "ReluToAbs"
    assert [n.op_type for n in report.reproducer.model.graph if n.op_type != "Constant"] == [
        "Loop"
    ]


def test_inputs_of_the_export_are_the_probes():
    layers = [torch.nn.Linear(4, 4), torch.nn.ReLU()]
    program = bridge.export(torch.nn.Sequential(*layers).eval(), torch.ones(2, 4))
    assert bridge.bisect(program).passed
    report = bridge.bisect(program, torch.randn(2, 4), passes=[ReluToAbsPass()])
    assert [n.op_type for n in report.reproducer.model.graph] == ["Relu"]


@pytest.mark.e2e
def test_the_command_line(tmp_path, capsys):
    from bridge.cli import main

    path = tmp_path / "model.onnx"
    bridge.Program(model(), None, bridge.ExportReport()).save(path)
    assert main(["bisect", str(path), "--quiet"]) == 0
    assert "no pass changes" in capsys.readouterr().out
    assert main(["bisect", str(tmp_path / "none.onnx"), "--quiet"]) == 2
    assert "ModelFileError" in capsys.readouterr().err
