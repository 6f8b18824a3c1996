"""Models above 2 GB, which no protobuf file holds."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import bridge

GIB = 2**30


class Wide(nn.Module):
    """3 GiB of weights in 12 matrices of 256 MiB, one of them used by two layers."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.layers = nn.ModuleList(
            nn.utils.skip_init(nn.Linear, 8192, 8192, bias=False) for _ in range(12)
        )
        row = torch.randn(8192, generator=generator) / 90
        for i, layer in enumerate(self.layers):
            layer.weight.data.copy_(row.roll(i).expand(8192, -1))

    def forward(self, x):
        for layer in [*self.layers, self.layers[0]]:
            x = torch.tanh(layer(x)) + x
        return x


@pytest.mark.slow
def test_a_model_of_3_gib_exports_loads_and_checks(tmp_path):
    model = Wide().eval()
    path = tmp_path / "wide.onnx"
    program = bridge.export(model, (torch.randn(2, 8192),), path, dynamic_shapes=({0: "n"},))
    assert program.report.verified
    assert path.stat().st_size < 2**20
    files = [f for f in tmp_path.iterdir() if f != path]
    assert 3 * GIB <= sum(f.stat().st_size for f in files) < 3.01 * GIB
    del program
    report = bridge.check(model, bridge.load(path), (torch.randn(3, 8192),))
    assert report.passed
