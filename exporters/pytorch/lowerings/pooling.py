"""Pooling."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import onnx_ir as ir
import torch
import torch.nn.functional as F

from exporters.pytorch.dtypes import to_torch_dtype
from exporters.pytorch.lowerings.convolution import blocks, is_double
from exporters.pytorch.lowerings.dims import static_size, tuple_of
from exporters.pytorch.lowerings.not_a_number import holds_nan
from exporters.pytorch.lowerings.reductions import mean
from exporters.pytorch.lowerings.shaping import rank
from exporters.pytorch.registry import Unlowerable, decomposes, lowers

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from exporters.tracing.graph import GraphBuilder as Op

T = torch.Tensor
nn = torch._C._nn


def _steps(stride: Any, kernel: list[int]) -> list[int]:
    """Torch's stride is the kernel's size when it is None or empty."""
    return tuple_of(stride, len(kernel)) if stride not in (None, [], ()) else kernel


def _batched(op: Op, x: ir.Value, n: int) -> ir.Value:
    return x if rank(x) == n + 2 else op.Unsqueeze(x, [0])


def _unbatched(op: Op, y: ir.Value, x: ir.Value, n: int) -> ir.Value:
    return y if rank(x) == n + 2 else op.Squeeze(y, [0])


# Maxima


def _max_pool(n: int) -> Callable[..., ir.Value]:
    def lowering(
        op: Op, /, input: ir.Value, kernel_size: Any, stride: Any = None, padding: Any = 0,
        dilation: Any = 1, ceil_mode: bool = False,
    ) -> ir.Value:  # fmt: skip
        pooled = _max_node(op, input, n, kernel_size, stride, padding, dilation, ceil_mode, 1)
        return _unbatched(op, pooled, input, n)

    return lowering


def _max_pool_with_indices(n: int) -> Callable[..., tuple[ir.Value, ir.Value]]:
    def lowering(
        op: Op, /, input: ir.Value, kernel_size: Any, stride: Any = None, padding: Any = 0,
        dilation: Any = 1, ceil_mode: bool = False,
    ) -> tuple[ir.Value, ir.Value]:  # fmt: skip
        """Lower to ``MaxPool-12``, which counts through all planes where torch starts in each."""
        pooled, indices = _max_node(
            op, input, n, kernel_size, stride, padding, dilation, ceil_mode, 2
        )
        plane = [op.dim(input, axis) for axis in range(-n, 0)]
        if all(isinstance(size, int) for size in plane):
            size: Any = math.prod(plane) or 1
        else:
            size = op.ReduceProd(op.operand(plane), keepdims=0)
        indices = op.Mod(indices, size)
        return _unbatched(op, pooled, input, n), _unbatched(op, indices, input, n)

    return lowering


def _max_node(
    op: Op, x: ir.Value, n: int, kernel_size: Any, stride: Any, padding: Any, dilation: Any,
    ceil_mode: bool, outputs: int,
) -> Any:  # fmt: skip
    kernel = tuple_of(kernel_size, n)
    if not x.dtype.is_floating_point():  # of the integers, MaxPool has those of 8 bits
        x = op.cast(x, ir.DataType.DOUBLE)
    margins, gaps = tuple_of(padding, n), tuple_of(dilation, n)
    made = op.MaxPool(
        _batched(op, x, n), kernel_shape=kernel, strides=_steps(stride, kernel),
        pads=margins * 2, dilations=gaps, ceil_mode=int(ceil_mode), outputs=outputs,
    )  # fmt: skip
    if any(margins) and any(gap > 1 for gap in gaps):
        # Windows with gaps may see nothing but padding, of which ORT's maximum is the lowest number.
        y = made[0] if outputs > 1 else made
        lowest = torch.finfo(to_torch_dtype(x.dtype)).min
        y = op.Where(op.LessOrEqual(y, lowest), -math.inf, y)
        return [y, *made[1:]] if outputs > 1 else y
    return made


for _n, _call, _indexed in (
    (1, torch.max_pool1d, torch.max_pool1d_with_indices),
    (2, torch.max_pool2d, nn.max_pool2d_with_indices),
    (3, torch.max_pool3d, nn.max_pool3d_with_indices),
):
    lowers(_call)(_max_pool(_n))
    lowers(_indexed)(_max_pool_with_indices(_n))


# Means


def _avg_pool_by_sum(n: int) -> Callable[..., T]:
    def pool(
        input: torch.Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0,
        ceil_mode: bool = False, count_include_pad: bool = True, divisor_override: Any = None,
    ) -> T:  # fmt: skip
        """Sum the windows of a padded image, and divide by what torch counts in each."""
        kernel = tuple_of(kernel_size, n)
        whole = not input.is_floating_point()
        steps, margins = _steps(stride, kernel), tuple_of(padding, n)
        x = input if input.dim() == n + 2 else input.unsqueeze(0)
        ones = torch.ones([1, 1, *x.shape[2:]], dtype=x.dtype)
        ends = []
        for size, k, s, p in zip(x.shape[2:], kernel, steps, margins, strict=True):
            count = (size + 2 * p - k) // s + 1
            if ceil_mode:  # one more window if it starts inside
                most, inside = -((k - size - 2 * p) // s) + 1, (size + p - 1) // s + 1
                count = (most + inside - abs(most - inside)) // 2
            ends.append((count - 1) * s + k - size - 2 * p)  # below 0 crops
        around = [p for p in margins[::-1] for _ in range(2)]
        beyond = [q for end in ends[::-1] for q in (0, end)]
        gaps, window = [1] * n, tuple(range(2, n + 2))
        total = blocks(F.pad(F.pad(x, around), beyond), kernel, steps, gaps).sum(window)
        if divisor_override:
            divisor: Any = divisor_override
        else:
            ones = F.pad(F.pad(ones, around, value=float(count_include_pad)), beyond)
            divisor = blocks(ones, kernel, steps, gaps).sum(window)
        y = torch.div(total, divisor, rounding_mode="trunc") if whole else total / divisor
        return y if input.dim() == n + 2 else y.squeeze(0)

    return pool


def _avg_pool(n: int) -> Callable[..., ir.Value]:
    def lowering(
        op: Op, /, input: ir.Value, kernel_size: Any, stride: Any = None, padding: Any = 0,
        ceil_mode: bool = False, count_include_pad: bool = True, divisor_override: Any = None,
    ) -> ir.Value:  # fmt: skip
        if not input.dtype.is_floating_point():
            raise Unlowerable("ONNX's AveragePool takes no integers")
        kernel = tuple_of(kernel_size, n)
        y = op.AveragePool(
            _batched(op, input, n), kernel_shape=kernel, strides=_steps(stride, kernel),
            pads=tuple_of(padding, n) * 2, ceil_mode=int(ceil_mode),
            count_include_pad=int(count_include_pad),
        )  # fmt: skip
        return _unbatched(op, y, input, n)

    return lowering


def _divides_otherwise(
    input: T, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False,
    count_include_pad: bool = True, divisor_override: Any = None,
) -> bool:  # fmt: skip
    return is_double(input) or not input.is_floating_point() or bool(divisor_override)


AVERAGE: dict[int, Any] = {1: torch.avg_pool1d, 2: nn.avg_pool2d, 3: nn.avg_pool3d}
for _n, _average in AVERAGE.items():
    decomposes(_average, when=_divides_otherwise)(_avg_pool_by_sum(_n))
    lowers(_average)(_avg_pool(_n))


def _lp_pool(n: int) -> Callable[..., ir.Value]:
    def lowering(
        op: Op, /, input: ir.Value, norm_type: Any, kernel_size: Any, stride: Any = None,
        ceil_mode: bool = False,
    ) -> ir.Value:  # fmt: skip
        """Lower to ``LpPool-11``, which takes absolute values where torch takes powers."""
        if norm_type not in (2, 4, 6) or ceil_mode or input.dtype == ir.DataType.DOUBLE:
            raise Unlowerable(
                "LpPool takes even powers of floats, and no ceil_mode as torch has it"
            )
        kernel = tuple_of(kernel_size, n)
        y = op.LpPool(
            _batched(op, input, n), kernel_shape=kernel, strides=_steps(stride, kernel),
            p=int(norm_type),
        )  # fmt: skip
        return _unbatched(op, y, input, n)

    return lowering


POWER: dict[int, Any] = {1: F.lp_pool1d, 2: F.lp_pool2d, 3: F.lp_pool3d}
for _n, _power in POWER.items():
    lowers(_power)(_lp_pool(_n))


# Pools of given output size


def _window_bounds(size: Any, count: Any) -> tuple[T, T]:
    """First index of each of ``count`` windows along a dim, and the index after its last."""
    places = torch.arange(count)
    return places * size // count, ((places + 1) * size + count - 1) // count


def _whole_windows(x: ir.Value, counts: Sequence[Any]) -> list[int]:
    """The one size that all windows have along each axis."""
    kernel = []
    for axis, count in zip(range(-len(counts), 0), counts, strict=True):
        size = static_size(x, axis)
        if hasattr(count, "record") or not size or not count or size % count:
            raise Unlowerable("the windows differ in size")
        kernel.append(size // count)
    return kernel


def _adaptive_avg_pool(n: int) -> Callable[..., ir.Value]:
    def lowering(op: Op, /, input: ir.Value, output_size: Any) -> ir.Value:
        """Lower to a mean pool if all windows are of one size."""
        counts = tuple_of(output_size, n)
        double = input.dtype == ir.DataType.DOUBLE  # ORT 1.32 CPU: see `is_double`
        if all(not hasattr(c, "record") and c == 1 for c in counts):
            if rank(input) == n + 2 and not double:
                return op.GlobalAveragePool(input)
            return mean(op, input, list(range(-n, 0)), True)
        if double:
            raise Unlowerable("float64")
        kernel = _whole_windows(input, counts)
        pooled = op.AveragePool(_batched(op, input, n), kernel_shape=kernel, strides=kernel)
        return _unbatched(op, pooled, input, n)

    return lowering


def _adaptive_avg_pool_by_product(n: int) -> Callable[..., T]:
    def pool(input: torch.Tensor, output_size: Any) -> T:
        """Multiply with a matrix of weights along each dim."""
        y = input
        for axis, count in zip(range(-n, 0), tuple_of(output_size, n), strict=True):
            size = input.shape[axis]
            if count is size:
                continue
            starts, ends = _window_bounds(size, count)
            places = torch.arange(size)[:, None]
            inside = (places >= starts) & (places < ends)
            weights = inside.to(input.dtype) / (ends - starts).to(input.dtype)
            if axis == -1:
                y = y @ weights
            elif axis == -2:
                y = weights.T @ y
            else:
                y = (y.transpose(axis, -1) @ weights).transpose(axis, -1)
        return y

    return pool


for _n, _calls in (
    (1, (torch.adaptive_avg_pool1d,)),
    (2, (nn.adaptive_avg_pool2d, torch.ops.aten._adaptive_avg_pool2d)),
    (3, (nn.adaptive_avg_pool3d, torch.ops.aten._adaptive_avg_pool3d)),
):
    lowers(*_calls)(_adaptive_avg_pool(_n))
    decomposes(*_calls)(_adaptive_avg_pool_by_product(_n))


def _adaptive_max_pool(n: int) -> Callable[..., tuple[ir.Value, ir.Value]]:
    indexed = _max_pool_with_indices(n)

    def lowering(op: Op, /, input: ir.Value, output_size: Any) -> tuple[ir.Value, ir.Value]:
        """Lower to ``MaxPool-12`` if all windows are of one size."""
        return indexed(op, input, _whole_windows(input, tuple_of(output_size, n)))

    return lowering


def _adaptive_max_pool_by_index(n: int) -> Callable[..., tuple[T, T]]:
    def pool(input: torch.Tensor, output_size: Any) -> tuple[T, T]:
        """Gather what each window sees, [..., windows, places], and find the first maximum."""
        counts = tuple_of(output_size, n)
        seen = torch.zeros([1, 1], dtype=torch.int64)
        windows = 1
        for axis, count in zip(range(-n, 0), counts, strict=True):
            size = input.shape[axis]
            starts, ends = _window_bounds(size, count)
            longest = (size + count - 1) // count + 1
            # Shorter windows see their last place again.
            here = torch.minimum(starts[:, None] + torch.arange(longest), ends[:, None] - 1)
            seen = seen[:, None, :, None] * size + here[None, :, None, :]
            windows = windows * count
            seen = seen.reshape([windows, -1])
        values = input.flatten(-n)[..., seen]
        best = values.argmax(-1, keepdim=True)
        shape = [*input.shape[:-n], *counts]
        highest = values.gather(-1, best).reshape(shape)
        return highest, seen.expand(values.shape).gather(-1, best).reshape(shape)

    return pool


ADAPTIVE_MAX: dict[int, Any] = {
    1: torch.adaptive_max_pool1d,
    2: nn.adaptive_max_pool2d,
    3: nn.adaptive_max_pool3d,
}
for _n, _adaptive in ADAPTIVE_MAX.items():
    decomposes(_adaptive, when=holds_nan)(_adaptive_max_pool_by_index(_n))
    lowers(_adaptive)(_adaptive_max_pool(_n))
    decomposes(_adaptive)(_adaptive_max_pool_by_index(_n))


# Pools of random windows, and the inverse of pooling


def _fractional_places(size: Any, kernel: int, count: int, samples: T) -> T:
    """Where each window of [N, C] planes starts along a dim, [N, C, windows, places]."""
    last = size - kernel
    if count == 1:
        starts = torch.zeros_like(samples)[..., None] + last
    else:
        step = torch.tensor(last, dtype=samples.dtype) / (count - 1)
        places = torch.arange(count - 1).to(samples.dtype)
        offset = samples[..., None]
        starts = ((places + offset) * step).trunc() - (offset * step).trunc()
        starts = torch.cat([starts, torch.zeros_like(offset) + last], -1)
    return starts.long()[..., None] + torch.arange(kernel)


def _fractional_max_pool(n: int) -> Callable[..., tuple[T, T]]:
    def pool(
        input: torch.Tensor, kernel_size: Any, output_size: Any, random_samples: torch.Tensor
    ) -> tuple[T, T]:
        x = input if input.dim() == n + 2 else input.unsqueeze(0)
        counts = tuple_of(output_size, n)
        samples = random_samples if input.dim() == n + 2 else random_samples[:1]
        # torch draws the last dim's sample first
        order = range(n) if n == 3 else range(n)[::-1]
        seen = torch.zeros([1, 1, 1, 1], dtype=torch.int64)
        for axis, count, k, i in zip(
            range(-n, 0), counts, tuple_of(kernel_size, n), order, strict=True
        ):
            here = _fractional_places(x.shape[axis], k, count, samples[..., i])
            seen = seen[:, :, :, None, :, None] * x.shape[axis] + here[:, :, None, :, None, :]
            seen = seen.flatten(2, 3).flatten(3, 4)
        planes = x.flatten(2)[:, :, None, :].expand(-1, -1, seen.shape[2], -1)
        windows = planes.gather(-1, seen)
        best = windows.argmax(-1, keepdim=True)
        shape = [*input.shape[:-n], *counts]
        return windows.gather(-1, best).reshape(shape), seen.gather(-1, best).reshape(shape)

    return pool


decomposes(nn.fractional_max_pool2d)(_fractional_max_pool(2))
decomposes(nn.fractional_max_pool3d)(_fractional_max_pool(3))


def _max_unpool(n: int) -> Callable[..., T]:
    def unpool(input: torch.Tensor, indices: torch.Tensor, output_size: Any, *_: object) -> T:
        """Scatter into planes of zeros; ``MaxUnpool-11`` counts through all planes."""
        kept = input.shape[:-n]
        planes = input.new_zeros([*kept, math.prod(output_size)])
        planes = planes.scatter(-1, indices.flatten(-n), input.flatten(-n))
        return planes.reshape([*kept, *output_size])

    return unpool


decomposes(nn.max_unpool2d)(_max_unpool(2))
decomposes(nn.max_unpool3d)(_max_unpool(3))
