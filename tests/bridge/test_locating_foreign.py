"""Locating in graphs that torch.onnx made, by the numbers that eager code makes on the way."""

from __future__ import annotations

import functools
import warnings

import numpy as np
import onnx_ir as ir
import pytest
import torch

import bridge
from bridge.graph_index import open_model
from bridge.parity.checking import check
from bridge.parity.right_numbers import RightNumbers
from tests.bridge import faults


class Mixture(torch.nn.Module):
    """Heads of attention, then experts that masks choose from."""

    def __init__(self):
        super().__init__()
        self.heads = torch.nn.Linear(16, 48)
        self.gate = torch.nn.Linear(16, 4)
        self.experts = torch.nn.ModuleList(torch.nn.Linear(16, 16) for _ in range(4))

    def forward(self, x):
        q, k, v = self.heads(x).view(2, 5, 3, 2, 8).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        x = mixed.transpose(1, 2).reshape(10, 16)
        share, chosen = self.gate(x).softmax(-1).topk(2, -1)
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            weight = ((chosen == number) * share).sum(-1, keepdim=True)
            out = out + weight * expert(x)
        return torch.nn.functional.layer_norm(x + out, (16,))


@functools.cache
def exported():
    torch.manual_seed(0)
    model, x = Mixture().eval(), 3 * torch.randn(2, 5, 16)
    return model, x, _torch_onnx(model, x)


def _torch_onnx(model, x):
    import tempfile
    from pathlib import Path

    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")
        path = Path(folder) / "model.onnx"
        torch.onnx.export(model, (x,), path, dynamo=False, opset_version=17)
        return open_model(path)


def lost(nth):
    """A sum that is its first term alone."""

    def plant(graph):
        node = faults.find(graph, "Add", nth)
        node.op_type = "Identity"
        node.resize_inputs(1)
        return [node.name]

    return plant


def first_reversed(graph):
    """Heads, of which there are as many as examples, in their place."""
    node = next(n for n in graph.graph if n.op_type == "Transpose")
    perm = list(node.attributes["perm"].value)  # of [2, 5, 3, 2, 8]
    perm = [{0: 3, 3: 0}.get(p, p) for p in perm]
    node.attributes.add(ir.convenience.convert_attribute("perm", perm))
    return [node.name]


FAULTS = {
    "a residual that is lost": lost(-3),
    "heads and examples swapped": first_reversed,
    "a mask that another expert has": faults.operator("Equal", "Less", nth=1),
    "the scale of keys": faults.operator("Mul", "Add", nth=1),
    "the weights of a mask, truncated": faults.after("Mul", faults.truncated, nth=5),
    "scores over queries": faults.attribute("Softmax", "axis", 2),
    "an expert subtracted": faults.operator("Add", "Sub", nth=-2),
}


@pytest.mark.parametrize("fault", list(FAULTS))
def test_the_first_node_that_eager_code_knows_nothing_of_is_blamed(fault):
    model, x, graph = exported()
    planted = graph.clone()
    guilty = set(FAULTS[fault](planted))
    report = check(model, bridge.Session(planted), x)
    assert not report.passed, "the fault does not show in the result"
    assert report.divergence.node in faults.with_readers(planted, guilty), str(report)


def test_a_loop_that_another_exporter_unrolled_is_located_in():
    class Steps(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = torch.nn.GRUCell(4, 4)

        def forward(self, x):
            h = x
            for _ in range(3):
                h = self.cell(x, h)
            return h

    torch.manual_seed(0)
    model, x = Steps().eval(), torch.randn(2, 4)
    planted = _torch_onnx(model, x)
    guilty = set(faults.operator("Tanh", "Erf", nth=1)(planted))
    report = check(model, bridge.Session(planted), x)
    assert report.divergence.node in faults.with_readers(planted, guilty)


def test_code_that_cannot_be_traced_here_is_located_in_all_the_same(monkeypatch):
    from bridge.parity import retracing
    from exporters.errors import ExportError

    def refused(*_):
        raise ExportError("an operator is missing")

    monkeypatch.setattr(retracing, "retrace", refused)
    model, x, graph = exported()
    planted = graph.clone()
    guilty = set(faults.attribute("Softmax", "axis", 2)(planted))
    report = check(model, bridge.Session(planted), x)
    assert report.divergence.node in faults.with_readers(planted, guilty)


def test_a_value_that_would_put_the_result_right_is_told_of():
    model, x, graph = exported()
    planted = graph.clone()
    (name,) = first_reversed(planted)
    divergence = check(model, bridge.Session(planted), x).divergence
    assert divergence.node == name
    assert divergence.value == str(
        next(n for n in planted.graph if n.name == name).outputs[0].name
    )
    assert "is right if" in divergence.verdicts[0]
    assert "its dims are in another order" in divergence.verdicts[1]


def test_what_stands_for_infinity_in_a_mask_is_that_of_another_exporter():
    x = np.array([1, 2, -np.inf, 3], np.float32)
    assert list(RightNumbers([x]).places(np.maximum(x, np.finfo(np.float32).min))) == [0]


def test_right_numbers_are_found_in_other_orders_and_never_in_constants():
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    right = RightNumbers([np.zeros(6, np.float32), x, x > 2, x + 1])
    assert list(right.places(x.T)) == [1]
    assert list(right.places(x > 2)) == [2]
    assert list(right.places((x > 2).T)) == []  # masks have one order
    assert list(right.places(np.zeros(6, np.float32))) == []
    assert right.has_like(x < 0)
    assert not right.has_like(x.astype(np.int64))
