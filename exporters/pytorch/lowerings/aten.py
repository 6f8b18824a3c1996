"""Operators that exist below torch's public functions: what ``torch.export`` writes down."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from exporters.pytorch.dtypes import from_torch_dtype
from exporters.pytorch.handlers import item, numel, size, stride
from exporters.pytorch.lowerings.arithmetic import number
from exporters.pytorch.lowerings.sampling import bernoulli_p, normal, random_rrelu
from exporters.pytorch.lowerings.shaping import sizes_of
from exporters.pytorch.registry import decomposes, handles, lowers, query

if TYPE_CHECKING:
    import onnx_ir as ir

    from exporters.pytorch.tracer import TorchTracer
    from exporters.tracing.graph import GraphBuilder as Op

aten = torch.ops.aten

query(aten.sym_storage_offset, aten.is_same_size)
handles(aten.sym_size)(size)
handles(aten.sym_stride)(stride)
handles(aten.sym_numel)(numel)
handles(aten._local_scalar_dense, aten.item)(item)


@handles(
    aten._assert_tensor_metadata, aten._assert_async, aten._functional_assert_async,
    aten._assert_scalar, aten.sym_constrain_range, aten.sym_constrain_range_for_size,
    aten._functional_assert_scalar, aten._functional_sym_constrain_range,
    aten._functional_sym_constrain_range_for_size, torch._check, torch._check_is_size,
)  # fmt: skip
def asserted(tracer: TorchTracer, func: Any, args: Any, kwargs: Any) -> Any:
    """Checks are for eager; a graph has no exceptions."""
    return kwargs.get("dep_token")


@lowers(aten._to_copy)
def to_copy(
    op: Op, /, self: ir.Value, *, dtype: torch.dtype | None = None, **_: object
) -> ir.Value:
    """Lower to ``Cast-13`` where the dtype changes."""
    return self if dtype is None else op.cast(self, from_torch_dtype(dtype))


@lowers(aten.normal_functional, random=True)
def normal_functional(
    op: Op, /, self: ir.Value, mean: float = 0.0, std: float = 1.0, *, generator: object = None
) -> ir.Value:
    drawn = normal(op, sizes_of(op, self), self.dtype)
    scaled = drawn if number(std) == 1 else op.Mul(drawn, std)
    return scaled if number(mean) == 0 else op.Add(scaled, mean)


@lowers(aten.rrelu_with_noise_functional, random=True)
def rrelu_with_noise(
    op: Op,
    /,
    self: ir.Value,
    noise: ir.Value,
    lower: float = 0.125,
    upper: float = 1 / 3,
    training: bool = False,
    generator: object = None,
) -> tuple[ir.Value, ir.Value]:
    """Lower as :func:`rrelu`; the noise is for the backward pass."""
    if training:
        return random_rrelu(op, self, lower, upper, True), noise
    return op.LeakyRelu(self, alpha=(lower + upper) / 2), noise


lowers(aten.bernoulli, random=True)(bernoulli_p)


@decomposes(aten._reshape_alias)
def reshape_alias(self: torch.Tensor, size: Any, stride: Any) -> torch.Tensor:
    return self.view(size)
