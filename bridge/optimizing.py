"""``bridge.optimize``: the form of a model that a target runs fastest, compared with the model itself."""

from __future__ import annotations

import collections
import contextlib
import os
import time
import warnings
from typing import TYPE_CHECKING, Any, TypeAlias

import onnx
import onnx_ir as ir

from bridge.errors import FeedError, ModelFileError, TargetError
from bridge.files import load_model, parse_model
from bridge.half_precision import DTYPES, Precision, halved
from bridge.optimization_report import OptimizationReport
from bridge.probes import NoProbesError, ProbeCheck, as_feeds, narrowed
from bridge.program import ExportReport, Program, count_ops
from bridge.runtime import Settings
from bridge.session import Session
from bridge.signature import Signature
from bridge.targets import Target, parse_target
from optim_passes.expectations import census, expectations, names_of
from optim_passes.verified import run_verified

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from bridge.parity.checking import Tolerances
    from optim_passes.pipeline import Repeat

__all__ = ["Model", "OptimizationWarning", "as_program", "optimize"]

Model: TypeAlias = Program | ir.Model | onnx.ModelProto | bytes | str | os.PathLike[str]


class OptimizationWarning(UserWarning):
    """A pass was rolled back."""


def optimize(
    model: Model,
    path: str | os.PathLike[str] | None = None,
    *,
    target: str | Target = "cpu",
    passes: Sequence[ir.passes.PassBase | Repeat] | None = None,
    inputs: Any = None,
    precision: Precision | None = None,
    keep: Collection[str] = (),
    keep_io: bool = True,
    verify: bool = True,
    tolerance: Tolerances = None,
    external_data: bool | None = None,
    progress: Callable[[str], None] | None = None,
) -> Program:
    """The model in the form that a target runs fastest; it computes the same.

    Names and types of inputs and outputs stay, so do the signature and every node's module path
    and source line. A pass after which the model computes something else is rolled back, and the
    report says so.

    Args:
        model: A program, a model in memory, its bytes, or the path of a file that anybody wrote.
            It stays as it is; weights that do not change are shared with it.
        path: Where to save the result; nowhere unless given.
        target: ``"cpu"``, ``"cuda"``, ``"portable"`` (standard operators only), or what is
            deployed: ``"onnxruntime==1.24,cuda"``; see :mod:`bridge.targets`.
        passes: The passes, in order; those of the target unless given. They can be built from
            those in :mod:`bridge.passes`: ``[*bridge.passes.cpu, MyFusion()]``.
        inputs: Probes to compare the result on, in any form that :func:`bridge.check` takes; the
            examples of the export, or made-up ones, unless given.
        precision: ``"fp16"`` or ``"bf16"`` to narrow float32 values after the passes, but for those
            that were measured on ``inputs`` to need float32.
        keep: Names or op types of further nodes that stay in float32.
        keep_io: Whether inputs and outputs stay float32 when ``precision`` narrows the rest.
        verify: Whether to compare the result with the model on ONNX Runtime.
        tolerance: How far results may be off, for all outputs or by output name; by element type
            unless given.
        external_data: Whether saved weights go to a file of their own; None does so above 2 GB.
        progress: Called with a line of text at the start of each phase.

    Returns:
        A new program; its ``report`` is an :class:`~bridge.optimization_report.OptimizationReport`.

    Raises:
        ModelFileError: A file is missing, broken or hostile, or ``path`` cannot be written.
        TargetError: There is no such target, or it lacks kernels for operators of the model.
        FeedError: ``inputs`` do not fit the model.

    Example:
        >>> program = bridge.export(torch.nn.Conv2d(3, 8, 3), torch.ones(1, 3, 8, 8))
        >>> bridge.optimize(program).report.verified[0].passed
        True
    """
    work = _Work(parse_target(target), progress or (lambda _: None))
    with work.timed("read", "reading the model"):
        program = as_program(model)
        adapted = work.target.adapted(program.model)
    if adapted is not program.model:
        program = Program(
            adapted, program.signature, program.report, state=program.state, probes=program.probes
        )
    if verify:
        with work.timed("verify", "running the model as it is"):
            work.set_up_check(program, inputs, tolerance)
    chosen = work.target.passes(program.model) if passes is None else list(passes)
    made = work.run(program, chosen)
    if precision is not None:
        made = work.narrow(made, program.model, precision, keep=keep, keep_io=keep_io)
    if path is not None:
        with work.timed("save", f"saving {os.fspath(path)}"):
            made.save(path, external_data=external_data)
    return made


