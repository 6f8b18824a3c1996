"""Complex tensors, which ONNX Runtime has no kernels for.

In the graph a complex tensor is a real one with one more dim, of size 2: what
``torch.view_as_real`` gives. Only the lowerings here, which are registered with ``pairs=True``, see
such values. Everything else that is done to complex tensors is decomposed into what is done to
their real and imaginary parts.
"""

from __future__ import annotations

import builtins
from typing import TYPE_CHECKING, Any

import onnx_ir as ir
import torch
import torch.nn.functional as F

from exporters.pytorch.registry import decomposes, lowers

if TYPE_CHECKING:
    from collections.abc import Callable

    from exporters.tracing.graph import GraphBuilder as Op

T = torch.Tensor
aten = torch.ops.aten

_PARTS = "parts"  # in the meta of a pair that was made of two values


def is_complex(x: Any) -> bool:
    """Whether there is a complex tensor, number or dtype in a nest of arguments."""
    if isinstance(x, torch.Tensor):
        return x.is_complex()
    if isinstance(x, list | tuple):
        return any(map(is_complex, x))
    return isinstance(x, builtins.complex) or (isinstance(x, torch.dtype) and x.is_complex)


def has_complex(*args: Any, **kwargs: Any) -> bool:
    """Whether a call has a complex argument."""
    return is_complex(args) or is_complex(tuple(kwargs.values()))


# Pairs


@lowers(torch.complex, pairs=True)
def complex(op: Op, /, real: ir.Value, imag: ir.Value) -> ir.Value:
    """Lower to ``Concat-13``, unless only the parts are used."""
    if real.shape is None or imag.shape is None or list(real.shape) != list(imag.shape):
        shape = op.Shape(op.Add(real, imag))
        real, imag = op.Expand(real, shape), op.Expand(imag, shape)
    pair: ir.Value = op.Concat(op.Unsqueeze(real, [-1]), op.Unsqueeze(imag, [-1]), axis=-1)
    pair.meta[_PARTS] = (real, imag)
    return pair


def _part(op: Op, pair: ir.Value, index: int) -> ir.Value:
    parts = pair.meta.get(_PARTS)
    if parts is not None:
        found: ir.Value = parts[index]
        return found
    made: ir.Value = op.once(
        ("part", index, pair), lambda _: op.Gather(pair, index, axis=-1), pair
    )
    return made


@lowers(torch.real, T.real.__get__, pairs=True)  # type: ignore[attr-defined]
def real(op: Op, /, input: ir.Value) -> ir.Value:
    return _part(op, input, 0)


@lowers(torch.imag, T.imag.__get__, pairs=True)  # type: ignore[attr-defined]
def imag(op: Op, /, input: ir.Value) -> ir.Value:
    return _part(op, input, 1)


@lowers(torch.view_as_real, torch.view_as_complex, pairs=True)
def view_as_real(op: Op, /, input: ir.Value) -> ir.Value:
    """The pair is the same value, seen as what it is."""
    return input


@lowers(T.copy_, pairs=True)
def copy_(op: Op, /, input: ir.Value, src: ir.Value, non_blocking: object = False) -> ir.Value:
    return op.Expand(src, op.shape(input))


@lowers(T.contiguous, T.detach, T.cpu, T.resolve_conj, T.resolve_neg, pairs=True)
def same(op: Op, /, input: ir.Value, *args: object, **kwargs: object) -> ir.Value:
    return input


# What does the same to both parts


def _parts_of(x: Any, index: int) -> Any:
    if isinstance(x, torch.Tensor) and x.is_complex():
        return x.real if index == 0 else x.imag
    if isinstance(x, list | tuple) and not isinstance(x, torch.Size):
        return type(x)(_parts_of(i, index) for i in x)
    return x


def _joined(real: Any, imag: Any) -> Any:
    if isinstance(real, list | tuple):
        return type(real)(_joined(r, i) for r, i in zip(real, imag, strict=True))
    return torch.complex(real, imag)


def _by_parts(function: Callable[..., Any]) -> Callable[..., Any]:
    def body(*args: Any, **kwargs: Any) -> Any:
        results = [
            function(*_parts_of(args, i), **{k: _parts_of(v, i) for k, v in kwargs.items()})
            for i in range(2)
        ]
        return _joined(*results)

    return body


