"""Eager code run again under the tracer, to learn what every value of its graph is."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import torch

from bridge.feeds import is_torch, to_numpy
from bridge.parity.values import ValueStore
from exporters.errors import ExportError
from exporters.pytorch import frontend

if TYPE_CHECKING:
    from collections.abc import Mapping

    import onnx_ir as ir

    from bridge.parity.sides import EagerSide
    from exporters.pytorch.frontend import TracedModel

__all__ = ["Retraced", "retrace"]


@dataclasses.dataclass(frozen=True, slots=True)
class Retraced:
    """What tracing eager code again gives.

    Attributes:
        model: The graph as the tracer makes it today.
        values: What eager code has for the values of its main graph, by name.
    """

    model: ir.Model
    values: ValueStore


def retrace(side: EagerSide, model: ir.Model, feed: Mapping[str, Any]) -> Retraced:
    """Trace eager code on given inputs, in the way in which ``model`` came to be.

    Args:
        side: The eager code.
        model: Its graph, which says what dims are dynamic, and the opset.
        feed: The inputs by name.

    Raises:
        ExportError: It cannot be traced.
    """
    leaves = side.leaves(feed)
    if side.traced is not None:
        kept = _Kept()
        return kept.retraced(frontend.retrace(side.traced, leaves, kept.keep))
    args, kwargs = dataclasses.replace(side.arguments, leaves=leaves).rebuild(leaves)
    options: dict[str, Any] = {
        "opset": max(17, model.opset_imports.get("", frontend.DEFAULT_OPSET)),
        "check": True,  # finds what must be compiled, as the export did
    }
    try:
        return _trace(side, args, kwargs, {**options, "dynamic_shapes": _dynamic(side, model)})
    except ExportError:
        # A size of these inputs may be one that cannot stand for others, such as 1.
        return _trace(side, args, kwargs, options)


def _dynamic(side: EagerSide, model: ir.Model) -> dict[str, dict[int, str]]:
    """The dynamic dims of the graph's inputs, by the names of the arguments."""
    names = [side.arguments.names[i] for i in side.positions]
    found: dict[str, dict[int, str]] = {}
    # before opset 13, weights are inputs too
    inputs = [v for v in model.graph.inputs if not v.is_initializer()]
    for name, value in zip(names, inputs, strict=True):
        dims = value.shape.dims if value.shape is not None else ()
        symbols = {
            axis: str(dim.value)
            for axis, dim in enumerate(dims)
            if not isinstance(dim, int) and dim.value is not None
        }
        if symbols:
            found[name] = symbols
    return found


def _trace(
    side: EagerSide, args: Any, kwargs: Mapping[str, Any], options: Mapping[str, Any]
) -> Retraced:
    kept = _Kept()
    traced = frontend.trace(
        side.model,
        args,
        kwargs,
        keep=lambda value, worlds: kept.keep(value, worlds[0]) if 0 in worlds else None,
        **options,
    )
    return kept.retraced(traced)


class _Kept:
    """The tensors that values are in one world."""

    def __init__(self) -> None:
        self._tensors: dict[ir.Value, torch.Tensor] = {}

    def keep(self, value: ir.Value, tensor: Any) -> None:
        """Copy the tensor now: later calls may write to it."""
        if value not in self._tensors and is_torch(tensor):
            with torch._C.DisableTorchFunction():
                self._tensors[value] = tensor.detach().clone()

    def retraced(self, traced: TracedModel) -> Retraced:
        """Those of the finished graph, by name."""
        store = ValueStore()
        for value in (v for node in traced.model.graph for v in node.outputs):
            if value in self._tensors:
                store.add(str(value.name), to_numpy(self._tensors.pop(value)))
        return Retraced(traced.model, store)
