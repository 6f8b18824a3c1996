"""Where in the user's code a call was made, and which module made it."""

from __future__ import annotations

import dataclasses
import functools
import linecache
import os
import sys
import sysconfig
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import CodeType, FrameType

__all__ = ["Source", "SourceFinder", "shorten", "source_of_error"]

_STDLIB = sysconfig.get_path("stdlib") + os.sep
_OURS = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep


@dataclasses.dataclass(frozen=True, slots=True)
class Source:
    """A position in a file of the user's, or of a library the user calls."""

    file: str
    line: int
    function: str
    column: int | None = None
    end_column: int | None = None
    code: CodeType | None = dataclasses.field(default=None, compare=False, repr=False)

    def __str__(self) -> str:
        return f"{shorten(self.file)}:{self.line} in {self.function}"

    def excerpt(self) -> str:
        """The line itself, with carets under the expression; empty when the file cannot be read."""
        text = linecache.getline(self.file, self.line).rstrip()
        if not text.strip():
            return ""
        indent = len(text) - len(text.lstrip())
        lines = [f"    {text.strip()}"]
        if self.column is not None and self.column >= indent:
            end = self.end_column if self.end_column and self.end_column > self.column else None
            width = max(1, min(end or len(text), len(text)) - self.column)
            lines.append(" " * (4 + self.column - indent) + "^" * width)
        return "\n".join(lines)


@functools.cache
def shorten(file: str) -> str:
    """A path without this machine in it: below site-packages, below the current folder, or bare."""
    for marker in ("site-packages" + os.sep, "dist-packages" + os.sep):
        if marker in file:
            return file.split(marker)[-1].replace(os.sep, "/")
    try:
        relative = os.path.relpath(file)
    except ValueError:  # another drive
        relative = os.pardir
    return (os.path.basename(file) if relative.startswith(os.pardir) else relative).replace(
        os.sep, "/"
    )


@functools.cache
def _is_standard(code: CodeType) -> bool:
    """Whether a function is of Python's own library, or written by it."""
    file = code.co_filename
    return file == "<string>" or (file.startswith(_STDLIB) and "-packages" not in file)


@functools.cache
def _span(code: CodeType, instruction: int) -> tuple[int, int | None, int | None]:
    """Line, column and the column of the end; equal code of another file has the same ones."""
    positions = list(code.co_positions())
    index = instruction // 2
    line, end_line, column, end_column = (
        positions[index] if 0 <= index < len(positions) else (None, None, None, None)
    )
    return line or code.co_firstlineno, column, end_column if line == end_line else None


def _position(code: CodeType, instruction: int) -> Source:
    line, column, end_column = _span(code, instruction)
    return Source(code.co_filename, line, code.co_qualname, column, end_column, code)


def source_of_error(error: BaseException, library: Sequence[str]) -> Source | None:
    """The innermost line of user code that an error passed, below the code of an export.

    Args:
        error: The error.
        library: Folders whose lines are not the user's.
    """
    found, below = None, False
    step = error.__traceback__
    while step is not None:
        code = step.tb_frame.f_code
        ours = code.co_filename.startswith(_OURS)
        below = below or ours
        if below and not ours and not code.co_filename.startswith((*library, "<frozen")):
            here = _position(code, step.tb_lasti)
            if found is None or here.excerpt():  # not what ``dataclasses`` writes
                found = here
        step = step.tb_next
    return found


class SourceFinder:
    """Finds the innermost user frame and the innermost module on the stack.

    Args:
        library: Folders whose frames are only named when no user frame is on the stack.
        module_call: Code object of the framework's module call (``nn.Module._call_impl``); its
            local ``self`` is the module.
        module_path: The path of a module, None if it is not part of the model.
        entry: Code object at which the walk stops.
        plumbing: Files of the library that only pass calls on.
    """

    def __init__(
        self,
        *,
        library: Sequence[str] = (),
        module_call: CodeType | None = None,
        module_path: Callable[[Any], str | None] = lambda _: None,
        entry: CodeType | None = None,
        plumbing: Sequence[str] = (),
    ) -> None:
        self._library = tuple(library)
        self._plumbing = frozenset(plumbing)
        self._module_call = module_call
        self._module_path = module_path
        self._entry = entry
        self._kinds: dict[CodeType, str] = {}

    def _classify(self, code: CodeType) -> str:
        if code is self._entry:
            return "entry"
        if code is self._module_call:
            return "module"
        file = code.co_filename
        if file.startswith((_OURS, "<frozen")):
            return "ours"
        return "library" if file.startswith(self._library) else "user"

    def is_user(self, code: CodeType) -> bool:
        """Whether a function is the user's, or of a library that the user calls."""
        return self._classify(code) == "user" and code.co_filename not in self._plumbing

    def asking_frame(self) -> FrameType | None:
        """The frame whose code is being asked for: the innermost one that is not plumbing."""
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            if self._classify(frame.f_code) == "entry":
                return None
            if self.may_ask(frame.f_code):
                return frame
            frame = frame.f_back
        return None

    def may_ask(self, code: CodeType) -> bool:
        """Whether code is the user's or a library's, and more than plumbing."""
        plumbing = code.co_filename in self._plumbing
        return not plumbing and self._classify(code) in ("user", "library")

    def calling_frame(self) -> FrameType | None:
        """The frame that called the innermost function of the user's."""
        frame: FrameType | None = sys._getframe(1)
        own: tuple[str, str] | None = None
        while frame is not None:
            code = frame.f_code
            kind = self._classify(code)
            if kind == "entry":
                return None
            if kind == "user" and code.co_filename not in self._plumbing:
                function = code.co_filename, code.co_qualname
                if own is not None and function != own:
                    return frame
                own = function
            frame = frame.f_back
        return None

    def frame_that(self, fits: Callable[[FrameType], bool]) -> FrameType | None:
        """The outermost frame of the traced program that ``fits``."""
        frame: FrameType | None = sys._getframe(1)
        found = None
        while frame is not None and self._classify(frame.f_code) != "entry":
            found = frame if fits(frame) else found
            frame = frame.f_back
        return found

    def find(self) -> tuple[Source | None, str]:
        """The user's position and the path of the innermost module, ``""`` outside any."""
        frame: FrameType | None = sys._getframe(1)
        kinds = self._kinds
        user: FrameType | None = None
        standard = False  # Python's own library is called by a line that says more
        library: FrameType | None = None
        path: str | None = None
        while frame is not None:
            code = frame.f_code
            kind = kinds.get(code)
            if kind is None:
                kind = kinds[code] = self._classify(code)
            if kind == "user":
                if user is None or (standard and not _is_standard(code)):
                    user, standard = frame, _is_standard(code)
                    if path is not None and not standard:
                        break
            elif kind == "module":
                if path is None:
                    path = self._module_path(frame.f_locals["self"])
                    if path is not None and user is not None and not standard:
                        break
            elif kind == "library":
                if library is None:
                    library = frame
            elif kind == "entry":
                break
            frame = frame.f_back
        chosen = user or library
        source = None if chosen is None else _position(chosen.f_code, chosen.f_lasti)
        return source, path or ""

    def callers(self) -> tuple[CodeType, ...]:
        """The code of the user's functions on the stack, the innermost first."""
        found: dict[CodeType, None] = {}
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            kind = self._classify(frame.f_code)
            if kind == "entry":
                break
            if kind == "user":
                found[frame.f_code] = None
            frame = frame.f_back
        return tuple(found)
