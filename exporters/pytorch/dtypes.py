"""torch dtypes as ONNX element types, and torch's promotion rules for graph values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.tensor_adapters import from_torch_dtype, to_torch_dtype

from exporters.tracing.scalars import TracedBool, TracedFloat, TracedInt

if TYPE_CHECKING:
    from exporters.tracing.graph import GraphBuilder

__all__ = [
    "element_type",
    "from_torch_dtype",
    "is_complex",
    "promote",
    "promoted_dtype",
    "to_torch_dtype",
]

_STANDINS: dict[tuple[torch.dtype, bool], torch.Tensor] = {}


def element_type(dtype: torch.dtype) -> ir.DataType:
    """What the graph holds tensors of ``dtype`` in: complex ones are pairs of real numbers."""
    return from_torch_dtype(dtype.to_real() if dtype.is_complex else dtype)


def is_complex(x: Any) -> bool:
    """Whether there is a complex tensor, number or dtype in a nest of arguments."""
    if isinstance(x, torch.Tensor):
        return x.is_complex()
    if isinstance(x, list | tuple):
        return any(map(is_complex, x))
    return isinstance(x, complex) or (isinstance(x, torch.dtype) and x.is_complex)


def _standin(x: Any) -> Any:
    """Something that ``torch.result_type`` treats as it would treat ``x``."""
    if isinstance(x, ir.Value):
        assert x.dtype is not None, "a lowering promotes a value of unknown dtype"
        key = (to_torch_dtype(x.dtype), x.shape is not None and len(x.shape.dims) == 0)
        if key not in _STANDINS:
            _STANDINS[key] = torch.empty([] if key[1] else [1], dtype=key[0])
        return _STANDINS[key]
    if isinstance(x, TracedBool):
        return True
    if isinstance(x, TracedInt):
        return 1
    if isinstance(x, TracedFloat):
        return 1.0
    return x.item() if isinstance(x, np.generic) else x


def promoted_dtype(*operands: Any) -> ir.DataType:
    """The dtype that eager computes an element-wise operation of ``operands`` in.

    Args:
        *operands: Graph values (rank 0 counts less than rank 1), or Python numbers (count least).
    """
    standins = [_standin(x) for x in operands]
    if len(standins) == 1:
        x = standins[0]
        dtype = x.dtype if isinstance(x, torch.Tensor) else torch.result_type(x, x)
        return from_torch_dtype(dtype)
    dtype = torch.result_type(standins[0], standins[1])
    for x in standins[2:]:
        dtype = torch.promote_types(
            dtype, x.dtype if isinstance(x, torch.Tensor) else torch.result_type(x, x)
        )
    return from_torch_dtype(dtype)


def promote(
    op: GraphBuilder, *operands: Any, to: ir.DataType | None = None, floating: bool = False
) -> tuple[ir.Value, ...]:
    """``operands`` as values of one dtype: torch's promotion of them all, or ``to``.

    Args:
        op: Builder of the graph.
        *operands: Values, Python numbers, traced numbers.
        to: Use this dtype instead.
        floating: Integers become the default floating dtype, as for ``torch.sin``.
    """
    dtype = to or promoted_dtype(*operands)
    if floating and not dtype.is_floating_point():
        dtype = from_torch_dtype(torch.get_default_dtype())
    return tuple(
        op.cast(x, dtype) if isinstance(x, ir.Value) else op.operand(x, dtype) for x in operands
    )
