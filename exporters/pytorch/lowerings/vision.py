"""Operators of torchvision, which need not be installed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from exporters.pytorch.lowerings.dims import static_size
from exporters.pytorch.lowerings.scanning import scan
from exporters.pytorch.registry import Unlowerable, lowers
from exporters.tracing.graph import INT64_MAX

if TYPE_CHECKING:
    from exporters.tracing.graph import GraphBuilder as Op


@lowers("torchvision::nms")
def nms(op: Op, /, dets: ir.Value, scores: ir.Value, iou_threshold: float) -> ir.Value:
    """Lower to ``NonMaxSuppression-11``, which has batches and classes too.

    It takes corners in any order, where torch takes a box whose second corner is before its first
    for one that overlaps nothing: it gets no area.
    """
    first, second = op.Split(op.cast(dets, ir.DataType.FLOAT), [2, 2], axis=1, outputs=2)
    boxes = op.Unsqueeze(op.Concat(first, op.Max(first, second), axis=1), [0])
    ranked = op.Unsqueeze(op.cast(scores, ir.DataType.FLOAT), [0, 1])
    limit = np.asarray([INT64_MAX])
    chosen = op.NonMaxSuppression(boxes, ranked, limit, np.asarray([iou_threshold], np.float32))
    kept: ir.Value = op.Gather(chosen, 2, axis=1)
    kept.shape = ir.Shape([None])
    kept.meta["unbacked"] = True
    return kept


def _places(op: Op, rois: ir.Value) -> tuple[ir.Value, ir.Value]:
    """The image that each region is of, and its corners."""
    index = op.cast(op.Squeeze(op.Slice(rois, [0], [1], [1]), [1]), ir.DataType.INT64)
    return index, op.Slice(rois, [1], [5], [1])


@lowers("torchvision::roi_align")
def roi_align(
    op: Op, /, input: ir.Value, rois: ir.Value, spatial_scale: float, pooled_height: int,
    pooled_width: int, sampling_ratio: int, aligned: bool,
) -> ir.Value:  # fmt: skip
    """Lower to ``RoiAlign-16``; ORT 1.32 has no kernel of ``RoiAlign-22``."""
    index, corners = _places(op, rois)
    if op.opset < 22:
        return op.RoiAlign(
            input, corners, index, output_height=pooled_height, output_width=pooled_width,
            sampling_ratio=max(sampling_ratio, 0), spatial_scale=spatial_scale,
            coordinate_transformation_mode="half_pixel" if aligned else "output_half_pixel",
        )  # fmt: skip
    sizes = (pooled_height, pooled_width)
    return _aligned(op, input, index, corners, spatial_scale, sizes, sampling_ratio, aligned)


def _aligned(
    op: Op, input: ir.Value, index: ir.Value, corners: ir.Value, spatial_scale: float,
    sizes: tuple[int, int], sampling_ratio: int, aligned: bool,
) -> ir.Value:  # fmt: skip
    """A ``Scan-11`` over the regions.

    The samples of a region are a grid and bilinear interpolation is separable, so a region is its
    image between two matrices of weights; these are computed at once where all regions have as
    many samples. One region of no size stands after the others, because
    ORT 1.32 runs no Scan over nothing.
    """
    index, corners = op.Pad(index, np.asarray([0, 1])), op.Pad(corners, np.asarray([0, 0, 1, 0]))
    scaled = op.Sub(op.Mul(corners, float(spatial_scale)), 0.5 if aligned else 0.0)
    x1, y1, x2, y2 = op.Split(scaled, [1, 1, 1, 1], axis=1, outputs=4)
    spans = [op.Sub(y2, y1), op.Sub(x2, x1)]
    if not aligned:
        spans = [op.Max(s, np.asarray(1, input.dtype.numpy())) for s in spans]
    limits = [op.dim_vector(input, 2), op.dim_vector(input, 3)]

    def weights(start: ir.Value, span: ir.Value, axis: int) -> ir.Value:
        return _sample_weights(op, start, span, sizes[axis], limits[axis], sampling_ratio)

    if sampling_ratio > 0:
        sequences = [index, weights(y1, spans[0], 0), weights(x1, spans[1], 1)]
        shapes = [[None, bins, None] for bins in sizes]
    else:  # each region has as many samples as it needs
        sequences = [index, y1, x1, *spans]
        shapes = [[None, 1]] * 4
    image: Any = op.Squeeze(input, [0]) if static_size(input, 0) == 1 else None
    for value, shape in zip(sequences, [[None], *shapes], strict=True):
        value.shape = ir.Shape(shape)

    def step(_: list[ir.Value], items: list[ir.Value]) -> tuple[list[ir.Value], ir.Value]:
        whole = op.Gather(input, items[0], axis=0) if image is None else image
        if sampling_ratio > 0:
            rows, columns = items[1:]
        else:
            rows, columns = weights(items[1], items[3], 0), weights(items[2], items[4], 1)
        # Columns first: that product is one of two matrices.
        return [], op.MatMul(rows, op.MatMul(whole, op.Transpose(columns, perm=[1, 0])))

    y, _ = scan(op, step, [], sequences)
    return op.Slice(y, [0], [-1], [0])


def _sample_weights(
    op: Op, start: ir.Value, span: ir.Value, bins: int, size: ir.Value, sampling_ratio: int
) -> ir.Value:
    """What each bin takes from each place along an axis, [..., bins, size] of [..., 1]."""
    dtype = start.dtype.numpy()
    width = op.Div(span, float(bins))
    if sampling_ratio > 0:
        steps: Any = np.arange(sampling_ratio, dtype=dtype)
        count: Any = np.asarray(sampling_ratio, dtype)
    else:  # as many as the bin is wide
        count = op.Max(op.Ceil(width), np.asarray(1, dtype))
        steps = op.Range(*(op.operand(n, start.dtype) for n in (0, op.Squeeze(count, [0]), 1)))
    inner = op.Unsqueeze(op.Mul(op.Div(op.Add(steps, 0.5), count), width), [-2])
    first = op.Unsqueeze(op.Add(op.Mul(np.arange(bins, dtype=dtype), width), start), [-1])
    points = op.Unsqueeze(op.Add(first, inner), [-1])  # [..., bins, samples, 1]
    limit = op.cast(size, start.dtype)
    outside = op.Or(op.Less(points, -1.0), op.Greater(points, limit))
    points = op.Min(op.Max(points, np.asarray(0, dtype)), op.Sub(limit, 1.0))
    places = op.cast(op.Range(0, op.Squeeze(size, [0]), 1), start.dtype)
    near = op.Max(op.Sub(1.0, op.Abs(op.Sub(points, places))), np.asarray(0, dtype))
    shares = op.Where(outside, np.zeros([], dtype), near)
    if op.opset >= 18:
        return op.ReduceMean(shares, [-2], keepdims=0)
    return op.ReduceMean(shares, axes=[-2], keepdims=0)


@lowers("torchvision::ps_roi_align")
def ps_roi_align(
    op: Op, /, input: ir.Value, rois: ir.Value, spatial_scale: float, pooled_height: int,
    pooled_width: int, sampling_ratio: int,
) -> tuple[ir.Value, ir.Value]:  # fmt: skip
    """Lower as ``roi_align`` of all channels, of which each bin has its own."""
    channels = static_size(input, 1)
    if channels is None:
        raise Unlowerable("the number of channels is dynamic")
    y = roi_align(
        op, input, rois, spatial_scale, pooled_height, pooled_width, sampling_ratio, True
    )
    bins = pooled_height * pooled_width
    count = channels // bins
    flat = op.Reshape(y, op.concat_dims([op.dim_vector(rois, 0), count, bins * bins]))
    own = op.Gather(flat, np.arange(bins) * (bins + 1), axis=2)
    sizes = [op.dim_vector(rois, 0), count, pooled_height, pooled_width]
    y = op.Reshape(own, op.concat_dims(sizes))
    mapping = np.arange(channels, dtype=np.int32).reshape(1, count, pooled_height, pooled_width)
    return y, op.Expand(mapping, op.Shape(y))


@lowers("torchvision::roi_pool")
def roi_pool(
    op: Op, /, input: ir.Value, rois: ir.Value, spatial_scale: float, pooled_height: int,
    pooled_width: int,
) -> tuple[ir.Value, ir.Value]:  # fmt: skip
    """Lower to ``MaxRoiPool-1``; ORT 1.32 has no kernel of ``MaxRoiPool-22``."""
    if op.opset >= 22:
        raise Unlowerable("ONNX Runtime has no MaxRoiPool-22: export with opset=21")
    y = op.MaxRoiPool(
        input, rois, pooled_shape=[pooled_height, pooled_width], spatial_scale=spatial_scale
    )
    # The places of the maxima are for the gradient: no operator has them.
    return y, op.emit("RoiPoolPlaces", y, domain="bridge.unsupported")


@lowers("torchvision::deform_conv2d")
def deform_conv2d(
    op: Op, /, input: ir.Value, weight: ir.Value, offset: ir.Value, mask: ir.Value,
    bias: ir.Value, stride_h: int, stride_w: int, pad_h: int, pad_w: int, dilation_h: int,
    dilation_w: int, groups: int, offset_groups: int, use_mask: bool,
) -> ir.Value:  # fmt: skip
    """Lower to ``DeformConv-19``."""
    if op.opset < 19:
        raise Unlowerable("DeformConv needs opset 19")
    return op.DeformConv(
        input, weight, offset, bias, mask if use_mask else None,
        strides=[stride_h, stride_w], pads=[pad_h, pad_w] * 2, group=groups,
        dilations=[dilation_h, dilation_w], offset_group=offset_groups,
        kernel_shape=[static_size(weight, 2), static_size(weight, 3)],
    )  # fmt: skip
