"""The structure of what names hold, with a place for every value that only run time knows."""

from __future__ import annotations

import collections
import dataclasses
from typing import TYPE_CHECKING, Any, Protocol

from exporters.tracing.columns import Column, ItemType, joined_types
from exporters.tracing.leaves import (
    ABSENT,
    Dummy,
    Example,
    LeafType,
    fits,
    is_leaf,
    item_type,
    leaf_type,
    mark,
    mark_key,
    presence,
    presence_of_key,
    same,
)
from exporters.tracing.lists import StagedList
from exporters.tracing.pytree import Tree, emptied, shallow

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from exporters.tracing.trace import Trace

__all__ = ["DICTS", "ITEM", "PRESENT", "Choice", "Constant", "Container", "Counted", "Leaf", "ListNode",
           "Node", "OpenDict", "Optional", "Slot", "as_columns", "converted", "joined_order",
           "key_of"]  # fmt: skip

DICTS = (dict, collections.OrderedDict, collections.defaultdict)
PRESENT = "is there"  # the path of a value's presence
ITEM = "item"  # the path of a list's items


@dataclasses.dataclass(slots=True, eq=False)
class Slot:
    """One leaf that differs between the ways to a point of the program.

    Attributes:
        values: The leaf as each way leaves it.
        type: The type that serves them all.
        path: The keys that lead to it.
    """

    values: list[Any]
    type: LeafType
    path: tuple[Any, ...] = ()


class Node(Protocol):
    """One level of a structure."""

    def build(self, leaves: Iterator[Any]) -> Any:
        """The structure around the next leaves."""

    def take(self, trace: Trace, x: Any, into: list[Any]) -> bool:
        """Append the leaves of ``x`` to ``into``; False if it has another structure or type."""

    def signature(self) -> Any:
        """What structures have in common whose leaves mean the same."""


@dataclasses.dataclass(frozen=True, slots=True)
class Constant:
    """What is the same on all ways."""

    value: Any

    def build(self, leaves: Iterator[Any]) -> Any:
        """The value."""
        del leaves
        return self.value

    def take(self, trace: Trace, x: Any, into: list[Any]) -> bool:
        """Whether ``x`` is that value."""
        del trace, into
        return x is ABSENT or same(self.value, x)

    def signature(self) -> Any:
        """The value's identity."""
        value = self.value
        return ("constant", value if isinstance(value, int | float | str | None) else id(value))


@dataclasses.dataclass(frozen=True, slots=True)
class Leaf:
    """A value of the graph."""

    slot: Slot

    def build(self, leaves: Iterator[Any]) -> Any:
        """The next leaf."""
        return next(leaves)

    def take(self, trace: Trace, x: Any, into: list[Any]) -> bool:
        """A leaf of a type that fits."""
        if x is ABSENT:
            real = (v for v in self.slot.values if not isinstance(v, Dummy))
            like = next(real, None)
            into.append(self.slot.values[0] if like is None else Dummy(like))
            return True
        if not is_leaf(trace, x) or not fits(leaf_type(trace, x), self.slot.type):
            return False
        into.append(x)
        return True

    def signature(self) -> Any:
        """Its type."""
        kind = self.slot.type
        return (kind.kind, kind.dtype, kind.rank)


@dataclasses.dataclass(frozen=True, slots=True)
class Container:
    """A list of known length, tuple, dict, dataclass or other object."""

    tree: Tree
    children: tuple[Node, ...]

    def build(self, leaves: Iterator[Any]) -> Any:
        """A new container of the same type."""
        return self.tree.unflatten([c.build(leaves) for c in self.children])

    def take(self, trace: Trace, x: Any, into: list[Any]) -> bool:
        """The leaves inside of ``x``, a container of the same type and keys."""
        if x is ABSENT:
            return all(c.take(trace, ABSENT, into) for c in self.children)
        if is_leaf(trace, x) or isinstance(x, StagedList):
            return False
        kind, items = shallow(x)
        if kind != self.tree.kind or tuple(k for k, _ in items) != self.tree.keys:
            return False
        pairs = zip(self.children, items, strict=True)
        return all(child.take(trace, item, into) for child, (_, item) in pairs)

    def signature(self) -> Any:
        """Its kind and keys."""
        return (self.tree.kind, self.tree.keys, tuple(c.signature() for c in self.children))