class _Work:
    """One optimization under way.

    Args:
        target: What it is for.
        tell: Called with a line of text at the start of each phase.
    """

    def __init__(self, target: Target, tell: Callable[[str], None]) -> None:
        self.target = target
        self.tell = tell
        self.seconds: dict[str, float] = {}
        self.check: ProbeCheck | None = None
        self.unverified = "nobody asked for it"

    @contextlib.contextmanager
    def timed(self, phase: str, text: str) -> Iterator[None]:
        """Add the time of the block to a phase."""
        self.tell(text)
        started = time.perf_counter()
        try:
            yield
        finally:
            took = time.perf_counter() - started
            self.seconds[phase] = self.seconds.get(phase, 0.0) + took

    def set_up_check(self, program: Program, inputs: Any, tolerance: Tolerances) -> None:
        """Learn what the model computes as it is."""
        settings = Settings(self.target.contract())
        feeds = list(program.probes)
        if inputs is not None:
            feeds = as_feeds(inputs, Session(program, settings=settings))
        try:
            self.check = ProbeCheck.of(program.model, feeds, settings, tolerance)
            self.check.elsewhere = not self.target.is_here()
            self.unverified = ""
        except NoProbesError as error:
            if inputs is not None:
                raise
            self.unverified = error.message

    def run(self, program: Program, passes: Sequence[ir.passes.PassBase | Repeat]) -> Program:
        """The program after the passes."""
        before = program.model
        started, verifying = time.perf_counter(), self.seconds.get("verify", 0.0)
        self.tell(f"optimising for {self.target}")
        counted = census(before)
        result, passed = run_verified(
            before, passes, lambda m: self._failure(m, before), tell=self.tell
        )
        self.seconds["passes"] = (
            time.perf_counter() - started - (self.seconds.get("verify", 0.0) - verifying)
        )
        self.target.stamp(result)
        export = program.report if isinstance(program.report, ExportReport) else None
        report = OptimizationReport(
            str(self.target),
            passed,
            op_counts=(count_ops(before), count_ops(result)),
            verified=[] if self.check is None else self.check.rows,
            unverified=self._unverified(),
            seconds=self.seconds,
            export=export,
            expected=expectations(
                counted,
                census(result),
                passed.refusals,
                passes=names_of(passes),
                modules=None if export is None else export.modules,
            ),
        )
        report.warnings += [*self._left_to_cpu(result), *_told_overridable(result)]
        for name, why in report.rolled_back.items():
            text = f"the pass {name} was rolled back: {why}"
            warnings.warn(text, OptimizationWarning, stacklevel=4)
        return Program(
            result, program.signature, report, state=program.state, probes=program.probes
        )

    def _left_to_cpu(self, model: ir.Model) -> list[str]:
        """A warning if only the CPU has kernels for some nodes."""
        counts = collections.Counter(m.operator for m in self.target.left_to_cpu(model))
        if not counts:
            return []
        told = ", ".join(f"{n} {operator}" for operator, n in counts.most_common(5))
        return [f"{self.target} leaves {counts.total()} nodes to the CPU: {told}"]

    def narrow(
        self,
        program: Program,
        original: ir.Model,
        precision: Precision,
        *,
        keep: Collection[str],
        keep_io: bool,
    ) -> Program:
        """The program in 16 bits, compared with what it computed before all passes."""
        if precision not in DTYPES:
            raise TargetError(f"precision is {precision!r}; it is 'fp16' or 'bf16'")
        report = program.report
        assert isinstance(report, OptimizationReport)
        feeds = [] if self.check is None else self.check.feeds
        with self.timed("narrow", f"measuring ranges and narrowing to {precision}"):
            model, passed, unmeasured = halved(
                program.model, precision, feeds, Settings(self.target.contract()),
                original=original, target=self.target, keep=keep, keep_io=keep_io,
            )  # fmt: skip
        report.passes.steps.update(passed.steps)
        report.passes.refusals += passed.refusals
        report.passes.nodes = (report.passes.nodes[0], passed.nodes[1])
        report.op_counts = (report.op_counts[0], count_ops(model))
        if unmeasured:
            report.warnings.append(f"ranges were not measured: {unmeasured}")
        narrow = DTYPES[precision]
        if self.check is not None:
            with self.timed("verify", "comparing the results"):
                self._compare_narrow(model, narrow, report)
        probes = program.probes
        if not keep_io:
            probes = [{n: narrowed(x, narrow) for n, x in p.items()} for p in probes]
        return Program(model, program.signature, report, state=program.state, probes=probes)

    def _compare_narrow(
        self, model: ir.Model, dtype: ir.DataType, report: OptimizationReport
    ) -> None:
        assert self.check is not None
        check = self.check.in_precision(model, dtype)
        wrong = check.failure(model)
        report.verified = check.rows
        self.check = check
        report.unverified = self._unverified()
        if wrong is not None:
            text = f"16 bits are not enough: {wrong}"
            report.warnings.append(text)
            warnings.warn(text, OptimizationWarning, stacklevel=6)

    def _unverified(self) -> str:
        if self.check is None or not self.check.refused:
            return self.unverified
        return (
            f"the {self.target.kind} provider is not here, and the CPU says: {self.check.refused}"
        )

    def _failure(self, result: ir.Model, before: ir.Model) -> str | None:
        """What is wrong with a result; None if nothing is."""
        with self.timed("verify", "comparing the results"):
            wrong = _interface_failure(result, before) or self.target.failure(result)
            if wrong is None and self.check is not None:
                wrong = self.check.failure(result)
            return wrong


