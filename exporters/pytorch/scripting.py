"""Which functions are compiled: those that are marked, and those in which a trace had to stop."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from exporters.errors import ExportError, ScriptError, UntraceableError
from exporters.script import Target, compiled, marked, nested_codes, target_of
from exporters.tracing.source import source_of_error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import CodeType

__all__ = ["Scripting", "raise_uncompiled"]

_T = TypeVar("_T")
_LIBRARY = (str(Path(torch.__file__).parent),)


class Scripting:
    """Traces anew, with one more function compiled, until nothing stops the trace any more.

    Args:
        automatic: Whether functions are compiled that are not marked.
        targets: Functions to compile from the start, besides the marked ones.

    Attributes:
        targets: Functions that are compiled, by their code.
        chosen: Names of those that are not marked.
        compiled: Code that is compiled.
        settled: Code that is compiled, or that cannot be: no use in asking for it again.
    """

    def __init__(self, *, automatic: bool, targets: Iterable[Target] = ()) -> None:
        self.automatic = automatic
        given = list(targets)
        self.targets: dict[CodeType, Target] = {t.code: t for t in (*marked(), *given)}
        self.chosen = [str(t) for t in given]
        self.compiled: set[CodeType] = set()
        self.settled: set[Any] = set()

    def run(self, once: Callable[[], _T]) -> _T:
        """The result of ``once``, which traces with the chosen functions compiled.

        Raises:
            ExportError: The trace stops where compiling does not help, or is not asked for.
        """
        while True:
            try:
                with compiled(self.targets.values()) as made:
                    self.compiled |= {c for code in made.values() for c in nested_codes(code)}
                    self.settled |= self.compiled
                    return once()
            except ExportError as error:
                if not self._take_up(error):
                    raise

    def _take_up(self, error: ExportError) -> bool:
        """Whether another try may go further."""
        target = error.target
        if not self.automatic:
            return False
        if not isinstance(target, Target) or target.code in {*self.settled, *self.targets}:
            if error.optional is None or error.optional in self.settled:
                return False
            self.settled.add(error.optional)  # go on without
            return True
        try:
            with compiled([target]):
                pass
        except ScriptError as refusal:
            if error.optional is None:
                place = error.source
                if refusal.source is None and place and place.file != target.code.co_filename:
                    refusal.source = place  # the line that calls code without a file
                raise refusal from error
            self.settled.add(error.optional)
            return True
        self.targets[target.code] = target
        self.chosen.append(str(target))
        return True


def raise_uncompiled(error: Exception, scripting: Scripting) -> None:
    """Ask for the function that raised ``error`` to be compiled: a loop in it may be another's.

    Raises:
        UntraceableError: It is not compiled yet.
    """
    source = source_of_error(error, _LIBRARY)
    if source is None or source.code is None:
        return
    if not scripting.automatic or source.code in scripting.settled:
        return
    asked = UntraceableError(f"the trace raises {type(error).__name__}: {error}", source=source)
    asked.target, asked.optional = target_of(source.code), source.code
    raise asked from error
