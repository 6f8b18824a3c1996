"""Dicts of which only run time knows whether they have a key: ``if c: options["mask"] = m``."""

from __future__ import annotations

import collections
import functools
from typing import TYPE_CHECKING, Any

from exporters.errors import ScriptError
from exporters.tracing.bodies import NO_SCOPE, Scope
from exporters.tracing.branches import if_
from exporters.tracing.chosen import Chosen, invoke
from exporters.tracing.effects import slots_of
from exporters.tracing.leaves import KeyAskedError, presence_of_key, unset
from exporters.tracing.merging import flatten_state, is_staged
from exporters.tracing.scalars import TracedScalar
from exporters.tracing.trace import Interrupt, Trace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["OpenItems", "attribute", "dict_method", "has_attribute", "has_key", "key_count",
           "merged_dicts", "opened", "own_dict", "settled", "with_keys"]  # fmt: skip

_VIEWS: dict[str, Callable[[Any, Any], Any]] = {
    "items": lambda k, v: (k, v),
    "keys": lambda k, v: k,
    "values": lambda k, v: v,
}


class OpenItems:
    """What a dict holds of which keys may be missing, to be gone through.

    Args:
        entries: Each item, with whether it is there: True, or a traced truth value.
        is_ordered: Whether only run time knows in which order they come.
    """

    def __init__(self, entries: list[tuple[Any, Any]], *, is_ordered: bool) -> None:
        self.entries = entries
        self.is_ordered = is_ordered

    def sorted(self, key: Any, *, reverse: bool) -> OpenItems | None:
        """The same in another order; None if only run time knows which."""
        trace = Trace.current()
        keys = [x if key is None else key(x) for _, x in self.entries]
        if trace is None or any(is_staged(trace, x) for x in flatten_state(trace, keys)[0]):
            return None
        order = sorted(range(len(keys)), key=keys.__getitem__, reverse=reverse)
        return OpenItems([self.entries[i] for i in order], is_ordered=True)

    def each(self) -> list[tuple[Any, Any]]:
        """The items, each with whether it is there.

        Raises:
            Interrupt: Only run time knows in which order they come.
        """
        if not self.is_ordered:
            _refuse(
                "go through them in a certain order: `for key in sorted(d)`",
                "in which order this dict has its keys depends on the input's values",
            )
        return self.entries

    def __iter__(self) -> Iterator[Any]:
        """Nothing that Python could go through.

        Raises:
            Interrupt: Always.
        """
        _refuse("ask for each by its name: `d.get(key)`, `key in d`, or pass it on as **d")
        return iter(())


def _open_keys(container: Any) -> dict[Any, Any]:
    """The keys that may be missing, each with a traced truth value, or in a replay a plain one."""
    trace = Trace.current()
    if trace is None or not trace.live or not isinstance(container, dict):
        return {}
    late = ((id(container), k) for k in container if trace.recording and trace.late_keys)
    for place in late:
        if place in trace.late_keys:
            raise KeyAskedError(place)
    if not trace.missing:
        return {}
    found = {k: presence_of_key(trace, v) for k, v in container.items()}
    return {
        k: p if trace.recording else bool(trace.number_in(p, trace.active[0]))
        for k, p in found.items()
        if p is not None
    }


def has_key(container: Any, key: Any) -> Any:
    """Whether a dict has a key that may be missing; None if Python knows."""
    if isinstance(container, OpenItems):
        return None
    keys = _open_keys(container)
    if not keys:
        return None
    if isinstance(key, TracedScalar):
        _refuse("use a list, or a tensor indexed by the number: `counts[v] += 1`")
    return keys.get(key)


def key_count(container: Any) -> Any:
    """How many keys a dict has; None if Python knows."""
    trace = Trace.current()
    if isinstance(container, OpenItems):
        parts = [p for p, _ in container.entries]
    else:
        keys = _open_keys(container)
        if not keys:
            return None
        parts = [keys.get(k, True) for k in container]
    assert trace is not None
    return sum(trace.arithmetic("int", p) for p in parts)


def settled(container: Any, key: Any) -> Any:
    """``container[key]``; a ``defaultdict`` has the key from then on."""
    if isinstance(container, collections.defaultdict):
        keys = _open_keys(container)
        if key in keys:
            value = container[key]
            container[key] = if_(keys[key], lambda: value, lambda: unset(container), NO_SCOPE)
    return container[key]


def opened(items: Any) -> Any:
    """What to go through in place of a dict: what it has at run time."""
    return _view(items, "keys") if isinstance(items, dict) else items


