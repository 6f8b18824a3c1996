"""Calls with an argument that is None for some inputs and a tensor for others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from exporters.tracing.bodies import NO_SCOPE
from exporters.tracing.branches import if_
from exporters.tracing.leaves import presence
from exporters.tracing.trace import Trace

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from exporters.pytorch.tracer import TorchTracer

__all__ = ["call_either_way", "may_be_none", "optional_argument"]


def may_be_none(x: Any) -> bool:
    """Whether a value of the current trace is None for some inputs."""
    trace = Trace.current()
    return trace is not None and bool(trace.optional) and presence(trace, x) is not None


def optional_argument(
    tracer: TorchTracer, func: Any, args: Sequence[Any], kwargs: dict[str, Any]
) -> Any:
    """The first argument that may be None and that ``func`` takes as None; None without such."""
    trace = tracer.trace
    for x in tracer.leaves(args, kwargs):
        if presence(trace, x) is None:
            continue
        home = trace.active[0]
        given = tracer.concrete(_without(tuple(args), x), home)
        named = tracer.concrete(_without(kwargs, x), home)
        try:
            func(*given, **named)
        except Exception:  # whatever eager says of None, it would say for such inputs
            continue
        return x
    return None


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


def _without(arguments: Any, x: Any) -> Any:
    """The arguments with None in the place of ``x``."""
    if arguments is x:
        return None
    if type(arguments) in (tuple, list):
        return type(arguments)(_without(a, x) for a in arguments)
    if type(arguments) is dict:
        return {k: _without(a, x) for k, a in arguments.items()}
    return arguments
