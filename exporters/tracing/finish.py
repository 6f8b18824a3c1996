"""From blocks of nodes to an ``onnx_ir.Model``: dead nodes left out, outputs named."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from exporters.tracing.trace import Trace

__all__ = ["build_model", "live_nodes"]

# The oldest IR version whose readers know everything in the opset.
_IR_VERSIONS = {17: 8, 18: 8, 19: 9, 20: 9, 21: 10, 22: 10, 23: 11, 24: 12, 25: 13}


def captured(node: ir.Node) -> Iterable[ir.Value]:
    """The values that a node reads: its inputs, and what its subgraphs take from outside."""
    yield from (v for v in node.inputs if v is not None)
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            graph = attribute.as_graph()
            yield from graph.outputs
            for inner in graph:
                yield from captured(inner)


def live_nodes(nodes: Sequence[ir.Node], outputs: Iterable[ir.Value]) -> list[ir.Node]:
    """The nodes that ``outputs`` depend on, in order; the others are disconnected."""
    needed = set(outputs)
    kept: list[ir.Node] = []
    for node in reversed(nodes):
        if any(v in needed for v in node.outputs):
            kept.append(node)
            needed.update(captured(node))
        else:
            for index in range(len(node.inputs)):
                node.replace_input_with(index, None)
    kept.reverse()
    return kept


def build_model(
    trace: Trace,
    inputs: Sequence[ir.Value],
    outputs: Sequence[ir.Value],
    output_names: Sequence[str],
    *,
    name: str,
) -> ir.Model:
    """The model that computes ``outputs`` from ``inputs``.

    Args:
        trace: The finished trace.
        inputs: Graph inputs, typed and named.
        outputs: What the graph returns; a value may stand here twice, or be an input.
        output_names: Their names.
        name: The graph's name.
    """
    builder = trace.builder
    finals: list[ir.Value] = []
    taken = {id(v) for v in inputs}
    for value, wanted in zip(outputs, output_names, strict=True):
        final = value
        if id(value) in taken or value.const_value is not None:
            final = builder.emit("Identity", value)
            final.type, final.shape = value.type, value.shape
            final.meta["sizes"] = value.meta.get("sizes")
        taken.add(id(final))
        final.name = builder.unique_name(wanted)
        finals.append(final)
        _name_dims(trace, final)
    nodes = live_nodes(builder.main.nodes, finals)
    used = {v for node in nodes for v in captured(node)}
    initializers = [v for v in builder.initializers.values() if v in used]
    opsets = {"": builder.opset}
    opsets |= {n.domain: 1 for n in nodes if n.domain}
    graph = ir.Graph(
        inputs, finals, nodes=nodes, initializers=initializers, opset_imports=opsets, name=name
    )
    return ir.Model(
        graph,
        ir_version=_IR_VERSIONS.get(builder.opset, max(_IR_VERSIONS.values())),
        producer_name="onnx-bridge",
    )


def _name_dims(trace: Trace, value: ir.Value) -> None:
    """Name an output's dynamic dims after the input dims that always have the same size."""
    sizes = value.meta.get("sizes")
    if sizes is None or value.shape is None:
        return
    value.shape = ir.Shape(
        [
            dim if isinstance(dim, int) else trace.symbol(size) or f"{value.name}_dim_{axis}"
            for axis, (dim, size) in enumerate(zip(value.shape.dims, sizes, strict=True))
        ]
    )
