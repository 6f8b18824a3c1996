"""``bridge.quantize``: a quantized program that is measured before it is returned."""

from __future__ import annotations

import dataclasses
import itertools
import os
import time
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from bridge.calibration import CalibrationError, batches_of, stream_of
from bridge.files import load_model
from bridge.half_precision import halved
from bridge.parity.inputs import generate_runnable
from bridge.program import ExportReport, Program, count_ops
from bridge.quantizing.building import Builder, Built, optimized_float
from bridge.quantizing.gate import QuantizationRejected, accuracy_problem, latency_problem
from bridge.quantizing.measuring import Accuracy, latency, model_bytes, output_accuracy
from bridge.quantizing.processor import this_processor
from bridge.quantizing.recipes import AUTO, RECIPES, Recipe, RecipeError, find_recipe
from bridge.quantizing.report import QuantizationReport, tensor_reports
from bridge.quantizing.sensitivity import Sensitivity, rank_nodes
from bridge.session import Session

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

    from bridge.signature import Signature

__all__ = ["QuantizationRejected", "QuantizedProgram", "quantize"]

Feed = dict[str, Any]
_EVALUATED = 4  # batches that outputs are compared on
_RANKED = 2  # batches that sensitivity is measured on


class QuantizedProgram(Program):
    """A program that computes with integers.

    Attributes:
        quantization: What was done and measured.
        front: With ``recipe="auto"``: the reports of all recipes that no other beats in size,
            latency and accuracy at once, the fastest first.
    """

    def __init__(
        self,
        model: ir.Model,
        signature: Signature | None,
        quantization: QuantizationReport,
        front: tuple[QuantizationReport, ...] = (),
        probes: Sequence[Feed] = (),
    ) -> None:
        report = ExportReport(op_counts=count_ops(model), warnings=list(quantization.warnings))
        super().__init__(model, signature, report, probes=probes)
        self.quantization = quantization
        self.front = front


@dataclasses.dataclass(slots=True)
class _Task:
    """What one call of :func:`quantize` asks for."""

    source: ir.Model
    signature: Signature | None
    batches: Any
    max_drop: float | None
    metric: Callable[[Session], float] | None
    gate: bool
    keep_float: Collection[str]
    resume: str | os.PathLike[str] | None
    progress: Callable[[str], None]
    probes: Sequence[Feed] = ()
    evaluation: list[Feed] = dataclasses.field(default_factory=list)
    before: Session | None = None
    before_bytes: int = 0
    float_metric: float | None = None
    expected: list[dict[str, Any]] = dataclasses.field(default_factory=list)


def quantize(
    program: Program | ir.Model | str | os.PathLike[str],
    recipe: str | Recipe = AUTO,
    *,
    calibration: Iterable[Any] | str | os.PathLike[str] | None = None,
    evaluation: Iterable[Any] | None = None,
    max_drop: float | None = None,
    metric: Callable[[Session], float] | None = None,
    gate: bool = True,
    keep_float: str | Collection[str] = (),
    resume: str | os.PathLike[str] | None = None,
    progress: Callable[[str], None] | None = None,
    **changes: Any,
) -> QuantizedProgram:
    """A quantized program, no worse than asked for and no slower than float on this machine.

    Args:
        program: A program, a model, or the path of a file; it is not changed.
        recipe: ``int8-static``, ``int8-dynamic``, ``int8-mixed``, ``int8-weights``,
            ``int4-weights``, ``fp16``, ``bf16``, ``auto`` (the fastest of these that is accurate
            enough), or a :class:`~bridge.quantizing.recipes.Recipe`.
        calibration: Typical inputs, a batch at a time: an iterable, a DataLoader, or a folder of
            ``.npz`` files; see :func:`bridge.calibration.batches_of`. Any number of batches takes
            the same memory. Needed by ``int8-static`` and ``int8-mixed``.
        evaluation: Batches on which outputs are compared; the first few of ``calibration`` unless
            given, else the examples of the export, or made-up numbers of sizes that the model takes.
        max_drop: The most that may be lost: of ``metric`` if given; else of top-1 agreement with
            the float model, where outputs have rows; else of amplitude (noise / signal). Nodes that
            do the most damage stay in float until it holds.
        metric: Takes a :class:`~bridge.session.Session`, which is called like the eager model, and
            returns a number of which more is better.
        gate: Whether to measure, and refuse what is worse than asked for or slower than float.
        keep_float: Names of nodes or modules that stay in float.
        resume: An ``.npz`` file that keeps the state of the calibration, to go on after an
            interruption.
        progress: Called with a line of text as work goes on.
        **changes: Fields of the recipe to change: ``method="entropy"``, ``smooth=0.5``,
            ``block_size=64``.

    Returns:
        The program; ``.quantization`` tells what was done and measured.

    Raises:
        QuantizationRejected: It lost more than ``max_drop``, or is slower than float; the error has
            the table and the reason.
        CalibrationError: There are no batches, or one of them holds NaN or infinity.
        RecipeError: There is no such recipe, or it has no such field.
    """
    task = _Task(
        _opened(program),
        getattr(program, "signature", None),
        calibration,
        max_drop,
        metric,
        gate,
        [keep_float] if isinstance(keep_float, str) else keep_float,
        resume,
        progress or (lambda _: None),
        [dict(p) for p in getattr(program, "probes", ())],
    )
    if recipe == AUTO:
        _prepare(task, evaluation, needed=True)
        return _best(task, changes)
    chosen = find_recipe(recipe, **changes)
    _prepare(task, evaluation, needed=chosen.smooth is not None or chosen.kind == "precision")
    return _one(task, chosen)


