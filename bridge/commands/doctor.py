"""Say what is installed here, what is missing, and the command that mends it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bridge.commands.terminal import FAILED, PASSED, add_report_options
from bridge.doctor import diagnose

if TYPE_CHECKING:
    import argparse

    from bridge.commands.terminal import Terminal

EXAMPLES = """  bridge doctor
  bridge doctor --format json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What ``bridge doctor`` takes."""
    add_report_options(parser)


def run(options: argparse.Namespace, terminal: Terminal) -> int:
    """Look at everything, and say what needs mending."""
    terminal.progress("looking around")
    diagnosis = diagnose()
    terminal.report(diagnosis, options)
    return PASSED if diagnosis.healthy else FAILED
