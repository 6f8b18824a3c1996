"""Torchvision's transforms of images, as models are served behind them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import bridge
from tests import torchvision_shim

torchvision_shim.install()

from torchvision.models import ResNet18_Weights  # noqa: E402 - needs the shim
from torchvision.transforms import v2  # noqa: E402

TRANSFORMS: dict[str, Any] = {
    "of weights": ResNet18_Weights.DEFAULT.transforms(),
    "crop": v2.CenterCrop(40),
    "resize": v2.Resize((48, 37), antialias=True),
    "shorter side": v2.Resize(40, antialias=True),
    "pad": v2.Pad(2),
    "pipeline": v2.Compose([
        v2.Resize(40, antialias=True), v2.CenterCrop(36), v2.ToDtype(torch.float32, scale=True),
        v2.Normalize([0.5] * 3, [0.2] * 3),
    ]),
}  # fmt: skip
SIZES = ((60, 90), (33, 50), (41, 30))


def image(*sizes: int) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randint(0, 256, (3, *sizes), dtype=torch.uint8)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_images_of_any_size(name: str) -> None:
    """Weights of sizes that only run time knows may put a byte halfway between two on either side."""
    transform = TRANSFORMS[name].eval()
    program = bridge.export(transform, image(52, 64), dynamic_shapes=({1: "h", 2: "w"},))
    for sizes in SIZES:
        torch.testing.assert_close(
            program(image(*sizes)), transform(image(*sizes)), atol=0.02, rtol=0
        )


def test_transforms_of_one_size_are_exact() -> None:
    transform = ResNet18_Weights.DEFAULT.transforms().eval()
    program = bridge.export(transform, image(75, 65))
    torch.testing.assert_close(program(image(75, 65)), transform(image(75, 65)))
