"""Tables whose cells depend on their neighbours are filled by diagonals."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from optim_passes.builder import Builder
from optim_passes.copying import put_beside, stands_beside
from optim_passes.rewriting import Outcome, Pass
from optim_passes.scopes import Names, visible_from
from optim_passes.simplify.cells import Cells
from optim_passes.simplify.tables import is_counted, plain
from optim_passes.values import rank

if TYPE_CHECKING:
    from optim_passes.scopes import Scope

__all__ = ["LoopSkewPass"]

_TALLEST = 16  # rows per column up to which diagonals take little memory
_END = np.iinfo(np.int64).max
_ZERO, _ONE = np.asarray(0, np.int64), np.asarray(1, np.int64)


class LoopSkewPass(Pass):
    """Two counted loops that fill a table cell by cell fill it diagonal by diagonal.

    That is for tables of which a cell is computed from its upper, left and upper left neighbours:
    edit distances, alignments. The cells of a diagonal do not read each other, so the same
    operators compute them all as a vector. What a cell needs besides its neighbours is computed
    for all cells before. Tables that are empty, or much taller than wide, are filled as they were.
    """

    def run(self, scope: Scope, outcome: Outcome) -> None:
        """Rewrite the loops of one body."""
        names: Names | None = None
        for node in list(scope.body):
            inner = _inner(node, scope)
            if inner is None:
                continue
            names = names or Names(scope.model)
            outside, inside = (Builder(scope, names, [node, inner]) for _ in range(2))
            with outside.discarding(), inside.discarding():
                table = _Diagonals(node, inner, inside).table()
            if table is None:
                inside.discard()
                continue
            _choose(node, inner, table, outside, inside)
            outcome.rewrites += 1


def _inner(node: ir.Node, scope: Scope) -> ir.Node | None:
    """The loop over the columns, if ``node`` is one over the rows and both carry a table only."""
    rows = None if stands_beside(node, scope) else _body(node)
    loops = [n for n in rows or () if n.op_type in ("Loop", "Scan", "If")]
    if rows is None or len(loops) != 1 or _body(loops[0]) is None:
        return None
    (inner,) = loops
    trips = node.inputs[0], inner.inputs[0]
    if any(t is None or rank(t) != 0 or not visible_from(t, scope) for t in trips):
        return None
    table = rows.inputs[2]
    carried = plain(inner.inputs[2]) is table and plain(rows.outputs[1]) is inner.outputs[0]
    return inner if carried and rank(table) == 2 else None


def _body(node: ir.Node) -> ir.Graph | None:
    """The body of a counted loop that carries one value."""
    if node.op_type != "Loop" or node.domain or not is_counted(node):
        return None
    body: ir.Graph = node.attributes["body"].as_graph()
    return body if len(body.inputs) == 3 and len(body.outputs) == 2 else None


def _choose(
    node: ir.Node, inner: ir.Node, table: ir.Value, outside: Builder, inside: Builder
) -> None:
    """Put the diagonals beside the loop, which stays for other tables."""
    op, zero = outside, np.asarray(0, np.int64)
    height, width = node.inputs[0], inner.inputs[0]
    some = op.And(op.Greater(height, zero), op.Greater(width, zero))
    flat = op.LessOrEqual(height, op.Mul(width, np.asarray(_TALLEST, np.int64)))
    op.initializers += inside.initializers
    fast = ir.Graph([], [table], nodes=inside.nodes, name="diagonals")
    put_beside(node, op.And(some, flat), fast, op)


class _Diagonals:
    """The diagonals of a table that two loops fill.

    Args:
        outer: The loop over the rows.
        inner: The loop over the columns.
        op: Makes the nodes for tables that are not empty.
    """

    def __init__(self, outer: ir.Node, inner: ir.Node, op: Builder) -> None:
        self.initial, self.op = outer.inputs[2], op
        self.height, self.width = outer.inputs[0], inner.inputs[0]
        self.cells = Cells(outer, inner, op)

    def table(self) -> ir.Value | None:
        """The table after both loops; None if its cells are not of this kind."""
        if not self.cells.read():
            return None
        op, cells = self.op, self.cells
        self.count = op.Sub(op.Add(self.height, self.width), _ONE)
        self.numbers = op.Unsqueeze(op.Range(_ZERO, self.count, _ONE), [1])
        rows = op.Transpose(cells.rows, perm=[1, 0])
        self.across = op.Sub(self.numbers, rows)  # columns by diagonal and row, some outside
        inside = op.Min(op.Max(self.across, _ZERO), op.Sub(self.width, _ONE))
        self.places = op.Add(op.Mul(rows, self.width), inside)
        filled = op.Reshape(self._filled(), [-1])
        back = op.Add(op.Mul(op.Add(cells.rows, cells.columns), self.height), cells.rows)
        values = op.Gather(filled, back, axis=0)
        made: ir.Value = op.ScatterND(self.initial, cells.written(), values)
        return made

    def _filled(self) -> ir.Value:
        """The cells by diagonal and row; what is outside of the table may be anything."""
        op, (row, column) = self.op, self.cells.offsets
        border = op.Gather(self.initial, np.asarray(row - 1), axis=0)
        side = op.Gather(self.initial, np.asarray(column - 1), axis=1)
        height = op.Unsqueeze(self.height, [0])
        side = op.Slice(side, [row - 1], op.Add(height, [row]), [0])
        ends = op.Min(op.Add(self.numbers, np.asarray(2)), self.width)
        tops = op.Gather(border, op.Add(ends, np.asarray(column - 1)), axis=0)
        self.below = op.Slice(side, [1], [_END], [0])
        first = op.Concat(op.Slice(border, [column], [column + 1], [0]), self.below, axis=0)
        corner = op.Slice(side, [0], [-1], [0])
        starts = op.Equal(self.across, np.asarray(-1))  # left of the first column
        body, rows = self._body(tops, starts)
        made = op.node(
            "Scan", first, corner, *rows, outputs=3, body=body, num_scan_inputs=len(rows)
        )
        for value, size in zip(made, (1, 1, 2), strict=True):
            value.type, value.shape = self.cells.type, ir.Shape([None] * size)
        filled: ir.Value = made[2]
        return filled

    def _body(self, tops: ir.Value, starts: ir.Value) -> tuple[ir.Graph, list[ir.Value]]:
        """One diagonal from the two before, and what it takes a row of.

        The first element of each diagonal is above the table.
        """
        op = self.op.within(self.op.scope)
        before = op.formal("before", self.cells.type.dtype, 1)
        corner = op.formal("corner", self.cells.type.dtype, 1)
        rows: dict[ir.Value, ir.Value] = {}

        def row_of(x: ir.Value) -> ir.Value:
            assert x.dtype is not None
            return rows.setdefault(x, op.formal("row", x.dtype, 1))

        up = op.Slice(before, [0], [-1], [0])
        left = op.Slice(before, [1], [_END], [0])
        neighbours = {"up": up, "left": left, "corner": corner}
        values = self.cells.along(neighbours, lambda grid: row_of(self._skewed(grid)), op)
        values = op.Where(row_of(starts), self.below, values)
        after = op.Concat(row_of(tops), values, axis=0)
        self.op.initializers += op.initializers
        formals = [before, corner, *rows.values()]
        body = ir.Graph(formals, [after, up, values], nodes=op.nodes, name="diagonal")
        return body, list(rows)

    def _skewed(self, grid: ir.Value) -> ir.Value:
        """What was computed for all cells, by diagonal and row."""
        made: ir.Value = self.op.Gather(self.op.Reshape(grid, [-1]), self.places, axis=0)
        return made
