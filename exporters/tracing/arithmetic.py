"""Arithmetic on numbers that only run time knows: in every world, and as a node of the graph."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from exporters.tracing import scalars
from exporters.tracing.scalars import ScalarRecord, TracedInt, TracedScalar

if TYPE_CHECKING:
    from collections.abc import Sequence

    from exporters.tracing.trace import Trace

__all__ = ["computed"]


def computed(trace: Trace, name: str, operands: Sequence[Any]) -> Any:
    """One Python operation on numbers of which some are traced, in every world and the graph."""
    traced = [x for x in operands if isinstance(x, TracedScalar)]
    worlds = _in_worlds(trace, name, operands)
    if not trace.recording:
        return worlds[trace.active[0]]
    kind = type(worlds[trace.active[0]])
    moved = _offset(trace, name, operands, worlds)
    if moved is not None:
        return moved
    nonnegative = all(
        (x.record.nonnegative if isinstance(x, TracedScalar) else x >= 0) for x in operands
    )
    data = any(x.record.data for x in traced)
    trace.moved()
    as_vector = all(x.record.prefers_vector for x in traced)
    kinds = [x.kind if isinstance(x, TracedScalar) else type(x) for x in operands]
    dtype = scalars.working_dtype(name, kinds, kind)
    values = [_operand(trace, x, dtype, as_vector=as_vector) for x in operands]
    shape = [1] if as_vector else []

    def make(_: Any) -> ir.Value:
        value: ir.Value = scalars.emit(trace.builder, name, values, kind, nonnegative=nonnegative)
        value.shape = ir.Shape(shape)
        return value

    if name in scalars.TOTAL:
        key = (name, kind, nonnegative, as_vector, *values)
        result = trace.builder.once(key, make, *values)
    else:
        result = make(None)
    record = ScalarRecord(
        trace,
        worlds,
        data=data,
        scalar=None if as_vector else result,
        vector=result if as_vector else None,
        nonnegative=nonnegative and name in scalars.KEEP_SIGN,
    )
    record.base = _shifted(name, operands)
    return trace.number(record, kind)


def _in_worlds(trace: Trace, name: str, operands: Sequence[Any]) -> dict[int, Any]:
    """An operation's result in each world; any number where all are ghosts, and it fails."""

    def compute(w: int) -> Any:
        return scalars.PYTHON[name](*[trace.number_in(x, w) for x in operands])

    try:
        return trace.in_worlds(compute)
    except ArithmeticError:
        if not trace.ghosts.issuperset(trace.active):
            raise
        whole = name != "truediv" and not any(isinstance(x, float) for x in operands)
        return dict.fromkeys(trace.active, 1 if whole else 1.0)


def _offset(trace: Trace, name: str, operands: Sequence[Any], worlds: dict[int, Any]) -> Any:
    """``(x + 1) - 1`` and its like, from x ittrace; None for all else."""
    found = _shifted(name, operands)
    if found is None or found[0].base is None:
        return None
    base, shift = found[0].base
    total = shift + found[1]
    record = ScalarRecord(
        trace,
        {w: n - total for w, n in worlds.items()},
        data=base.data,
        scalar=base._scalar,
        vector=base._vector,
        origin=base.origin,
        nonnegative=base.nonnegative,
    )
    number = trace.number(record, int)
    return number if total == 0 else trace.arithmetic("add", number, total)


def _operand(trace: Trace, x: Any, dtype: ir.DataType | None, *, as_vector: bool) -> ir.Value:
    if isinstance(x, TracedScalar):
        value = x.vector() if as_vector else x.scalar()
        return value if dtype is None else trace.builder.cast(value, dtype)
    return trace.builder.operand(x, dtype or scalars._DTYPES[type(x)])


def _shifted(name: str, operands: Sequence[Any]) -> tuple[ScalarRecord, int] | None:
    """The traced int that a constant is added to or taken from, and the constant."""
    if name not in ("add", "sub"):
        return None
    first, second = operands
    if name == "add" and isinstance(second, TracedInt):
        first, second = second, first
    if not isinstance(first, TracedInt) or type(second) is not int:
        return None
    return first.record, second if name == "add" else -second
