"""Lists whose length only run time knows."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from exporters.tracing.scalars import ScalarRecord, TracedInt

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from exporters.tracing.trace import Trace

__all__ = ["Contents", "ItemType", "ScanBrokenError", "ScanList", "StagedList"]

_NUMBERS = {int: ir.DataType.INT64, float: ir.DataType.DOUBLE, bool: ir.DataType.BOOL}


@dataclasses.dataclass(frozen=True, slots=True)
class ItemType:
    """What a staged list's items are.

    Attributes:
        dtype: Element type.
        rank: Number of dims.
        number: Python type, None for arrays.
    """

    dtype: ir.DataType
    rank: int
    number: type | None


@dataclasses.dataclass(frozen=True, slots=True)
class Contents:
    """The items of a staged list at one point of the program.

    Attributes:
        worlds: The items in each world.
        stacked: All items along a new first axis, if they always have one shape.
        sequence: The items as an ONNX sequence; None if only ``stacked`` is there.
    """

    worlds: dict[int, list[Any]]
    stacked: ir.Value | None
    sequence: ir.Value | None


class StagedList(list[Any]):
    """A list of arrays or numbers of one type, whose length only run time knows.

    It is a real ``list`` (of the first world's items) to whoever checks, and a stacked tensor or an
    ONNX sequence in the graph.

    Args:
        trace: The trace it belongs to.
        contents: Its items.
        item: Their type.
    """

    def __init__(self, trace: Trace, contents: Contents, item: ItemType) -> None:
        super().__init__(next(iter(contents.worlds.values())))
        self.trace = trace
        self.item = item
        self.contents = contents

    def assign(self, contents: Contents) -> None:
        """Hold other items from now on."""
        self.contents = contents
        super().__setitem__(slice(None), next(iter(contents.worlds.values())))

    def at(self, contents: Contents) -> StagedList:
        """A list of the same type with other items."""
        return StagedList(self.trace, contents, self.item)

    __hash__ = None

    def __reduce__(self) -> Any:
        return list, (list.copy(self),)

    # The graph's side

    def sequence(self) -> ir.Value:
        """The items as an ONNX sequence."""
        sequence, stacked, op = self.contents.sequence, self.contents.stacked, self.trace.builder
        if sequence is not None:
            return sequence
        assert stacked is not None

        def make(_: Any) -> ir.Value:
            return self._typed(op.emit("SplitToSequence", stacked, axis=0, keepdims=0))

        return op.once(("sequence", stacked), make, stacked)

    def _typed(self, sequence: ir.Value) -> ir.Value:
        sequence.type = ir.SequenceType(ir.TensorType(self.item.dtype))
        return sequence

    def stacked(self) -> ir.Value:
        """The items along a new first axis."""
        if self.contents.stacked is not None:
            return self.contents.stacked
        value: ir.Value = self.trace.builder.emit(
            "ConcatFromSequence", self.contents.sequence, axis=0, new_axis=1
        )
        value.type = ir.TensorType(self.item.dtype)
        value.shape = ir.Shape([None] * (self.item.rank + 1))
        return value

    def staged_length(self) -> Any:
        """How many items there are: a traced int, or in an eager replay an int."""
        lengths = {w: len(items) for w, items in self.contents.worlds.items()}
        if not self.trace.recording:
            return lengths[self.trace.active[0]]
        if self.contents.stacked is not None:
            record = ScalarRecord(
                self.trace, lengths, data=True, origin=(self.contents.stacked, 0), nonnegative=True
            )
        else:
            value = self.trace.builder.emit("SequenceLength", self.contents.sequence)
            value.shape = ir.Shape([])
            record = ScalarRecord(self.trace, lengths, data=True, scalar=value, nonnegative=True)
        return TracedInt(record)

    def _change(self, change: Any, item: Any = None) -> dict[int, list[Any]]:
        """The items in each active world after ``change(items, item, world)``."""
        worlds = dict(self.contents.worlds)

        def apply(w: int) -> None:
            items = list(worlds[w])
            change(items, self.trace.frontend.concrete(item, w), w)
            worlds[w] = items

        self.trace.in_worlds(apply)
        return worlds

    def _put(self, worlds: dict[int, list[Any]], op_type: str, *inputs: Any) -> None:
        trace = self.trace
        if not trace.recording:
            self.assign(dataclasses.replace(self.contents, worlds=worlds))
            return
        trace.moved()
        values = [trace.frontend.item_value(x, self.item) if i == 0 and op_type == "SequenceInsert"
                  else trace.builder.operand(x, ir.DataType.INT64) for i, x in enumerate(inputs)]  # fmt: skip
        sequence = trace.builder.emit(op_type, self.sequence(), *values)
        self.assign(Contents(worlds, None, self._typed(sequence)))

    # Python's side

    def __len__(self) -> int:
        lengths = {w: len(items) for w, items in self.contents.worlds.items()}
        return int(self.trace.decide(lengths, data=True, asked="len() of the list in"))

    def __bool__(self) -> bool:
        answers = {w: bool(items) for w, items in self.contents.worlds.items()}
        return bool(self.trace.decide(answers, data=True, asked="the truth of the list in"))

    def __iter__(self) -> Iterator[Any]:
        for index in range(len(self)):
            yield self[index]

    def __getitem__(self, index: Any) -> Any:
        trace = self.trace
        if isinstance(index, slice):
            raise TypeError("a list whose length depends on data cannot be sliced")
        worlds = self.contents.worlds
        picked = trace.in_worlds(lambda w: worlds[w][trace.number_in(index, w)])
        if not trace.recording:
            return picked[trace.active[0]]
        trace.moved()
        op = trace.builder
        place = op.operand(index, ir.DataType.INT64)
        if self.contents.stacked is not None:
            value = op.Gather(self.contents.stacked, place, axis=0)
        else:
            value = op.emit("SequenceAt", self.contents.sequence, place)
            value.type = ir.TensorType(self.item.dtype)
        if self.item.number is None:
            return trace.frontend.track_value(picked, value, unbacked=True)
        value.shape = ir.Shape([])
        scalar = op.cast(value, _NUMBERS[self.item.number])
        return trace.number(
            ScalarRecord(trace, picked, data=True, scalar=scalar), self.item.number
        )

    def append(self, item: Any) -> None:
        """Add an item at the end."""
        self._put(self._change(lambda items, x, _: items.append(x), item), "SequenceInsert", item)

    def insert(self, index: Any, item: Any) -> None:
        """Add an item before a position."""
        number = self.trace.number_in
        worlds = self._change(lambda items, x, w: items.insert(number(index, w), x), item)
        self._put(worlds, "SequenceInsert", item, index)

    def extend(self, items: Iterable[Any]) -> None:
        """Add several items at the end."""
        for item in items:
            self.append(item)

    def __iadd__(self, items: Iterable[Any]) -> StagedList:
        self.extend(items)
        return self

    def __add__(self, items: Iterable[Any]) -> StagedList:
        joined = self.copy()
        joined.extend(items)
        return joined

    def __radd__(self, items: list[Any]) -> StagedList:
        joined = self.copy()
        for index, item in enumerate(items):
            joined.insert(index, item)
        return joined

    def copy(self) -> StagedList:
        """A list of its own with the same items."""
        return self.at(self.contents)

    def pop(self, index: Any = -1) -> Any:
        """Take an item out."""
        item = self[index]
        number = self.trace.number_in
        self._put(
            self._change(lambda items, _, w: items.pop(number(index, w))), "SequenceErase", index
        )
        return item

    def clear(self) -> None:
        """Take all items out."""
        worlds: dict[int, list[Any]] = {w: [] for w in self.contents.worlds}
        if not self.trace.recording:
            self.assign(dataclasses.replace(self.contents, worlds=worlds))
            return
        empty = self.trace.builder.emit("SequenceEmpty", dtype=self.item.dtype)
        self.assign(Contents(worlds, None, self._typed(empty)))

    def __setitem__(self, index: Any, item: Any) -> None:
        trace, number = self.trace, self.trace.number_in
        worlds = self._change(lambda items, x, w: items.__setitem__(number(index, w), x), item)
        if not trace.recording:
            self.assign(dataclasses.replace(self.contents, worlds=worlds))
            return
        trace.moved()
        op = trace.builder
        place = op.operand(index, ir.DataType.INT64)
        value = trace.frontend.item_value(item, self.item)
        length = op.emit("SequenceLength", self.sequence())
        positive = op.Where(op.Less(place, 0), op.Add(place, length), place)
        erased = self._typed(op.emit("SequenceErase", self.sequence(), positive))
        inserted = op.emit("SequenceInsert", erased, value, positive)
        self.assign(Contents(worlds, None, self._typed(inserted)))


class ScanBrokenError(BaseException):
    """A loop body does more to a list than append to it; no ``except`` of the user's stops this."""


class ScanList(list[Any]):
    """Stands for a list while a loop body is traced, as long as the body only appends to it.

    Args:
        trace: The trace; items must be appended in its innermost block.
    """

    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self._trace = trace
        self._block = trace.builder.block
        self.items: list[Any] = []

    __hash__ = None

    def append(self, item: Any) -> None:
        """Add what becomes a scan output."""
        if self._trace.builder.block is not self._block:
            raise ScanBrokenError
        self.items.append(item)

    def extend(self, items: Iterable[Any]) -> None:
        """Add several items at the end."""
        for item in items:
            self.append(item)

    def __iadd__(self, items: Iterable[Any]) -> ScanList:  # type: ignore[misc]
        self.extend(items)
        return self

    def _broken(self, *_: Any, **__: Any) -> Any:
        raise ScanBrokenError

    __len__ = __getitem__ = __setitem__ = __delitem__ = __iter__ = __contains__ = _broken
    __bool__ = __add__ = __reversed__ = __eq__ = pop = insert = remove = clear = copy = _broken
    index = count = sort = reverse = _broken
