"""Compare a model with eager code or another model, across providers and opsets."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from bridge.commands.examples import add_export_options, example_of, export_target, feed_of
from bridge.commands.inputs import add_input_options
from bridge.commands.targets import add_target_options, find_target, is_eager_name
from bridge.commands.terminal import FAILED, PASSED, REFUSED, add_report_options
from bridge.errors import FeedError

LEVELS = ("none", "basic", "extended", "all")

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bridge.commands.terminal import Terminal
    from bridge.parity.comparison import Tolerance

EXAMPLES = """  bridge check net.py:Net --input "float32[batch=2,3,224,224]"        export it, then check
  bridge check net.py:Net model.onnx --vary                           a finished model, other sizes too
  bridge check float.onnx int8.onnx --inputs batch.npz --atol 0.05
  bridge check net.py:Net --providers cpu --providers cuda,cpu --optimization none,all --opset 17,20,23
  bridge check net.py:Net --passes none,cpu,portable
  bridge check net.py:Net model.onnx --format junit --report parity.xml
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What ``bridge check`` takes."""
    add_sides(parser)
    parser.add_argument(
        "--providers", action="append", metavar="P,...",
        help="a request for providers, once for each to check; cpu unless given",
    )  # fmt: skip
    parser.add_argument(
        "--optimization", default=["all"], metavar="LEVEL,...", type=_levels,
        help="ONNX Runtime's levels to check: none, basic, extended, all; all unless given",
    )  # fmt: skip
    parser.add_argument(
        "--opset",
        metavar="N,...",
        type=_numbers,
        help="opsets to export the reference for; it must be eager",
    )
    parser.add_argument(
        "--passes", default="none", metavar="TARGET,...",
        help="targets whose passes to run first: cpu, cuda, portable, none; none unless given",
    )  # fmt: skip
    parser.add_argument("--no-locate", action="store_true", help="do not look for the guilty node")
    add_report_options(parser)


def add_sides(parser: argparse.ArgumentParser) -> None:
    """The two sides of a comparison, their inputs and the tolerance."""
    parser.add_argument("reference", help="what is right: package.module:factory or a .onnx file")
    parser.add_argument(
        "candidate", nargs="?", help="a .onnx file; the reference is exported unless given"
    )
    parser.add_argument(
        "--vary", action="store_true", help="check sizes 0, 1 and others, and extreme values too"
    )
    parser.add_argument("--rtol", type=float, help="relative to the expected value")
    parser.add_argument("--atol", type=float, help="relative to the largest expected value")
    parser.add_argument(
        "--tolerance", action="append", default=[], metavar="OUTPUT=RTOL,ATOL",
        help="for one output",
    )  # fmt: skip
    parser.add_argument(
        "--no-judge", action="store_true", help="do not let float64 eager decide disputes"
    )
    parser.add_argument(
        "--size", action="append", default=[], metavar="SYMBOL=N", help="of made-up inputs"
    )
    parser.add_argument(
        "--timeout", type=float, metavar="SECONDS",
        help="for each run on ONNX Runtime; 50 times what the reference takes, and 20 s at least, "
        "unless given",
    )  # fmt: skip
    add_input_options(parser)
    add_export_options(parser)
    add_target_options(parser)


def run(options: argparse.Namespace, terminal: Terminal) -> int:
    """Check one combination, or a matrix of them."""
    from bridge.parity.matrix import check_matrix

    reference, candidate, arguments = sides(options, terminal, opset=_opsets(options))
    matrix = check_matrix(
        reference,
        candidate,
        providers=options.providers or ["cpu"],
        optimizations=options.optimization,
        opsets=_opsets(options) or (),
        passes=options.passes.split(","),
        locate=not options.no_locate,
        progress=terminal.progress,
        **arguments,
    )
    report: Any = matrix
    if len(matrix.cells) == 1 and matrix.cells[0].report is not None:
        report = matrix.cells[0].report
    terminal.report(report, options, view=_view(matrix))
    if all(c.report is None for c in matrix.cells):
        return REFUSED  # nothing could be compared
    return PASSED if matrix.passed else FAILED


def sides(
    options: argparse.Namespace, terminal: Terminal, *, opset: Sequence[int] | None = None
) -> tuple[Any, Any, dict[str, Any]]:
    """Reference, candidate, and the arguments with which to check them.

    Args:
        options: Of a parser with :func:`add_sides`.
        terminal: Where progress goes.
        opset: Opsets for which the check exports the reference itself.
    """
    arguments: dict[str, Any] = {
        "tolerance": _tolerances(options),
        "vary": options.vary,
        "judge": False if options.no_judge else None,
        "timeout": options.timeout,
    }
    terminal.progress(f"opening {options.reference}")
    target = find_target(options.reference, options)
    candidate = (
        None if options.candidate is None else find_target(options.candidate, options).model
    )
    if not is_eager_name(options.reference):
        from bridge.session import Session

        if candidate is None:
            raise FeedError(
                "there is nothing to compare with",
                hint="name two models: bridge check a.onnx b.onnx",
            )
        session = Session(target.model)
        return session, candidate, {**arguments, "inputs": feed_of(session, options)}
    example = example_of(target, options)
    arguments |= {"inputs": example.args or None, "kwargs": example.kwargs}
    if example.kwargs and not example.args:
        arguments["inputs"] = ()
    if opset:
        chosen = {"script": options.script, "state": options.state}
        arguments["export_options"] = {"dynamic_shapes": example.dynamic, **chosen}
    elif candidate is None:
        candidate = export_target(
            target, example, options, verify=False, progress=terminal.progress
        )
    return target.model, candidate, arguments


def _opsets(options: argparse.Namespace) -> list[int] | None:
    found: list[int] | None = getattr(options, "opset", None)
    return found


def _numbers(text: str) -> list[int]:
    """``17,20`` as numbers."""
    if not all(part.strip().isdigit() for part in text.split(",")):
        raise argparse.ArgumentTypeError(f"{text!r} cannot be read; write 17,20,23")
    return [int(part) for part in text.split(",")]


def _levels(text: str) -> list[str]:
    """``none,all`` as ONNX Runtime's levels."""
    found = text.split(",")
    for level in found:
        if level not in LEVELS:
            raise argparse.ArgumentTypeError(f"no level {level!r}; there are {', '.join(LEVELS)}")
    return found


def _tolerances(options: argparse.Namespace) -> Tolerance | dict[str, Tolerance] | None:
    from bridge.parity.comparison import Tolerance

    if options.tolerance:
        found = {}
        for text in options.tolerance:
            name, _, numbers = text.rpartition("=")
            try:
                rtol, atol = map(float, numbers.split(","))
            except ValueError as error:
                raise FeedError(
                    f"--tolerance {text!r} cannot be read", hint="write logits=1e-3,1e-4"
                ) from error
            found[name] = Tolerance(rtol, atol)
        return found
    if options.rtol is None and options.atol is None:
        return None
    return Tolerance(options.rtol or 0.0, options.atol or 0.0)


def _view(matrix: Any) -> Any:
    from bridge.commands.views import matrix_view

    return matrix_view(matrix)
