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

__all__ = ["NUMBERS", "Column", "ItemType", "concrete_item", "joined_types"]

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
        nested: What the items of the items are, which are lists: in the graph they are tensors with
            one dim more.
        open: Whether no item was ever set, so that they may become anything.
    """

    dtype: ir.DataType
    rank: int = 0
    number: type | None = None
    dims: tuple[int | None, ...] = ()
    varies: bool = False
    seen: tuple[int, ...] = dataclasses.field(default=(), compare=False)
    nested: ItemType | None = None
    open: bool = False

    @property
    def is_blank(self) -> bool:
        """Whether all items are empty lists."""
        return self.nested is not None and self.nested.open

    @classmethod
    def of_lists(cls, nested: ItemType) -> ItemType:
        """The type of items that are lists."""
        return cls(nested.dtype, nested.rank + 1, None, (None, *nested.dims), nested=nested)

    @property
    def stacks(self) -> bool:
        """Whether all items have one known shape."""
        return all(isinstance(d, int) for d in self.dims)

    def join(self, other: ItemType) -> ItemType | None:
        """The type of the items of both; None if there is none."""
        if self.open or other.open:
            return other if self.open else self
        if self.nested is not None and other.nested is not None:
            inner = self.nested.join(other.nested)
            if inner is None:
                return None
            return dataclasses.replace(
                ItemType.of_lists(inner), varies=self.varies or other.varies
            )
        if (self.nested is None) is not (other.nested is None):
            return None
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

    @classmethod
    def of_rows(cls, trace: Trace, columns: Sequence[Column]) -> Column:
        """The items of several columns side by side, as lists."""
        nested = joined_types([c.type for c in columns])
        assert nested is not None
        op, kind = trace.builder, ItemType.of_lists(nested)
        rows = {w: [c.in_world(w) for c in columns] for w in trace.active}
        worlds = {w: list(map(list, zip(*found, strict=True))) for w, found in rows.items()}
        parts = (op.Unsqueeze(op.cast(c.as_stacked(), nested.dtype), [1]) for c in columns)
        return Column(trace, kind, {}, items=())._with(worlds, stacked=op.Concat(*parts, axis=1))

    def blank_as(self, kind: ItemType) -> Column:
        """As many items of another type that stand for none."""
        if kind.open:
            return self
        op = self.trace.builder
        blank = Column(self.trace, kind, {}).blank()
        worlds = {w: [blank] * len(self.in_world(w)) for w in self.trace.active}
        if self.items == ():
            return Column(self.trace, kind, {}, items=())
        sizes = op.constant(np.asarray([d or 0 for d in kind.dims], np.int64))
        shape = op.Concat(self.length(data=True).vector(), sizes, axis=0)
        stacked = op.Expand(op.constant(np.zeros([], kind.dtype.numpy())), shape)
        return self._with(worlds, stacked=stacked, kind=kind)

    def in_world(self, world: int) -> list[Any]:
        """The items in one world."""
        kind = self.type.number
        if self.items is None:
            if world not in self.worlds:  # it was left behind
                world = next(iter(self.worlds))
            concrete = list(self.worlds[world])
            return concrete if kind is not None else self._as_arrays(concrete)
        concrete = [concrete_item(self.trace, i, world) for i in self.items]
        return self._as_arrays(concrete) if kind is None else [kind(i) for i in concrete]

    def _as_arrays(self, items: list[Any]) -> list[Any]:
        """The items, of which some were numbers before others were arrays."""
        if self.type.nested is not None:
            return list(map(list, items))
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
        op = self.trace.builder
        if self.sequence is not None:
            held = self.sequence.type
            if held is None or held.dtype == self.type.dtype:
                return self.sequence
            return _cast_items(op, self)
        if self.stacked is not None:
            stacked = op.cast(self.stacked, self.type.dtype)
            value = op.once(
                ("sequence", stacked),
                lambda _: op.emit("SplitToSequence", stacked, axis=0, keepdims=0),
                stacked,
            )
        elif self.items:
            value = op.emit("SequenceConstruct", *map(self.value_of, self.items))
        else:
            value = op.emit("SequenceEmpty", dtype=self.type.dtype)
        return self._typed(value)

    def _typed(self, sequence: ir.Value) -> ir.Value:
        sequence.type = ir.SequenceType(ir.TensorType(self.type.dtype))
        return sequence

    def value_of(self, item: Any) -> ir.Value:
        """An item as a value of the graph."""
        from exporters.tracing.leaves import LeafType, leaf_value  # columns are leaves themselves

        kind = self.type
        if kind.nested is not None:
            row = (
                item if isinstance(item, Column) else Column(self.trace, kind.nested, {}, items=())
            )
            value = dataclasses.replace(row, type=kind.nested).as_stacked()
        else:
            wanted = LeafType(
                "array" if kind.number is None else "number", kind.dtype, kind.rank, kind.number
            )
            value = leaf_value(self.trace, item, wanted)
        return self.trace.builder.cast(value, kind.dtype)

    def _row(self, item: Any) -> ir.Value:
        """An item with a new first dim."""
        row: ir.Value = self.trace.builder.Unsqueeze(self.value_of(item), [0])
        return row

    def blank(self) -> Any:
        """An item that stands for one that is not there."""
        if self.type.nested is not None:
            return []
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
        """One item: a handle, a traced number, or a column of a list's items.

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
        if kind.nested is not None:
            value.type, value.shape = ir.TensorType(kind.dtype), ir.Shape(kind.dims)
            return Column(trace, kind.nested, picked, stacked=value)
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
        sequence = op.emit("SequenceInsert", widened.as_sequence(), widened.value_of(item), *where)
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
        erased = widened._typed(op.emit("SequenceErase", widened.as_sequence(), at))
        return self._with(
            worlds,
            sequence=op.emit("SequenceInsert", erased, widened.value_of(item), at),
            kind=kind,
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
                joined = self._typed(op.emit("SequenceInsert", joined, second.value_of(item)))
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
    source = second.as_sequence()

    def body(number: ir.Value, held: ir.Value) -> ir.Value:
        place = op.Gather(order, number, axis=0)
        item = op.emit("SequenceAt", source, place)
        item.type = ir.TensorType(second.type.dtype)
        grown: ir.Value = op.emit("SequenceInsert", held, op.cast(item, first.type.dtype))
        return grown

    count = op.Squeeze(op.Shape(order), [0])
    return _counted_loop(op, count, first.as_sequence(), body)


def _cast_items(op: Any, column: Column) -> ir.Value:
    """A column's sequence with the element type that the column has now."""
    held = column.sequence
    assert held is not None
    assert held.type is not None
    kind = dataclasses.replace(column.type, dtype=held.type.dtype)
    before = dataclasses.replace(column, type=kind)
    order = op.Range(0, op.Squeeze(before.length(data=True).vector(), [0]), 1)
    empty = Column(column.trace, column.type, {}, items=())
    return column._typed(_inserted(op, empty, before, order))


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


def concrete_item(trace: Trace, item: Any, world: int) -> Any:
    """A list's item in one world."""
    from exporters.tracing.leaves import Dummy, Example  # columns are leaves themselves

    if isinstance(item, Dummy):
        if isinstance(item.like, Column):
            return []
        if isinstance(item.like, Example):
            return Column(trace, item.like.type, {}).blank()
        return trace.frontend.zeros_like(trace.frontend.concrete(item.like, world))
    return (
        item.in_world(world) if isinstance(item, Column) else trace.frontend.concrete(item, world)
    )


def joined_types(types: Sequence[ItemType]) -> ItemType | None:
    """The type of the items of several columns; None if there is none."""
    found: ItemType | None = types[0]
    for kind in types[1:]:
        found = None if found is None else found.join(kind)
    return found
