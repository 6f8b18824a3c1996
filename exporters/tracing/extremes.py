"""``min`` and ``max`` of what only run time knows, by a key and with a default."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from exporters.tracing.bodies import NO_SCOPE, recorded
from exporters.tracing.branches import if_
from exporters.tracing.iteration import comprehension, iterable, natively
from exporters.tracing.keys import own_dict
from exporters.tracing.lists import StagedList
from exporters.tracing.merging import flatten_state, is_staged
from exporters.tracing.operators import compare
from exporters.tracing.own_lists import held

if TYPE_CHECKING:
    from collections.abc import Callable

    from exporters.tracing.trace import Trace

__all__ = ["largest", "smallest"]

_NONE = object()


def _same(x: Any) -> Any:
    return x


def _extreme(name: str, plain: Callable[..., Any]) -> Callable[..., Any]:
    def extreme(*args: Any, key: Any = None, default: Any = _NONE) -> Any:
        trace = recorded()
        key = own_dict(key)
        options = {} if default is _NONE else {"default": default}
        items = held(args[0]) if len(args) == 1 else args
        if trace is None:
            return plain(natively(items), key=key, **options)
        if key is None and not options and trace.frontend.is_handle(items):
            return trace.frontend.reduce(items, name)
        if not isinstance(items, StagedList) and iterable(trace, items) is not None:
            items = comprehension(items, _same)
        if isinstance(items, StagedList):
            return _of_list(trace, name, items, key, default)
        return _of_known(trace, name, plain, list(natively(items)), key, options)

    return extreme


def _of_list(trace: Trace, name: str, items: StagedList, key: Any, default: Any) -> Any:
    def best() -> Any:
        if key is None and len(items.columns) == 1:
            return trace.frontend.reduce_list(items, name)
        numbers: Any = items if key is None else comprehension(items, key)
        if len(numbers.columns) > 1:  # tuples
            return trace.frontend.sorted_list(items, key, reverse=name == "max")[0]
        return items[trace.frontend.place_of(numbers, name)]

    if default is _NONE:
        return best()
    more = compare("gt", items.staged_length(), 0)
    return if_(more, best, functools.partial(_same, default), NO_SCOPE)


def _of_known(
    trace: Trace,
    name: str,
    plain: Callable[..., Any],
    items: list[Any],
    key: Any,
    options: dict[str, Any],
) -> Any:
    keys = items if key is None else [key(x) for x in items]
    if not items or not any(is_staged(trace, x) for x in flatten_state(trace, keys)[0]):
        return plain(items, key=key, **options)
    best, most = items[0], keys[0]
    for x, k in zip(items[1:], keys[1:], strict=True):
        if key is None and isinstance(x, int | float) and isinstance(best, int | float):
            best = most = trace.arithmetic(name, best, x)
            continue
        better = compare("lt" if name == "min" else "gt", k, most)
        one = functools.partial(_same, (x, k) if key is not None else x)
        other = functools.partial(_same, (best, most) if key is not None else best)
        found = if_(better, one, other, NO_SCOPE)
        best, most = found if key is not None else (found, found)
    return best


smallest = _extreme("min", min)
largest = _extreme("max", max)
