"""Functions of whole numbers, which wrap where they leave their type's range."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import torch

from exporters.pytorch.dtypes import from_torch_dtype, promote
from exporters.pytorch.lowerings.scanning import scan
from exporters.pytorch.lowerings.shaping import rank
from exporters.pytorch.registry import decomposes, lowers
from exporters.tracing.graph import Block

if TYPE_CHECKING:
    from collections.abc import Callable

    from exporters.tracing.graph import GraphBuilder as Op

prims = torch.ops.prims
INT32, INT64 = ir.DataType.INT32, ir.DataType.INT64
_NARROW = (ir.DataType.INT8, ir.DataType.INT16, ir.DataType.UINT8, ir.DataType.BOOL)


@lowers(torch.gcd, prims.gcd)
def gcd(op: Op, /, input: ir.Value, other: ir.Value) -> ir.Value:
    """Euclid's algorithm on all elements at once, in a ``Loop-16``."""
    x, y = promote(op, input, other)
    a, b = (op.Abs(op.cast(v, ir.DataType.INT64)) for v in (x, y))
    both = op.Add(a, b)
    a, b = (op.Expand(v, op.shape(both)) for v in (a, b))
    dtype = x.dtype

    def step(a: ir.Value, b: ir.Value) -> list[ir.Value]:
        done = op.Equal(b, 0)
        rest = op.Mod(a, op.Where(done, 1, b))
        return [op.Where(done, a, b), op.Where(done, 0, rest)]

    def goes_on(a: ir.Value, b: ir.Value) -> ir.Value:
        return op.Greater(op.ReduceSum(op.Sign(b), keepdims=0), 0)

    return op.cast(repeat_while(op, goes_on, step, [a, b])[0], dtype)


