"""Name the first node that goes wrong, with its module and source line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bridge.commands.check import add_sides, sides
from bridge.commands.sessions import add_session_options, open_session
from bridge.commands.terminal import FAILED, PASSED, add_report_options

if TYPE_CHECKING:
    import argparse

    from bridge.commands.terminal import Terminal

EXAMPLES = """  bridge locate net.py:Net model.onnx --inputs failing.npz
  bridge locate net.py:Net model.onnx --providers cuda,cpu --extract failing/
  bridge locate float.onnx int8.onnx
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What ``bridge locate`` takes."""
    add_sides(parser)
    parser.add_argument(
        "--extract", metavar="FOLDER",
        help="write the smallest failing part there: model.onnx, inputs.npz, expected.npz",
    )  # fmt: skip
    add_session_options(parser)
    add_report_options(parser)


def run(options: argparse.Namespace, terminal: Terminal) -> int:
    """Check, and look for the guilty node where it fails."""
    from bridge.commands.views import divergence_view
    from bridge.parity.checking import check

    reference, candidate, arguments = sides(options, terminal)
    session = open_session(candidate, options)
    report = check(reference, session, progress=terminal.progress, **arguments)
    terminal.report(report, options, view=divergence_view(report))
    found = report.divergence
    if options.extract is not None and found is not None:
        if found.reproducer is None:
            terminal.warn(f"no part of the model around {found.node!r} could be cut out")
        else:
            terminal.note(f"the smallest failing part is in {found.extract(options.extract)}")
    return PASSED if report.passed else FAILED
