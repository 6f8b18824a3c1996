"""Python objects of which only run time knows the one that is meant: layers, keys, functions."""

from __future__ import annotations

import enum
import functools
import types
from typing import TYPE_CHECKING, Any

from exporters.errors import DataDependentError
from exporters.tracing.bodies import NO_SCOPE, Scope, recorded
from exporters.tracing.branches import if_
from exporters.tracing.leaves import presence, presence_of_key, same
from exporters.tracing.own_lists import OwnList
from exporters.tracing.scalars import TracedBool, TracedScalar, plain
from exporters.tracing.trace import Interrupt, Trace

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import CodeType

__all__ = ["Chosen", "invoke", "pick", "require_compiled", "returned"]


class Chosen:
    """One of several objects, chosen at run time; using it stages an ``If`` among them.

    Args:
        index: A traced number.
        keys: The number that stands for each object.
        options: The objects.
    """

    def __init__(self, index: Any, keys: list[Any], options: list[Any]) -> None:
        trace = Trace.current()
        if trace is not None:
            trace.choices = True
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
        scope = Scope((), lambda: (), lambda _: None, lambda: (*self._options, function))

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

    def __eq__(self, other: object) -> bool:
        return bool(self._asked(lambda x: x == other, "the comparison in"))

    def __hash__(self) -> int:
        return int(self._asked(hash, "the hash of an object in"))

    def _asked(self, answer: Callable[[Any], Any], question: str) -> Any:
        """What Python asks of the object, the same in all worlds."""
        trace = Trace.current()
        if trace is None or not trace.live:
            return answer(self._options[self._keys.index(plain(self._index))])
        options = {
            w: self._options[self._keys.index(trace.number_in(self._index, w))]
            for w in trace.active
        }
        answers = {w: answer(x) for w, x in options.items()}
        return trace.decide(answers, data=self._index.record.data, asked=question)

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
        _require_caller(trace)
    return x


def _require_caller(trace: Trace) -> None:
    """Raise if the caller of the innermost function would take the example's answer.

    Raises:
        Interrupt: It is not compiled.
    """
    frame = trace.finder.calling_frame()
    if frame is None or frame.f_code in trace.compiled:
        return
    source, _ = trace.position()
    raise Interrupt(
        DataDependentError(
            "what is returned here is another object for other inputs, and the caller "
            f"{frame.f_code.co_qualname} is not compiled",
            source=source,
            hint=f"mark {frame.f_code.co_qualname} with @bridge.script",
        ),
        frame,
    )


def require_compiled(trace: Trace, code: CodeType) -> None:
    """Raise if a function that has to ask what it is given would take the example's answer.

    Raises:
        Interrupt: It is not compiled.
    """
    if code in trace.compiled or not trace.finder.is_user(code):
        return
    source, _ = trace.position()
    raise Interrupt(
        DataDependentError(
            f"what {code.co_qualname} is given here is another object for other inputs, and it "
            "is not compiled",
            source=source,
            hint=f"mark {code.co_qualname} with @bridge.script",
        ),
        code,
    )


def _is_open(trace: Trace, x: Any, *, inside: bool = False) -> bool:
    """Whether only run time knows which object ``x`` is, or if something in it is None."""
    if isinstance(x, Chosen) or (inside and presence(trace, x) is not None):
        return True
    held = x if isinstance(x, dict) else getattr(x, "__dict__", None)
    if trace.missing and isinstance(held, dict):
        return any(presence_of_key(trace, i) is not None for i in held.values())
    return type(x) in (tuple, list, OwnList) and any(_is_open(trace, i, inside=True) for i in x)


def invoke(function: Any, /, *args: Any, **kwargs: Any) -> Any:
    """``function(*args, **kwargs)``: it has to be compiled to ask what only run time knows."""
    trace = recorded()
    if trace is not None and (trace.optional or trace.choices or trace.missing):
        code, owner = _behind(function)
        given = any(_is_open(trace, x) for x in (*args, *kwargs.values()))
        if code is not None and (given or _is_open(trace, owner)):
            require_compiled(trace, code)
    return function(*args, **kwargs)


def _behind(function: Any) -> tuple[CodeType | None, list[Any]]:
    """The code that a call runs, and what the object that it belongs to holds."""
    while isinstance(function, functools.partial):
        function = function.func
    owner = getattr(function, "__self__", None)
    if isinstance(function, type):
        function = vars(function).get("__init__")
    elif not isinstance(function, types.FunctionType | types.MethodType):
        owner = function
        function = getattr(function, "forward", None) or type(function).__dict__.get("__call__")
    function = getattr(function, "__func__", function)
    code = function.__code__ if isinstance(function, types.FunctionType) else None
    return code, list(getattr(owner, "__dict__", {}).values())


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
    if all(callable(x) or isinstance(x, str | enum.Enum) for x in items):
        return Chosen(index, keys, items)

    def at(position: int) -> Any:
        if position == len(items) - 1:
            return items[position]
        here = is_key(trace, index, keys[position])
        return if_(here, lambda: items[position], lambda: at(position + 1), NO_SCOPE)

    return at(0)
