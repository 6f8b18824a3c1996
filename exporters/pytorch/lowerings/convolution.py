"""Convolutions."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from exporters.pytorch.lowerings.dims import static_size, tuple_of
from exporters.pytorch.lowerings.shaping import rank
from exporters.pytorch.registry import Unlowerable, decomposes, lowers

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import onnx_ir as ir

    from exporters.tracing.graph import GraphBuilder as Op

T = torch.Tensor

FORWARD = {1: torch.conv1d, 2: torch.conv2d, 3: torch.conv3d}
TRANSPOSED = {1: torch.conv_transpose1d, 2: torch.conv_transpose2d, 3: torch.conv_transpose3d}


def is_double(input: T, *_: object, **__: object) -> bool:
    """ORT 1.32 CPU has no float64 kernels of convolutions and mean pools."""
    return input.dtype == torch.float64


def _has_no_kernel(input: torch.Tensor) -> bool:
    """``Conv`` takes no integers, and ORT 1.32's CPU provider no float64."""
    return is_double(input) or not (input.is_floating_point() or input.is_complex())


def _forward_needs_product(
    input: T, weight: T, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: int = 1,
) -> bool:  # fmt: skip
    """An attribute cannot vary; a group for each sample is how kernels differ between samples."""
    return _has_no_kernel(input) or hasattr(groups, "record")


