"""One value for what several branches, or several iterations, leave in a name."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import itertools
from typing import TYPE_CHECKING, Any

from exporters.errors import BranchMismatchError
from exporters.tracing.bindings import RESULT, binding_lines, is_expression, leaves_loop
from exporters.tracing.columns import NUMBERS, Column, ItemType, joined_types
from exporters.tracing.leaves import (
    ABSENT,
    MISSING,
    UNBOUND,
    Dummy,
    Example,
    LeafType,
    is_leaf,
    item_type,
    leaf_type,
    presence,
    presence_of_key,
    same,
)
from exporters.tracing.lists import StagedList
from exporters.tracing.nodes import (
    DICTS,
    ITEM,
    PRESENT,
    Choice,
    Constant,
    Container,
    Counted,
    Leaf,
    ListNode,
    Node,
    OpenDict,
    Optional,
    Slot,
    as_columns,
    joined_order,
)
from exporters.tracing.own_lists import OwnList
from exporters.tracing.pytree import Tree, flatten, shallow
from exporters.tracing.scalars import TracedScalar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import onnx_ir as ir

    from exporters.tracing.graph import Block
    from exporters.tracing.source import Source
    from exporters.tracing.trace import Trace

__all__ = ["UNBOUND", "Merged", "Ways", "describe", "flatten_state", "is_staged", "static_dims"]

_MADE_UP = "ag__"
_LEAVING = ("a `return` in the loop", "the loop's end")
_ITEMS = "the items of a list"
NESTED = "use one list, or a tensor in its place: torch.zeros(rows, columns)"
_WIDTH = {bool: 0, int: 1, float: 2}


def flatten_state(trace: Trace, x: Any) -> tuple[list[Any], Tree]:
    """The values of the graph in what a name holds, staged lists among them."""
    return flatten(x, lambda leaf: isinstance(leaf, StagedList) or is_leaf(trace, leaf))


def is_staged(trace: Trace, x: Any) -> bool:
    """Whether ``x`` is known at run time only."""
    if isinstance(x, TracedScalar | StagedList) or trace.frontend.is_handle(x):
        return True
    return bool(trace.optional) and presence(trace, x) is not None


def describe(trace: Trace, x: Any) -> str:
    """A value's type as the user writes it: ``float32[N, 8]``, ``int``, ``[int, int]``."""
    if x is UNBOUND or x is MISSING:
        return repr(x)
    if isinstance(x, Example) and x.type.nested is not None:
        return f"a list of {describe(trace, Example(x.type.nested))}"
    if isinstance(x, Example):
        sizes = ", ".join("?" if d is None else str(d) for d in x.type.dims)
        number = x.type.number
        return f"{x.type.dtype.numpy().name}[{sizes}]" if number is None else number.__name__
    if trace.frontend.is_array(x):
        dtype, shape = trace.frontend.type_of(x)
        return f"{dtype.numpy().name}[{', '.join(map(str, shape))}]"
    if isinstance(x, TracedScalar):
        return x.kind.__name__
    if isinstance(x, StagedList):
        return f"a list of {describe(trace, x.example())}"
    if isinstance(x, list | tuple | dict | set):
        return _describe_items(trace, x)
    if isinstance(x, bool | int | float):
        return type(x).__name__
    return repr(x) if isinstance(x, str | None) else type(x).__name__


def _describe_items(trace: Trace, x: Any) -> str:
    if isinstance(x, dict):
        parts = [f"{k!r}: {describe(trace, v)}" for k, v in list(x.items())[:4]]
    else:
        parts = [describe(trace, i) for i in list(x)[:4]]
    inside = ", ".join(parts) + (", ..." if len(x) > 4 else "")
    if isinstance(x, tuple) and len(x) == 1:
        inside += ","
    left, right = "[]" if isinstance(x, list) else "()" if isinstance(x, tuple) else "{}"
    name = "" if type(x) in (list, OwnList, tuple, dict, set) else type(x).__name__
    return f"{name}{left}{inside}{right}" if x or not isinstance(x, set) else "set()"


