"""Resizing and sampling of images."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import torch
import torch.nn.functional as F

from exporters.pytorch.lowerings.shaping import rank
from exporters.pytorch.registry import Unlowerable, decomposes, lowers

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from exporters.tracing.graph import GraphBuilder as Op

T = torch.Tensor
nn = torch._C._nn

# What ORT 1.32 CPU resizes; it has no float64 kernel of any mode.
_RESIZED = {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.INT32, ir.DataType.INT8,
            ir.DataType.UINT8}  # fmt: skip


def _scale_list(scales: Sequence[Any], n: int) -> list[Any] | None:
    """Scale factors: one list, or one number per dim, or None where the size alone counts."""
    if len(scales) == 1 and isinstance(scales[0], list | tuple):
        scales = scales[0]
    return list(scales) if len(scales) == n and None not in scales else None


def _is_copied(before: Any, after: Any, factor: Any) -> bool:
    """Whether a dim stays as it is, since its size does: torch then forgets the scale factor.

    Raises:
        Unlowerable: Only the input's size says whether it does.
    """
    if _is_static(before) and _is_static(after):
        return bool(before == after)
    if _may_be_copied(factor):
        raise Unlowerable("the size may stay the same")
    return False


def _is_static(size: Any) -> bool:
    return isinstance(size, int) and not hasattr(size, "record")


def _may_be_copied(factor: Any) -> bool:
    """Whether a dim of more than one place may stay as long as it is."""
    return factor is not None and (hasattr(factor, "record") or 1 < factor < 1.5)


# Whole


def _resize(
    op: Op, x: ir.Value, output_size: Sequence[Any] | None, scales: list[Any] | None,
    **attributes: Any,
) -> ir.Value:  # fmt: skip
    """``Resize-13`` of all dims but the first two."""
    n = rank(x) - 2
    if scales is not None:
        factors = [1.0, 1.0, *scales]
        if any(hasattr(s, "record") for s in scales):
            parts = [op.cast(op.operand(s), ir.DataType.FLOAT) for s in factors]
            numbers: Any = op.Concat(*(op.Reshape(p, [1]) for p in parts), axis=0)
        else:
            numbers = np.asarray(factors, np.float32)
        return op.Resize(x, None, numbers, **attributes)
    assert output_size is not None
    if op.opset >= 18:
        axes = list(range(2, n + 2))
        return op.Resize(x, None, None, list(output_size), axes=axes, **attributes)
    sizes = op.concat_dims([op.dim(x, 0), op.dim(x, 1), *output_size])
    return op.Resize(x, None, None, sizes, **attributes)


# Scale factors by which torch, which multiplies by 1 / factor, and ORT, which divides by it,
# read the same places. With others one of the two may fall short of a whole number: ORT 1.32 reads
# other places than torch when it resizes from 14 to 16.
_SAFE_FACTORS = {*range(1, 33), 0.5, 0.25, 0.125}


def _reads_same_places(before: Any, after: Any, factor: Any, n: int, *, exact: bool) -> bool:
    """Whether ORT finds the place of every neighbour along a dim that torch finds."""
    static = isinstance(before, int) and isinstance(after, int) and not hasattr(after, "record")
    if exact or not static:
        if factor is None and static:
            factor = after / before
        return factor is not None and not hasattr(factor, "record") and factor in _SAFE_FACTORS
    f32 = np.float32
    places = np.arange(after, dtype=f32)
    scale = f32(after) / f32(before) if factor is None else f32(factor)
    step = f32(before) / f32(after) if factor is None else f32(1 / factor)
    wanted = places // 2 if _doubles(before, after, factor, n) else np.floor(places * step)
    return bool(np.array_equal(np.floor(places / scale), wanted))


def _doubles(before: Any, after: Any, factor: Any, n: int) -> bool:
    """Torch doubles an image whose size is doubled, whatever the scale says."""
    return n == 2 and factor is not None and bool(after == 2 * before)


def _nearest(exact: bool) -> Callable[..., ir.Value]:
    def lowering(op: Op, /, input: ir.Value, output_size: Any, *scales: Any) -> ir.Value:
        """Lower to ``Resize-13`` where ORT's places are torch's."""
        n = rank(input) - 2
        factors = _scale_list(scales, n)
        if input.dtype not in _RESIZED:
            raise Unlowerable(f"no {input.dtype.name} kernel of Resize in ORT")
        for i in range(n):
            before = op.dim(input, 2 + i)
            factor = None if factors is None else factors[i]
            if output_size is not None:
                after: Any = output_size[i]
            else:
                assert factor is not None  # torch takes one of the two
                after = math.floor(before * factor) if isinstance(before, int) else before
            if factors is not None and not exact and _is_copied(before, after, factor):
                factors[i] = factor = 1.0
            if not _reads_same_places(before, after, factor, n, exact=exact):
                raise Unlowerable("Resize rounds otherwise than torch")
        return _resize(
            op, input, output_size, factors, mode="nearest",
            coordinate_transformation_mode="half_pixel" if exact else "asymmetric",
            nearest_mode="round_prefer_ceil" if exact else "floor",
        )  # fmt: skip

    return lowering


def _smooth(mode: str) -> Callable[..., ir.Value]:
    def lowering(
        op: Op, /, input: ir.Value, output_size: Any, align_corners: bool, *scales: Any
    ) -> ir.Value:
        """Lower to ``Resize-13``."""
        if input.dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16):
            raise Unlowerable(f"no {input.dtype.name} kernel of Resize in ORT")
        factors = _scale_list(scales, rank(input) - 2)
        if factors is not None and mode == "cubic" and all(map(_may_be_copied, factors)):
            raise Unlowerable("ORT copies what keeps its size, torch does not")
        if factors is not None and mode == "linear":
            for i, factor in enumerate(factors):
                before = op.dim(input, 2 + i)
                known = isinstance(before, int) and not hasattr(factor, "record")
                after = math.floor(before * factor) if known else None
                factors[i] = 1.0 if _is_copied(before, after, factor) else factor
        return _resize(
            op, input, output_size, factors, mode=mode,
            coordinate_transformation_mode="align_corners" if align_corners else "half_pixel",
        )  # fmt: skip

    return lowering


# By index, and by products with matrices of weights


def _geometry(
    input: T, output_size: Any, scales: Sequence[Any]
) -> list[tuple[int, Any, Any, Any]]:
    """Of each dim: its axis, its size before and after, and the scale factor or None."""
    n = input.dim() - 2
    factors = _scale_list(scales, n)
    if output_size is None:
        assert factors is not None
        sizes = input.shape[2:]
        output_size = [math.floor(s * f) for s, f in zip(sizes, factors, strict=True)]
    return [
        (2 + i, input.shape[2 + i], output_size[i], None if factors is None else factors[i])
        for i in range(n)
    ]


def _step(
    before: Any, after: Any, factor: Any, align_corners: bool, dtype: torch.dtype, copies: bool
) -> T:
    """How far apart in the input two neighbours of the output are.

    ``copies``: what keeps its size is copied, whatever the scale factor.
    """
    if align_corners:
        gaps = torch.tensor(after - 1, dtype=dtype)  # of a single place the step is 0
        return torch.tensor(before - 1, dtype=dtype) / gaps.clamp(min=1) * gaps.clamp(max=1)
    if factor is None:
        return torch.tensor(before, dtype=dtype) / after
    step = torch.tensor(1 / factor, dtype=dtype)
    if not copies or not _may_be_copied(factor):
        return step
    return torch.where(torch.tensor(before) == after, torch.ones_like(step), step)


def _nearest_by_index(offset: float) -> Callable[..., T]:
    def resize(input: torch.Tensor, output_size: Any, *scales: Any) -> T:
        y = input
        for axis, before, after, factor in _geometry(input, output_size, scales):
            static = _is_static(before) and _is_static(after)
            if static and not offset and before == after:
                continue
            step = _step(before, after, factor, False, torch.float32, not offset)
            places = ((torch.arange(after).float() + offset) * step).floor().long()
            if static and not offset and _doubles(before, after, factor, input.dim() - 2):
                places = torch.arange(after) // 2
            y = y.index_select(axis, places.clamp(max=before - 1))
        return y

    return resize


def _cubic(x: T, a: float) -> T:
    """Keys' kernel at distances from 0 to 2, 0 beyond."""
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((x - 5) * x + 8) * x * a - 4 * a
    zero = torch.zeros_like(x)
    return torch.where(x < 1, near, torch.where(x < 2, far, zero))


