"""``bridge.check``: does a model compute what eager code, or another model, computes?"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from bridge.control import time_limit
from bridge.errors import FeedError, RunError, RunTimeoutError
from bridge.feeds import to_numpy
from bridge.graph_index import open_model
from bridge.parity.branches import branch_cases
from bridge.parity.comparison import (
    Comparison,
    Tolerance,
    compare,
    default_tolerance,
    is_floating,
)
from bridge.parity.coverage import Coverage
from bridge.parity.endless import LONGEST, STOPPED, find_endless, time_for
from bridge.parity.inputs import Case, generate_runnable, load_cases, varied
from bridge.parity.precision import coarsest
from bridge.parity.report import CaseReport, ParityReport
from bridge.parity.sides import EagerSide, SessionSide, is_eager, session_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from bridge.parity.sides import Side
    from bridge.session import Session

__all__ = ["Tolerances", "check", "judged"]

Tolerances = Tolerance | Mapping[str, Tolerance] | None
_JUDGED_AT_MOST = 2**30  # bytes of weights that are copied in float64 without being asked to
_WIDE = ("float32", "float64", "complex64", "complex128")
_AS_FAR = 2.0  # times the error of eager code itself, measured against float64


@dataclasses.dataclass(frozen=True, slots=True)
class Trial:
    """One set of inputs and the reference that it is for.

    Attributes:
        label: What is special about the inputs.
        reference: The side that is right.
        feed: A value for each input.
        given: Whether the caller gave the inputs, so that the reference must accept them.
    """

    label: str
    reference: Side
    feed: dict[str, Any]
    given: bool


def check(
    reference: Any,
    candidate: Any = None,
    inputs: Any = None,
    *,
    kwargs: Mapping[str, Any] | None = None,
    tolerance: Tolerances = None,
    metric: Callable[[dict[str, Any]], float] | None = None,
    max_drop: float = 0.0,
    vary: bool = False,
    judge: bool | None = None,
    locate: bool = True,
    timeout: float | None = None,
    providers: Any = "cpu",
    progress: Callable[[str], None] | None = None,
) -> ParityReport:
    """Compare two sides on the same inputs; name the first node that goes wrong.

    Args:
        reference: What is right: an ``nn.Module``, a function over tensors, or anything that
            ``candidate`` can be.
        candidate: A session, a program, a model, or the path of a file; the reference is exported
            unless given.
        inputs: Positional arguments as for :func:`bridge.export`, a feed by input name, a list of
            either, or the path of an ``.npz`` file; made up from the declared inputs unless given.
        kwargs: Keyword arguments that go with positional ones.
        tolerance: For all outputs, or by output name; unless given, that of the least precise
            element type that an output is computed in.
        metric: The task metric of a run's outputs, higher is better. With it, the report passes as
            long as the mean over all inputs drops by ``max_drop`` at most.
        max_drop: See ``metric``.
        vary: Whether to check other sizes (0, 1 and more), extreme values, and values that take
            branches of the graph that the inputs do not take.
        judge: Whether float64 eager code decides where float32 and the candidate differ; None asks
            it if the model is smaller than 1 GB.
        locate: Whether to look for the node that goes wrong first.
        timeout: Seconds that a run on ONNX Runtime may take. Unless given, 50 times what the
            reference took, and 20 at least (300 where engines may be built at the first run). A Loop
            that does not end by then is named.
        providers: For candidates that are not sessions yet.
        progress: Called with a line of text at the start of each phase.

    Returns:
        The report. A mismatch does not raise: see :meth:`ParityReport.raise_for_mismatch`.

    Raises:
        FeedError: The inputs do not fit the model.
        RunError: ONNX Runtime refuses the model.

    Example:
        >>> program = bridge.export(torch.nn.Linear(4, 2), torch.ones(3, 4))
        >>> bridge.check(torch.sin, inputs=torch.ones(3)).passed
        True
    """
    tell = progress or (lambda _: None)
    if candidate is None:
        from bridge.exporting import export

        tell("exporting")
        candidate = export(reference, inputs, kwargs=kwargs, verify=False)
    session = session_of(candidate, providers=providers)
    _require_tolerances(tolerance, session)
    side = SessionSide(session)
    trials = list(_trials(reference, session, inputs, kwargs, vary=vary))
    report = ParityReport(trials[0].reference.label, side.label, [], max_drop=max_drop)
    metrics: list[tuple[float, float]] = []
    failed: list[Trial] = []
    coverage = Coverage(session)
    for trial in trials:
        tell(f"checking {trial.label}")
        try:
            found = _run_trial(trial, side, tolerance, metric, metrics, timeout, judge=judge)
        except RunTimeoutError as error:  # further inputs may well take as long
            report.cases.append(CaseReport(trial.label, [], f"{side.label}: {error.message}"))
            _explain_endless(report, trial, session, tolerance, tell, locate=locate)
            return report
        with time_limit(timeout or LONGEST):
            coverage.run(trial.feed)
        if found is None:
            continue
        report.cases.append(found)
        if not found.passed and not found.reference_fails:
            failed.append(trial)
    report.unreached = coverage.unreached()
    if metrics:
        columns = zip(*metrics, strict=True)
        expected, got = (float(np.mean(c)) for c in columns)
        report.metric = (expected, got)
    if not report.passed and failed:
        with time_limit(timeout or LONGEST):
            _explain(report, failed, session, tolerance, tell, locate=locate)
    return report


def _trials(
    reference: Any, session: Session, inputs: Any, kwargs: Any, *, vary: bool
) -> Iterator[Trial]:
    """The given inputs, or made-up ones, and what is varied from the first of them."""
    sides: Iterator[tuple[str, Side, dict[str, Any]]]
    if is_eager(reference):
        sides = _eager_trials(reference, session, inputs, kwargs)
    else:
        sides = _session_trials(reference, session, inputs)
    first = None
    for label, side, feed in sides:
        first = first or (side, feed)
        yield Trial(label, side, feed, given=True)
    if vary and first is not None:
        side, feed = first
        for case in (*varied(session.inputs, feed), *branch_cases(session, feed)):
            yield Trial(case.label, side, case.feed, given=False)


def _session_trials(
    reference: Any, session: Session, inputs: Any
) -> Iterator[tuple[str, Side, dict[str, Any]]]:
    side = SessionSide(session_of(reference))
    for case in cases_of(side.session, inputs):
        yield case.label, side, case.feed


def cases_of(session: Session, inputs: Any) -> list[Case]:
    """Inputs in any form as feeds of a session."""
    if inputs is None:
        return [Case("made-up inputs", generate_runnable(session))]
    if isinstance(inputs, str | os.PathLike):
        return load_cases(os.fspath(inputs))
    if isinstance(inputs, list) and inputs and all(isinstance(i, tuple | dict) for i in inputs):
        return [
            Case(f"inputs {n}", c.feed) for n, i in enumerate(inputs) for c in cases_of(session, i)
        ]
    if isinstance(inputs, dict) and set(inputs) <= set(session.input_names):
        return [Case("given inputs", dict(inputs))]
    args, kwargs = ((), inputs) if isinstance(inputs, dict) else (inputs, {})
    args = args if isinstance(args, tuple) else (args,)
    leaves = session.flatten(args, kwargs)
    return [Case("given inputs", dict(zip(session.input_names, leaves, strict=True)))]


def _eager_trials(
    model: Any, session: Session, inputs: Any, kwargs: Any
) -> Iterator[tuple[str, Side, dict[str, Any]]]:
    from exporters.pytorch.frontend import split_example
    from exporters.pytorch.inputs import bind

    several = (
        isinstance(inputs, list) and inputs and all(isinstance(i, tuple | dict) for i in inputs)
    )
    for number, example in enumerate(inputs if several else [inputs]):
        label = f"inputs {number}" if several else "given inputs"
        by_name = (
            isinstance(example, dict) and not kwargs and set(example) == set(session.input_names)
        )
        if (example is None and not kwargs) or by_name or isinstance(example, str | os.PathLike):
            for case in cases_of(session, example):
                arguments = bind(model, *_arguments(session, case.feed))
                yield case.label, EagerSide(model, session, arguments), case.feed
            continue
        args, keywords = split_example(() if example is None else example)
        arguments = bind(model, args, {**keywords, **(kwargs or {})})
        side = EagerSide(model, session, arguments)
        yield label, side, side.feed()


def _arguments(session: Session, feed: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Eager arguments that hold a feed's values."""
    from bridge.feeds import to_torch

    values = [to_torch(np.asarray(feed[n])) if not hasattr(feed[n], "detach") else feed[n]
              for n in session.input_names]  # fmt: skip
    if session.signature is None:
        return tuple(values), {}
    return (), session.signature.arguments(values)