@dataclasses.dataclass(slots=True)
class Merged:
    """A name (or a place in an object) with several possible values.

    Attributes:
        label: What the user calls it.
        node: The structure that serves all values.
        slots: The leaves that differ.
    """

    label: str
    node: Node
    slots: list[Slot]

    def rebuild(self, leaves: Sequence[Any]) -> Any:
        """The name's value, given one leaf for each slot."""
        return self.node.build(iter(leaves))

    def leaves_of(self, trace: Trace, x: Any) -> list[Any] | None:
        """The leaves of ``x`` in the slots; None if it has another structure, type or constant."""
        into: list[Any] = []
        return into if self.node.take(trace, x, into) else None

    def leaves_in(self, trace: Trace, x: Any, world: int) -> list[Any] | None:
        """The leaves of what was there in one world, where handles stood for that world's values."""
        found = self.leaves_of(trace, x)
        if found is not None:
            return found
        handles, _ = flatten_state(trace, self.rebuild([slot.values[-1] for slot in self.slots]))
        leaves, tree = flatten_state(trace, x)
        if len(handles) != len(leaves):
            return None
        pairs = zip(handles, leaves, strict=True)
        known = [h if _is_in(trace, h, leaf, world) else leaf for h, leaf in pairs]
        return self.leaves_of(trace, tree.unflatten(known))


