"""Compiled code in the place of functions' own, for as long as something is traced.

The swap is seen by every thread: elsewhere compiled code runs as the original does, since it only
stages what a trace of its own thread made.
"""

from __future__ import annotations

import collections
import contextlib
import gc
import inspect
import sys
import threading
import types
import weakref
from typing import TYPE_CHECKING, Any, TypeVar

from exporters.script.compiler import compile_code
from exporters.tracing.source import shorten

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import CodeType, FrameType, FunctionType

__all__ = [
    "Target",
    "compiled",
    "is_marked",
    "marked",
    "nested_codes",
    "script",
    "target_behind",
    "target_of",
]

_F = TypeVar("_F")
_lock = threading.RLock()
# Functions of one definition share their code, and code that is read again equals it.
_marks: dict[CodeType, weakref.WeakSet[FunctionType]] = {}


class Target:
    """A function to compile.

    Attributes:
        code: Its code.
        functions: The function objects to swap it in: its own, or the outermost one around it.
    """

    def __init__(self, code: CodeType, functions: Iterable[FunctionType]) -> None:
        self.code = code
        self.functions = list(functions)

    def __str__(self) -> str:
        return f"{self.code.co_qualname} ({shorten(self.code.co_filename)}:{self.code.co_firstlineno})"


def script(function: _F) -> _F:
    """Mark a function whose data-dependent control flow becomes ONNX ``If`` and ``Loop``.

    It has no effect in eager code: the very same function is returned. A module or a class stands
    for its ``forward``.

    Example:
        >>> @script
        ... def relu_sum(x):
        ...     return x.sum() if x.sum() > 0 else x.sum() * 0
    """
    plain = _plain(function)
    if plain is None:
        raise TypeError(
            f"script takes a function, a method or a module, not {type(function).__name__}"
        )
    _marks.setdefault(plain.__code__, weakref.WeakSet()).add(plain)
    return function


def _plain(called: Any) -> FunctionType | None:
    """The function that runs when a function, a method or a module is called."""
    forward = getattr(called, "forward", None)
    if forward is not None and not isinstance(called, types.FunctionType):
        called = forward
    plain = inspect.unwrap(getattr(called, "__func__", called))
    return plain if isinstance(plain, types.FunctionType) else None


def target_behind(called: Any) -> Target | None:
    """What to compile for a function, a method or a module; None if it is not Python."""
    plain = _plain(called)
    return None if plain is None else Target(_origins.get(plain.__code__, plain.__code__), [plain])


def is_marked(code: CodeType) -> bool:
    """Whether a function was marked with :func:`script`."""
    return code in _marks


def marked() -> list[Target]:
    """Every function that is marked and alive."""
    found = []
    for code, references in list(_marks.items()):
        functions = list(references)
        if functions:
            found.append(Target(code, functions))
    return found


_COMPREHENSIONS = ("<listcomp>", "<genexpr>", "<setcomp>", "<dictcomp>")


def target_of(where: FrameType | CodeType) -> Target | None:
    """The function that runs there, if it can be found; comprehensions count as their function's.

    Args:
        where: A frame, or just its code.
    """
    if isinstance(where, types.CodeType):
        modules = [
            m for m in sys.modules.values() if getattr(m, "__file__", None) == where.co_filename
        ]
        namespace = modules[0].__dict__ if modules else {}
        functions = list(_functions_of(where, namespace, None))
        if where.co_name in _COMPREHENSIONS:
            around = [
                c for f in functions for c in nested_codes(f.__code__) if where in c.co_consts
            ]
            return target_of(around[0]) if around else None
        return Target(_origins.get(where, where), functions) if functions else None
    frame: FrameType | None = where
    while frame is not None and frame.f_code.co_name in _COMPREHENSIONS:
        frame = frame.f_back
    if frame is None:  # of a generator expression that ended
        return target_of(where.f_code)
    functions = list(_functions_of(frame.f_code, frame.f_globals, frame))
    code = _origins.get(frame.f_code, frame.f_code)
    return Target(code, functions) if functions else None


