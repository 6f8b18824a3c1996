"""Tensors taken apart into as many pieces as only run time knows: lists of run-time length."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnx_ir as ir
import torch

from exporters.pytorch.dtypes import from_torch_dtype
from exporters.tracing.columns import Column, ItemType
from exporters.tracing.lists import StagedList
from exporters.tracing.merging import Ways
from exporters.tracing.scalars import TracedInt

if TYPE_CHECKING:
    from collections.abc import Sequence

    from exporters.pytorch.tracer import TorchTracer

__all__ = ["in_pieces"]

T: Any = torch.Tensor
_NAMES = {
    torch.split: "split", T.split: "split",
    torch.split_with_sizes: "split", T.split_with_sizes: "split",
    torch.chunk: "chunk", T.chunk: "chunk",
    torch.unbind: "unbind", T.unbind: "unbind",
    torch.tensor_split: "tensor_split", T.tensor_split: "tensor_split",
}  # fmt: skip
_COUNTS = ("split_size_or_sections", "split_size", "chunks", "indices_or_sections", "sections")


def in_pieces(
    tracer: TorchTracer, func: Any, args: Sequence[Any], kwargs: dict[str, Any]
) -> StagedList | None:
    """The pieces, if their number differs between inputs; None for all other calls."""
    name = _NAMES.get(func)
    if name is None or not args or tracer.record(args[0]) is None:
        return None
    rest = list(args[1:])
    given = None
    if name != "unbind":
        named = next((kwargs[k] for k in _COUNTS if k in kwargs), None)
        given = rest.pop(0) if rest else named
    dim = rest[0] if rest else kwargs.get("dim", 0)
    if isinstance(given, StagedList):
        return _split(tracer, args[0], given, dim)
    if not isinstance(dim, int) or not (given is None or isinstance(given, int)):
        return None
    size = tracer.type_of(args[0])[1][dim]
    record = tracer.record(args[0])
    counted = isinstance(given, TracedInt) and given.record.data
    if name in ("split", "unbind") and not isinstance(size, int):
        counted = counted or bool(record is not None and record.unbacked)
    if not counted and isinstance(size, int) and type(given) in (int, type(None)):
        return None
    if (
        not counted
        and name != "unbind"
        and len({len(r) for r in tracer.run(func, args, kwargs).values()}) == 1
    ):
        return None
    with torch._C.DisableTorchFunction():
        tracer.apart.add(args[0].untyped_storage()._cdata)
    if name == "unbind":
        return _rows(tracer, args[0], dim)
    with tracer:
        sizes = _sizes(tracer, name, args[0].shape[dim], given).tolist()
        return _split(tracer, args[0], sizes, dim)


def _sizes(tracer: TorchTracer, name: str, total: Any, given: Any) -> torch.Tensor:
    """How large each piece is."""

    def ceiling(a: Any, b: Any) -> Any:
        return tracer.trace.arithmetic("max", -(-a // b), 1)

    if name == "tensor_split":
        places = torch.arange(given)
        return total // given + (places < total % given)
    size = given if name == "split" else ceiling(total, given)
    places = torch.arange(ceiling(total, size))
    return torch.clamp(total - places * size, max=size)


def _item(tracer: TorchTracer, kind: ItemType, dtype: torch.dtype) -> Any:
    blank = torch.zeros([d or 1 for d in kind.dims], dtype=dtype)
    return Ways(tracer.trace, ("the pieces",), None).merge("the pieces", [blank], always=True).node


def _rows(tracer: TorchTracer, tensor: torch.Tensor, dim: int) -> StagedList:
    """What stands along a dim."""
    with tracer:
        rows = tensor.movedim(dim, 0)
    dims = tuple(d if isinstance(d, int) else None for d in tracer.type_of(rows)[1][1:])
    record = tracer.record(rows)
    data = record is None or record.unbacked
    kind = ItemType(
        from_torch_dtype(tensor.dtype), len(dims), None, dims, varies=data and None in dims
    )
    with torch._C.DisableTorchFunction():
        worlds = {w: list(x.unbind(0)) for w, x in tracer.worlds(rows).items()}
        item = _item(tracer, kind, tensor.dtype)
    column = Column(tracer.trace, kind, worlds, stacked=tracer.graph(rows))
    return StagedList(tracer.trace, item, (column,), data=data)


def _split(tracer: TorchTracer, tensor: torch.Tensor, sizes: Any, dim: int = 0) -> Any:
    """Parts of some sizes."""
    if not isinstance(sizes, StagedList):
        with tracer:
            return torch.split(tensor, sizes, dim)
    lengths = sizes.columns[0]
    op, axis = tracer.op, dim % tensor.dim()
    dims = tuple(d if isinstance(d, int) else None for d in tracer.type_of(tensor)[1])
    kind = ItemType(
        from_torch_dtype(tensor.dtype),
        tensor.dim(),
        None,
        tuple(None if i == axis else d for i, d in enumerate(dims)),
        varies=True,
    )
    sequence = op.emit("SplitToSequence", tracer.graph(tensor), lengths.as_stacked(), axis=axis)
    sequence.type = ir.SequenceType(ir.TensorType(kind.dtype))
    with torch._C.DisableTorchFunction():
        worlds = {
            w: list(tracer.concrete(tensor, w).split(lengths.in_world(w), axis))
            for w in tracer.trace.active
        }
        item = _item(tracer, kind, tensor.dtype)
    return StagedList(tracer.trace, item, (Column(tracer.trace, kind, worlds, sequence=sequence),))
