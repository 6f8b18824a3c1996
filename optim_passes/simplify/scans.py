"""Counted loops over rows become scans."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from optim_passes.builder import Builder
from optim_passes.copying import copy_nodes, put_beside, stands_beside
from optim_passes.rewriting import Outcome, Pass
from optim_passes.scopes import Names, visible_from
from optim_passes.simplify.tables import is_counted, scalars
from optim_passes.values import (
    attribute,
    dims,
    ints,
    norm_axis,
    producer,
    rank,
    same_dim,
    scalar,
    static_shape,
)

if TYPE_CHECKING:
    from optim_passes.scopes import Scope

__all__ = ["LoopToScanPass"]

_FEWEST = 4  # iterations; a Loop of no more is as fast, and a Scan must have one
_LIGHT = 1 << 20  # bytes of a weight
_ZERO, _ONE = np.asarray(0, np.int64), np.asarray(1, np.int64)


class LoopToScanPass(Pass):
    """A counted ``Loop`` becomes a ``Scan``, which hands a row of each table to its body.

    A Scan writes what its iterations give to where it stays, and takes half the time for an
    iteration. What it carries keeps its shape, or the loop stays. It stays for few iterations, too.
    """

    def run(self, scope: Scope, outcome: Outcome) -> None:
        """Rewrite the loops of one body."""
        names: Names | None = None
        for node in list(scope.body):
            if node.op_type != "Loop" or node.domain or not _is_scannable(node, scope):
                continue
            names = names or Names(scope.model)
            outside, inside = (Builder(scope, names, [node]) for _ in range(2))
            with outside.discarding(), inside.discarding():
                results = _scan(node, inside, names)
            trips = node.inputs[0]
            outside.initializers += inside.initializers
            fast = ir.Graph([], results, nodes=inside.nodes, name="scan")
            many = outside.Greater(trips, np.asarray(_FEWEST, np.int64))
            put_beside(node, many, fast, outside)
            outcome.rewrites += 1


def _is_scannable(node: ir.Node, scope: Scope) -> bool:
    trips, body = node.inputs[0], node.attributes["body"].as_graph()
    if not is_counted(node) or rank(trips) != 0 or stands_beside(node, scope):
        return False
    number = scalar(trips)
    if (number is not None and number <= _FEWEST) or not list(body):
        return False
    inner = list(body.initializers.values())
    if any(v.uses() for v in inner) or any(v in inner for v in body.outputs[1:]):
        return False
    if any(n.op_type in ("Loop", "Scan") for n in body) or _is_heavy(body):
        return False  # what an iteration costs hardly matters there
    if any(v.dtype is None or v.shape is None for v in [*body.inputs[2:], *body.outputs[1:]]):
        return False
    carried = range(2, len(body.inputs))
    return all(
        _keeps_shape(body.outputs[i - 1], body.inputs[i])
        and rank(node.inputs[i]) == rank(body.inputs[i])
        for i in carried
    )


def _is_heavy(body: ir.Graph) -> bool:
    """Whether a body multiplies by large weights, which kernels would keep twice."""
    read = (v for n in body.all_nodes() for v in n.inputs if v is not None)
    return any(v.const_value is not None and v.const_value.nbytes > _LIGHT for v in read)


def _keeps_shape(after: ir.Value | None, formal: ir.Value) -> bool:
    """Whether a carried value certainly has the shape that it had before the iteration."""
    if after is formal or rank(after) == rank(formal) == 0:
        return True
    shape = static_shape(after)
    if shape is not None and shape == static_shape(formal):
        return True
    node = producer(after, "ScatterND", "ScatterElements", "Identity")
    return node is not None and _keeps_shape(node.inputs[0], formal)


def _scan(node: ir.Node, op: Builder, names: Names) -> list[ir.Value]:
    """The scan, for loops of at least one iteration: its results."""
    body: ir.Graph = node.attributes["body"].as_graph()
    trips, number = node.inputs[0], body.inputs[0]
    assert trips is not None
    numbers = op.Range(_ZERO, trips, _ONE)
    within = op.within(op.scope)
    carried = [_formal(within, v) for v in body.inputs[2:]]
    mapping: dict[ir.Value, ir.Value | None] = dict(zip(body.inputs[2:], carried, strict=True))
    mapping[body.inputs[1]] = op.constant(np.asarray(True))
    rows = _Rows(number, numbers, trips, op)
    nodes = [inner for inner in body if not rows.take(inner)]
    read = {v for n in nodes for v in _reads(n)} | set(body.outputs)
    before, taken = op.within(op.scope), []
    for value, (table, axis) in rows.tables.items():
        if value in read:
            row = mapping[value] = _formal(within, value)
            taken.append((row, table, axis))
    for value, table in rows.matrices.items():
        if value in read:
            assert value.dtype is not None
            row = within.formal("row", value.dtype, 1)
            mapping[value] = before.Unsqueeze(row, [0])
            taken.append((row, table, 0))
    if number in read or not taken:  # a Scan goes over something
        row = mapping[number] = within.formal("number", ir.DataType.INT64, 0)
        taken.append((row, numbers, 0))
    copies = copy_nodes(nodes, mapping, names)
    results = _results(body, mapping, copies, within)
    op.initializers += before.initializers + within.initializers
    inputs = [*carried, *(row for row, _, _ in taken)]
    inner_nodes = [*before.nodes, *copies, *within.nodes]
    graph = ir.Graph(inputs, results, nodes=inner_nodes, name=body.name)
    made = op.node(
        "Scan", *node.inputs[2:], *(x for _, x, _ in taken), outputs=len(node.outputs), body=graph,
        num_scan_inputs=len(taken), scan_input_axes=[axis for _, _, axis in taken],
    )  # fmt: skip
    made = [made] if isinstance(made, ir.Value) else made
    for new, old in zip(made, node.outputs, strict=True):
        new.type, new.shape = old.type, old.shape
    return list(made)


def _formal(op: Builder, like: ir.Value) -> ir.Value:
    assert like.dtype is not None
    made = op.formal(like.name or "row", like.dtype, rank(like) or 0)
    made.shape = None if like.shape is None else like.shape.copy()
    return made


def _results(
    body: ir.Graph, mapping: dict[ir.Value, ir.Value | None], copies: list[ir.Node], op: Builder
) -> list[ir.Value]:
    """What the new body gives: each a value that a node of it makes, and none twice."""
    results: list[ir.Value] = []
    for value in body.outputs[1:]:
        made = mapping.get(value, value)
        assert made is not None
        if made in results or made.producer() not in copies:
            made = op.node("Identity", made, like=value)
        results.append(made)
    return results


def _reads(node: ir.Node) -> list[ir.Value | None]:
    inner = [g.as_graph() for g in node.attributes.values() if g.type == ir.AttributeType.GRAPH]
    reads = list(node.inputs)
    for graph in inner:
        reads += [v for n in graph.all_nodes() for v in n.inputs]
        reads.extend(graph.outputs)
    return reads


class _Rows:
    """The rows that the iterations take from tables outside.

    Args:
        number: The iteration's number.
        numbers: All of them.
        trips: How many there are.
        op: Makes the nodes before the scan.

    Attributes:
        tables: Where a value of the body is a row along an axis.
        matrices: Where one is a matrix of one row, or what a product makes of one: its rows.
    """

    def __init__(self, number: ir.Value, numbers: ir.Value, trips: ir.Value, op: Builder) -> None:
        self.number, self.numbers, self.trips, self.op = number, numbers, trips, op
        self.tables: dict[ir.Value, tuple[ir.Value, int]] = {}
        self.matrices: dict[ir.Value, ir.Value] = {}

    def take(self, node: ir.Node) -> bool:
        """Whether a node takes a row, or may do so for all rows before."""
        if node.domain or len(node.outputs) != 1:
            return False
        result, (x, *rest) = node.outputs[0], node.inputs or (None,)
        if node.op_type == "Gemm" and x in self.matrices and not attribute(node, "transA", 0):
            if not all(v is not None and visible_from(v, self.op.scope) for v in rest):
                return False
            if len(rest) > 1 and rank(rest[1]) != 1:
                return False
            self.matrices[result] = self.op.node(
                "Gemm", self.matrices[x], *rest, attributes_of=node
            )
            return True
        if x is None or not visible_from(x, self.op.scope) or not dims(x):
            return False
        if node.op_type == "Slice" and rank(x) == 2 and self._is_row(node):
            self.matrices[result] = self._table(x, self.number, 0)
            return True
        index = rest[0] if node.op_type == "Gather" else None
        if index is None or not _depends_on(index, self.number, self.op):
            return False
        axis = norm_axis(attribute(node, "axis", 0), rank(x) or 0)
        self.tables[result] = self._table(x, index, axis), axis
        return True

    def _is_row(self, node: ir.Node) -> bool:
        """``x[i : i + 1]`` that certainly has a row."""
        shape, operands = dims(node.outputs[0]), list(node.inputs)
        if not shape or shape[0] != 1 or len(operands) < 4 or ints(operands[3]) != [0]:
            return False
        if len(operands) > 4 and ints(operands[4]) != [1]:
            return False
        start, end = (scalars(v) for v in operands[1:3])
        if start is None or end is None or [start[0]] != start or start[0] is not self.number:
            return False
        step = producer(end[0], "Add")
        if len(end) != 1 or step is None or self.number not in step.inputs:
            return False
        return any(scalar(v) == 1 for v in step.inputs)

    def _table(self, x: ir.Value, index: ir.Value, axis: int) -> ir.Value:
        """A table of as many rows as there are iterations."""
        if index is self.number and axis == 0 and _has_rows(x, self.trips):
            return x
        place = self.numbers
        if index is not self.number:
            place = _table(index, self.number, self.numbers, self.op)
        made: ir.Value = self.op.Gather(x, place, axis=axis)
        return made


def _depends_on(index: ir.Value, number: ir.Value, op: Builder) -> bool:
    if index is number:
        return True
    step = producer(index, "Add", "Sub")
    if step is None or rank(index) != 0 or index.graph is not number.graph:
        return False
    others = [v for v in step.inputs if v is not None and v is not number]
    return len(others) == 1 and rank(others[0]) == 0 and visible_from(others[0], op.scope)


def _table(index: ir.Value, number: ir.Value, numbers: ir.Value, op: Builder) -> ir.Value:
    step = index.producer()
    assert step is not None
    made: ir.Value = op.node(step.op_type, *(numbers if v is number else v for v in step.inputs))
    return made


def _has_rows(x: ir.Value | None, trips: ir.Value) -> bool:
    """Whether a table certainly has as many rows as there are iterations."""
    squeeze = producer(trips, "Squeeze", "Reshape")
    shape = None if squeeze is None else producer(squeeze.inputs[0], "Shape")
    start = 0 if shape is None else attribute(shape, "start", 0)
    size, source = dims(x), None if shape is None else dims(shape.inputs[0])
    if not size or not source or start >= len(source) or shape is None:
        return False
    if shape.inputs[0] is x and start == 0:
        return True
    return same_dim(size[0], source[start])