def _triangle(x: T) -> T:
    return (1 - x).clamp(min=0)


def _weights(before: Any, after: Any, step: T, align_corners: bool, cubic: bool) -> T:
    """What each place of the output takes from each of the input: [before, after]."""
    centres = torch.arange(after).to(step.dtype)
    centres = centres * step if align_corners else (centres + 0.5) * step - 0.5
    if not cubic:
        centres = centres.clamp(min=0)
    first = centres.floor()
    places = torch.arange(before)[:, None]
    weights = torch.zeros([before, 1], dtype=step.dtype)
    for tap in range(-1, 3) if cubic else range(2):
        at = first + tap
        distance = (centres - at).abs()
        share = _cubic(distance, -0.75) if cubic else _triangle(distance)
        hit = places == at.long().clamp(min=0).minimum(torch.tensor(before - 1))
        weights = weights + hit.to(step.dtype) * share
    return weights


def _smoothed_weights(before: Any, after: Any, step: T, cubic: bool) -> T:
    """The same for a kernel that grows as the image shrinks; rounded where torch rounds."""
    dtype = step.dtype
    width = step.clamp(min=1)
    reach = width * (2 if cubic else 1)
    centres = ((torch.arange(after).double() + 0.5) * step).to(dtype)
    first = ((centres - reach).double() + 0.5).trunc().clamp(min=0)
    last = ((centres + reach).double() + 0.5).trunc()
    places = torch.arange(before).to(dtype)[:, None]
    gap = (places - centres).double() + 0.5
    distance = (gap * (1 / width).double()).to(dtype).abs()
    share = _cubic(distance, -0.5) if cubic else _triangle(distance)
    share = torch.where((places >= first) & (places < last), share, torch.zeros_like(share))
    if _is_static(before) and _is_static(after):  # eager's cumsum adds in float64, ORT's does not
        return share / functools.reduce(torch.add, share.unbind(0))
    return share / share.cumsum(0)[-1]


