"""The locator names the guilty node of every planted fault, or one that reads what it makes."""

from __future__ import annotations

import pytest

import bridge
from bridge.parity.checking import check
from tests.bridge.faults import FAULTS, attribute, operator, weight, with_readers
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
def test_a_fault_in_a_model_of_full_size_is_located(plant, module):
    from tests.benchmarks.export import build

    model, args, dynamic = build("bert_base")
    program = bridge.export(model, args, dynamic_shapes=dynamic, verify=False)
    guilty = plant(program.model)
    report = check(model, program, tuple(x[:1, :64] for x in args))
    assert report.divergence.node in guilty
    assert module in report.divergence.module
