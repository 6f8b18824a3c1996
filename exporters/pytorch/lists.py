"""Torch functions of lists whose length only run time knows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnx_ir as ir
import torch

from exporters.errors import UntraceableError
from exporters.pytorch.dtypes import to_torch_dtype
from exporters.pytorch.registry import aten_name
from exporters.tracing.own_lists import OwnList
from exporters.tracing.trace import Interrupt

if TYPE_CHECKING:
    from collections.abc import Sequence

    from exporters.pytorch.tracer import TorchTracer
    from exporters.tracing.columns import Column
    from exporters.tracing.lists import StagedList

__all__ = ["as_tensor", "call_on_list"]

_JOINING = {"cat", "concat", "concatenate"}

torch.utils._pytree.register_pytree_node(OwnList, lambda x: (list(x), None), lambda x, _: list(x))


def call_on_list(
    tracer: TorchTracer, func: Any, items: StagedList, args: Sequence[Any], kwargs: dict[str, Any]
) -> Any:
    """``func(items, *args, **kwargs)`` for the functions that join a list's tensors.

    Raises:
        Interrupt: Another function needs the items one by one.
    """
    name = aten_name(func) or getattr(func, "__name__", str(func))
    items = items.certain()
    dim = args[0] if args else kwargs.get("dim", kwargs.get("axis", 0))
    if name == "stack":
        stacked = as_tensor(tracer, items, name)
        with tracer:
            return stacked if dim == 0 else stacked.movedim(0, dim)
    if name in _JOINING:
        return _joined(tracer, items, dim)
    if name in ("tensor", "as_tensor"):
        with tracer:
            rows = items.parts()
            if rows is None:
                stacked = as_tensor(tracer, items, name)
            else:
                stacked = torch.stack([as_tensor(tracer, row, name) for row in rows], 1)
            kind = items.columns[0].type
            number = kind.number if kind.nested is None else kind.nested.number
            dtype = kwargs.get("dtype") or (torch.get_default_dtype() if number is float else None)
            return stacked if dtype is None else stacked.to(dtype)
    if name in ("vstack", "hstack", "row_stack"):
        rank = _only_column(tracer, items, name).type.rank
        axis = 0 if name != "hstack" or rank < 2 else 1
        if rank > 1 or name == "hstack":
            return _joined(tracer, items, axis)
        return as_tensor(tracer, items, name)
    source, _ = tracer.trace.position()
    raise Interrupt(
        UntraceableError(
            f"{name} takes the items of a list whose length depends on data one by one",
            source=source,
            hint="join the list with torch.stack or torch.cat first",
        )
    )


def _only_column(tracer: TorchTracer, items: StagedList, name: str) -> Column:
    """The column of a list of tensors or numbers.

    Raises:
        Interrupt: The items are tuples or other containers.
    """
    if len(items.columns) == 1:
        return items.columns[0]
    tracer.trace.moved()
    source, _ = tracer.trace.position()
    raise Interrupt(
        UntraceableError(
            f"{name} takes tensors or numbers, and the items of the list are containers",
            source=source,
            hint="take the tensors out first: [item[0] for item in items]",
        )
    )


def as_tensor(tracer: TorchTracer, items: StagedList, name: str = "stack") -> torch.Tensor:
    """The items along a new first axis, as a handle."""
    column = _only_column(tracer, items, name)
    kind = column.type
    value = column.as_stacked()
    dtype = to_torch_dtype(kind.dtype)
    sizes = [d if isinstance(d, int) else 1 for d in kind.dims]
    worlds: dict[int, torch.Tensor] = {}
    with torch._C.DisableTorchFunction():
        for w in tracer.trace.active:
            inside = column.in_world(w)
            if not inside:
                worlds[w] = torch.zeros([0, *sizes], dtype=dtype)
            elif kind.number is not None or kind.nested is not None:
                worlds[w] = torch.tensor(inside, dtype=dtype)
            else:
                worlds[w] = torch.stack(inside)
    return tracer.track_value(
        worlds, value, dims=[None, *kind.dims], unbacked=items.data or kind.varies
    )


def _joined(tracer: TorchTracer, items: StagedList, dim: int) -> torch.Tensor:
    column = _only_column(tracer, items, "cat")
    kind = column.type
    if column.stacked is not None or kind.stacks:
        stacked = as_tensor(tracer, items)
        with tracer:
            axis = dim % kind.rank
            moved = stacked.movedim(0, axis) if axis else stacked
            return moved.flatten(axis, axis + 1)
    value = tracer.op.emit("ConcatFromSequence", column.as_sequence(), axis=dim, new_axis=0)
    value.type = ir.TensorType(kind.dtype)
    value.shape = ir.Shape([None] * kind.rank)
    empty = torch.zeros([0] * kind.rank, dtype=to_torch_dtype(kind.dtype))
    with torch._C.DisableTorchFunction():
        inside = {w: column.in_world(w) for w in tracer.trace.active}
        worlds = {w: torch.cat(x, dim) if x else empty for w, x in inside.items()}
    dims = [None if i == dim % kind.rank else d for i, d in enumerate(kind.dims)]
    return tracer.track_value(worlds, value, dims=dims, unbacked=True)
