"""Lists that a loop appends to."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import onnx_ir as ir

from optim_passes.builder import Builder
from optim_passes.copying import copy_nodes
from optim_passes.rewriting import Outcome, Pass, commit
from optim_passes.scopes import Names
from optim_passes.simplify.tables import ELEMENTWISE, plain
from optim_passes.values import (
    attribute,
    constant,
    dims,
    ints,
    producer,
    rank,
    scalar,
    static_shape,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from optim_passes.scopes import Scope

__all__ = ["LoopAppendPass"]

_FLOATS = (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16)
_HOISTED = 4  # nodes of a branch that may run in each iteration


class _Append(NamedTuple):
    """What an iteration appends.

    Attributes:
        row: The item.
        kept: The conditions under which it is appended, each with the value it must have.
        nodes: Nodes of branches that these need, in order.
        last: Where the iteration reads the item that was appended last.
    """

    row: ir.Value
    kept: Sequence[tuple[ir.Value, bool]] = ()
    nodes: Sequence[ir.Node] = ()
    last: Sequence[ir.Value] = ()


class LoopAppendPass(Pass):
    """A carried list that a ``Loop`` appends to is made behind the loop.

    Each iteration gives its item as a scan output, and where it appends in an ``If``, whether it
    counts: ``Compress`` takes those that do. The last item, if the iteration reads it, is carried. An
    iteration would copy the whole list, and what is left of the loop may be no loop at all then. Items
    need one static shape: without an iteration nothing else tells it.
    """

    def run(self, scope: Scope, outcome: Outcome) -> None:
        """Rewrite the loops of one body."""
        names: Names | None = None
        for node in list(scope.body):
            if node.op_type != "Loop" or node.domain:
                continue
            for index in range(2, len(node.inputs)):
                append = _append_of(node, index)
                if append is not None:
                    names = names or Names(scope.model)
                    node = _collect_behind(node, index, append, scope, names)
                    outcome.rewrites += 1


def _append_of(node: ir.Node, index: int) -> _Append | None:
    """What is appended to a carried value that nothing else reads."""
    body: ir.Graph = node.attributes["body"].as_graph()
    formal, after = body.inputs[index], body.outputs[index - 1]
    if formal in body.outputs or after.uses() or list(body.outputs).count(after) != 1:
        return None
    found = _appended(after, formal)
    if found is None:
        return None
    last = _last_items(formal, node.inputs[index], body, always=not found.kept)
    shape = () if rank(found.row) == 0 else static_shape(found.row)
    if shape is None or rank(formal) != len(shape) + 1:
        return None
    if len(formal.uses()) != len(found.kept) + 1 + len(last):
        return None
    nodes = _needed([found.row, *(c for c, _ in found.kept)], body)
    return None if nodes is None else found._replace(nodes=nodes, last=last)


def _last_items(
    formal: ir.Value, begin: ir.Value | None, body: ir.Graph, *, always: bool
) -> list[ir.Value]:
    """What an iteration reads at the end of the list, which is not empty from the start."""
    size = (dims(begin) or (None,))[0]
    if not isinstance(size, int) or size == 0:
        return []
    found = []
    for user, place in formal.uses():
        if user.op_type != "Gather" or user.domain or place or user.graph is not body:
            continue
        index = user.inputs[1]
        if rank(index) != 0 or attribute(user, "axis", 0) != 0:
            continue
        if scalar(index) == -1 or (always and _ahead(index, body.inputs[0]) == size - 1):
            found.append(user.outputs[0])
    return found


def _ahead(index: ir.Value | None, number: ir.Value) -> int | None:
    """How far an index is ahead of an iteration's number."""
    if index is number:
        return 0
    step = producer(index, "Add")
    if step is None or number not in step.inputs:
        return None
    by = scalar(step.inputs[1 if step.inputs[0] is number else 0])
    return None if by is None else int(by)


