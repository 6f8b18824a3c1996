"""Convolutions and pooling."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import torch
import torch.nn.functional as F

from exporters.pytorch.lowerings.shaping import rank
from exporters.pytorch.registry import Unlowerable, lowers

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from exporters.tracing.graph import GraphBuilder as Op

T = torch.Tensor


def tuple_of(x: Any, n: int) -> list[int]:
    """Torch's "one number or one per dim"."""
    if isinstance(x, int):
        return [x] * n
    return [x[0]] * n if len(x) == 1 else list(x)


def _convolution(n: int) -> Callable[..., ir.Value]:
    def lowering(op: Op, /, input: ir.Value, weight: ir.Value, bias: ir.Value | None = None, stride: Any = 1,
                 padding: Any = 0, dilation: Any = 1, groups: int = 1) -> ir.Value:
        batched = rank(input) == n + 2
        x = input if batched else op.Unsqueeze(input, [0])
        pads: list[int] | None = None
        auto = None
        if isinstance(padding, str):
            auto = {"valid": "VALID", "same": "SAME_UPPER"}[padding]
            kernel = [int(d) for d in weight.shape.dims[2:]]
            total = [d * (k - 1) for d, k in zip(tuple_of(dilation, n), kernel, strict=True)]
            low = [t // 2 for t in total] if padding == "same" else [0] * n
            high = [t - l for t, l in zip(total, low, strict=True)] if padding == "same" else [0] * n
            pads, auto = [*low, *high], None
        else:
            pads = tuple_of(padding, n) * 2
        y = op.Conv(x, weight, bias, strides=tuple_of(stride, n), pads=pads, dilations=tuple_of(dilation, n),
                    group=groups, kernel_shape=[int(d) for d in weight.shape.dims[2:]])
        return y if batched else op.Squeeze(y, [0])

    return lowering


for _n, _call in ((1, torch.conv1d), (2, torch.conv2d), (3, torch.conv3d)):
    lowers(_call)(_convolution(_n))


def _pool(op: Op, op_type: str, x: ir.Value, n: int, kernel_size: Any, stride: Any, padding: Any, **attributes: Any) -> ir.Value:
    batched = rank(x) == n + 2
    x = x if batched else op.Unsqueeze(x, [0])
    kernel = tuple_of(kernel_size, n)
    strides = kernel if stride is None or stride == [] or stride == () else tuple_of(stride, n)
    y = op.emit(op_type, x, kernel_shape=kernel, strides=strides, pads=tuple_of(padding, n) * 2, **attributes)
    return y if batched else op.Squeeze(y, [0])


def _max_pool(n: int) -> Callable[..., ir.Value]:
    def lowering(op: Op, /, input: ir.Value, kernel_size: Any, stride: Any = None, padding: Any = 0,
                 dilation: Any = 1, ceil_mode: bool = False) -> ir.Value:
        return _pool(op, "MaxPool", input, n, kernel_size, stride, padding, dilations=tuple_of(dilation, n), ceil_mode=int(ceil_mode))

    return lowering


def _avg_pool(n: int) -> Callable[..., ir.Value]:
    def lowering(op: Op, /, input: ir.Value, kernel_size: Any, stride: Any = None, padding: Any = 0,
                 ceil_mode: bool = False, count_include_pad: bool = True, divisor_override: int | None = None) -> ir.Value:
        if divisor_override:
            raise Unlowerable("divisor_override")
        return _pool(op, "AveragePool", input, n, kernel_size, stride, padding, ceil_mode=int(ceil_mode), count_include_pad=int(count_include_pad))

    return lowering


for _n, _call in ((1, torch.max_pool1d), (2, torch.max_pool2d), (3, torch.max_pool3d)):
    lowers(_call)(_max_pool(_n))
for _n, _call in ((1, torch.avg_pool1d), (2, F.avg_pool2d), (3, F.avg_pool3d)):
    lowers(_call)(_avg_pool(_n))


def _adaptive_avg_pool(n: int) -> Callable[..., ir.Value]:
    def lowering(op: Op, /, input: ir.Value, output_size: Any) -> ir.Value:
        sizes = tuple_of(output_size, n)
        if all(s == 1 for s in sizes):
            if rank(input) == n + 2:
                return op.GlobalAveragePool(input)
            axes = list(range(-n, 0))
            return op.ReduceMean(input, axes, keepdims=1) if op.opset >= 18 else op.ReduceMean(input, axes=axes, keepdims=1)
        static = [input.shape.dims[i - n] for i in range(n)]
        if all(isinstance(d, int) and d % s == 0 for d, s in zip(static, sizes, strict=True)):
            kernel = [d // s for d, s in zip(static, sizes, strict=True)]
            return _pool(op, "AveragePool", input, n, kernel, None, 0)
        raise Unlowerable("the output size does not divide the input size")

    return lowering


for _n, _calls in ((1, (torch.adaptive_avg_pool1d,)), (2, (torch._C._nn.adaptive_avg_pool2d, )), (3, (torch._C._nn.adaptive_avg_pool3d,))):
    lowers(*_calls)(_adaptive_avg_pool(_n))
