"""Equal values in another order, and rounding at a threshold, are no faults of a graph."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch

import bridge
from bridge.parity.forcing import Probe
from bridge.parity.ties import are_other_ties

TIES = torch.randint(0, 4, (2000,), generator=torch.Generator().manual_seed(0)).float()


class Best(torch.nn.Module):
    """The places of the best of many equal scores, and what is found there."""

    def forward(self, scores, boxes):
        values, places = scores.topk(300)
        return values, places, boxes[places]


class Sorted(torch.nn.Module):
    def forward(self, scores, boxes):
        kept = torch.where(scores > 0)[0]
        kept = kept[scores[kept].sort(descending=True)[1]]
        return kept, boxes[kept]


@pytest.mark.parametrize("model", [Best(), Sorted()], ids=["topk", "sort"])
def test_ties_may_be_broken_otherwise(model):
    boxes = torch.rand(2000, 4, generator=torch.Generator().manual_seed(1))
    program = bridge.export(model.eval(), (TIES, boxes))
    places = next(x for x in model(TIES, boxes) if x.dtype == torch.int64)
    got = next(x for x in program(TIES, boxes) if x.dtype == torch.int64)
    torch.testing.assert_close(TIES[got], TIES[places])
    warned = any("order of equal values" in w for w in program.report.warnings)
    assert warned is not torch.equal(got, places)


def test_a_fault_beside_ties_is_found():
    boxes = torch.rand(2000, 4, generator=torch.Generator().manual_seed(1))
    program = bridge.export(Best().eval(), (TIES, boxes), verify=False)
    node = next(n for n in program.model.graph if n.op_type == "TopK")
    node.attributes["largest"] = ir.AttrInt64("largest", 0)
    report = bridge.check(Best().eval(), program.session(), (TIES, boxes))
    assert not report.passed
    assert report.divergence.op_type == "TopK"


def test_equal_values_are_told_from_others():
    """Of places that differ, only those of equal values may."""
    boxes = torch.rand(2000, 4, generator=torch.Generator().manual_seed(1))
    program = bridge.export(Best().eval(), (TIES, boxes), verify=False)
    session = program.session()
    probe = Probe(program.model, session.settings_for_parts())
    node = next(n for n in program.model.graph if n.op_type == "TopK")
    name = node.outputs[1].name
    feed = {"scores": TIES.numpy(), "boxes": boxes.numpy()}
    got = dict(probe.values([name], feed))[name]
    best = np.flatnonzero(feed["scores"] == 3)
    assert are_other_ties(probe, name, best[-300:], got, feed, {})
    assert not are_other_ties(
        probe, name, np.flatnonzero(feed["scores"] == 2)[:300], got, feed, {}
    )


class Components(torch.nn.Module):
    """Principal components, and data in their terms."""

    def forward(self, x):
        centred = x - x.mean(0)
        values, vectors = torch.linalg.eigh(centred.T @ centred)
        left, scale, right = torch.linalg.svd(centred, full_matrices=False)
        return values, vectors, centred @ vectors, left, scale, right


@pytest.mark.parametrize("seed", range(3))
def test_signs_of_eigenvectors_are_not_compared(seed):
    x = torch.randn(20, 4, generator=torch.Generator().manual_seed(seed))
    program = bridge.export(Components().eval(), x)
    for expected, got in zip(Components()(x), program(x), strict=True):
        torch.testing.assert_close(got.abs(), expected.abs(), rtol=1e-3, atol=1e-3)
    left, scale, right = program(x)[3:]
    torch.testing.assert_close(left * scale @ right, x - x.mean(0), rtol=1e-3, atol=1e-4)
    same = all(
        torch.allclose(a, b, atol=1e-3) for a, b in zip(Components()(x), program(x), strict=True)
    )
    assert any("signs of eigenvectors" in w for w in program.report.warnings) is not same


def test_a_fault_beside_signs_is_found():
    x = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    program = bridge.export(Components().eval(), x, verify=False)
    node = next(
        n for n in program.model.graph if n.op_type == "TopK" and not n.attributes["largest"].value
    )
    node.attributes["largest"] = ir.AttrInt64("largest", 1)
    report = bridge.check(Components().eval(), program.session(), x)
    assert not report.passed
    assert report.divergence.op_type == "TopK"
