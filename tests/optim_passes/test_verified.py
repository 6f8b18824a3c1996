"""Passes that break a model are found, rolled back and named; the others stay."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

import bridge
from bridge.optimizing import OptimizationWarning
from bridge.probes import NoProbesError, ProbeCheck, made_up_feeds
from bridge.session import Session
from optim_passes.pipeline import Repeat, pass_name, run
from optim_passes.rewriting import NodePass
from optim_passes.verified import run_verified
from tests.optim_passes.running import ops, parse

WEIGHT = np.eye(4, dtype=np.float32) * 2
MODEL = """g (float[N, 4] x, float[4, 4] w) => (float[N, 4] y) {
    a = MatMul(x, w)
    b = Relu(a)
    c = Identity(b)
    d = Neg(c)
    e = Neg(d)
    y = Add(e, x)
}"""


class ReluToAbsPass(NodePass):
    """Wrong wherever a value is negative."""

    op_types = frozenset({"Relu"})

    def rewrite(self, node, op):
        return op.Abs(node.inputs[0])


class DoubleNegPass(NodePass):
    """Right."""

    op_types = frozenset({"Neg"})

    def rewrite(self, node, op):
        before = node.inputs[0].producer()
        return before.inputs[0] if before is not None and before.op_type == "Neg" else None


class RaisingPass(NodePass):
    """Fails half-way."""

    op_types = frozenset({"Add"})

    def rewrite(self, node, op):
        node.replace_input_with(0, node.inputs[1])
        raise KeyError("oops")


class InvalidPass(NodePass):
    """Makes a node that no runtime accepts."""

    op_types = frozenset({"Relu"})

    def rewrite(self, node, op):
        return op.node("NoSuchOperator", node.inputs[0], like=node.outputs[0])


class RenamingPass(ir.passes.InPlacePass):
    """Renames an output, which callers know by name."""

    def call(self, model):
        model.graph.outputs[0].name = "z"
        return ir.passes.PassResult(model, modified=True)


def model():
    return parse(MODEL, w=WEIGHT)


def optimised(*passes, **options):
    with pytest.warns(OptimizationWarning, match="rolled back"):
        return bridge.optimize(model(), passes=passes, **options)


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (ReluToAbsPass, "MISMATCH"),
        (RaisingPass, "KeyError: 'oops'"),
        (InvalidPass, "NoSuchOperator"),
        (RenamingPass, "outputs are z"),
    ],
)
def test_the_culprit_alone_is_rolled_back(bad, why):
    program = optimised(DoubleNegPass(), bad(), *bridge.passes.cpu)
    assert list(program.report.rolled_back) == [pass_name(bad())]
    assert why in next(iter(program.report.rolled_back.values()))
    assert ops(program.model) == {"MatMul": 1, "Relu": 1, "Add": 1}
    x = np.array([[-1, 2, -3, 4]], np.float32)
    np.testing.assert_allclose(program(x), np.maximum(x * 2, 0) + x)


def test_every_culprit_is_found():
    program = optimised(ReluToAbsPass(), RaisingPass(), InvalidPass(), DoubleNegPass())
    assert set(program.report.rolled_back) == {"ReluToAbs", "Raising", "Invalid"}
    assert ops(program.model) == {"MatMul": 1, "Relu": 1, "Identity": 1, "Add": 1}


def test_a_culprit_in_a_repeated_group_is_found():
    program = optimised(Repeat(DoubleNegPass(), ReluToAbsPass()))
    assert set(program.report.rolled_back) == {"ReluToAbs"}


def test_a_right_pipeline_is_compared_once():
    seen = []
    result, report = run_verified(model(), bridge.passes.cpu, lambda m: seen.append(m))
    assert seen == [result]
    assert not any(s.rolled_back for s in report.steps.values())


def test_the_model_given_stays_as_it_is():
    given = model()
    before = ops(given)
    bridge.optimize(given)
    assert ops(given) == before


def test_without_verification_a_wrong_pass_stays():
    program = bridge.optimize(model(), passes=[ReluToAbsPass()], verify=False)
    assert ops(program.model)["Abs"] == 1
    assert program.report.unverified


def test_what_the_runtime_breaks_is_no_pass_s_fault(monkeypatch):
    """ONNX Runtime's optimizer is made to be wrong: passes are compared without it."""
    real = ProbeCheck._compare

    def broken(self, m, **options):
        rows = real(self, m, **options)
        if self.settings.optimization != "none":
            raise NoProbesError("refused")
        return rows

    monkeypatch.setattr(ProbeCheck, "_compare", broken)
    check = ProbeCheck.of(model(), [], Session(model()).settings)
    assert check.failure(model()) is None
    assert check.settings.optimization == "none"


def test_random_models_are_not_compared():
    random = parse("g () => (float[3] y) { y = RandomNormal <shape = [3]> () }")
    program = bridge.optimize(random)
    assert "random" in program.report.unverified


@pytest.mark.parametrize("kernel", [1, 3, 33])
def test_probes_have_sizes_that_the_model_takes(kernel):
    """A convolution of 33 needs images at least as large."""
    text = (
        "g (float[N, 1, H, W] x, float[1, 1, K, K] w) => (float[N, 1, P, Q] y) { y = Conv(x, w) }"
    )
    conv = parse(text, w=np.ones((1, 1, kernel, kernel), np.float32))
    feeds = made_up_feeds(Session(conv))
    assert len({f["x"].shape for f in feeds}) == 2
    assert all(min(f["x"].shape[2:]) >= kernel for f in feeds)


def test_report_is_plain_data():
    import json

    program = bridge.optimize(model())
    assert json.loads(json.dumps(program.report.to_dict(), default=str))["target"] == "cpu"
    assert "verified" in str(program.report)
    assert run(model(), [])[1].nodes == (6, 6)
