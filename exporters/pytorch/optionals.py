"""Calls with an argument that is None for some inputs and a tensor for others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from exporters.tracing.bodies import NO_SCOPE
from exporters.tracing.branches import if_
from exporters.tracing.leaves import presence
from exporters.tracing.trace import Trace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from exporters.pytorch.tracer import TorchTracer

__all__ = ["call_either_way", "may_be_none", "settled_arguments"]


def may_be_none(x: Any) -> bool:
    """Whether a value of the current trace is None for some inputs."""
    trace = Trace.current()
    return trace is not None and bool(trace.optional) and presence(trace, x) is not None


def settled_arguments(
    tracer: TorchTracer, func: Any, args: Sequence[Any], kwargs: dict[str, Any]
) -> tuple[Sequence[Any], dict[str, Any], Any]:
    """Arguments with None where ``func`` takes nothing else, and the first one that may be both.

    Returns:
        Positional and keyword arguments, and one of them that is None for some inputs and taken
        either way; None without such.
    """
    trace = tracer.trace

    def works(world: int, x: Any) -> bool:
        positional, named = _in_world(tracer, (tuple(args), kwargs), world, x)
        try:
            func(*positional, **named)
        except Exception:  # whatever eager says of it, it would say for such inputs
            return False
        return True

    for x in list(_parts((tuple(args), kwargs))):
        present = presence(trace, x)
        if present is None:
            continue
        there = [w for w in trace.active if trace.number_in(present, w)]
        absent = [w for w in trace.active if w not in there]
        if works((absent or there)[0], x):
            if not there or works(there[0], None):
                return args, kwargs, x
            args, kwargs = _without(tuple(args), x), _without(kwargs, x)
    return args, kwargs, None


def call_either_way(
    trace: Trace, call: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any], x: Any
) -> Any:
    """``call(*args, **kwargs)`` staged twice: with ``x`` as a tensor, and with None in its place."""
    present = presence(trace, x)

    def with_value() -> Any:
        marked = trace.optional.pop(id(x))
        try:
            return call(*args, **kwargs)
        finally:
            trace.optional[id(x)] = marked

    def with_none() -> Any:
        return call(*_without(tuple(args), x), **_without(kwargs, x))

    return if_(present, with_value, with_none, NO_SCOPE)


def _parts(x: Any) -> Iterator[Any]:
    """A nest of arguments and all that is in it."""
    yield x
    if isinstance(x, tuple | list | dict):
        for item in x.values() if isinstance(x, dict) else x:
            yield from _parts(item)


def _without(arguments: Any, x: Any) -> Any:
    """The arguments with None in the place of ``x``."""
    return _replaced(arguments, lambda part: part is x)


def _in_world(tracer: TorchTracer, arguments: Any, world: int, x: Any) -> Any:
    """The arguments in one world, with None for what is not there, and for ``x`` if that is one."""
    trace = tracer.trace

    def is_absent(part: Any) -> bool:
        present = presence(trace, part)
        return (x is not None and part is x) or (
            present is not None and not trace.number_in(present, world)
        )

    return tracer.concrete(_replaced(arguments, is_absent), world)


def _replaced(arguments: Any, by_none: Callable[[Any], bool]) -> Any:
    if by_none(arguments):
        return None
    if type(arguments) in (tuple, list):
        return type(arguments)(_replaced(a, by_none) for a in arguments)
    if type(arguments) is dict:
        return {k: _replaced(a, by_none) for k, a in arguments.items()}
    return arguments
