"""Where nodes live: the main graph, the bodies of If, Loop and Scan, and functions."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import onnx_ir as ir

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Names", "Scope", "captured", "in_loop", "nested", "scopes", "visible_from"]


@dataclasses.dataclass(frozen=True, slots=True)
class Scope:
    """One body of nodes, with what is true all through it.

    Attributes:
        model: The whole model.
        body: The nodes' graph: the main graph, a subgraph, or the graph of a function.
        opsets: Version of each operator domain here.
        function: The function that the body is (a part of), None in the main graph.
        outer: The body whose node holds this one, None for the main graph and for functions.
        holder: That node.
    """

    model: ir.Model
    body: ir.Graph
    opsets: dict[str, int]
    function: ir.Function | None = None
    outer: Scope | None = None
    holder: ir.Node | None = None

    @property
    def opset(self) -> int:
        """Version of the default domain."""
        return self.opsets.get("", 1)

    def import_domain(self, domain: str, version: int = 1) -> None:
        """Make operators of ``domain`` known here."""
        self.opsets.setdefault(domain, version)
        self.model.graph.opset_imports.setdefault(domain, self.opsets[domain])


def nested(node: ir.Node) -> Iterator[ir.Graph]:
    """The subgraphs that a node holds."""
    if not node.attributes:
        return
    for attribute in node.attributes.values():
        if attribute.is_ref():
            continue
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def scopes(model: ir.Model) -> Iterator[Scope]:
    """Every body of the model, each before the bodies that its nodes hold.

    The bodies inside are looked up when the one around them has been dealt with, so a pass may
    add or remove them as it goes.
    """
    yield from _within(Scope(model, model.graph, model.graph.opset_imports))
    for function in list(model.functions.values()):
        yield from _within(Scope(model, function.graph, function.opset_imports, function))


def _within(scope: Scope) -> Iterator[Scope]:
    yield scope
    for node in list(scope.body):
        for graph in nested(node):
            yield from _within(dataclasses.replace(scope, body=graph, outer=scope, holder=node))


def captured(graph: ir.Graph) -> Iterator[ir.Value]:
    """What a subgraph reads from the bodies around it; a value may come several times."""
    for node in graph.all_nodes():
        for value in node.inputs:
            if value is not None and not _within_graph(value, graph):
                yield value
    for value in graph.outputs:
        if not _within_graph(value, graph):
            yield value


def _within_graph(value: ir.Value, graph: ir.Graph) -> bool:
    if value.graph is graph:
        return True
    return any(value.graph is g for g in graph.subgraphs())


def visible_from(value: ir.Value, scope: Scope) -> bool:
    """Whether nodes of ``scope`` may read the value, as far as bodies go."""
    inside: Scope | None = scope
    while inside is not None:
        if value.graph is inside.body:
            return True
        inside = inside.outer
    return False


def in_loop(scope: Scope) -> bool:
    """Whether the body runs once for each iteration of a loop."""
    inside: Scope | None = scope
    while inside is not None:
        if inside.holder is not None and inside.holder.op_type in ("Loop", "Scan"):
            return True
        inside = inside.outer
    return False


class Names:
    """The value and node names of a model, to make new ones that no other has."""

    def __init__(self, model: ir.Model) -> None:
        self._taken: set[str] = set()
        self._counts: dict[str, int] = {}
        for scope in scopes(model):
            self._taken.update(v.name for v in scope.body.inputs if v.name)
            self._taken.update(scope.body.initializers)
            for node in scope.body:
                self._taken.update(v.name for v in node.outputs if v.name)
                if node.name:
                    self._taken.add(node.name)

    def fresh(self, wanted: str) -> str:
        """``wanted``, or ``wanted_1`` and so on when it is taken."""
        name = wanted
        while name in self._taken:
            self._counts[wanted] = count = self._counts.get(wanted, 0) + 1
            name = f"{wanted}_{count}"
        self._taken.add(name)
        return name
