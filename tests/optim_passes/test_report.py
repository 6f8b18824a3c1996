"""The report of fusions: what was expected, what was achieved, and why the rest was not."""

from __future__ import annotations

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest
import torch
from torch import nn

import bridge
from optim_passes.expectations import census, expectations
from optim_passes.rewriting import Refusal
from tests.optim_passes.running import parse


class Gelu(nn.Module):
    """Written out."""

    def forward(self, x):
        return 0.5 * x * (1 + torch.erf(x / 2**0.5))


class LayerNorm(nn.Module):
    """Written out, by a class whose name says what it is."""

    def __init__(self, size):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(size))

    def forward(self, x):
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * self.weight


class SelfAttention(nn.Module):
    """Written out; gives the weights away on demand."""

    def __init__(self, *, weights=False):
        super().__init__()
        self.weights = weights

    def forward(self, x):
        weights = (x @ x.transpose(-1, -2) / 2.0).softmax(-1)
        return (weights @ x, weights) if self.weights else weights @ x


def rows(model, x, **options):
    program = bridge.optimize(bridge.export(model.eval(), x, **options))
    return {e.kind: e for e in program.report.expected}, program


def test_what_was_fused_is_counted_by_module_types_and_by_the_trace():
    model = nn.Sequential(
        LayerNorm(8), SelfAttention(), LayerNorm(8), Gelu(), nn.GELU(), nn.LayerNorm(8)
    )
    found, program = rows(model, torch.randn(2, 5, 8))
    assert {k: (e.expected, e.achieved, e.modules) for k, e in found.items()} == {
        "attention": (1, 1, 1), "layer norm": (3, 3, 3), "GELU": (2, 2, 1),
    }  # fmt: skip
    assert not any(e.misses for e in found.values())
    assert "fused layer norm: 3 of 3" in str(program.report)


def test_a_miss_has_its_module_the_reason_and_what_blocks_it():
    model = nn.Sequential(nn.Linear(8, 8), SelfAttention(weights=True))
    found, program = rows(model, torch.randn(2, 5, 8))
    (miss,) = found["attention"].misses
    assert (found["attention"].expected, found["attention"].achieved) == (1, 0)
    assert miss.module == "1"
    assert miss.reason == "the attention weights have another use"
    assert miss.blocking
    assert f"left: {miss.node} in 1: the attention weights have another use" in str(program.report)
    assert program.report.to_dict()["expected"][0]["misses"][0]["reason"] == miss.reason


def test_modules_that_are_gone_are_told():
    """Both halves of the model compute the same, so one of them is left."""

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.LayerNorm(8)

        def forward(self, x):
            return self.norm(x) + self.norm(x)

    found, _ = rows(Twice(), torch.randn(2, 8))
    assert (found["layer norm"].expected, found["layer norm"].achieved) == (2, 1)
    assert found["layer norm"].absent == 1
    assert "1 not in the graph" in str(found["layer norm"])


def test_modules_that_are_only_called_so_are_told_apart():
    class ChannelAttention(nn.Module):
        def forward(self, x):
            return x * x.mean(1, keepdim=True).sigmoid()

    found, _ = rows(nn.Sequential(ChannelAttention(), SelfAttention()), torch.randn(2, 5, 8))
    attention = found["attention"]
    assert (attention.expected, attention.achieved, attention.modules) == (1, 1, 2)
    assert attention.others == ("0",)
    assert str(attention) == "attention: 1 of 1 (1 module called so compute something else: 0)"


def test_attention_that_is_turned_round_is_expected():
    class Turned(nn.Module):
        def forward(self, x):
            return x.transpose(-1, -2) @ (x @ x.transpose(-1, -2)).softmax(-1).transpose(-1, -2)

    found, _ = rows(Turned(), torch.randn(2, 5, 8))
    assert (found["attention"].expected, found["attention"].achieved) == (1, 0)
    assert found["attention"].misses


def test_batch_norms_and_activations_are_expected_to_vanish():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Sigmoid()
    )
    found, _ = rows(model, torch.randn(1, 3, 9, 9))
    assert (found["batch norm"].expected, found["batch norm"].achieved) == (1, 1)
    assert found["activation after Conv"].achieved == found["activation after Conv"].expected == 1


def test_a_group_norm_in_the_form_that_is_fastest_is_no_miss():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.SiLU())
    found, program = rows(model, torch.randn(1, 3, 9, 9))
    assert "InstanceNormalization" in program.report.op_counts[1]
    assert (found["group norm"].expected, found["group norm"].achieved) == (1, 1)
    assert not found["group norm"].misses
    assert "batch norm" not in found