@dataclasses.dataclass(frozen=True, slots=True)
class Optional:
    """What may be None."""

    trace: Trace
    flag: Node
    child: Node

    def build(self, leaves: Iterator[Any]) -> Any:
        """The value, marked; or in one world None or the value."""
        present = self.flag.build(leaves)
        x = self.child.build(leaves)
        if type(present) is bool:
            return x if present else None
        return mark(self.trace, x, present)

    def take(self, trace: Trace, x: Any, into: list[Any]) -> bool:
        """Whether ``x`` is there, and its leaves."""
        if x is ABSENT:
            return self.flag.take(trace, ABSENT, into) and self.child.take(trace, ABSENT, into)
        if x is None:
            return self.flag.take(trace, False, into) and self.child.take(trace, ABSENT, into)
        present = presence(trace, x)
        flag = True if present is None else present
        return self.flag.take(trace, flag, into) and self.child.take(trace, x, into)

    def signature(self) -> Any:
        """That it may be None."""
        return ("optional", self.child.signature())


@dataclasses.dataclass(frozen=True, slots=True)
class OpenDict:
    """A dict that may lack some of its keys.

    Attributes:
        trace: The trace.
        original: A dict of that type.
        keys: All keys.
        flags: Whether each is there; None for those that always are.
        children: What they hold.
        is_ordered: Whether the keys that are there always stand in the order of these.
    """

    trace: Trace
    original: dict[Any, Any]
    keys: tuple[Any, ...]
    flags: tuple[Node | None, ...]
    children: tuple[Node, ...]
    is_ordered: bool = True

    def build(self, leaves: Iterator[Any]) -> Any:
        """A new dict, its values marked; or in one world without the keys that are not there."""
        found: dict[Any, Any] = {}
        for key, flag, child in zip(self.keys, self.flags, self.children, strict=True):
            present = True if flag is None else flag.build(leaves)
            value = child.build(leaves)
            if present is not False:
                known = present is True
                found[key] = value if known else mark_key(self.trace, value, present)
        keys = tuple(found)
        tree = Tree("dict", emptied(self.original), keys, tuple(Tree("leaf") for _ in keys))
        made = tree.unflatten(list(found.values()))
        if not self.is_ordered:
            self.trace.unordered[id(made)] = made
        return made

    def take(self, trace: Trace, x: Any, into: list[Any]) -> bool:
        """Which keys ``x`` has, and its leaves."""
        if x is not ABSENT and (
            type(x) is not type(self.original) or any(k not in self.keys for k in x)
        ):
            return False
        held: Any = {} if x is ABSENT else x
        for key, flag, child in zip(self.keys, self.flags, self.children, strict=True):
            value = held.get(key, ABSENT)
            there = presence_of_key(trace, value)
            there = value is not ABSENT if there is None else there
            if flag is None and there is not True and x is not ABSENT:
                return False
            if flag is not None and not flag.take(trace, there, into):
                return False
            if not child.take(trace, value, into):
                return False
        return True

    def signature(self) -> Any:
        """Its keys."""
        return ("open dict", self.keys, tuple(c.signature() for c in self.children))


@dataclasses.dataclass(frozen=True, slots=True)
class Counted:
    """An item that is the same in all places of a list: a leaf that nobody looks at counts them."""

    count: Node
    child: Node

    def build(self, leaves: Iterator[Any]) -> Any:
        """The item."""
        self.count.build(leaves)
        return self.child.build(leaves)

    def take(self, trace: Trace, x: Any, into: list[Any]) -> bool:
        """Whether ``x`` is that item."""
        return self.count.take(trace, True, into) and self.child.take(trace, x, into)

    def signature(self) -> Any:
        """The item's."""
        return ("counted", self.child.signature())


