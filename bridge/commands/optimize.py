"""Make a model faster for a target, and prove that it computes the same."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from bridge.commands.inputs import add_input_options, given_inputs
from bridge.commands.terminal import PASSED, add_report_options
from bridge.errors import FeedError
from bridge.optimizing import as_program, optimize

if TYPE_CHECKING:
    import argparse

    from bridge.commands.terminal import Terminal
    from bridge.program import Program

EXAMPLES = """  bridge optimize model.onnx -o fast.onnx
  bridge optimize model.onnx -o fast.onnx --target onnxruntime==1.24,cuda --precision fp16
  bridge optimize model.onnx -o fast.onnx --inputs x.npz --format json --report fast.json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What ``bridge optimize`` takes."""
    parser.add_argument("model", help="a .onnx file, whoever wrote it")
    parser.add_argument(
        "-o", "--output", metavar="FILE", help="where to save the result; nowhere unless given"
    )
    parser.add_argument(
        "--target", default="cpu", metavar="TARGET",
        help="cpu, cuda, portable (standard operators only), or what is deployed: "
        "onnxruntime==1.24,cuda; cpu unless given",
    )  # fmt: skip
    parser.add_argument(
        "--precision", choices=("fp16", "bf16"),
        help="16 bits where measured ranges allow it; float32 elsewhere",
    )  # fmt: skip
    parser.add_argument(
        "--keep", action="append", default=[], metavar="NAME",
        help="a node or operator that stays in float32",
    )  # fmt: skip
    parser.add_argument(
        "--convert-io", action="store_true", help="inputs and outputs in 16 bits too"
    )
    parser.add_argument(
        "--external-data", action="store_true", default=None,
        help="weights in a file of their own; by itself above 2 GB",
    )  # fmt: skip
    parser.add_argument(
        "--no-verify", action="store_true", help="do not compare the result with the model"
    )
    add_input_options(parser)
    add_report_options(parser)


def run(options: argparse.Namespace, terminal: Terminal) -> int:
    """Optimise, save, and report what was fused and what was not."""
    program = as_program(Path(options.model))
    made = optimize(
        program,
        options.output,
        target=options.target,
        inputs=feed_by_name(program, options),
        precision=options.precision,
        keep=options.keep,
        keep_io=not options.convert_io,
        verify=not options.no_verify,
        external_data=options.external_data,
        progress=terminal.progress,
    )
    terminal.report(made.report, options)
    return PASSED


def feed_by_name(program: Program, options: argparse.Namespace) -> dict[str, Any] | None:
    """The given inputs by the model's names, positional ones in order; None if there are none.

    Raises:
        FeedError: There are more than the model takes.
    """
    names = [str(v.name) for v in program.model.graph.inputs]
    given = given_inputs(options)
    unnamed = iter(n for n in names if n not in {g.name for g in given})
    try:
        feed = {g.name or next(unnamed): g.value for g in given}
    except StopIteration as error:
        raise FeedError(
            f"{len(given)} inputs given, the model takes {', '.join(names)}"
        ) from error
    unknown = [n for n in feed if n not in names]
    if unknown:
        raise FeedError(f"unknown {', '.join(unknown)}; the model's inputs are {', '.join(names)}")
    return feed or None
