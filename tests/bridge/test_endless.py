"""Graphs of which a Loop does not end: every command ends all the same, and names the Loop."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch

import bridge
from bridge.cli import main
from bridge.control import time_limit
from bridge.errors import RunTimeoutError
from bridge.graph_index import GraphIndex
from bridge.parity.endless import find_endless
from tests.bridge.graphs import graph

# counts down by what is put in the place of STEP, until nothing is left
COUNTDOWN = """g(float[N] x) => (float[N] y, float[M, N] seen)
  <float step = {STEP}, float zero = {0}, int64 most = {MOST}, bool on = {1}> {
    y, seen = Loop(most, on, x) <
      body = b (int64 i, bool c, float[N] a) => (bool more, float[N] less, float[N] now) {
        less = Sub(a, step)
        now = Identity(a)
        top = ReduceMax <keepdims = 0> (less)
        more = Greater(top, zero)
    }>
}"""


def countdown(step: float, most: int = 2**62) -> ir.Model:
    return graph(COUNTDOWN.replace("STEP", str(step)).replace("MOST", str(most)))


class Halving(torch.nn.Module):
    """A loop that a condition ends, in a branch, in a loop."""

    def __init__(self):
        super().__init__()
        self.first = torch.nn.Linear(4, 4)

    def forward(self, x):
        total = torch.zeros_like(x[0])
        for i in range(x.shape[0]):
            y = self.first(x[i])
            if y.sum() > 0:
                steps = 0
                while y.abs().sum() > 0.1:
                    y = y * 0.5
                    steps = steps + 1
                total = total + steps
            else:
                total = total - y
        return total


def test_the_node_that_keeps_a_nested_loop_going_is_located():
    torch.manual_seed(0)
    model, x = Halving().eval(), torch.randn(5, 3, 4)
    program = bridge.export(model, x, dynamic_shapes={"x": {0: "n"}})
    planted = program.model.clone()
    halves = next(i.node for i in GraphIndex(planted).nodes if i.node.op_type == "Mul")
    halves.op_type = "Max"
    report = bridge.check(model, bridge.Session(planted), x, timeout=0.5)
    assert not report.passed
    assert "took longer than 0.5 s" in report.cases[0].error
    assert "in Halving.forward does not end: it still goes on after" in report.verdicts[0]
    assert not any("stopped" in v for v in report.verdicts)
    assert report.divergence.node == halves.name
    assert report.divergence.iteration == 0
    assert [place.split(" of ")[0] for place in report.divergence.around] == [
        "iteration 2", "the then branch", "iteration 0",
    ]  # fmt: skip


def test_a_loop_of_another_graph_is_named_and_located():
    x = np.asarray([3.0, 7.0], np.float32)
    right, wrong = countdown(1.0), countdown(0.0)
    report = bridge.check(right, wrong, {"x": x}, timeout=0.5)
    assert "does not end: it still goes on after" in report.verdicts[0]
    assert report.divergence.op_type == "Sub"
    assert report.divergence.around[0].startswith("iteration 0 of Loop")


def test_a_loop_without_end_fails_in_each_cell_of_a_matrix():
    from bridge.parity.matrix import check_matrix

    x = np.asarray([3.0], np.float32)
    matrix = check_matrix(
        countdown(1.0), countdown(0.0), {"x": x}, timeout=0.2, optimizations=["none", "all"]
    )
    assert [c.passed for c in matrix.cells] == [False, False]
    assert "does not end" in str(matrix)


def test_a_loop_that_ends_by_its_count_is_not_named():
    session = bridge.Session(countdown(0.0, most=20))
    assert find_endless(bridge.Session(countdown(1.0)), {"x": np.ones(2, np.float32)}) is not None
    with time_limit(5.0):
        assert session.run({"x": np.ones(2, np.float32)})["seen"].shape == (20, 2)


def test_a_limit_holds_for_runs_inside_of_it_that_have_none():
    session = bridge.Session(countdown(0.0))
    feed = {"x": np.ones(2, np.float32)}
    with time_limit(0.1), pytest.raises(RunTimeoutError, match=r"0\.1 s"):
        session.run(feed)
    with time_limit(60.0), pytest.raises(RunTimeoutError, match=r"0\.2 s"):
        session.run(feed, timeout=0.2)


def test_run_names_the_loop(tmp_path, capsys):
    path = tmp_path / "model.onnx"
    ir.save(countdown(0.0), path)
    np.savez(tmp_path / "x.npz", x=np.ones(2, np.float32))
    inputs = ["--inputs", str(tmp_path / "x.npz")]
    assert main(["run", str(path), *inputs, "--timeout", "0.2"]) == 2
    told = capsys.readouterr().err
    assert "RunTimeoutError: the run took longer than 0.2 s; Loop" in told
    assert "does not end" in told


def test_locate_takes_a_time_limit(tmp_path, capsys):
    for name, step in (("right", 1.0), ("wrong", 0.0)):
        ir.save(countdown(step), tmp_path / f"{name}.onnx")
    np.savez(tmp_path / "x.npz", x=np.asarray([4.0], np.float32))
    models = [str(tmp_path / f"{n}.onnx") for n in ("right", "wrong")]
    inputs = ["--inputs", str(tmp_path / "x.npz"), "--timeout", "0.2"]
    assert main(["locate", *models, *inputs]) == 1
    assert "first divergence: Sub" in capsys.readouterr().out
    assert main(["locate", *models, *inputs[:-1], "-3"]) == 2
    assert "it is a number of seconds above 0" in capsys.readouterr().err