def _opened(program: Any) -> ir.Model:
    if isinstance(program, str | os.PathLike):
        return load_model(program)
    if isinstance(program, ir.Model):
        return program
    if not isinstance(program, Program):
        raise RecipeError(
            f"a {type(program).__name__} cannot be quantized",
            hint="export it first: bridge.quantize(bridge.export(model, args), ...)",
        )
    if program.state:
        raise RecipeError(
            "a program that carries state is not quantized", hint='export with state="fold"'
        )
    return program.model


def _prepare(task: _Task, evaluation: Iterable[Any] | None, *, needed: bool) -> None:
    """What all recipes need: batches to compare on, and the float model's results on them."""
    task.before_bytes = model_bytes(task.source)
    wanted = task.gate or task.max_drop is not None or task.metric is not None
    if not wanted and not (needed and task.batches is not None):
        return
    if wanted:
        task.progress("preparing the float model")
        task.before = _session(task, optimized_float(task.source))
    inputs = task.before or _session(task, task.source)
    if evaluation is not None:
        task.evaluation = list(itertools.islice(batches_of(evaluation, inputs), _EVALUATED))
    elif task.batches is not None:
        if not isinstance(task.batches, str | os.PathLike):
            stream = stream_of(task.batches)
            first = list(itertools.islice(stream, _EVALUATED))
            task.batches = first if len(first) < _EVALUATED else _Rest(first, stream, task.batches)
            task.evaluation = list(batches_of(first, inputs))
        else:
            task.evaluation = list(itertools.islice(batches_of(task.batches, inputs), _EVALUATED))
        task.evaluation = [f for f in task.evaluation if all(x.size for x in f.values())]
    if not task.evaluation and task.batches is None:
        task.evaluation = list(task.probes[:_EVALUATED]) or [
            generate_runnable(inputs, seed=s) for s in range(_EVALUATED)
        ]
    if wanted and task.before is not None:
        task.expected = [task.before.run(f) for f in task.evaluation]
        if task.metric is not None:
            task.float_metric = _measured(task.metric, task.before)


def _measured(metric: Callable[[Session], float], session: Session) -> float:
    found: Any = metric(session)
    try:
        return float(found)
    except (TypeError, ValueError) as error:
        raise RecipeError(
            f"metric returned a {type(found).__name__}", hint="return one number, more is better"
        ) from error


class _Rest:
    """An iterable whose first batches were looked at: again from the start where that is possible."""

    def __init__(self, first: list[Any], stream: Iterator[Any], source: Any) -> None:
        self._parts: tuple[list[Any], Iterator[Any]] | None = (first, stream)
        self._source = source

    def __iter__(self) -> Iterator[Any]:
        if self._parts is not None:
            first, stream = self._parts
            self._parts = None
            return itertools.chain(first, stream)
        return iter(self._source)


def _session(task: _Task, model: ir.Model) -> Session:
    session = Session(model)
    if task.signature is not None:
        session.signature = task.signature
    return session


# One recipe


