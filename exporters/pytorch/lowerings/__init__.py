"""Lowerings, one module per group of torch's documentation; importing this registers them all."""

from exporters.pytorch.lowerings import (
    attention,
    convolution,
    creation,
    elementwise,
    indexing,
    linear_algebra,
    normalization,
    padding,
    pooling,
    reductions,
    shaping,
)

__all__ = [
    "attention",
    "convolution",
    "creation",
    "elementwise",
    "indexing",
    "linear_algebra",
    "normalization",
    "padding",
    "pooling",
    "reductions",
    "shaping",
]
