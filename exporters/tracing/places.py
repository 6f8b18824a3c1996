"""Objects at run-time positions, changed where they are: ``rows[i].append(x)``, ``rows[i][j] = x``."""

from __future__ import annotations

import functools
import operator
from typing import TYPE_CHECKING, Any

from exporters.tracing.bodies import Scope
from exporters.tracing.branches import if_
from exporters.tracing.chosen import Chosen
from exporters.tracing.keys import settled
from exporters.tracing.lists import StagedList
from exporters.tracing.merging import flatten_state, is_staged
from exporters.tracing.operators import UPDATES, compare, getitem, require_key
from exporters.tracing.pytree import shallow
from exporters.tracing.trace import Trace

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["setattribute", "updateattribute", "within"]


def within(container: Any, index: Any, change: Callable[[Any], Any]) -> Any:
    """``change(container[index])``, which may change that object.

    Args:
        container: What holds the object.
        index: Where; perhaps known at run time only.
        change: Called with the object.
    """
    trace = Trace.current()
    if trace is None or not trace.live:
        return change(settled(container, index))
    if isinstance(container, StagedList):
        return _in_list(trace, container, index, change)
    if not (is_staged(trace, index) or isinstance(index, Chosen)):
        return change(settled(container, index))
    keys, items = _options(container)
    missing = isinstance(index, Chosen) and isinstance(container, dict)  # keys, of a defaultdict
    if not trace.recording or not (missing or all(is_changeable(trace, x) for x in items)):
        return change(getitem(container, index))
    if isinstance(index, Chosen):
        keys = index.options
    elif isinstance(container, dict):
        index = _number(trace, index)
        require_key(trace, container, index)
    else:  # from the end, too
        index = trace.arithmetic("mod", _number(trace, index), len(container))
    scope = Scope((), lambda: (), lambda _: None, lambda: (container, change))

    def at(position: int) -> Any:
        if position == len(keys) - 1:
            return change(settled(container, keys[position]))
        here = compare("eq", index, keys[position])
        last = functools.partial(at, position + 1)
        return if_(here, lambda: change(settled(container, keys[position])), last, scope)

    return at(0)


def _number(trace: Trace, index: Any) -> Any:
    return trace.frontend.to_number(index) if trace.frontend.is_array(index) else index


def _options(container: Any) -> tuple[list[Any], list[Any]]:
    if isinstance(container, dict):
        return list(container), list(container.values())
    if isinstance(container, list | tuple) and container:
        return list(range(len(container))), list(container)
    return [], [0]


def is_changeable(trace: Trace, x: Any) -> bool:
    """Whether code may change ``x`` itself."""
    if trace.frontend.is_array(x) or callable(x) or isinstance(x, tuple | str | int | float):
        return False
    return isinstance(x, list | dict | set) or bool(shallow(x)[1])


def _in_list(trace: Trace, items: StagedList, index: Any, change: Callable[[Any], Any]) -> Any:
    item = items.take(index)
    if not is_changeable(trace, item):
        return change(item)
    before = _contents(trace, item)
    result = change(item)
    after = _contents(trace, item)
    if len(before) != len(after) or not all(map(operator.is_, before, after)):
        items[index] = item
    return result


def _contents(trace: Trace, x: Any) -> list[Any]:
    leaves = flatten_state(trace, x)[0]
    return [y for x in leaves for y in (x.columns if isinstance(x, StagedList) else (x,))]


def each(
    items: StagedList,
    body: Callable[[Any], None],
    placed: Callable[[Any, Any], Any] | None,
    index: Any,
) -> None:
    """One iteration over a list whose items the body may change."""
    within(items, index, body if placed is None else lambda item: body(placed(index, item)))


def setattribute(owner: Any, name: str, value: Any) -> None:
    """``owner.name = value``."""
    setattr(owner, name, value)


def updateattribute(owner: Any, name: str, operation: str, value: Any) -> None:
    """``owner.name += value`` and its like."""
    setattr(owner, name, UPDATES[operation](getattr(owner, name), value))


def over_places(
    trace: Trace,
    items: Any,
    body: Callable[[Any], None],
    placed: Callable[[Any, Any], Any] | None = None,
) -> Callable[[Any], None] | None:
    """A body over the positions of a list, if it may change the list's items."""
    if not isinstance(items, StagedList) or not is_changeable(trace, items.example()):
        return None
    return functools.partial(each, items, body, placed)
