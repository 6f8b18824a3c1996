"""Tensors made from sizes and numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import torch

from exporters.pytorch.dtypes import from_torch_dtype, promoted_dtype
from exporters.pytorch.handlers import sequence_sizes
from exporters.pytorch.registry import lowers
from exporters.tracing.graph import isinstance_static

if TYPE_CHECKING:
    from collections.abc import Sequence

    from exporters.tracing.graph import GraphBuilder as Op

T = torch.Tensor


def _dtype(dtype: torch.dtype | None) -> ir.DataType:
    return from_torch_dtype(dtype or torch.get_default_dtype())


def filled(op: Op, sizes: Sequence[Any], fill: Any, dtype: ir.DataType) -> ir.Value:
    """A tensor of one repeated value: a constant when the sizes are."""
    value = op.operand(fill, dtype) if not isinstance(fill, ir.Value) else op.cast(fill, dtype)
    if value.const_value is not None:
        return op.ConstantOfShape(list(sizes) or np.zeros([0], np.int64), value=value.const_value.numpy().reshape(1))
    return op.Expand(value, list(sizes) or np.zeros([0], np.int64))


@lowers(torch.zeros)
def zeros(op: Op, /, *size: int, dtype: torch.dtype | None = None, **_: object) -> ir.Value:
    return filled(op, sequence_sizes(size), 0, _dtype(dtype))


@lowers(torch.ones)
def ones(op: Op, /, *size: int, dtype: torch.dtype | None = None, **_: object) -> ir.Value:
    return filled(op, sequence_sizes(size), 1, _dtype(dtype))


@lowers(torch.empty)
def empty(op: Op, /, *size: int, dtype: torch.dtype | None = None, **_: object) -> ir.Value:
    return filled(op, sequence_sizes(size), 0, _dtype(dtype))


@lowers(torch.full)
def full(op: Op, /, size: Sequence[int], fill_value: Any, *, dtype: torch.dtype | None = None, **_: object) -> ir.Value:
    return filled(op, size, fill_value, from_torch_dtype(dtype) if dtype else promoted_dtype(fill_value))


@lowers(torch.zeros_like, torch.empty_like)
def zeros_like(op: Op, /, input: ir.Value, *, dtype: torch.dtype | None = None, **_: object) -> ir.Value:
    return full_like(op, input, 0, dtype=dtype)


@lowers(torch.ones_like)
def ones_like(op: Op, /, input: ir.Value, *, dtype: torch.dtype | None = None, **_: object) -> ir.Value:
    return full_like(op, input, 1, dtype=dtype)


@lowers(torch.full_like)
def full_like(op: Op, /, input: ir.Value, fill_value: Any, *, dtype: torch.dtype | None = None, **_: object) -> ir.Value:
    wanted = input.dtype if dtype is None else from_torch_dtype(dtype)
    value = op.cast(fill_value, wanted) if isinstance(fill_value, ir.Value) else op.operand(fill_value, wanted)
    return op.Expand(value, op.shape(input))


@lowers(T.new_zeros, T.new_empty)
def new_zeros(op: Op, /, input: ir.Value, *size: int, dtype: torch.dtype | None = None, **_: object) -> ir.Value:
    return filled(op, sequence_sizes(size), 0, from_torch_dtype(dtype) if dtype else input.dtype)


@lowers(T.new_ones)
def new_ones(op: Op, /, input: ir.Value, *size: int, dtype: torch.dtype | None = None, **_: object) -> ir.Value:
    return filled(op, sequence_sizes(size), 1, from_torch_dtype(dtype) if dtype else input.dtype)


@lowers(T.new_full)
def new_full(op: Op, /, input: ir.Value, size: Sequence[int], fill_value: Any, *, dtype: torch.dtype | None = None, **_: object) -> ir.Value:
    return filled(op, size, fill_value, from_torch_dtype(dtype) if dtype else input.dtype)


@lowers(torch.arange)
def arange(op: Op, /, start: Any, end: Any = None, step: Any = 1, *, dtype: torch.dtype | None = None, **_: object) -> ir.Value:
    """Lower to ``Range-11``, which computes in one dtype; floats stop where eager's doubles do."""
    if end is None:
        start, end = 0, start
    numbers = (start, end, step)
    given = promoted_dtype(*numbers)
    wanted = from_torch_dtype(dtype) if dtype else given
    working = given if given != ir.DataType.FLOAT else ir.DataType.DOUBLE
    made = op.Range(*(op.operand(x, working) if not isinstance(x, ir.Value) else op.cast(x, working) for x in numbers))
    return op.cast(made, wanted)


@lowers(torch.tensor, torch.as_tensor, torch.scalar_tensor)
def tensor(op: Op, /, data: Any, *, dtype: torch.dtype | None = None, **_: object) -> ir.Value:
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
    parts = [op.cast(x, wanted) if isinstance(x, ir.Value) else op.operand(x, wanted) for x in flat]
    if not shape:
        return parts[0]
    joined = op.Concat(*(op.Reshape(p, [1]) for p in parts), axis=0)
    return joined if len(shape) == 1 else op.Reshape(joined, shape)


def _tensor_dtype(flat: Sequence[Any]) -> ir.DataType:
    dtypes = [promoted_dtype(x) for x in flat]
    for dtype in (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.INT64):
        if dtype in dtypes:
            return dtype
    return dtypes[0]
