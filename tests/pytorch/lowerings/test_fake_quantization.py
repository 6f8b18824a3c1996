"""Fake quantization agrees with eager to the step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.ao import quantization

import bridge
from exporters.errors import UnsupportedOpError
from tests.pytorch.opinfo import check_call

STEPS = torch.tensor([0.1, 0.25, 0.3, 0.4])
ZEROS = torch.tensor([0, 1, -2, 3], dtype=torch.int32)
CALLS: dict[str, Any] = {
    "numbers": lambda x: torch.fake_quantize_per_tensor_affine(x, 0.25, 3, -128, 127),
    "tensors": lambda x: torch.fake_quantize_per_tensor_affine(x, STEPS[1], ZEROS[1], 0, 255),
    "channels": lambda x: torch.fake_quantize_per_channel_affine(x, STEPS, ZEROS, 1, -8, 7),
    "mask": lambda x: torch.ops.aten.fake_quantize_per_tensor_affine_cachemask(x, 0.2, 1, -3, 4),
}


@pytest.mark.parametrize("name", CALLS)
def test_matches_eager(name: str) -> None:
    halves = torch.arange(-32, 32).reshape(4, 4, 4) / 8  # exact halves of a step
    check_call(CALLS[name], (halves,), dynamic_shapes=({0: "n", 2: "m"},), rtol=0, atol=0)


def _trained(cls: Any, x: torch.Tensor, **options: Any) -> Any:
    module = cls(**options)
    module(x)
    return module.eval()


@pytest.mark.filterwarnings("ignore:.*torch.ao.quantization is deprecated")
@pytest.mark.parametrize("fused", [False, True])
def test_modules_of_quantization_aware_training(fused: bool) -> None:
    x = torch.randn(3, 4, generator=torch.manual_seed(0))
    cls = quantization.FusedMovingAvgObsFakeQuantize if fused else quantization.FakeQuantize
    module = _trained(cls, x, observer=quantization.MovingAverageMinMaxObserver)
    if fused:
        with pytest.raises(UnsupportedOpError, match="observer is on"):
            bridge.export(module, x)
    module.apply(quantization.disable_observer)
    check_call(module, (x,), rtol=0, atol=0)
