"""One value for what several branches, or several iterations, leave in a name."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from exporters.errors import BranchMismatchError
from exporters.tracing.lists import Contents, ItemType, StagedList
from exporters.tracing.pytree import Tree, flatten
from exporters.tracing.scalars import ScalarRecord, TracedScalar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from exporters.tracing.source import Source
    from exporters.tracing.trace import Trace

__all__ = ["KEEP", "UNBOUND", "LeafType", "Merged", "Slot", "is_leaf", "leaf_type", "make_leaf"]


class _Unbound:
    """What a name holds that was never assigned."""

    def __repr__(self) -> str:
        return "unbound"


UNBOUND = _Unbound()
KEEP = object()
NUMBERS = {bool: ir.DataType.BOOL, int: ir.DataType.INT64, float: ir.DataType.DOUBLE}
_WIDTH = {bool: 0, int: 1, float: 2}


def is_leaf(trace: Trace, x: Any) -> bool:
    """Whether ``x`` can be a value of the graph."""
    return isinstance(x, bool | int | float | StagedList) or trace.frontend.is_array(x)


def flatten_state(trace: Trace, x: Any) -> tuple[list[Any], Tree]:
    """The leaves of what a name holds, and the structure around them."""
    return flatten(x, lambda leaf: is_leaf(trace, leaf))


def is_staged(trace: Trace, x: Any) -> bool:
    """Whether ``x`` is known at run time only."""
    return isinstance(x, TracedScalar | StagedList) or trace.frontend.is_handle(x)


@dataclasses.dataclass(frozen=True, slots=True)
class LeafType:
    """What a name may hold at run time.

    Attributes:
        kind: ``array``, ``number`` or ``list``.
        dtype: Element type in the graph.
        rank: Number of dims; of the items, for a list.
        number: Python type of a number, or of a list's items.
    """

    kind: str
    dtype: ir.DataType
    rank: int = 0
    number: type | None = None


def leaf_type(trace: Trace, x: Any) -> LeafType:
    """The type of a leaf."""
    if isinstance(x, StagedList):
        return LeafType("list", x.item.dtype, x.item.rank, x.item.number)
    if trace.frontend.is_array(x):
        dtype, shape = trace.frontend.type_of(x)
        return LeafType("array", dtype, len(shape))
    number = x.kind if isinstance(x, TracedScalar) else type(x)
    return LeafType("number", NUMBERS[number], 0, number)


def describe(trace: Trace, x: Any) -> str:
    """A value's type as the user writes it: ``float32[N, 8]``, ``int``, ``a list of 3``."""
    if x is UNBOUND:
        return "unbound"
    if trace.frontend.is_array(x):
        dtype, shape = trace.frontend.type_of(x)
        return f"{dtype.numpy().name}[{', '.join(map(str, shape))}]"
    if isinstance(x, TracedScalar):
        return x.kind.__name__
    if isinstance(x, StagedList):
        return "a list"
    if isinstance(x, list | tuple):
        inside = ", ".join(describe(trace, i) for i in x[:4]) + (", ..." if len(x) > 4 else "")
        return f"[{inside}]" if isinstance(x, list) else f"({inside})"
    if isinstance(x, bool | int | float):
        return type(x).__name__
    return repr(x) if isinstance(x, str | None) else type(x).__name__


def same(a: Any, b: Any) -> bool:
    """Whether two values are one constant: the same object, or equal plain values."""
    if a is b:
        return True
    plain = int | float | str | bytes | bool | complex
    if isinstance(a, TracedScalar) or isinstance(b, TracedScalar):
        return False
    return type(a) is type(b) and isinstance(a, plain) and (a == b or (a != a and b != b))


@dataclasses.dataclass(slots=True)
class Slot:
    """One leaf that differs between the ways to a point of the program.

    Attributes:
        values: The leaf as each way leaves it.
        type: The type that serves them all.
    """

    values: list[Any]
    type: LeafType


