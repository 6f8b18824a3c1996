"""What can go wrong while eager code becomes a graph.

::

    ExportError                      anything that stops an export
    ├── InputError                   the call to export itself is wrong (ValueError)
    │   └── DynamicShapeError        a dim declared dynamic does not exist, or is in fact frozen
    ├── UnsupportedOpError           calls without a lowering, all of them at once (NotImplementedError)
    ├── UntraceableError             a value left the trace: .numpy(), data_ptr() (NotImplementedError)
    ├── ScriptError                  control flow that cannot become Loop and If
    │   ├── ScriptSyntaxError        ... because of a construct that cannot be staged (SyntaxError)
    │   ├── BranchMismatchError      a name has another type after each branch or iteration
    │   └── UnboundNameError         a name is read that only one branch binds (NameError)
    ├── DataDependentError           Python asked for a value that only run time knows
    │   └── DisagreeingBranchError   ... and the worlds gave different answers
    ├── SpecialisationError          a size or value was silently frozen to the example's
    └── WorldError                   one world failed where another did not

Every message says what happened, where in the user's code, and what mends it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import CodeType

    from exporters.tracing.source import Source

__all__ = [
    "BranchMismatchError",
    "DataDependentError",
    "DisagreeingBranchError",
    "DynamicShapeError",
    "ExportError",
    "InputError",
    "ScriptError",
    "ScriptSyntaxError",
    "SpecialisationError",
    "UnboundNameError",
    "UnsupportedOpError",
    "UntraceableError",
    "WorldError",
]


class ExportError(Exception):
    """Eager code cannot become a graph.

    Args:
        message: What happened, with the user's values and types.
        source: Where in the user's code it happened.
        hint: What mends it.
    """

    def __init__(
        self, message: str, *, source: Source | None = None, hint: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.source = source
        self.hint = hint
        self.target: object = None  # the function whose compilation would help
        self.optional: object = None  # its code, if the trace can go on without that
        self.callers: tuple[CodeType, ...] = ()  # user code on the stack, the innermost first

    def __str__(self) -> str:
        parts = [self.message]
        if self.source is not None:
            parts.append(f"  at {self.source}")
            excerpt = self.source.excerpt()
            if excerpt:
                parts.append(excerpt)
        if self.hint is not None:
            parts.append(f"\nhint: {self.hint}")
        parts.append(f"{'' if self.hint else chr(10)}docs/errors#{type(self).__name__.lower()}")
        return "\n".join(parts)


class InputError(ExportError, ValueError):
    """The arguments given to export do not fit the model or each other."""


class DynamicShapeError(InputError):
    """A dim that was declared dynamic does not exist or cannot vary."""


class UnsupportedOpError(ExportError, NotImplementedError):
    """The model calls operators that have no lowering; the message lists all of them."""


class UntraceableError(ExportError, NotImplementedError):
    """A traced value was handed to code that the tracer cannot see."""


class DataDependentError(ExportError):
    """Python needs a value, to branch on or to count with, that only run time knows."""


class DisagreeingBranchError(DataDependentError):
    """The worlds answer a question of Python's differently, so one graph cannot serve both."""


class ScriptError(ExportError):
    """Control flow that cannot become ONNX Loop and If."""


class ScriptSyntaxError(ScriptError, SyntaxError):
    """A construct that cannot be staged: ``yield``, ``async``, ``try`` around staged code."""


class BranchMismatchError(ScriptError, TypeError):
    """A name has one type after a branch, or an iteration, and another after the other."""


class UnboundNameError(ScriptError, NameError):
    """A name is read after a branch that only binds it when it is taken."""


class SpecialisationError(ExportError):
    """The trace silently froze a size or a value that varies between inputs."""


class WorldError(ExportError):
    """A call succeeded in one world and failed in another."""
