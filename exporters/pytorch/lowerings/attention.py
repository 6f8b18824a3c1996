"""Attention."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnx_ir as ir
import torch
import torch.nn.functional as F

from exporters.pytorch.registry import Unlowerable, lowers

if TYPE_CHECKING:
    from exporters.tracing.graph import GraphBuilder as Op


@lowers(F.scaled_dot_product_attention)
def scaled_dot_product_attention(op: Op, /, query: ir.Value, key: ir.Value, value: ir.Value, attn_mask: ir.Value | None = None,
                                 dropout_p: float = 0.0, is_causal: bool = False, scale: float | None = None,
                                 enable_gqa: bool = False) -> ir.Value:
    """Lower to ``Attention-23``."""
    return op.Attention(query, key, value, attn_mask, is_causal=int(is_causal), scale=scale)
