"""A model that tells how large its values get, in the bodies of If, Loop and Scan too.

Each body returns one more vector: the largest magnitude of each of its float32 values. What leaves
a loop is the largest of all iterations. No value has to be kept, however large the model is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from optim_passes.scopes import Names, nested

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["RANGES", "ranges_of", "with_ranges"]

RANGES = "bridge.ranges"  # the name of the model's further output


def with_ranges(model: ir.Model) -> tuple[ir.Model, list[str]]:
    """A copy of a model with one more output, and the names of the values that it speaks of.

    Functions have to be inlined before, and the types of values have to be known.
    """
    copy = model.clone()
    meter = _Meter(copy)
    vector, names = meter.body(copy.graph)
    vector.name = RANGES
    copy.graph.outputs.append(vector)
    return copy, names


def ranges_of(names: Sequence[str], results: Sequence[np.ndarray[Any, Any]]) -> dict[str, float]:
    """The largest magnitude by value name over several runs; NaN counts as nothing."""
    found: dict[str, float] = {}
    for vector in results:
        for name, magnitude in zip(names, np.nan_to_num(vector, nan=0.0), strict=True):
            found[name] = max(found.get(name, 0.0), float(magnitude))
    return found


class _Meter:
    """Adds the nodes that measure."""

    def __init__(self, model: ir.Model) -> None:
        self._names = Names(model)
        self._opset = model.graph.opset_imports.get("", 1)

    def body(self, graph: ir.Graph) -> tuple[ir.Value, list[str]]:
        """Measure the values of a graph; returns the vector and what it speaks of."""
        parts: list[ir.Value] = []
        names: list[str] = []
        vectors: set[ir.Value] = set()
        for value in graph.inputs:
            if _is_measured(value):
                parts.append(self._largest(value, graph))
                names.append(str(value.name))
        for node in list(graph):
            if node.op_type in ("If", "Loop", "Scan") and not node.domain:
                node, vector, inner = self._control(node, graph)
                vectors.add(vector)
                parts.append(vector)
                names += inner
            for value in node.outputs:
                if _is_measured(value) and value not in vectors:
                    parts.append(self._largest(value, graph))
                    names.append(str(value.name))
        if not parts:
            return self._constant(np.zeros(0, np.float32), graph), names
        return self._emit("Concat", parts, graph, axis=0), names

    def _control(self, node: ir.Node, graph: ir.Graph) -> tuple[ir.Node, ir.Value, list[str]]:
        """Measure what is in a node's bodies; returns what takes its place, the vector, the names."""
        found = [(g, *self.body(g)) for g in nested(node)]
        if node.op_type == "If":
            names = [n for _, _, inner in found for n in inner]
            for index, (branch, vector, _) in enumerate(found):
                parts = [
                    vector
                    if i == index
                    else self._constant(np.zeros(len(inner), np.float32), branch)
                    for i, (_, _, inner) in enumerate(found)
                ]
                branch.outputs.append(self._emit("Concat", parts, branch, axis=0))
            return *self._with_output(node, len(node.outputs), graph), names
        ((inner_graph, vector, names),) = found
        zeros = np.zeros(len(names), np.float32)
        start = self._constant(zeros, graph)
        made = start.producer()
        assert made is not None
        graph.remove(made)
        graph.insert_before(node, made)
        carried = ir.Value(
            name=self._names.fresh("bridge.ranges.so_far"), shape=ir.Shape([len(names)]),
            type=ir.TensorType(ir.DataType.FLOAT),
        )  # fmt: skip
        total = self._emit("Max", [carried, vector], inner_graph)
        scans = node.attributes["num_scan_inputs"].as_int() if node.op_type == "Scan" else 0
        skipped = 2 if node.op_type == "Loop" else 0
        states = len(node.inputs) - skipped - scans
        inner_graph.inputs.insert(skipped + states, carried)
        inner_graph.outputs.insert(states + (1 if node.op_type == "Loop" else 0), total)
        return *self._with_output(node, states, graph, (skipped + states, start)), names

    def _with_output(
        self, node: ir.Node, at: int, graph: ir.Graph, state: tuple[int, ir.Value] | None = None
    ) -> tuple[ir.Node, ir.Value]:
        """Put a node with one more output, and perhaps one more input, in the place of one."""
        inputs = list(node.inputs)
        if state is not None:
            inputs.insert(*state)
        attributes = list(node.attributes.values())
        node.attributes.clear()
        twin = ir.Node(
            "", node.op_type, inputs, attributes, num_outputs=len(node.outputs) + 1, name=node.name
        )
        graph.insert_before(node, twin)
        made = list(twin.outputs)
        vector = made.pop(at)
        vector.name = self._names.fresh("bridge.ranges.inner")
        vector.type = ir.TensorType(ir.DataType.FLOAT)
        for before, after in zip(node.outputs, made, strict=True):
            after.type, after.shape = before.type, before.shape
            before.replace_all_uses_with(after, replace_graph_outputs=True)
            after.name, before.name = before.name, None
        graph.remove(node, safe=True)
        return twin, vector

    def _largest(self, value: ir.Value, graph: ir.Graph) -> ir.Value:
        """The largest magnitude as a vector of one; 0 of an empty tensor."""
        made = self._emit("Abs", [value], graph)
        flat = self._emit("Reshape", [made, self._constant(np.array([-1]), graph)], graph)
        zero = self._constant(np.zeros(1, np.float32), graph)
        several = self._emit("Concat", [zero, flat], graph, axis=0)
        if self._opset >= 18:
            axes = self._constant(np.array([0]), graph)
            return self._emit("ReduceMax", [several, axes], graph, keepdims=1)
        return self._emit("ReduceMax", [several], graph, axes=[0], keepdims=1)

    def _constant(self, array: np.ndarray[Any, Any], graph: ir.Graph) -> ir.Value:
        return self._emit("Constant", [], graph, value=ir.tensor(array))

    def _emit(
        self, op_type: str, inputs: list[ir.Value], graph: ir.Graph, **given: Any
    ) -> ir.Value:
        node = ir.Node(
            "", op_type, inputs, ir.convenience.convert_attributes(given),
            name=self._names.fresh(f"bridge.ranges.{op_type}"),
        )  # fmt: skip
        node.outputs[0].name = node.name
        graph.append(node)
        return node.outputs[0]


def _is_measured(value: ir.Value) -> bool:
    return isinstance(value.type, ir.TensorType) and value.dtype == ir.DataType.FLOAT
