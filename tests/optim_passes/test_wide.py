"""bfloat16 models run on the CPU provider, which has no kernels for bfloat16."""

from __future__ import annotations

import onnx_ir as ir
import pytest
import torch
from torch import nn

import bridge
from optim_passes.precision.wide import is_bfloat16, widened


class Block(nn.Module):
    """Casts, a branch, constants and a weight that is returned."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x):
        y = x + self.down(torch.nn.functional.gelu(self.up(self.norm(x))))
        if y.float().sum() > 0:
            y = y * torch.full((8,), 2.0, dtype=torch.bfloat16)
        return y, y.float().mean(), self.up.bias, x


@pytest.fixture
def model():
    return Block().bfloat16().eval()


def test_a_bfloat16_model_exports_and_agrees(model, tmp_path):
    path = tmp_path / "model.onnx"
    x = torch.randn(4, 8).bfloat16()
    program = bridge.export(model, (x,), path, dynamic_shapes=({0: "n"},))
    assert is_bfloat16(program.model)
    assert program.report.verified
    for run in (program, bridge.load(path)):
        for inputs in (x, -x, torch.randn(7, 8).bfloat16()):
            with torch.no_grad():
                wanted = model(inputs)
            for got, expected in zip(run(inputs), wanted, strict=True):
                assert got.dtype == expected.dtype
                torch.testing.assert_close(got, expected, rtol=3e-2, atol=3e-2)


def test_the_copy_leaves_the_model_alone(model):
    program = bridge.export(model, (torch.randn(4, 8).bfloat16(),), verify=False)
    before = ir.to_proto(program.model).SerializeToString()
    copy = widened(program.model)
    assert ir.to_proto(program.model).SerializeToString() == before
    inner = [v.dtype for n in copy.graph.all_nodes() for v in n.outputs if n.op_type != "Cast"]
    assert ir.DataType.BFLOAT16 not in inner
    assert [v.dtype for v in copy.graph.outputs] == [v.dtype for v in program.model.graph.outputs]
