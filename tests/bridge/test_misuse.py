"""Mistakes in calls of the public API: each is one error of ours that says what would be right."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import bridge
from bridge.errors import FeedError, ModelFileError, ProviderError
from tests.bridge.graphs import SCALE, graph_bytes

X = torch.ones(3, 4)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x: Any, scale: Any = None) -> Any:
        y = self.layer(x)
        return y if scale is None else y * scale


NET: Any = Net().eval()
PROGRAM: Any = bridge.export(NET, X, dynamic_shapes={"x": {0: "n"}})
SESSION = PROGRAM.session()
export: Any = bridge.export
check: Any = bridge.check
load: Any = bridge.load
optimize: Any = bridge.optimize

MISTAKES: dict[str, tuple[Any, Any, str]] = {
    "no arguments": (lambda: export(NET), bridge.InputError, "missing a required argument: 'x'"),
    "kwargs is a list": (lambda: export(NET, X, kwargs=[X]), bridge.InputError, "dict by parameter"),
    "opset is text": (lambda: export(NET, X, opset="17"), bridge.InputError, "a number such as 20"),
    "opset is no integer": (lambda: export(NET, X, opset=17.5), bridge.InputError, "a number such"),
    "examples is a tensor": (lambda: export(NET, X, examples=X), bridge.InputError, "list of examples"),
    "the path is a number": (lambda: export(NET, X, 3), bridge.ModelFileError, "no name of a file"),
    "the path is empty": (lambda: PROGRAM.save(""), bridge.ModelFileError, "no name of a file"),
    "output names are one": (lambda: export(NET, X, output_names="y"), bridge.InputError, r"\['y'\]"),
    "an output is called like an input": (
        lambda: export(NET, X, output_names=["x"]), bridge.InputError, "a name of its own"),
    "outputs are called the same": (
        lambda: export(lambda x: (x + 1, x + 2), X, output_names=["a", "a"]),
        bridge.InputError, "a name of its own"),
    "a generator comes back": (
        lambda: export(lambda x: (y for y in [x]), X), bridge.InputError, "but a generator, so"),
    "None comes back": (lambda: export(lambda x: None, X), bridge.InputError, "but None, so"),
    "a provider is a number": (
        lambda: load(PROGRAM, providers=3), bridge.ProviderError, 'providers="cuda,cpu"'),
    "an option is misspelt": (
        lambda: load(PROGRAM, thread=2), bridge.FeedError, "did you mean 'threads'"),
    "threads is text": (lambda: load(PROGRAM, threads="two"), bridge.FeedError, "number of threads"),
    "threads is negative": (lambda: load(PROGRAM, threads=-3), bridge.FeedError, "number of threads"),
    "timeout is text": (
        lambda: SESSION.run({"x": X}, timeout="x"), bridge.FeedError, "seconds above 0"),
    "timeout is negative": (
        lambda: SESSION.run({"x": X}, timeout=-1), bridge.FeedError, "seconds above 0"),
    "a share is a percentage": (
        lambda: SESSION.require_placement(cpu=90), bridge.ProviderError, "no share of the nodes"),
    "tolerance is a number": (
        lambda: check(NET, PROGRAM, X, tolerance=1e-3), bridge.FeedError, "write tolerance=bridge"),
    "tolerance of no output": (
        lambda: check(NET, PROGRAM, X, tolerance={"no": bridge.Tolerance(1, 1)}),
        bridge.FeedError, "the outputs are output"),
    "tolerance is negative": (lambda: bridge.Tolerance(-1, 0), bridge.FeedError, "0 or more"),
    "the metric gives text": (
        lambda: check(NET, PROGRAM, X, metric=lambda _: "good"), bridge.FeedError, "returns a number"),
    "the metric fails": (
        lambda: check(NET, PROGRAM, X, metric=lambda o: o["no"]), bridge.FeedError, r"\(output\)"),
    "inputs are in no file": (
        lambda: check(NET, PROGRAM, "no.npz"), bridge.FeedError, "cannot read arrays from no.npz"),
    "more outputs than the graph has": (
        lambda: check(lambda x: (NET(x), x), PROGRAM, X),
        bridge.FeedError, "returns 2 tensors, the model has 1 outputs"),
    "a target is a list": (
        lambda: optimize(PROGRAM, target=["cpu"]), bridge.TargetError, "a list is no target"),
    "eager code is optimised": (
        lambda: optimize(NET), bridge.FeedError, r"bridge\.export\(model, args\)"),
    "nothing is optimised": (lambda: optimize(None), bridge.FeedError, "a NoneType is no ONNX model"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_with_what_would_be_right(name: str) -> None:
    call, error, told = MISTAKES[name]
    with pytest.raises(error, match=told):
        call()


def test_what_eager_code_raises_stays_with_a_note_of_its_line() -> None:
    with pytest.raises(RuntimeError, match="cannot be multiplied") as caught:
        bridge.export(NET, torch.ones(3, 5))
    (note,) = caught.value.__notes__
    assert "test_misuse.py" in note
    assert "y = self.layer(x)" in note
    assert "hint: call the model" in note


def test_what_only_a_trace_raises_is_a_refusal() -> None:
    def f(x: torch.Tensor) -> torch.Tensor:
        if x.shape[0].__class__ is not int:
            raise KeyError("unknown")
        return x * 1

    with pytest.raises(bridge.UntraceableError) as caught:
        bridge.export(f, X, dynamic_shapes=({0: "n"},))
    line = f.__code__.co_firstlineno + 2
    assert str(caught.value) == (
        "eager code runs, but its trace raises KeyError: 'unknown'\n"
        f"  at tests/bridge/test_misuse.py:{line} in {f.__qualname__}\n"
        '    raise KeyError("unknown")\n'
        "    ^^^^^^^^^^^^^^^^^^^^^^^^^\n\n"
        "hint: write this line in another way, or keep it out of the exported model\n"
        "docs/errors#untraceableerror"
    )


def test_a_reference_that_fails_is_not_looked_into() -> None:
    report = check(lambda x: 1 / 0, PROGRAM, X)
    assert not report.passed
    assert "ZeroDivisionError: division by zero" in str(report)


def test_a_type_that_the_reference_refuses_is_told_by_the_inputs_name() -> None:
    with pytest.raises(FeedError, match="input 'x' is float64, the model takes float32"):
        check(NET, PROGRAM, (X.double(),))


def test_no_work_is_done_for_a_file_that_cannot_be_written(tmp_path: Any) -> None:
    def never(x: torch.Tensor) -> torch.Tensor:
        raise AssertionError("it was traced")

    with pytest.raises(bridge.ModelFileError):
        bridge.export(never, X, tmp_path / "missing" / "model.onnx")


DEPLOYMENTS = {
    "[deployments]\ne = 3": "deployment 'e'",
    "deployments = [1]": "deployments in",
    '[deployments.e]\nconfig = "x"': "config is 'x'",
    "[deployments.e]\noptions.cpu = 3": "options is 'cpu = 3'",
    '[deployments.e]\nrequire = { cpu = "all" }': "require is",
    "[deployments.e]\nrequire = 3": "require is 3",
    "[deployments.e]\ncache = 3": "cache is 3",
    "[deployments.e]\nthreads = true": "threads is True",
    "[deployments.e]\ncuda_graphs = { n = 3 }": "cuda_graphs is",
}


@pytest.mark.parametrize("text", list(DEPLOYMENTS))
def test_deployments_of_wrong_types_are_told_with_how_to_write_them(text, tmp_path, monkeypatch):
    (tmp_path / "bridge.toml").write_text(text)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ProviderError, match=DEPLOYMENTS[text]) as caught:
        bridge.load(graph_bytes(SCALE), deployment="e")
    assert caught.value.hint


def test_numbers_of_a_deployment_are_config_entries(tmp_path, monkeypatch):
    text = '[deployments.e]\nconfig = { "session.set_denormal_as_zero" = 1, "session.x" = true }'
    (tmp_path / "bridge.toml").write_text(text)
    monkeypatch.chdir(tmp_path)
    x, w = np.ones((2, 4), np.float32), np.ones(4, np.float32)
    found = bridge.load(graph_bytes(SCALE), deployment="e").run({"x": x, "w": w})
    np.testing.assert_array_equal(found["y"], x)


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"config": 3}, FeedError),
        ({"config": {3: "a"}}, FeedError),
        ({"cache": 3}, FeedError),
        ({"threads": True}, FeedError),
        ({"threads": 10**9}, FeedError),
        ({"cuda_graphs": {"n": 3}}, FeedError),
        ({"providers": [("cpu",)]}, ProviderError),
        ({"providers": [("cpu", "x")]}, ProviderError),
        ({"providers": "cpu:x"}, ProviderError),
    ],
    ids=str,
)
def test_session_options_of_wrong_types_are_told(options, kind):
    with pytest.raises(kind):
        bridge.load(graph_bytes(SCALE), **options)


def test_run_options_of_wrong_types_are_told():
    session = bridge.load(graph_bytes(SCALE))
    feed = {"x": np.ones((2, 4), np.float32), "w": np.ones(4, np.float32)}
    for options in ({"run_config": 3}, {"outputs": 3}, {"timeout": float("nan")}):
        with pytest.raises(FeedError):
            session.run(feed, **options)
    assert session.run(feed, timeout=float("inf"), run_config={"a": 1})["y"].shape == (2, 4)


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        (lambda m: m.graph.node.add(op_type="Neg", input=["x"], output=["y"]), ""),
        (lambda m: setattr(m.opset_import[0], "version", 999), "newer onnxruntime"),
        (lambda m: setattr(m, "ir_version", 9999), "newer onnxruntime"),
    ],
    ids=["two nodes make one value", "an opset to come", "a format to come"],
)
def test_files_that_no_runtime_takes_are_the_files_fault(change, hint):
    import onnx

    proto = onnx.ModelProto.FromString(graph_bytes(SCALE))
    change(proto)
    with pytest.raises(ModelFileError) as caught:
        bridge.load(proto.SerializeToString())
    assert hint in (caught.value.hint or "")