class Ways:
    """The ways that lead to a point: two branches, or a loop's start and its iterations.

    Args:
        trace: The trace.
        names: What to call each way: "the `if` branch".
        source: The statement, for errors.
        loose: Whether a number may meet an array of any rank (in loops, where shapes may change).
        choose: Makes one object of several that are not values of the graph; where it is missing,
            their number is a value.

    Attributes:
        blocks: The block that each way ends in; None if it is the innermost one.
        observed: The shapes that were seen on a path, by world; None if nothing was observed.
    """

    def __init__(
        self,
        trace: Trace,
        names: Sequence[str],
        source: Source | None,
        *,
        loose: bool = False,
        choose: Callable[[Sequence[Any]], Any] | None = None,
    ) -> None:
        self.trace = trace
        self.names = names
        self.source = source
        self.loose = loose
        self.choose = choose
        self.blocks: Sequence[Block] | None = None
        self.observed: dict[tuple[Any, ...], dict[int, set[tuple[int, ...]]]] | None = None

    def merge(self, label: str, values: Sequence[Any], *, always: bool = False) -> Merged | Any:
        """How a name's values become one; the value itself when they are all the same.

        Args:
            label: What the user calls it.
            values: What each way leaves; ABSENT where nobody reads it.
            always: Whether leaves get a slot even where they are all the same.

        Raises:
            BranchMismatchError: No one type serves them all.
        """
        first = values[0]
        if not always and all(same(v, first) for v in values[1:]):
            return first
        if any(v is UNBOUND for v in values):
            return UNBOUND
        slots: list[Slot] = []
        node = self._node(label, values, (), slots, always=always)
        return (
            node.value if isinstance(node, Constant) and not always else Merged(label, node, slots)
        )

    def list_of(
        self, label: str, values: Sequence[list[Any]]
    ) -> tuple[ListNode, list[Slot]] | None:
        """The structure of a list that is staged in any case; None if its items have none."""
        slots: list[Slot] = []
        try:
            return self._list(label, values, (), slots), slots
        except BranchMismatchError:
            return None

    def _node(
        self,
        label: str,
        values: Sequence[Any],
        path: tuple[Any, ...],
        slots: list[Slot],
        *,
        always: bool = False,
        bare: bool = False,
    ) -> Node:
        """The structure of some values; their leaves are appended to ``slots``."""
        trace = self.trace
        real = [v for v in values if v is not ABSENT]
        complete = len(real) == len(values)
        fixed = (complete and not always) or self._is_atom(real[0], path)
        if fixed and all(same(v, real[0]) for v in real[1:]):
            return Constant(real[0])
        always = always or not complete
        if not bare and any(v is None or presence(trace, v) is not None for v in real):
            return self._optional(label, values, path, slots, always=always)
        if all(is_leaf(trace, v) for v in real):
            return self._leaf(label, values, path, slots)
        if all(isinstance(v, list) for v in real):
            lengths = {list.__len__(v) for v in real}
            empty = lengths == {0} and path[-1:] == (ITEM,)
            if len(lengths) > 1 or empty or any(isinstance(v, StagedList) for v in real):
                return self._list(label, values, path, slots)
        if _may_differ_in_keys(trace, real):
            return self._open_dict(label, values, path, slots)
        inside = [shallow(v) for v in real]
        keys = [tuple(k for k, _ in items) for _, items in inside]
        kinds = {
            (kind, kind if kind == "list" else type(v))
            for (kind, _), v in zip(inside, real, strict=True)
        }
        if len(kinds) == 1 and len(set(keys)) == 1 and (keys[0] or inside[0][0] != "object"):
            return self._container(label, values, path, slots, always=always)
        if all(_is_choice(v) for v in real):
            chosen = self.choose(values) if self.choose is not None and complete else None
            if chosen is not None:
                return Constant(chosen)
            return self._choice(label, values, path, slots)
        return self._mismatch(label, values)

    def _is_atom(self, x: Any, path: tuple[Any, ...]) -> bool:
        """Whether ``x`` holds no values, and stays what it is."""
        if isinstance(x, StagedList) or is_leaf(self.trace, x):
            return False
        if x is None and path[-1:] == (ITEM,):  # of a list: it may be replaced
            return False
        return not shallow(x)[1]

    def _leaf(
        self, label: str, values: Sequence[Any], path: tuple[Any, ...], slots: list[Slot]
    ) -> Leaf:
        real = [v for v in values if v is not ABSENT]
        kind = self._unify(label, real)
        slot = Slot([Dummy(real[0]) if v is ABSENT else v for v in values], kind, path)
        slots.append(slot)
        return Leaf(slot)

    def _unset(
        self, label: str, flags: Sequence[Any], path: tuple[Any, ...], slots: list[Slot]
    ) -> Node:
        """The items of a list that are None so far, and may become anything."""
        if path[-1:] != (ITEM,):
            return Constant(None)
        flag = self._leaf(label, flags, (*path, PRESENT), slots)
        kind = ItemType(NUMBERS[int], 0, int, open=True)
        unset = Dummy(Example(kind))
        slots.append(Slot([unset], LeafType("number", kind.dtype, 0, int), path))
        return Optional(self.trace, flag, Leaf(slots[-1]))

    def _optional(
        self,
        label: str,
        values: Sequence[Any],
        path: tuple[Any, ...],
        slots: list[Slot],
        *,
        always: bool,
    ) -> Node:
        flags: list[Any] = []
        inner: list[Any] = []
        for v in values:
            present = None if v is ABSENT or v is None else presence(self.trace, v)
            flags.append(
                v if v is ABSENT else False if v is None else True if present is None else present
            )
            unset = isinstance(v, Example) and v.type.open
            inner.append(ABSENT if v is None or unset else v)
        if all(v is ABSENT for v in inner):
            return self._unset(label, flags, path, slots) if always else Constant(None)
        flag = self._leaf(label, flags, (*path, PRESENT), slots)
        child = self._node(label, inner, path, slots, always=True, bare=True)
        if isinstance(child, Constant) or (isinstance(child, Choice) and self.choose is not None):
            return self._mismatch(label, values)
        return Optional(self.trace, flag, child)

    def _container(
        self,
        label: str,
        values: Sequence[Any],
        path: tuple[Any, ...],
        slots: list[Slot],
        *,
        always: bool,
    ) -> Node:
        first = next(v for v in values if v is not ABSENT)
        kind, items = shallow(first)
        columns = [
            dict.fromkeys(dict(items), ABSENT) if v is ABSENT else dict(shallow(v)[1])
            for v in values
        ]
        children: list[Node] = []
        for key, _ in items:
            inside = [column[key] for column in columns]
            name = (
                f"{label}.{key}"
                if kind in ("dataclass", "object", "namedtuple")
                else f"{label}[{key!r}]"
            )
            children.append(self._node(name, inside, (*path, key), slots, always=always))
        keys = tuple(k for k, _ in items)
        tree = Tree(kind, first, keys, tuple(Tree("leaf") for _ in keys))
        return Container(tree, tuple(children))

    def _open_dict(
        self, label: str, values: Sequence[Any], path: tuple[Any, ...], slots: list[Slot]
    ) -> OpenDict:
        """Dicts of which some lack keys that others have."""
        real = [v for v in values if v is not ABSENT]
        keys, is_ordered = joined_order([list(v) for v in real])
        is_ordered = is_ordered and not any(id(v) in self.trace.unordered for v in real)
        flags: list[Node | None] = []
        children: list[Node] = []
        for key in keys:
            name = f"{label}[{key!r}]"
            inside = [ABSENT if v is ABSENT else v.get(key, ABSENT) for v in values]
            there = [presence_of_key(self.trace, v) for v in inside]
            known = [
                v is not ABSENT if p is None else p for v, p in zip(inside, there, strict=True)
            ]
            open_ = any(p is not True for p in known)
            flags.append(self._leaf(name, known, (*path, key, PRESENT), slots) if open_ else None)
            children.append(self._keyed(name, inside, (*path, key), slots))
        return OpenDict(
            self.trace, real[0], tuple(keys), tuple(flags), tuple(children), is_ordered
        )

    def keyed(self, label: str, values: Sequence[Any]) -> Merged:
        """How the values under a key become one, an object of its own even if they are the same."""
        slots: list[Slot] = []
        return Merged(label, self._keyed(label, values, (), slots), slots)

    def _keyed(
        self, label: str, values: Sequence[Any], path: tuple[Any, ...], slots: list[Slot]
    ) -> Node:
        node = self._node(label, values, path, slots, always=True)
        if isinstance(node, Constant) and _is_choice(node.value):
            return Choice((node.value,), self._leaf(label, [0] * len(values), path, slots))
        return node

    def _list(
        self, label: str, values: Sequence[Any], path: tuple[Any, ...], slots: list[Slot]
    ) -> ListNode:
        trace = self.trace
        examples: list[Any] = []
        for v in values:
            if isinstance(v, StagedList):
                examples += [] if isinstance(v.item, Leaf) and v.is_open else [v.example()]
            elif v is not ABSENT:
                examples += v
        if not examples:
            return self._empty(values, path, slots)
        inside: list[Slot] = []
        ways = Ways(trace, [_ITEMS] * len(examples), self.source, loose=self.loose)
        ways.observed = self.observed
        item = ways._node(label, examples, (*path, ITEM), inside, always=True)
        if not inside:
            number = Leaf(Slot([True], LeafType("number", NUMBERS[bool], 0, bool), (*path, ITEM)))
            inside.append(number.slot)
            item = Counted(number, item)
        made: list[Slot] = []
        if any(not slot.type.item.stacks for slot in inside if slot.type.item is not None):
            raise BranchMismatchError(
                f"the items of {f'`{label}`' if label else 'the list'} are lists of lists or of tensors of "
                "several sizes, and only run time knows how long they are",
                source=self.source or trace.position()[0],
                hint=NESTED,
            )
        staged = [v for v in values if isinstance(v, StagedList) and len(v.columns) == len(inside)]
        for index, slot in enumerate(inside):
            kind = self._column_type(slot)
            if kind is None:
                self._mismatch(label, values)
            elif kind.nested is not None:  # an example of the items does not tell
                varies = any(v.columns[index].type.varies for v in staged)
                kind = dataclasses.replace(kind, varies=kind.varies or varies)
            made.append(Slot([], LeafType("column", kind.dtype, kind.rank, item=kind), slot.path))  # type: ignore[union-attr]
        for way, v in enumerate(values):
            with self._at_the_end_of(way):
                columns = None if v is ABSENT else as_columns(trace, v, item, made)
            if columns is None and v is not ABSENT:
                self._mismatch(label, values)
            for index, slot in enumerate(made):
                slot.values.append(ABSENT if columns is None else columns[index])
        for slot in made:
            like = next(v for v in slot.values if v is not ABSENT)
            slot.values = [Dummy(like) if v is ABSENT else v for v in slot.values]
        slots += made
        return ListNode(trace, item, tuple(Leaf(s) for s in made))

    @contextlib.contextmanager
    def _at_the_end_of(self, way: int) -> Iterator[None]:
        """Let new nodes stand in the block that a way ends in."""
        builder = self.trace.builder
        outer = builder.block
        builder.block = outer if self.blocks is None else self.blocks[way]
        try:
            yield
        finally:
            builder.block = outer

    def _empty(self, values: Sequence[Any], path: tuple[Any, ...], slots: list[Slot]) -> ListNode:
        """Lists that have no items yet."""
        kind = ItemType(NUMBERS[int], 0, int, open=True)
        item = Slot([], LeafType("number", kind.dtype, 0, int), (*path, ITEM))
        column = Slot([], LeafType("column", kind.dtype, item=kind), (*path, ITEM))
        column.values += [
            v.columns[0] if isinstance(v, StagedList) else Column(self.trace, kind, {}, items=())
            for v in values
        ]
        slots.append(column)
        return ListNode(self.trace, Leaf(item), (Leaf(column),))

    def _column_type(self, slot: Slot) -> ItemType | None:
        """The type of a column: what its leaves have in common, over all iterations."""
        kind = joined_types([item_type(self.trace, v) for v in slot.values])
        seen = None if self.observed is None else self.observed.get(slot.path)
        if kind is None or not seen:
            return kind
        shapes = [s for per_world in seen.values() for s in per_world if len(s) == kind.rank]
        proves = len(seen) > 1 or self.trace.world_count == 1
        dims = tuple(
            d if proves and all(s[axis] == d for s in shapes) else None
            for axis, d in enumerate(kind.dims)
        )
        varies = kind.varies or any(len(per_world) > 1 for per_world in seen.values())
        return dataclasses.replace(kind, dims=dims, varies=varies)

    def _choice(
        self, label: str, values: Sequence[Any], path: tuple[Any, ...], slots: list[Slot]
    ) -> Node:
        from exporters.tracing.chosen import Chosen  # it stages branches itself

        options: list[Any] = []
        for v in values:
            for option in v.options if isinstance(v, Chosen) else [v]:
                if option is not ABSENT and not any(same(option, o) for o in options):
                    options.append(option)
        numbers: list[Any] = []
        for way, v in enumerate(values):
            if isinstance(v, Chosen):
                with self._at_the_end_of(way):
                    numbers.append(v.index_in(options))
            elif v is ABSENT:
                numbers.append(0)
            else:
                numbers.append(next(i for i, o in enumerate(options) if same(o, v)))
        return Choice(tuple(options), self._leaf(label, numbers, path, slots))

    def _unify(self, label: str, group: Sequence[Any]) -> LeafType:
        types = [leaf_type(self.trace, x) for x in group]
        kinds = {t.kind for t in types}
        if kinds == {"number"}:
            widest = max((t.number for t in types if t.number), key=_WIDTH.__getitem__)
            return LeafType("number", NUMBERS[widest], 0, widest)
        if kinds == {"array", "number"}:
            arrays = [t for t in types if t.kind == "array"]
            fit = all(t.number is not float or arrays[0].dtype.is_floating_point()
                      for t in types if t.kind == "number")  # fmt: skip
            if len(set(arrays)) == 1 and fit and (self.loose or arrays[0].rank == 0):
                return arrays[0]
        elif len(kinds) == 1 and all(
            (t.dtype, t.rank) == (types[0].dtype, types[0].rank) for t in types
        ):
            return types[0]
        self._mismatch(label, group)
        raise AssertionError

    def _told(self, label: str, source: Source | None) -> str:
        """What to call a name or a result in an error."""
        if label.startswith(_MADE_UP):
            return RESULT  # the other names that the compiler makes up are flags
        if label != RESULT:
            return f"`{label}`"
        return "this expression" if is_expression(source) else RESULT

    def _mismatch(self, label: str, values: Sequence[Any]) -> Any:
        source = self.source or self.trace.position()[0]
        told = self._told(label, source)
        names = _LEAVING if leaves_loop(source) and told == RESULT else self.names
        lines = binding_lines(source, RESULT if told == RESULT else label)
        named = [
            (describe(self.trace, v), w if line is None else f"{w} (line {line})")
            for v, w, line in zip(
                values, names, itertools.chain(lines, itertools.repeat(lines[1])), strict=False
            )
            if v is not ABSENT
        ]
        first, last = named[0], next((n for n in named if n[0] != named[0][0]), named[-1])
        if self.names[0] == _ITEMS:
            raise BranchMismatchError(
                f"the items of {f'`{label}`' if label else 'the list'} are {first[0]} and {last[0]}",
                source=source,
                hint="put items of one structure, dtype and number of dims into a list of run-time length",
            )
        missing = any(v is MISSING for v in values)
        raise BranchMismatchError(
            f"{told} is {first[0]} after {first[1]} but {last[0]} after {last[1]}",
            source=source,
            hint="set it on both ways, to None on the one without it"
            if missing
            else "give it one type, dtype and number of dims on both ways",
        )


