"""Counted loops over rows become scans."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from optim_passes.builder import Builder
from optim_passes.copying import copy_nodes, put_beside, stands_beside
from optim_passes.rewriting import Outcome, Pass
from optim_passes.scopes import Names, visible_from
from optim_passes.simplify.tables import is_counted
from optim_passes.values import (
    attribute,
    dims,
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
    taken, nodes = [], []
    for inner in body:
        index = _index(inner, number, op)
        if index is None:
            nodes.append(inner)
            continue
        x = inner.inputs[0]
        row = mapping[inner.outputs[0]] = _formal(within, inner.outputs[0])
        whole = index is number and _has_rows(x, trips)
        place = numbers if index is number else _table(index, number, numbers, op)
        taken.append((row, x if whole else op.Gather(x, place, axis=0)))
    counts = any(v is number for n in nodes for v in _reads(n)) or number in body.outputs
    if counts or not taken:  # a Scan goes over something
        row = mapping[number] = within.formal("number", ir.DataType.INT64, 0)
        taken.append((row, numbers))
    copies = copy_nodes(nodes, mapping, names)
    results = _results(body, mapping, copies, within)
    op.initializers += within.initializers
    inputs = [*carried, *(row for row, _ in taken)]
    graph = ir.Graph(inputs, results, nodes=[*copies, *within.nodes], name=body.name)
    made = op.node(
        "Scan", *node.inputs[2:], *(x for _, x in taken), outputs=len(node.outputs), body=graph,
        num_scan_inputs=len(taken),
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


def _index(node: ir.Node, number: ir.Value, op: Builder) -> ir.Value | None:
    """What chooses a row of a table from outside, if that is computed from the iteration's number."""
    if node.op_type != "Gather" or node.domain or attribute(node, "axis", 0) != 0:
        return None
    x, index = node.inputs
    if x is None or index is None or not visible_from(x, op.scope) or not dims(x):
        return None
    return index if _depends_on(index, number, op) else None


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
