"""What is inside If and Loop is quantized like what is outside."""

import numpy as np
import pytest
import torch

import bridge
from bridge.program import count_ops


class Looped(torch.nn.Module):
    """A convolution and a product in the body of a loop, another in a branch."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(8, 8, 3, padding=1)
        self.linear = torch.nn.Linear(32, 32)
        self.other = torch.nn.Linear(32, 32)

    @bridge.script
    def forward(self, x, n):
        for _ in range(n):
            x = torch.relu(self.conv(x)) * 0.5 + x
        y = self.linear(x.mean((2, 3)).repeat(1, 4))
        if y.sum() > 0:
            y = torch.tanh(self.other(y))
        else:
            y = self.other(y) * 2
        return y


@pytest.fixture(scope="module")
def looped():
    torch.manual_seed(0)
    model = Looped().eval()
    batches = [(torch.randn(2, 8, 6, 6), n) for n in (1, 2, 3, 3)]
    program = bridge.export(model, batches[0], verify=False, examples=batches[1:2])
    return model, program, batches


def bodies(model):
    return [g for node in model.graph.all_nodes() for g in model.graph.subgraphs() if node]


@pytest.mark.parametrize("recipe", ["int8-static", "int8-dynamic", "int4-weights", "int8-mixed"])
def test_bodies_are_quantized(looped, recipe):
    model, program, batches = looped
    options = {"block_size": 16} if recipe == "int4-weights" else {}
    made = bridge.quantize(program, recipe, calibration=batches, gate=False, **options)
    inner = {n.op_type for g in made.model.graph.subgraphs() for n in g}
    wanted = {
        "int8-static": {"QuantizeLinear", "DequantizeLinear"},
        "int8-dynamic": {"DynamicQuantizeMatMul"},
        "int4-weights": set(),  # the products are small, and outside of blocks they stay
        "int8-mixed": {"QuantizeLinear", "DynamicQuantizeMatMul"},
    }[recipe]
    assert wanted <= inner | set(count_ops(made.model))
    if recipe == "int8-static":
        assert "QuantizeLinear" in inner
    for x, n in batches:
        with torch.no_grad():
            want = model(x, n).numpy()
        got = np.asarray(made(x, n))
        error = np.abs(got - want).max() / np.abs(want).max()
        assert error < (0.15 if recipe == "int4-weights" else 0.05)


@pytest.mark.parametrize("recipe", ["int8-static", "int8-dynamic"])
def test_a_budget_reaches_into_bodies(looped, recipe):
    model, program, batches = looped
    with torch.no_grad():
        want = model(*batches[2])

    def metric(run):
        return -float(np.abs(np.asarray(run(*batches[2])) - want.numpy()).max())

    options = {"calibration": batches, "metric": metric, "gate": False}
    report = bridge.quantize(program, recipe, max_drop=1e-5, **options).quantization
    assert sum(report.quantized.values()) <= 1  # in the branch that no batch takes
    assert {n.split("/")[0] for n in report.kept_float} >= {"linear", "other"}
    if recipe == "int8-static":
        assert any(s.node.startswith("conv") and s.noise > 0 for s in report.sensitivity)
