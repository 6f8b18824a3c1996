"""Functions of torch that run other code during an export, however they were imported."""

from __future__ import annotations

import contextlib
from types import CodeType, FunctionType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["calling", "exchanged", "original_of"]


def calling(stand_in: Callable[..., Any]) -> CodeType:
    """Code that hands all arguments on to ``stand_in``."""
    source = "def function(*args, **kwargs):\n    return '__stand_in__'(*args, **kwargs)"
    module = compile(
        source.replace("'__stand_in__'(", "(lambda: '__stand_in__')()("), __file__, "exec"
    )
    (outer,) = (c for c in module.co_consts if isinstance(c, CodeType))
    consts = tuple(
        c.replace(co_consts=tuple(stand_in if x == "__stand_in__" else x for x in c.co_consts))
        if isinstance(c, CodeType)
        else c
        for c in outer.co_consts
    )
    return outer.replace(co_consts=consts)


def original_of(function: FunctionType) -> FunctionType:
    """A copy of ``function``, which keeps its code."""
    copy = FunctionType(
        function.__code__,
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


@contextlib.contextmanager
def exchanged(codes: Sequence[tuple[Any, CodeType]]) -> Iterator[None]:
    """Let functions run the code that stands beside them."""
    before = [(f, f.__code__) for f, _ in codes if isinstance(f, FunctionType)]
    for original, code in codes:
        original.__code__ = code
    try:
        yield
    finally:
        for original, code in before:
            original.__code__ = code
