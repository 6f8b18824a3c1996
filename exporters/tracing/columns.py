"""One leaf of every item of a list whose length only run time knows.

Items that always have one shape (numbers do) stand along a new first axis of one tensor; others in
an ONNX sequence. A list of tuples is several columns.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from exporters.tracing.graph import INT64_MAX
from exporters.tracing.scalars import ScalarRecord, TracedInt

if TYPE_CHECKING:
    from collections.abc import Sequence

    from exporters.tracing.trace import Trace

__all__ = ["NUMBERS", "Column", "ItemType", "joined_types"]

NUMBERS = {bool: ir.DataType.BOOL, int: ir.DataType.INT64, float: ir.DataType.DOUBLE}


@dataclasses.dataclass(frozen=True, slots=True)
class ItemType:
    """What a column's items are.

    Attributes:
        dtype: Element type.
        rank: Number of dims.
        number: Python type, None for arrays.
        dims: The sizes that all items have; None where they may differ, or only run time knows.
        varies: Whether sizes may differ from item to item.
        seen: The shape that an item had.
    """

    dtype: ir.DataType
    rank: int = 0
    number: type | None = None
    dims: tuple[int | None, ...] = ()
    varies: bool = False
    seen: tuple[int, ...] = dataclasses.field(default=(), compare=False)

    @property
    def stacks(self) -> bool:
        """Whether all items have one known shape."""
        return all(isinstance(d, int) for d in self.dims)

    def join(self, other: ItemType) -> ItemType | None:
        """The type of the items of both; None if there is none."""
        if self.number is not None and other.number is not None:
            wide = max(self.number, other.number, key=[bool, int, float].index)
            return ItemType(NUMBERS[wide], 0, wide)
        if (self.number is None) is not (other.number is None):
            number, array = (self, other) if self.number is not None else (other, self)
            fits = number.number is not float or array.dtype.is_floating_point()
            return array if fits and array.rank == 0 else None  # a number, and tensors later
        if (self.dtype, self.rank, self.number) != (other.dtype, other.rank, other.number):
            return None
        pairs = zip(self.dims, other.dims, strict=True)
        dims = tuple(a if a == b else None for a, b in pairs)
        return ItemType(
            self.dtype, self.rank, None, dims, self.varies or other.varies, self.seen or other.seen
        )


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Column:
    """One leaf of every item, at one point of the program.

    Attributes:
        trace: The trace it belongs to.
        type: What all items are.
        worlds: The items in each world.
        stacked: All items along a new first axis.
        sequence: The items as an ONNX sequence.
        items: The items themselves, where they are not in the graph yet.
    """

    trace: Trace
    type: ItemType
    worlds: dict[int, list[Any]]
    stacked: ir.Value | None = None
    sequence: ir.Value | None = None
    items: tuple[Any, ...] | None = None

    def in_world(self, world: int) -> list[Any]:
        """The items in one world."""
        kind = self.type.number
        if self.items is None:
            concrete = list(self.worlds[world])
            return concrete if kind is not None else self._as_arrays(concrete)
        concrete = [_concrete(self.trace, i, world) for i in self.items]
        return self._as_arrays(concrete) if kind is None else [kind(i) for i in concrete]

    def _as_arrays(self, items: list[Any]) -> list[Any]:
        """The items, of which some were numbers before others were arrays."""
        is_array, make = self.trace.frontend.is_array, self.trace.frontend.from_number
        return [x if is_array(x) else make(x, self.type.dtype) for x in items]

    # The graph's side

    def as_stacked(self) -> ir.Value:
        """All items along a new first axis."""
        if self.stacked is not None:
            return self.stacked
        op, kind = self.trace.builder, self.type
        if self.sequence is not None:
            value = op.once(
                ("stacked", self.sequence),
                lambda _: op.emit("ConcatFromSequence", self.sequence, axis=0, new_axis=1),
                self.sequence,
            )
            value.type = ir.TensorType(kind.dtype)
        elif not self.items:
            return op.constant(np.zeros([0, *(d or 0 for d in kind.dims)], kind.dtype.numpy()))
        else:
            rows = [self._row(x) for x in self.items]
            value = op.Concat(*rows, axis=0) if len(rows) > 1 else rows[0]
        if value.shape is None:
            value.shape = ir.Shape([None, *kind.dims])
        return value

    def as_sequence(self) -> ir.Value:
        """The items as an ONNX sequence."""
        if self.sequence is not None:
            return self.sequence
        op = self.trace.builder
        if self.stacked is not None:
            stacked = self.stacked
            value = op.once(
                ("sequence", stacked),
                lambda _: op.emit("SplitToSequence", stacked, axis=0, keepdims=0),
                stacked,
            )
        elif self.items:
            value = op.emit("SequenceConstruct", *map(self._value, self.items))
        else:
            value = op.emit("SequenceEmpty", dtype=self.type.dtype)
        return self._typed(value)

    def _typed(self, sequence: ir.Value) -> ir.Value:
        sequence.type = ir.SequenceType(ir.TensorType(self.type.dtype))
        return sequence

    def _value(self, item: Any) -> ir.Value:
        from exporters.tracing.leaves import LeafType, leaf_value  # columns are leaves themselves

        kind = self.type
        wanted = LeafType(
            "array" if kind.number is None else "number", kind.dtype, kind.rank, kind.number
        )
        value = leaf_value(self.trace, item, wanted)
        return self.trace.builder.cast(value, kind.dtype)

    def _row(self, item: Any) -> ir.Value:
        """An item with a new first dim."""
        row: ir.Value = self.trace.builder.Unsqueeze(self._value(item), [0])
        return row

    def blank(self) -> Any:
        """An item that stands for one that is not there."""
        if self.type.number is not None:
            return self.type.number(0)
        sizes = self.type.seen or [d or 1 for d in self.type.dims]
        return self.trace.frontend.zeros(self.type.dtype, sizes)

    def length(self, *, data: bool) -> TracedInt:
        """How many items there are."""
        counts = {w: len(self.in_world(w)) for w in self.trace.active}
        if self.sequence is not None and self.stacked is None:
            value = self.trace.builder.emit("SequenceLength", self.sequence)
            value.shape = ir.Shape([])
            record = ScalarRecord(self.trace, counts, data=data, scalar=value, nonnegative=True)
        else:
            origin = (self.as_stacked(), 0)
            record = ScalarRecord(self.trace, counts, data=data, origin=origin, nonnegative=True)
        return TracedInt(record)

    def take(self, index: Any, picked: dict[int, Any]) -> Any:
        """One item: a handle or a traced number.

        Args:
            index: Its place.
            picked: The item in each world.
        """
        trace, op, kind = self.trace, self.trace.builder, self.type
        place = op.operand(index, ir.DataType.INT64)
        if self.sequence is not None and self.stacked is None:
            value = op.emit("SequenceAt", self.sequence, place)
            value.type = ir.TensorType(kind.dtype)
            value.shape = ir.Shape(kind.dims)
        else:
            value = op.Gather(self.as_stacked(), place, axis=0)
        if kind.number is None:
            return trace.frontend.track_value(picked, value, dims=kind.dims, unbacked=kind.varies)
        value.shape = ir.Shape([])
        scalar = op.cast(value, NUMBERS[kind.number])
        return trace.number(ScalarRecord(trace, picked, data=True, scalar=scalar), kind.number)

    # Changes: each returns another column

    def _with(
        self,
        worlds: dict[int, list[Any]],
        *,
        stacked: ir.Value | None = None,
        sequence: ir.Value | None = None,
        kind: ItemType | None = None,
    ) -> Column:
        kind = kind or self.type
        if stacked is not None:
            stacked.type = ir.TensorType(kind.dtype)
            stacked.shape = ir.Shape([None, *kind.dims])
        if sequence is not None:
            self._typed(sequence)
        return Column(self.trace, kind, worlds, stacked, sequence)

    @property
    def _in_rows(self) -> bool:
        """Whether changes keep the items stacked."""
        return self.type.stacks or (self.sequence is None and self.stacked is not None)

    def insert(
        self, worlds: dict[int, list[Any]], item: Any, kind: ItemType, place: Any = None
    ) -> Column:
        """An item more: at the end, or before a place.

        Args:
            worlds: The items afterwards.
            item: The item.
            kind: The type of all items afterwards.
            place: Where; None for the end.
        """
        op = self.trace.builder
        widened = dataclasses.replace(self, type=kind)
        if kind.stacks:
            base, row = op.cast(widened.as_stacked(), kind.dtype), widened._row(item)
            if place is None:
                return self._with(worlds, stacked=op.Concat(base, row, axis=0), kind=kind)
            at = _vector(op, place)
            parts = (op.Slice(base, [0], at, [0]), row, op.Slice(base, at, [INT64_MAX], [0]))
            return self._with(worlds, stacked=op.Concat(*parts, axis=0), kind=kind)
        where = [] if place is None else [op.operand(place, ir.DataType.INT64)]
        sequence = op.emit("SequenceInsert", self.as_sequence(), widened._value(item), *where)
        return self._with(worlds, sequence=sequence, kind=kind)

    def erase(self, worlds: dict[int, list[Any]], place: Any) -> Column:
        """An item less."""
        op = self.trace.builder
        if not self._in_rows:
            at = op.operand(place, ir.DataType.INT64)
            return self._with(worlds, sequence=op.emit("SequenceErase", self.as_sequence(), at))
        base = self.as_stacked()
        if not isinstance(place, TracedInt) and place in (0, -1):
            bounds = (1, INT64_MAX) if place == 0 else (0, -1)
            return self._with(worlds, stacked=op.Slice(base, [bounds[0]], [bounds[1]], [0]))
        first = self._from_start(place)
        rest = op.Slice(base, op.Add(first, 1), [INT64_MAX], [0])
        return self._with(worlds, stacked=op.Concat(op.Slice(base, [0], first, [0]), rest, axis=0))

    def _from_start(self, place: Any) -> ir.Value:
        """A place, perhaps counted from the end, as INT64 of shape [1]."""
        op = self.trace.builder
        at = _vector(op, place)
        if isinstance(place, TracedInt) and place.record.nonnegative:
            return at
        return op.Where(op.Less(at, 0), op.Add(at, self.length(data=True).vector()), at)

    def replace(
        self, worlds: dict[int, list[Any]], place: Any, item: Any, kind: ItemType
    ) -> Column:
        """Another item in a place."""
        op = self.trace.builder
        widened = dataclasses.replace(self, type=kind)
        if kind.stacks:
            base = op.cast(widened.as_stacked(), kind.dtype)
            at = op.Unsqueeze(self._from_start(place), [0])
            stacked = op.ScatterND(base, at, widened._row(item))
            return self._with(worlds, stacked=stacked, kind=kind)
        length = op.Squeeze(self.length(data=True).vector(), [0])
        number = op.operand(place, ir.DataType.INT64)
        at = op.Where(op.Less(number, 0), op.Add(number, length), number)
        erased = self._typed(op.emit("SequenceErase", self.as_sequence(), at))
        return self._with(
            worlds, sequence=op.emit("SequenceInsert", erased, widened._value(item), at), kind=kind
        )

    def join(self, other: Column) -> Column:
        """The items of both."""
        op = self.trace.builder
        kind = self.type.join(other.type)
        assert kind is not None
        worlds = {w: self.in_world(w) + other.in_world(w) for w in self.trace.active}
        first, second = (dataclasses.replace(c, type=kind) for c in (self, other))
        if kind.stacks or (first._in_rows and second._in_rows):
            parts = (op.cast(c.as_stacked(), kind.dtype) for c in (first, second))
            return self._with(worlds, stacked=op.Concat(*parts, axis=0), kind=kind)
        if other.items is not None:
            joined = first.as_sequence()
            for item in other.items:
                joined = self._typed(op.emit("SequenceInsert", joined, second._value(item)))
            return self._with(worlds, sequence=joined, kind=kind)
        order = op.Range(0, op.Squeeze(other.length(data=True).vector(), [0]), 1)
        return self._with(worlds, sequence=_inserted(op, first, second, order), kind=kind)

    def gather(self, worlds: dict[int, list[Any]], order: ir.Value) -> Column:
        """The items at some places.

        Args:
            worlds: They in each world.
            order: Their places, INT64 of rank 1.
        """
        op = self.trace.builder
        if self._in_rows:
            return self._with(worlds, stacked=op.Gather(self.as_stacked(), order, axis=0))
        empty = Column(self.trace, self.type, {}, items=())
        return self._with(worlds, sequence=_inserted(op, empty, self, order))

    def cut(self, worlds: dict[int, list[Any]], bounds: slice) -> Column:
        """Some of the items in a row."""
        op = self.trace.builder
        step = 1 if bounds.step is None else bounds.step
        backwards = not isinstance(step, TracedInt) and step < 0
        ends = (INT64_MAX, -INT64_MAX) if backwards else (0, INT64_MAX)
        start, stop = (
            end if bound is None else bound
            for bound, end in zip((bounds.start, bounds.stop), ends, strict=True)
        )
        cut = (_vector(op, start), _vector(op, stop), [0], _vector(op, step))
        if self._in_rows:
            return self._with(worlds, stacked=op.Slice(self.as_stacked(), *cut))
        places = op.Range(0, op.Squeeze(self.length(data=True).vector(), [0]), 1)
        return self.gather(worlds, op.Slice(places, *cut))


def _vector(op: Any, place: Any) -> Any:
    return op.operand([place]) if isinstance(place, TracedInt) else [place]


def _inserted(op: Any, first: Column, second: Column, order: ir.Value) -> ir.Value:
    """The sequence of one column with items of another, at some places, inserted at its end."""
    carried = [("sequence", first.as_sequence())]
    source = second.as_sequence()

    def body(number: ir.Value, held: ir.Value) -> ir.Value:
        place = op.Gather(order, number, axis=0)
        item = op.emit("SequenceAt", source, place)
        item.type = ir.TensorType(first.type.dtype)
        grown: ir.Value = op.emit("SequenceInsert", held, item)
        return grown

    count = op.Squeeze(op.Shape(order), [0])
    return _counted_loop(op, count, carried[0][1], body)


def _counted_loop(op: Any, count: ir.Value, start: ir.Value, body: Any) -> ir.Value:
    """A ``Loop`` that carries one value."""
    from exporters.tracing.graph import Block

    block = Block("loop", op.block)
    number, condition, held = (
        ir.Value(name=op.unique_name(n)) for n in ("iteration", "condition", "held")
    )
    number.type, number.shape = ir.TensorType(ir.DataType.INT64), ir.Shape([])
    condition.type, condition.shape = ir.TensorType(ir.DataType.BOOL), ir.Shape([])
    held.type = start.type
    for value in (number, condition, held):
        value.meta["block"] = block
    outer, op.block = op.block, block
    try:
        result = body(number, held)
        result.type = start.type
        again = op.emit("Identity", condition)
        again.type, again.shape = condition.type, condition.shape
    finally:
        op.block = outer
    graph = ir.Graph(
        [number, condition, held], [again, result], nodes=block.nodes, name=op.unique_name("body")
    )
    made: ir.Value = op.emit("Loop", count, None, start, body=graph)
    made.type = start.type
    return made


def _concrete(trace: Trace, item: Any, world: int) -> Any:
    from exporters.tracing.leaves import Dummy  # columns are leaves themselves

    if isinstance(item, Dummy):
        return trace.frontend.zeros_like(trace.frontend.concrete(item.like, world))
    return trace.frontend.concrete(item, world)


def joined_types(types: Sequence[ItemType]) -> ItemType | None:
    """The type of the items of several columns; None if there is none."""
    found: ItemType | None = types[0]
    for kind in types[1:]:
        found = None if found is None else found.join(kind)
    return found
