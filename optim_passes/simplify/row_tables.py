"""What a loop computes of single rows is computed of all rows before it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from optim_passes.builder import Builder
from optim_passes.rewriting import Outcome, Pass, commit
from optim_passes.scopes import Names, visible_from
from optim_passes.simplify.tables import ELEMENTWISE
from optim_passes.values import attribute, constant, dims, ints, norm_axis, rank

if TYPE_CHECKING:
    import onnx_ir as ir

    from optim_passes.scopes import Scope

__all__ = ["RowTablePass"]

_NARROW = 16  # elements of a row up to which all rows cost less than nodes in a loop
_GAIN = 4  # nodes that an iteration has to lose


class RowTablePass(Pass):
    """``f(x[i])`` in a loop becomes ``f(x)[i]``, where ``f`` is computed before the loop.

    ``f`` treats rows alike: slices, choices of columns, element-wise operators. The rows are short,
    and each iteration loses several nodes: the corners and areas of boxes.
    """

    def run(self, scope: Scope, outcome: Outcome) -> None:
        """Rewrite one body in a loop."""
        outer = _around_loop(scope)
        if outer is None:
            return
        names: Names | None = None
        for rows in _groups(scope, outer[0]):
            ends = [v for v in rows.values if any(u.node not in rows.nodes for u in v.uses())]
            if len(rows.nodes) - len(ends) < _GAIN or any(
                v.is_graph_output() for v in rows.values
            ):
                continue
            names = names or Names(scope.model)
            _look_up(rows, ends, scope, outer, names)
            outcome.rewrites += 1


def _around_loop(scope: Scope) -> tuple[Scope, ir.Node] | None:
    """The body that holds the innermost loop around a body, and that loop."""
    inside: Scope | None = scope
    while inside is not None and inside.outer is not None and inside.holder is not None:
        if inside.holder.op_type in ("Loop", "Scan"):
            return inside.outer, inside.holder
        inside = inside.outer
    return None


class _Rows:
    """What is computed of the rows that one index chooses."""

    def __init__(self, index: ir.Value) -> None:
        self.index = index
        self.nodes: list[ir.Node] = []

    @property
    def values(self) -> list[ir.Value]:
        return [n.outputs[0] for n in self.nodes]

    def takes(self, node: ir.Node, outer: Scope) -> bool:
        """Whether a node computes more of these rows."""
        known, lead = self.values, rank(self.index) or 0
        operands = [v for v in node.inputs if v is not None]
        mine = [v for v in operands if v in known]
        if node.domain or len(node.outputs) != 1 or not mine:
            return False
        if node.op_type in ("Slice", "Gather"):
            if operands[0] not in known or any(constant(v) is None for v in operands[1:]):
                return False
            size = rank(operands[0])
            axes = _axes(node)
            return (
                size is not None
                and axes is not None
                and all(norm_axis(a, size) >= lead for a in axes)
            )
        whole = node.outputs[0].dtype is None or not node.outputs[0].dtype.is_floating_point()
        if node.op_type not in ELEMENTWISE or (whole and node.op_type in ("Div", "Mod")):
            return False
        others = [v for v in operands if v not in known]
        alike = len({rank(v) for v in mine}) == 1 and rank(mine[0]) is not None
        return alike and all(rank(v) == 0 and visible_from(v, outer) for v in others)


def _axes(node: ir.Node) -> list[int] | None:
    if node.op_type == "Gather":
        return [attribute(node, "axis", 0)] if rank(node.inputs[1]) == 0 else None
    return ints(node.inputs[3]) if len(node.inputs) > 3 else None


def _groups(scope: Scope, outer: Scope) -> list[_Rows]:
    groups: dict[ir.Value, _Rows] = {}
    for node in scope.body:
        if node.op_type == "Gather" and not node.domain and attribute(node, "axis", 0) == 0:
            x, index = node.inputs
            shape = dims(x)
            if x is not None and index is not None and shape and _is_table(x, index, outer):
                groups.setdefault(index, _Rows(index)).nodes.append(node)
                continue
        for rows in groups.values():
            if rows.takes(node, outer):
                rows.nodes.append(node)
                break
    return list(groups.values())


def _is_table(x: ir.Value, index: ir.Value, outer: Scope) -> bool:
    widths = (dims(x) or ())[1:]
    if not visible_from(x, outer) or visible_from(index, outer) or rank(index) not in (0, 1):
        return False
    return (
        all(isinstance(d, int) for d in widths)
        and math.prod(d for d in widths if isinstance(d, int)) <= _NARROW
    )


def _look_up(
    rows: _Rows, ends: list[ir.Value], scope: Scope, outer: tuple[Scope, ir.Node], names: Names
) -> None:
    """Compute the tables before the loop, and take rows of them in it."""
    body, holder = outer
    op = Builder(body, names, [holder])
    tables: dict[ir.Value, ir.Value] = {}
    shift = 1 - (rank(rows.index) or 0)
    for node in rows.nodes:
        first, *rest = node.inputs
        result = node.outputs[0]
        assert first is not None
        if first not in tables and node.op_type == "Gather":
            tables[result] = first
        elif node.op_type == "Gather":
            axis = norm_axis(attribute(node, "axis", 0), rank(first) or 0) + shift
            tables[result] = op.Gather(tables[first], *rest, axis=axis)
        elif node.op_type == "Slice":
            axes = [norm_axis(a, rank(first) or 0) + shift for a in ints(rest[2]) or ()]
            tables[result] = op.Slice(tables[first], *rest[:2], axes, *rest[3:])
        else:
            operands = [v if v is None else tables.get(v, v) for v in node.inputs]
            tables[result] = op.node(node.op_type, *operands, attributes_of=node)
    made = []
    for value in ends:
        end = value.producer()
        assert end is not None
        inside = Builder(scope, names, [end])
        made.append((inside, end, inside.Gather(tables[value], rows.index, axis=0)))
    commit(op, holder, [], [], [])
    for inside, end, row in made:
        commit(inside, end, list(end.outputs), [row], [end])
