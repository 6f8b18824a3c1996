"""What ``bridge.optimize`` did to a model: for people, and as plain data."""

from __future__ import annotations

import collections
import dataclasses
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bridge.parity.comparison import Comparison
    from bridge.program import ExportReport
    from optim_passes.expectations import Expectation
    from optim_passes.pipeline import Report

__all__ = ["OptimizationReport"]

_SHOWN_MISSES = 8


@dataclasses.dataclass(slots=True)
class OptimizationReport:
    """What an optimization did, achieved, and left.

    Attributes:
        target: What it was for.
        passes: What each pass did, and where passes refused to.
        expected: How many attentions, norms and so on were to be fused, and how many were.
        op_counts: Nodes by op type before and after, subgraphs included.
        verified: The comparison of every output on every probe; empty if nothing was compared.
        unverified: Why nothing was compared; empty if it was.
        warnings: What the user should look at.
        seconds: Time by phase; ``verify`` is not part of ``passes``.
        export: The report of the export, if the model was just exported.
    """

    target: str
    passes: Report
    expected: list[Expectation] = dataclasses.field(default_factory=list)
    op_counts: tuple[dict[str, int], dict[str, int]] = dataclasses.field(
        default_factory=lambda: ({}, {})
    )
    verified: list[Comparison] = dataclasses.field(default_factory=list)
    unverified: str = ""
    warnings: list[str] = dataclasses.field(default_factory=list)
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    export: ExportReport | None = None

    @property
    def rolled_back(self) -> dict[str, str]:
        """Why passes were undone, by name."""
        return {s.name: s.rolled_back for s in self.passes.steps.values() if s.rolled_back}

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data."""
        data = dataclasses.asdict(dataclasses.replace(self, verified=[], export=None))
        data["verified"] = [c.to_dict() for c in self.verified]
        data["export"] = None if self.export is None else self.export.to_dict()
        data["rolled_back"] = self.rolled_back
        return data

    def __str__(self) -> str:
        before, after = self.passes.nodes
        lines = [f"optimised for {self.target}: {before} nodes became {after}"]
        common = collections.Counter(self.op_counts[1]).most_common(8)
        lines.append(f"now {', '.join(f'{n} {op}' for op, n in common)}")
        for row in self.expected:
            lines.append(f"fused {row}")
            lines += [f"  left: {m}" for m in row.misses[:_SHOWN_MISSES]]
            if len(row.misses) > _SHOWN_MISSES:
                lines.append(f"  and {len(row.misses) - _SHOWN_MISSES} more")
        lines += [f"rolled back {name}: {why}" for name, why in self.rolled_back.items()]
        lines += [f"warning: {w}" for w in self.warnings]
        if self.verified:
            worst = max(self.verified, key=lambda c: c.needed)
            lines.append(f"verified {len(self.verified)} outputs; the worst: {worst}")
        if self.unverified:
            lines.append(f"not verified: {self.unverified}")
        lines.append(", ".join(f"{k} {v:.2f} s" for k, v in self.seconds.items()))
        return "\n".join(lines)

    def to_junit(self) -> str:
        """The report as JUnit's XML, one test case for each compared output."""
        from bridge.parity.report import junit

        cases = [(c.name, None if c.passed else str(c)) for c in self.verified]
        cases += [(name, f"rolled back: {why}") for name, why in self.rolled_back.items()]
        return junit(f"optimised for {self.target}", cases)
