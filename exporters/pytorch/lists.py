"""Torch functions of lists whose length only run time knows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnx_ir as ir
import torch

from exporters.errors import UntraceableError
from exporters.pytorch.dtypes import to_torch_dtype
from exporters.pytorch.registry import aten_name
from exporters.tracing.trace import Interrupt

if TYPE_CHECKING:
    from collections.abc import Sequence

    from exporters.pytorch.tracer import TorchTracer
    from exporters.tracing.lists import StagedList

__all__ = ["as_tensor", "call_on_list"]

_JOINING = {"cat", "concat", "concatenate"}


def call_on_list(
    tracer: TorchTracer, func: Any, items: StagedList, args: Sequence[Any], kwargs: dict[str, Any]
) -> Any:
    """``func(items, *args, **kwargs)`` for the functions that join a list's tensors.

    Raises:
        Interrupt: Another function needs the items one by one.
    """
    name = aten_name(func) or getattr(func, "__name__", str(func))
    dim = args[0] if args else kwargs.get("dim", kwargs.get("axis", 0))
    if name == "stack":
        stacked = as_tensor(tracer, items)
        with tracer:
            return stacked if dim == 0 else stacked.movedim(0, dim)
    if name in _JOINING:
        return _joined(tracer, items, dim)
    if name in ("tensor", "as_tensor"):
        with tracer:
            stacked = as_tensor(tracer, items)
            dtype = kwargs.get("dtype") or (
                torch.get_default_dtype() if items.item.number is float else None
            )
            return stacked if dtype is None else stacked.to(dtype)
    if name in ("vstack", "hstack", "row_stack"):
        axis = 0 if name != "hstack" or items.item.rank < 2 else 1
        return (
            _joined(tracer, items, axis)
            if items.item.rank > 1 or name == "hstack"
            else as_tensor(tracer, items)
        )
    source, _ = tracer.trace.position()
    raise Interrupt(
        UntraceableError(
            f"{name} takes the items of a list whose length depends on data one by one",
            source=source,
            hint="join the list with torch.stack or torch.cat first",
        )
    )


def as_tensor(tracer: TorchTracer, items: StagedList) -> torch.Tensor:
    """The items along a new first axis, as a handle."""
    value = items.stacked()
    known = [d if isinstance(d, int) else 1 for d in value.shape.dims[1:]]  # type: ignore[union-attr]
    worlds: dict[int, torch.Tensor] = {}
    for w in tracer.trace.active:
        inside = items.contents.worlds[w]
        if not inside:
            worlds[w] = torch.zeros([0, *known], dtype=to_torch_dtype(items.item.dtype))
        elif items.item.number is not None:
            worlds[w] = torch.tensor(inside, dtype=to_torch_dtype(items.item.dtype))
        else:
            worlds[w] = torch.stack(inside)
    dims = [d if isinstance(d, int) else None for d in value.shape.dims]  # type: ignore[union-attr]
    return tracer.track_value(worlds, value, dims=dims, unbacked=True)


def _joined(tracer: TorchTracer, items: StagedList, dim: int) -> torch.Tensor:
    if items.contents.stacked is not None:
        stacked = as_tensor(tracer, items)
        with tracer:
            axis = dim % items.item.rank
            moved = stacked.movedim(0, axis) if axis else stacked
            return moved.flatten(axis, axis + 1)
    value = tracer.op.emit("ConcatFromSequence", items.sequence(), axis=dim, new_axis=0)
    value.type = ir.TensorType(items.item.dtype)
    value.shape = ir.Shape([None] * items.item.rank)
    empty = torch.zeros([0] * items.item.rank, dtype=to_torch_dtype(items.item.dtype))
    worlds = {
        w: torch.cat(items.contents.worlds[w], dim) if items.contents.worlds[w] else empty
        for w in tracer.trace.active
    }
    return tracer.track_value(worlds, value, unbacked=True)
