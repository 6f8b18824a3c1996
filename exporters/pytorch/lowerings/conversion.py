"""Conversions of dtype and device, copies, whole-tensor writes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from exporters.pytorch.dtypes import from_torch_dtype, promote
from exporters.pytorch.lowerings.shaping import broadcast_like
from exporters.pytorch.plans import plan
from exporters.pytorch.registry import handles, lowers

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx_ir as ir

    from exporters.pytorch.tracer import TorchTracer
    from exporters.tracing.graph import GraphBuilder as Op

T: Any = torch.Tensor
aten = torch.ops.aten
prims = torch.ops.prims

_METHODS = {
    T.float: torch.float32, T.double: torch.float64, T.half: torch.float16,
    T.bfloat16: torch.bfloat16, T.long: torch.int64, T.int: torch.int32, T.short: torch.int16,
    T.char: torch.int8, T.byte: torch.uint8, T.bool: torch.bool,
}  # fmt: skip


@lowers(T.to)
def to_dtype(
    op: Op, /, input: ir.Value, dtype: torch.dtype, non_blocking: object = False,
    copy: object = False, memory_format: object = None,
) -> ir.Value:  # fmt: skip
    return op.cast(input, from_torch_dtype(dtype))


@lowers(T.to)
def to_other(
    op: Op, /, input: ir.Value, other: ir.Value, non_blocking: object = False,
    copy: object = False, memory_format: object = None,
) -> ir.Value:  # fmt: skip
    return op.cast(input, other.dtype)


@lowers(T.to)
def to_device(
    op: Op, /, input: ir.Value, device: str | torch.device | int | None = None,
    dtype: torch.dtype | None = None, non_blocking: object = False, copy: object = False,
    memory_format: object = None, **_: object,
) -> ir.Value:  # fmt: skip
    return input if dtype is None else op.cast(input, from_torch_dtype(dtype))


@lowers(T.type_as)
def type_as(op: Op, /, input: ir.Value, other: ir.Value) -> ir.Value:
    return op.cast(input, other.dtype)


def _to(dtype: ir.DataType) -> Callable[..., ir.Value]:
    def lowering(op: Op, /, input: ir.Value, memory_format: object = None) -> ir.Value:
        return op.cast(input, dtype)

    return lowering


for _call, _dtype in _METHODS.items():
    lowers(_call)(_to(from_torch_dtype(_dtype)))


@handles(T.type)
def type(tracer: TorchTracer, func: Any, args: Any, kwargs: Any) -> Any:
    """``x.type()`` asks for a name, ``x.type("torch.HalfTensor")`` converts."""
    if len(args) + len(kwargs) == 1:
        return func(*args, **kwargs)
    dtype = args[1] if len(args) > 1 else kwargs["dtype"]
    if isinstance(dtype, str):
        name = dtype.rpartition(".")[2].removesuffix("Tensor").lower()
        dtype = {"": torch.float32, "byte": torch.uint8, "char": torch.int8}.get(
            name, getattr(torch, name, None)
        )
    elif not isinstance(dtype, torch.dtype):
        dtype = dtype.dtype
    return tracer.call(T.to, plan(T.to), (args[0], dtype), {})


@lowers(prims.convert_element_type)
def convert_element_type(op: Op, /, a: ir.Value, dtype: torch.dtype) -> ir.Value:
    return op.cast(a, from_torch_dtype(dtype))


def _same_back(op: Op, base: ir.Value, view: ir.Value, *_: object, **__: object) -> ir.Value:
    return view


@lowers(
    T.cpu, T.cuda, T.contiguous, T.detach, T.data.__get__,
    torch.alias_copy, aten.alias, aten.lift_fresh, aten.lift_fresh_copy, aten.detach,
    prims.view_of, prims.device_put,
    put_back=_same_back,
)  # fmt: skip
def same(op: Op, /, input: ir.Value, *_: object, **__: object) -> ir.Value:
    """Memory, devices and gradients are no part of the graph."""
    return input


@lowers(prims.clone, torch.ops.aten.clone)
def clone(op: Op, /, self: ir.Value, *, memory_format: object = None) -> ir.Value:
    return self


# Writes to a whole tensor


@lowers(T.copy_, torch.ops.aten.copy)
def copy_(op: Op, /, input: ir.Value, src: ir.Value, non_blocking: object = False) -> ir.Value:
    return broadcast_like(op, op.cast(src, input.dtype), input)


@handles(prims.copy_to)
def copy_to(tracer: TorchTracer, func: Any, args: Any, kwargs: Any) -> Any:
    """Writes to its first argument, though its name does not say so."""
    with tracer:
        return args[0].copy_(args[1])


@lowers(T.fill_, torch.fill)
def fill_(op: Op, /, input: ir.Value, value: Any) -> ir.Value:
    (fill,) = promote(op, value, to=input.dtype)
    return broadcast_like(op, fill, input)


@lowers(T.zero_)
def zero_(op: Op, /, input: ir.Value) -> ir.Value:
    return fill_(op, input, 0)
