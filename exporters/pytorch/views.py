"""Views in the graph: cut out of their base, and written back into it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx_ir as ir

__all__ = ["scatter_view"]


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
