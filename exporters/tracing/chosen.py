"""Python objects of which only run time knows the one that is meant: layers, keys, functions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from exporters.tracing.bodies import NO_SCOPE, Scope, recorded
from exporters.tracing.branches import if_
from exporters.tracing.leaves import presence, same
from exporters.tracing.scalars import TracedBool, TracedScalar
from exporters.tracing.trace import Trace

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Chosen", "pick", "returned"]


class Chosen:
    """One of several objects, chosen at run time; using it stages an ``If`` among them.

    Args:
        index: A traced number.
        keys: The number that stands for each object.
        options: The objects.
    """

    def __init__(self, index: Any, keys: list[Any], options: list[Any]) -> None:
        self._index = index
        self._keys = keys
        self._options = options

    @property
    def options(self) -> list[Any]:
        """The objects."""
        return self._options

    def index_in(self, options: Sequence[Any]) -> Any:
        """The chosen one's place among other options; None if they lack one of these."""
        places = [
            next((i for i, o in enumerate(options) if same(o, x)), None) for x in self._options
        ]
        if None in places:
            return None
        trace = Trace.current()
        assert trace is not None
        if not trace.recording:
            return places[self._keys.index(trace.number_in(self._index, trace.active[0]))]
        if places == self._keys and not isinstance(self._index, TracedBool):
            return self._index
        return pick(trace, self._index, self._keys, places)

    def map(self, function: Callable[[Any], Any]) -> Any:
        """``function`` of the chosen object."""
        trace = Trace.current()
        if trace is None or not trace.live or not trace.recording:
            world = 0 if trace is None else trace.active[0]
            number = self._index.record.worlds.get(world, self._keys[0])
            return function(self._options[self._keys.index(number)])
        scope = Scope((), lambda: (), lambda _: None, lambda: tuple(self._options))

        def at(position: int) -> Any:
            option = self._options[position]
            if position == len(self._options) - 1:
                return function(option)
            here = is_key(trace, self._index, self._keys[position])
            return if_(here, lambda: function(option), lambda: at(position + 1), scope)

        return at(0)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The result of the chosen one."""
        return self.map(lambda option: option(*args, **kwargs))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        values = [getattr(x, name) for x in self._options]
        trace = recorded()
        if trace is None or all(v is values[0] for v in values):
            return values[0]
        return pick(trace, self._index, self._keys, values)


def returned(x: Any) -> Any:
    """What a function returns: its caller has to know what it may be."""
    trace = recorded()
    if trace is not None and _is_open(trace, x):
        trace.returned()
    return x


def _is_open(trace: Trace, x: Any) -> bool:
    """Whether only run time knows if ``x`` is None, or which object it is."""
    if isinstance(x, Chosen) or (trace.optional and presence(trace, x) is not None):
        return True
    return type(x) in (tuple, list) and any(_is_open(trace, item) for item in x)


def is_key(trace: Trace, index: Any, key: Any) -> Any:
    """Whether a traced number is ``key``, as a traced truth value."""
    if isinstance(index, TracedBool):
        return index if key else trace.arithmetic("not", index)
    return trace.arithmetic("eq", index, key)


def pick(trace: Trace, index: TracedScalar, keys: list[Any], items: list[Any]) -> Any:
    """One of several items, chosen at run time: by ``Gather`` if they stack, else by ``If``."""
    if keys == list(range(len(items))):
        gathered = trace.frontend.gather_items(items, index)
        if gathered is not None:
            return gathered
    if all(callable(x) or isinstance(x, str) for x in items):
        return Chosen(index, keys, items)

    def at(position: int) -> Any:
        if position == len(items) - 1:
            return items[position]
        here = is_key(trace, index, keys[position])
        return if_(here, lambda: items[position], lambda: at(position + 1), NO_SCOPE)

    return at(0)
