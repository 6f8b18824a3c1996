"""Where in a graph a node or value is, and which module and line of eager code it came from."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import onnx_ir as ir

from bridge.files import load_model, parse_model

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

__all__ = ["GraphIndex", "NodeInfo", "open_model", "subgraphs"]

MODULE = "bridge.module"  # metadata keys that the exporters write
SOURCE = "bridge.source"
_FAR = 4  # readers of readers to ask: a runtime inserts short chains, such as Reshape-Gemm-Reshape


@dataclasses.dataclass(frozen=True, slots=True)
class NodeInfo:
    """A node and where it came from.

    Attributes:
        node: The node.
        module: Path of the eager module that made it, ``""`` if it does not say.
        source: File and line, None if it does not say.
        around: The If, Loop and Scan nodes that it is inside of, outermost first.
    """

    node: ir.Node
    module: str
    source: str | None
    around: tuple[ir.Node, ...]

    @property
    def name(self) -> str:
        """The node's name, or its first output's where it has none, or its operator's."""
        return self.node.name or next(
            (v.name for v in self.node.outputs if v.name), self.node.op_type
        )

    @property
    def in_loop(self) -> bool:
        """Whether something around it repeats."""
        return any(n.op_type in ("Loop", "Scan") for n in self.around)

    def __str__(self) -> str:
        domain = f"{self.node.domain}." if self.node.domain else ""
        text = f"{domain}{self.node.op_type} {self.name!r}"
        if self.module:
            text += f" in {self.module}"
        return text if self.source is None else f"{text} at {self.source}"


def subgraphs(node: ir.Node) -> Iterator[tuple[str, ir.Graph]]:
    """A node's subgraphs by attribute name."""
    for name, attribute in node.attributes.items():
        if attribute.type == ir.AttributeType.GRAPH:
            yield name, attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from ((f"{name}[{i}]", g) for i, g in enumerate(attribute.as_graphs()))


def open_model(source: ir.Model | bytes | str | os.PathLike[str]) -> ir.Model:
    """The graph of whatever a session was made from."""
    if isinstance(source, ir.Model):
        return source
    if isinstance(source, bytes):
        return parse_model(source)
    return load_model(source)


class GraphIndex:
    """The nodes of a model, subgraphs included, by name and by the values they make.

    Attributes:
        nodes: In graph order; a node comes before what is in its subgraphs.
        by_name: By node name.
        producer: By the name of an output.
    """

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self.nodes: list[NodeInfo] = []
        self.by_name: dict[str, NodeInfo] = {}
        self.producer: dict[str, NodeInfo] = {}
        self._add(model.graph, ())

    def _add(self, graph: ir.Graph, around: tuple[ir.Node, ...]) -> None:
        for node in graph:
            metadata = node.metadata_props
            info = NodeInfo(node, metadata.get(MODULE, ""), metadata.get(SOURCE), around)
            self.nodes.append(info)
            self.by_name.setdefault(info.name, info)
            for value in node.outputs:
                if value.name:
                    self.producer.setdefault(value.name, info)
            for _, inner in subgraphs(node):
                self._add(inner, (*around, node))

    def origin(self, node: ir.Node) -> NodeInfo | None:
        """The node of this model that another model's node stands for.

        A runtime fuses, renames and inserts nodes. The values that leave a fused node keep their
        names, so a node is known by what it makes; an inserted one serves what reads it.
        """
        nearest = [node]
        for _ in range(_FAR):
            for near in nearest:
                known = self._known(near)
                if known is not None:
                    return known
            nearest = [r for near in nearest for v in near.outputs for r, _ in v.uses()]
        for read in node.inputs:
            if read is not None and read.name in self.producer:
                return self.producer[read.name]
        return None

    def _known(self, node: ir.Node) -> NodeInfo | None:
        for value in node.outputs:
            if value.name in self.producer:
                return self.producer[value.name]
        return self.by_name.get(node.name or "")