@dataclasses.dataclass(slots=True)
class Merged:
    """A name (or a place in an object) with several possible values.

    Attributes:
        label: What the user calls it.
        tree: The structure that all values have.
        leaves: For each leaf either the one value it always has, or a :class:`Slot`.
    """

    label: str
    tree: Tree
    leaves: list[Any]

    @property
    def slots(self) -> list[Slot]:
        """The leaves that differ."""
        return [leaf for leaf in self.leaves if isinstance(leaf, Slot)]

    def rebuild(self, values: Sequence[Any]) -> Any:
        """The name's value, given one for each slot."""
        remaining = iter(values)
        return self.tree.unflatten(
            [next(remaining) if isinstance(leaf, Slot) else leaf for leaf in self.leaves]
        )


class Ways:
    """The ways that lead to a point: two branches, or a loop's start and its iterations.

    Args:
        trace: The trace.
        names: What to call each way: "the `if` branch".
        source: The statement, for errors.
        loose: Whether a number may meet an array of any rank (in loops, where shapes may change).
        choose: Makes one object of several that are not values of the graph; None if there is no
            such thing.
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
        self.choose = choose
        self.trace = trace
        self.names = names
        self.source = source
        self.loose = loose

    def merge(self, label: str, values: Sequence[Any]) -> Merged | Any:
        """How a name's values become one; the value itself when they are all the same.

        Raises:
            BranchMismatchError: No one type serves them all.
        """
        first = values[0]
        if all(same(v, first) for v in values[1:]):
            return first
        if any(v is UNBOUND for v in values):
            return UNBOUND
        if self._are_lists(values):
            item = item_type(self.trace, values)
            if item is None:
                self._mismatch(label, values)
            wanted = LeafType("list", item.dtype, item.rank, item.number)  # type: ignore[union-attr]
            return Merged(label, Tree("leaf"), [Slot(list(values), wanted)])
        flats = [flatten_state(self.trace, v) for v in values]
        if any(not _alike(tree, flats[0][1]) for _, tree in flats[1:]):
            objects = all(tree.kind == "static" and _is_object(tree.original) for _, tree in flats)
            if objects and self.choose is not None:
                return self.choose(values)
            self._mismatch(label, values)
        leaves: list[Any] = []
        for group in zip(*(leaves for leaves, _ in flats), strict=True):
            if all(same(x, group[0]) for x in group[1:]):
                leaves.append(group[0])
            else:
                leaves.append(Slot(list(group), self._unify(label, group)))
        return Merged(label, flats[0][1], leaves)

    def _are_lists(self, values: Sequence[Any]) -> bool:
        """Whether the values are lists whose length only run time knows."""
        if not all(isinstance(v, list) for v in values):
            return False
        lengths = {list.__len__(v) for v in values}
        return len(lengths) > 1 or any(isinstance(v, StagedList) for v in values)

    def _unify(self, label: str, group: Sequence[Any]) -> LeafType:
        types = [leaf_type(self.trace, x) for x in group]
        kinds = {t.kind for t in types}
        if kinds == {"number"}:
            widest = max((t.number for t in types if t.number), key=_WIDTH.__getitem__)
            return LeafType("number", NUMBERS[widest], 0, widest)
        if kinds == {"array", "number"}:
            arrays = [t for t in types if t.kind == "array"]
            fits = all(t.number is not float or arrays[0].dtype.is_floating_point()
                       for t in types if t.kind == "number")  # fmt: skip
            if len(set(arrays)) == 1 and fits and (self.loose or arrays[0].rank == 0):
                return arrays[0]
        elif len(kinds) == 1:
            first = types[0]
            if all(
                (t.dtype, t.rank, t.number) == (first.dtype, first.rank, first.number)
                for t in types
            ):
                return first
        self._mismatch(label, group)
        raise AssertionError

    def _mismatch(self, label: str, values: Sequence[Any]) -> None:
        texts = [describe(self.trace, v) for v in values]
        first, last = texts[0], next((t for t in texts if t != texts[0]), texts[-1])
        which = texts.index(last)
        raise BranchMismatchError(
            f"`{label}` is {first} after {self.names[0]} but {last} after {self.names[which]}",
            source=self.source,
            hint="give it one type, dtype and number of dims on both ways",
        )


def item_type(trace: Trace, lists: Sequence[list[Any]]) -> ItemType | None:
    """The type of all items of some lists; None if they have none in common."""
    found: set[ItemType] = {x.item for x in lists if isinstance(x, StagedList)}
    for items in lists:
        if isinstance(items, StagedList):
            continue
        for x in items:
            leaves, tree = flatten_state(trace, x)
            if tree.kind != "leaf":
                return None
            kind = leaf_type(trace, leaves[0])
            found.add(ItemType(kind.dtype, kind.rank, kind.number))
    return found.pop() if len(found) == 1 else None


def _is_object(x: Any) -> bool:
    return callable(x) or isinstance(x, str) or hasattr(x, "map")


def _alike(a: Tree, b: Tree) -> bool:
    """Whether two structures are the same, up to their leaves."""
    if a.kind != b.kind or a.keys != b.keys or len(a.children) != len(b.children):
        return False
    if a.kind == "static":
        return same(a.original, b.original) or bool(a.original is b.original)
    if a.kind != "leaf" and type(a.original) is not type(b.original):
        return False
    return all(_alike(x, y) for x, y in zip(a.children, b.children, strict=True))


def leaf_value(trace: Trace, x: Any, wanted: LeafType) -> ir.Value:
    """A leaf as a graph value of the wanted type, in the innermost block."""
    op = trace.builder
    if wanted.kind == "list":
        return as_staged_list(trace, x, wanted).sequence()
    if trace.frontend.is_array(x):
        found: ir.Value = trace.frontend.graph(x)
        return found
    return op.operand(x, wanted.dtype)


def leaf_in(trace: Trace, x: Any, wanted: LeafType, world: int) -> Any:
    """A leaf as it is in one world, of the wanted type."""
    if wanted.kind == "list":
        if isinstance(x, StagedList):
            return list(x.contents.worlds[world])
        return [trace.frontend.concrete(i, world) for i in x]
    concrete = trace.frontend.concrete(x, world)
    if wanted.kind == "array" and not trace.frontend.is_array(concrete):
        return trace.frontend.from_number(concrete, wanted.dtype)
    if wanted.kind == "number" and wanted.number is not None:
        return wanted.number(concrete)
    return concrete


def make_leaf(
    trace: Trace,
    worlds: dict[int, Any],
    value: ir.Value,
    wanted: LeafType,
    *,
    dims: Sequence[int | None] | None = None,
    unbacked: bool = False,
    data: bool = True,
) -> Any:
    """A handle, traced number or staged list that ``value`` holds."""
    if wanted.kind == "list":
        value.type = ir.SequenceType(ir.TensorType(wanted.dtype))
        item = ItemType(wanted.dtype, wanted.rank, wanted.number)
        return StagedList(trace, Contents(worlds, None, value), item)
    if wanted.kind == "number":
        assert wanted.number is not None
        value.type, value.shape = ir.TensorType(wanted.dtype), ir.Shape([])
        record = ScalarRecord(trace, worlds, data=data, scalar=value)
        return trace.number(record, wanted.number)
    return trace.frontend.track_value(worlds, value, dims=dims, data=data, unbacked=unbacked)


def as_staged_list(trace: Trace, x: Any, wanted: LeafType) -> StagedList:
    """A Python list of known length as a staged one."""
    if isinstance(x, StagedList):
        return x
    item = ItemType(wanted.dtype, wanted.rank, wanted.number)
    worlds = {w: [trace.frontend.concrete(i, w) for i in x] for w in trace.active}
    op = trace.builder
    if x:
        sequence = op.emit("SequenceConstruct", *(trace.frontend.item_value(i, item) for i in x))
    else:
        sequence = op.emit("SequenceEmpty", dtype=wanted.dtype)
    sequence.type = ir.SequenceType(ir.TensorType(wanted.dtype))
    return StagedList(trace, Contents(worlds, None, sequence), item)


def static_dims(values: Sequence[ir.Value]) -> list[int | None] | None:
    """The sizes that several values have in common; None where their ranks differ."""
    shapes = [None if v.shape is None else list(v.shape.dims) for v in values]
    if any(s is None for s in shapes) or len({len(s) for s in shapes if s is not None}) != 1:
        return None
    columns = zip(*(s for s in shapes if s is not None), strict=True)
    return [c[0] if all(isinstance(d, int) and d == c[0] for d in c) else None for c in columns]