def _along(y: T, axis: int, weights: T) -> T:
    if axis == y.dim() - 1:
        return y @ weights
    return (y.transpose(axis, -1) @ weights).transpose(axis, -1)


def _along_bytes(y: T, axis: int, weights: T, *, known: bool) -> T:
    """As torch does it: with weights of 16 bits, rounding what comes out of each dim."""
    powers = torch.exp2(torch.arange(1, 23, dtype=torch.float64))
    digits = ((weights.amax() * powers + 0.5).floor() < 2**15).sum()
    one = torch.exp2(digits.double())
    weights = weights.sign() * (weights.abs() * one + 0.5).floor()
    if known and bool(255 * weights.abs().sum(0).amax() < 2**24):  # exact in float32
        weights, one = weights.float(), one.float()
    total = _along(y.to(weights.dtype), axis, weights)
    return ((total + one / 2) / one).floor().clamp(0, 255)


def _smooth_by_product(*, cubic: bool, antialias: bool) -> Callable[..., T]:
    def resize(input: torch.Tensor, output_size: Any, align_corners: bool, *scales: Any) -> T:
        whole = not input.dtype.is_floating_point
        dtype = torch.float64 if whole or input.dtype == torch.float64 else torch.float32
        copies = whole or antialias or not cubic
        y = input if whole else input.to(dtype)
        for axis, before, after, factor in _geometry(input, output_size, scales)[::-1]:
            known = _is_static(before) and _is_static(after)
            if copies and known and before == after:
                continue
            step = _step(before, after, factor, align_corners, dtype, copies)
            if antialias:
                weights = _smoothed_weights(before, after, step, cubic)
            else:
                weights = _weights(before, after, step, align_corners, cubic)
            y = _along_bytes(y, axis, weights, known=known) if whole else _along(y, axis, weights)
        return y.to(input.dtype)

    return resize


