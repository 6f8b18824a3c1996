"""Cutting graphs: other outputs, values given instead of computed, bodies as models."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from bridge.graph_index import subgraphs

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

__all__ = ["body_model", "captured", "cut", "reads", "value_types"]

GIVEN = "/given"  # after the name of a value that is an input of a cut model


def captured(graph: ir.Graph) -> list[ir.Value]:
    """The values that a subgraph takes from around it, each once."""
    made: set[ir.Value] = {*graph.inputs, *graph.initializers.values()}
    found: dict[ir.Value, None] = {}
    for node in graph:
        found.update((v, None) for v in reads(node) if v not in made)
        made.update(node.outputs)
    found.update((v, None) for v in graph.outputs if v not in made)
    return list(found)


def reads(node: ir.Node) -> Iterator[ir.Value]:
    """The values that a node reads: its inputs, and what its subgraphs take from outside."""
    yield from (v for v in node.inputs if v is not None)
    for _, graph in subgraphs(node):
        yield from captured(graph)


def value_types(model: ir.Model) -> dict[str, ir.TypeProtocol]:
    """The types of the values of the main graph, those that ONNX can infer included."""
    if any(v.type is None for n in model.graph for v in n.outputs):
        model = model.clone()
        ShapeInferencePass()(model)
    return {str(v.name): v.type for n in model.graph for v in n.outputs if v.type is not None}


def cut(
    model: ir.Model, outputs: Sequence[str], given: Mapping[str, ir.TypeProtocol] | None = None
) -> tuple[ir.Model, dict[str, str]]:
    """The part of a model that computes some values of its main graph.

    Args:
        model: The model; it stays as it is.
        outputs: Names of the values that the part returns.
        given: Values, by name with their types, that the part takes as inputs where the model
            computes them. One may be an output too: it is computed, but nothing reads it.

    Returns:
        The part, and the name of each of its inputs by the name of the value in the model.
    """
    graph = model.graph.clone()
    values = {v.name: v for n in graph for v in n.outputs if v.name}
    inputs = {v.name: v for v in graph.inputs}
    wanted = [values.get(n) or inputs.get(n) or graph.initializers[n] for n in outputs]
    taken = dict(inputs)
    for name, kind in (given or {}).items():
        value = values.get(name)
        if value is not None:
            stand_in = ir.Value(name=f"{name}{GIVEN}", type=kind)
            _replace(graph, value, stand_in)
            taken[name] = stand_in
    graph.outputs.clear()
    graph.outputs.extend(wanted)
    used = _keep_live(graph)
    taken = {n: v for n, v in taken.items() if v in used}
    graph.inputs.clear()
    graph.inputs.extend(taken.values())
    for name in [n for n, v in graph.initializers.items() if v not in used]:
        del graph.initializers[name]
    part = ir.Model(
        graph,
        ir_version=model.ir_version,
        functions=[f.clone() for f in model.functions.values()],
    )
    part.metadata_props.clear()
    return part, {str(n): str(v.name) for n, v in taken.items()}


def _replace(graph: ir.Graph, old: ir.Value, new: ir.Value) -> None:
    """Let everything that reads ``old`` read ``new``, in subgraphs too."""
    for node, index in list(old.uses()):
        node.replace_input_with(index, new)
    for node in graph:
        _replace_in_outputs(node, old, new)


def _replace_in_outputs(node: ir.Node, old: ir.Value, new: ir.Value) -> None:
    for _, inner in subgraphs(node):
        for index, value in enumerate(inner.outputs):
            if value is old:
                inner.outputs[index] = new
        for child in inner:
            _replace_in_outputs(child, old, new)


def _keep_live(graph: ir.Graph) -> set[ir.Value]:
    """Remove what no output depends on; returns every value that is read."""
    needed: set[ir.Value] = set(graph.outputs)
    dead = []
    for node in reversed(graph):
        if any(v in needed for v in node.outputs):
            needed.update(reads(node))
        else:
            dead.append(node)
    graph.remove(dead, safe=False)
    return needed


def body_model(
    model: ir.Model, body: ir.Graph, types: Mapping[str, ir.TypeProtocol]
) -> tuple[ir.Model, list[str], list[str]]:
    """A subgraph as a model: what it takes from around it becomes inputs.

    Args:
        model: The model that it is in.
        body: The subgraph.
        types: Of values around it, and of inputs that do not say.

    Returns:
        The model, the names of the body's own inputs, and those of the values that it takes from
        around it; initializers among these come along as initializers.
    """
    outside = captured(body)
    graph = body.clone(allow_outer_scope_values=True)
    own = [str(v.name) for v in graph.inputs]
    further: list[str] = []
    for value in outside:
        copy = ir.Value(
            name=value.name, type=value.type, shape=value.shape, const_value=value.const_value
        )
        _replace_in(graph, value, copy)
        if value.const_value is not None and value.is_initializer():
            graph.initializers.add(copy)
        else:
            graph.inputs.append(copy)
            further.append(str(value.name))
    for value in graph.inputs:
        if value.type is None:
            value.type = types.get(str(value.name))
    graph.opset_imports.update(model.graph.opset_imports)
    part = ir.Model(
        graph,
        ir_version=model.ir_version,
        functions=[f.clone() for f in model.functions.values()],
    )
    return part, own, further


def _replace_in(graph: ir.Graph, old: ir.Value, new: ir.Value) -> None:
    """Let the nodes of one graph, and of its subgraphs, read ``new``."""
    for node in _all_nodes([graph]):
        for index, value in enumerate(node.inputs):
            if value is old:
                node.replace_input_with(index, new)
        for _, inner in subgraphs(node):
            for index, value in enumerate(inner.outputs):
                if value is old:
                    inner.outputs[index] = new
    for index, value in enumerate(graph.outputs):
        if value is old:
            graph.outputs[index] = new


def _all_nodes(graphs: Iterable[ir.Graph]) -> Iterator[ir.Node]:
    for graph in graphs:
        for node in graph:
            yield node
            yield from _all_nodes(g for _, g in subgraphs(node))
