"""``bridge.bisect``: which pass, ours or ONNX Runtime's, makes a model compute something else."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bridge.errors import BridgeError
from bridge.files import load_model
from bridge.optimizing import Model, as_program
from bridge.parity.comparison import Comparison, compare
from bridge.parity.forcing import Probe, comparable, compare_local, severity
from bridge.parity.verdicts import OPTIMIZERS
from bridge.probes import ProbeCheck, as_feeds
from bridge.providers import resolve
from bridge.reduction import Reduction
from bridge.runtime import Settings
from bridge.session import Session
from bridge.targets import parse_target
from optim_passes.pipeline import leaves, run
from optim_passes.verified import Culprit, first_culprit, replay

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping, Sequence

    import onnx_ir as ir

    from bridge.parity.checking import Tolerances
    from bridge.parity.divergence import Reproducer
    from bridge.targets import Target
    from optim_passes.pipeline import Repeat

__all__ = ["BisectReport", "bisect"]

_CANDIDATES = 6  # wrong values around which a failing part is sought


@dataclasses.dataclass(slots=True)
class BisectReport:
    """What makes a model compute something else.

    Attributes:
        culprit: The pass, or ONNX Runtime's optimizers that only make it together; None if the
            model and what is made of it agree.
        kind: Whose it is: ``"pass"`` is ours, ``"runtime"`` is ONNX Runtime's.
        index: How many passes ran before it; None for ONNX Runtime's optimizers.
        reason: What is wrong after it.
        comparison: How wrong the first value is that goes wrong; None if none could be found.
        reproducer: The smallest part of the model that shows it; None if none could be cut out.
        folder: Where that was written to.
    """

    culprit: str | None
    kind: Literal["pass", "runtime"] | None = None
    index: int | None = None
    reason: str = ""
    comparison: Comparison | None = None
    reproducer: Reproducer | None = None
    folder: Path | None = None

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong."""
        return self.culprit is None

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data."""
        nodes = None
        if self.reproducer is not None:
            nodes = [n.op_type for n in self.reproducer.model.graph]
        return {
            "culprit": self.culprit,
            "kind": self.kind,
            "index": self.index,
            "reason": self.reason,
            "comparison": None if self.comparison is None else self.comparison.to_dict(),
            "nodes": nodes,
            "folder": None if self.folder is None else str(self.folder),
        }

    def to_junit(self) -> str:
        """The report as JUnit's XML."""
        from bridge.parity.report import junit

        return junit("bisect", [("model", None if self.passed else str(self))])

    def __str__(self) -> str:
        if self.passed:
            return "no pass changes what the model computes"
        whose = "the pass" if self.kind == "pass" else "ONNX Runtime's optimizer"
        lines = [f"the culprit is {whose} {self.culprit}: {self.reason}"]
        if self.comparison is not None:
            lines.append(f"  the first value that goes wrong: {self.comparison}")
        if self.reproducer is not None:
            nodes = [n.op_type for n in self.reproducer.model.graph]
            lines.append(
                f"  the smallest failing part has {len(nodes)} nodes: {', '.join(nodes[:12])}"
            )
        if self.folder is not None:
            lines.append(f"  written to {self.folder}")
        return "\n".join(lines)


