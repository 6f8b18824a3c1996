"""What the bodies of two nested loops compute for each cell of a table."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from optim_passes.scopes import visible_from
from optim_passes.simplify.tables import ELEMENTWISE, plain, scalars
from optim_passes.values import attribute, producer, rank, scalar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import onnx_ir as ir

    from optim_passes.builder import Builder

__all__ = ["Cells"]

_NEIGHBOURS = {(-1, 0): "up", (0, -1): "left", (-1, -1): "corner"}
_EXTREMES = ("ReduceMax", "ReduceMin")
_AXES_ARE_OPERANDS = 18  # opset from which they are operands of these
_VECTORS = ("Concat", "Reshape", "Squeeze", "Unsqueeze")  # what makes an index of scalars
_ZERO, _ONE = np.asarray(0, np.int64), np.asarray(1, np.int64)


@dataclasses.dataclass(frozen=True, slots=True)
class _Step:
    """An operator that a neighbour's value goes into."""

    op_type: str
    operands: tuple[ir.Value, ...]
    node: ir.Node | None

    def along(self, operands: list[ir.Value], op: Builder) -> ir.Value:
        """The operator on vectors of operands."""
        made: ir.Value
        if self.op_type in _EXTREMES:
            stacked = op.Concat(*(op.Unsqueeze(x, [0]) for x in operands), axis=0)
            made = op.node(self.op_type, stacked, [0], keepdims=0)
        else:
            made = op.node(self.op_type, *operands, attributes_of=self.node)
        return made


