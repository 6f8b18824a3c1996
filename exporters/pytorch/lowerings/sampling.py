"""Random numbers: drawn anew in every run of the graph, never the ones that eager drew."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import torch
import torch.nn.functional as F

from exporters.pytorch.dtypes import from_torch_dtype, promote
from exporters.pytorch.handlers import sequence_sizes
from exporters.pytorch.lowerings.arithmetic import number
from exporters.pytorch.lowerings.shaping import rank, sizes_of
from exporters.pytorch.registry import decomposes, lowers
from exporters.tracing.graph import isinstance_static

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from exporters.tracing.graph import GraphBuilder as Op

T = torch.Tensor
aten = torch.ops.aten

_FLOAT, _DOUBLE = ir.DataType.FLOAT, ir.DataType.DOUBLE


def _default(dtype: torch.dtype | None) -> ir.DataType:
    return from_torch_dtype(dtype or torch.get_default_dtype())


def uniform(op: Op, sizes: Sequence[Any], dtype: ir.DataType = _FLOAT) -> ir.Value:
    """Numbers in [0, 1), by ``RandomUniform-1``."""
    if op.opset >= 22:
        return _uniform_from_bits(op, sizes, dtype)
    working = _DOUBLE if dtype == _DOUBLE else _FLOAT
    if all(isinstance_static(s) for s in sizes):
        drawn = op.RandomUniform(shape=[int(s) for s in sizes], dtype=int(working))
    else:
        like = op.ConstantOfShape(list(sizes), value=np.zeros(1, np.float32))
        drawn = op.RandomUniformLike(like, dtype=int(working))
    drawn.shape = ir.Shape([None] * len(sizes))
    return op.cast(drawn, dtype)


def _uniform_from_bits(op: Op, sizes: Sequence[Any], dtype: ir.DataType) -> ir.Value:
    """Binary fractions of random bits, which ``Dropout`` draws.

    ONNX Runtime 1.32 has no kernels of the Random* operators of opset 22.
    """
    working = _DOUBLE if dtype == _DOUBLE else _FLOAT
    count = 53 if working == _DOUBLE else 24
    ones = op.Expand(op.operand(1.0, _FLOAT), [*sizes, count])
    _, mask = op.Dropout(ones, np.float32(0.5), True, outputs=2)
    weights = np.ldexp(1.0, -1 - np.arange(count)).astype(working.numpy())
    drawn = op.MatMul(op.cast(mask, working), weights)
    drawn.shape = ir.Shape([None] * len(sizes))
    return op.cast(drawn, dtype)


def normal(op: Op, sizes: Sequence[Any], dtype: ir.DataType = _FLOAT) -> ir.Value:
    """Standard normal numbers, by ``RandomNormal-1`` or by the method of Box and Muller."""
    working = _DOUBLE if dtype == _DOUBLE else _FLOAT
    if op.opset >= 22:
        both = uniform(op, [2, *sizes], working)
        first, second = op.Gather(both, 0, axis=0), op.Gather(both, 1, axis=0)
        radius = op.Sqrt(op.Mul(op.Log(op.Sub(1.0, first)), -2.0))
        drawn = op.Mul(radius, op.Cos(op.Mul(second, 2 * math.pi)))
    elif all(isinstance_static(s) for s in sizes):
        drawn = op.RandomNormal(shape=[int(s) for s in sizes], dtype=int(working))
    else:
        like = op.ConstantOfShape(list(sizes), value=np.zeros(1, np.float32))
        drawn = op.RandomNormalLike(like, dtype=int(working))
    drawn.shape = ir.Shape([None] * len(sizes))
    return op.cast(drawn, dtype)


def exponential(op: Op, sizes: Sequence[Any], dtype: ir.DataType) -> ir.Value:
    """``-log(1 - u)``."""
    return op.Neg(op.Log(op.Sub(1.0, uniform(op, sizes, dtype))))


# New tensors


@lowers(torch.rand, random=True)
def rand(op: Op, /, *size: int, dtype: torch.dtype | None = None, **_: object) -> ir.Value:
    return uniform(op, sequence_sizes(size), _default(dtype))


@lowers(torch.randn, random=True)
def randn(op: Op, /, *size: int, dtype: torch.dtype | None = None, **_: object) -> ir.Value:
    return normal(op, sequence_sizes(size), _default(dtype))


@lowers(torch.rand_like, random=True)
def rand_like(
    op: Op, /, input: ir.Value, *, dtype: torch.dtype | None = None, **_: object
) -> ir.Value:
    return uniform(op, sizes_of(op, input), from_torch_dtype(dtype) if dtype else input.dtype)


@lowers(torch.randn_like, random=True)
def randn_like(
    op: Op, /, input: ir.Value, *, dtype: torch.dtype | None = None, **_: object
) -> ir.Value:
    return normal(op, sizes_of(op, input), from_torch_dtype(dtype) if dtype else input.dtype)


def _integers(op: Op, low: Any, high: Any, sizes: Sequence[Any], dtype: ir.DataType) -> ir.Value:
    """``floor(u (high - low)) + low``; in float64, so that no integer is left out."""
    (bottom, top) = promote(op, low, high, to=_DOUBLE)
    drawn = op.Floor(op.Mul(uniform(op, sizes, _DOUBLE), op.Sub(top, bottom)))
    return op.cast(op.Add(drawn, bottom), dtype)


@lowers(torch.randint, random=True)
def randint_below(
    op: Op,
    /,
    high: int,
    size: Sequence[int],
    *,
    dtype: torch.dtype | None = torch.int64,
    **_: object,
) -> ir.Value:
    return _integers(op, 0, high, size, from_torch_dtype(dtype or torch.int64))


@lowers(torch.randint, random=True)
def randint(
    op: Op, /, low: int, high: int, size: Sequence[int], *,
    dtype: torch.dtype | None = torch.int64, **_: object,
) -> ir.Value:  # fmt: skip
    return _integers(op, low, high, size, from_torch_dtype(dtype or torch.int64))


@lowers(torch.randint_like, random=True)
def randint_like_below(
    op: Op, /, input: ir.Value, high: int, *, dtype: torch.dtype | None = None, **_: object
) -> ir.Value:
    wanted = from_torch_dtype(dtype) if dtype else input.dtype
    return _integers(op, 0, high, sizes_of(op, input), wanted)


@lowers(torch.randint_like, random=True)
def randint_like(
    op: Op,
    /,
    input: ir.Value,
    low: int,
    high: int,
    *,
    dtype: torch.dtype | None = None,
    **_: object,
) -> ir.Value:
    wanted = from_torch_dtype(dtype) if dtype else input.dtype
    return _integers(op, low, high, sizes_of(op, input), wanted)


@lowers(torch.randperm, random=True)
def randperm(
    op: Op, /, n: int, *, dtype: torch.dtype | None = torch.int64, **_: object
) -> ir.Value:
    """The order of ``n`` random numbers."""
    _, order = op.TopK(uniform(op, [n], _DOUBLE), [n], axis=0, outputs=2)
    order.shape = ir.Shape([None])
    return op.cast(order, from_torch_dtype(dtype or torch.int64))


@lowers(torch.normal, random=True)
def normal_sized(
    op: Op, /, mean: float, std: float, size: Sequence[int], *, dtype: torch.dtype | None = None,
    **_: object,
) -> ir.Value:  # fmt: skip
    return _scaled(op, normal(op, size, _default(dtype)), std, mean)


@lowers(torch.normal, random=True)
def normal_like(op: Op, /, mean: Any, std: Any = 1.0, *, generator: object = None) -> ir.Value:
    shaped = [x for x in (mean, std) if isinstance(x, ir.Value)]
    like = shaped[0] if len(shaped) == 1 else op.Add(*promote(op, *shaped))
    centre, spread = promote(op, mean, std, to=shaped[0].dtype)
    return op.Add(op.Mul(normal(op, sizes_of(op, like), like.dtype), spread), centre)


def _scaled(op: Op, x: ir.Value, factor: Any, offset: Any) -> ir.Value:
    x = x if number(factor) == 1 else op.Mul(x, factor)
    return x if number(offset) == 0 else op.Add(x, offset)


# Tensors filled in place


def _filler(draw: Callable[..., ir.Value]) -> Callable[..., ir.Value]:
    """A lowering that draws in float32 at least, whatever the tensor's dtype."""

    def lowering(
        op: Op, /, input: ir.Value, *parameters: Any, generator: object = None
    ) -> ir.Value:
        working = input.dtype if input.dtype in (_FLOAT, _DOUBLE) else _FLOAT
        return op.cast(draw(op, sizes_of(op, input), working, *parameters), input.dtype)

    return lowering


