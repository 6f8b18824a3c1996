"""Find the pass, ours or ONNX Runtime's, that makes a model compute something else."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bridge.bisection import bisect
from bridge.commands.inputs import add_input_options
from bridge.commands.optimize import feed_by_name
from bridge.commands.terminal import FAILED, PASSED, add_report_options
from bridge.optimizing import as_program
from bridge.parity.comparison import Tolerance

if TYPE_CHECKING:
    import argparse

    from bridge.commands.terminal import Terminal

EXAMPLES = """  bridge bisect model.onnx --inputs x.npz --extract culprit/
  bridge bisect model.onnx --target cuda --providers cuda,cpu --atol 1e-3
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What ``bridge bisect`` takes."""
    parser.add_argument("model", help="a .onnx file, before it is optimised")
    parser.add_argument(
        "--target", default="cpu", metavar="TARGET", help="whose passes to try; cpu unless given"
    )
    parser.add_argument(
        "--extract", metavar="FOLDER", help="where to write the smallest failing part"
    )
    parser.add_argument(
        "--no-passes", action="store_true", help="try only ONNX Runtime's optimizers"
    )
    parser.add_argument("--providers", metavar="PROVIDERS", help="where to run: cuda,cpu")
    parser.add_argument("--atol", type=float, help="relative to the largest expected value")
    parser.add_argument("--rtol", type=float, help="relative to each expected value")
    add_input_options(parser)
    add_report_options(parser)


def run(options: argparse.Namespace, terminal: Terminal) -> int:
    """Bisect; something to blame is exit code 1."""
    program = as_program(Path(options.model))
    tolerance = None
    if options.atol is not None or options.rtol is not None:
        tolerance = Tolerance(options.rtol or 0.0, options.atol or 0.0)
    report = bisect(
        program,
        feed_by_name(program, options),
        options.extract,
        target=options.target,
        passes=[] if options.no_passes else None,
        tolerance=tolerance,
        providers=options.providers,
        progress=terminal.progress,
    )
    terminal.report(report, options)
    return PASSED if report.passed else FAILED
