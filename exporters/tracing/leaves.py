"""What can be a value of the graph: arrays, numbers, columns of lists; and values that may be None."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from exporters.tracing.columns import NUMBERS, Column, ItemType
from exporters.tracing.scalars import ScalarRecord, TracedScalar

if TYPE_CHECKING:
    from collections.abc import Sequence

    from exporters.tracing.trace import Trace

__all__ = ["ABSENT", "MISSING", "UNBOUND", "Dummy", "Example", "KeyAskedError", "LeafType", "fits",
           "is_leaf", "item_type", "leaf_in", "leaf_type", "leaf_value", "make_leaf", "mark", "mark_key",
           "presence", "presence_of_key", "same", "unset"]  # fmt: skip

_WIDTH = {bool: 0, int: 1, float: 2}
_SMALL = 256


class _Marker:
    __slots__ = ("_text",)  # no attributes that could be merged

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text


UNBOUND = _Marker("unbound")  # what a name holds that was never assigned
MISSING = _Marker("missing")  # a key that only one branch puts into a dict
ABSENT = _Marker("absent")  # what one way to a point leaves where nobody reads it


class KeyAskedError(BaseException):
    """Code asks whether a key is there that an iteration before may have set.

    Attributes:
        place: The dict and the key.
    """

    def __init__(self, place: Any) -> None:
        super().__init__()
        self.place = place


@dataclasses.dataclass(frozen=True, slots=True)
class Dummy:
    """Stands for a leaf that is never read.

    Attributes:
        like: A leaf that another way leaves.
    """

    like: Any


@dataclasses.dataclass(frozen=True, slots=True)
class Example:
    """Stands for a leaf of a list's items.

    Attributes:
        type: What the items are.
    """

    type: ItemType


@dataclasses.dataclass(frozen=True, slots=True)
class LeafType:
    """What a leaf may be at run time.

    Attributes:
        kind: ``array``, ``number`` or ``column``.
        dtype: Element type in the graph.
        rank: Number of dims; of the items, for a column.
        number: Python type of a number.
        item: The items of a column.
    """

    kind: str
    dtype: ir.DataType
    rank: int = 0
    number: type | None = None
    item: ItemType | None = None


def is_leaf(trace: Trace, x: Any) -> bool:
    """Whether ``x`` can be one value of the graph."""
    return isinstance(x, bool | int | float | Column | Example | Dummy) or bool(
        trace.frontend.is_array(x)
    )


def leaf_type(trace: Trace, x: Any) -> LeafType:
    """The type of a leaf."""
    if isinstance(x, Dummy):
        return leaf_type(trace, x.like)
    if isinstance(x, Column):
        return LeafType("column", x.type.dtype, x.type.rank, item=x.type)
    if isinstance(x, Example):
        kind = "array" if x.type.number is None else "number"
        return LeafType(kind, x.type.dtype, x.type.rank, x.type.number)
    if trace.frontend.is_array(x):
        dtype, shape = trace.frontend.type_of(x)
        return LeafType("array", dtype, len(shape))
    number = x.kind if isinstance(x, TracedScalar) else type(x)
    number = next(k for k in (bool, int, float) if issubclass(number, k))
    return LeafType("number", NUMBERS[number], 0, number)


def item_type(trace: Trace, x: Any) -> ItemType:
    """The type of the items of a list of leaves like ``x``."""
    if isinstance(x, Dummy):
        return item_type(trace, x.like)
    if isinstance(x, Example):
        return x.type
    if isinstance(x, Column):
        return ItemType.of_lists(x.type)
    kind = leaf_type(trace, x)
    if kind.number is not None:
        return ItemType(kind.dtype, 0, kind.number)
    record = trace.record(x)
    sizes = trace.frontend.type_of(x)[1]
    dims = tuple(d if isinstance(d, int) else None for d in sizes)
    varies = record is not None and record.unbacked and None in dims
    seen = trace.frontend.shape_of(trace.frontend.concrete(x, trace.active[0]))
    return ItemType(kind.dtype, kind.rank, None, dims, varies, seen)


def fits(found: LeafType, wanted: LeafType) -> bool:
    """Whether a leaf can be given where another type is carried."""
    if found == wanted:
        return True
    if found.kind == "column" or wanted.kind == "column":
        if found.item is None or wanted.item is None:
            return False
        return found.item.join(wanted.item) == wanted.item
    if found.number is not None:
        if wanted.number is not None:
            return _WIDTH[found.number] <= _WIDTH[wanted.number]
        return found.number is not float or wanted.dtype.is_floating_point()
    return (found.kind, found.dtype, found.rank) == (wanted.kind, wanted.dtype, wanted.rank)


def same(a: Any, b: Any) -> bool:
    """Whether two values are one constant: the same object, or equal plain values."""
    if a is b:
        return True
    plain = int | float | str | bytes | bool | complex
    if isinstance(a, TracedScalar) or isinstance(b, TracedScalar):
        return False
    if type(a) is not type(b) or not isinstance(a, plain):
        return False
    if isinstance(a, float) and a == b == 0:
        return str(a) == str(b)  # 0.0 and -0.0 are two numbers
    return bool(a == b or (a != a and b != b))


# Values that may be None


def mark(trace: Trace, x: Any, present: Any) -> Any:
    """``x``, known from now on to stand for None unless ``present``, a traced truth value."""
    trace.optional[id(x)] = (x, present)
    if trace.none_tests is not None:
        trace.none_tests.watch()
    return x


def presence(trace: Trace, x: Any) -> Any:
    """Whether ``x`` is not None, as a traced truth value; None if it always is something."""
    found = trace.optional.get(id(x))
    return found[1] if found is not None and found[0] is x else None


def mark_key(trace: Trace, x: Any, present: Any) -> Any:
    """``x``, known from now on to be under its key only if ``present``, a traced truth value."""
    trace.missing[id(x)] = (x, present)
    return x


def presence_of_key(trace: Trace, x: Any) -> Any:
    """Whether ``x`` is under its key, as a traced truth value; None if it always is."""
    found = trace.missing.get(id(x))
    return found[1] if found is not None and found[0] is x else None


def unset(container: Any) -> Any:
    """What a dict gives for a key that it lacks."""
    factory = getattr(container, "default_factory", None)
    return ABSENT if factory is None else factory()


# Leaves and the graph


def leaf_value(trace: Trace, x: Any, wanted: LeafType) -> ir.Value:
    """A leaf as a graph value of the wanted type, in the innermost block."""
    op = trace.builder
    if isinstance(x, Dummy):
        return _zeros(trace, x.like, wanted)
    if wanted.kind == "column":
        assert wanted.item is not None
        column: Column = dataclasses.replace(x, type=wanted.item)
        if wanted.item.stacks:
            return op.cast(column.as_stacked(), wanted.dtype)
        return column.as_sequence()
    if trace.frontend.is_array(x):
        found: ir.Value = trace.frontend.graph(x)
        return found
    return op.operand(x, wanted.dtype)


def _zeros(trace: Trace, like: Any, wanted: LeafType) -> ir.Value:
    op = trace.builder
    if wanted.kind == "column":
        assert wanted.item is not None
        empty = Column(trace, wanted.item, {})
        return empty.as_stacked() if wanted.item.stacks else empty.as_sequence()
    zero = np.zeros([], wanted.dtype.numpy())
    if wanted.kind == "number" or not trace.frontend.is_array(like):
        return op.constant(zero.reshape([1] * wanted.rank))
    sizes = [d if isinstance(d, int) else 1 for d in trace.frontend.type_of(like)[1]]
    if np.prod(sizes) <= _SMALL:
        return op.constant(np.zeros(sizes, zero.dtype))
    spread: ir.Value = op.Expand(op.constant(zero), op.constant(np.asarray(sizes, np.int64)))
    return spread


def leaf_in(trace: Trace, x: Any, wanted: LeafType, world: int) -> Any:
    """A leaf as it is in one world, of the wanted type."""
    if isinstance(x, Dummy):
        if wanted.kind == "column":
            return []
        try:
            concrete = leaf_in(trace, x.like, wanted, world)
        except KeyError:  # made on a way that this world does not take, so any zeros serve
            concrete = x.like
        return trace.frontend.zeros_like(concrete)
    if isinstance(x, Column):
        kind = wanted.item.number if wanted.item is not None else None
        items = x.in_world(world)
        return [kind(i) for i in items] if kind is not None else items
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
    """A handle, traced number or column that ``value`` holds."""
    if wanted.kind == "column":
        assert wanted.item is not None
        tensor = ir.TensorType(wanted.dtype)
        if wanted.item.stacks:
            value.type, value.shape = tensor, ir.Shape([None, *wanted.item.dims])
            return Column(trace, wanted.item, worlds, stacked=value)
        value.type, value.shape = ir.SequenceType(tensor), None
        return Column(trace, wanted.item, worlds, sequence=value)
    if wanted.kind == "number":
        assert wanted.number is not None
        value.type, value.shape = ir.TensorType(wanted.dtype), ir.Shape([])
        record = ScalarRecord(trace, worlds, data=data, scalar=value)
        return trace.number(record, wanted.number)
    return trace.frontend.track_value(worlds, value, dims=dims, data=data, unbacked=unbacked)
