"""Quantize a model, measure what that costs and gains, and write it if it is good enough."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from bridge.commands.targets import find_function
from bridge.commands.terminal import FAILED, PASSED, add_report_options
from bridge.errors import FeedError

if TYPE_CHECKING:
    import argparse

    from bridge.commands.terminal import Terminal

EXAMPLES = """  bridge quantize model.onnx int8.onnx --recipe int8-static --calibration batches/
  bridge quantize model.onnx int8.onnx --calibration batches.npz --max-drop 0.01 --html report.html
  bridge quantize model.onnx int8.onnx --calibration batches/ --metric task.py:accuracy --max-drop 0.01
  bridge quantize llm.onnx int4.onnx --recipe int4-weights --set block_size=64 --no-gate
  bridge quantize model.onnx int8.onnx --calibration batches/ --set method=entropy --resume state.npz
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What ``bridge quantize`` takes."""
    parser.add_argument("model", help="a .onnx file")
    parser.add_argument("output", help="where to write the quantized model")
    parser.add_argument(
        "--recipe", default="auto",
        help="int8-static, int8-dynamic, int8-mixed, int8-weights, int4-weights, fp16, bf16, or "
        "auto (the fastest that is accurate enough), which is the default",
    )  # fmt: skip
    parser.add_argument(
        "--calibration", metavar="PATH",
        help="a folder of .npz or .npy files, one batch each, or one such file",
    )  # fmt: skip
    parser.add_argument(
        "--evaluation", metavar="PATH", help="batches to compare outputs on, in the same form"
    )
    parser.add_argument(
        "--max-drop", type=float, metavar="X",
        help="the most that may be lost: of top-1 agreement with the float model, or of amplitude",
    )  # fmt: skip
    parser.add_argument(
        "--metric", metavar="FILE.py:FUNCTION",
        help="takes a session, returns a number of which more is better; --max-drop is of that",
    )  # fmt: skip
    parser.add_argument(
        "--keep-float", action="append", default=[], metavar="NAME",
        help="a node or module that stays in float, once for each",
    )  # fmt: skip
    parser.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE",
        help="change a field of the recipe: method=entropy, smooth=0.5, block_size=64",
    )  # fmt: skip
    parser.add_argument(
        "--resume", metavar="FILE.npz", help="where the state of the calibration is kept"
    )
    parser.add_argument(
        "--no-gate", action="store_true", help="write the model without measuring it"
    )
    parser.add_argument("--html", metavar="FILE", help="where to write the report with histograms")
    add_report_options(parser, junit=False)


def run(options: argparse.Namespace, terminal: Terminal) -> int:
    """Quantize, report, and write the model unless the gate refuses it."""
    from bridge.quantization import QuantizationRejected, quantize

    try:
        program = quantize(
            options.model,
            options.recipe,
            calibration=options.calibration,
            evaluation=options.evaluation,
            max_drop=options.max_drop,
            metric=None if options.metric is None else find_function(options.metric),
            keep_float=options.keep_float,
            gate=not options.no_gate,
            resume=options.resume,
            progress=terminal.progress,
            **_changes(options.set),
        )
    except QuantizationRejected as error:
        if error.report is None:
            raise
        terminal.report(error.report, options)
        terminal.error(f"QuantizationRejected: {error.report.rejected}\n\nhint: {error.hint}")
        _write_html(error.report, options)
        return FAILED
    program.save(options.output)
    terminal.report(program.quantization, options)
    for other in program.front:
        if other is not program.quantization:
            terminal.note(f"also possible:\n{other.table()}")
    _write_html(program.quantization, options)
    terminal.note(f"wrote {options.output}")
    return PASSED


def _write_html(report: Any, options: argparse.Namespace) -> None:
    if options.html is not None:
        Path(options.html).write_text(report.to_html(), encoding="utf-8")


def _changes(texts: list[str]) -> dict[str, Any]:
    """``FIELD=VALUE`` as fields of a recipe.

    Raises:
        FeedError: There is no ``=`` in one.
    """
    found: dict[str, Any] = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not separator:
            raise FeedError(f"--set {text!r} cannot be read", hint="write method=entropy")
        found[name] = _value(value)
    return found


def _value(text: str) -> Any:
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