def _may_differ_in_keys(trace: Trace, dicts: Sequence[Any]) -> bool:
    """Whether values are dicts of one kind, and some lack keys, or may lack them at run time."""
    if type(dicts[0]) not in DICTS or any(type(d) is not type(dicts[0]) for d in dicts):
        return False
    return any(list(d) != list(dicts[0]) for d in dicts) or (
        bool(trace.missing)
        and any(presence_of_key(trace, v) is not None for d in dicts for v in d.values())
    )


def _is_in(trace: Trace, handle: Any, x: Any, world: int) -> bool:
    """Whether a handle stands for ``x`` in a world."""
    return is_staged(trace, handle) and same(trace.frontend.concrete(handle, world), x)


def _is_choice(x: Any) -> bool:
    return callable(x) or isinstance(x, str | enum.Enum) or hasattr(x, "options")


def static_dims(values: Sequence[ir.Value]) -> list[int | None] | None:
    """The sizes that several values have in common; None where their ranks differ."""
    shapes = [None if v.shape is None else list(v.shape.dims) for v in values]
    if any(s is None for s in shapes) or len({len(s) for s in shapes if s is not None}) != 1:
        return None
    columns = zip(*(s for s in shapes if s is not None), strict=True)
    return [c[0] if all(isinstance(d, int) and d == c[0] for d in c) else None for c in columns]
