"""Measure a model in its several forms, side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bridge.benchmarking import FORMS, benchmark
from bridge.commands.examples import add_export_options, example_of, feed_of
from bridge.commands.inputs import add_input_options
from bridge.commands.targets import add_target_options, find_target, is_eager_name
from bridge.commands.terminal import PASSED, REFUSED, add_report_options
from bridge.commands.views import benchmark_view
from bridge.session import Session

if TYPE_CHECKING:
    import argparse

    from bridge.commands.terminal import Terminal

EXAMPLES = """  bridge bench net.py:Net --eval --input "float32[8,3,224,224]"
  bridge bench net.py:make --forms eager,float,optimized --providers cpu --providers cuda,cpu
  bridge bench model.onnx --size batch=8 --threads 4 --format json --report bench.json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What ``bridge bench`` takes."""
    parser.add_argument("model", help="package.module:factory, or a .onnx file")
    parser.add_argument(
        "--forms", metavar="FORM,...",
        help=f"what to measure, {','.join(FORMS)} or other recipes of quantization; all that the "
        "model has unless given",
    )  # fmt: skip
    parser.add_argument(
        "--providers", action="append", metavar="P,...", help="once for each to measure; cpu unless given"
    )  # fmt: skip
    parser.add_argument("--rounds", type=int, default=10, help="10 unless given")
    parser.add_argument("--threads", type=int, help="of torch and of ONNX Runtime")
    parser.add_argument(
        "--size", action="append", default=[], metavar="SYMBOL=N", help="of made-up inputs"
    )
    add_input_options(parser)
    add_export_options(parser)
    add_target_options(parser)
    add_report_options(parser)


def run(options: argparse.Namespace, terminal: Terminal) -> int:
    """Measure, and report a row for each form."""
    target = find_target(options.model, options)
    is_eager = is_eager_name(options.model)
    forms = tuple(f for f in FORMS if is_eager or f not in ("eager", "compile"))
    if options.forms:
        forms = tuple(options.forms.split(","))
    common = {
        "forms": forms,
        "providers": options.providers or ["cpu"],
        "rounds": options.rounds,
        "threads": options.threads,
        "progress": terminal.progress,
    }
    if is_eager:
        example = example_of(target, options)
        report = benchmark(
            target.model,
            example.args,
            kwargs=example.kwargs,
            dynamic_shapes=example.dynamic,
            **common,
        )
    else:
        feed = feed_of(Session(target.model), options)
        report = benchmark(target.model, feed=feed, **common)
    terminal.report(report, options, view=benchmark_view(report))
    return REFUSED if len(report.failed) == len(report.rows) else PASSED
