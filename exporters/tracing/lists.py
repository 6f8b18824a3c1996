"""Lists whose length only run time knows."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from exporters.errors import BranchMismatchError, ScriptError
from exporters.tracing.columns import Column, ItemType, concrete_item
from exporters.tracing.scalars import TracedInt
from exporters.tracing.trace import Interrupt

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from exporters.tracing.leaves import LeafType
    from exporters.tracing.merging import Merged
    from exporters.tracing.nodes import Node
    from exporters.tracing.trace import Trace

__all__ = ["StagedList", "repeated", "revived"]

_NONE = object()
Changed = list[tuple[Column, dict[int, list[Any]], Any, ItemType]]


class StagedList(list[Any]):
    """A list of items of one structure, whose length only run time knows.

    It is a real ``list`` (of the first world's items) to whoever checks, and a stacked tensor or an
    ONNX sequence for each leaf of its items in the graph.

    Args:
        trace: The trace it belongs to.
        item: The structure of each item.
        columns: The leaves of all items, one column for each.
        data: Whether its length depends on input values, not only on sizes.

    Attributes:
        lent: Whether it is an item of another list, which does not hear of changes.
    """

    def __init__(
        self, trace: Trace, item: Node, columns: tuple[Column, ...], *, data: bool = True
    ) -> None:
        self.trace = trace
        self.item = item
        self.columns = columns
        self.data = data
        self.lent = False
        super().__init__(self.in_world(trace.active[0]))

    __hash__ = None

    def __reduce__(self) -> Any:
        return list, (list.copy(self),)

    def __copy__(self) -> StagedList:
        return self.copy()

    def __deepcopy__(self, memo: Any) -> StagedList:
        return self.copy()

    # State

    @property
    def contents(self) -> tuple[Node, tuple[Column, ...]]:
        """What it holds at this point of the program."""
        return self.item, self.columns

    def assign(self, contents: tuple[Node, tuple[Column, ...]]) -> None:
        """Hold something else from now on."""
        if self.lent and self.trace.recording:
            self.trace.moved()
            raise Interrupt(
                ScriptError(
                    "this list is an item of another list, which only run time knows, and is changed "
                    "under a name of its own",
                    source=self.trace.position()[0],
                    hint="change it in its place: rows[i].append(x), rows[i][j] = x",
                )
            )
        self.item, self.columns = contents
        super().__setitem__(slice(None), self.in_world(self.trace.active[0]))

    def in_world(self, world: int) -> list[Any]:
        """The items in one world."""
        columns = [c.in_world(world) for c in self.columns]
        return [self.item.build(iter(row)) for row in zip(*columns, strict=True)]

    @property
    def is_open(self) -> bool:
        """Whether no item was ever set: there is none, or they are all None."""
        return self.columns[-1].type.open and len(self.columns) <= 2

    def settled(self, kinds: Sequence[ItemType]) -> list[Column]:
        """The columns of a list whose items were never set, for items of some types."""
        flags, unset = self.columns[:-1], self.columns[-1]
        return [*flags, *(unset.blank_as(k) for k in kinds[len(flags) :])]

    def certain(self) -> StagedList:
        """The items, which may be None, taken for granted."""
        from exporters.tracing.nodes import ListNode, Optional  # nodes make lists themselves

        item, columns = self.item, self.columns
        if isinstance(item, Optional):
            return StagedList(self.trace, item.child, columns[1:], data=self.data).certain()
        if isinstance(item, ListNode) and isinstance(item.item, Optional):
            rows = dataclasses.replace(item, item=item.item.child, columns=item.columns[1:])
            return StagedList(self.trace, rows, columns[1:], data=self.data)
        return self

    def example(self) -> Any:
        """An item that stands for all."""
        from exporters.tracing.leaves import Example  # leaves are columns, too

        return self.item.build(iter([Example(c.type) for c in self.columns]))

    def blank(self) -> Any:
        """An item in one world that stands for one that is not there."""
        return self.item.build(iter([c.blank() for c in self.columns]))

    def at(self, contents: tuple[Node, tuple[Column, ...]]) -> StagedList:
        """A list with other contents."""
        return StagedList(self.trace, *contents, data=self.data)

    def copy(self) -> StagedList:
        """A list of its own with the same items."""
        return self.at(self.contents)

    def staged_length(self) -> Any:
        """How many items there are: a traced int, or in an eager replay an int."""
        if not self.trace.recording:
            return len(self.in_world(self.trace.active[0]))
        stacked = (c for c in self.columns if c.stacked is not None)
        return next(stacked, self.columns[0]).length(data=self.data)

    def parts(self) -> tuple[StagedList, ...] | None:
        """A list for each place in items that are tuples or lists of leaves; None for others."""
        from exporters.tracing.nodes import Container, Leaf  # nodes make lists themselves

        item = self.item
        if not isinstance(item, Container) or item.tree.kind not in (
            "tuple",
            "namedtuple",
            "list",
        ):
            return None
        if not item.children or not all(isinstance(c, Leaf) for c in item.children):
            return None
        return tuple(
            StagedList(self.trace, child, (column,), data=self.data)
            for child, column in zip(item.children, self.columns, strict=True)
        )

    # Changes

    def _changed(self, edit: Callable[[list[Any], Any, int], Any], item: Any = _NONE) -> Changed:
        """Each column with its items after an edit, and the new item's leaf and type.

        Args:
            edit: Called with the items, the new one, and the world.
            item: The new item, if there is one.
        """
        leaves: list[Any] = [None] * len(self.columns)
        kinds = [c.type for c in self.columns]
        if item is not _NONE:
            leaves, kinds = self._leaves_of(item)
        after: list[dict[int, list[Any]]] = [{} for _ in self.columns]

        def apply(w: int) -> None:
            for column, leaf, worlds in zip(self.columns, leaves, after, strict=True):
                items = column.in_world(w)
                try:
                    edit(items, self._leaf_in(leaf, w), w)
                except IndexError:
                    if w not in self.trace.ghosts and not self.trace.forcing:
                        raise
                worlds[w] = items

        self.trace.in_worlds(apply)
        active = self.trace.active
        kept = [{w: worlds[w] for w in active} for worlds in after]
        return list(zip(self.columns, kept, leaves, kinds, strict=True))

    def _leaf_in(self, leaf: Any, world: int) -> Any:
        return concrete_item(self.trace, leaf, world)

    def _leaves_of(self, item: Any) -> tuple[list[Any], list[ItemType]]:
        """An item's leaves, and the types that the columns have with it among them.

        Raises:
            Interrupt: It has another structure than the other items.
        """
        from exporters.tracing.leaves import item_type
        from exporters.tracing.merging import Ways

        self._settle(item)
        leaves: list[Any] = []
        if not self.item.take(self.trace, item, leaves):
            leaves = []
            ways = Ways(self.trace, ("the others", "the new item"), None)
            try:
                wider = ways.merge("the list's items", [self.example(), item], always=True)
            except BranchMismatchError as error:
                raise self._misfit(item) from error
            self._widen(wider)
            if len(wider.slots) != len(self.columns) or not wider.node.take(
                self.trace, item, leaves
            ):
                raise self._misfit(item)
            self.item = wider.node
        kinds = []
        for column, leaf in zip(self.columns, leaves, strict=True):
            joined = column.type.join(item_type(self.trace, leaf))
            if joined is None:
                raise self._misfit(item)
            kinds.append(joined)
        return leaves, kinds

    def _misfit(self, item: Any) -> Interrupt:
        """What to raise for an item of another structure or type than the others."""
        from exporters.tracing.merging import describe  # it makes lists itself

        self.trace.moved()
        others = describe(self.trace, self.example())
        return Interrupt(
            BranchMismatchError(
                f"the list holds {others}, the new item is {describe(self.trace, item)}",
                source=self.trace.position()[0],
                hint="put items of one structure, dtype and number of dims into the list",
            )
        )

    def _settle(self, item: Any) -> None:
        """Let a list that never had an item be one of items like this."""
        from exporters.tracing.merging import Ways  # it makes lists itself

        if not self.is_open or item is None:
            return
        unset = [None] if len(self.columns) > 1 else []
        ways = Ways(self.trace, ("the others", "the new item"), self.trace.position()[0])
        found = ways.list_of("", [[*unset, item]])
        if found is not None:
            kinds = [s.type.item for s in found[1] if s.type.item is not None]
            self.assign((found[0].item, tuple(self.settled(kinds))))

    def _widen(self, wider: Merged) -> None:
        """Let the items have a structure that serves more items: lists of any length, not of one."""
        from exporters.tracing.nodes import converted  # nodes make lists themselves

        kinds = [_item_type_of(s.type) for s in wider.slots]
        columns = converted(self.trace, self.item, self.columns, wider.node, kinds)
        if columns is not None:
            self.assign((wider.node, tuple(columns)))

    def _number(self, place: Any, world: int) -> Any:
        return self.trace.frontend.concrete(place, world)

    def _place(self, index: Any) -> Any:
        """An index as a number, traced or not."""
        frontend = self.trace.frontend
        if not frontend.is_array(index):
            return index
        if self.trace.recording and frontend.is_handle(index):
            return frontend.to_number(index)
        return frontend.numbers_in(index, self.trace.active[0])

    def _assign_columns(self, columns: Iterable[Column]) -> None:
        self.assign((self.item, tuple(columns)))

    def _eagerly(self, changed: Changed) -> bool:
        """Make a change that is not recorded."""
        if self.trace.recording:
            self.trace.moved()
            return False
        self._assign_columns(Column(self.trace, k, worlds) for _, worlds, _, k in changed)
        return True

    def append(self, item: Any) -> None:
        """Add an item at the end."""
        changed = self._changed(lambda items, x, _: items.append(x), item)
        if not self._eagerly(changed):
            self._assign_columns(c.insert(worlds, x, kind) for c, worlds, x, kind in changed)

    def insert(self, index: Any, item: Any) -> None:
        """Add an item before a place."""
        index = self._place(index)
        changed = self._changed(lambda items, x, w: items.insert(self._number(index, w), x), item)
        if not self._eagerly(changed):
            self._assign_columns(
                c.insert(worlds, x, kind, index) for c, worlds, x, kind in changed
            )

    def pop(self, index: Any = -1) -> Any:
        """Take an item out."""
        index = self._place(index)
        item = self.take(index)
        del self[index]
        return item

    def __delitem__(self, index: Any) -> None:
        if isinstance(index, slice):
            self[index] = []
            return
        index = self._place(index)
        changed = self._changed(lambda items, _, w: items.pop(self._number(index, w)))
        if not self._eagerly(changed):
            self._assign_columns(c.erase(worlds, index) for c, worlds, _, _ in changed)

    def __setitem__(self, index: Any, item: Any) -> None:
        if isinstance(index, slice):
            start, stop = self._bounds(index)
            joined = self.joined(self[:start], item, self[stop:])
            self.assign(joined.contents)
            return
        index = self._place(index)
        changed = self._changed(
            lambda items, x, w: items.__setitem__(self._number(index, w), x), item
        )
        if not self._eagerly(changed):
            self._assign_columns(
                c.replace(worlds, index, x, kind) for c, worlds, x, kind in changed
            )

    def _bounds(self, index: slice) -> tuple[Any, Any]:
        """Where a slice begins and ends; it ends nowhere before it begins."""
        arithmetic, length = self.trace.arithmetic, self.staged_length()

        def inside(bound: Any) -> Any:
            if isinstance(bound, TracedInt):
                bound = bound + length * arithmetic("int", arithmetic("lt", bound, 0))
            elif bound < 0:
                bound = length + bound
            return arithmetic("min", arithmetic("max", bound, 0), length)

        start = 0 if index.start is None else inside(self._place(index.start))
        stop = length if index.stop is None else inside(self._place(index.stop))
        return start, arithmetic("max", start, stop)

    def clear(self) -> None:
        """Take all items out."""
        empty: dict[int, list[Any]] = {w: [] for w in self.trace.active}
        self._assign_columns(Column(self.trace, c.type, empty, items=()) for c in self.columns)

    def joined(self, *parts: Iterable[Any]) -> StagedList:
        """A list of the items of several."""
        whole = self.at(
            (self.item, tuple(Column(self.trace, c.type, {}, items=()) for c in self.columns))
        )
        for part in parts:
            whole.extend(part)
        return whole

    def extend(self, items: Iterable[Any]) -> None:
        """Add several items at the end."""
        if isinstance(items, StagedList) and self.trace.recording:
            if items.item.signature() != self.item.signature():
                self._leaves_of(items.example())
            pairs = list(zip(self.columns, items.columns, strict=True))
            self._assign_columns(a.join(b) for a, b in pairs)
            self.data = self.data or items.data
            return
        from exporters.tracing.iteration import for_each  # it makes staged lists itself

        for_each(items, self)

    def reverse(self) -> None:
        """Turn the order round."""
        self.assign(self[::-1].contents)

    def sort(self, *, key: Any = None, reverse: bool = False) -> None:
        """Sort the items by numbers."""
        self.assign(self.trace.frontend.sorted_list(self, key, reverse=reverse).contents)

    def reordered(self, order: Any) -> StagedList:
        """The items at other places.

        Args:
            order: The place of each item, a rank-1 handle.
        """
        worlds = {w: self.trace.frontend.numbers_in(order, w) for w in self.trace.active}
        value = self.trace.frontend.graph(order)
        columns = []
        for column in self.columns:
            moved = {w: [column.in_world(w)[i] for i in worlds[w]] for w in self.trace.active}
            columns.append(column.gather(moved, value))
        return self.at((self.item, tuple(columns)))

    def remove(self, item: Any) -> None:
        """Take out the first item that equals another."""
        del self[self.index(item)]

    # What a deque has besides

    def appendleft(self, item: Any) -> None:
        """Add an item at the start."""
        self.insert(0, item)

    def popleft(self) -> Any:
        """Take the first item out."""
        return self.pop(0)

    # Reading

    def _lengths(self) -> dict[int, int]:
        return {w: len(self.in_world(w)) for w in self.trace.active}

    def __len__(self) -> int:
        if not self.trace.live:
            return list.__len__(self)
        return int(
            self.trace.decide(
                self._lengths(),
                data=self.data,
                asked="len() of the list in",
                hint="loop over it: `for x in items: found.append(x)`",
            )
        )

    def __bool__(self) -> bool:
        answers = {w: bool(n) for w, n in self._lengths().items()}
        return bool(self.trace.decide(answers, data=self.data, asked="the truth of the list in"))

    def __iter__(self) -> Iterator[Any]:
        for index in range(len(self)):
            yield self[index]

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self._cut(index)
        item = self.take(index)
        if isinstance(item, StagedList):
            item.lent = True
        return item

    def take(self, index: Any) -> Any:
        """The item at a place, to be changed there or to be taken out."""
        trace = self.trace
        index = self._place(index)
        found: list[dict[int, Any]] = [{} for _ in self.columns]

        def pick(w: int) -> None:
            place = self._number(index, w)
            for column, picked in zip(self.columns, found, strict=True):
                items = column.in_world(w)
                inside = -len(items) <= place < len(items)
                if not inside and (w in trace.ghosts or trace.forcing):
                    picked[w] = column.blank()  # nobody looks at it
                else:
                    picked[w] = items[place]

        trace.in_worlds(pick)
        kept = [{w: picked[w] for w in trace.active} for picked in found]
        if not trace.recording:
            return self.item.build(iter([p[trace.active[0]] for p in kept]))
        trace.moved()
        leaves = [c.take(index, p) for c, p in zip(self.columns, kept, strict=True)]
        return self.item.build(iter(leaves))

    def _cut(self, bounds: slice) -> StagedList:
        numbers = self.trace.frontend.concrete

        def cut_items(items: list[Any], _: Any, w: int) -> None:
            items[:] = items[numbers(bounds, w)]

        changed = self._changed(cut_items)
        if not self.trace.recording:
            columns = tuple(Column(self.trace, k, worlds) for _, worlds, _, k in changed)
            return self.at((self.item, columns))
        self.trace.moved()
        parts = (bounds.start, bounds.stop)
        moving = any(hasattr(b, "record") and b.record.data for b in parts)
        columns = tuple(c.cut(worlds, bounds) for c, worlds, _, _ in changed)
        return StagedList(self.trace, self.item, columns, data=self.data or moving)

    def __reversed__(self) -> Iterator[Any]:
        return iter(self[::-1])

    def __add__(self, items: Iterable[Any]) -> StagedList:
        joined = self.copy()
        joined.extend(items)
        return joined

    def __radd__(self, items: list[Any]) -> StagedList:
        return self.joined(items, self)

    def __iadd__(self, items: Iterable[Any]) -> StagedList:
        self.extend(items)
        return self

    def __mul__(self, times: Any) -> StagedList:
        return self.joined(*[self] * times.__index__())

    def __contains__(self, item: Any) -> bool:
        return bool(self.trace.frontend.list_count(self, item) > 0)

    def __eq__(self, other: object) -> bool:
        if self is other or not isinstance(other, list):
            return self is other
        if self.trace.live and self.trace.recording:
            return bool(self.trace.frontend.lists_equal(self, other))
        world = self.trace.active[0]
        items = other.in_world(world) if isinstance(other, StagedList) else other
        return self.in_world(world) == [self.trace.frontend.concrete(x, world) for x in items]

    def __ne__(self, other: object) -> bool:
        return not self == other

    def index(self, item: Any, start: Any = 0, *stop: Any) -> Any:
        """The place of the first item that equals another."""
        if type(start) is int and start == 0 and not stop:
            return self.trace.frontend.list_index(self, item)
        return self[start : stop[0] if stop else None].index(item) + start

    def count(self, item: Any) -> Any:
        """How many items equal another."""
        return self.trace.frontend.list_count(self, item)


def revived(attributes: dict[str, Any]) -> StagedList:
    """A list with the attributes that another one had."""
    trace, item, columns = (attributes[n] for n in ("trace", "item", "columns"))
    return StagedList(trace, item, columns, data=attributes["data"])


def _item_type_of(kind: LeafType) -> ItemType:
    """The type of a column of leaves."""
    if kind.item is not None:
        return ItemType.of_lists(kind.item)
    return ItemType(kind.dtype, kind.rank, kind.number, (None,) * kind.rank)


def repeated(trace: Trace, items: list[Any], times: TracedInt) -> StagedList | None:
    """``items * times``; None for items that are no arrays or numbers of one shape."""
    from exporters.tracing.merging import Ways

    source, _ = trace.position()
    found = Ways(trace, ("the others", "the new item"), source).list_of("", [items])
    if found is None:
        return None
    node, slots = found
    op, columns = trace.builder, []
    for slot in slots:
        once, kind = slot.values[0], slot.type.item
        if kind is None or not (kind.stacks or len(items) == 1):
            return None
        value = once.as_stacked()
        rest = op.constant(np.ones(kind.rank, np.int64))
        stacked = op.Tile(value, op.Concat(times.vector(), rest, axis=0))
        stacked.shape = ir.Shape([None, *kind.dims])
        worlds = {w: once.in_world(w) * times.record.worlds[w] for w in trace.active}
        columns.append(Column(trace, kind, worlds, stacked=stacked))
    return StagedList(trace, node.item, tuple(columns), data=times.record.data)
