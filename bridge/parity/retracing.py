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
    kept: dict[ir.Value, Any] = {}
    store = ValueStore()

    def keep(value: ir.Value, worlds: dict[int, torch.Tensor]) -> None:
        """Copy the first world's tensor now: later calls may write to it."""
        if 0 in worlds and value not in kept and is_torch(worlds[0]):
            with torch._C.DisableTorchFunction():
                kept[value] = worlds[0].detach().clone()

    traced = frontend.trace(side.model, args, kwargs, keep=keep, **options)
    graph = traced.model.graph
    for value in (v for node in graph for v in node.outputs):
        if value in kept:
            store.add(str(value.name), to_numpy(kept.pop(value)))
    return Retraced(traced.model, store)