LINEAR = (
    T.view, T.reshape, T.permute, T.expand, T.repeat, T.__getitem__, T.unfold, torch.reshape,
    torch.flatten, torch.unflatten, torch.unsqueeze, torch.squeeze, torch.transpose,
    torch.swapaxes, torch.permute, torch.movedim, torch.t, T.T.__get__, T.mT.__get__,
    torch.broadcast_to, torch.split, T.split, torch.split_with_sizes, torch.chunk, torch.unbind,
    torch.narrow, torch.select, torch.flip, torch.roll, torch.index_select, torch.gather,
    torch.tile, torch.sum, torch.mean, torch.cumsum, torch.diagonal, torch.diag_embed,
    torch.tril, torch.triu, torch.neg, torch.alias_copy, T.expand_as, T.view_as,
)  # fmt: skip
for _function in LINEAR:
    decomposes(_function, when=has_complex)(_by_parts(_function))


def _both(x: Any) -> tuple[Any, Any]:
    """The parts of a number or tensor, which may be real."""
    if isinstance(x, torch.Tensor):
        return (x.real, x.imag) if x.is_complex() else (x, None)
    return (x.real, x.imag) if is_complex(x) else (x, None)


def _tensor(x: Any, like: T) -> T:
    return x if isinstance(x, torch.Tensor) else torch.full_like(like, x)


def _gathered(function: Callable[..., T]) -> Callable[..., T]:
    def body(tensors: Any, dim: int = 0) -> T:
        pairs = [_both(x) for x in tensors]
        filled = [(r, torch.zeros_like(r) if i is None else i) for r, i in pairs]
        return torch.complex(
            function([r for r, _ in filled], dim), function([i for _, i in filled], dim)
        )

    return body


@decomposes(T.__setitem__, when=has_complex)
def setitem(input: torch.Tensor, index: Any, value: Any) -> T:
    parts = []
    for target, part in zip((input.real, input.imag), _both(value), strict=True):
        changed = target.clone()
        changed[index] = 0 if part is None else part
        parts.append(changed)
    return torch.complex(*parts)


# Arithmetic


def _sum(a: Any, b: Any, sign: int) -> Any:
    if a is None and b is None:
        return None
    if b is None:
        return a
    b = b if sign > 0 else -b
    return b if a is None else a + b


def _complex(real: T, imag: Any) -> T:
    if imag is None:
        return torch.complex(real, torch.zeros_like(real))
    if not isinstance(real, torch.Tensor):
        real = torch.full_like(imag, real)
    return torch.complex(real, _tensor(imag, real))


@decomposes(torch.add, when=has_complex)
def add(input: Any, other: Any, *, alpha: Any = 1) -> T:
    (a, b), (c, d) = _both(input), _both(other * alpha if alpha != 1 else other)
    return _complex(_sum(a, c, 1), _sum(b, d, 1))


@decomposes(torch.sub, when=has_complex)
def sub(input: Any, other: Any, *, alpha: Any = 1) -> T:
    (a, b), (c, d) = _both(input), _both(other * alpha if alpha != 1 else other)
    return _complex(_sum(a, c, -1), _sum(b, d, -1))


@decomposes(torch.rsub, when=has_complex)
def rsub(input: Any, other: Any, *, alpha: Any = 1) -> T:
    return sub(other, input, alpha=alpha)


def _product(multiply: Callable[[Any, Any], Any], x: Any, y: Any) -> T:
    (a, b), (c, d) = _both(x), _both(y)
    if b is None and d is None:
        return _complex(multiply(a, c), None)
    if d is None:
        return _complex(multiply(a, c), multiply(b, c))
    if b is None:
        return _complex(multiply(a, c), multiply(a, d))
    return torch.complex(multiply(a, c) - multiply(b, d), multiply(a, d) + multiply(b, c))


@decomposes(torch.mul, when=has_complex)
def mul(input: Any, other: Any) -> T:
    return _product(lambda a, b: a * b, input, other)


@decomposes(torch.matmul, torch.mm, torch.bmm, when=has_complex)
def matmul(input: torch.Tensor, other: torch.Tensor) -> T:
    return _product(torch.matmul, input, other)