def _appended(after: ir.Value, formal: ir.Value) -> _Append | None:
    concat = producer(after, "Concat")
    if concat is not None:
        joined = len(concat.inputs) == 2 and plain(concat.inputs[0]) is formal
        item = producer(concat.inputs[1], "Unsqueeze") if joined else None
        if item is None or attribute(concat, "axis") not in (0, -(rank(formal) or 0)):
            return None
        first = ints(item.inputs[1]) == [0] and item.inputs[0] is not None
        return _Append(item.inputs[0]) if first else None  # type: ignore[arg-type]
    choice = producer(after, "If")
    if choice is None or choice.inputs[0] is None:
        return None
    for taken, name, other in (
        (True, "then_branch", "else_branch"),
        (False, "else_branch", "then_branch"),
    ):
        ways = [attribute(choice, n).outputs[after.index() or 0] for n in (name, other)]
        if plain(ways[1]) is formal:
            found = _appended(ways[0], formal)
            if found is not None:
                return found._replace(kept=[(choice.inputs[0], taken), *found.kept])
    return None


def _needed(values: list[ir.Value], body: ir.Graph) -> list[ir.Node] | None:
    """The nodes of branches that make values; None if some of them may not run always."""
    inside = [b for n in body for b in _branches(n)]
    order = {n: i for i, n in enumerate(n for b in inside for n in b.all_nodes())}
    found: set[ir.Node] = set()
    pending = list(values)
    while pending:
        node = pending.pop().producer()
        if node is None or node not in order or node in found:
            continue
        if not _is_harmless(node) or len(found) == _HOISTED:
            return None
        found.add(node)
        pending += [v for v in node.inputs if v is not None]
    return sorted(found, key=order.__getitem__)


def _is_harmless(node: ir.Node) -> bool:
    """Whether it may run although its branch is not taken: no integer is divided by zero."""
    divides = node.op_type in ("Div", "Mod") and node.outputs[0].dtype not in _FLOATS
    return not node.domain and node.op_type in ELEMENTWISE and not divides


def _branches(node: ir.Node) -> list[ir.Graph]:
    if node.op_type != "If" or node.domain:
        return []
    return [attribute(node, "then_branch"), attribute(node, "else_branch")]


def _collect_behind(
    node: ir.Node, index: int, append: _Append, scope: Scope, names: Names
) -> ir.Node:
    """The loop that collects items and conditions; the carried value is left to dead code."""
    body: ir.Graph = node.attributes["body"].as_graph()
    moved: dict[ir.Value, ir.Value | None] = {}
    body.extend(copy_nodes(append.nodes, moved, names))
    inner = Builder(scope, names, [node])
    row = moved.get(append.row, append.row)
    results = [inner.Identity(row)]
    for condition, wanted in append.kept:
        found = moved.get(condition, condition)
        found = found if wanted else inner.Not(found)
        results[1:] = [inner.And(*results[1:], found) if results[1:] else inner.Identity(found)]
    operands, carried = list(node.inputs), len(node.inputs) - 2
    op = Builder(scope, names, [node])
    assert row is not None
    assert row.dtype is not None
    if append.last:
        formal = inner.formal("last", row.dtype, rank(row) or 0)
        formal.shape = row.shape
        for value in append.last:
            value.replace_all_uses_with(formal, replace_graph_outputs=True)
        body.inputs.append(formal)
        kept = inner.Where(results[1], row, formal) if results[1:] else inner.Identity(row)
        body.outputs.insert(carried + 1, kept)
        operands.append(op.Gather(node.inputs[index], np.asarray(-1), axis=0))
    body.extend(inner.nodes)
    body.outputs[index - 1] = body.inputs[index]
    body.outputs.extend(results)
    size = len(node.outputs) + bool(append.last) + len(results)
    made = list(op.node("Loop", *operands, outputs=size, body=body))
    if append.last:
        made.pop(carried)
    for new, old in zip(made, node.outputs, strict=False):
        new.type, new.shape = old.type, old.shape
    stacked = made[len(node.outputs) :]
    for new, result in zip(stacked, results, strict=True):
        new.type = result.type
        new.shape = ir.Shape([None, *(static_shape(result) or ())])
    made = made[: len(node.outputs)]
    items = op.Compress(*stacked, axis=0) if append.kept else stacked[0]
    begin = constant(node.inputs[index])
    if begin is None or begin.size:
        items = op.Concat(node.inputs[index], items, axis=0)
    made[index - 2] = items
    commit(op, node, node.outputs, made, [])
    scope.body.remove(node, safe=True)
    loop: ir.Node = stacked[0].producer()
    return loop