@dataclasses.dataclass(frozen=True, slots=True)
class Choice:
    """One of several objects that are no values of the graph: strings, layers, functions."""

    options: tuple[Any, ...]
    number: Node

    def build(self, leaves: Iterator[Any]) -> Any:
        """The object, or what stands for it."""
        from exporters.tracing.chosen import Chosen  # it stages branches itself

        index = self.number.build(leaves)
        if type(index) is int:
            return self.options[index]
        return Chosen(index, list(range(len(self.options))), list(self.options))

    def take(self, trace: Trace, x: Any, into: list[Any]) -> bool:
        """The number of ``x`` among the options."""
        from exporters.tracing.chosen import Chosen

        if x is ABSENT:
            return self.number.take(trace, 0, into)
        if isinstance(x, Chosen):
            index = x.index_in(self.options)
            return index is not None and self.number.take(trace, index, into)
        found = [i for i, option in enumerate(self.options) if same(option, x)]
        return bool(found) and self.number.take(trace, found[0], into)

    def signature(self) -> Any:
        """The options."""
        return ("choice", tuple(map(id, self.options)))


@dataclasses.dataclass(frozen=True, slots=True)
class ListNode:
    """A list whose length only run time knows."""

    trace: Trace
    item: Node
    columns: tuple[Leaf, ...]
    data: bool = True

    def build(self, leaves: Iterator[Any]) -> Any:
        """A staged list, or in one world a list."""
        columns = [self._column(c.build(leaves)) for c in self.columns]
        if all(isinstance(c, list) for c in columns):
            return [self.item.build(iter(row)) for row in zip(*columns, strict=True)]
        return StagedList(self.trace, self.item, tuple(columns), data=self.data)

    def _column(self, x: Any) -> Any:
        if not isinstance(x, Example):
            return x
        assert x.type.nested is not None
        return Column(self.trace, x.type.nested, {}, items=())

    def take(self, trace: Trace, x: Any, into: list[Any]) -> bool:
        """The columns of ``x``."""
        if x is ABSENT:
            return all(c.take(trace, ABSENT, into) for c in self.columns)
        if not isinstance(x, list):
            return False
        columns = as_columns(trace, x, self.item, [c.slot for c in self.columns])
        if columns is None:
            return False
        return all(c.take(trace, x, into) for c, x in zip(self.columns, columns, strict=True))

    def signature(self) -> Any:
        """Its items."""
        return ("list", self.item.signature())


def joined_order(sequences: Sequence[Sequence[Any]]) -> tuple[list[Any], bool]:
    """All items, each once, and whether each sequence has its items in that order."""
    found: list[Any] = []
    kept = True
    for items in sequences:
        place = 0
        for x in items:
            if x in found:
                kept = kept and found.index(x) >= place
                place = found.index(x) + 1
            else:
                found.insert(place, x)
                place += 1
    return found, kept


def as_columns(
    trace: Trace, items: list[Any], item: Node, slots: list[Slot]
) -> list[Column] | None:
    """The columns of a list whose items have a structure; None if they have not."""
    if isinstance(items, StagedList):
        if items.is_open:
            return items.settled([s.type.item for s in slots if s.type.item is not None])
        if items.item.signature() == item.signature():
            return list(items.columns)
        wanted = [s.type.item for s in slots if s.type.item is not None]
        return converted(trace, items.item, items.columns, item, wanted)
    rows: list[list[Any]] = []
    for x in items:
        row: list[Any] = []
        if not item.take(trace, x, row):
            return None
        rows.append(row)
    kinds = [s.type.item for s in slots]
    columns = []
    for index, kind in enumerate(kinds):
        assert kind is not None
        leaves = tuple(row[index] for row in rows)
        if kind.open and not all(isinstance(x, Dummy) for x in leaves):
            kind = joined_types([item_type(trace, x) for x in leaves]) or kind
        columns.append(Column(trace, kind, {}, items=leaves))
    return columns