def test_bodies_are_counted_once_and_functions_as_often_as_they_are_called():
    proto = onnx.parser.parse_model("""<ir_version: 10, opset_import: ["": 20, "test": 1]>
g (float[N] x, bool c) => (float[N] y) {
    a = test.f(x)
    b = test.f(a)
    y = If (c) <then_branch = p () => (float[N] u) { u = Erf(b) },
                else_branch = q () => (float[N] v) { v = Neg(b) }>
}
<opset_import: ["": 20], domain: "test">
f (x) => (y) { y = Erf(x) }""")
    assert census(ir.from_proto(proto)).written["GELU"] == 3


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("a = MatMul(x, x)\n b = Softmax(a)\n y = MatMul(b, x)", "attention"),
        ("a = MatMul(x, x)\n m = Add(a, x)\n b = Softmax(m)\n y = MatMul(b, x)", "attention"),
        ("a = Erf(x)\n y = Mul(a, x)", "GELU"),
        (
            "a = Mul(x, x)\n b = ReduceMean(a, l)\n c = Add(b, e)\n d = Sqrt(c)\n y = Div(x, d)",
            "RMS norm",
        ),
        (
            "n = ReduceMean(x, l)\n s = Sub(x, n)\n a = Pow(s, two)\n b = ReduceMean(a, l)\n"
            "c = Add(b, e)\n d = Sqrt(c)\n y = Div(s, d)",
            "layer norm",
        ),
        (
            "a, b = Split <num_outputs = 2, axis = -1> (x)\n c = Neg(b)\n y = Concat <axis = -1> (c, a)",
            "rotary embedding",
        ),
    ],
)
def test_each_kind_is_known_by_what_it_cannot_do_without(text, kind):
    model = parse(
        f"g (float[4, 4] x, int64[1] l, float e, float two) => (float[4, 4] y) {{ {text} }}",
        l=np.array([-1]), e=np.float32(1e-6), two=np.float32(2),
    )  # fmt: skip
    found = census(model)
    assert found.written == {kind: 1}


@pytest.mark.parametrize(
    "text",
    [
        "y = Softmax(x)",  # of a classifier
        "a = Softmax <axis = 0> (x)\n y = MatMul(a, x)",
        "a = MatMul(x, x)\n b = Softmax(a)\n y = MatMul(x, b)",
        "a = ReduceSum(x)\n b = Add(a, x)\n y = Sqrt(b)",
        "y = Tanh(x)",
        "y = Sigmoid(x)",
    ],
)
def test_what_only_looks_like_one_is_not_counted(text):
    model = parse(f"g (float[4, 4] x) => (float[4, 4] y) {{ {text} }}")
    assert not census(model).written


def test_the_nearest_refusal_of_a_pass_that_is_concerned_is_the_reason():
    model = parse("g (float[4] x) => (float[4] y) { a = Neg(x)\n b = Erf(a)\n y = Abs(b) }")
    for node in model.graph:
        node.name = node.op_type
    found = census(model)
    refusals = [
        Refusal("Attention", "not concerned", "Neg"),
        Refusal("Gelu", "far away", "Elsewhere"),
        Refusal("Gelu", "the factor is 0.4, not 0.5", "Abs", blocking="half"),
    ]
    (row,) = expectations(found, found, refusals, passes=[])
    assert (row.misses[0].reason, row.misses[0].blocking) == ("the factor is 0.4, not 0.5", "half")
    (row,) = expectations(found, found, refusals[:2], passes=[])
    assert row.misses[0].reason == "no pass knows it in this form, Erf of Neg"


def test_signature_names_and_provenance_stay():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.LayerNorm(4)

        def forward(self, query, more):
            return {"sum": self.norm(query + more["bias"]), "product": query * more["bias"]}

    args = (torch.randn(2, 4), {"bias": torch.randn(2, 4)})
    program = bridge.optimize(bridge.export(Pair().eval(), args))
    assert set(program(*args)) == {"sum", "product"}
    modules = {n.metadata_props.get("bridge.module") for n in program.model.graph}
    assert "norm" in modules
    assert bridge.check(Pair().eval(), program, args).passed
    assert all("bridge.source" in n.metadata_props for n in program.model.graph)


def test_a_fault_in_an_optimised_model_is_located_by_module_and_line():
    model = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 8)).eval()
    x = torch.randn(3, 8)
    program = bridge.optimize(bridge.export(model, x))
    model[1].weight = nn.Parameter(3 * model[1].weight)  # the program shares the old one
    report = bridge.check(model, program, x)
    assert not report.passed
    assert report.divergence is not None
    assert report.divergence.module == "1"