def _view(owner: dict[Any, Any], name: str) -> Any:
    """``owner.items()`` and its like."""
    keys = _open_keys(owner)
    if not keys:
        return getattr(owner, name)() if name != "keys" else owner
    trace = Trace.current()
    assert trace is not None
    make = _VIEWS[name]
    if not trace.recording:
        return [make(k, v) for k, v in owner.items() if keys.get(k, True)]
    entries = [(keys.get(k, True), make(k, v)) for k, v in owner.items()]
    return OpenItems(entries, is_ordered=_is_ordered(trace, owner, keys))


def _is_ordered(trace: Trace, owner: dict[Any, Any], keys: dict[Any, Any]) -> bool:
    """Whether a dict's keys come in the order that it has here."""
    if trace.unordered.get(id(owner)) is owner:
        return False
    *others, _ = owner
    # set again since it was open: it came last where it was not there
    return not any(k not in keys and trace.opened.get((id(owner), k)) is owner for k in others)


def _refuse(
    hint: str, told: str = "which keys this dict has depends on the input's values"
) -> None:
    trace = Trace.current()
    assert trace is not None
    trace.moved()
    source, _ = trace.position()
    raise Interrupt(ScriptError(told, source=source, hint=hint))


def dict_method(owner: dict[Any, Any], name: str) -> Callable[..., Any]:
    """``owner.name`` of a dict."""
    trace = Trace.current()
    bound: Callable[..., Any] = getattr(owner, name)
    if trace is None or not trace.live:
        return bound
    if name == "update":
        return functools.partial(_update, owner)
    if name in _VIEWS:
        return functools.partial(_view, owner, name) if _open_keys(owner) else bound
    if name not in ("get", "pop", "setdefault"):
        return bound
    keys = _open_keys(owner)

    def read(key: Any, *default: Any) -> Any:
        if isinstance(key, Chosen):
            return key.map(lambda k: read(k, *default))
        if key not in keys:
            return bound(key, *default)
        value, other = owner[key], default[0] if default else None
        found = if_(keys[key], lambda: value, lambda: other, NO_SCOPE)
        if name == "pop":
            del owner[key]
        elif name == "setdefault":
            owner[key] = found
        return found

    return read if keys or trace.choices else bound


def own_dict(function: Any) -> Any:
    """A function that may be a dict's method: ``d.get``, which is given what only run time knows."""
    owner = getattr(function, "__self__", None)
    return dict_method(owner, function.__name__) if isinstance(owner, dict) else function


def _update(owner: dict[Any, Any], *others: Any, **items: Any) -> None:
    """``owner.update(other)``."""
    for other in (*others, items):
        keys = _open_keys(other)
        if not keys:
            owner.update(other)
            continue
        for k, v in other.items():
            setting = functools.partial(owner.__setitem__, k, v)
            scope = Scope((), tuple, lambda _: None, lambda: (owner,))
            if_(keys.get(k, True), setting, _nothing, scope)


def equal_dicts(a: dict[Any, Any], b: dict[Any, Any]) -> Any:
    """``a == b``; None if Python knows.

    Raises:
        Interrupt: Both have keys, and may lack some.
    """
    if not (_open_keys(a) or _open_keys(b)):
        return None
    if a and b:
        _refuse("compare what they hold: `a.get(key) == b.get(key)`")
    trace = Trace.current()
    assert trace is not None
    return trace.arithmetic("eq", key_count(a or b), 0)


def _nothing() -> None:
    return None


def merged_dicts(*dicts: Any) -> Any:
    """``{**a, **b}``, or ``a | b``."""
    found: dict[Any, Any] = {}
    for d in dicts:
        _update(found, d)
    return found


# Attributes


def _attributes(x: Any) -> dict[Any, Any]:
    attributes = getattr(x, "__dict__", None)
    return attributes if type(attributes) is dict else slots_of(x) or {}


def _has(x: Any, name: Any) -> Any:
    """Whether an object has an attribute that it may lack; None if Python knows."""
    trace = Trace.current()
    if trace is None or not trace.live or not (trace.missing or trace.late_keys):
        return None
    held = _attributes(x)
    if name not in held:
        return None
    if trace.recording and (id(held), name) in trace.late_keys:
        raise KeyAskedError((id(held), name))
    present = presence_of_key(trace, held[name])
    if present is None or trace.recording:
        return present
    return bool(trace.number_in(present, trace.active[0]))


def has_attribute(x: Any, name: Any) -> Any:
    """``hasattr(x, name)``."""
    found = _has(x, name)
    return hasattr(x, name) if found is None else found


def attribute(x: Any, name: Any, *default: Any) -> Any:
    """``getattr(x, name, default)``."""
    found = _has(x, name) if default else None
    if found is None:
        return getattr(x, name, *default)
    value = getattr(x, name)
    return if_(found, lambda: value, lambda: default[0], NO_SCOPE)


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