def _uniform_between(op: Op, sizes: Any, dtype: Any, low: Any = 0.0, high: Any = 1.0) -> ir.Value:
    return _scaled(op, uniform(op, sizes, dtype), high - low, low)


def _normal_around(op: Op, sizes: Any, dtype: Any, mean: Any = 0.0, std: Any = 1.0) -> ir.Value:
    return _scaled(op, normal(op, sizes, dtype), std, mean)


def _log_normal(op: Op, sizes: Any, dtype: Any, mean: Any = 1.0, std: Any = 2.0) -> ir.Value:
    return op.Exp(_normal_around(op, sizes, dtype, mean, std))


def _exponential(op: Op, sizes: Any, dtype: Any, lambd: Any = 1.0) -> ir.Value:
    return _scaled(op, exponential(op, sizes, dtype), 1 / lambd, 0)


def _geometric(op: Op, sizes: Any, dtype: Any, p: Any) -> ir.Value:
    return op.Ceil(op.Div(exponential(op, sizes, dtype), -math.log1p(-p)))


def _cauchy(op: Op, sizes: Any, dtype: Any, median: Any = 0.0, sigma: Any = 1.0) -> ir.Value:
    angle = op.Mul(op.Sub(uniform(op, sizes, _FLOAT), 0.5), math.pi)
    return _scaled(op, op.cast(op.Tan(angle), dtype), sigma, median)