def _one(task: _Task, recipe: Recipe, *, last: bool = True) -> QuantizedProgram:
    """Quantize by one recipe, and judge; the ``last`` one may forget the float model."""
    report = QuantizationReport(recipe.name, processor=this_processor().reason)
    if recipe.kind == "precision":
        built, builder = _shortened(task, recipe, report), None
    else:
        builder = _calibrated(task, recipe, report, last=last)
        with _timed(report, "quantize"):
            built = builder.build()
    _describe(report, built, task, builder)
    if builder is not None and not report.quantized:
        reasons = ", ".join(sorted(set(report.kept_float.values())))
        report.warnings.append(f"nothing was quantized{': ' * bool(reasons)}{reasons}")
    if task.before is not None:
        with _timed(report, "measure"):
            session = _session(task, built.model)
            _measure_accuracy(report, session, task)
        problem = accuracy_problem(report, task.max_drop)
        if problem and builder is not None:
            built, session = _rescued(report, builder, built, session, task)
            problem = accuracy_problem(report, task.max_drop)
        if task.gate:
            with _timed(report, "measure"):
                report.latency = latency(task.before, session, task.evaluation[0])
            problem = problem or latency_problem(report)
            if problem:
                report.rejected = problem
                told = f"{report.recipe}: {problem}"
                raise QuantizationRejected(told, report, hint=_remedy(report, task))
    return QuantizedProgram(built.model, task.signature, report, probes=task.probes)


def _remedy(report: QuantizationReport, task: _Task) -> str:
    if not accuracy_problem(report, task.max_drop):
        return 'recipe="auto" looks for one that is faster; gate=False returns this one'
    if task.max_drop is not None:
        return "raise max_drop, calibrate with more batches, or pass gate=False for the model as it is"
    return "pass max_drop= so that the worst nodes stay in float, or gate=False for the model as it is"


def _calibrated(task: _Task, recipe: Recipe, report: QuantizationReport, *, last: bool) -> Builder:
    with _timed(report, "prepare"):
        builder = Builder(task.source, recipe, task.keep_float)
        if last:
            task.source = builder.prepared
    if not recipe.calibrated:
        return builder
    if task.batches is None:
        raise CalibrationError(
            f"the recipe {recipe.name!r} needs calibration batches",
            hint="pass calibration=[...], an iterable of a few dozen typical inputs",
        )
    with _timed(report, "calibrate"):
        if recipe.smooth is not None:
            builder.smooth(task.evaluation)
        task.progress("calibrating")
        builder.calibrate(
            task.batches,
            resume=task.resume,
            progress=lambda n: task.progress(f"calibrating: {n} batches"),
        )
    report.calibrated = builder.calibration.batches
    if builder.calibration.skipped:
        report.warnings.append(
            f"{builder.calibration.skipped} empty calibration batches were left out"
        )
    bad = [n for n, h in builder.calibration.histograms.items() if h.not_finite]
    if bad:
        report.warnings.append(
            f"values with NaN or infinity, which were left out: {', '.join(bad)}"
        )
    return builder


def _shortened(task: _Task, recipe: Recipe, report: QuantizationReport) -> Built:
    """A model in a shorter floating-point format."""
    settings = (task.before or _session(task, task.source)).settings
    made, _, unmeasured = halved(task.source, recipe.format, task.evaluation, settings)
    if unmeasured:
        report.warnings.append(f"ranges were not measured: {unmeasured}")
    return Built(made, [], {}, {})


def _describe(
    report: QuantizationReport, built: Built, task: _Task, builder: Builder | None
) -> None:
    histograms = {} if builder is None else builder.calibration.histograms
    report.tensors = tensor_reports(built.tensors, histograms)
    report.quantized, report.kept_float = built.quantized, built.kept_float
    report.size = (task.before_bytes, model_bytes(built.model))


def _measure_accuracy(report: QuantizationReport, session: Session, task: _Task) -> None:
    got = [session.run(f) for f in task.evaluation]
    found = output_accuracy(task.expected, got)
    if task.metric is not None:
        found = dataclasses.replace(found, metric=_measured(task.metric, session))
        report.float_metric = task.float_metric
    report.accuracy = found


class _timed:  # noqa: N801 - reads as a statement
    """Adds the time of a block to a report."""

    def __init__(self, report: QuantizationReport, phase: str) -> None:
        self.report, self.phase = report, phase

    def __enter__(self) -> None:
        self.started = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        seconds = self.report.seconds
        seconds[self.phase] = seconds.get(self.phase, 0.0) + time.perf_counter() - self.started


