"""Numbers rounded as integer arithmetic would, while they stay floats: quantization-aware training.

Torch multiplies by the inverse of the scale where ``QuantizeLinear`` divides by the scale: near
halves they differ by a step.
"""

from __future__ import annotations

from typing import Any

import torch

from exporters.pytorch.registry import Unlowerable, decomposes

T = torch.Tensor
aten = torch.ops.aten


def _levels(x: T, scale: Any, zero_point: Any, low: int, high: int) -> tuple[T, T, T]:
    """Unclamped and clamped integers, and what these stand for."""
    scale = torch.as_tensor(scale, dtype=torch.float32)
    zero = torch.as_tensor(zero_point).to(torch.float32)
    level = (x.float() * (1 / scale)).round() + zero
    kept = level.clamp(low, high)
    return level, kept, ((kept - zero) * scale).to(x.dtype)


@decomposes(torch.fake_quantize_per_tensor_affine)
def fake_quantize_per_tensor_affine(
    input: torch.Tensor, scale: Any, zero_point: Any, quant_min: int, quant_max: int
) -> T:
    return _levels(input, scale, zero_point, quant_min, quant_max)[2]


@decomposes(torch.fake_quantize_per_channel_affine)
def fake_quantize_per_channel_affine(
    input: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor, axis: int, quant_min: int,
    quant_max: int,
) -> T:  # fmt: skip
    shape = [-1 if d == axis % input.dim() else 1 for d in range(input.dim())]
    steps, zeros = scale.reshape(shape), zero_point.reshape(shape)
    return _levels(input, steps, zeros, quant_min, quant_max)[2]


@decomposes(aten.fake_quantize_per_tensor_affine_cachemask)
def fake_quantize_per_tensor_affine_cachemask(
    self: torch.Tensor, scale: Any, zero_point: Any, quant_min: int, quant_max: int
) -> tuple[T, T]:
    level, kept, y = _levels(self, scale, zero_point, quant_min, quant_max)
    return y, level == kept


@decomposes(torch.fused_moving_avg_obs_fake_quant, aten._fused_moving_avg_obs_fq_helper)
def fused_moving_avg_obs_fake_quant(
    input: torch.Tensor, observer_on: torch.Tensor, fake_quant_on: torch.Tensor,
    running_min: torch.Tensor, running_max: torch.Tensor, scale: torch.Tensor,
    zero_point: torch.Tensor, averaging_const: float, quant_min: int, quant_max: int, ch_axis: int,
    per_row_fake_quant: bool = False, symmetric_quant: bool = False,
) -> T:  # fmt: skip
    if observer_on.item():
        raise Unlowerable("the observer is on: call torch.ao.quantization.disable_observer first")
    if not fake_quant_on.item():
        return input.clone()
    if per_row_fake_quant:
        return fake_quantize_per_channel_affine(
            input, scale, zero_point, ch_axis, quant_min, quant_max
        )
    return fake_quantize_per_tensor_affine(input, scale, zero_point, quant_min, quant_max)
