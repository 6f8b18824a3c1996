"""What a parity check found: for people, for machines and for CI."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from bridge.errors import ParityError

if TYPE_CHECKING:
    from bridge.parity.comparison import Comparison
    from bridge.parity.locating import Divergence

__all__ = ["CaseReport", "ParityReport", "junit", "plain"]


@dataclasses.dataclass(frozen=True, slots=True)
class CaseReport:
    """One set of inputs, run on both sides.

    Attributes:
        label: What is special about the inputs.
        comparisons: One for each output.
        error: What kept one side from running, None if both ran.
        reference_fails: Whether it kept the reference from running.
    """

    label: str
    comparisons: list[Comparison]
    error: str | None = None
    reference_fails: bool = False

    @property
    def passed(self) -> bool:
        """Whether both sides ran and every output is within tolerance."""
        return self.error is None and all(c.passed for c in self.comparisons)

    def to_dict(self) -> dict[str, Any]:
        """The case as plain data."""
        return {
            "label": self.label,
            "passed": self.passed,
            "error": self.error,
            "outputs": [c.to_dict() for c in self.comparisons],
        }

    def __str__(self) -> str:
        if self.error is not None:
            return f"{self.label}: ERROR: {self.error}"
        return "\n".join(f"{self.label}: {c}" for c in self.comparisons)


@dataclasses.dataclass(slots=True)
class ParityReport:
    """Whether two sides compute the same.

    Attributes:
        reference: What is right: ``eager Net``.
        candidate: What was compared with it: ``session on cpu``.
        cases: What was found on each set of inputs.
        verdicts: Explanations of a mismatch, in words.
        divergence: The first node that goes wrong, None if nothing does or it was not sought.
        metric: The task metric of the reference and of the candidate, None without one.
        max_drop: How much lower the candidate's metric may be.
        unreached: The branches and loop bodies that no inputs reached, so that nothing is known of
            them.
    """

    reference: str
    candidate: str
    cases: list[CaseReport]
    verdicts: list[str] = dataclasses.field(default_factory=list)
    divergence: Divergence | None = None
    metric: tuple[float, float] | None = None
    max_drop: float = 0.0
    unreached: list[str] = dataclasses.field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether every case passed; with a task metric, whether that is kept."""
        if self.metric is not None:
            ran = all(c.error is None for c in self.cases)
            return ran and self.metric[0] - self.metric[1] <= self.max_drop
        return all(c.passed for c in self.cases)

    @property
    def worst(self) -> Comparison | None:
        """The comparison that needs the widest tolerance; one that none would satisfy first."""
        rows = [c for case in self.cases for c in case.comparisons]
        return max(rows, key=lambda c: math.inf if c.problem else c.needed, default=None)

    def raise_for_mismatch(self) -> ParityReport:
        """The report itself if it passed.

        Raises:
            ParityError: It did not.
        """
        if not self.passed:
            hint = None if self.divergence else "look for the node with `bridge locate`"
            raise ParityError(str(self), hint=hint)
        return self

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data."""
        return {
            "passed": self.passed,
            "reference": self.reference,
            "candidate": self.candidate,
            "cases": [c.to_dict() for c in self.cases],
            "verdicts": list(self.verdicts),
            "divergence": None if self.divergence is None else self.divergence.to_dict(),
            "metric": None if self.metric is None else list(self.metric),
            "unreached": list(self.unreached),
        }

    def __str__(self) -> str:
        state = "passed" if self.passed else "FAILED"
        lines = [f"parity {state}: {self.candidate} against {self.reference}"]
        if self.metric is not None:
            lines.append(
                f"metric {self.metric[1]:.6g} against {self.metric[0]:.6g}, "
                f"a drop of {self.max_drop:g} is allowed"
            )
        bad = [c for c in self.cases if not c.passed]
        lines += [f"  {line}" for c in bad for line in str(c).split("\n")]
        good = [c for c in self.cases if c.passed and c.comparisons]
        if good:
            rows = [r for c in good for r in c.comparisons]
            closest = max(rows, key=lambda r: r.needed)
            lines.append(f"  {len(good)} cases, {len(rows)} outputs ok; the worst: {closest}")
        lines += [f"no input reached {branch}" for branch in self.unreached]
        lines += [f"verdict: {v}" for v in self.verdicts]
        if self.divergence is not None:
            lines.append(str(self.divergence))
        return "\n".join(lines)

    def to_junit(self) -> str:
        """The report as JUnit's XML, one test case for each set of inputs."""
        cases = [(c.label, None if c.passed else str(c)) for c in self.cases]
        return junit(f"{self.candidate} against {self.reference}", cases)


def junit(suite: str, cases: list[tuple[str, str | None]]) -> str:
    """JUnit's XML for named cases, each with what is wrong with it."""
    failures = sum(wrong is not None for _, wrong in cases)
    root = ElementTree.Element(
        "testsuite",
        {"name": suite, "tests": str(len(cases)), "failures": str(failures), "errors": "0"},
    )
    for label, wrong in cases:
        case = ElementTree.SubElement(root, "testcase", {"classname": "bridge", "name": label})
        if wrong is not None:
            failure = ElementTree.SubElement(case, "failure", {"message": wrong.split("\n")[0]})
            failure.text = wrong
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def plain(data: Any) -> Any:
    """Plain data without the numbers that JSON lacks: NaN and infinities become strings."""
    if isinstance(data, float) and not math.isfinite(data):
        return str(data)
    if isinstance(data, dict):
        return {str(k): plain(v) for k, v in data.items()}
    if isinstance(data, list | tuple):
        return [plain(v) for v in data]
    return data