for _calls, _lowering, _body in (
    ((nn.upsample_nearest1d, nn.upsample_nearest2d, nn.upsample_nearest3d),
     _nearest(False), _nearest_by_index(0.0)),
    ((nn._upsample_nearest_exact1d, nn._upsample_nearest_exact2d, nn._upsample_nearest_exact3d),
     _nearest(True), _nearest_by_index(0.5)),
    ((nn.upsample_linear1d, nn.upsample_bilinear2d, nn.upsample_trilinear3d),
     _smooth("linear"), _smooth_by_product(cubic=False, antialias=False)),
    ((nn.upsample_bicubic2d,),
     _smooth("cubic"), _smooth_by_product(cubic=True, antialias=False)),
):  # fmt: skip
    lowers(*_calls)(_lowering)
    decomposes(*_calls)(_body)

# ORT 1.32 CPU smooths with the rounded weights of an image library: off by 0.2 of the contrast.
decomposes(nn._upsample_bilinear2d_aa)(_smooth_by_product(cubic=False, antialias=True))
decomposes(nn._upsample_bicubic2d_aa)(_smooth_by_product(cubic=True, antialias=True))


# Sampling at given places

_SAMPLING = ("linear", "nearest", "cubic")
_SAMPLING_BEFORE_20 = ("bilinear", "nearest", "bicubic")
_BORDERS = ("zeros", "border", "reflection")


@lowers(torch.grid_sampler, torch.grid_sampler_2d, torch.grid_sampler_3d)
def grid_sampler(
    op: Op, /, input: ir.Value, grid: ir.Value, interpolation_mode: int, padding_mode: int,
    align_corners: bool,
) -> ir.Value:  # fmt: skip
    """Lower to ``GridSample-16``, for volumes to ``GridSample-20``."""
    if op.opset < 20 and (rank(input) == 5 or input.dtype == ir.DataType.DOUBLE):
        raise Unlowerable("GridSample-16 samples images, of float32")
    modes = _SAMPLING if op.opset >= 20 else _SAMPLING_BEFORE_20
    return op.GridSample(
        input, op.cast(grid, input.dtype), mode=modes[interpolation_mode],
        padding_mode=_BORDERS[padding_mode], align_corners=int(align_corners),
    )  # fmt: skip


def _within(x: T, size: Any, padding_mode: int, align_corners: bool) -> T:
    """Coordinates of samples after border or reflection padding."""
    if padding_mode == 2:
        low, span = (0.0, size - 1) if align_corners else (-0.5, size)
        if not hasattr(size, "record") and size == 1 and align_corners:
            return torch.zeros_like(x)
        x = (x - low).abs()
        turns = (x / span).floor()
        rest = x - turns * span
        x = torch.where(turns % 2 == 0, rest + low, span - rest + low)
    if padding_mode:
        x = x.clamp(min=0).minimum(torch.tensor(size - 1).to(x.dtype))
    return x


