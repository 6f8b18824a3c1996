"""How a node differs, as it is written, from the node of the right graph that makes the same value."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from bridge.graph_index import subgraphs

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["node_differences"]

_SHOWN = 6  # numbers of a constant


def node_differences(
    node: ir.Node, right: ir.Graph, weights: Mapping[str, Any], label: str
) -> list[str]:
    """What is written otherwise in a node, in words; nothing if the right graph has no such value.

    Args:
        node: The node.
        right: The graph, or body, that is right.
        weights: Its initializers by name.
        label: Where it comes from.
    """
    value = str(node.outputs[0].name)
    twin = next((n for n in right if any(v.name == value for v in n.outputs)), None)
    if twin is None:
        return []
    name = node.name or value
    if twin.op_type != node.op_type:
        return [f"{name!r} is {node.op_type}; of {label} it is {twin.op_type}"]
    found = [f"{name!r} has {told}" for told in _attributes(node, twin)]
    return found + [f"{name!r} reads {told}" for told in _inputs(node, twin, weights)]


def _attributes(node: ir.Node, twin: ir.Node) -> list[str]:
    found = []
    bodies = {n for n, _ in subgraphs(node)}
    for key in sorted({*node.attributes, *twin.attributes} - bodies):
        ours, theirs = (_attribute(n, key) for n in (node, twin))
        if ours != theirs:
            found.append(f"{key} {ours} instead of {theirs}")
    return found


def _attribute(node: ir.Node, key: str) -> str:
    attribute = node.attributes.get(key)
    if attribute is None:
        return "not set"
    value = attribute.value
    return _shown(value.numpy()) if isinstance(value, ir.TensorProtocol) else str(value)


def _inputs(node: ir.Node, twin: ir.Node, weights: Mapping[str, Any]) -> list[str]:
    ours, theirs = list(node.inputs), list(twin.inputs)
    if len(ours) != len(theirs):
        return [f"{len(ours)} inputs instead of {len(theirs)}"]
    found = []
    for index, (have, want) in enumerate(zip(ours, theirs, strict=True)):
        told = _input(have, weights), _input(want, weights)
        if told[0] != told[1]:
            found.append(f"{told[0]} instead of {told[1]} as input {index}")
    return found


def _input(value: ir.Value | None, weights: Mapping[str, Any]) -> str:
    """A value by name; a constant that is no weight by its numbers."""
    if value is None:
        return "nothing"
    producer = value.producer()
    held = value.const_value
    if producer is not None and producer.op_type == "Constant":
        made = producer.attributes.get("value")
        held = None if made is None else made.value
    if held is not None and (value.name not in weights or held.size <= _SHOWN):
        return _shown(held.numpy())
    return repr(value.name)


def _shown(array: np.ndarray[Any, Any]) -> str:
    if array.size > _SHOWN:
        return f"{array.dtype}{list(array.shape)}"
    return np.array2string(np.asarray(array), precision=6, separator=", ")