@decomposes(torch.lcm)
def lcm(input: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    common = torch.gcd(input, other)
    divisor = torch.where(common == 0, 1, common)
    return (torch.div(input, divisor, rounding_mode="trunc") * other).abs()


# Powers: ``Pow-15`` computes them in float64, which knows neither all digits nor how to wrap


def power(
    op: Op, x: ir.Value, y: ir.Value, *, base: float | None = None, exponent: float | None = None
) -> ir.Value:
    """``x`` to the power of ``y``; ``base`` and ``exponent`` are the two where they are constants.

    Of a negative exponent 0 remains, and 1 or -1 of these.
    """
    if exponent:
        return _power_of_constant(op, x, int(exponent))
    if base is not None and base % 2 == 0:
        return _power_of_even(op, int(base), y)
    return _power_of_tensors(op, x, y)


def _power_of_constant(op: Op, x: ir.Value, exponent: int) -> ir.Value:
    """By squaring, one digit of the exponent after the other."""
    result: ir.Value | None = None
    while exponent:
        if exponent % 2:
            result = x if result is None else op.Mul(result, x)
        exponent //= 2
        x = op.Mul(x, x) if exponent else x
    assert result is not None
    return result


def _power_of_even(op: Op, base: int, y: ir.Value) -> ir.Value:
    """From a table: as many powers as the type has bits, and 0 beyond and of what is negative."""
    dtype = y.dtype.numpy()
    bits = int(8 * y.dtype.itemsize)
    powers = [base**i % 2**bits for i in range(bits)] + [0, 0]
    table = np.asarray(powers, np.uint64).astype(dtype)
    return op.Gather(table, op.Clip(op.cast(y, INT64), -1, bits), axis=0)


def _power_of_tensors(op: Op, x: ir.Value, y: ir.Value) -> ir.Value:
    """As :func:`_power_of_constant`, in a ``Loop-16`` that ends when no exponent has digits left."""
    dtype = x.dtype
    wide = INT32 if dtype in _NARROW else dtype
    x, y = op.cast(x, wide), op.cast(y, wide)
    negative = op.Less(y, 0)
    vanishes = op.And(negative, op.Greater(op.Abs(x), 1))
    zero = op.And(negative, op.Equal(x, 0))
    y = op.Where(negative, op.Mod(y, 2), y)
    shape = op.shape(op.Add(x, y))
    one = op.operand(1, wide)

    def step(result: ir.Value, factor: ir.Value, rest: ir.Value) -> list[ir.Value]:
        odd = op.Equal(op.Mod(rest, 2), 1)
        grown = op.Where(odd, op.Mul(result, factor), result)
        return [grown, op.Mul(factor, factor), op.Div(rest, 2)]

    def goes_on(_result: ir.Value, _factor: ir.Value, rest: ir.Value) -> ir.Value:
        return op.Greater(op.ReduceSum(op.Sign(rest), keepdims=0), 0)

    state = [op.Expand(v, shape) for v in (one, x, y)]
    result = repeat_while(op, goes_on, step, state)[0]
    return op.cast(op.Where(op.Or(vanishes, zero), 0, result), dtype)


# Sums and products: ONNX Runtime's CPU kernels add and multiply INT64 in float64, and do not wrap

_EXACT = 2.0**53  # float64 knows all whole numbers up to here


def _sums_large(
    input: torch.Tensor, *_: object, dtype: torch.dtype | None = None, **__: object
) -> bool:
    """Whether the example's sum may have more digits than float64; its halves' sums do not."""
    if input.dtype != torch.int64 or dtype not in (None, torch.int64) or not input.numel():
        return False
    largest = max(abs(int(x)) for x in input.aminmax())
    return largest >= 2**32 and largest * input.numel() > _EXACT


@decomposes(torch.sum, torch.nansum, when=_sums_large)
def sum_of_large(
    input: torch.Tensor, dim: Any = None, keepdim: bool = False, *, dtype: object = None
) -> torch.Tensor:
    """The sum of the high halves, and that of the low ones."""
    high = (input >> 32).sum(dim, keepdim)
    return (high << 32) + (input & 0xFFFFFFFF).sum(dim, keepdim)


def _multiplies_large(
    input: torch.Tensor, dim: int | None = None, *_: object,
    dtype: torch.dtype | None = None, **__: object,
) -> bool:  # fmt: skip
    """Whether the example's product has more digits than float64."""
    if (dtype or input.dtype).is_floating_point or input.is_floating_point():
        return False
    wide = input.double()
    product = wide.prod() if dim is None else wide.prod(dim)
    return bool((product.abs() > _EXACT).any())


@lowers(torch.prod, when=_multiplies_large)
def prod_of_large(
    op: Op, /, input: ir.Value, dim: int | None = None, keepdim: bool = False, *,
    dtype: torch.dtype | None = None,
) -> ir.Value:  # fmt: skip
    """Lower to ``Scan-11``: one factor after the other."""
    x = op.cast(input, INT64)
    axis = 0 if dim is None else dim % rank(input)
    x = op.Reshape(x, [-1]) if dim is None else x
    order = [axis, *(i for i in range(rank(x)) if i != axis)]
    x = op.Transpose(x, perm=order) if axis else x
    start = op.Expand(op.operand(1), op.Slice(op.shape(x), [1], [rank(x)]))
    start.shape = ir.Shape(x.shape.dims[1:])

    def step(product: list[ir.Value], factor: list[ir.Value]) -> tuple[list[ir.Value], ir.Value]:
        grown = op.Mul(product[0], factor[0])
        return [grown], op.Identity(grown)

    _, (product,) = scan(op, step, [start], [x])
    if keepdim:
        product = op.Unsqueeze(product, [axis] if dim is not None else list(range(rank(input))))
    return op.cast(product, INT64 if dtype is None else from_torch_dtype(dtype))


def repeat_while(
    op: Op,
    goes_on: Callable[..., ir.Value],
    step: Callable[..., list[ir.Value]],
    state: list[ir.Value],
) -> list[ir.Value]:
    """A ``Loop-16`` that replaces values by others of the same type while a condition holds."""
    first = goes_on(*state)
    outer = op.block
    op.block = Block("loop", outer)
    try:
        turn = ir.Value(
            name=op.unique_name("turn"), type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([])
        )
        again = ir.Value(
            name=op.unique_name("again"), type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape([])
        )
        carried = [
            ir.Value(
                name=op.unique_name("state"),
                type=v.type,
                shape=None if v.shape is None else v.shape.copy(),
            )
            for v in state
        ]
        for value in (turn, again, *carried):
            value.meta["block"] = op.block
        results = step(*carried)
        outputs = [goes_on(*results), *results]
        body = ir.Graph(
            [turn, again, *carried], outputs, nodes=op.block.nodes, name=op.unique_name("body")
        )
    finally:
        op.block = outer
    made = op.Loop(None, first, *state, body=body, outputs=len(state))
    made = made if isinstance(made, list) else [made]
    for value, before in zip(made, state, strict=True):
        value.type = before.type
        value.shape = None if before.shape is None else before.shape.copy()
    return made