def _random_integers(op: Op, sizes: Any, dtype: Any, *bounds: Any) -> ir.Value:
    low, high = (0, *bounds)[-2:] if bounds else (0, 2**24)
    return _integers(op, low, high, sizes, dtype)


for _call, _draw in {
    T.uniform_: _uniform_between,
    T.normal_: _normal_around,
    T.log_normal_: _log_normal,
    T.exponential_: _exponential,
    T.geometric_: _geometric,
    T.cauchy_: _cauchy,
    T.random_: _random_integers,
}.items():
    lowers(_call, random=True)(_filler(_draw))


# Choices


def _happens(op: Op, like: ir.Value, p: Any) -> ir.Value:
    """Truths of probability ``p``."""
    working = p.dtype if isinstance(p, ir.Value) and p.dtype == _DOUBLE else _FLOAT
    (chance,) = promote(op, p, to=working)
    return op.Less(uniform(op, sizes_of(op, like), working), chance)


@lowers(torch.bernoulli, random=True)
def bernoulli(op: Op, /, input: ir.Value, *, generator: object = None) -> ir.Value:
    return op.cast(_happens(op, input, input), input.dtype)


@lowers(torch.bernoulli, T.bernoulli_, random=True)
def bernoulli_p(op: Op, /, input: ir.Value, p: Any = 0.5, *, generator: object = None) -> ir.Value:
    return op.cast(_happens(op, input, p), input.dtype)


@lowers(torch.multinomial, random=True)
def multinomial(
    op: Op, /, input: ir.Value, num_samples: int, replacement: bool = False, *,
    generator: object = None,
) -> ir.Value:  # fmt: skip
    """A race of exponential clocks, one per category: the first ones are drawn."""
    rates = input if input.dtype == _DOUBLE else op.cast(input, _FLOAT)
    sizes = sizes_of(op, input)
    if replacement:
        clocks = exponential(op, [*sizes[:-1], num_samples, sizes[-1]], rates.dtype)
        return op.ArgMax(op.Div(op.Unsqueeze(rates, [-2]), clocks), axis=-1, keepdims=0)
    clocks = exponential(op, sizes, rates.dtype)
    _, order = op.TopK(op.Div(rates, clocks), [num_samples], axis=-1, outputs=2)
    return order


# Dropout


