"""Padding, and sliding blocks as columns."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import torch
import torch.nn.functional as F

from exporters.pytorch.lowerings.dims import static_size, tuple_of
from exporters.pytorch.lowerings.shaping import rank
from exporters.pytorch.registry import Unlowerable, decomposes, lowers

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from exporters.tracing.graph import GraphBuilder as Op

T = torch.Tensor
aten = torch.ops.aten

MODES = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}
_WIDER = {ir.DataType.INT16: ir.DataType.INT32, ir.DataType.UINT16: ir.DataType.UINT32}


@lowers(F.pad, torch._C._nn.pad)
def pad(
    op: Op, /, input: ir.Value, pad: Sequence[int], mode: str = "constant", value: Any = None
) -> ir.Value:
    """Lower to ``Pad-13``, whose sizes start with the first dim, torch's with the last."""
    return padded(op, input, pad, mode, value)


def padded(
    op: Op, input: ir.Value, sizes: Sequence[Any], mode: str = "constant", value: Any = None
) -> ir.Value:
    """``input`` padded by torch's list of sizes, the last dim's first."""
    dims = rank(input)
    before: list[Any] = [0] * dims
    after: list[Any] = [0] * dims
    for i in range(len(sizes) // 2):
        before[dims - 1 - i], after[dims - 1 - i] = sizes[2 * i], sizes[2 * i + 1]
    if dims == 0 or all(_is_zero(n) for n in sizes):
        return input
    if mode == "circular" and (op.opset < 19 or _may_be_empty(input)):
        return _wrap(op, input, before, after)
    if mode == "replicate" and any(isinstance(n, int) and n < 0 for n in sizes):
        return _replicate(op, input, before, after)  # ORT 1.32 refuses to crop all of a dim
    wide = _WIDER.get(input.dtype)  # ORT 1.32 pads no 16-bit integers
    x = input if wide is None else op.cast(input, wide)
    fill = op.cast(value, x.dtype) if isinstance(value, ir.Value) else value or None
    y = op.Pad(x, [*before, *after], fill, mode=MODES[mode])
    return op.cast(y, input.dtype)


def _is_zero(x: Any) -> bool:
    return isinstance(x, int) and not hasattr(x, "record") and x == 0


def _may_be_empty(x: ir.Value) -> bool:
    return 0 in list(x.shape.dims)


def _wrap(op: Op, x: ir.Value, before: Sequence[Any], after: Sequence[Any]) -> ir.Value:
    """Circular padding, one dim after the other."""
    for axis, (low, high) in enumerate(zip(before, after, strict=True)):
        if any(not _is_zero(n) and (hasattr(n, "record") or n < 0) for n in (low, high)):
            raise Unlowerable("circular padding by a dynamic or negative size before opset 19")
        parts = [x]
        if low:
            parts.insert(0, op.Slice(x, [-low], [np.iinfo(np.int64).max], [axis]))
        if high:
            parts.append(op.Slice(x, [0], [high], [axis]))
        x = op.Concat(*parts, axis=axis) if len(parts) > 1 else x
    return x


def _replicate(op: Op, x: ir.Value, before: Sequence[Any], after: Sequence[Any]) -> ir.Value:
    """Replication by index, one dim after the other."""
    for axis, (low, high) in enumerate(zip(before, after, strict=True)):
        if _is_zero(low) and _is_zero(high):
            continue
        size = static_size(x, axis)
        if size is None or hasattr(low, "record") or hasattr(high, "record"):
            raise Unlowerable("replication padding by a negative size along a dynamic dim")
        x = op.Gather(x, np.arange(-low, size + high).clip(0, size - 1), axis=axis)
    return x


@lowers(aten.constant_pad_nd)
def constant_pad_nd(op: Op, /, input: ir.Value, pad: Sequence[int], value: Any = 0) -> ir.Value:
    return padded(op, input, pad, "constant", value)


def _padding(mode: str) -> Callable[..., ir.Value]:
    def lowering(op: Op, /, input: ir.Value, padding: Sequence[int]) -> ir.Value:
        return padded(op, input, padding, mode)

    return lowering


lowers(aten.reflection_pad1d, aten.reflection_pad2d, aten.reflection_pad3d)(_padding("reflect"))
lowers(aten.replication_pad1d, aten.replication_pad2d, aten.replication_pad3d)(
    _padding("replicate")
)
lowers(aten._pad_circular)(_padding("circular"))


# Columns


@lowers(torch._C._nn.im2col)
def im2col(
    op: Op, /, input: ir.Value, kernel_size: Any, dilation: Any, padding: Any, stride: Any
) -> ir.Value:
    """Lower to two ``Gather-13``: rows and columns of every block."""
    batched = rank(input) == 4
    x = input if batched else op.Unsqueeze(input, [0])
    kernel, steps = tuple_of(kernel_size, 2), tuple_of(stride, 2)
    gaps, margins = tuple_of(dilation, 2), tuple_of(padding, 2)
    rows, columns = (
        _positions(op, input, i - 2, kernel[i], gaps[i], margins[i], steps[i]) for i in range(2)
    )
    x = padded(op, x, [margins[1], margins[1], margins[0], margins[0]])
    x = op.Gather(op.Gather(x, rows, axis=2), columns, axis=4)  # [N, C, kh, oh, kw, ow]
    x = op.Transpose(x, perm=[0, 1, 2, 4, 3, 5])
    channels = static_size(input, -3)
    if channels is None:
        raise Unlowerable("the number of channels is dynamic")
    sizes = [op.dim(input, 0) if batched else 1, channels * kernel[0] * kernel[1]]
    counts = [_count(op, places) for places in (rows, columns)]
    dynamic = [n for n in counts if not isinstance(n, int)]
    rest: Any = math.prod(n for n in counts if isinstance(n, int))
    for count in dynamic:
        rest = op.Mul(count, rest)
    y = op.reshape(x, [*sizes, rest], copied=[True])
    return y if batched else op.Squeeze(y, [0])


def _count(op: Op, positions: Any) -> Any:
    """How many blocks there are along an axis: an int, or an INT64 value of shape [1]."""
    if not isinstance(positions, ir.Value):
        return positions.shape[1]
    return op.dim_vector(positions, 1)


def _positions(
    op: Op, x: ir.Value, axis: int, kernel: int, dilation: int, padding: int, stride: int
) -> Any:
    """Which index each tap of each block reads along an axis: [kernel, blocks]."""
    taps = np.arange(kernel) * dilation
    reach = 2 * padding - dilation * (kernel - 1)
    size = static_size(x, axis)
    if size is not None:
        return taps[:, None] + np.arange(0, size + reach, stride)
    last = op.Squeeze(op.Add(op.dim(x, axis), reach), [0])
    return op.Add(taps[:, None], op.Range(0, last, stride))


@lowers(torch._C._nn.col2im)
def col2im(
    op: Op, /, input: ir.Value, output_size: Sequence[int], kernel_size: Any, dilation: Any,
    padding: Any, stride: Any,
) -> ir.Value:  # fmt: skip
    """Lower to ``Col2Im-18``."""
    if op.opset < 18 or input.dtype == ir.DataType.DOUBLE:  # ORT 1.32 CPU has float kernels only
        raise Unlowerable("Col2Im needs opset 18 and float32")
    batched = rank(input) == 3
    x = input if batched else op.Unsqueeze(input, [0])
    y = op.Col2Im(
        x, tuple_of(output_size, 2), tuple_of(kernel_size, 2), dilations=tuple_of(dilation, 2),
        pads=tuple_of(padding, 2) * 2, strides=tuple_of(stride, 2),
    )  # fmt: skip
    return y if batched else op.Squeeze(y, [0])


@decomposes(torch._C._nn.col2im)
def col2im_by_index(
    input: torch.Tensor,
    output_size: Any,
    kernel_size: Any,
    dilation: Any,
    padding: Any,
    stride: Any,
) -> torch.Tensor:
    """Add every tap of every block where it belongs in a flat padded image."""
    columns = input if input.dim() == 3 else input.unsqueeze(0)
    sizes, kernel, steps = (tuple_of(x, 2) for x in (output_size, kernel_size, stride))
    gaps, margins = tuple_of(dilation, 2), tuple_of(padding, 2)
    height, width = sizes[0] + 2 * margins[0], sizes[1] + 2 * margins[1]
    rows, cols = (
        torch.arange(kernel[i])[:, None] * gaps[i]
        + torch.arange(0, (height, width)[i] - gaps[i] * (kernel[i] - 1), steps[i])
        for i in range(2)
    )
    places = (rows[:, None, :, None] * width + cols[None, :, None, :]).reshape(-1)
    channels = columns.shape[1] // (kernel[0] * kernel[1])
    flat = columns.new_zeros(columns.shape[0], channels, height * width)
    flat = flat.index_add(2, places, columns.reshape(columns.shape[0], channels, -1))
    image = flat.view(columns.shape[0], channels, height, width)
    image = image[:, :, margins[0] : height - margins[0], margins[1] : width - margins[1]]
    return image if input.dim() == 3 else image.squeeze(0)