def _functions_of(
    code: CodeType, namespace: dict[str, Any], frame: FrameType | None
) -> Iterator[FunctionType]:
    found: set[int] = set()
    by_argument = () if frame is None else _by_first_argument(code, frame)
    for candidate in (*_by_name(code, namespace), *by_argument):
        if id(candidate) not in found:
            found.add(id(candidate))
            yield candidate
    if found and "<locals>" not in code.co_qualname:
        return
    for candidate in gc.get_referrers(code):
        if isinstance(candidate, types.FunctionType) and id(candidate) not in found:
            found.add(id(candidate))
            yield candidate


def _by_name(code: CodeType, namespace: dict[str, Any]) -> Iterator[FunctionType]:
    """The function that the module holds under the code's name, or the one that defines it."""
    parts = code.co_qualname.partition(".<locals>")[0].split(".")
    value: Any = namespace.get(parts[0])
    for part in parts[1:]:
        value = inspect.getattr_static(value, part, None) if value is not None else None
    for candidate in _unwrapped(value):
        if _holds(candidate.__code__, code):
            yield candidate


def _unwrapped(value: Any) -> Iterator[FunctionType]:
    """A function and the ones it wraps."""
    seen = 0
    while value is not None and seen < 32:
        seen += 1
        if isinstance(value, staticmethod | classmethod):
            value = value.__func__
        if isinstance(value, property):
            value = value.fget
        if isinstance(value, types.FunctionType):
            yield value
        value = getattr(value, "__wrapped__", None)


def _by_first_argument(code: CodeType, frame: FrameType) -> Iterator[FunctionType]:
    if not code.co_argcount:
        return
    first = frame.f_locals.get(code.co_varnames[0])
    for cls in type(first).__mro__:
        for candidate in _unwrapped(cls.__dict__.get(code.co_name)):
            if candidate.__code__ is code:
                yield candidate


def _holds(outer: CodeType, code: CodeType) -> bool:
    """Whether ``code`` is ``outer``, or is defined somewhere inside of it."""
    return outer is code or any(
        isinstance(c, types.CodeType) and _holds(c, code) for c in outer.co_consts
    )


def nested_codes(code: CodeType) -> Iterator[CodeType]:
    """A code object and all that is defined inside of it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from nested_codes(constant)


_origins: dict[CodeType, CodeType] = {}  # compiled code and code around it, to what it was before


def _with(outer: CodeType, replacements: dict[CodeType, CodeType]) -> CodeType:
    """``outer`` with compiled code in place of the code in it."""
    if outer in replacements:
        return replacements[outer]
    consts = tuple(
        _with(c, replacements) if isinstance(c, types.CodeType) else c for c in outer.co_consts
    )
    if all(a is b for a, b in zip(consts, outer.co_consts, strict=True)):
        return outer
    made = outer.replace(co_consts=consts)
    _origins[made] = outer
    return made


_original: dict[FunctionType, CodeType] = {}
_users: collections.Counter[FunctionType] = collections.Counter()
_wanted: dict[FunctionType, list[dict[CodeType, CodeType]]] = {}


@contextlib.contextmanager
def compiled(targets: Iterable[Target]) -> Iterator[dict[CodeType, CodeType]]:
    """Let compiled code run in place of the targets' own.

    Yields:
        The compiled code by the original's.

    Raises:
        ScriptError: A target cannot be compiled.
    """
    targets = list(targets)
    replacements = {t.code: compile_code(t.code) for t in targets}
    _origins.update({made: code for code, made in replacements.items()})
    functions = list(dict.fromkeys(f for t in targets for f in t.functions))
    with _lock:
        for function in functions:
            if _users[function] == 0:
                _original[function] = function.__code__
            _users[function] += 1
            _wanted.setdefault(function, []).append(replacements)
            _refresh(function)
    try:
        yield replacements
    finally:
        with _lock:
            for function in functions:
                _users[function] -= 1
                _wanted[function].remove(replacements)
                _refresh(function)
                if _users[function] == 0:
                    del _users[function], _wanted[function], _original[function]


def _refresh(function: FunctionType) -> None:
    together: dict[CodeType, CodeType] = {}
    for replacements in _wanted[function]:
        together |= replacements
    function.__code__ = _with(_original[function], together)
