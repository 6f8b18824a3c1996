"""The ``bridge`` command: finds the subcommand, runs it, turns errors into messages and exit codes.

A subcommand is a line in :data:`COMMANDS` and a module of that name in :mod:`bridge.commands` with

- ``EXAMPLES``, calls that ``--help`` shows,
- ``add_arguments(parser)``,
- ``run(options, terminal) -> int``, which returns the exit code.

The module is imported only when its command is asked for: ``bridge doctor`` has to run where
nothing else can.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import sys
import traceback
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bridge.commands.terminal import FAILED, REFUSED, Terminal
from bridge.errors import BridgeError, ParityError
from exporters.errors import ExportError
from exporters.tracing.source import shorten
from optim_passes.errors import PassError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["COMMANDS", "main"]

COMMANDS = {
    "export": "turn an eager model into an ONNX model, verified on ONNX Runtime",
    "optimize": "make a model faster for a target, and prove that it computes the same",
    "check": "compare a model with eager code or another model, across providers and opsets",
    "locate": "name the first node that goes wrong, with its module and source line",
    "bisect": "find the pass, ours or ONNX Runtime's, that breaks a model",
    "run": "run a model on ONNX Runtime",
    "bench": "measure eager, torch.compile and ONNX Runtime forms of a model side by side",
    "quantize": "compute with 8-bit or 4-bit integers, if that is accurate enough and faster",
    "doctor": "say what is installed here, what is missing, and what mends it",
}
_INTERRUPTED = 130  # what shells return after Ctrl-C
_EXIT_CODES = """exit codes:
  0  it did what was asked, and everything agrees
  1  a model does not compute what it should, or something needs mending
  2  what was asked for cannot be done: the message says why
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] not in COMMANDS:
        return _outside(arguments)
    name = arguments[0]
    parser = argparse.ArgumentParser(
        prog=f"bridge {name}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")
    parser.add_argument("--debug", action="store_true", help="tracebacks of errors")
    terminal = Terminal()
    try:
        command = importlib.import_module(f"bridge.commands.{name}")
        parser.description = command.__doc__
        parser.epilog = f"examples:\n{command.EXAMPLES}\n{_EXIT_CODES}"
        command.add_arguments(parser)
        options = parser.parse_args(arguments[1:])
        terminal.quiet = options.quiet
        return _run(command, options, terminal)
    except ModuleNotFoundError as error:
        if "--debug" in arguments:
            raise
        terminal.error(f"{error}\n\nhint: `bridge doctor` says what to install")
        return REFUSED


def _run(command: Any, options: argparse.Namespace, terminal: Terminal) -> int:
    """Run a command; what goes wrong becomes a message."""
    with warnings.catch_warnings(), terminal:
        warnings.filterwarnings("default", category=UserWarning)
        warnings.showwarning = lambda message, *_, **__: terminal.warn(str(message))
        try:
            code: int = command.run(options, terminal)
            return code
        except KeyboardInterrupt:
            terminal.error("interrupted")
            return _INTERRUPTED
        except BrokenPipeError:  # whoever read our output has seen enough
            sys.stdout = None
            return 0
        except ModuleNotFoundError:
            raise
        except Exception as error:
            if options.debug:
                raise
            terminal.error(_told(error))
            return FAILED if isinstance(error, ParityError) else REFUSED


def _told(error: Exception) -> str:
    """An error of ours as it is; one of the user's code with the line that it comes from."""
    name = type(error).__name__
    if isinstance(error, BridgeError | ExportError | PassError):
        return f"{name}: {error}"
    frames = traceback.extract_tb(error.__traceback__)
    frame = next((f for f in reversed(frames) if not _is_library(f.filename)), frames[-1])
    notes = "".join(f"\n{note}" for note in getattr(error, "__notes__", ()))
    if notes:
        return f"{name}: {error}{notes}"
    return (
        f"{name}: {error}\n  at {shorten(frame.filename)}:{frame.lineno} in {frame.name}\n"
        f"    {frame.line}\n\nhint: --debug shows the traceback"
    )


def _is_library(file: str) -> bool:
    here = Path(__file__).parent
    packages = [here, here.parent / "exporters", here.parent / "optim_passes"]
    return "site-packages" in file or any(Path(file).is_relative_to(p) for p in packages)


def _outside(arguments: list[str]) -> int:
    """``--help``, ``--version``, and commands that do not exist."""
    listed = "\n".join(f"  {name:9} {told}" for name, told in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="bridge",
        usage="bridge COMMAND [options]",
        description="Eager models become production backends: export, run, prove parity.",
        epilog=f"commands:\n{listed}\n\n`bridge COMMAND --help` tells more\n\n{_EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="store_true", help="print the version")
    if arguments and not arguments[0].startswith("-"):
        near = difflib.get_close_matches(arguments[0], COMMANDS, 1)
        told = f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(COMMANDS)}"
        parser.error(f"no command is called {arguments[0]!r}{told}")
    if parser.parse_args(arguments).version:
        print(_version())
        return 0
    parser.print_help()
    return 0 if arguments else REFUSED


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("onnx-bridge")
    except PackageNotFoundError:
        return f"not installed, run from {Path(__file__).parent.parent}"


if __name__ == "__main__":
    sys.exit(main())