def bisect(
    model: Model,
    inputs: Any = None,
    path: str | os.PathLike[str] | None = None,
    *,
    target: str | Target = "cpu",
    passes: Sequence[ir.passes.PassBase | Repeat] | None = None,
    tolerance: Tolerances = None,
    providers: Any = None,
    config: Mapping[str, str] | None = None,
    progress: Callable[[str], None] | None = None,
) -> BisectReport:
    """The first pass, ours or ONNX Runtime's, after which a model computes something else.

    What is right is what the model computes as it is written, on the same providers, with all of
    ONNX Runtime's optimizers off.

    Args:
        model: A program, a model in memory, its bytes, or the path of a file.
        inputs: In any form that :func:`bridge.check` takes; the examples of the export, or made-up
            ones, unless given.
        path: A folder to write the smallest failing part to: ``model.onnx``, ``inputs.npz`` and
            ``expected.npz``.
        target: Whose passes are tried.
        passes: The passes to try, in order; those of the target unless given, none if empty.
        tolerance: How far results may be off, for all outputs or by output name.
        providers: Where to run; what the target names, or the CPU, unless given.
        config: Session config entries of ONNX Runtime, to bisect under.
        progress: Called with a line of text at the start of each phase.

    Raises:
        NoProbesError: There are no inputs that the model takes.
        ModelFileError: A file is missing or broken, or ``path`` cannot be written.

    Example:
        >>> program = bridge.export(torch.nn.Linear(4, 2).eval(), torch.ones(3, 4))
        >>> bridge.bisect(program).passed
        True
    """
    tell = progress or (lambda _: None)
    wanted = parse_target(target)
    program = as_program(model)
    contract = wanted.contract() if providers is None else resolve(providers)
    settings = Settings(contract, config=config or {})
    plain = dataclasses.replace(settings, optimization="none")
    tell("running the model as it is written")
    feeds = list(program.probes)
    if inputs is not None:
        feeds = as_feeds(inputs, Session(program, settings=plain))
    check = ProbeCheck.of(program.model, feeds, plain, tolerance)
    chosen = wanted.passes(program.model) if passes is None else list(passes)
    search = _Search(check, settings, tell)
    report, result = search.our_passes(program.model, chosen)
    if report.passed:
        report = search.runtime(program.model, result)
    if path is not None and report.reproducer is not None:
        report.folder = report.reproducer.save(path)
    return report


