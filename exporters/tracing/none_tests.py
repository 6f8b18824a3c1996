"""Finds plain Python that asks whether a value is None which is None for some inputs only.

``x is None`` shows itself to nobody, and a traced value that may be None is a tensor to Python. From
the first such value on, every call and return is looked at: code that holds one under a name that
it compares with None has to be compiled.
"""

from __future__ import annotations

import dis
import sys
from typing import TYPE_CHECKING, Any

from exporters.errors import DataDependentError
from exporters.tracing.leaves import presence
from exporters.tracing.source import Source
from exporters.tracing.trace import Interrupt

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import CodeType, FrameType

    from exporters.tracing.trace import Trace

__all__ = ["NoneTests"]

_OVERRIDABLE = "handle_torch_function"  # in functions whose calls are seen, before they ask
_RESULT = "the result"  # of a call, compared without a name
_SILENT = ("CACHE", "EXTENDED_ARG", "NOP", "NOT_TAKEN", "PRECALL", "RESUME")


class NoneTests:
    """Watches one thread's calls while values are traced that may be None.

    Args:
        trace: The trace that they belong to.
    """

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._tested: dict[CodeType, dict[str, Source]] = {}
        self._before: Any = None
        self._watching = False

    def watch(self) -> None:
        """Watch from now on."""
        if not self._watching:
            self._watching = True
            self._before = sys.getprofile()
            sys.setprofile(self._event)

    def stop(self) -> None:
        """Watch no more."""
        if self._watching:
            self._watching = False
            sys.setprofile(self._before)

    def _event(self, frame: FrameType, event: str, arg: Any) -> None:
        if self._trace.recording:
            if event == "call":
                if names := self._names(frame.f_code):
                    self._given(frame, names)
            elif event == "return" and frame.f_back is not None and self._is_optional(arg):
                names = self._names(frame.f_back.f_code)
                if names and (stored := _stored(frame.f_back)) in names:
                    self._compile(frame.f_back, stored, names[stored])
        if self._before is not None:
            self._before(frame, event, arg)

    def _given(self, frame: FrameType, names: dict[str, Source]) -> None:
        for name, x in frame.f_locals.items():
            if name in names and self._is_optional(x):
                self._compile(frame, name, names[name])
            if type(x) is dict and any(map(self._is_optional, x.values())):  # **options, perhaps
                self._compile(frame, name, next(iter(names.values())), optional=True)

    def _is_optional(self, x: Any) -> bool:
        return id(x) in self._trace.optional and presence(self._trace, x) is not None

    def _names(self, code: CodeType) -> dict[str, Source]:
        """What plain code of the user's compares with None, and where."""
        found = self._tested.get(code)
        if found is None:
            plain = self._trace.finder.may_ask(code) and code not in (self._trace.settled or ())
            plain = plain and _OVERRIDABLE not in code.co_names
            found = self._tested[code] = dict(_compared(code)) if plain else {}
        return found

    def _compile(
        self, frame: FrameType, name: str, source: Source, *, optional: bool = False
    ) -> None:
        what = name if name == _RESULT else f"`{name}`"
        raise Interrupt(
            DataDependentError(
                f"Python asks whether {what} is None, which depends on the input's values",
                source=source,
                hint="mark the function with @bridge.script, or pass a tensor in place of None",
            ),
            frame,
            optional=optional,
        )


def _steps(code: CodeType) -> Iterator[dis.Instruction]:
    return (i for i in dis.get_instructions(code) if i.opname not in _SILENT)


def _compared(code: CodeType) -> Iterator[tuple[str, Source]]:
    """The local names that code compares with None, and where it does."""
    held: str | None = None
    for step in _steps(code):
        if held is not None and (step.opname == "IS_OP" or step.opname.endswith("NONE")):
            at = step.positions or dis.Positions()
            line, end = at.lineno or code.co_firstlineno, at.end_col_offset
            place = code.co_qualname, at.col_offset, end if at.end_lineno == line else None
            yield held, Source(code.co_filename, line, *place, code)
        if step.opname.startswith(("LOAD_FAST", "LOAD_DEREF", "STORE_FAST", "STORE_DEREF")):
            held = step.argval[-1] if isinstance(step.argval, tuple) else str(step.argval)
        elif step.opname.startswith("CALL"):
            held = _RESULT
        elif not (step.opname == "LOAD_CONST" and step.argval is None):
            held = None


def _stored(frame: FrameType) -> str:
    """The local name that a frame gives to what the call returns that it is in."""
    after = (s for s in _steps(frame.f_code) if s.offset > frame.f_lasti)
    step = next(s for s in after if s.opname != "COPY")  # of the walrus
    if step.opname.startswith(("STORE_FAST", "STORE_DEREF")):
        return step.argval[0] if isinstance(step.argval, tuple) else str(step.argval)
    return _RESULT
