"""16-bit models for runtimes without kernels for them: the same graph computed in float32."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["is_bfloat16", "widened"]

_NARROW, _WIDE = ir.DataType.BFLOAT16, ir.DataType.FLOAT
_DTYPE_ATTRIBUTES = ("to", "dtype", "stash_type")


def is_bfloat16(model: ir.Model) -> bool:
    """Whether any weight, input or output of the model is in bfloat16."""
    values = [*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()]
    return any(v.dtype == _NARROW for v in values)


def widened(model: ir.Model, narrow: ir.DataType = _NARROW) -> ir.Model:
    """A copy that computes in float32 where the model computes in bfloat16, or ``narrow``.

    Inputs and outputs keep their types; the copy rounds where it returns, not after every node, so
    it is the more accurate one. Weights are converted when they are read, not before.
    """
    copy = model.clone()
    graph = copy.graph
    for value in list(graph.inputs):
        if value.dtype == narrow:
            _cast_input(graph, value)
    for node in [*graph.all_nodes(), *(n for f in copy.functions.values() for n in f.all_nodes())]:
        for attribute in list(node.attributes.values()):
            _widen_attribute(node, attribute, narrow)
        for value in node.outputs:
            _retype(value, narrow)
    for inner in _graphs(copy):
        for value in (*inner.inputs, *inner.initializers.values()):
            if inner is not graph or value not in set(graph.inputs):
                _retype(value, narrow)
        for value in inner.initializers.values():
            if value.const_value is not None and value.const_value.dtype == narrow:
                value.const_value = _converted(value.const_value)
    wanted = [v.dtype for v in model.graph.outputs]
    for index, (value, dtype) in enumerate(zip(list(graph.outputs), wanted, strict=True)):
        if dtype == narrow:
            _cast_output(graph, index, value, narrow)
    return copy


def _graphs(model: ir.Model) -> Iterator[ir.Graph]:
    yield model.graph
    for node in model.graph.all_nodes():
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                yield attribute.as_graph()


def _retype(value: ir.Value, narrow: ir.DataType) -> None:
    if value.dtype == narrow:
        value.type = ir.TensorType(_WIDE)  # clones share their types


def _converted(tensor: ir.TensorProtocol) -> ir.LazyTensor:
    def read() -> ir.TensorProtocol:
        return ir.tensor(tensor.numpy().astype(np.float32), name=tensor.name)

    shape = ir.Shape(tensor.shape.numpy())
    return ir.LazyTensor(functools.cache(read), dtype=_WIDE, shape=shape, name=tensor.name)


def _widen_attribute(node: ir.Node, attribute: ir.Attr, narrow: ir.DataType) -> None:
    if attribute.name in _DTYPE_ATTRIBUTES and attribute.value == narrow.value:
        node.attributes[attribute.name] = ir.AttrInt64(attribute.name, _WIDE.value)
    elif attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype == narrow:
        array = attribute.as_tensor().numpy().astype(np.float32)
        node.attributes[attribute.name] = ir.AttrTensor(attribute.name, ir.tensor(array))


def _cast_input(graph: ir.Graph, value: ir.Value) -> None:
    users = list(value.uses())
    node = ir.node("Cast", [value], {"to": _WIDE})
    wide = node.outputs[0]
    wide.name, wide.shape = f"{value.name}/wide", value.shape
    wide.type = ir.TensorType(_WIDE)
    for user, index in users:
        user.replace_input_with(index, wide)
    for index, output in enumerate(graph.outputs):
        if output is value:
            graph.outputs[index] = wide
    graph.insert_before(graph[0], node) if len(graph) else graph.append(node)


def _cast_output(graph: ir.Graph, index: int, value: ir.Value, narrow: ir.DataType) -> None:
    node = ir.node("Cast", [value], {"to": narrow})
    result = node.outputs[0]
    result.name, result.shape = value.name, value.shape
    result.type = ir.TensorType(narrow)
    value.name = f"{value.name}/wide"
    graph.append(node)
    graph.outputs[index] = result
