"""Reductions over dims."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import torch

from exporters.pytorch.dtypes import from_torch_dtype
from exporters.pytorch.lowerings.shaping import rank
from exporters.pytorch.registry import decomposes, lowers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from exporters.tracing.graph import GraphBuilder as Op

T = torch.Tensor


def reduce(op: Op, op_type: str, x: ir.Value, dim: Any, keepdim: bool) -> ir.Value:
    """A ``Reduce*`` node; axes are an input from opset 18 on (13 for ReduceSum), else an attribute."""
    if rank(x) == 0:
        return x
    axes = None if dim is None or (isinstance(dim, list | tuple) and not dim) else (
        [dim] if isinstance(dim, int) else list(dim)
    )
    axes = None if axes is None else [a % rank(x) for a in axes]
    if op.opset >= 18 or op_type == "ReduceSum":
        return op.emit(op_type, x, axes, keepdims=int(keepdim))
    return op.emit(op_type, x, axes=axes, keepdims=int(keepdim))


def _summable(op: Op, x: ir.Value, dtype: torch.dtype | None) -> ir.Value:
    if dtype is not None:
        return op.cast(x, from_torch_dtype(dtype))
    return x if x.dtype.is_floating_point() else op.cast(x, ir.DataType.INT64)


@lowers(torch.sum)
def sum(op: Op, /, input: ir.Value, dim: Any = None, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> ir.Value:
    return reduce(op, "ReduceSum", _summable(op, input, dtype), dim, keepdim)


@lowers(torch.mean)
def mean(op: Op, /, input: ir.Value, dim: Any = None, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> ir.Value:
    return reduce(op, "ReduceMean", _summable(op, input, dtype), dim, keepdim)


@lowers(torch.amax)
def amax(op: Op, /, input: ir.Value, dim: Any = (), keepdim: bool = False) -> ir.Value:
    return reduce(op, "ReduceMax", input, dim, keepdim)


@lowers(torch.amin)
def amin(op: Op, /, input: ir.Value, dim: Any = (), keepdim: bool = False) -> ir.Value:
    return reduce(op, "ReduceMin", input, dim, keepdim)


@lowers(torch.max)
def max_all(op: Op, /, input: ir.Value) -> ir.Value:
    return reduce(op, "ReduceMax", input, None, False)


@lowers(torch.max)
def max_dim(op: Op, /, input: ir.Value, dim: int, keepdim: bool = False) -> tuple[ir.Value, ir.Value]:
    return _extreme(op, "Max", input, dim, keepdim)


@lowers(torch.min)
def min_all(op: Op, /, input: ir.Value) -> ir.Value:
    return reduce(op, "ReduceMin", input, None, False)


@lowers(torch.min)
def min_dim(op: Op, /, input: ir.Value, dim: int, keepdim: bool = False) -> tuple[ir.Value, ir.Value]:
    return _extreme(op, "Min", input, dim, keepdim)


def _extreme(op: Op, which: str, x: ir.Value, dim: int, keepdim: bool) -> tuple[ir.Value, ir.Value]:
    if rank(x) == 0:
        return x, op.constant(np.asarray(0))
    return (
        reduce(op, f"Reduce{which}", x, dim, keepdim),
        op.emit(f"Arg{which}", x, axis=dim % rank(x), keepdims=int(keepdim)),
    )


@lowers(torch.argmax)
def argmax(op: Op, /, input: ir.Value, dim: int | None = None, keepdim: bool = False) -> ir.Value:
    return _arg(op, "ArgMax", input, dim, keepdim)


@lowers(torch.argmin)
def argmin(op: Op, /, input: ir.Value, dim: int | None = None, keepdim: bool = False) -> ir.Value:
    return _arg(op, "ArgMin", input, dim, keepdim)


def _arg(op: Op, op_type: str, x: ir.Value, dim: int | None, keepdim: bool) -> ir.Value:
    if dim is None:
        return op.emit(op_type, op.Reshape(x, [-1]), axis=0, keepdims=0)
    if rank(x) == 0:
        return op.constant(np.asarray(0))
    return op.emit(op_type, x, axis=dim % rank(x), keepdims=int(keepdim))


@lowers(torch.all)
def all(op: Op, /, input: ir.Value, dim: Any = None, keepdim: bool = False) -> ir.Value:
    truths = op.cast(op.cast(input, ir.DataType.BOOL), ir.DataType.INT32)
    return op.cast(reduce(op, "ReduceMin", truths, dim, keepdim), ir.DataType.BOOL)


@lowers(torch.any)
def any(op: Op, /, input: ir.Value, dim: Any = None, keepdim: bool = False) -> ir.Value:
    truths = op.cast(op.cast(input, ir.DataType.BOOL), ir.DataType.INT32)
    return op.cast(reduce(op, "ReduceMax", truths, dim, keepdim), ir.DataType.BOOL)


@lowers(torch.cumsum)
def cumsum(op: Op, /, input: ir.Value, dim: int, *, dtype: torch.dtype | None = None) -> ir.Value:
    x = _summable(op, input, dtype)
    return op.CumSum(x, np.asarray(dim % rank(x))) if rank(x) else x


@decomposes(torch.var)
def var(input: torch.Tensor, dim: Any = None, unbiased: bool = True, keepdim: bool = False, *, correction: Any = None) -> torch.Tensor:
    if isinstance(dim, bool):
        dim, unbiased = None, dim
    if correction is None:
        correction = 1 if unbiased else 0
    mean = input.mean(dim, keepdim=True) if dim is not None else input.mean()
    axes = range(input.dim()) if dim is None else [dim] if isinstance(dim, int) else dim
    count = 1
    for a in axes:
        count = count * input.shape[a]
    centred = input - mean
    squared = centred * centred
    total = squared.sum(dim, keepdim=keepdim) if dim is not None else squared.sum()
    return total / (count - correction)


@decomposes(torch.std)
def std(input: torch.Tensor, dim: Any = None, unbiased: bool = True, keepdim: bool = False, *, correction: Any = None) -> torch.Tensor:
    return torch.sqrt(var(input, dim, unbiased, keepdim, correction=correction))
