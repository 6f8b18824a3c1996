"""Views in the graph: cut out of their base, and written back into it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from exporters.tracing.scalars import TracedScalar

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx_ir as ir

    from exporters.pytorch.tracer import TorchTracer

__all__ = ["assigns_itself", "scatter_view"]


def scatter_view(
    op: Any, base: ir.Value, view: ir.Value, replay: Callable[[ir.Value], ir.Value]
) -> ir.Value:
    """Write a view back into its base by position: the view of the positions says where."""
    shape = op.shape(base)
    count = op.ReduceProd(shape, keepdims=0)
    positions = op.Reshape(op.Range(0, count, 1), shape)
    positions.shape = base.shape
    positions.meta["sizes"] = base.meta.get("sizes")
    places = op.Reshape(replay(positions), [-1])
    flat = op.ScatterElements(op.Reshape(base, [-1]), places, op.Reshape(view, [-1]), axis=0)
    result: ir.Value = op.Reshape(flat, shape)
    return result


def _is_same(index: Any, other: Any) -> bool:
    """Whether two indices are the same for all inputs, in all iterations."""
    if index is other:
        return True
    if isinstance(index, TracedScalar) and isinstance(other, TracedScalar):
        return index.record is other.record
    if isinstance(index, TracedScalar) or isinstance(other, TracedScalar):
        return False
    if isinstance(index, slice) and isinstance(other, slice):
        parts = ((getattr(i, n) for n in ("start", "stop", "step")) for i in (index, other))
        return all(map(_is_same, *parts))
    if isinstance(index, tuple | list) and isinstance(other, tuple | list):
        return len(index) == len(other) and all(map(_is_same, index, other))
    plain = isinstance(index, int) and isinstance(other, int)
    return plain and index == other


def assigns_itself(tracer: TorchTracer, tensor: torch.Tensor, index: Any, value: Any) -> bool:
    """Whether ``x[i] = v`` ends an ``x[i] += y``: the value is that very part of ``x``."""
    if not isinstance(value, torch.Tensor):
        return False
    if value.untyped_storage()._cdata != tensor.untyped_storage()._cdata:
        return False
    record = tracer.record(value)
    if record is not None and record.view is not None and not _is_same(record.view.index, index):
        return False  # the same place in the example only: x[0] = x[i]
    home = tracer.trace.active[0]
    place = tracer.concrete(tensor, home)[tracer.concrete(index, home)]
    return (
        place.data_ptr() == value.data_ptr()
        and place.shape == value.shape
        and place.stride() == value.stride()
    )
