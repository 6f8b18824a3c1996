"""Reductions over dims: sums, extremes, truth, variance."""

from __future__ import annotations

import builtins
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import torch

from exporters.pytorch.dtypes import from_torch_dtype, promote
from exporters.pytorch.handlers import sequence_sizes
from exporters.pytorch.lowerings import kernels
from exporters.pytorch.lowerings.arithmetic import number
from exporters.pytorch.lowerings.shaping import rank
from exporters.pytorch.registry import decomposes, lowers
from exporters.tracing.graph import isinstance_static

if TYPE_CHECKING:
    from exporters.tracing.graph import GraphBuilder as Op

aten = torch.ops.aten
prims = torch.ops.prims
BOOL = ir.DataType.BOOL
SYM_MAX: Any = torch.sym_max  # not annotated
all_ = builtins.all
# What may stand between a convolution and the mean of its positions.
_POSITIONWISE = frozenset(
    "Add BatchNormalization Clip HardSwish LeakyRelu Mul Relu Sigmoid Softplus Swish Tanh".split()
)


def axes_of(x: ir.Value, dim: Any) -> list[int] | None:
    """Torch's ``dim`` as axes; None and an empty list are all of them."""
    if rank(x) == 0 or dim is None or (isinstance(dim, list | tuple) and not dim):
        return None
    return [d % rank(x) for d in ([dim] if isinstance(dim, int) else dim)]


def reduce(op: Op, op_type: str, x: ir.Value, dim: Any, keepdim: bool) -> ir.Value:
    """A ``Reduce*`` node; before opset 18 (13 for ReduceSum) axes are an attribute."""
    if rank(x) == 0:
        return x
    axes = axes_of(x, dim)
    if op.opset >= 18 or op_type == "ReduceSum":
        inputs = (x,) if axes is None else (x, axes)
        return kernels.emit(op, op_type, *inputs, keepdims=int(keepdim))
    return kernels.emit(op, op_type, x, axes=axes, keepdims=int(keepdim))


def _summable(op: Op, x: ir.Value, dtype: torch.dtype | None) -> ir.Value:
    if dtype is not None:
        return op.cast(x, from_torch_dtype(dtype))
    return x if x.dtype.is_floating_point() else op.cast(x, ir.DataType.INT64)


# Sums and products


@lowers(torch.sum)
def sum(
    op: Op,
    /,
    input: ir.Value,
    dim: Any = None,
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
) -> ir.Value:
    """Lower to ``ReduceSum-13``; integers are summed as INT64, since other ones do not wrap."""
    if dtype is None or dtype.is_floating_point or input.dtype.is_floating_point():
        return reduce(op, "ReduceSum", _summable(op, input, dtype), dim, keepdim)
    total = reduce(op, "ReduceSum", _summable(op, input, None), dim, keepdim)
    return op.cast(total, from_torch_dtype(dtype))


@lowers(torch.nansum)
def nansum(
    op: Op,
    /,
    input: ir.Value,
    dim: Any = None,
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
) -> ir.Value:
    """Lower to ``ReduceSum-13`` with 0 for NaN."""
    x = _summable(op, input, dtype)
    if input.dtype.is_floating_point():
        x = op.Where(op.IsNaN(x), 0.0, x)
    return reduce(op, "ReduceSum", x, dim, keepdim)


@lowers(torch.mean)
def mean(
    op: Op,
    /,
    input: ir.Value,
    dim: Any = None,
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
) -> ir.Value:
    """Lower to ``ReduceMean-18``, which makes 0 of nothing where torch makes NaN."""
    x = _summable(op, input, dtype)
    result = reduce(op, "ReduceMean", x, dim, keepdim)
    axes = axes_of(x, dim)
    sizes = x.shape.dims if axes is None else [x.shape.dims[a] for a in axes]
    if 0 in sizes:
        return op.Add(result, np.nan)
    if all_(isinstance(s, int) for s in sizes) or _is_of_windows(x, axes):
        return result
    return op.Where(op.cast(op.Size(x), BOOL), result, np.nan)


def _is_of_windows(x: ir.Value, axes: list[int] | None) -> bool:
    """Whether only positions of a convolution or pooling are reduced, which never are none."""
    if axes is None or min(axes) < 2:
        return False
    maker = x.producer()
    while maker is not None and maker.op_type in _POSITIONWISE:
        maker = next((v.producer() for v in maker.inputs if v and v.producer()), None)
    return maker is not None and maker.op_type in ("Conv", "ConvTranspose", "MaxPool")