@decomposes(torch.functional.einsum, aten.einsum, when=has_complex)
def einsum(equation: str, *operands: Any, path: Any = None) -> T:
    values = list(operands[0]) if isinstance(operands[0], list | tuple) else list(operands)
    if len(values) != 2:
        raise NotImplementedError("einsum of other than two complex tensors")
    return _product(lambda a, b: torch.einsum(equation, a, b), *values)


@decomposes(torch.div, when=has_complex)
def div(input: Any, other: Any, *, rounding_mode: Any = None) -> T:
    c, d = _both(other)
    if d is None:
        a, b = _both(input)
        return _complex(a / c, None if b is None else b / c)
    return mul(input, reciprocal(other))


@decomposes(torch.reciprocal, when=has_complex)
def reciprocal(input: Any) -> T:
    a, b = _both(input)
    squared = a * a + b * b
    return _complex(a / squared, -b / squared)


@decomposes(torch.conj, torch.conj_physical, T.conj, when=has_complex)
def conj(input: torch.Tensor) -> T:
    return torch.complex(input.real, -input.imag)


@decomposes(T.mH.__get__, T.H.__get__, torch.adjoint, when=has_complex)
def adjoint(input: torch.Tensor) -> T:
    return conj(input.transpose(-2, -1))


@decomposes(torch.abs, when=has_complex)
def abs(input: torch.Tensor) -> T:
    return torch.sqrt(input.real.square() + input.imag.square())


@decomposes(torch.angle, when=has_complex)
def angle(input: torch.Tensor) -> T:
    return torch.atan2(input.imag, input.real)


@decomposes(torch.square, when=has_complex)
def square(input: torch.Tensor) -> T:
    return mul(input, input)


@decomposes(torch.exp, when=has_complex)
def exp(input: torch.Tensor) -> T:
    return torch.polar(input.real.exp(), input.imag)


@decomposes(torch.polar)
def polar(abs: torch.Tensor, angle: torch.Tensor) -> T:
    return torch.complex(abs * angle.cos(), abs * angle.sin())


@decomposes(torch.pow, when=has_complex)
def pow(input: torch.Tensor, exponent: Any) -> T:
    if not isinstance(exponent, int) or exponent < 1 or exponent > 8:
        raise NotImplementedError("powers of complex numbers other than 1 to 8")
    y = input
    for _ in range(exponent - 1):
        y = y * input
    return y


# Making


def _real_dtype(dtype: Any, otherwise: Any) -> Any:
    return dtype.to_real() if isinstance(dtype, torch.dtype) else otherwise


def _made(function: Callable[..., T]) -> Callable[..., T]:
    def body(*args: Any, dtype: Any = None, **options: Any) -> T:
        like = args[0] if args and isinstance(args[0], torch.Tensor) else None
        wanted = _real_dtype(dtype, None if like is None else like.real.dtype)
        first = (like.real, *args[1:]) if like is not None and like.is_complex() else args
        y = function(*first, dtype=wanted, **options)
        return torch.complex(y, torch.zeros_like(y))

    return body


for _function in (
    torch.zeros, torch.ones, torch.empty, torch.zeros_like, torch.ones_like, torch.empty_like,
    T.new_zeros, T.new_ones, T.new_empty,
):  # fmt: skip
    decomposes(_function, when=has_complex)(_made(_function))
for _function in (torch.cat, torch.stack):
    decomposes(_function, when=has_complex)(_gathered(_function))


@decomposes(T.to, when=has_complex)
def to(input: torch.Tensor, *args: Any, **kwargs: Any) -> T:
    dtype = kwargs.get("dtype")
    for x in args:
        dtype = x if isinstance(x, torch.dtype) else x.dtype if isinstance(x, T) else dtype
    a, b = _both(input)
    if dtype is None:
        return input
    if not dtype.is_complex:
        return a.to(dtype)
    a = a.to(dtype.to_real())
    return torch.complex(a, torch.zeros_like(a) if b is None else b.to(a.dtype))


@decomposes(F.pad, torch._C._nn.pad, when=has_complex)
def pad(input: torch.Tensor, pad: Any, mode: str = "constant", value: Any = None) -> T:
    a, b = _both(value or 0.0)
    return torch.complex(F.pad(input.real, pad, mode, a), F.pad(input.imag, pad, mode, b or 0.0))
