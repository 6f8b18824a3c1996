"""How exact a value can be: as exact as the least precise arithmetic on the way to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

from bridge.parity.surgery import reads, value_types

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

__all__ = ["coarsest", "coarsest_of"]

_BY_PRECISION = (ir.DataType.BFLOAT16, ir.DataType.FLOAT16, ir.DataType.FLOAT, ir.DataType.DOUBLE)
# These move numbers about; whatever the element type, they lose nothing of what came in.
_MOVES = frozenset((
    "Cast", "CastLike", "Concat", "Constant", "ConstantOfShape", "Expand", "Flatten", "Gather",
    "GatherElements", "GatherND", "Identity", "Pad", "Reshape", "Slice", "Split", "Squeeze", "Tile",
    "Transpose", "Unsqueeze", "Where",
))  # fmt: skip


def coarsest(model: ir.Model, output: str) -> ir.DataType | None:
    """The least precise element type that is computed in on the way to an output.

    None if nothing is computed in floating point, or the graph does not say.
    """
    start = next((v for v in model.graph.outputs if v.name == output), None)
    if start is None:
        return None
    return coarsest_of(_ancestors(start), value_types(model))


def coarsest_of(
    nodes: Iterable[ir.Node],
    types: Mapping[str, ir.TypeProtocol],
    given: Iterable[ir.TypeProtocol] = (),
) -> ir.DataType | None:
    """The least precise element type that nodes compute in, or are given.

    Args:
        nodes: The nodes; what only moves numbers does not count.
        types: Of values by name, where these do not say.
        given: Types of what the nodes are given.
    """
    values = [v for node in nodes for v in _computed(node)]
    found = {getattr(types.get(str(v.name), v.type), "dtype", None) for v in values}
    found |= {getattr(kind, "dtype", None) for kind in given}
    return next((d for d in _BY_PRECISION if d in found), None)


def _ancestors(value: ir.Value) -> Iterator[ir.Node]:
    seen: set[ir.Node] = set()
    pending = [value.producer()]
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        pending += [v.producer() for v in reads(node)]


def _computed(node: ir.Node) -> Iterator[ir.Value]:
    """The values that a node, or what is inside of it, computes rather than moves."""
    if node.op_type not in _MOVES:
        yield from node.outputs
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            for inner in attribute.as_graph():
                yield from _computed(inner)
