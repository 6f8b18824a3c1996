"""Turn an eager model into an ONNX model, verified on ONNX Runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bridge.commands.examples import add_export_options, example_of, export_target
from bridge.commands.inputs import add_input_options
from bridge.commands.targets import add_target_options, find_target, is_eager_name
from bridge.commands.terminal import PASSED, add_report_options
from bridge.errors import TargetError
from bridge.files import require_folder

if TYPE_CHECKING:
    import argparse

    from bridge.commands.terminal import Terminal

EXAMPLES = """  bridge export mypackage.nets:make model.onnx --input "float32[batch=2,3,224,224]"
  bridge export net.py:Net model.onnx --input "ids=int64[batch=2,length=12]<30000" --opset 20
  bridge export net.py:model_and_inputs model.onnx --dynamic auto --format json --report export.json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What ``bridge export`` takes."""
    parser.add_argument(
        "model",
        help="package.module:factory or file.py:factory; a factory takes nothing and returns a "
        "model, (model, args) or (model, args, kwargs)",
    )
    parser.add_argument("output", help="the .onnx file")
    parser.add_argument("--opset", type=int, help="17 or later; 23 unless given")
    parser.add_argument(
        "--target", metavar="TARGET",
        help="where it is to run, such as onnxruntime==1.24,cuda: chooses the opset, and refuses "
        "what has no kernels there",
    )  # fmt: skip
    parser.add_argument("--optimize", action="store_true", help="for the target; cpu unless given")
    parser.add_argument(
        "--external-data", action="store_true", default=None,
        help="weights in a file of their own; by itself above 2 GB",
    )  # fmt: skip
    parser.add_argument(
        "--no-verify", action="store_true", help="do not compare the result with eager"
    )
    add_input_options(parser)
    add_export_options(parser)
    add_target_options(parser)
    add_report_options(parser, junit=False)


def run(options: argparse.Namespace, terminal: Terminal) -> int:
    """Export, and report what was assumed."""
    if not is_eager_name(options.model):
        raise TargetError(
            f"{options.model!r} is no eager code", hint="name it package.module:factory"
        )
    require_folder(options.output)
    terminal.progress(f"importing {options.model}")
    target = find_target(options.model, options)
    example = example_of(target, options)
    program = export_target(
        target,
        example,
        options,
        path=options.output,
        opset=options.opset,
        target=options.target,
        optimize=options.optimize,
        external_data=options.external_data,
        verify=not options.no_verify,
        progress=terminal.progress,
    )
    terminal.report(program.report, options)
    return PASSED
