"""Attention."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import torch
import torch.nn.functional as F

from exporters.pytorch.dtypes import promote, to_torch_dtype
from exporters.pytorch.lowerings.dims import same_size, size_key, static_size, static_sizes
from exporters.pytorch.lowerings.shaping import rank
from exporters.pytorch.registry import decomposes, lowers

if TYPE_CHECKING:
    from exporters.tracing.graph import GraphBuilder as Op

T = torch.Tensor
aten = torch.ops.aten


@lowers(F.scaled_dot_product_attention)
def scaled_dot_product_attention(
    op: Op, /, query: ir.Value, key: ir.Value, value: ir.Value, attn_mask: ir.Value | None = None,
    dropout_p: float = 0.0, is_causal: bool = False, *, scale: float | None = None,
    enable_gqa: bool = False,
) -> ir.Value:  # fmt: skip
    """Lower to ``Attention-23``; to ``MatMul`` and ``Softmax`` where that has no such case."""
    if attn_mask is not None and attn_mask.dtype != ir.DataType.BOOL:
        (attn_mask,) = promote(op, attn_mask, to=query.dtype)
    added = max(4 - rank(query), 0)
    axes = [0, 1][:added] if added == 2 else [1][:added]
    if op.opset >= 23 and not dropout_p and _is_whole(query, key, value, attn_mask, axes):
        if is_causal and not same_size(query, -2, key, -2):
            # ORT 1.32 CUDA aligns the triangle with the last key, torch with the first.
            attn_mask, is_causal = _causal_mask(op, query, key), False
        elif attn_mask is not None:
            attn_mask = _whole_mask(op, attn_mask, query, key, axes)
        if axes:
            query, key, value = (op.Unsqueeze(x, axes) for x in (query, key, value))
        y = op.Attention(
            query, key, value, attn_mask, is_causal=int(is_causal) or None, scale=scale
        )
        return op.Squeeze(y, axes) if axes else y
    return _products(
        op, query, key, value, attn_mask, dropout_p=dropout_p, is_causal=is_causal, scale=scale
    )


def _is_whole(
    query: ir.Value, key: ir.Value, value: ir.Value, mask: ir.Value | None, axes: list[int]
) -> bool:
    """Whether ``Attention-23`` takes these operands, once they have rank 4."""
    dims = rank(query)
    if dims > 4 or rank(key) != dims or rank(value) != dims:
        return False
    if mask is not None and rank(mask) > max(dims, 2):
        return False
    sizes = [static_sizes(x) for x in (query, key, value)]
    if query.dtype == ir.DataType.DOUBLE:
        return False  # ORT 1.32 scales by a float32
    if any(size == 0 for shape in sizes for size in shape):
        return False  # ORT 1.32 refuses empty operands
    if dims >= 3 and len({shape[0] for shape in sizes}) > 1:
        return False  # Attention does not broadcast batches
    if axes:
        return True
    heads, key_heads, value_heads = (shape[1] for shape in sizes)
    if heads is None or key_heads is None or key_heads != value_heads:
        return False
    return heads % key_heads == 0


def _whole_mask(
    op: Op, mask: ir.Value, query: ir.Value, key: ir.Value, axes: list[int]
) -> ir.Value:
    """The mask as ``Attention-23`` wants it: no broadcasting along queries and keys."""
    if mask.dtype != ir.DataType.BOOL:
        mask = _without_lowest(op, mask)
    if axes and rank(mask) == 3:
        mask = op.once(("mask of one head", mask), lambda _: op.Unsqueeze(mask, [1]), mask)
    target: list[Any] = [1] * rank(mask)
    for axis, x in ((-2, query), (-1, key)):
        if not same_size(mask, axis, x, -2):
            target[axis] = op.dim(x, -2)
    if target == [1] * rank(mask):
        return mask
    made: ir.Value = op.once(
        ("mask of full size", mask, size_key(query, -2) or query, size_key(key, -2) or key),
        lambda _: op.Expand(mask, target), mask, query, key,
    )  # fmt: skip
    return made


def _without_lowest(op: Op, mask: ir.Value) -> ir.Value:
    """The mask with the lowest finite number replaced by one that masks as well.

    ORT 1.32 takes a row of the lowest number for fully masked, and its result is 0; torch takes
    the mean.
    """
    numpy_dtype = mask.dtype.numpy()
    lowest = torch.finfo(to_torch_dtype(mask.dtype)).min
    if mask.const_value is not None and not np.any(mask.const_value.numpy() == lowest):
        return mask
    other = np.asarray(lowest * 0.75, numpy_dtype)
    made: ir.Value = op.once(
        ("mask without lowest", mask),
        lambda _: op.Where(op.Equal(mask, np.asarray(lowest, numpy_dtype)), other, mask), mask,
    )  # fmt: skip
    return made


def _causal_mask(op: Op, query: ir.Value, key: ir.Value) -> ir.Value:
    """True where a key is not after the query: [L, S], aligned at the first of both."""
    queries, keys = static_size(query, -2), static_size(key, -2)
    if queries is not None and keys is not None:
        return op.constant(np.tri(queries, keys, dtype=bool))

    def make(_: object) -> ir.Value:
        row = op.Range(0, _scalar(op, op.dim(query, -2)), 1)
        column = op.Range(0, _scalar(op, op.dim(key, -2)), 1)
        return op.GreaterOrEqual(op.Unsqueeze(row, [1]), column)

    made: ir.Value = op.once(
        ("causal mask", size_key(query, -2) or query, size_key(key, -2) or key), make, query, key
    )
    return made


def _scalar(op: Op, size: Any) -> Any:
    return op.Squeeze(size, [0]) if isinstance(size, ir.Value) else size


def _products(
    op: Op, query: ir.Value, key: ir.Value, value: ir.Value, mask: ir.Value | None, *,
    dropout_p: float, is_causal: bool, scale: float | None,
) -> ir.Value:  # fmt: skip
    """``softmax(scale * query @ key.T + mask) @ value``, 0 where a query may see no key."""
    weights, seen = _weights(op, query, key, mask, is_causal=is_causal, scale=scale)
    if dropout_p:
        weights = op.Dropout(weights, np.float32(dropout_p), True)
    y = op.MatMul(weights, _repeat_heads(op, value, query))
    return y if seen is None else op.Where(seen, y, 0)


def _weights(
    op: Op, query: ir.Value, key: ir.Value, mask: ir.Value | None, *,
    is_causal: bool, scale: float | None,
) -> tuple[ir.Value, ir.Value | None]:  # fmt: skip
    """The softmax of the scores (NaN where a query may see no key), and which queries see any."""
    if scale is None:
        width = op.dim(query, -1)
        if isinstance(width, int):
            scale = 1 / math.sqrt(width) if width else 1.0
        else:
            scale = op.Reciprocal(op.Sqrt(op.cast(_scalar(op, width), query.dtype)))
    key = _repeat_heads(op, key, query)
    order = list(range(rank(key)))
    order[-2:] = order[:-3:-1]
    scores = op.MatMul(op.Mul(query, scale), op.Transpose(key, perm=order))
    if is_causal:
        mask = _causal_mask(op, query, key)
    if mask is None:
        return op.Softmax(scores, axis=-1), None
    seen = None if is_causal else _seen(op, mask)
    if mask.dtype == ir.DataType.BOOL:
        boolean, dtype = mask, query.dtype
        mask = op.once(
            ("additive mask", mask, dtype),
            lambda _: op.Where(boolean, *promote(op, 0.0, -math.inf, to=dtype)), mask,
        )  # fmt: skip
    return op.Softmax(op.Add(scores, mask), axis=-1), seen


def _seen(op: Op, mask: ir.Value) -> ir.Value | None:
    """Which queries may see a key, [..., L, 1]; None if all may."""
    if mask.const_value is not None:
        allowed = mask.const_value.numpy()
        allowed = allowed if allowed.dtype == bool else allowed != -math.inf
        if allowed.any(-1).all():
            return None

    def make(_: object) -> ir.Value:
        if mask.dtype == ir.DataType.BOOL:
            numbers = op.Cast(mask, to=ir.DataType.INT32)
            best = _reduce_max(op, numbers)
            return op.Cast(best, to=ir.DataType.BOOL)
        return op.Greater(_reduce_max(op, mask), -math.inf)

    made: ir.Value = op.once(("seen", mask), make, mask)
    return made


def _reduce_max(op: Op, x: ir.Value) -> ir.Value:
    if op.opset >= 18:
        return op.ReduceMax(x, [-1], keepdims=1)
    return op.ReduceMax(x, axes=[-1], keepdims=1)


def _repeat_heads(op: Op, x: ir.Value, query: ir.Value) -> ir.Value:
    """Keys or values with each head repeated for the queries' heads that share it."""
    if rank(x) < 3 or rank(query) < 3:
        return x
    heads, wanted = static_size(x, -3), static_size(query, -3)
    if heads is None or wanted is None or heads in (1, wanted) or wanted % heads:
        return x
    return op.Gather(x, np.repeat(np.arange(heads), wanted // heads), axis=rank(x) - 3)


# What the call above is made of below the level of torch functions


@lowers(aten._scaled_dot_product_flash_attention_for_cpu)
def _scaled_dot_product_flash_attention_for_cpu(
    op: Op, /, query: ir.Value, key: ir.Value, value: ir.Value, dropout_p: float = 0.0,
    is_causal: bool = False, *, attn_mask: ir.Value | None = None, scale: float | None = None,
) -> tuple[ir.Value, ir.Value]:  # fmt: skip
    """Lower as :func:`scaled_dot_product_attention`, with the sums that softmax divides by."""
    y = scaled_dot_product_attention(
        op, query, key, value, attn_mask, dropout_p, is_causal, scale=scale
    )
    weights, _ = _weights(op, query, key, attn_mask, is_causal=is_causal, scale=scale)
    scores = weights.producer().inputs[0]
    axes = {} if op.opset >= 18 else {"axes": [-1]}
    sums = op.ReduceLogSumExp(scores, *([] if axes else [[-1]]), keepdims=0, **axes)
    return y, op.Transpose(op.Transpose(sums, perm=[0, 2, 1]), perm=[0, 2, 1])


@lowers(aten._scaled_dot_product_attention_math)
def _scaled_dot_product_attention_math(
    op: Op, /, query: ir.Value, key: ir.Value, value: ir.Value, attn_mask: ir.Value | None = None,
    dropout_p: float = 0.0, is_causal: bool = False, dropout_mask: None = None, *,
    scale: float | None = None, enable_gqa: bool = False,
) -> tuple[ir.Value, ir.Value]:  # fmt: skip
    """Lower as :func:`scaled_dot_product_attention`, and return the softmax as well."""
    y = scaled_dot_product_attention(
        op, query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
    )
    weights, seen = _weights(op, query, key, attn_mask, is_causal=is_causal, scale=scale)
    return y, weights if seen is None else op.Where(seen, weights, 0)


@decomposes(torch._native_multi_head_attention)
def _native_multi_head_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, embed_dim: int, num_head: int,
    qkv_weight: torch.Tensor, qkv_bias: torch.Tensor, proj_weight: torch.Tensor,
    proj_bias: torch.Tensor, mask: Any = None, need_weights: bool = True,
    average_attn_weights: bool = True, mask_type: Any = None,
) -> tuple[T, T | None]:  # fmt: skip
    y, weights = F.multi_head_attention_forward(
        query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1), embed_dim, num_head,
        qkv_weight, qkv_bias, None, None, False, 0.0, proj_weight, proj_bias, training=False,
        key_padding_mask=mask if mask_type == 1 else None, need_weights=need_weights,
        attn_mask=None if mask is None or mask_type == 1 else mask.flatten(0, -3),
        average_attn_weights=average_attn_weights,
    )  # fmt: skip
    return y.transpose(0, 1), weights


