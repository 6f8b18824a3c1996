"""Lets torchvision run on a torch build whose CPU operators it has no binary for.

torchvision's wheels carry compiled operators for one torch build. With another one (a CPU-only
torch) importing the models fails, although only detection uses the operators. This defines them
in plain torch, before torchvision is imported.
"""

from __future__ import annotations

import importlib.util
import math
import pathlib
import sys
from typing import Any

import numpy as np
import torch

__all__ = ["install"]

_SCHEMAS = {
    "nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "roi_align": "(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, "
    "SymInt pooled_width, int sampling_ratio, bool aligned) -> Tensor",
    "_roi_align_backward": "(Tensor grad, Tensor rois, float spatial_scale, SymInt pooled_height, "
    "SymInt pooled_width, SymInt batch_size, SymInt channels, SymInt height, SymInt width, "
    "int sampling_ratio, bool aligned) -> Tensor",
    "roi_pool": "(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, "
    "SymInt pooled_width) -> (Tensor, Tensor)",
    "_roi_pool_backward": "(Tensor grad, Tensor rois, Tensor argmax, float spatial_scale, "
    "SymInt pooled_height, SymInt pooled_width, SymInt batch_size, SymInt channels, "
    "SymInt height, SymInt width) -> Tensor",
    "ps_roi_align": "(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, "
    "SymInt pooled_width, int sampling_ratio) -> (Tensor, Tensor)",
    "_ps_roi_align_backward": "(Tensor grad, Tensor rois, Tensor channel_mapping, "
    "float spatial_scale, SymInt pooled_height, SymInt pooled_width, int sampling_ratio, "
    "SymInt batch_size, SymInt channels, SymInt height, SymInt width) -> Tensor",
    "ps_roi_pool": "(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, "
    "SymInt pooled_width) -> (Tensor, Tensor)",
    "_ps_roi_pool_backward": "(Tensor grad, Tensor rois, Tensor channel_mapping, "
    "float spatial_scale, SymInt pooled_height, SymInt pooled_width, SymInt batch_size, "
    "SymInt channels, SymInt height, SymInt width) -> Tensor",
    "deform_conv2d": "(Tensor input, Tensor weight, Tensor offset, Tensor mask, Tensor bias, "
    "SymInt stride_h, SymInt stride_w, SymInt pad_h, SymInt pad_w, SymInt dilation_h, "
    "SymInt dilation_w, SymInt groups, SymInt offset_groups, bool use_mask) -> Tensor",
    "_deform_conv2d_backward": "(Tensor grad, Tensor input, Tensor weight, Tensor offset, "
    "Tensor mask, Tensor bias, SymInt stride_h, SymInt stride_w, SymInt pad_h, SymInt pad_w, "
    "SymInt dilation_h, SymInt dilation_w, SymInt groups, SymInt offset_groups, bool use_mask) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
}

_library: Any = None


def _nms(dets: torch.Tensor, scores: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    order = scores.argsort(descending=True, stable=True)
    boxes = dets[order].numpy()
    groups = _apart(boxes) if iou_threshold >= 0 else [np.arange(len(boxes))]
    kept = [group[_kept(boxes[group], iou_threshold)] for group in groups]
    return order[torch.from_numpy(np.sort(np.concatenate(kept)))]


def _apart(boxes: np.ndarray) -> list[np.ndarray]:
    """Groups of boxes, of which none shares an x with another one's: other classes, moved apart."""
    left, right = boxes[:, 0], boxes[:, 2]
    along = np.argsort(left, kind="stable")
    gaps = left[along][1:] >= np.maximum.accumulate(right[along])[:-1]
    return [np.sort(g) for g in np.split(along, np.flatnonzero(gaps) + 1)]


def _kept(boxes: np.ndarray, iou_threshold: float) -> np.ndarray:
    """Which of the boxes are left, the best ones first, as indices."""
    kept: list[np.ndarray] = []
    rest = np.arange(len(boxes))
    while len(rest):  # the overlaps of the first 64 that are left with all that are left
        x1, y1, x2, y2 = boxes[rest].T
        head = slice(0, 64)
        width = np.minimum(x2[head, None], x2) - np.maximum(x1[head, None], x1)
        height = np.minimum(y2[head, None], y2) - np.maximum(y1[head, None], y1)
        inter = width.clip(min=0) * height.clip(min=0)
        areas = (x2 - x1) * (y2 - y1)
        with np.errstate(invalid="ignore", divide="ignore"):
            overlaps = inter / (areas[head, None] + areas - inter) > iou_threshold
        alive = np.ones(len(rest), dtype=bool)
        for i, over in enumerate(overlaps):
            if alive[i]:
                alive[i + 1 :] &= ~over[i + 1 :]
        kept.append(rest[head][alive[head]])
        rest = rest[64:][alive[64:]]
    return np.concatenate([*kept, rest])


def _bilinear(image: torch.Tensor, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Values of ``image`` [C, H, W] at points of any shape, 0 beyond one pixel outside."""
    height, width = image.shape[-2:]
    outside = (y < -1) | (y > height) | (x < -1) | (x > width)
    y, x = y.clamp(min=0), x.clamp(min=0)
    y0, x0 = y.floor().long().clamp(max=height - 1), x.floor().long().clamp(max=width - 1)
    y1, x1 = (y0 + 1).clamp(max=height - 1), (x0 + 1).clamp(max=width - 1)
    y, x = torch.where(y0 >= height - 1, y0.to(y), y), torch.where(x0 >= width - 1, x0.to(x), x)
    ly, lx = y - y0, x - x0
    hy, hx = 1 - ly, 1 - lx
    value = (
        image[:, y0, x0] * (hy * hx)
        + image[:, y0, x1] * (hy * lx)
        + image[:, y1, x0] * (ly * hx)
        + image[:, y1, x1] * (ly * lx)
    )
    return value.masked_fill(outside, 0)


def _sample(image: torch.Tensor, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Values of ``image`` [C, H, W] at points of any shape, with zeros around it."""
    height, width = image.shape[-2:]
    padded = torch.nn.functional.pad(image, (1, 2, 1, 2))
    y, x = (y + 1).clamp(0, height + 1), (x + 1).clamp(0, width + 1)
    y0, x0 = y.floor().long(), x.floor().long()
    ly, lx = y - y0, x - x0
    return (
        padded[:, y0, x0] * ((1 - ly) * (1 - lx))
        + padded[:, y0, x0 + 1] * ((1 - ly) * lx)
        + padded[:, y0 + 1, x0] * (ly * (1 - lx))
        + padded[:, y0 + 1, x0 + 1] * (ly * lx)
    )


def _roi_align(
    input: torch.Tensor,
    rois: torch.Tensor,
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
    sampling_ratio: int,
    aligned: bool,
) -> torch.Tensor:
    outputs = []
    offset = 0.5 if aligned else 0.0
    if sampling_ratio > 0 and len(rois):
        sizes = (pooled_height, pooled_width)
        grids = (rois, spatial_scale, sizes, sampling_ratio, offset)
        return torch.cat([_aligned(input, *grids, start) for start in range(0, len(rois), 64)])
    for roi in rois:
        batch = int(roi[0])
        x1, y1, x2, y2 = (roi[1:] * spatial_scale - offset).unbind()
        width, height = x2 - x1, y2 - y1
        if not aligned:
            width, height = width.clamp(min=1), height.clamp(min=1)
        bin_h, bin_w = height / pooled_height, width / pooled_width
        grid_h = sampling_ratio if sampling_ratio > 0 else max(int(torch.ceil(bin_h)), 1)
        grid_w = sampling_ratio if sampling_ratio > 0 else max(int(torch.ceil(bin_w)), 1)
        ys = y1 + (torch.arange(pooled_height * grid_h) + 0.5) * bin_h / grid_h
        xs = x1 + (torch.arange(pooled_width * grid_w) + 0.5) * bin_w / grid_w
        points = _bilinear(input[batch], ys[:, None].expand(-1, len(xs)), xs.expand(len(ys), -1))
        shape = (input.shape[1], pooled_height, grid_h, pooled_width, grid_w)
        outputs.append(points.reshape(shape).mean((2, 4)))
    return (
        torch.stack(outputs)
        if outputs
        else input.new_zeros(0, input.shape[1], pooled_height, pooled_width)
    )


def _aligned(
    input: torch.Tensor, rois: torch.Tensor, scale: float, sizes: tuple[int, int], ratio: int,
    offset: float, start: int,
) -> torch.Tensor:  # fmt: skip
    """As below, for 64 regions at once whose bins all have the same number of samples."""
    rois = rois[start : start + 64]
    lines, inside = [], []
    for axis in (1, 0):
        first = rois[:, 1 + axis] * scale - offset
        span = rois[:, 3 + axis] * scale - offset - first
        span = span if offset else span.clamp(min=1)
        count, size = sizes[1 - axis], input.shape[3 - axis]
        steps = (torch.arange(count * ratio) + 0.5) / (count * ratio)
        places = first[:, None] + steps * span[:, None]
        inside.append((places >= -1) & (places <= size))
        places = places.clamp(0, size - 1)
        low = places.floor().long()
        lines.append((low, (low + 1).clamp(max=size - 1), places - low))
    (y0, y1, ly), (x0, x1, lx) = lines
    pixels = input.permute(0, 2, 3, 1).contiguous()
    batch = rois[:, 0].long()[:, None, None]
    total = torch.zeros(())
    for y, wy in ((y0, 1 - ly), (y1, ly)):
        for x, wx in ((x0, 1 - lx), (x1, lx)):
            weight = (wy * inside[0])[:, :, None] * (wx * inside[1])[:, None, :]
            total = total + pixels[batch, y[:, :, None], x[:, None, :]] * weight[..., None]
    bins = total.view(len(rois), sizes[0], ratio, sizes[1], ratio, input.shape[1])
    return bins.mean((2, 4)).permute(0, 3, 1, 2).contiguous()


def _ps_roi_align(
    input: torch.Tensor,
    rois: torch.Tensor,
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
    sampling_ratio: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    sizes = (pooled_height, pooled_width)
    pooled = _roi_align(input, rois, spatial_scale, *sizes, sampling_ratio, True)
    groups = pooled.view(
        len(rois), input.shape[1] // (pooled_height * pooled_width), *sizes, *sizes
    )
    own = torch.einsum("kcijij->kcij", groups)
    channels = torch.arange(input.shape[1], dtype=torch.int32).view(1, -1, *sizes)
    return own.clone(), channels.expand(own.shape).clone()


def _roi_pool(
    input: torch.Tensor,
    rois: torch.Tensor,
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    height, width = input.shape[-2:]
    result = input.new_zeros(len(rois), input.shape[1], pooled_height, pooled_width)
    for k, roi in enumerate(rois.tolist()):
        x1, y1, x2, y2 = (math.floor(v * spatial_scale + 0.5) for v in roi[1:])
        bin_h, bin_w = max(y2 - y1 + 1, 1) / pooled_height, max(x2 - x1 + 1, 1) / pooled_width
        for i in range(pooled_height):
            top, bottom = y1 + math.floor(i * bin_h), y1 + math.ceil((i + 1) * bin_h)
            for j in range(pooled_width):
                left, right = x1 + math.floor(j * bin_w), x1 + math.ceil((j + 1) * bin_w)
                rows = slice(min(max(top, 0), height), min(max(bottom, 0), height))
                columns = slice(min(max(left, 0), width), min(max(right, 0), width))
                part = input[int(roi[0]), :, rows, columns].flatten(1)
                if part.shape[1]:
                    result[k, :, i, j] = part.amax(1)
    return result, torch.zeros(result.shape, dtype=torch.int32)


def _deform_conv2d(
    input: torch.Tensor, weight: torch.Tensor, offset: torch.Tensor, mask: torch.Tensor, bias: torch.Tensor,
    stride_h: int, stride_w: int, pad_h: int, pad_w: int, dilation_h: int, dilation_w: int,
    groups: int, offset_groups: int, use_mask: bool,
) -> torch.Tensor:  # fmt: skip
    kh, kw = weight.shape[-2:]
    out_h, out_w = offset.shape[-2:]
    results = []
    for image, shift, gate in zip(
        input, offset, mask if use_mask else [None] * len(input), strict=True
    ):
        columns = []
        for group, part in enumerate(image.chunk(offset_groups)):
            for k in range(kh * kw):
                dy, dx = shift[2 * (group * kh * kw + k)], shift[2 * (group * kh * kw + k) + 1]
                y = torch.arange(out_h)[:, None] * stride_h - pad_h + (k // kw) * dilation_h + dy
                x = torch.arange(out_w) * stride_w - pad_w + (k % kw) * dilation_w + dx
                value = _sample(part, y, x)
                columns.append(value if gate is None else value * gate[group * kh * kw + k])
        per_group = torch.stack(columns).view(offset_groups, kh * kw, -1, out_h * out_w)
        flat = per_group.permute(0, 2, 1, 3).reshape(groups, -1, out_h * out_w)
        kernel = weight.reshape(groups, weight.shape[0] // groups, -1)
        results.append((kernel @ flat).reshape(-1, out_h, out_w))
    return torch.stack(results) + bias[:, None, None]


_KERNELS = {
    "nms": _nms,
    "qnms": _nms,
    "roi_align": _roi_align,
    "roi_pool": _roi_pool,
    "ps_roi_align": _ps_roi_align,
    "deform_conv2d": _deform_conv2d,
}


def _absent(name: str) -> Any:
    def kernel(*_: Any) -> Any:
        raise NotImplementedError(f"torchvision::{name} has no stand-in")

    return kernel


def _untraced(kernel: Any) -> Any:
    def run(*args: Any) -> Any:
        with torch._C.DisableTorchFunction(), torch.no_grad():
            return kernel(*args)

    return run


def _has_operators() -> bool:
    """Whether torchvision's own operators can be had: its library loads with this build of torch."""
    spec = importlib.util.find_spec("torchvision")
    assert spec is not None
    assert spec.origin is not None
    libraries = list(pathlib.Path(spec.origin).parent.glob("_C*.so"))
    try:
        for library in libraries:
            torch.ops.load_library(library)
        torch.ops.torchvision.nms  # noqa: B018
    except (AttributeError, OSError, RuntimeError):
        return False
    return True


def install() -> None:
    """Make ``import torchvision`` work; nothing to do where its own operators load."""
    global _library
    if _library is not None or importlib.util.find_spec("torchvision") is None or _has_operators():
        return
    _library = torch.library.Library("torchvision", "DEF")
    for name, schema in _SCHEMAS.items():
        _library.define(name + schema)
        _library.impl(name, _untraced(_KERNELS.get(name, _absent(name))), "CPU")
    import torchvision.ops  # noqa: F401 (so that its modules are there to be told)

    for module in ("torchvision.extension", "torchvision.ops.roi_align"):
        sys.modules[module]._has_ops = lambda: True