def _run_trial(
    trial: Trial,
    side: SessionSide,
    tolerance: Tolerances,
    metric: Callable[[dict[str, Any]], float] | None,
    metrics: list[tuple[float, float]],
    timeout: float | None,
    *,
    judge: bool | None,
) -> CaseReport | None:
    """One comparison; None where the reference does not take inputs that nobody gave.

    Raises:
        RunTimeoutError: The candidate does not end.
    """
    started = time.perf_counter()
    try:
        with time_limit(timeout or LONGEST):
            expected = trial.reference.run(trial.feed)
    except Exception as error:
        if not trial.given:
            return None
        if isinstance(error, FeedError):
            raise
        _require_types(trial.feed, side.session)
        told = f"{trial.reference.label} fails: {type(error).__name__}: {error}"
        return CaseReport(trial.label, [], told, reference_fails=True)
    limit = timeout or time_for(time.perf_counter() - started, side.session)
    try:
        with time_limit(limit):
            got = side.run(trial.feed)
    except RunTimeoutError:
        raise
    except (FeedError, RunError) as error:
        if trial.given and isinstance(error, FeedError):
            raise
        return CaseReport(trial.label, [], f"{side.label} fails where the reference runs: {error}")
    if metric is not None:
        metrics.append((_measured(metric, expected), _measured(metric, got)))
    return CaseReport(trial.label, compare_outputs(expected, got, tolerance, trial, judge=judge))