@lowers(torch.prod)
def prod(
    op: Op,
    /,
    input: ir.Value,
    dim: int | None = None,
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
) -> ir.Value:
    """Lower to ``ReduceProd-18``; integers are multiplied as INT64."""
    return reduce(op, "ReduceProd", _summable(op, input, dtype), dim, keepdim)


@lowers(torch.logsumexp, torch.special.logsumexp)
def logsumexp(op: Op, /, input: ir.Value, dim: Any, keepdim: bool = False) -> ir.Value:
    """Lower to ``ReduceLogSumExp-18``."""
    (x,) = promote(op, input, floating=True)
    return reduce(op, "ReduceLogSumExp", x, dim, keepdim)


# Extremes


@lowers(torch.amax, prims.amax)
def amax(op: Op, /, input: ir.Value, dim: Any = (), keepdim: bool = False) -> ir.Value:
    """Lower to ``ReduceMax-20``; ORT 1.32 CPU loses a NaN that is not the first element."""
    return reduce(op, "ReduceMax", input, dim, keepdim)


@lowers(torch.amin, prims.amin)
def amin(op: Op, /, input: ir.Value, dim: Any = (), keepdim: bool = False) -> ir.Value:
    """Lower to ``ReduceMin-20``; ORT 1.32 CPU loses a NaN that is not the first element."""
    return reduce(op, "ReduceMin", input, dim, keepdim)


@lowers(torch.max)
def max_all(op: Op, /, input: ir.Value) -> ir.Value:
    return reduce(op, "ReduceMax", input, None, False)


@lowers(torch.max)
def max_dim(
    op: Op, /, input: ir.Value, dim: int, keepdim: bool = False
) -> tuple[ir.Value, ir.Value]:
    """Lower to ``ReduceMax-20`` and ``ArgMax-13``."""
    return _extreme(op, "Max", input, dim, keepdim)


@lowers(torch.min)
def min_all(op: Op, /, input: ir.Value) -> ir.Value:
    return reduce(op, "ReduceMin", input, None, False)


@lowers(torch.min)
def min_dim(
    op: Op, /, input: ir.Value, dim: int, keepdim: bool = False
) -> tuple[ir.Value, ir.Value]:
    """Lower to ``ReduceMin-20`` and ``ArgMin-13``."""
    return _extreme(op, "Min", input, dim, keepdim)


def _extreme(
    op: Op, which: str, x: ir.Value, dim: int, keepdim: bool
) -> tuple[ir.Value, ir.Value]:
    places = _place_of_extreme(op, f"Arg{which}", x, dim, keepdim)
    return reduce(op, f"Reduce{which}", x, dim, keepdim), places


@lowers(torch.aminmax)
def aminmax(
    op: Op, /, input: ir.Value, *, dim: int | None = None, keepdim: bool = False
) -> tuple[ir.Value, ir.Value]:
    """Lower to ``ReduceMin-20`` and ``ReduceMax-20``."""
    low, high = (reduce(op, t, input, dim, keepdim) for t in ("ReduceMin", "ReduceMax"))
    return low, high


@lowers(torch.argmax)
def argmax(op: Op, /, input: ir.Value, dim: int | None = None, keepdim: bool = False) -> ir.Value:
    """Lower to ``ArgMax-13``: the first of equal ones. Torch would say where a NaN is."""
    return _place_of_extreme(op, "ArgMax", input, dim, keepdim)


@lowers(torch.argmin)
def argmin(op: Op, /, input: ir.Value, dim: int | None = None, keepdim: bool = False) -> ir.Value:
    """Lower to ``ArgMin-13``: the first of equal ones. Torch would say where a NaN is."""
    return _place_of_extreme(op, "ArgMin", input, dim, keepdim)


def _place_of_extreme(
    op: Op, op_type: str, x: ir.Value, dim: int | None, keepdim: bool
) -> ir.Value:
    if rank(x) == 0:
        return op.constant(np.asarray(0))
    if dim is not None:
        return kernels.emit(op, op_type, x, axis=dim % rank(x), keepdims=int(keepdim))
    place = kernels.emit(op, op_type, op.Reshape(x, [-1]), axis=0, keepdims=0)
    return op.Reshape(place, [1] * rank(x)) if keepdim else place


# Truth


def _truth(op: Op, op_type: str, x: ir.Value, dim: Any, keepdim: bool) -> ir.Value:
    return reduce(op, op_type, op.cast(x, BOOL), dim, keepdim)


@lowers(torch.all)
def all(op: Op, /, input: ir.Value, dim: Any = None, keepdim: bool = False) -> ir.Value:
    """Lower to ``ReduceMin-20`` of truth values."""
    return _truth(op, "ReduceMin", input, dim, keepdim)


