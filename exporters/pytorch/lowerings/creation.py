"""Tensors made from sizes and numbers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import torch

from exporters.pytorch.dtypes import from_torch_dtype, promote, promoted_dtype
from exporters.pytorch.handlers import sequence_sizes
from exporters.pytorch.lowerings.arithmetic import number
from exporters.pytorch.registry import decomposes, lowers
from exporters.tracing.graph import static_shape

if TYPE_CHECKING:
    from collections.abc import Sequence

    from exporters.tracing.graph import GraphBuilder as Op

T: Any = torch.Tensor
aten = torch.ops.aten
prims = torch.ops.prims

_SMALL = 64  # elements: up to here a constant is no larger than the node that makes it


def _dtype(dtype: torch.dtype | None) -> ir.DataType:
    return from_torch_dtype(dtype or torch.get_default_dtype())


def filled(op: Op, sizes: Sequence[Any], fill: Any, dtype: ir.DataType) -> ir.Value:
    """A tensor of one repeated value, by ``ConstantOfShape-9`` or ``Expand-13``."""
    (value,) = promote(op, fill, to=dtype)
    if value.const_value is None:
        return op.Expand(value, list(sizes)) if sizes else value
    array = value.const_value.numpy()
    known = all(isinstance(s, int) and number(s) is not None for s in sizes)
    if known and math.prod(sizes) <= _SMALL:
        return op.constant(np.broadcast_to(array, tuple(sizes)).copy())
    return op.ConstantOfShape(list(sizes), value=array.reshape(1))


def _filled_like(op: Op, x: ir.Value, fill: Any, dtype: torch.dtype | None) -> ir.Value:
    wanted = x.dtype if dtype is None else from_torch_dtype(dtype)
    static = static_shape(x)
    if static is not None:
        return filled(op, static, fill, wanted)
    (value,) = promote(op, fill, to=wanted)
    if value.const_value is not None:
        return op.ConstantOfShape(op.shape(x), value=value.const_value.numpy().reshape(1))
    return op.Expand(value, op.shape(x))


@lowers(torch.zeros)
def zeros(op: Op, /, *size: int, dtype: torch.dtype | None = None, **_: object) -> ir.Value:
    return filled(op, sequence_sizes(size), 0, _dtype(dtype))


@lowers(torch.ones)
def ones(op: Op, /, *size: int, dtype: torch.dtype | None = None, **_: object) -> ir.Value:
    return filled(op, sequence_sizes(size), 1, _dtype(dtype))


@lowers(torch.empty)
def empty(op: Op, /, *size: int, dtype: torch.dtype | None = None, **_: object) -> ir.Value:
    """Zeros, where torch leaves what was in memory."""
    return filled(op, sequence_sizes(size), 0, _dtype(dtype))


@lowers(torch.empty_permuted, prims.empty_permuted)
def empty_permuted(
    op: Op,
    /,
    size: Sequence[int],
    physical_layout: Sequence[int],
    *,
    dtype: torch.dtype | None = None,
    **_: object,
) -> ir.Value:
    return filled(op, size, 0, _dtype(dtype))


@lowers(torch.empty_strided, prims.empty_strided)
def empty_strided(
    op: Op,
    /,
    size: Sequence[int],
    stride: Sequence[int],
    *,
    dtype: torch.dtype | None = None,
    **_: object,
) -> ir.Value:
    return filled(op, size, 0, _dtype(dtype))


@lowers(torch.full)
def full(
    op: Op,
    /,
    size: Sequence[int],
    fill_value: Any,
    *,
    dtype: torch.dtype | None = None,
    **_: object,
) -> ir.Value:
    wanted = from_torch_dtype(dtype) if dtype else promoted_dtype(fill_value)
    return filled(op, size, fill_value, wanted)


@lowers(torch.zeros_like, torch.empty_like)
def zeros_like(
    op: Op, /, input: ir.Value, *, dtype: torch.dtype | None = None, **_: object
) -> ir.Value:
    return _filled_like(op, input, 0, dtype)


@lowers(torch.ones_like)
def ones_like(
    op: Op, /, input: ir.Value, *, dtype: torch.dtype | None = None, **_: object
) -> ir.Value:
    return _filled_like(op, input, 1, dtype)


@lowers(torch.full_like)
def full_like(
    op: Op,
    /,
    input: ir.Value,
    fill_value: Any,
    *,
    dtype: torch.dtype | None = None,
    **_: object,
) -> ir.Value:
    return _filled_like(op, input, fill_value, dtype)


def _like(x: ir.Value, dtype: torch.dtype | None) -> ir.DataType:
    assert x.dtype is not None
    return from_torch_dtype(dtype) if dtype else x.dtype


@lowers(T.new_zeros, T.new_empty, aten.new_zeros, aten.new_empty)
def new_zeros(
    op: Op, /, input: ir.Value, *size: int, dtype: torch.dtype | None = None, **_: object
) -> ir.Value:
    return filled(op, sequence_sizes(size), 0, _like(input, dtype))


@lowers(T.new_ones, aten.new_ones)
def new_ones(
    op: Op, /, input: ir.Value, *size: int, dtype: torch.dtype | None = None, **_: object
) -> ir.Value:
    return filled(op, sequence_sizes(size), 1, _like(input, dtype))


@lowers(T.new_empty_strided)
def new_empty_strided(
    op: Op,
    /,
    input: ir.Value,
    size: Sequence[int],
    stride: Sequence[int],
    dtype: torch.dtype | None = None,
    **_: object,
) -> ir.Value:
    return filled(op, size, 0, _like(input, dtype))


@lowers(T.new_full, aten.new_full)
def new_full(
    op: Op,
    /,
    input: ir.Value,
    size: Sequence[int],
    fill_value: Any,
    *,
    dtype: torch.dtype | None = None,
    **_: object,
) -> ir.Value:
    return filled(op, size, fill_value, _like(input, dtype))


# Ranges


@lowers(torch.arange)
def arange_to(op: Op, /, end: Any, *, dtype: torch.dtype | None = None, **_: object) -> ir.Value:
    return _counted(op, 0, end, 1, dtype)


@lowers(torch.arange)
def arange(
    op: Op,
    /,
    start: Any,
    end: Any,
    step: Any = 1,
    *,
    dtype: torch.dtype | None = None,
    **_: object,
) -> ir.Value:
    return _counted(op, start, end, step, dtype)


def _counted(op: Op, start: Any, end: Any, step: Any, dtype: torch.dtype | None) -> ir.Value:
    """The numbers; how many there are depends on values where a bound is a tensor."""
    value = _range(op, start, end, step, dtype)
    if any(isinstance(x, ir.Value) and x.const_value is None for x in (start, end, step)):
        value.meta["unbacked"] = True
    return value


def _range(op: Op, start: Any, end: Any, step: Any, dtype: torch.dtype | None) -> ir.Value:
    """Lower to ``Range-11`` of integers, scaled where the numbers are not."""
    numbers = (start, end, step)
    given = promoted_dtype(*numbers)
    wanted = from_torch_dtype(dtype) if dtype else given
    if not given.is_floating_point():
        return op.cast(op.Range(*promote(op, *numbers, to=ir.DataType.INT64)), wanted)
    if not wanted.is_floating_point():
        whole = [int(x) if number(x) is not None else x for x in numbers]
        return op.cast(op.Range(*promote(op, *whole, to=ir.DataType.INT64)), wanted)
    first, last, stride = promote(op, *numbers, to=ir.DataType.DOUBLE)
    count = op.Ceil(op.Div(op.Sub(last, first), stride))
    places = op.Range(0, op.cast(count, ir.DataType.INT64), 1)
    scaled = op.Mul(op.cast(places, ir.DataType.DOUBLE), stride)
    return op.cast(op.Add(scaled, first), wanted)


@lowers(prims.iota)
def iota(
    op: Op, /, length: Any, *, start: Any, step: Any, dtype: torch.dtype, **_: object
) -> ir.Value:
    places = op.Range(*promote(op, 0, length, 1, to=ir.DataType.INT64))
    if number(step) != 1:
        places = op.Mul(places, step)
    return op.cast(
        places if number(start) == 0 else op.Add(places, start), from_torch_dtype(dtype)
    )


@decomposes(torch.linspace)
def linspace(
    start: Any, end: Any, steps: Any, *, dtype: torch.dtype | None = None, **_: object
) -> torch.Tensor:
    """Counted from the nearer end, as torch counts; in float64."""
    dtype = dtype or _result_dtype(start, end)
    if number(steps) == 1:
        return torch.as_tensor(start).reshape(1).to(dtype)
    first, last = (_wide(x, dtype) for x in (start, end))
    stride = (last - first) / torch.as_tensor(steps - 1).clamp(min=1)
    places = torch.arange(steps)
    fromstart = first + stride * places
    fromend = last - stride * (steps - 1 - places)
    near_start = (places < steps // 2) | (places == 0)
    return torch.where(near_start, fromstart, fromend).to(dtype)


def _wide(x: Any, dtype: torch.dtype) -> torch.Tensor:
    x = x if isinstance(x, torch.Tensor) else torch.as_tensor(x, dtype=torch.float64)
    return (x if dtype.is_floating_point else x.to(dtype)).double()


def _result_dtype(*numbers: Any) -> torch.dtype:
    floats = [x.dtype for x in numbers if isinstance(x, torch.Tensor) and x.is_floating_point()]
    return floats[0] if floats else torch.get_default_dtype()


@decomposes(torch.logspace)
def logspace(
    start: Any, end: Any, steps: Any, base: float = 10.0, *, dtype: torch.dtype | None = None,
    **_: object,
) -> torch.Tensor:  # fmt: skip
    dtype = dtype or _result_dtype(start, end)
    first, last = (_wide(x, dtype) for x in (start, end))
    exponents = torch.linspace(first, last, steps, dtype=torch.float64)
    return (base**exponents).to(dtype)


@decomposes(torch.eye)
def eye(n: Any, m: Any = None, *, dtype: torch.dtype | None = None, **_: object) -> torch.Tensor:
    rows, columns = torch.arange(n), torch.arange(n if m is None else m)
    return (rows.unsqueeze(1) == columns).to(dtype or torch.get_default_dtype())


# From Python numbers


@decomposes(torch.triu_indices)
def triu_indices(
    row: Any, col: Any, offset: int = 0, *, dtype: torch.dtype = torch.int64, **_: object
) -> torch.Tensor:
    places = torch.arange(col) - torch.arange(row).unsqueeze(-1)
    return (places >= offset).nonzero().T.to(dtype)


@decomposes(torch.tril_indices)
def tril_indices(
    row: Any, col: Any, offset: int = 0, *, dtype: torch.dtype = torch.int64, **_: object
) -> torch.Tensor:
    places = torch.arange(col) - torch.arange(row).unsqueeze(-1)
    return (places <= offset).nonzero().T.to(dtype)


@lowers(torch.tensor, torch.as_tensor, torch.asarray, torch.scalar_tensor, prims.scalar_tensor)
def tensor(op: Op, /, data: Any, *, dtype: torch.dtype | None = None, **_: object) -> ir.Value:
    """Lower numbers and tensors in nested lists to ``Concat-13``."""
    flat: list[Any] = []
    shape: list[int] = []

    def visit(x: Any, depth: int) -> None:
        if isinstance(x, list | tuple):
            if len(shape) <= depth:
                shape.append(len(x))
            for i in x:
                visit(i, depth + 1)
        else:
            flat.append(x)

    visit(data, 0)
    wanted = from_torch_dtype(dtype) if dtype else _tensor_dtype(flat)
    parts = promote(op, *flat, to=wanted)
    if not shape:
        return parts[0]
    joined = op.Concat(*(op.Reshape(p, [1]) for p in parts), axis=0)
    return joined if len(shape) == 1 else op.Reshape(joined, shape)


def _tensor_dtype(flat: Sequence[Any]) -> ir.DataType:
    """Floats have the default dtype, whatever tensors stand beside them."""
    dtypes = [promoted_dtype(x) for x in flat]
    for dtype in (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.INT64):
        if dtype in dtypes:
            return dtype
    return dtypes[0]