def _require_types(feed: Mapping[str, Any], session: Session) -> None:
    """See that inputs which the reference refuses have the element types of the model.

    Raises:
        FeedError: One has another.
    """
    for spec in session.inputs:
        if spec.dtype is None or spec.name not in feed:
            continue
        given, wanted = to_numpy(feed[spec.name]).dtype, spec.dtype.numpy()
        if given != wanted:
            raise FeedError(
                f"input {spec.name!r} is {given.name}, the model takes {wanted.name}",
                hint=f"give {spec.name!r} as {wanted.name}",
            )


def _measured(metric: Callable[[dict[str, Any]], float], outputs: dict[str, Any]) -> float:
    try:
        return float(metric(outputs))
    except Exception as error:
        raise FeedError(
            f"the metric fails: {type(error).__name__}: {error}",
            hint=f"it takes a dict of outputs ({', '.join(outputs)}) and returns a number",
        ) from error


def _require_tolerances(tolerance: Any, session: Session) -> None:
    """See that the tolerances can be read, and are of outputs that there are.

    Raises:
        FeedError: They are not.
    """
    given = tolerance if isinstance(tolerance, Mapping) else {"": tolerance}
    for name, value in given.items():
        if not isinstance(value, Tolerance | None):
            raise FeedError(
                f"tolerance is {value!r}; it is a Tolerance",
                hint="write tolerance=bridge.Tolerance(rtol=1e-3, atol=1e-4)",
            )
        if name and name not in session.output_names:
            raise FeedError(
                f"tolerance is for output {name!r}; the outputs are {', '.join(session.output_names)}"
            )


def tolerance_of(tolerance: Tolerances, name: str) -> Tolerance | None:
    """The tolerance for one output."""
    return tolerance.get(name) if isinstance(tolerance, Mapping) else tolerance


def compare_outputs(
    expected: Mapping[str, Any],
    got: Mapping[str, Any],
    tolerance: Tolerances,
    trial: Trial | None = None,
    *,
    judge: bool | None = None,
) -> list[Comparison]:
    """Compare outputs by name, or by position where the names differ; float64 decides disputes."""
    pairs = _pairs(expected, got)
    rows = [compare(name, want, have, tolerance_of(tolerance, name)) for name, want, have in pairs]
    if trial is not None and not all(r.passed for r in rows):
        tolerance = _as_computed(rows, tolerance, trial.reference)
        rows = [compare(n, want, have, tolerance_of(tolerance, n)) for n, want, have in pairs]
    disputed = [i for i, row in enumerate(rows) if not row.passed and row.problem is None]
    if disputed and trial is not None and isinstance(trial.reference, EagerSide):
        wide = _wide_outputs(trial.reference, trial.feed, judge=judge)
        for i in disputed:
            name, want, have = pairs[i]
            if wide is not None and name in wide:
                rows[i] = judged(rows[i], wide[name], want, have, tolerance_of(tolerance, name))
    return rows


def _as_computed(rows: Sequence[Comparison], tolerance: Tolerances, side: Side) -> Tolerances:
    """The tolerances, with those by element type replaced where less precise numbers lead there."""
    if isinstance(tolerance, Tolerance):
        return tolerance
    assert isinstance(side, EagerSide | SessionSide)
    found = dict(tolerance or {})
    model = open_model(side.session.source)
    for row, output in zip(rows, side.session.output_names, strict=False):
        kind = None if row.passed or row.name in found else coarsest(model, output)
        if kind is None or row.dtype not in _WIDE:
            continue
        if kind.itemsize < np.dtype(row.dtype).itemsize:
            found[row.name] = default_tolerance(kind.numpy())
    return found


