"""Functions of complex tensors by those of their real and imaginary parts."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from exporters.pytorch.lowerings.complex_numbers import by_parts, to
from exporters.pytorch.registry import Unlowerable, decomposes

if TYPE_CHECKING:
    from collections.abc import Callable

T = torch.Tensor
_T: Any = torch.Tensor
aten = torch.ops.aten

# Written where they are read: torch keeps a complex number in one piece, the graph in two.
for _function in (
    aten.slice, aten.select, torch.diagonal_scatter, torch.select_scatter, torch.slice_scatter,
    torch.index_add, torch.index_copy, torch.scatter_add, torch.take_along_dim,
    torch.take, torch.masked_select, torch.masked_scatter, torch.nansum,
    torch.rot90,
):  # fmt: skip
    decomposes(_function, pairs=True)(by_parts(_function))


@decomposes(torch.scatter, pairs=True)
def scatter(
    input: torch.Tensor, dim: Any, index: torch.Tensor, src: Any, *, reduce: str | None = None
) -> T:
    source = src if isinstance(src, T) else torch.full(index.shape, src, dtype=input.dtype)
    if reduce == "add":
        return torch.scatter_add(input, dim, index, source)
    if reduce is not None:
        raise Unlowerable("complex numbers are multiplied at places that may repeat")
    parts = ((input.real, source.real), (input.imag, source.imag))
    return torch.complex(*(torch.scatter(x, dim, index, y) for x, y in parts))


def _converted(dtype: torch.dtype) -> Callable[..., T]:
    def body(input: torch.Tensor, memory_format: Any = None) -> T:
        del memory_format
        return to(input, dtype)

    return body


for _name, _dtype in {
    "float": torch.float32, "double": torch.float64, "half": torch.float16,
    "bfloat16": torch.bfloat16, "int": torch.int32, "long": torch.int64, "short": torch.int16,
    "char": torch.int8, "byte": torch.uint8,
}.items():  # fmt: skip
    decomposes(getattr(T, _name), pairs=True)(_converted(_dtype))


@decomposes(T.bool, pairs=True)
def bool(input: torch.Tensor, memory_format: Any = None) -> T:
    return (input.real != 0) | (input.imag != 0)


@decomposes(torch.nonzero, pairs=True)
def nonzero(input: torch.Tensor, *, as_tuple: Any = False) -> Any:
    return torch.nonzero((input.real != 0) | (input.imag != 0), as_tuple=as_tuple)


@decomposes(torch.var, pairs=True)
def var(input: torch.Tensor, *args: Any, **kwargs: Any) -> T:
    return torch.var(input.real, *args, **kwargs) + torch.var(input.imag, *args, **kwargs)


@decomposes(torch.std, pairs=True)
def std(input: torch.Tensor, *args: Any, **kwargs: Any) -> T:
    return var(input, *args, **kwargs).sqrt()


@decomposes(torch.var_mean, pairs=True)
def var_mean(input: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[T, T]:
    a, real = torch.var_mean(input.real, *args, **kwargs)
    b, imag = torch.var_mean(input.imag, *args, **kwargs)
    return a + b, torch.complex(real, imag)


@decomposes(torch.std_mean, pairs=True)
def std_mean(input: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[T, T]:
    variance, mean = var_mean(input, *args, **kwargs)
    return variance.sqrt(), mean


# Transcendental functions


@decomposes(torch.sin, pairs=True)
def sin(input: torch.Tensor) -> T:
    a, b = input.real, input.imag
    return torch.complex(a.sin() * b.cosh(), a.cos() * b.sinh())


@decomposes(torch.cos, pairs=True)
def cos(input: torch.Tensor) -> T:
    a, b = input.real, input.imag
    return torch.complex(a.cos() * b.cosh(), -(a.sin() * b.sinh()))


@decomposes(torch.sinh, pairs=True)
def sinh(input: torch.Tensor) -> T:
    a, b = input.real, input.imag
    return torch.complex(a.sinh() * b.cos(), a.cosh() * b.sin())


@decomposes(torch.cosh, pairs=True)
def cosh(input: torch.Tensor) -> T:
    a, b = input.real, input.imag
    return torch.complex(a.cosh() * b.cos(), a.sinh() * b.sin())


@decomposes(torch.tanh, pairs=True)
def tanh(input: torch.Tensor) -> T:
    """``(tanh a + i tan b) / (1 + i tanh a tan b)``, which does not overflow."""
    t, b = input.real.tanh(), input.imag
    below = b.cos().square() + (t * b.sin()).square()
    return torch.complex(t / below, b.sin() * b.cos() * (1 - t.square()) / below)


@decomposes(torch.tan, pairs=True)
def tan(input: torch.Tensor) -> T:
    turned = tanh(torch.complex(-input.imag, input.real))
    return torch.complex(turned.imag, -turned.real)


@decomposes(torch.sigmoid, pairs=True)
def sigmoid(input: torch.Tensor) -> T:
    return tanh(input * 0.5) * 0.5 + 0.5


@decomposes(torch.rsqrt, pairs=True)
def rsqrt(input: torch.Tensor) -> T:
    return input.sqrt().reciprocal()


@decomposes(torch.exp2, pairs=True)
def exp2(input: torch.Tensor) -> T:
    return (input * math.log(2)).exp()


@decomposes(torch.expm1, pairs=True)
def expm1(input: torch.Tensor) -> T:
    """By the half angle, where ``exp(z) - 1`` would cancel."""
    a, half = input.real, (input.imag / 2).sin()
    real = torch.expm1(a) - 2 * a.exp() * half.square()
    return torch.complex(real, a.exp() * input.imag.sin())


@decomposes(torch.log2, pairs=True)
def log2(input: torch.Tensor) -> T:
    return input.log() * (1 / math.log(2))


@decomposes(torch.log10, pairs=True)
def log10(input: torch.Tensor) -> T:
    return input.log() * (1 / math.log(10))


@decomposes(torch.log1p, pairs=True)
def log1p(input: torch.Tensor) -> T:
    a, b = input.real, input.imag
    return torch.complex(0.5 * torch.log1p(a * (2 + a) + b.square()), torch.atan2(b, 1 + a))