@lowers(torch.any)
def any(op: Op, /, input: ir.Value, dim: Any = None, keepdim: bool = False) -> ir.Value:
    """Lower to ``ReduceMax-20`` of truth values."""
    return _truth(op, "ReduceMax", input, dim, keepdim)


# Variance


def _moments(
    input: torch.Tensor, dim: Any, correction: Any, keepdim: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Variance and mean, with the mean's dims kept."""
    x = input.float() if input.dtype == torch.float16 else input  # squares leave float16's range
    whole = dim is None or (isinstance(dim, list | tuple) and not dim)
    axes = list(range(x.dim())) if whole else [dim] if isinstance(dim, int) else list(dim)
    mean = x.mean(axes, keepdim=True) if x.dim() else x
    centred = x - mean
    squared = centred * centred
    if number(correction) == 0:
        return squared.mean(axes, keepdim=keepdim) if x.dim() else squared, mean
    count: Any = 1
    for axis in axes if x.dim() else ():
        count = count * x.shape[axis]
    total = squared.sum(axes, keepdim=keepdim) if x.dim() else squared
    return total / SYM_MAX(count - correction, 0), mean


def _correction(unbiased: bool, correction: Any) -> Any:
    return (1 if unbiased else 0) if correction is None else correction


@decomposes(torch.var)
def var(
    input: torch.Tensor,
    dim: Any = None,
    unbiased: bool = True,
    keepdim: bool = False,
    *,
    correction: Any = None,
) -> torch.Tensor:
    if isinstance(dim, bool):
        dim, unbiased = None, dim
    variance, _ = _moments(input, dim, _correction(unbiased, correction), keepdim)
    return variance.to(input.dtype)


@decomposes(torch.std)
def std(
    input: torch.Tensor,
    dim: Any = None,
    unbiased: bool = True,
    keepdim: bool = False,
    *,
    correction: Any = None,
) -> torch.Tensor:
    if isinstance(dim, bool):
        dim, unbiased = None, dim
    variance, _ = _moments(input, dim, _correction(unbiased, correction), keepdim)
    return variance.sqrt().to(input.dtype)


def _with_mean(
    input: torch.Tensor, dim: Any, unbiased: bool, keepdim: bool, correction: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    if isinstance(dim, bool):
        dim, unbiased = None, dim
    variance, mean = _moments(input, dim, _correction(unbiased, correction), keepdim)
    return variance, mean if keepdim else mean.reshape(variance.shape)


@decomposes(torch.var_mean)
def var_mean(
    input: torch.Tensor,
    dim: Any = None,
    unbiased: bool = True,
    keepdim: bool = False,
    *,
    correction: Any = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    variance, mean = _with_mean(input, dim, unbiased, keepdim, correction)
    return variance.to(input.dtype), mean.to(input.dtype)


@decomposes(torch.std_mean)
def std_mean(
    input: torch.Tensor,
    dim: Any = None,
    unbiased: bool = True,
    keepdim: bool = False,
    *,
    correction: Any = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    variance, mean = _with_mean(input, dim, unbiased, keepdim, correction)
    return variance.sqrt().to(input.dtype), mean.to(input.dtype)


@lowers(prims.sum)
def sum_prim(op: Op, /, inp: ir.Value, dims: Any, *, output_dtype: object = None) -> ir.Value:
    return inp if dims == [] else reduce(op, "ReduceSum", inp, dims, False)


@lowers(prims.prod)
def prod_prim(op: Op, /, inp: ir.Value, dims: Any, *, output_dtype: object = None) -> ir.Value:
    return inp if dims == [] else reduce(op, "ReduceProd", inp, dims, False)


@decomposes(prims.var)
def var_prim(
    inp: torch.Tensor, dims: Any, correction: Any = 1.0, *, output_dtype: object = None
) -> torch.Tensor:
    return inp.var(dims, correction=correction)


@decomposes(torch.Tensor.sum_to_size)
def sum_to_size(input: torch.Tensor, *size: Any) -> torch.Tensor:
    """The sum over what a broadcast from that size would repeat."""
    sizes = sequence_sizes(size)
    if not sizes:
        return input.sum()
    lead = input.dim() - len(sizes)
    dims = [*range(lead)]
    for axis, wanted in enumerate(sizes, lead):
        same = isinstance_static(input.shape[axis]) and input.shape[axis] == wanted
        if isinstance_static(wanted) and wanted == 1 and not same:
            dims.append(axis)
    total = input.sum(dims, keepdim=True) if dims else input
    return total.reshape(total.shape[lead:]) if lead else total
