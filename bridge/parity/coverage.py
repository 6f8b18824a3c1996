"""Which branches and loop bodies of a graph some inputs reach.

The graph is given one more output: a flag for every branch and body, carried out of nested ones,
so that running it tells what ran.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from bridge.errors import BridgeError
from bridge.feeds import to_numpy
from bridge.graph_index import SOURCE, open_model, subgraphs
from bridge.session import Session

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["Coverage"]

_REACHED = "bridge.reached"
_WAYS = {"then_branch": "the `if` branch", "else_branch": "the `else` branch", "body": "the body"}


class Coverage:
    """Notes which branches run.

    Args:
        session: A session of the model.
    """

    def __init__(self, session: Session) -> None:
        self._inputs = session.input_names
        self._labels: list[str] = []
        self._places: dict[tuple[int, str], int] = {}
        self._count = 0
        self._session: Session | None = None
        model = open_model(session.source)
        if not any(n.op_type in ("If", "Loop") for n in model.graph):
            self._reached = np.zeros(0, bool)
            return
        graph = model.graph.clone()
        self._number(graph)
        graph.outputs.append(self._instrument(graph, None))
        functions = [f.clone() for f in model.functions.values()]
        watched = ir.Model(graph, ir_version=model.ir_version, functions=functions)
        self._reached = np.zeros(len(self._labels), bool)
        self._session = Session(watched, settings=session.settings_for_parts())

    def run(self, feed: Mapping[str, Any]) -> None:
        """Note what some inputs reach; inputs that the model does not take reach nothing."""
        if self._session is None or self._reached.all():
            return
        try:
            found = self._session.run({n: feed[n] for n in self._inputs})
        except BridgeError:
            return
        self._reached |= to_numpy(found[_REACHED])

    def unreached(self) -> list[str]:
        """The branches and bodies that no input reached, with the lines that they come from."""
        return [
            label
            for label, reached in zip(self._labels, self._reached, strict=True)
            if not reached
        ]

    # The graph

    def _number(self, graph: ir.Graph) -> None:
        for node in graph:
            for name, inner in _watched(node):
                self._places[id(inner), name] = len(self._labels)
                what = "`if`" if node.op_type == "If" else "loop"
                place = node.metadata_props.get(SOURCE) or f"node {node.name}"
                self._labels.append(f"{_WAYS[name]} of the {what} at {place}")
                self._number(inner)

    def _instrument(self, graph: ir.Graph, place: int | None) -> ir.Value:
        """Let a graph compute the flags of what it reaches, its own place among them."""
        parts: list[ir.Value] = []
        for node in list(graph):
            if node.op_type == "If" and not node.domain:
                parts.append(self._watch_if(graph, node))
            elif node.op_type == "Loop" and not node.domain:
                parts.append(self._watch_loop(graph, node))
        own = np.zeros(len(self._labels), bool)
        if place is not None:
            own[place] = True
        flags = self._constant(graph, own)
        for part in parts:
            flags = self._emit(graph, "Or", [flags, part])
        if place is None:
            flags.name = _REACHED
        return flags

    def _watch_if(self, graph: ir.Graph, node: ir.Node) -> ir.Value:
        for name, inner in _watched(node):
            inner.outputs.append(self._instrument(inner, self._places[id(inner), name]))
        return self._replaced(graph, node, list(node.inputs), len(node.outputs))

    def _watch_loop(self, graph: ir.Graph, node: ir.Node) -> ir.Value:
        carried = max(len(node.inputs) - 2, 0)
        ((name, body),) = _watched(node)
        before = ir.Value(
            name=self._name(),
            type=ir.TensorType(ir.DataType.BOOL),
            shape=ir.Shape([len(self._labels)]),
        )
        body.inputs.append(before)
        inside = self._instrument(body, self._places[id(body), name])
        body.outputs.insert(1 + carried, self._emit(body, "Or", [before, inside]))
        start = self._constant(graph, np.zeros(len(self._labels), bool), before=node)
        inputs = [*node.inputs, *[None] * (2 - len(node.inputs)), start]
        return self._replaced(graph, node, inputs, carried)

    def _replaced(
        self, graph: ir.Graph, node: ir.Node, inputs: list[ir.Value | None], place: int
    ) -> ir.Value:
        """Put a node with one more output in the place of ``node``; that output."""
        attributes = list(node.attributes.values())
        new = ir.Node(
            "", node.op_type, inputs, attributes, num_outputs=len(node.outputs) + 1, name=node.name,
            metadata_props=dict(node.metadata_props),
        )  # fmt: skip
        flags = new.outputs[place]
        kept = [v for v in new.outputs if v is not flags]
        graph.insert_before(node, new)
        for old, value in zip(node.outputs, kept, strict=True):
            value.name, value.type, value.shape = old.name, old.type, old.shape
            for user, index in list(old.uses()):
                user.replace_input_with(index, value)
            _replace_outputs(graph, old, value)
        graph.remove(node)
        flags.name = self._name()
        flags.type = ir.TensorType(ir.DataType.BOOL)
        flags.shape = ir.Shape([len(self._labels)])
        return flags

    def _constant(
        self, graph: ir.Graph, array: np.ndarray[Any, Any], *, before: ir.Node | None = None
    ) -> ir.Value:
        attribute = ir.AttrTensor("value", ir.tensor(array))
        node = ir.Node("", "Constant", [], [attribute])
        return self._placed(graph, node, before)

    def _emit(self, graph: ir.Graph, op_type: str, inputs: list[ir.Value]) -> ir.Value:
        return self._placed(graph, ir.Node("", op_type, inputs), None)

    def _placed(self, graph: ir.Graph, node: ir.Node, before: ir.Node | None) -> ir.Value:
        if before is None:
            graph.append(node)
        else:
            graph.insert_before(before, node)
        (value,) = node.outputs
        value.name = self._name()
        value.type = ir.TensorType(ir.DataType.BOOL)
        value.shape = ir.Shape([len(self._labels)])
        return value

    def _name(self) -> str:
        self._count += 1
        return f"{_REACHED}.{self._count}"


def _watched(node: ir.Node) -> Iterator[tuple[str, ir.Graph]]:
    if node.op_type in ("If", "Loop") and not node.domain:
        yield from subgraphs(node)


def _replace_outputs(graph: ir.Graph, old: ir.Value, new: ir.Value) -> None:
    """Let a graph, and the graphs inside, return ``new`` where they returned ``old``."""
    for index, value in enumerate(graph.outputs):
        if value is old:
            graph.outputs[index] = new
    for node in graph:
        for _, inner in subgraphs(node):
            _replace_outputs(inner, old, new)