class _Search:
    """A bisection under way.

    Args:
        check: Tells whether a model is right; it runs models as they are written.
        settings: Those under which ONNX Runtime's optimizers are tried.
        tell: Called with a line of text at the start of each phase.
    """

    def __init__(self, check: ProbeCheck, settings: Settings, tell: Callable[[str], None]) -> None:
        self.check = check
        self.plain = check.settings
        self.settings = settings
        self.tell = tell

    # Ours

    def our_passes(
        self, model: ir.Model, passes: Sequence[ir.passes.PassBase | Repeat]
    ) -> tuple[BisectReport, ir.Model]:
        """Look for the first of our passes that is wrong; also returns what they make."""
        ran: list[ir.passes.PassBase] = []

        def noted(pass_: ir.passes.PassBase, given: ir.Model) -> ir.passes.PassResult:
            ran.append(pass_)
            return pass_(given)

        self.tell(f"running {sum(1 for _ in leaves(passes))} passes")
        result: ir.Model | None = None
        try:
            result, _ = run(model.clone(), passes, apply=noted)
        except Exception as error:
            wrong = f"it raised {type(error.__cause__ or error).__name__}: {error}"
        else:
            found = self.check.failure(result)
            if found is None:
                return BisectReport(None), result
            wrong = found
        self.tell("halving the passes")
        culprit: Culprit | None
        if result is None:
            culprit = self._raising(model, ran, wrong)
        else:
            culprit = first_culprit(model, ran, self.check.failure, wrong)
        if culprit is None:
            return BisectReport(None), model
        report = BisectReport(culprit.name, "pass", culprit.index, culprit.reason)
        self.tell(f"cutting out what {culprit.name} does")
        raised = result is None and culprit.index == len(ran) - 1
        after = None if raised else replay(culprit.before, [culprit.pass_])
        self._reduce(
            report, culprit.before, after, lambda m: replay(m, [culprit.pass_]), self.plain
        )
        return report, model

    def _raising(
        self, model: ir.Model, ran: Sequence[ir.passes.PassBase], reason: str
    ) -> Culprit | None:
        """The pass that raised something, unless one before it is wrong."""
        before = replay(model, ran[:-1])
        wrong = self.check.failure(before)
        if wrong is not None:
            return first_culprit(model, ran[:-1], self.check.failure, wrong)
        return Culprit(ran[-1], len(ran) - 1, reason, before)

    # ONNX Runtime's

    def runtime(self, model: ir.Model, result: ir.Model) -> BisectReport:
        """Look for the optimizers of ONNX Runtime that are wrong on the model, or on our result."""
        for candidate in (model, result):
            self.tell("running with ONNX Runtime's optimizers")
            wrong = self._wrong_without(candidate, ())
            if wrong is None:
                continue
            names = self._needed(candidate)
            report = BisectReport(", ".join(names) or "set as a whole", "runtime", None, wrong)
            self.tell(f"cutting out what {report.culprit} does")
            rewritten = self._rewritten(candidate)
            self._reduce(report, candidate, rewritten, lambda m: m, self.settings)
            return report
        return BisectReport(None)

    def _wrong_without(self, model: ir.Model, names: Sequence[str]) -> str | None:
        settings = dataclasses.replace(self.settings, disabled_optimizers=tuple(names))
        return dataclasses.replace(self.check, settings=settings).failure(model)

    def _needed(self, model: ir.Model) -> list[str]:
        """The optimizers that have to be off for the model to be right, by halving; as few as can be."""
        if self._wrong_without(model, OPTIMIZERS) is not None:
            return []
        self.tell("halving ONNX Runtime's optimizers")
        off, size = list(OPTIMIZERS), len(OPTIMIZERS) // 2
        while size:
            place = 0
            while place < len(off) and len(off) > 1:
                fewer = off[:place] + off[place + size :]
                if fewer and self._wrong_without(model, fewer) is None:
                    off = fewer
                else:
                    place += size
            size //= 2
        return off

    def _rewritten(self, model: ir.Model) -> ir.Model | None:
        """The graph that ONNX Runtime makes of a model; None if it cannot be written down."""
        with tempfile.TemporaryDirectory(prefix="bridge-") as folder:
            path = Path(folder) / "optimized.onnx"
            settings = dataclasses.replace(self.settings, optimized_path=str(path))
            try:
                Session(model, settings=settings)
                found = load_model(path)
                for value in found.graph.initializers.values():
                    if value.const_value is not None:
                        value.const_value.numpy()
            except BridgeError:
                return None
            return found

    # Reduction

    def _reduce(
        self,
        report: BisectReport,
        before: ir.Model,
        after: ir.Model | None,
        change: Callable[[ir.Model], ir.Model],
        settings: Settings,
    ) -> None:
        """Find the smallest part that fails: from the first wrong value as far back as needed."""
        feed = self._failing_feed(before, change, settings)
        probe = Probe(before, self.plain)
        right = {
            n: x for n, x in probe.values(probe.names(), feed) if not isinstance(x, Exception)
        }
        trial = Reduction(probe, right, feed, change, settings, self.check)
        if after is None and settings is self.plain:
            report.reproducer = trial.raising()
            return
        for row in self._wrong_values(probe, right, after, feed):
            report.comparison = report.comparison or row
            part = trial.smallest(row.name)
            if part is not None:
                report.comparison, report.reproducer = row, part
                return

    def _failing_feed(
        self, before: ir.Model, change: Callable[[ir.Model], ir.Model], settings: Settings
    ) -> Mapping[str, Any]:
        for index, feed in enumerate(self.check.feeds):
            one = dataclasses.replace(
                self.check, feeds=[feed], expected=[self.check.expected[index]], settings=settings
            )
            try:
                if one.failure(change(before.clone())) is not None:
                    return feed
            except Exception:  # a pass that raises does so on every feed
                return feed
        return self.check.feeds[0]

    def _wrong_values(
        self,
        probe: Probe,
        right: Mapping[str, Any],
        after: ir.Model | None,
        feed: Mapping[str, Any],
    ) -> list[Comparison]:
        """The first values that both graphs have and that differ; outputs at the latest."""
        rows: list[Comparison] = []
        if after is not None:
            other = Probe(after, self.plain)
            both = [
                n for n in other.names() if n in right and comparable(right[n], other.types[n])
            ]
            got = dict(other.values(both, feed))
            for name in (n for n in probe.names() if n in got):
                row = compare_local(name, right[name], got[name], other.types[name])
                if severity(row) > 1:
                    rows.append(row)
        known = {r.name for r in rows}
        ends = [str(v.name) for v in probe.model.graph.outputs]
        rows = rows[:_CANDIDATES]
        rows += [compare(n, right[n], right[n]) for n in ends if n in right and n not in known]
        return rows
