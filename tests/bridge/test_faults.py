"""The locator names the guilty node of every planted fault, or one that reads what it makes."""

from __future__ import annotations

import time

import pytest

import bridge
from bridge.graph_index import GraphIndex
from bridge.parity.checking import check
from tests.bridge.faults import FAULTS, attribute, operator, weight
from tests.bridge.zoo import exported


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_fault_is_located(fault):
    model, args, program = exported(fault.model)
    planted = program.model.clone()
    guilty = set(fault.plant(planted))
    started = time.perf_counter()
    report = check(model, bridge.Session(planted), args)
    assert time.perf_counter() - started < 30
    assert not report.passed, "the fault does not show in the result"
    index = GraphIndex(planted)
    values = [v for n in guilty if n in index.by_name for v in index.by_name[n].node.outputs]
    guilty |= {node.name for v in values for node in v.consumers()}
    assert report.divergence is not None
    assert report.divergence.node in guilty
    if fault.iteration is not None:
        assert report.divergence.iteration == fault.iteration


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
def test_a_fault_in_a_model_of_full_size_is_located_within_a_minute(plant, module):
    from tests.benchmarks.export import build

    model, args, dynamic = build("bert_base")
    program = bridge.export(model, args, dynamic_shapes=dynamic, verify=False)
    guilty = plant(program.model)
    started = time.perf_counter()
    report = check(model, program, tuple(x[:1, :64] for x in args))
    assert time.perf_counter() - started < 60
    assert report.divergence.node in guilty
    assert module in report.divergence.module
