"""Counted loops over scalars become operators on whole tensors."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from optim_passes.builder import Builder
from optim_passes.rewriting import Outcome, Pass, commit
from optim_passes.scopes import Names, visible_from
from optim_passes.values import (
    attribute,
    dims,
    ints,
    norm_axis,
    producer,
    rank,
    same_shape,
    scalar,
    static_shape,
)

if TYPE_CHECKING:
    from optim_passes.scopes import Scope

__all__ = ["ELEMENTWISE", "LoopTablePass", "is_counted", "plain", "scalars"]

# fmt: off
ELEMENTWISE = frozenset({
    "Abs", "Add", "And", "BitShift", "Cast", "Ceil", "Clip", "Cos", "Div", "Equal", "Erf", "Exp",
    "Floor", "Greater", "GreaterOrEqual", "Identity", "IsInf", "IsNaN", "Less", "LessOrEqual", "Log", "Max",
    "Min", "Mod", "Mul", "Neg", "Not", "Or", "Pow", "Reciprocal", "Relu", "Round", "Sigmoid",
    "Sign", "Sin", "Sqrt", "Sub", "Tanh", "Where", "Xor",
})
# fmt: on
_REDUCTIONS = frozenset(
    {
        "ReduceL1",
        "ReduceL2",
        "ReduceLogSum",
        "ReduceLogSumExp",
        "ReduceMax",
        "ReduceMean",
        "ReduceMin",
        "ReduceProd",
        "ReduceSum",
        "ReduceSumSquare",
    }
)  # fmt: skip
_GAIN = 2  # nodes that a loop has to lose, or it stays
_NARROW = 1024  # elements of a row, above which tables of rows leave the cache


class LoopTablePass(Pass):
    """What the iterations of a counted ``Loop`` compute from their number is computed before it.

    Scalars, and rows of what is outside, in loops without a condition, so that every row of a table
    is of an iteration that runs. What is carried from the iteration before is a shifted table, a count
    (``n = n + k``, perhaps in a branch) a ``CumSum``. Elements written to places that are never the
    same ones are written at once, what is appended is appended at once. A loop of which nothing is
    left disappears.
    """

    def run(self, scope: Scope, outcome: Outcome) -> None:
        """Rewrite the loops of one body."""
        names: Names | None = None
        for node in list(scope.body):
            if node.op_type != "Loop" or node.domain or not is_counted(node):
                continue
            names = names or Names(scope.model)
            op = Builder(scope, names, [node])
            with op.discarding():
                done = _Tables(node, op).apply()
            if not done:
                op.discard()
            outcome.rewrites += done


def is_counted(node: ir.Node) -> bool:
    """Whether a Loop runs as often as its first operand says."""
    body: ir.Graph = node.attributes["body"].as_graph()
    start, again = node.inputs[1], plain(body.outputs[0])
    goes_on = scalar(again) is True or again is body.inputs[1]
    return node.inputs[0] is not None and goes_on and (start is None or scalar(start) is True)


def plain(value: ir.Value | None) -> ir.Value:
    """What Identity nodes pass on."""
    assert value is not None
    node = producer(value, "Identity")
    while node is not None and node.inputs[0] is not None:
        value = node.inputs[0]
        node = producer(value, "Identity")
    return value


@dataclasses.dataclass(frozen=True, slots=True)
class _Update:
    """How an iteration changes a carried value.

    Attributes:
        made: The changed value.
        node: The If or Where that decides whether it is changed; None if it always is.
        when: What its condition is then.
    """

    made: ir.Value
    node: ir.Node | None = None
    when: bool = True


class _Tables:
    """Tables of one loop: a row for each iteration.

    Args:
        node: The loop.
        op: Makes nodes before it.
    """

    def __init__(self, node: ir.Node, op: Builder) -> None:
        self.node, self.op = node, op
        self.body: ir.Graph = node.attributes["body"].as_graph()
        self.rows: dict[ir.Value, ir.Value] = {}
        self.finals: dict[int, ir.Value] = {}
        self.counts: dict[ir.Value, _Update] = {}  # of carried values that only grow
        self.trips: ir.Value = op.Max(node.inputs[0], np.asarray(0, np.int64))
        self.numbers: ir.Value = op.Range(
            np.asarray(0, np.int64), self.trips, np.asarray(1, np.int64)
        )
        self.rows[self.body.inputs[0]] = self.numbers
        self.carried = range(2, len(self.body.inputs))

    def apply(self) -> bool:
        """Whether the loop became smaller."""
        while self._more():
            pass
        for index in self.carried:
            if index not in self.finals:
                self._write(index)
        results = [self._result(i) for i in range(len(self.node.outputs))]
        used = [v.is_graph_output() or bool(v.uses()) for v in self.node.outputs]
        if all(r is not None for r, u in zip(results, used, strict=True) if u):
            commit(self.op, self.node, self.node.outputs, results, [self.node])
            return True
        return self._look_up()

    def _result(self, index: int) -> ir.Value | None:
        """An output of the loop."""
        if index + 2 in self.carried:
            return self.finals.get(index + 2)
        return self.rows.get(self.body.outputs[index + 1])

    # Rows

    def _more(self) -> bool:
        known = len(self.rows), len(self.finals)
        for node in self.body:
            if len(node.outputs) == 1 and node.outputs[0] not in self.rows:
                self._tabulate(node)
        for index in self.carried:
            if index not in self.finals:
                self._carry(index)
        return (len(self.rows), len(self.finals)) != known

    def _operand(self, value: ir.Value | None, largest: int = 0) -> ir.Value | None:
        """A table, or what is the same in every iteration and has a rank up to ``largest``."""
        if value in self.rows:
            return self.rows[value]
        if value is None or not visible_from(value, self.op.scope):
            return None
        known = rank(value)
        return value if known is not None and known <= largest else None

    def _tabulate(self, node: ir.Node) -> None:
        result = node.outputs[0]
        if node.domain or rank(result) is None:
            return
        if node.op_type == "Gather" and node.inputs[1] in self.rows:
            self._pick(node)
        elif node.op_type in ELEMENTWISE:
            self._spread(node)
        elif node.inputs[0] in self.rows and _is_narrow(result):
            self._reduce(node)

    def _pick(self, node: ir.Node) -> None:
        """``Gather(x, i)`` of what is outside."""
        x, index = node.inputs
        if x is None or index is None or not visible_from(x, self.op.scope) or not rank(x):
            return
        if norm_axis(attribute(node, "axis", 0), rank(x) or 0) != 0:
            return
        if index is self.body.inputs[0] and self._is_as_long(x):
            self.rows[node.outputs[0]] = x
        else:
            self._keep(node.outputs[0], self.op.Gather(x, self.rows[index], axis=0))

    def _is_as_long(self, x: ir.Value) -> bool:
        """Whether there is an iteration for each row."""
        count = producer(self.node.inputs[0], "Squeeze", "Gather")
        shape = producer(count.inputs[0], "Shape") if count is not None else None
        if count is None or shape is None or shape.inputs[0] is not x:
            return False
        first = attribute(shape, "start", 0) == 0
        if count.op_type == "Gather":
            return first and scalar(count.inputs[1]) == 0
        return first and attribute(shape, "end") == 1

    def _spread(self, node: ir.Node) -> None:
        """An element-wise operator."""
        operands, size = [], rank(node.outputs[0]) or 0
        if not any(v in self.rows for v in node.inputs) or not _is_narrow(node.outputs[0]):
            return
        for value in node.inputs:
            operand = self._operand(value, size)
            if operand is None or value is None:
                return
            missing = size - (rank(value) or 0)
            if value in self.rows and missing:
                operand = self.op.Unsqueeze(operand, [*range(1, missing + 1)])
            operands.append(operand)
        self._keep(node.outputs[0], self.op.node(node.op_type, *operands, attributes_of=node))

    def _reduce(self, node: ir.Node) -> None:
        """What makes one number of a row, or a row of a row."""
        (x, *rest), op = node.inputs, self.op
        size = rank(x)
        if x is None or not size:
            return
        table = self.rows[x]
        if node.op_type in ("ArgMax", "ArgMin", "Softmax", "LogSoftmax"):
            default = 0 if node.op_type.startswith("Arg") else -1
            axis = norm_axis(attribute(node, "axis", default), size) - size
            made = op.node(node.op_type, table, attributes_of=node, axis=axis)
        elif node.op_type in _REDUCTIONS and "axes" not in node.attributes:
            axes = ints(rest[0]) if rest and rest[0] is not None else [*range(size)]
            if axes is None or attribute(node, "noop_with_empty_axes", 0):
                return
            axes = [norm_axis(a, size) - size for a in axes]
            made = op.node(node.op_type, table, axes, attributes_of=node)
        elif node.op_type == "MatMul" and rest[0] is not None and rank(rest[0]) == 2:
            if not visible_from(rest[0], op.scope):
                return
            made = op.MatMul(table, rest[0])
        else:
            return
        self._keep(node.outputs[0], made)

    def _keep(self, value: ir.Value, table: ir.Value) -> None:
        table.type = value.type
        table.shape = ir.Shape([None, *(dims(value) or ())])
        self.rows[value] = table

    # Carried values

    def _carry(self, index: int) -> None:
        formal, initial, after = (
            self.body.inputs[index], self.node.inputs[index], self.body.outputs[index - 1],
        )  # fmt: skip
        if initial is None or not _is_alike(initial, after):
            return
        op = self.op
        if after in self.rows:
            every = op.Concat(op.Unsqueeze(initial, [0]), self.rows[after], axis=0)
            self.finals[index] = op.Gather(every, self.trips, axis=0)
            self._keep(formal, op.Slice(every, [0], [-1], [0]))
            return
        update = self._update(formal, after)
        add = None if update is None else producer(update.made, "Add")
        if (
            update is None
            or add is None
            or rank(formal) != 0
            or formal.dtype != ir.DataType.INT64
            or formal not in add.inputs
        ):
            return
        step = self._operand(add.inputs[1 if add.inputs[0] is formal else 0])
        if step is None or add.inputs[0] is add.inputs[1]:
            return
        steps = self._filled(step)
        if update.node is not None:
            taken = self._taken(update)
            if taken is None:
                return
            steps = op.Where(taken, steps, np.asarray(0, np.int64))
        self.finals[index] = op.Add(initial, op.ReduceSum(steps, keepdims=0))
        self._keep(formal, op.Add(initial, op.CumSum(steps, np.asarray(0, np.int64), exclusive=1)))
        first, by = scalar(initial), scalar(step)
        if first is not None and first >= 0 and by is not None and by > 0:
            self.counts[formal] = update

    def _filled(self, x: ir.Value) -> ir.Value:
        """A table, also of what is the same in every iteration."""
        if x in self.rows.values():
            return x
        made: ir.Value = self.op.Expand(x, self.op.Unsqueeze(self.trips, [0]))
        return made

    def _update(self, formal: ir.Value, after: ir.Value) -> _Update | None:
        """How ``after`` comes of ``formal``."""
        after = plain(after)
        node = producer(after, "If", "Where")
        if node is None:
            return _Update(after) if after.graph is self.body else None
        ways = list(node.inputs[1:])
        if node.op_type == "If":
            place = after.index() or 0
            ways = [attribute(node, n).outputs[place] for n in ("then_branch", "else_branch")]
        passed = [plain(v) for v in ways]
        if (passed[0] is formal) == (passed[1] is formal):
            return None
        return _Update(passed[passed[0] is formal], node, passed[1] is formal)

    def _taken(self, update: _Update) -> ir.Value | None:
        """The iterations that change something, as a table of truth values."""
        assert update.node is not None
        condition = self.rows.get(update.node.inputs[0]) if update.node.inputs[0] else None
        if condition is None or update.when:
            return condition
        made: ir.Value = self.op.Not(condition)
        return made

    # Elements written

    def _write(self, index: int) -> None:
        """A carried tensor that is only written to or appended to."""
        formal, initial = self.body.inputs[index], self.node.inputs[index]
        after = self.body.outputs[index - 1]
        update = self._update(formal, after)
        if initial is None or update is None or self._is_read(formal, after, update):
            return
        change = producer(update.made, "ScatterND", "Concat")
        if change is None or change.inputs[0] is not formal:
            return
        way = self._elements if change.op_type == "ScatterND" else self._appended
        made = way(initial, change, update)
        if made is not None:
            made.type, made.shape = initial.type, initial.shape
            if change.op_type == "Concat":
                made.shape = self.node.outputs[index - 2].shape
            self.finals[index] = made

    def _is_read(self, formal: ir.Value, after: ir.Value, update: _Update) -> bool:
        """Whether anything but what changes the value looks at it."""
        written = update.made.producer()
        passed = [u.node for u in formal.uses() if u.node is not written]
        copies = all(n.op_type == "Identity" and not n.outputs[0].uses() for n in passed)
        again = [formal, *(n.outputs[0] for n in passed)]
        outputs = list(self.body.outputs)
        return (
            not copies
            or bool(after.uses() or update.made.uses())
            or outputs.count(after) != 1
            or any(v in outputs for v in again if v is not after)
        )

    def _appended(self, initial: ir.Value, concat: ir.Node, update: _Update) -> ir.Value | None:
        """``xs = Concat(xs, [x])``."""
        parts = scalars(concat.inputs[1]) if len(concat.inputs) == 2 else None
        value = self._operand(parts[0]) if parts is not None and len(parts) == 1 else None
        if value is None or rank(initial) != 1:
            return None
        values: ir.Value | None = self._filled(value)
        if update.node is not None:
            taken = self._taken(update)
            values = None if taken is None else self.op.Compress(values, taken, axis=0)
        if values is None:
            return None
        made: ir.Value = self.op.Concat(initial, values, axis=0)
        return made

    def _elements(self, initial: ir.Value, scatter: ir.Node, update: _Update) -> ir.Value | None:
        """``x[i, j] = v``."""
        places, op = scalars(scatter.inputs[1]), self.op
        if attribute(scatter, "reduction", "none") != "none" or places is None:
            return None
        if rank(initial) != len(places) or rank(scatter.inputs[2]) != 0:
            return None
        columns = [self._operand(v) for v in places]
        value = self._operand(scatter.inputs[2])
        if value is None or any(c is None for c in columns):
            return None
        if not any(self._never_again(v, update) for v in places):
            return None
        where = op.Concat(
            *(op.Unsqueeze(self._filled(c), [1]) for c in columns if c is not None), axis=1
        )
        values = self._filled(value)
        if update.node is not None:
            taken = self._taken(update)
            if taken is None:
                return None
            where, values = op.Compress(where, taken, axis=0), op.Compress(values, taken, axis=0)
        made: ir.Value = op.ScatterND(initial, where, values)
        return made

    def _never_again(self, place: ir.Value, update: _Update) -> bool:
        """Whether a place is another one in every iteration that writes."""
        if place is self.body.inputs[0]:
            return True
        count = self.counts.get(place)
        if count is None:
            return False
        if count.node is None or update.node is None:
            return count.node is None
        same = plain(count.node.inputs[0]) is plain(update.node.inputs[0])
        return same and count.when == update.when

    # What stays a loop

    def _look_up(self) -> bool:
        """Let the loop read the tables, if that makes it smaller."""
        formals = set(self.body.inputs)
        known = [v for v in self.rows if v not in formals]
        gone = {v.producer() for v in known}
        read = [v for v in known if any(use.node not in gone for use in v.uses())]
        # What is one node of the loop's number stays that node.
        wanted = [v for v in read if _is_made(v, gone)]
        staying = {v.producer() for v in read} - {v.producer() for v in wanted}
        if any(v.is_graph_output() for v in known) or len(gone - staying) < len(wanted) + _GAIN:
            return False
        scope = dataclasses.replace(
            self.op.scope, body=self.body, outer=self.op.scope, holder=self.node
        )
        first = next(iter(self.body))
        made = []
        for value in wanted:
            inside = self.op.within(scope)
            row = inside.Gather(self.rows[value], self.body.inputs[0], axis=0)
            row.type, row.shape = value.type, ir.Shape(list(dims(value) or ()))
            made.append((inside, value, row))
        commit(self.op, self.node, [], [], [])
        for inside, value, row in made:
            commit(inside, first, [value], [row], [])
        return True


def _is_alike(a: ir.Value, b: ir.Value) -> bool:
    """Whether one can be the first row of a table of the other."""
    return rank(a) == rank(b) == 0 or (static_shape(a) is not None and same_shape(a, b))


def _is_narrow(value: ir.Value) -> bool:
    shape = static_shape(value)
    return rank(value) == 0 or (shape is not None and math.prod(shape) <= _NARROW)


def _is_made(value: ir.Value, gone: set[Any]) -> bool:
    node = value.producer()
    return node is not None and any(v is not None and v.producer() in gone for v in node.inputs)


def scalars(index: ir.Value | None) -> list[ir.Value] | None:
    """The scalars that a vector is made of."""
    concat = producer(index, "Concat")
    parts = [index] if concat is None else list(concat.inputs)
    found = []
    for part in parts:
        node = producer(part, "Unsqueeze", "Reshape")
        x = None if node is None else node.inputs[0]
        if x is None or rank(x) != 0 or rank(part) != 1:
            return None
        found.append(x)
    return found