@decomposes(torch.grid_sampler, torch.grid_sampler_2d, torch.grid_sampler_3d)
def grid_sampler_by_index(
    input: torch.Tensor, grid: torch.Tensor, interpolation_mode: int, padding_mode: int,
    align_corners: bool,
) -> T:  # fmt: skip
    """Gather the neighbours of every sample, and weigh them."""
    if interpolation_mode == 2:
        raise Unlowerable("bicubic sampling before opset 20, in float64")
    sizes = list(input.shape[2:])
    corners: list[tuple[T, T]] = [
        (torch.zeros([1], dtype=torch.int64), torch.ones([1], dtype=grid.dtype))
    ]
    for i, size in enumerate(sizes):
        x = grid[..., len(sizes) - 1 - i].flatten(1)
        x = (x + 1) / 2 * (size - 1) if align_corners else ((x + 1) * size - 1) / 2
        x = _within(x, size, padding_mode, align_corners)
        if interpolation_mode == 1:
            taps = [(x.round(), torch.ones_like(x))]
        else:
            low = x.floor()
            taps = [(low, 1 - (x - low)), (low + 1, x - low)]
        grown = []
        for at, share in taps:
            inside = (at >= 0) & (at < size)
            place = at.clamp(min=0).minimum(torch.tensor(size - 1).to(at.dtype)).long()
            gate = share * inside.to(share.dtype)
            grown += [(p * size + place, w * gate) for p, w in corners]
        corners = grown
    flat = input.flatten(2)
    y: Any = 0
    for place, weight in corners:
        index = place[:, None].expand(-1, flat.shape[1], -1)
        y = y + flat.gather(2, index) * weight[:, None]
    return y.reshape([*flat.shape[:2], *grid.shape[1:-1]])


@decomposes(torch.affine_grid_generator, F.affine_grid)
def affine_grid(theta: torch.Tensor, size: Any, align_corners: Any = None) -> T:
    axes = []
    for length in list(size)[2:]:
        steps = torch.arange(length).to(theta.dtype)
        if align_corners:
            span = length - 1
            one = not hasattr(length, "record") and length == 1
            axes.append(torch.zeros_like(steps) if one else steps * 2 / span - 1)
        else:
            axes.append((steps * 2 + 1) / length - 1)
    grids = [*torch.meshgrid(*axes, indexing="ij")][::-1]
    base = torch.stack([*grids, torch.ones_like(grids[0])], -1)
    flat = base.reshape(-1, len(size) - 1) @ theta.mT
    return flat.reshape([size[0], *list(size)[2:], len(size) - 2])


# Pixels and channels


@lowers(torch.pixel_shuffle)
def pixel_shuffle(op: Op, /, input: ir.Value, upscale_factor: int) -> ir.Value:
    """Lower to ``DepthToSpace-13``."""
    floating = input.dtype.is_floating_point() or input.dtype == ir.DataType.UINT8
    if rank(input) not in (3, 4) or not floating or 0 in list(input.shape.dims):
        raise Unlowerable("DepthToSpace takes images of floats")
    x = input if rank(input) == 4 else op.Unsqueeze(input, [0])
    y = op.DepthToSpace(x, blocksize=upscale_factor, mode="CRD")
    return y if rank(input) == 4 else op.Squeeze(y, [0])


@decomposes(torch.pixel_shuffle)
def pixel_shuffle_by_shape(input: torch.Tensor, upscale_factor: int) -> T:
    r = upscale_factor
    *batch, channels, height, width = input.shape
    n = len(batch)
    x = input.reshape([*batch, channels // (r * r), r, r, height, width])
    x = x.permute(*range(n), n, n + 3, n + 1, n + 4, n + 2)
    return x.reshape([*batch, channels // (r * r), height * r, width * r])


@decomposes(torch.pixel_unshuffle)
def pixel_unshuffle(input: torch.Tensor, downscale_factor: int) -> T:
    r = downscale_factor
    *batch, channels, height, width = input.shape
    n = len(batch)
    x = input.reshape([*batch, channels, height // r, r, width // r, r])
    x = x.permute(*range(n), n, n + 2, n + 4, n + 1, n + 3)
    return x.reshape([*batch, channels * r * r, height // r, width // r])


@decomposes(torch.channel_shuffle, torch.native_channel_shuffle)
def channel_shuffle(input: torch.Tensor, groups: int) -> T:
    batch, channels, *rest = input.shape
    x = input.reshape([batch, groups, channels // groups, *rest])
    return x.transpose(1, 2).reshape([batch, channels, *rest])