def blocks(x: T, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> T:
    """What a window sees at every position: [N, C, *kernel, *positions]."""
    n = len(kernel)
    for i, (taps, step, gap) in enumerate(zip(kernel, stride, dilation, strict=True)):
        axis = 2 + 2 * i
        last = x.shape[axis] - gap * (taps - 1)
        places = torch.arange(taps)[:, None] * gap + torch.arange(0, last, step)
        seen = x.index_select(axis, places.flatten())
        x = torch.unflatten(seen, axis, [taps, places.shape[1]])
    return x.permute(0, 1, *range(2, 2 + 2 * n, 2), *range(3, 3 + 2 * n, 2))


def _same_pads(kernel: Sequence[int], dilation: Sequence[int]) -> tuple[list[int], list[int]]:
    """Padding that keeps the size at stride 1; what is left over by halving goes to the end."""
    total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    return [t // 2 for t in total], [t - t // 2 for t in total]


def _forward_by_product(n: int) -> Callable[..., T]:
    def convolution(
        input: torch.Tensor, weight: torch.Tensor, bias: Any = None, stride: Any = 1,
        padding: Any = 0, dilation: Any = 1, groups: int = 1,
    ) -> T:  # fmt: skip
        x = input if input.dim() == n + 2 else input.unsqueeze(0)
        kernel, gaps = list(weight.shape[2:]), tuple_of(dilation, n)
        low, high = ([0] * n, [0] * n) if padding == "valid" else _same_pads(kernel, gaps)
        if not isinstance(padding, str):
            low = high = tuple_of(padding, n)
        x = F.pad(x, [p for pair in zip(low[::-1], high[::-1], strict=True) for p in pair])
        x = blocks(x, kernel, tuple_of(stride, n), gaps)
        positions = x.shape[-n:]
        seen = weight.shape[1] * math.prod(kernel)
        columns = x.reshape(x.shape[0], groups, seen, math.prod(positions))
        y = weight.reshape(groups, weight.shape[0] // groups, -1) @ columns
        y = y.reshape(x.shape[0], weight.shape[0], *positions)
        if bias is not None:
            y = y + bias.reshape(-1, *[1] * n)
        return y if input.dim() == n + 2 else y.squeeze(0)

    return convolution


def _transposed_by_product(n: int) -> Callable[..., T]:
    def convolution(
        input: torch.Tensor, weight: torch.Tensor, bias: Any = None, stride: Any = 1,
        padding: Any = 0, output_padding: Any = 0, groups: int = 1, dilation: Any = 1,
    ) -> T:  # fmt: skip
        x = input if input.dim() == n + 2 else input.unsqueeze(0)
        steps, gaps, extra = (tuple_of(v, n) for v in (stride, dilation, output_padding))
        for i, step in enumerate(steps):  # zeros between the elements
            spread = F.pad(x.unsqueeze(3 + i), [0, 0] * (n - 1 - i) + [0, step - 1])
            x = spread.flatten(2 + i, 3 + i).narrow(2 + i, 0, (x.shape[2 + i] - 1) * step + 1)
        margins = [
            g * (k - 1) - p
            for g, k, p in zip(gaps, weight.shape[2:], tuple_of(padding, n), strict=True)
        ]
        x = F.pad(x, [p for i in range(n)[::-1] for p in (margins[i], margins[i] + extra[i])])
        kernel = torch.unflatten(weight, 0, [groups, -1]).transpose(1, 2).flatten(0, 1)
        kernel = kernel.flip(list(range(2, 2 + n)))
        y: T = FORWARD[n](x, kernel, bias, 1, 0, dilation, groups)
        return y if input.dim() == n + 2 else y.squeeze(0)

    return convolution


def _kernel_shape(weight: ir.Value) -> list[int] | None:
    sizes = [static_size(weight, axis) for axis in range(2, rank(weight))]
    return None if None in sizes else sizes  # type: ignore[return-value]


def _forward(n: int) -> Callable[..., ir.Value]:
    def lowering(
        op: Op, /, input: ir.Value, weight: ir.Value, bias: ir.Value | None = None,
        stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1,
    ) -> ir.Value:  # fmt: skip
        batched = rank(input) == n + 2
        kernel = _kernel_shape(weight)
        if padding == "same":
            if kernel is None:
                raise Unlowerable("'same' padding with a kernel of dynamic size")
            low, high = _same_pads(kernel, tuple_of(dilation, n))
        else:
            low = high = tuple_of(0 if padding == "valid" else padding, n)
        y = op.Conv(
            input if batched else op.Unsqueeze(input, [0]), weight, bias, kernel_shape=kernel,
            strides=tuple_of(stride, n), pads=[*low, *high], dilations=tuple_of(dilation, n),
            group=groups,
        )  # fmt: skip
        return y if batched else op.Squeeze(y, [0])

    return lowering


def _transposed(n: int) -> Callable[..., ir.Value]:
    def lowering(
        op: Op, /, input: ir.Value, weight: ir.Value, bias: ir.Value | None = None,
        stride: Any = 1, padding: Any = 0, output_padding: Any = 0, groups: int = 1,
        dilation: Any = 1,
    ) -> ir.Value:  # fmt: skip
        batched = rank(input) == n + 2
        steps, extra = tuple_of(stride, n), tuple_of(output_padding, n)
        dynamic = any(hasattr(p, "record") for p in extra)
        y = op.ConvTranspose(
            input if batched else op.Unsqueeze(input, [0]), weight, bias,
            kernel_shape=_kernel_shape(weight), strides=steps, pads=tuple_of(padding, n) * 2,
            dilations=tuple_of(dilation, n), group=groups,
            output_padding=[s - 1 for s in steps] if dynamic else extra,
        )  # fmt: skip
        if dynamic:  # an attribute cannot vary: make the largest output and cut it
            axes = list(range(2, n + 2))
            cut = [s - 1 - p for s, p in zip(steps, extra, strict=True)]
            y = op.Slice(y, [0] * n, op.Sub(op.Shape(y, start=2), cut), axes)
        return y if batched else op.Squeeze(y, [0])

    return lowering


def _needs_product(
    input: T, weight: T, bias: Any = None, stride: Any = 1, padding: Any = 0,
    output_padding: Any = 0, groups: int = 1, dilation: Any = 1,
) -> bool:  # fmt: skip
    """ORT 1.32 wants less output padding than stride, torch less than stride or dilation."""
    n = weight.dim() - 2
    extra = tuple_of(output_padding, n)
    if _forward_needs_product(input, weight, groups=groups):
        return True
    if any(hasattr(p, "record") for p in extra):
        return False
    return any(p >= s for p, s in zip(extra, tuple_of(stride, n), strict=True))


for _n in (1, 2, 3):
    decomposes(FORWARD[_n], when=_forward_needs_product)(_forward_by_product(_n))
    lowers(FORWARD[_n])(_forward(_n))
    decomposes(TRANSPOSED[_n], when=_needs_product)(_transposed_by_product(_n))
    lowers(TRANSPOSED[_n])(_transposed(_n))


@decomposes(torch.convolution)
def convolution(
    input: torch.Tensor, weight: torch.Tensor, bias: Any, stride: Any, padding: Any,
    dilation: Any, transposed: bool, output_padding: Any, groups: int,
) -> T:  # fmt: skip
    n = weight.dim() - 2
    if transposed:
        return TRANSPOSED[n](
            input, weight, bias, stride, padding, output_padding, groups, dilation
        )
    return FORWARD[n](input, weight, bias, stride, padding, dilation, groups)


@decomposes(torch._convolution)
def _convolution(
    input: torch.Tensor, weight: torch.Tensor, bias: Any, stride: Any, padding: Any,
    dilation: Any, transposed: bool, output_padding: Any, groups: int, *_: object,
) -> T:  # fmt: skip
    return convolution(
        input, weight, bias, stride, padding, dilation, transposed, output_padding, groups
    )


@decomposes(torch.conv_tbc)
def conv_tbc(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, pad: int = 0) -> T:
    y = torch.conv1d(input.permute(1, 2, 0), weight.permute(2, 1, 0), bias, padding=pad)
    return y.permute(2, 0, 1)
