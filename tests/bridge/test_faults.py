"""The locator names the guilty node of every planted fault, or one that reads what it makes."""

from __future__ import annotations

import warnings

import pytest
import torch

import bridge
from bridge.graph_index import open_model
from bridge.parity.checking import check
from tests.bridge.faults import (
    FAULTS,
    Fault,
    attribute,
    duplicated,
    operator,
    swapped,
    weight,
    with_readers,
)
from tests.bridge.zoo import exported


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_fault_is_located(fault):
    model, args, program = exported(fault.model)
    planted = program.model.clone()
    guilty = set(fault.plant(planted))
    report = check(model, bridge.Session(planted), args)
    assert not report.passed, "the fault does not show in the result"
    assert report.divergence is not None
    assert report.divergence.node in with_readers(planted, guilty)
    assert report.verdicts
    if fault.iteration is not None:
        assert report.divergence.iteration == fault.iteration


class _Foreign(torch.nn.Module):
    """Convolutions that torch.onnx folds normalisation into, residuals, norms, a mixture of experts."""

    def __init__(self):
        super().__init__()
        self.stem = torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.BatchNorm2d(8)
        )
        self.norms = torch.nn.ModuleList(torch.nn.LayerNorm(8) for _ in range(3))
        self.mixers = torch.nn.ModuleList(torch.nn.Linear(8, 8) for _ in range(3))
        self.gate = torch.nn.Linear(8, 2)

    def forward(self, x):
        x = self.stem(x).flatten(2).transpose(1, 2)
        for norm, mixer in zip(self.norms, self.mixers, strict=True):
            x = x + 0.1 * torch.tanh(mixer(norm(x)))
        share = self.gate(x.mean(1)).softmax(-1)
        return (torch.stack([x, x.flip(1).exp()], -1) * share[:, None, None]).sum(-1)


FOREIGN = [
    Fault("foreign", "tanh lost", operator("Tanh", "Identity", nth=1)),
    Fault("foreign", "residual doubled", duplicated("Add", nth=1)),
    Fault("foreign", "softmax over the batch", attribute("Softmax", "axis", 0)),
    Fault("foreign", "wrong eps", attribute("LayerNormalization", "epsilon", 0.5, nth=1)),
    Fault("foreign", "wrong pads", attribute("Conv", "pads", [0, 0, 2, 2])),
    Fault("foreign", "maximum for mean", operator("ReduceMean", "ReduceMax")),
    Fault("foreign", "branch added", operator("Mul", "Add", nth=1)),
    Fault("foreign", "experts swapped", swapped("Concat", nth=-1)),
    Fault("foreign", "stale gate", weight("gate.weight", lambda w: w * 0.8)),
]


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    torch.manual_seed(0)
    model, x = _Foreign().eval(), torch.randn(2, 3, 4, 5)
    path = tmp_path_factory.mktemp("foreign") / "model.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (x,), path, dynamo=False, opset_version=17)
    return model, x, open_model(path)


@pytest.mark.parametrize("fault", FOREIGN, ids=str)
def test_faults_are_located_in_graphs_of_torch_onnx(foreign, fault):
    model, x, graph = foreign
    planted = graph.clone()
    guilty = set(fault.plant(planted))
    report = check(model, bridge.Session(planted), x)
    assert report.divergence.node in with_readers(planted, guilty)
    assert "not eager's: stem" not in str(report)  # normalisation is folded into it


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("wrong eps", "has epsilon 0.01 instead of"),
        ("relu for gelu", "is Relu; of eager Encoder it is Gelu"),
        ("inverted mask", "as input 1"),
        ("scale of scores", "instead of"),
    ],
)
def test_verdicts_tell_how_a_node_is_written(fault, told):
    (chosen,) = [f for f in FAULTS if f.model == "encoder" and f.name == fault]
    model, args, program = exported("encoder")
    planted = program.model.clone()
    chosen.plant(planted)
    report = check(model, bridge.Session(planted), args)
    assert any(told in verdict for verdict in report.verdicts), report.verdicts


def test_there_are_sixty_faults_in_ten_models():
    assert len(FAULTS) >= 60
    assert len({f.model for f in FAULTS}) == 10
    assert len({str(f) for f in FAULTS}) == len(FAULTS)


@pytest.mark.parametrize("name", sorted({f.model for f in FAULTS}))
def test_without_a_fault_nothing_is_located(name):
    model, args, program = exported(name)
    report = check(model, program, args)
    assert report.passed
    assert report.divergence is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("plant", "module"),
    [
        (attribute("LayerNormalization", "epsilon", 1e-1, nth=12), "layer.5.output.LayerNorm"),
        (operator("Gelu", "Relu", nth=6), "layer.6.intermediate"),
        (weight("bert.encoder.layer.5.attention.self.value.weight", lambda w: w.T), "layer.5"),
    ],
    ids=["eps", "relu", "transposed"],
)
def test_a_fault_in_a_model_of_full_size_is_located(plant, module):
    from tests.benchmarks.export import build

    model, args, dynamic = build("bert_base")
    program = bridge.export(model, args, dynamic_shapes=dynamic, verify=False)
    guilty = plant(program.model)
    report = check(model, program, tuple(x[:1, :64] for x in args))
    assert report.divergence.node in guilty
    assert module in report.divergence.module
