"""Reports as rich shows them on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from bridge.benchmarking import BenchmarkReport
    from bridge.parity.comparison import Comparison
    from bridge.parity.matrix import MatrixReport
    from bridge.parity.report import ParityReport

__all__ = ["benchmark_view", "divergence_view", "matrix_view"]


def _state(passed: bool) -> Text:  # noqa: FBT001
    return Text("ok", "green") if passed else Text("FAILED", "bold red")


def matrix_view(matrix: MatrixReport) -> Any:
    """A row for each combination, and what is known of those that failed."""
    if len(matrix.cells) == 1 and matrix.cells[0].report is not None:
        return parity_view(matrix.cells[0].report)
    table = Table(title="parity", title_justify="left")
    for column in ("", "combination", "worst output", "max abs", "SNR", "smallest atol"):
        table.add_column(column, overflow="fold")
    for cell in matrix.cells:
        worst = None if cell.report is None else cell.report.worst
        row = [cell.error or "", "", "", ""] if worst is None else _numbers(worst)
        table.add_row(_state(cell.passed), cell.label, *row)
    failed = [c.report for c in matrix.cells if c.report is not None and not c.passed]
    return Group(table, *(_explanation(r) for r in failed))


def _numbers(row: Comparison) -> list[str]:
    if row.problem is not None:
        return [f"{row.name}: {row.problem}", "", "", ""]
    return [row.name, f"{row.max_abs:.3g}", f"{row.snr:.1f} dB", f"{row.needed:.3g}"]


def parity_view(report: ParityReport) -> Any:
    """A row for each output of each case."""
    table = Table(title=f"{report.candidate} against {report.reference}", title_justify="left")
    for column in ("", "inputs", "output", "max abs", "SNR", "smallest atol", "top-1", "top-5"):
        table.add_column(column, overflow="fold")
    for case in report.cases:
        if case.error is not None:
            table.add_row(_state(case.passed), case.label, case.error, "", "", "", "", "")
        for row in case.comparisons:
            tops = ["" if x is None else f"{x:.1%}" for x in (row.top1, row.top5)]
            table.add_row(_state(row.passed), case.label, *_numbers(row), *tops)
    return table if report.passed else Group(table, _explanation(report))


def _explanation(report: ParityReport) -> Any:
    lines = [f"verdict: {v}" for v in report.verdicts]
    if report.divergence is not None:
        lines.append(str(report.divergence))
    return Panel(
        Text("\n".join(lines) or "no explanation"), title=report.candidate, title_align="left"
    )


def benchmark_view(report: BenchmarkReport) -> Any:
    """A row for each form."""
    setting = ", ".join(f"{k} {v}" for k, v in report.setting.items())
    table = Table(title=setting, title_justify="left")
    for column in ("form", "on"):
        table.add_column(column)
    names = ("median", "p95", "items/s", "times faster", "first result", "memory", "off")
    for column in names:
        table.add_column(column, justify="right")
    base = next((r.median for r in report.rows if r.times), float("nan"))
    for row in report.rows:
        if row.error is not None:
            table.add_row(row.form, row.provider, Text(row.error.split("\n")[0], "red"))
            continue
        table.add_row(
            row.form, row.provider, f"{1e3 * row.median:.3f} ms", f"{1e3 * row.p95:.3f} ms",
            f"{row.throughput:.1f}", f"{base / row.median:.2f}", f"{row.load:.2f} s",
            f"{row.memory / 2**20:.0f} MiB", f"{row.off:.1g}",
        )  # fmt: skip
    return table


def divergence_view(report: ParityReport) -> Any:
    """Where it goes wrong; the outputs where it does not."""
    return parity_view(report) if report.passed else _explanation(report)