class Cells:
    """The cell ``table[i + a, j + b]`` that iteration ``i, j`` writes, and what it is made of.

    Args:
        outer: The loop over ``i``; it carries the table and nothing else.
        inner: The loop over ``j`` in its body.
        op: Makes grids: values for all cells, of rank 2.

    Attributes:
        rows: The numbers ``i``, one below the other.
        columns: The numbers ``j``, side by side.
        offsets: ``a`` and ``b``.
        type: The table's type.
    """

    def __init__(self, outer: ir.Node, inner: ir.Node, op: Builder) -> None:
        self.op, self.inner = op, inner
        self.above: ir.Graph = outer.attributes["body"].as_graph()
        self.body: ir.Graph = inner.attributes["body"].as_graph()
        height, width = outer.inputs[0], inner.inputs[0]
        self.rows: ir.Value = op.Unsqueeze(op.Range(_ZERO, height, _ONE), [1])
        self.columns: ir.Value = op.Unsqueeze(op.Range(_ZERO, width, _ONE), [0])
        self.size: ir.Value = op.Concat(
            op.Unsqueeze(height, [0]), op.Unsqueeze(width, [0]), axis=0
        )
        self.offsets = (0, 0)
        self.type: Any = self.body.inputs[2].type
        self._grids = {self.above.inputs[0]: self.rows, self.body.inputs[0]: self.columns}
        self._reads: dict[ir.Value, tuple[int, int]] = {}
        self._vectors: dict[ir.Value, tuple[ir.Value, ir.Value]] = {}  # rows of outside tables
        self._steps: dict[ir.Value, _Step] = {}
        self._writes: dict[ir.Value, tuple[tuple[int, int], ir.Value]] = {}
        self._result: ir.Value | None = None

    def read(self) -> bool:
        """Whether the bodies could be understood."""
        if not self._walk(n for n in self.above if n is not self.inner):
            return False
        if not self._walk(self.body):
            return False
        written = self._writes.get(plain(self.body.outputs[1]))
        if written is None:
            return False
        (row, column), self._result = written
        self.offsets = row, column
        apart = {(i - row, j - column) for i, j in self._reads.values()}
        inside = all(i >= 0 and j >= 0 for i, j in self._reads.values())
        known = inside and apart <= _NEIGHBOURS.keys() and row > 0 and column > 0
        return known and plain(self._result) in self._steps

    def written(self) -> ir.Value:
        """The indices of all cells."""
        op, (row, column) = self.op, self.offsets
        return self._pairs(
            op.Add(self.rows, np.asarray(row)), op.Add(self.columns, np.asarray(column))
        )

    def along(
        self, neighbours: dict[str, ir.Value], look_up: Callable[[ir.Value], ir.Value], op: Builder
    ) -> ir.Value:
        """The values of some cells, of which none is another's neighbour.

        Args:
            neighbours: The values of their neighbours.
            look_up: Gives what these cells need of a grid.
            op: Makes the nodes.
        """
        row, column = self.offsets
        made: dict[ir.Value, ir.Value] = {
            v: neighbours[_NEIGHBOURS[i - row, j - column]] for v, (i, j) in self._reads.items()
        }
        for value, step in self._steps.items():
            for x in step.operands:
                if x in self._grids and x not in made:
                    made[x] = look_up(self.op.Expand(self._grids[x], self.size))
            made[value] = step.along([made.get(x, x) for x in step.operands], op)
        assert self._result is not None
        return made[self._result]

    # Nodes

    def _walk(self, nodes: Iterable[ir.Node], *, always: bool = True) -> bool:
        return all(self._understand(n, always=always) for n in nodes)

    def _understand(self, node: ir.Node, *, always: bool) -> bool:
        """Note what a node computes; say whether it is of a known kind.

        Args:
            node: Of one of the bodies, or of a branch in them.
            always: Whether it runs for every cell.
        """
        if node.domain:
            return False
        if node.op_type == "If":
            return self._choose(node)
        result = node.outputs[0]
        if node.op_type == "Identity" or (node.op_type in _VECTORS and rank(result) == 1):
            return True
        if node.op_type in ("Gather", "GatherND"):
            return self._pick(node, always=always)
        if node.op_type == "ScatterND":
            return self._write(node)
        if node.op_type in _EXTREMES:
            return self._extreme(node)
        fails = node.op_type in ("Div", "Mod") and not _is_float(result)  # by zero
        if node.op_type not in ELEMENTWISE or rank(result) != 0 or (fails and not always):
            return False
        if any(v is None for v in node.inputs):
            return False
        operands = [plain(v) for v in node.inputs if v is not None]
        return self._compute(result, node.op_type, operands, node)

    def _compute(
        self, result: ir.Value, op_type: str, operands: list[ir.Value], node: ir.Node | None
    ) -> bool:
        if any(x in self._reads or x in self._steps for x in operands):
            if not all(self._is_known(x) for x in operands):
                return False
            self._steps[result] = _Step(op_type, tuple(operands), node)
            return True
        grids = [self._grid(x) for x in operands]
        if any(x is None for x in grids):
            return False
        self._grids[result] = self.op.node(op_type, *grids, attributes_of=node)
        return True

    def _extreme(self, node: ir.Node) -> bool:
        """The smallest or largest of a few scalars."""
        parts = scalars(node.inputs[0]) if rank(node.outputs[0]) == 0 else None
        operands = [plain(x) for x in parts or ()]
        known = all(x in self._reads or x in self._steps for x in operands)
        if not operands or not known or self.op.opset < _AXES_ARE_OPERANDS:
            return False
        self._steps[node.outputs[0]] = _Step(node.op_type, tuple(operands), None)
        return True

    def _is_known(self, x: ir.Value) -> bool:
        return x in self._reads or x in self._steps or self._grid(x) is not None

    def _grid(self, x: ir.Value) -> ir.Value | None:
        """A value for all cells, or a scalar from outside."""
        if x in self._grids:
            return self._grids[x]
        return x if visible_from(x, self.op.scope) and rank(x) == 0 else None

    def _pick(self, node: ir.Node, *, always: bool) -> bool:
        """An element of the table, or of a tensor from outside."""
        x, index = plain(node.inputs[0]), node.inputs[1]
        places = self._places(node, index)
        if places is None:
            return False
        result = node.outputs[0]
        if x in self._vectors and len(places) == 1:
            x, first = self._vectors[x]
            places = [first, *places]
        if rank(x) == 2 and len(places) == 1:
            self._vectors[result] = x, places[0]
            return True
        if x is self.body.inputs[2]:
            offsets = self._offsets(places)
            if offsets is not None:
                self._reads[result] = offsets
            return offsets is not None
        if not always or not visible_from(x, self.op.scope):
            return False  # a place may be outside of the tensor in the cells that do not look
        return rank(x) == len(places) <= 2 and self._take(result, x, places)

    def _places(self, node: ir.Node, index: ir.Value | None) -> list[ir.Value] | None:
        """The scalars that choose an element or a row."""
        if node.op_type == "GatherND":
            found = scalars(index) if attribute(node, "batch_dims", 0) == 0 else None
            return None if found is None else [plain(v) for v in found]
        first = attribute(node, "axis", 0) == 0 and index is not None and rank(index) == 0
        return [plain(index)] if first and index is not None else None

    def _take(self, result: ir.Value, x: ir.Value, places: list[ir.Value]) -> bool:
        grids = [self._grids.get(p) for p in places]
        if any(g is None for g in grids):
            return False
        if len(grids) == 1:
            self._grids[result] = self.op.Gather(x, grids[0], axis=0)
        else:
            self._grids[result] = self.op.GatherND(x, self._pairs(*grids))
        return True

    def _pairs(self, rows: ir.Value | None, columns: ir.Value | None) -> ir.Value:
        op = self.op
        both = [op.Unsqueeze(op.Expand(x, self.size), [2]) for x in (rows, columns)]
        made: ir.Value = op.Concat(*both, axis=2)
        return made

    def _offsets(self, places: list[ir.Value] | None) -> tuple[int, int] | None:
        """``a, b`` where two places are ``i + a, j + b``."""
        if places is None or len(places) != 2:
            return None
        row, column = (self._offset(p, k) for k, p in enumerate(places))
        return None if row is None or column is None else (row, column)

    def _offset(self, place: ir.Value, axis: int) -> int | None:
        """``k`` where a place is ``i + k``, or ``j + k`` for the second axis."""
        place = plain(place)
        if place is (self.above, self.body)[axis].inputs[0]:
            return 0
        node = producer(place, "Add", "Sub")
        if node is None:
            return None
        left, right = node.inputs
        number, sign = scalar(right), 1 if node.op_type == "Add" else -1
        if number is None and node.op_type == "Add":
            left, number = right, scalar(left)
        rest = None if left is None else self._offset(left, axis)
        return None if rest is None or number is None else rest + sign * int(number)

    # The table

    def _write(self, node: ir.Node) -> bool:
        table, index, value = node.inputs
        offsets = self._offsets(scalars(index))
        if table is None or plain(table) is not self.body.inputs[2] or offsets is None:
            return False
        if value is None or rank(value) != 0 or attribute(node, "reduction", "none") != "none":
            return False
        self._writes[node.outputs[0]] = offsets, plain(value)
        return True

    def _choose(self, node: ir.Node) -> bool:
        """An If that writes one value or another, or gives one or another."""
        ways: list[ir.Graph] = [attribute(node, f"{n}_branch") for n in ("then", "else")]
        condition = plain(node.inputs[0])
        if not all(self._walk(w, always=False) for w in ways):
            return False
        for index, result in enumerate(node.outputs):
            first, second = (plain(w.outputs[index]) for w in ways)
            one, other = self._writes.get(first), self._writes.get(second)
            if one is not None and other is not None and one[0] == other[0]:
                self._writes[result] = one[0], result
                first, second = one[1], other[1]
            elif one is not None or other is not None or rank(result) != 0:
                return False
            if not self._compute(result, "Where", [condition, first, second], None):
                return False
        return True


def _is_float(value: ir.Value) -> bool:
    return value.dtype is not None and value.dtype.is_floating_point()
