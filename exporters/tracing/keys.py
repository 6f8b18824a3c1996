"""Dicts of which only run time knows whether they have a key: ``if c: options["mask"] = m``."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from exporters.errors import ScriptError
from exporters.tracing.bodies import NO_SCOPE, Scope
from exporters.tracing.branches import if_
from exporters.tracing.chosen import invoke
from exporters.tracing.leaves import KeyAskedError, presence_of_key
from exporters.tracing.scalars import TracedScalar
from exporters.tracing.trace import Interrupt, Trace

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["dict_method", "has_key", "key_count", "require_keys", "with_keys"]


def _open_keys(container: Any) -> dict[Any, Any]:
    """The keys that may be missing, each with a traced truth value, or in a replay a plain one."""
    trace = Trace.current()
    if trace is None or not trace.live or type(container) is not dict:
        return {}
    late = ((id(container), k) for k in container if trace.recording)
    for place in late:
        if place in trace.late_keys:
            raise KeyAskedError(place)
    found = {k: presence_of_key(trace, v) for k, v in container.items()}
    return {
        k: p if trace.recording else bool(trace.number_in(p, trace.active[0]))
        for k, p in found.items()
        if p is not None
    }


def has_key(container: Any, key: Any) -> Any:
    """Whether a dict has a key that may be missing; None if Python knows."""
    keys = _open_keys(container)
    if not keys:
        return None
    if isinstance(key, TracedScalar):
        _refuse("use a list, or a tensor indexed by the number: `counts[v] += 1`")
    return keys.get(key)


def key_count(container: Any) -> Any:
    """How many keys a dict has; None if Python knows."""
    keys = _open_keys(container)
    if not keys:
        return None
    trace = Trace.current()
    assert trace is not None
    return sum((trace.arithmetic("int", p) for p in keys.values()), len(container) - len(keys))


def require_keys(container: Any) -> None:
    """Complain of a dict whose keys are gone through.

    Raises:
        Interrupt: A key may be missing.
    """
    trace = Trace.current()
    if trace is None or not trace.recording or not _open_keys(container):
        return
    _refuse("ask for each by its name: `d.get(key)`, `key in d`, or pass it on as **d")


def _refuse(hint: str) -> None:
    trace = Trace.current()
    assert trace is not None
    trace.moved()
    source, _ = trace.position()
    told = "which keys this dict has depends on the input's values"
    raise Interrupt(ScriptError(told, source=source, hint=hint))


def dict_method(owner: dict[Any, Any], name: str) -> Callable[..., Any]:
    """``owner.name`` of a dict."""
    bound: Callable[..., Any] = getattr(owner, name)
    keys = _open_keys(owner)
    if not keys:
        return bound
    if name in ("items", "keys", "values"):
        require_keys(owner)
        return bound

    def read(key: Any, default: Any = None) -> Any:
        if key not in keys:
            return bound(key, default)
        value = owner[key]
        found = if_(keys[key], lambda: value, lambda: default, NO_SCOPE)
        if name == "pop":
            del owner[key]
        elif name == "setdefault":
            owner[key] = found
        return found

    return read


def with_keys(function: Any, keywords: dict[str, Any], /, *args: Any) -> Any:
    """``function(*args, **keywords)``; a key that may be missing is given where it is there."""
    return _given(function, keywords, args, _open_keys(keywords))


def _given(
    function: Any, keywords: dict[str, Any], args: tuple[Any, ...], keys: dict[str, Any]
) -> Any:
    if not keys:
        return invoke(function, *args, **keywords)
    key, *others = keys
    rest = {k: keys[k] for k in others}
    without = {k: v for k, v in keywords.items() if k != key}
    scope = Scope((), tuple, lambda _: None, lambda: (function, args, keywords))
    return if_(
        keys[key],
        functools.partial(_given, function, keywords, args, rest),
        functools.partial(_given, function, without, args, rest),
        scope,
    )