def _keeps_all(
    input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> bool:
    return not training or p == 0


def _trains_nothing(input: torch.Tensor, p: float, train: bool) -> bool:
    return not train or p == 0


@decomposes(
    torch.dropout, torch.feature_dropout, torch.alpha_dropout, torch.feature_alpha_dropout,
    when=_trains_nothing,
)  # fmt: skip
def no_builtin_dropout(input: torch.Tensor, p: float, train: bool) -> torch.Tensor:
    return input


@decomposes(
    F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout,
    when=_keeps_all,
)  # fmt: skip
def no_dropout(
    input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> torch.Tensor:
    return input


@lowers(torch.dropout, random=True)
def builtin_dropout(op: Op, /, input: ir.Value, p: float, train: bool) -> ir.Value:
    return _dropped(op, input, p)[0]


@lowers(F.dropout, random=True)
def dropout(
    op: Op, /, input: ir.Value, p: float = 0.5, training: bool = True, inplace: bool = False
) -> ir.Value:
    """Lower to ``Dropout-13`` in training mode."""
    return _dropped(op, input, p)[0]


def _dropped(op: Op, x: ir.Value, p: float) -> tuple[ir.Value, ir.Value]:
    if p == 1:
        return op.Mul(x, 0.0), op.Expand(False, op.shape(x))
    kept, mask = op.Dropout(x, np.float32(p), True, outputs=2)
    kept.shape = mask.shape = x.shape.copy()
    # ORT 1.32 removes a Dropout whose mask nobody reads, in training mode too.
    return op.Where(mask, kept, 0.0), mask


@lowers(torch.native_dropout, random=True)
def native_dropout(
    op: Op, /, input: ir.Value, p: float, train: bool | None = None
) -> tuple[ir.Value, ir.Value]:
    if train is False or p == 0:
        return input, op.Expand(True, op.shape(input))
    return _dropped(op, input, p)


def _feature_noise(op: Op, x: ir.Value) -> list[Any]:
    """Shape of a noise that is drawn once for each channel."""
    return [*sizes_of(op, x)[:2], *[1] * (rank(x) - 2)]


@lowers(torch.feature_dropout, random=True)
def feature_dropout(op: Op, /, input: ir.Value, p: float, train: bool = True) -> ir.Value:
    """Drop whole channels."""
    if p == 1:
        return op.Mul(input, 0.0)
    ones = op.Expand(op.operand(1.0, input.dtype), _feature_noise(op, input))
    return op.Mul(input, _dropped(op, ones, p)[0])


def _alpha_dropout(op: Op, x: ir.Value, p: float, sizes: Sequence[Any]) -> ir.Value:
    """Dropped elements take SELU's negative limit; mean and variance are kept."""
    if p == 1:
        return op.Mul(x, 0.0)
    alpha = 1.7580993408473766
    scale = 1 / math.sqrt((alpha * alpha * p + 1) * (1 - p))
    kept = op.cast(op.GreaterOrEqual(uniform(op, sizes), p), x.dtype)
    shift = op.Add(op.Mul(op.Sub(kept, 1.0), alpha * scale), alpha * scale * p)
    return op.Add(op.Mul(op.Mul(x, kept), scale), shift)


@lowers(torch.alpha_dropout, random=True)
def alpha_dropout(op: Op, /, input: ir.Value, p: float, train: bool = True) -> ir.Value:
    return _alpha_dropout(op, input, p, sizes_of(op, input))


@lowers(torch.feature_alpha_dropout, random=True)
def feature_alpha_dropout(op: Op, /, input: ir.Value, p: float, train: bool = True) -> ir.Value:
    return _alpha_dropout(op, input, p, _feature_noise(op, input))


def _is_leaky(input: torch.Tensor, lower: float = 0.125, upper: float = 1 / 3,
              training: bool = False, generator: object = None) -> bool:  # fmt: skip
    return not training


@decomposes(torch.rrelu, when=_is_leaky)
def rrelu(input: torch.Tensor, lower: float = 0.125, upper: float = 1 / 3,
          training: bool = False, generator: object = None) -> torch.Tensor:  # fmt: skip
    return F.leaky_relu(input, (lower + upper) / 2)


@lowers(torch.rrelu, random=True)
def random_rrelu(
    op: Op, /, input: ir.Value, lower: float = 0.125, upper: float = 1 / 3, training: bool = False,
    generator: object = None,
) -> ir.Value:  # fmt: skip
    slope = _scaled(op, uniform(op, sizes_of(op, input), input.dtype), upper - lower, lower)
    return op.Where(op.LessOrEqual(input, 0.0), op.Mul(input, slope), input)
