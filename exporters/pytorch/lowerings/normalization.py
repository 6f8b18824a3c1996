"""Normalisation layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import torch
import torch.nn.functional as F

from exporters.pytorch.lowerings.shaping import rank
from exporters.pytorch.registry import lowers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from exporters.tracing.graph import GraphBuilder as Op


@lowers(torch.layer_norm)
def layer_norm(op: Op, /, input: ir.Value, normalized_shape: Sequence[int], weight: ir.Value | None = None,
               bias: ir.Value | None = None, eps: float = 1e-5, cudnn_enable: object = True) -> ir.Value:
    """Lower to ``LayerNormalization-17``, which always takes a scale."""
    if weight is None:
        weight = op.constant(np.ones([int(n) for n in normalized_shape], input.dtype.numpy()))
    return op.LayerNormalization(input, weight, bias, axis=-len(normalized_shape), epsilon=eps)


@lowers(torch.batch_norm)
def batch_norm(op: Op, /, input: ir.Value, weight: ir.Value | None, bias: ir.Value | None, running_mean: ir.Value | None,
               running_var: ir.Value | None, training: bool, momentum: float, eps: float, cudnn_enabled: object = True) -> ir.Value:
    """Lower to ``BatchNormalization-15`` with running statistics."""
    channels = running_mean.shape.dims[0]
    dtype = input.dtype.numpy()
    scale = op.constant(np.ones(channels, dtype)) if weight is None else weight
    shift = op.constant(np.zeros(channels, dtype)) if bias is None else bias
    return op.BatchNormalization(input, scale, shift, running_mean, running_var, epsilon=eps)
