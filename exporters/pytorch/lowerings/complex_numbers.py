"""Complex tensors, which ONNX Runtime has no kernels for.

In the graph a complex tensor is a real one with one more dim, of size 2: what
``torch.view_as_real`` gives. Only the lowerings here, which are registered with ``pairs=True``, see
such values. Everything else that is done to complex tensors is decomposed into what is done to
their real and imaginary parts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from exporters.pytorch.dtypes import is_complex
from exporters.pytorch.registry import Unlowerable, decomposes, lowers

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx_ir as ir

    from exporters.tracing.graph import GraphBuilder as Op

T = torch.Tensor
_T: Any = torch.Tensor
aten = torch.ops.aten

_PARTS = "parts"  # in the meta of a pair that was made of two values


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


@lowers(torch.real, _T.real.__get__, pairs=True)
def real(op: Op, /, input: ir.Value) -> ir.Value:
    return _part(op, input, 0)


@lowers(torch.real, _T.real.__get__)
def real_of_real(op: Op, /, input: ir.Value) -> ir.Value:
    return input


@lowers(torch.imag, _T.imag.__get__, pairs=True)
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
    if isinstance(x, torch.dtype) and x.is_complex:
        return x.to_real()
    if isinstance(x, list | tuple) and not isinstance(x, torch.Size):
        return type(x)(_parts_of(i, index) for i in x)
    return x


def _joined(real: Any, imag: Any) -> Any:
    if isinstance(real, list | tuple):
        return type(real)(_joined(r, i) for r, i in zip(real, imag, strict=True))
    return torch.complex(real, imag)


def by_parts(function: Callable[..., Any]) -> Callable[..., Any]:
    def body(*args: Any, **kwargs: Any) -> Any:
        results = [
            function(*_parts_of(args, i), **{k: _parts_of(v, i) for k, v in kwargs.items()})
            for i in range(2)
        ]
        return _joined(*results)

    return body


LINEAR = (
    T.view, T.reshape, T.permute, T.expand, T.repeat, T.__getitem__, T.unfold, torch.reshape,
    torch.flatten, torch.ravel, torch.unflatten, torch.unsqueeze, torch.squeeze, torch.transpose,
    torch.swapaxes, torch.permute, torch.movedim, torch.t, _T.T.__get__, _T.mT.__get__,
    torch.broadcast_to, torch.split, T.split, torch.split_with_sizes, torch.chunk, torch.unbind,
    torch.narrow, torch.select, torch.flip, torch.roll, torch.index_select, torch.gather,
    torch.tile, torch.sum, torch.mean, torch.cumsum, torch.diagonal, torch.diag_embed,
    torch.tril, torch.triu, torch.neg, torch.alias_copy, T.expand_as, T.view_as,
)  # fmt: skip
for _function in LINEAR:
    decomposes(_function, pairs=True)(by_parts(_function))


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


@decomposes(T.__setitem__, pairs=True)
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


@decomposes(torch.add, pairs=True)
def add(input: Any, other: Any, *, alpha: Any = 1) -> T:
    (a, b), (c, d) = _both(input), _both(other * alpha if alpha != 1 else other)
    return _complex(_sum(a, c, 1), _sum(b, d, 1))


@decomposes(torch.sub, pairs=True)
def sub(input: Any, other: Any, *, alpha: Any = 1) -> T:
    (a, b), (c, d) = _both(input), _both(other * alpha if alpha != 1 else other)
    return _complex(_sum(a, c, -1), _sum(b, d, -1))


@decomposes(torch.rsub, pairs=True)
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


@decomposes(torch.mul, pairs=True)
def mul(input: Any, other: Any) -> T:
    return _product(lambda a, b: a * b, input, other)


@decomposes(torch.matmul, pairs=True)
def matmul(input: torch.Tensor, other: torch.Tensor) -> T:
    return _product(torch.matmul, input, other)


@decomposes(torch.mm, torch.bmm, pairs=True)
def mm(input: torch.Tensor, mat2: torch.Tensor) -> T:
    return _product(torch.matmul, input, mat2)


@decomposes(torch.functional.einsum, aten.einsum, pairs=True)
def einsum(equation: str, *operands: Any, path: Any = None) -> T:
    values = list(operands[0]) if isinstance(operands[0], list | tuple) else list(operands)
    if len(values) != 2:
        raise Unlowerable("einsum of other than two complex tensors")
    return _product(lambda a, b: torch.einsum(equation, a, b), *values)


@decomposes(torch.div, pairs=True)
def div(input: Any, other: Any, *, rounding_mode: Any = None) -> T:
    c, d = _both(other)
    if d is None:
        a, b = _both(input)
        return _complex(a / c, None if b is None else b / c)
    return mul(input, reciprocal(other))


@decomposes(torch.reciprocal, pairs=True)
def reciprocal(input: Any) -> T:
    a, b = _both(input)
    squared = a * a + b * b
    return _complex(a / squared, -b / squared)


@decomposes(
    torch.conj,
    torch.conj_physical,
    T.conj,
    aten._conj,
    aten._conj_physical,
    torch.ops.prims.conj,
    pairs=True,
)
def conj(input: torch.Tensor) -> T:
    return torch.complex(input.real, -input.imag)


@decomposes(_T.mH.__get__, _T.H.__get__, torch.adjoint, pairs=True)
def adjoint(input: torch.Tensor) -> T:
    return conj(input.transpose(-2, -1))


@decomposes(torch.abs, pairs=True)
def abs(input: torch.Tensor) -> T:
    return torch.hypot(input.real, input.imag)


@decomposes(torch.angle, pairs=True)
def angle(input: torch.Tensor) -> T:
    return torch.atan2(input.imag, input.real)


@decomposes(torch.sgn, pairs=True)
def sgn(input: torch.Tensor) -> T:
    size = abs(input)
    divisor = torch.where(size == 0, 1.0, size)
    return torch.complex(input.real / divisor, input.imag / divisor)


@decomposes(torch.log, pairs=True)
def log(input: torch.Tensor) -> T:
    return torch.complex(abs(input).log(), angle(input))


@decomposes(torch.sqrt, pairs=True)
def sqrt(input: torch.Tensor) -> T:
    """The root with the larger part computed first, so that nothing cancels."""
    a, b = input.real, input.imag
    larger = torch.sqrt((torch.hypot(a, b) + a.abs()) / 2)
    other = torch.where(larger == 0, 0.0, b.abs() / (2 * larger))
    left = a < 0
    return torch.complex(
        torch.where(left, other, larger), torch.copysign(torch.where(left, larger, other), b)
    )


@decomposes(torch.where, pairs=True)
def where(condition: torch.Tensor, input: Any, other: Any) -> T:
    (a, b), (c, d) = _both(input), _both(other)
    zero = 0.0
    return torch.complex(
        torch.where(condition, a, c),
        torch.where(condition, zero if b is None else b, zero if d is None else d),
    )


@decomposes(torch.masked_fill, pairs=True)
def masked_fill(input: torch.Tensor, mask: torch.Tensor, value: Any) -> T:
    return where(mask, value, input)


@decomposes(torch.eq, pairs=True)
def eq(input: Any, other: Any) -> T:
    (a, b), (c, d) = _both(input), _both(other)
    return (a == c) & ((0 if b is None else b) == (0 if d is None else d))


@decomposes(torch.ne, pairs=True)
def ne(input: Any, other: Any) -> T:
    return ~eq(input, other)


@decomposes(torch.isnan, pairs=True)
def isnan(input: torch.Tensor) -> T:
    return input.real.isnan() | input.imag.isnan()


@decomposes(torch.isinf, pairs=True)
def isinf(input: torch.Tensor) -> T:
    return input.real.isinf() | input.imag.isinf()


@decomposes(torch.isfinite, pairs=True)
def isfinite(input: torch.Tensor) -> T:
    return input.real.isfinite() & input.imag.isfinite()


@decomposes(torch.square, pairs=True)
def square(input: torch.Tensor) -> T:
    return mul(input, input)


@decomposes(torch.exp, pairs=True)
def exp(input: torch.Tensor) -> T:
    return torch.polar(input.real.exp(), input.imag)


@decomposes(torch.polar)
def polar(abs: torch.Tensor, angle: torch.Tensor) -> T:
    return torch.complex(abs * angle.cos(), abs * angle.sin())


# Making


def _real_dtype(dtype: torch.dtype | None, otherwise: Any) -> Any:
    if dtype is None:
        return otherwise
    return dtype.to_real() if dtype.is_complex else dtype


def _made(function: Callable[..., T]) -> Callable[..., T]:
    def body(*args: Any, dtype: Any = None, **options: Any) -> T:
        like = args[0] if args and isinstance(args[0], torch.Tensor) else None
        wanted = _real_dtype(dtype, None if like is None else like.real.dtype)
        first = (like.real, *args[1:]) if like is not None and like.is_complex() else args
        y = function(*first, dtype=wanted, **options)
        if dtype is not None and not dtype.is_complex:
            return y
        return torch.complex(y, torch.zeros_like(y))

    return body


for _function in (
    torch.zeros, torch.ones, torch.empty, torch.zeros_like, torch.ones_like, torch.empty_like,
    T.new_zeros, T.new_ones, T.new_empty,
):  # fmt: skip
    decomposes(_function, pairs=True)(_made(_function))
for _function in (torch.cat, torch.stack):
    decomposes(_function, pairs=True)(_gathered(_function))


@decomposes(T.to, pairs=True)
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


@decomposes(_T.cfloat)
def cfloat(input: torch.Tensor, memory_format: Any = None) -> T:
    return to(input, torch.complex64)


@decomposes(_T.cdouble)
def cdouble(input: torch.Tensor, memory_format: Any = None) -> T:
    return to(input, torch.complex128)


@decomposes(_T.chalf)
def chalf(input: torch.Tensor, memory_format: Any = None) -> T:
    return to(input, torch.complex32)


@decomposes(F.pad, torch._C._nn.pad, pairs=True)
def pad(input: torch.Tensor, pad: Any, mode: str = "constant", value: Any = None) -> T:
    a, b = _both(value or 0.0)
    return torch.complex(F.pad(input.real, pad, mode, a), F.pad(input.imag, pad, mode, b or 0.0))
