"""Make a model faster for a target, and prove that it computes the same."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bridge.commands.inputs import add_input_options, given_inputs
from bridge.commands.terminal import PASSED, add_report_options
from bridge.errors import FeedError
from bridge.optimizing import as_program, optimize

if TYPE_CHECKING:
    import argparse

    from bridge.commands.terminal import Terminal

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
    model = Path(options.model)
    program = as_program(model)
    names = [str(v.name) for v in program.model.graph.inputs]
    given = given_inputs(options)
    unnamed = iter(n for n in names if n not in {g.name for g in given})
    try:
        feed = {g.name or next(unnamed): g.value for g in given}
    except StopIteration as error:
        raise FeedError(
            f"{len(given)} inputs given, the model takes {', '.join(names)}"
        ) from error
    made = optimize(
        program,
        options.output,
        target=options.target,
        inputs=feed or None,
        precision=options.precision,
        keep=options.keep,
        keep_io=not options.convert_io,
        verify=not options.no_verify,
        external_data=options.external_data,
        progress=terminal.progress,
    )
    terminal.report(made.report, options)
    return PASSED
