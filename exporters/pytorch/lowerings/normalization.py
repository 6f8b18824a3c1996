"""Normalisation layers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import torch
import torch.nn.functional as F

from exporters.pytorch.lowerings.dims import static_sizes
from exporters.pytorch.lowerings.reductions import reduce
from exporters.pytorch.lowerings.shaping import rank
from exporters.pytorch.registry import Unlowerable, decomposes, lowers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from exporters.tracing.graph import GraphBuilder as Op

T = torch.Tensor


def _filled(op: Op, sizes: Sequence[Any], fill: float, dtype: ir.DataType) -> ir.Value:
    """A tensor of one number, a constant when its sizes are."""
    number = np.asarray(fill, dtype.numpy())
    if any(isinstance(n, ir.Value) or hasattr(n, "record") for n in sizes):
        return op.Expand(number, list(sizes))
    return op.constant(np.broadcast_to(number, [int(n) for n in sizes]).copy())


# Over the last dims


@lowers(torch.layer_norm)
def layer_norm(
    op: Op, /, input: ir.Value, normalized_shape: Sequence[int], weight: ir.Value | None = None,
    bias: ir.Value | None = None, eps: float = 1e-5, cudnn_enable: object = True,
) -> ir.Value:  # fmt: skip
    """Lower to ``LayerNormalization-17``, which always takes a scale."""
    if weight is None:
        weight = _filled(op, normalized_shape, 1, input.dtype)
    bias = None if bias is None else op.cast(bias, input.dtype)
    return op.LayerNormalization(
        input, op.cast(weight, input.dtype), bias, axis=-len(normalized_shape), epsilon=eps
    )


@lowers(torch.rms_norm)
def rms_norm(
    op: Op, /, input: ir.Value, normalized_shape: Sequence[int], weight: ir.Value | None = None,
    eps: float | None = None,
) -> ir.Value:  # fmt: skip
    """Lower to ``RMSNormalization-23``; by the formula before opset 23."""
    working = input.dtype  # halves are squared as floats
    if working in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16):
        working = ir.DataType.FLOAT
    if eps is None:
        eps = float(np.finfo(working.numpy()).eps)
    if op.opset >= 23:
        if weight is None:
            weight = _filled(op, normalized_shape, 1, input.dtype)
        scale = op.cast(weight, input.dtype)
        return op.RMSNormalization(input, scale, axis=-len(normalized_shape), epsilon=eps)
    x = op.cast(input, working)
    axes = list(range(-len(normalized_shape), 0))
    mean = reduce(op, "ReduceMean", op.Mul(x, x), axes, True)
    y = op.Div(x, op.Sqrt(op.Add(mean, eps)))
    return op.cast(y if weight is None else op.Mul(y, op.cast(weight, working)), input.dtype)


# Over each channel's, or each group of channels', positions


def _normalised(op: Op, x: ir.Value, channels: Any, eps: float) -> ir.Value:
    scale = _filled(op, [channels], 1, x.dtype)
    shift = _filled(op, [channels], 0, x.dtype)
    return op.InstanceNormalization(x, scale, shift, epsilon=eps)


@lowers(torch.group_norm)
def group_norm(
    op: Op, /, input: ir.Value, num_groups: int, weight: ir.Value | None = None,
    bias: ir.Value | None = None, eps: float = 1e-5, cudnn_enabled: object = True,
) -> ir.Value:  # fmt: skip
    """Lower to ``InstanceNormalization-6`` of groups.

    ORT 1.32 CPU has no kernel of ``GroupNormalization-21`` and expands it into a variance of
    squares less squared mean: half as fast, off by 0.17 where the mean is 1000 times the standard
    deviation, and an error for an empty batch.
    """
    batch, channels, *rest = (op.dim(input, axis) for axis in range(rank(input)))
    if input.dtype == ir.DataType.DOUBLE or not isinstance(channels, int):
        raise Unlowerable("no float64 kernel of InstanceNormalization in ORT")
    inner = [channels // num_groups, *rest]
    if all(isinstance(n, int) for n in inner):
        inner = [math.prod(inner)]
    x = op.reshape(input, [batch, num_groups, *inner], copied=[True])
    y = op.reshape(_normalised(op, x, num_groups, eps), [batch, channels, *rest], copied=[True])
    ones = [1] * len(rest)
    if weight is not None:
        y = op.Mul(y, op.Reshape(op.cast(weight, y.dtype), [channels, *ones]))
    if bias is not None:
        y = op.Add(y, op.Reshape(op.cast(bias, y.dtype), [channels, *ones]))
    return y


@decomposes(torch.group_norm)
def group_norm_by_formula(
    input: torch.Tensor, num_groups: int, weight: Any = None, bias: Any = None,
    eps: float = 1e-5, cudnn_enabled: bool = True,
) -> T:  # fmt: skip
    groups = torch.unflatten(input, 1, [num_groups, input.shape[1] // num_groups])
    y = _standardised(groups, range(2, groups.dim()), eps).reshape(input.shape)
    return _affine(y, weight, bias)


def _standardised(x: T, dims: Sequence[int], eps: float) -> T:
    variance, mean = torch.var_mean(x, list(dims), correction=0, keepdim=True)
    return (x - mean) * torch.rsqrt(variance + eps)


def _affine(x: T, weight: T | None, bias: T | None) -> T:
    """Scale and shift each channel of [N, C, ...]."""
    ones = [1] * (x.dim() - 2)
    if weight is not None:
        x = x * weight.reshape(-1, *ones)
    return x if bias is None else x + bias.reshape(-1, *ones)


def _is_not_one_node(
    input: T, weight: Any, bias: Any, running_mean: Any, running_var: Any, use_input_stats: bool,
    momentum: float, eps: float, cudnn_enabled: bool = True,
) -> bool:  # fmt: skip
    """ORT 1.32 CPU has no float64 kernel; and no node updates running statistics."""
    return use_input_stats and (input.dtype == torch.float64 or running_mean is not None)


@decomposes(torch.instance_norm, when=_is_not_one_node)
def instance_norm_by_formula(
    input: torch.Tensor, weight: Any, bias: Any, running_mean: Any, running_var: Any,
    use_input_stats: bool, momentum: float, eps: float, cudnn_enabled: bool = True,
) -> T:  # fmt: skip
    dims = list(range(2, input.dim()))
    if running_mean is not None:
        variance, mean = torch.var_mean(input, dims)
        _update(running_mean, mean.mean(0), momentum)
        _update(running_var, variance.mean(0), momentum)
    return _affine(_standardised(input, dims, eps), weight, bias)


@lowers(torch.instance_norm)
def instance_norm(
    op: Op, /, input: ir.Value, weight: ir.Value | None, bias: ir.Value | None,
    running_mean: ir.Value | None, running_var: ir.Value | None, use_input_stats: bool,
    momentum: float, eps: float, cudnn_enabled: object = True,
) -> ir.Value:  # fmt: skip
    """Lower to ``InstanceNormalization-6``; to ``BatchNormalization-15`` with statistics."""
    if not use_input_stats:
        return batch_norm(op, input, weight, bias, running_mean, running_var, False, momentum, eps)
    channels = op.dim(input, 1)
    scale = _filled(op, [channels], 1, input.dtype) if weight is None else weight
    shift = _filled(op, [channels], 0, input.dtype) if bias is None else bias
    scale, shift = op.cast(scale, input.dtype), op.cast(shift, input.dtype)
    return op.InstanceNormalization(input, scale, shift, epsilon=eps)


def _update(running: T, new: T, momentum: float) -> None:
    running.mul_(1 - momentum).add_(new.to(running.dtype), alpha=momentum)


# Over the batch


def _uses_batch(
    input: T, weight: Any, bias: Any, running_mean: Any, running_var: Any, training: bool,
    momentum: float, eps: float, cudnn_enabled: bool = True,
) -> bool:  # fmt: skip
    return training or running_mean is None


@decomposes(torch.batch_norm, when=_uses_batch)
def batch_norm_of_batch(
    input: torch.Tensor, weight: Any, bias: Any, running_mean: Any, running_var: Any,
    training: bool, momentum: float, eps: float, cudnn_enabled: bool = True,
) -> T:  # fmt: skip
    """ORT runs ``BatchNormalization`` with given statistics only."""
    y: T = _batch_norm(input, weight, bias, running_mean, running_var, True, momentum, eps)[0]
    return y


@lowers(torch.batch_norm)
def batch_norm(
    op: Op, /, input: ir.Value, weight: ir.Value | None, bias: ir.Value | None,
    running_mean: ir.Value, running_var: ir.Value, training: bool, momentum: float, eps: float,
    cudnn_enabled: object = True,
) -> ir.Value:  # fmt: skip
    """Lower to ``BatchNormalization-15`` with running statistics."""
    if 0 in static_sizes(input):
        return input  # of any rank, says torch
    channels = op.dim(running_mean, 0)
    scale = _filled(op, [channels], 1, input.dtype) if weight is None else weight
    shift = _filled(op, [channels], 0, input.dtype) if bias is None else bias
    if shift.dtype != scale.dtype:
        shift = op.cast(shift, scale.dtype)
    return op.BatchNormalization(input, scale, shift, running_mean, running_var, epsilon=eps)


def _batch_norm(
    input: T, weight: T | None, bias: T | None, running_mean: T | None, running_var: T | None,
    training: bool, momentum: float, eps: float,
) -> tuple[T, T, T]:  # fmt: skip
    """The result, and what torch keeps for the gradient: mean and inverse standard deviation."""
    if not training:
        y = torch.batch_norm(
            input, weight, bias, running_mean, running_var, False, momentum, eps, False
        )
        return y, input.new_zeros(0), input.new_zeros(0)
    dims = [0, *range(2, input.dim())]
    variance, mean = torch.var_mean(input, dims, correction=0)
    scale = torch.rsqrt(variance + eps)
    if running_mean is not None and running_var is not None:
        count = math.prod(input.shape[dim] for dim in dims)
        _update(running_mean, mean, momentum)
        _update(running_var, variance * (count / (count - 1)), momentum)
    ones = [1] * (input.dim() - 2)
    y = (input - mean.reshape(-1, *ones)) * scale.reshape(-1, *ones)
    return _affine(y, weight, bias).to(input.dtype), mean, scale


# What the calls above are made of below the level of torch functions


@decomposes(torch.native_batch_norm, torch._native_batch_norm_legit)
def native_batch_norm(
    input: torch.Tensor, weight: Any, bias: Any, running_mean: torch.Tensor,
    running_var: torch.Tensor, training: bool, momentum: float, eps: float,
) -> tuple[T, T, T]:  # fmt: skip
    return _batch_norm(input, weight, bias, running_mean, running_var, training, momentum, eps)


@decomposes(torch.native_batch_norm, torch._native_batch_norm_legit)
def native_batch_norm_of_batch(
    input: torch.Tensor, weight: Any, bias: Any, running_mean: None, running_var: None,
    training: bool, momentum: float, eps: float,
) -> tuple[T, T, T]:  # fmt: skip
    return _batch_norm(input, weight, bias, None, None, training, momentum, eps)


@decomposes(torch._native_batch_norm_legit)
def native_batch_norm_without_statistics(
    input: torch.Tensor, weight: Any, bias: Any, training: bool, momentum: float, eps: float
) -> tuple[T, T, T]:
    return _batch_norm(input, weight, bias, None, None, training, momentum, eps)


@decomposes(torch.ops.aten._native_batch_norm_legit_no_training)
def native_batch_norm_inference(
    input: torch.Tensor, weight: Any, bias: Any, running_mean: torch.Tensor,
    running_var: torch.Tensor, momentum: float, eps: float,
) -> tuple[T, T, T]:  # fmt: skip
    return _batch_norm(input, weight, bias, running_mean, running_var, False, momentum, eps)


@decomposes(torch.ops.aten._batch_norm_with_update)
def batch_norm_with_update(
    input: torch.Tensor, weight: Any, bias: Any, running_mean: torch.Tensor,
    running_var: torch.Tensor, momentum: float, eps: float,
) -> tuple[T, T, T, T]:  # fmt: skip
    results = _batch_norm(input, weight, bias, running_mean, running_var, True, momentum, eps)
    return *results, input.new_zeros(0, dtype=torch.uint8)


@decomposes(torch.native_layer_norm)
def native_layer_norm(
    input: torch.Tensor, normalized_shape: Any, weight: Any, bias: Any, eps: float
) -> tuple[T, T, T]:
    dims = list(range(-len(normalized_shape), 0))
    variance, mean = torch.var_mean(input, dims, correction=0, keepdim=True)
    y = torch.layer_norm(input, normalized_shape, weight, bias, eps)
    return y, mean, torch.rsqrt(variance + eps)


@decomposes(torch.native_group_norm)
def native_group_norm(
    input: torch.Tensor,
    weight: Any,
    bias: Any,
    batch: Any,
    channels: Any,
    positions: Any,
    group: int,
    eps: float,
) -> tuple[T, T, T]:
    variance, mean = torch.var_mean(
        input.reshape(batch, group, channels * positions // group), -1, correction=0
    )
    y = torch.group_norm(input, group, weight, bias, eps)
    return y, mean, torch.rsqrt(variance + eps)


@decomposes(torch.ops.aten._fused_rms_norm)
def fused_rms_norm(
    input: torch.Tensor, normalized_shape: Any, weight: Any, eps: Any
) -> tuple[T, T]:
    dims = list(range(-len(normalized_shape), 0))
    margin = torch.finfo(input.dtype).eps if eps is None else eps
    y = torch.rms_norm(input, normalized_shape, weight, eps)
    return y, torch.rsqrt(input.square().mean(dims, keepdim=True) + margin)


# Functions of Python


@lowers(F.local_response_norm)
def local_response_norm(
    op: Op, /, input: ir.Value, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
) -> ir.Value:
    """Lower to ``LRN-13``, of which ORT has a float32 kernel for images and odd sizes."""
    if rank(input) != 4 or size % 2 == 0 or input.dtype != ir.DataType.FLOAT:
        raise Unlowerable("LRN takes float images and odd sizes")
    if 0 in static_sizes(input):
        raise Unlowerable("ORT's LRN refuses empty images")
    return op.LRN(input, size=size, alpha=alpha, beta=beta, bias=float(k))


@decomposes(F.normalize)
def normalize(
    input: torch.Tensor, p: float = 2.0, dim: Any = 1, eps: float = 1e-12, out: Any = None
) -> T:
    return input / torch.linalg.vector_norm(input, p, dim, keepdim=True).clamp_min(eps)