@decomposes(torch._transformer_encoder_layer_fwd)
def _transformer_encoder_layer_fwd(
    src: torch.Tensor, embed_dim: int, num_heads: int, qkv_weight: torch.Tensor,
    qkv_bias: torch.Tensor, proj_weight: torch.Tensor, proj_bias: torch.Tensor, use_gelu: bool,
    norm_first: bool, eps: float, norm_weight_1: torch.Tensor, norm_bias_1: torch.Tensor,
    norm_weight_2: torch.Tensor, norm_bias_2: torch.Tensor, ffn_weight_1: torch.Tensor,
    ffn_bias_1: torch.Tensor, ffn_weight_2: torch.Tensor, ffn_bias_2: torch.Tensor,
    mask: Any = None, mask_type: Any = None,
) -> T:  # fmt: skip
    def attend(x: T) -> T:
        return _native_multi_head_attention(
            x, x, x, embed_dim, num_heads, qkv_weight, qkv_bias, proj_weight, proj_bias, mask,
            False, True, mask_type,
        )[0]  # fmt: skip

    def feed_forward(x: T) -> T:
        hidden = F.linear(x, ffn_weight_1, ffn_bias_1)
        return F.linear(F.gelu(hidden) if use_gelu else F.relu(hidden), ffn_weight_2, ffn_bias_2)

    def norm(x: T, weight: T, bias: T) -> T:
        return F.layer_norm(x, (embed_dim,), weight, bias, eps)

    if norm_first:
        src = src + attend(norm(src, norm_weight_1, norm_bias_1))
        return src + feed_forward(norm(src, norm_weight_2, norm_bias_2))
    src = norm(src + attend(src), norm_weight_1, norm_bias_1)
    return norm(src + feed_forward(src), norm_weight_2, norm_bias_2)
