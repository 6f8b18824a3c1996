"""What a condition says of values that may be None: where it holds, they are there."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from exporters.tracing.trace import Trace

__all__ = ["granted", "imply", "said_by"]


def imply(
    trace: Trace, condition: Any, *, if_true: Sequence[Any] = (), if_false: Sequence[Any] = ()
) -> Any:
    """``condition``, known from now on to hold, or not to hold, only where some values are there."""
    record = _record(trace, condition)
    if record is not None and (if_true or if_false):
        trace.implied[id(record)] = record, tuple(if_true), tuple(if_false)
    return condition


def _record(trace: Trace, condition: Any) -> Any:
    """What the trace knows of a condition: a traced number, or an array."""
    return getattr(condition, "record", None) or trace.record(condition)


def said_by(trace: Trace, condition: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """The values that are there if a condition holds, and those that are there if it does not."""
    record = _record(trace, condition) if trace.implied else None
    found = trace.implied.get(id(record))
    return ((), ()) if found is None or found[0] is not record else found[1:]


@contextlib.contextmanager
def granted(trace: Trace, values: Sequence[Any]) -> Iterator[None]:
    """Take some values for granted: they are not None here."""
    marks = {id(x): trace.optional.pop(id(x)) for x in values if id(x) in trace.optional}
    try:
        yield
    finally:
        trace.optional.update(marks)