def converted(
    trace: Trace, old: Node, columns: Sequence[Column], new: Node, kinds: Sequence[ItemType]
) -> list[Column] | None:
    """The columns of items for a structure that serves more items; None if it does not serve these.

    Args:
        trace: The trace.
        old: The structure of the items.
        columns: Their leaves.
        new: The other structure.
        kinds: The types of its leaves.
    """
    if isinstance(new, ListNode) and columns and columns[0].type.is_blank:
        return [columns[0].blank_as(k) for k in kinds]
    if isinstance(new, ListNode) and len(kinds) == 1 and _is_flat(old):
        return [Column.of_rows(trace, columns)]
    if isinstance(old, Container) and isinstance(new, Container):
        if (old.tree.kind, old.tree.keys) != (new.tree.kind, new.tree.keys):
            return None
        return _children(trace, old.children, columns, new.children, kinds)
    if isinstance(old, Optional) and isinstance(new, Optional):
        if columns[1].type.open:
            return [columns[0], *(columns[1].blank_as(k) for k in kinds[1:])]
        pairs = (old.flag, old.child), (new.flag, new.child)
        return _children(trace, pairs[0], columns, pairs[1], kinds)
    if not (_is_single(old) and _is_single(new)) and old.signature() != new.signature():
        return None
    same = len(columns) == len(kinds) and all(
        c.type.join(k) == k for c, k in zip(columns, kinds, strict=True)
    )
    return list(columns) if same else None  # numbers may be arrays from now on


def _children(
    trace: Trace,
    old: Sequence[Node],
    columns: Sequence[Column],
    new: Sequence[Node],
    kinds: Sequence[ItemType],
) -> list[Column] | None:
    found: list[Column] = []
    for one, other in zip(old, new, strict=True):
        here, there = _width(one), _width(other)
        part = converted(trace, one, columns[:here], other, kinds[:there])
        if part is None:
            return None
        found += part
        columns, kinds = columns[here:], kinds[there:]
    return found


def _width(item: Node) -> int:
    """How many leaves a structure has."""
    if isinstance(item, Container):
        return sum(map(_width, item.children))
    if isinstance(item, Optional):
        return 1 + _width(item.child)
    if isinstance(item, Counted):
        return 1 + _width(item.child)
    if isinstance(item, ListNode):
        return len(item.columns)
    return 0 if isinstance(item, Constant) else 1


def _is_flat(item: Node) -> bool:
    """Whether items are lists of leaves, of one known length."""
    listed = isinstance(item, Container) and item.tree.kind == "list"
    return listed and all(isinstance(c, Leaf) for c in item.children)  # type: ignore[attr-defined]


def _is_single(item: Node) -> bool:
    """Whether items are leaves, or lists of leaves."""
    return isinstance(item, Leaf) or (isinstance(item, ListNode) and isinstance(item.item, Leaf))


def key_of(trace: Trace, x: Any, *, lengths: bool = True) -> Any:
    """What tells values apart whose types, or structures, differ."""
    if isinstance(x, StagedList):
        return ("list", x.item.signature())
    if isinstance(x, Example) or is_leaf(trace, x):
        found = leaf_type(trace, x)
        return (found.kind, found.dtype, found.rank, found.number)
    kind, items = shallow(x)
    if not items:
        return ("static", x if isinstance(x, str | None) else id(x) if kind == "object" else kind)
    if kind == "list" and not lengths:
        return ("list", frozenset(key_of(trace, i) for _, i in items))
    return (
        kind,
        kind if kind == "list" else type(x),
        tuple((k, key_of(trace, i)) for k, i in items),
    )
