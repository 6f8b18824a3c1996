"""``torch.autocast`` in the graph: casts that eager makes below the level that the tracer sees."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnx_ir as ir
import torch

from exporters.pytorch.dtypes import from_torch_dtype, promoted_dtype

if TYPE_CHECKING:
    from exporters.tracing.graph import GraphBuilder

__all__ = ["cast_arguments", "is_enabled"]


def is_enabled() -> bool:
    """Whether eager calls are made under autocast in this thread."""
    return torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")


def _floats(x: Any) -> list[ir.Value]:
    if isinstance(x, ir.Value):
        return [x] if x.dtype is not None and x.dtype.is_floating_point() else []
    if isinstance(x, tuple | list):
        return [v for i in x for v in _floats(i)]
    if isinstance(x, dict):
        return [v for i in x.values() for v in _floats(i)]
    return []


def cast_arguments(op: GraphBuilder, arguments: Any, result: Any) -> Any:
    """Cast floating arguments to the result's dtype when promotion does not explain that dtype."""
    while isinstance(result, tuple | list) and result:
        result = result[0]
    if not isinstance(result, torch.Tensor) or not result.dtype.is_floating_point:
        return arguments
    wanted = from_torch_dtype(result.dtype)
    floats = _floats(arguments)
    if not floats or promoted_dtype(*floats) == wanted:
        return arguments

    def convert(x: Any) -> Any:
        if isinstance(x, ir.Value):
            return op.cast(x, wanted) if _floats(x) else x
        if isinstance(x, tuple | list):
            return type(x)(convert(i) for i in x)
        if isinstance(x, dict):
            return {k: convert(v) for k, v in x.items()}
        return x

    return convert(arguments)