def _pairs(expected: Mapping[str, Any], got: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    if set(expected) == set(got):
        return [(n, x, got[n]) for n, x in expected.items()]
    if len(expected) != len(got):
        raise FeedError(
            f"one side has {len(expected)} outputs ({', '.join(expected)}), the other {len(got)} "
            f"({', '.join(got)})"
        )
    return [(n, x, y) for (n, x), y in zip(expected.items(), got.values(), strict=True)]


def _wide_outputs(
    side: EagerSide, feed: Mapping[str, Any], *, judge: bool | None
) -> dict[str, Any] | None:
    """What eager code computes in float64; None where it cannot, or should not be asked."""
    if judge is False:
        return None
    parameters = getattr(side.model, "parameters", None)
    size = sum(p.nbytes for p in parameters()) if parameters is not None else 0
    if judge is None and size > _JUDGED_AT_MOST:
        return None
    try:
        return side.run_wide(feed)
    except Exception:  # custom kernels and hard-wired dtypes have no float64 to offer
        return None


def judged(
    row: Comparison, wide: Any, expected: Any, got: Any, tolerance: Tolerance | None
) -> Comparison:
    """A difference looked at in the light of float64.

    It passes if the candidate is right by float64, or no further from it than eager code itself.
    """
    wide, expected, got = np.asarray(wide), np.asarray(expected), np.asarray(got)
    if wide.shape != expected.shape or expected.dtype.kind == "c":
        return row
    if not is_floating(expected.dtype):
        if np.array_equal(wide, got):
            return dataclasses.replace(row, passed=True, judged="float64 agrees with the model")
        return row
    tolerance = tolerance or default_tolerance(expected.dtype)
    truth = wide.astype(np.float64)
    ours = compare(row.name, truth, got.astype(np.float64), tolerance)
    eager = compare(row.name, truth, expected.astype(np.float64), tolerance)
    if ours.problem is not None or eager.problem is not None:
        return row
    told = f"off float64 by {ours.max_abs:.3g}, eager by {eager.max_abs:.3g}"
    passed = ours.passed or ours.needed <= _AS_FAR * eager.needed
    return dataclasses.replace(row, passed=passed, judged=told)


def _explain(
    report: ParityReport,
    failed: Sequence[Trial],
    session: Session,
    tolerance: Tolerances,
    tell: Callable[[str], None],
    *,
    locate: bool,
) -> None:
    """Add verdicts, and the first node that goes wrong."""
    from bridge.parity import verdicts

    trial = next((t for t in failed if t.given), failed[0])
    tell("looking for an explanation")
    report.verdicts += verdicts.explain(trial.reference, session, trial.feed, tolerance)
    if locate:
        from bridge.parity.locating import NOT_THE_REFERENCES, locate_divergence

        tell("locating the first node that goes wrong")
        report.divergence = locate_divergence(
            trial.reference, session, trial.feed, tolerance, progress=tell
        )
        if report.divergence is None and not report.verdicts:
            report.verdicts.append("no node of the graph is found to be wrong by itself")
        if report.divergence is not None:
            known = "\n".join(report.verdicts)
            report.verdicts += [
                v
                for v in report.divergence.verdicts
                # a weight that is not eager's is told of above
                if NOT_THE_REFERENCES not in v or v.split("'")[1] not in known
            ]


def _explain_endless(
    report: ParityReport,
    trial: Trial,
    session: Session,
    tolerance: Tolerances,
    tell: Callable[[str], None],
    *,
    locate: bool,
) -> None:
    """Name the Loop that does not end, and the node that makes it go on."""
    tell("looking for a Loop that does not end")
    found = find_endless(session, trial.feed)
    if found is None:
        report.verdicts.append("no Loop of it goes on for ever: a longer timeout may do")
        return
    report.verdicts.append(found.told)
    if locate:
        from bridge.parity.locating import locate_divergence

        tell("locating the first node that goes wrong")
        with time_limit(LONGEST):
            report.divergence = locate_divergence(
                trial.reference, found.session, trial.feed, tolerance, progress=tell
            )
        if report.divergence is not None:
            report.verdicts += [v for v in report.divergence.verdicts if STOPPED not in v]
