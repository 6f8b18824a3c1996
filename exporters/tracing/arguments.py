"""Stars: ``f(*items)`` and ``first, *rest = items``, of lists whose length only run time knows."""

from __future__ import annotations

import builtins
import types
from typing import TYPE_CHECKING, Any

from exporters.errors import UntraceableError
from exporters.tracing.bodies import recorded
from exporters.tracing.chosen import invoke, require_compiled
from exporters.tracing.iteration import comprehension, iterable, natively
from exporters.tracing.lists import StagedList
from exporters.tracing.trace import Interrupt

if TYPE_CHECKING:
    from collections.abc import Callable

    from exporters.tracing.trace import Trace

__all__ = ["given", "spread", "unpack"]

_TAKES_VARIABLE = 0x04  # flag of code with *args


class _Packed:
    """Stands for the arguments that a list of run-time length gives."""

    def __init__(self, items: StagedList) -> None:
        self.items = items


def given(arguments: tuple[Any, ...]) -> Any:
    """What ``*arguments`` holds in a compiled function."""
    packed = next((x for x in arguments if isinstance(x, _Packed)), None)
    if packed is None:
        return arguments
    lists = (x.items if isinstance(x, _Packed) else [x] for x in arguments)
    return packed.items.joined(*lists)


def _listed(trace: Trace | None, items: Any) -> Any:
    if trace is not None and not isinstance(items, StagedList) and iterable(trace, items):
        return comprehension(items, lambda x: x)
    return items if isinstance(items, StagedList) else list(natively(items))


def spread(
    call: Callable[[Any], Any], function: Any, stars: tuple[bool, ...], *args: Any, **kwargs: Any
) -> Any:
    """``function(a, *b)``.

    Args:
        call: Gives what to call in place of a builtin.
        function: What is called.
        stars: Which arguments have a star.
        args: The arguments.
        kwargs: Those with names.
    """
    trace = recorded()
    parts = [_listed(trace, x) if s else [x] for s, x in zip(stars, args, strict=True)]
    staged = next((p for p in parts if isinstance(p, StagedList)), None)
    if staged is None or trace is None:
        return invoke(call(function), *(x for p in parts for x in p), **kwargs)
    if function is builtins.print:
        return None
    if function in (builtins.max, builtins.min):
        return call(function)(staged.joined(*parts), **kwargs)
    if function is builtins.zip and len(parts) == 1:
        columns = staged.parts()
        if columns is not None:
            return columns
    code = _code(function)
    if code is None or not code.co_flags & _TAKES_VARIABLE or not _fits(function, code, parts):
        trace.moved()
        source, _ = trace.position()
        name = getattr(function, "__name__", type(function).__name__)
        raise Interrupt(
            UntraceableError(
                f"`{name}` is given the items of a list one by one, and only run time knows how many",
                source=source,
                hint=f"let {name} take the list itself, or *args",
            )
        )
    require_compiled(trace, code)
    packed = [[_Packed(p)] if isinstance(p, StagedList) else p for p in parts]
    return function(*(x for p in packed for x in p), **kwargs)


def _code(function: Any) -> types.CodeType | None:
    plain = getattr(function, "__func__", function)
    return plain.__code__ if isinstance(plain, types.FunctionType) else None


def _fits(function: Any, code: types.CodeType, parts: list[Any]) -> bool:
    """Whether the list's items all come under the function's ``*args``."""
    before = int(isinstance(function, types.MethodType))
    for part in parts:
        if isinstance(part, StagedList):
            return before >= code.co_argcount
        before += len(part)
    return True


def unpack(items: Any, before: int, after: int) -> Any:
    """The items for ``a, *b, c = items``: those before the star, a list, those behind it."""
    trace = recorded()
    if trace is None or iterable(trace, items) is None:
        whole = list(natively(items))
        if len(whole) < before + after:
            raise ValueError(
                f"not enough values to unpack (expected at least {before + after}, got {len(whole)})"
            )
        return [*whole[:before], whole[before : len(whole) - after], *whole[len(whole) - after :]]
    whole = _listed(trace, items)
    middle = whole[before:-after] if after else whole[before:]
    ends = [whole[i] for i in range(before)], [whole[i] for i in range(-after, 0)]
    return [*ends[0], middle, *ends[1]]