def _rescued(
    report: QuantizationReport, builder: Builder, built: Built, session: Session, task: _Task
) -> tuple[Built, Session]:
    """Keep the worst nodes in float, as few as hold the budget; all that do damage if none do."""
    task.progress("looking for the nodes that do the damage")
    with _timed(report, "rank"):
        report.sensitivity, _ = rank_nodes(
            builder.prepared, builder.simulation(), task.evaluation[:_RANKED]
        )
    ranking = report.sensitivity
    with _timed(report, "rescue"):
        good: tuple[int, Built, Session, Accuracy | None] | None = None
        low, count = 0, 1
        while good is None and low < len(ranking):
            count = min(count, len(ranking))
            good = _attempt(report, builder, ranking, count, task)
            if good is None:
                low, count = count, count * 2
        while good is not None and good[0] - low > 1:
            middle = (low + good[0]) // 2
            better = _attempt(report, builder, ranking, middle, task)
            if better is None:
                low = middle
            else:
                good = better
    if good is None or not good[1].quantized:  # the float model is not what was asked for
        _measure_accuracy(report, session, task)
        return built, session
    _, built, session, report.accuracy = good
    _describe(report, built, task, builder)
    return built, session


def _attempt(
    report: QuantizationReport,
    builder: Builder,
    ranking: list[Sensitivity],
    count: int,
    task: _Task,
) -> tuple[int, Built, Session, Accuracy | None] | None:
    """The model with the ``count`` worst nodes in float, if that is accurate enough."""
    task.progress(f"keeping {count} of {len(ranking)} nodes in float")
    keep = {s.node: f"quantized alone it leaves {s.snr:.1f} dB" for s in ranking[:count]}
    built = builder.build(keep)
    session = _session(task, built.model)
    _measure_accuracy(report, session, task)
    if accuracy_problem(report, task.max_drop):
        return None
    return count, built, session, report.accuracy


# All recipes


def _best(task: _Task, changes: Mapping[str, Any]) -> QuantizedProgram:
    """The fastest recipe that is accurate enough, and the front of all."""
    if not task.gate:
        raise RecipeError('recipe="auto" measures', hint="leave gate=True, or name a recipe")
    found: list[QuantizedProgram] = []
    refused: list[QuantizationRejected] = []
    for recipe in RECIPES.values():
        if recipe.calibrated and task.batches is None:
            continue
        if recipe.kind == "precision":
            continue  # ONNX Runtime's CPU provider has no kernels that gain from it
        task.progress(f"trying {recipe.name}")
        try:
            found.append(_changed(task, dataclasses.replace(recipe, **_fitting(changes))))
        except QuantizationRejected as error:
            refused.append(error)
    if not found:
        reports = [e.report for e in refused if e.report is not None]
        told = "; ".join(f"{r.recipe}: {r.rejected}" for r in reports)
        raise QuantizationRejected(
            f"no recipe is good enough: {told}",
            reports[0] if reports else None,
            hint="stay with float, or raise max_drop",
        )
    front = [p for p in found if not any(_beats(q.quantization, p.quantization) for q in found)]
    front.sort(key=lambda p: _key(p.quantization))
    chosen = front[0]
    chosen.front = tuple(p.quantization for p in front)
    return chosen


def _changed(task: _Task, recipe: Recipe) -> QuantizedProgram:
    """Quantize by one recipe of several; to change nothing is no way to be the best."""
    made = _one(task, recipe, last=False)
    report = made.quantization
    if not report.quantized:
        report.rejected = report.warnings[0]
        raise QuantizationRejected(report.rejected, report)
    return made


def _fitting(changes: Mapping[str, Any]) -> dict[str, Any]:
    find_recipe("int8-static", **changes)
    return dict(changes)


def _key(report: QuantizationReport) -> float:
    assert report.latency is not None
    return report.latency.after / report.latency.before


def _beats(a: QuantizationReport, b: QuantizationReport) -> bool:
    """Whether ``a`` is no worse than ``b`` in anything and better in something."""
    if a is b:
        return False
    pairs = [
        (_key(a), _key(b)),
        (a.size[1], b.size[1]),
        (a.drop or 0.0, b.drop or 0.0),
        (-(a.accuracy.snr if a.accuracy else 0.0), -(b.accuracy.snr if b.accuracy else 0.0)),
    ]
    return all(x <= y for x, y in pairs) and any(x < y for x, y in pairs)