def as_program(model: Model) -> Program:
    """Whatever holds a model as a program.

    Raises:
        FeedError: It holds none.
        ModelFileError: It is a file or bytes, and they are broken or hostile.
    """
    if isinstance(model, Program):
        return model
    if isinstance(model, onnx.ModelProto):
        try:
            model = ir.from_proto(model)
        except Exception as error:
            raise ModelFileError(f"the model is not sound: {error}") from error
    elif isinstance(model, bytes):
        model = parse_model(model)
    elif isinstance(model, str | os.PathLike):
        model = load_model(model)
    if not isinstance(model, ir.Model):
        raise FeedError(
            f"a {type(model).__name__} is no ONNX model",
            hint="eager code is exported first: bridge.export(model, args)"
            if callable(model)
            else "give a program, a model in memory, its bytes, or the path of a file",
        )
    text = model.metadata_props.get("bridge.signature")
    signature = None
    if text is not None:
        with contextlib.suppress(ValueError, KeyError, TypeError, IndexError, RecursionError):
            signature = Signature.from_metadata(text)
    return Program(model, signature, ExportReport(op_counts=count_ops(model)))


def _interface_failure(result: ir.Model, before: ir.Model) -> str | None:
    """How inputs and outputs are others than they were."""
    listed = before.ir_version < 4  # initializers were, without being inputs
    for kind in ("inputs", "outputs"):
        was = [
            (v.name, v.dtype)
            for v in getattr(before.graph, kind)
            if kind == "outputs" or not (listed and v.is_initializer())
        ]
        now = [(v.name, v.dtype) for v in getattr(result.graph, kind)]
        if was != now:
            return f"its {kind} are {_told(now)}, they were {_told(was)}"
    return None


def _told_overridable(model: ir.Model) -> list[str]:
    """A warning if weights are inputs that a caller may give."""
    names = [str(v.name) for v in model.graph.inputs if v.is_initializer()]
    if not names:
        return []
    return [
        f"{len(names)} inputs have a default (first: {names[0]!r}), so passes take them for variable; "
        "export without keep_initializers_as_inputs"
    ]


def _told(values: Sequence[tuple[str | None, ir.DataType | None]]) -> str:
    return ", ".join(f"{n} ({'?' if d is None else d.name})" for n, d in values)
