"""What a command says: reports on stdout, everything else on stderr."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bridge.errors import ModelFileError
from bridge.parity.report import plain

if TYPE_CHECKING:
    import argparse
    from types import TracebackType

__all__ = ["FAILED", "PASSED", "REFUSED", "Terminal", "add_report_options"]

PASSED, FAILED, REFUSED = 0, 1, 2  # exit codes


class Terminal:
    """Progress and messages on stderr, a report on stdout or in a file.

    Attributes:
        quiet: Whether progress is kept to ourselves.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self._status: Any = None
        self._phase: tuple[str, float] | None = None

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: object, trace: TracebackType | None
    ) -> None:
        self._end_phase()

    # Progress

    def progress(self, text: str) -> None:
        """Say what is being done now: a spinner on a terminal, a line for each phase in a log."""
        if self.quiet:
            return
        self._end_phase()
        self._phase = (text, time.perf_counter())
        if sys.stderr.isatty():
            from rich.console import Console

            self._status = Console(stderr=True).status(text)
            self._status.start()
        else:
            self._say(f"{text} ...")

    def _end_phase(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None
            text, started = self._phase or ("", 0.0)
            self._say(f"{text}: {time.perf_counter() - started:.1f} s")
        self._phase = None

    def warn(self, text: str) -> None:
        """Say what the user should look at."""
        self._say(f"warning: {text}")

    def note(self, text: str) -> None:
        """Say where something was put."""
        self._say(text)

    def error(self, text: str) -> None:
        """Say why what was asked for cannot be done."""
        self._end_phase()
        self._say(f"error: {text}")

    def _say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    # Reports

    def report(self, report: Any, options: argparse.Namespace, view: Any = None) -> None:
        """Write a report in the format that the options ask for.

        Args:
            report: Has ``__str__``, ``to_dict`` and ``to_junit``.
            options: Of a parser with :func:`add_report_options`.
            view: What to show on a terminal in place of the text; something that rich renders.
        """
        self._end_phase()
        if options.format == "json":
            text = json.dumps(plain(report.to_dict()), indent=2, default=str)
        elif options.format == "junit":
            text = report.to_junit().rstrip()
        elif view is not None and options.report is None and sys.stdout.isatty():
            from rich.console import Console

            Console().print(view)
            return
        else:
            text = str(report)
        if options.report is None:
            print(text, flush=True)
        else:
            _write(Path(options.report), text + "\n")


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise ModelFileError(
            f"cannot write the report to {path}: {error.strerror or error}",
            hint="give a path in an existing folder that you may write to",
        ) from error


def add_report_options(parser: argparse.ArgumentParser, *, junit: bool = True) -> None:
    """Options that say how and where to the report goes; ``junit`` where it is one of tests."""
    group = parser.add_argument_group("report")
    formats = ("text", "json", "junit") if junit else ("text", "json")
    group.add_argument("--format", choices=formats, default="text", help="text unless given")
    group.add_argument("--report", metavar="FILE", help="where to write it; stdout unless given")
