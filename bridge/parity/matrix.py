"""Parity across providers, optimization levels, opsets and passes, as one table."""

from __future__ import annotations

import dataclasses
import itertools
from typing import TYPE_CHECKING, Any

from bridge.errors import BridgeError, ParityError
from bridge.parity.checking import Tolerances, check
from bridge.parity.report import junit
from bridge.parity.sides import is_eager
from bridge.session import Session
from exporters.errors import ExportError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from bridge.parity.report import ParityReport

__all__ = ["Cell", "MatrixReport", "check_matrix"]


@dataclasses.dataclass(frozen=True, slots=True)
class Cell:
    """One combination.

    Attributes:
        provider: The providers that were asked for.
        optimization: ONNX Runtime's optimization level.
        opset: Of the export; None where a finished model was checked.
        report: What was found, None where nothing could be run.
        error: Why not.
        passes: The target whose passes the graph went through; None for the graph as exported.
    """

    provider: str
    optimization: str
    opset: int | None
    report: ParityReport | None
    error: str | None = None
    passes: str | None = None

    @property
    def label(self) -> str:
        """The combination in words."""
        opset = "" if self.opset is None else f", opset {self.opset}"
        passes = "" if self.passes is None else f", passes for {self.passes}"
        return f"{self.provider}, optimization {self.optimization}{opset}{passes}"

    @property
    def passed(self) -> bool:
        """Whether it ran and agreed."""
        return self.report is not None and self.report.passed


@dataclasses.dataclass(frozen=True, slots=True)
class MatrixReport:
    """Parity reports of many combinations.

    Attributes:
        cells: One for each.
    """

    cells: list[Cell]

    @property
    def passed(self) -> bool:
        """Whether every combination agreed."""
        return all(c.passed for c in self.cells)

    def raise_for_mismatch(self) -> MatrixReport:
        """The report itself if every combination agreed.

        Raises:
            ParityError: One did not.
        """
        if not self.passed:
            raise ParityError(str(self))
        return self

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data."""
        return {
            "passed": self.passed,
            "cells": [
                {
                    "provider": c.provider,
                    "optimization": c.optimization,
                    "opset": c.opset,
                    "passes": c.passes,
                    "passed": c.passed,
                    "error": c.error,
                    "report": None if c.report is None else c.report.to_dict(),
                }
                for c in self.cells
            ],
        }

    def to_junit(self) -> str:
        """The report as JUnit's XML, one test case for each combination."""
        cases = [(c.label, None if c.passed else str(c.report or c.error)) for c in self.cells]
        return junit("parity matrix", cases)

    def __str__(self) -> str:
        lines = []
        for cell in self.cells:
            worst = None if cell.report is None else cell.report.worst
            told = cell.error if cell.report is None else str(worst)
            lines.append(f"{'ok' if cell.passed else 'FAILED':6} {cell.label}: {told}")
        lines += [str(c.report) for c in self.cells if c.report is not None and not c.passed]
        return "\n".join(lines)


def check_matrix(
    reference: Any,
    candidate: Any = None,
    inputs: Any = None,
    *,
    providers: Sequence[str] = ("cpu",),
    optimizations: Sequence[str] = ("none", "all"),
    opsets: Sequence[int] = (),
    passes: Sequence[str] = ("none",),
    kwargs: Mapping[str, Any] | None = None,
    export_options: Mapping[str, Any] | None = None,
    tolerance: Tolerances = None,
    progress: Callable[[str], None] | None = None,
    **options: Any,
) -> MatrixReport:
    """:func:`check` for every combination of providers, optimization levels, opsets and passes.

    Args:
        reference: What is right; eager code if ``opsets`` are given.
        candidate: A program, a model, or the path of a file. With ``opsets``, or unless given, the
            reference is exported anew.
        inputs: As for :func:`check`.
        providers: Requests for providers, as for :func:`bridge.load`.
        optimizations: ONNX Runtime's optimization levels.
        opsets: ONNX opsets to export the reference for.
        passes: Targets whose passes to run, ``cpu``, ``cuda`` or ``portable``; ``none`` for the graph
            as it is. Nothing is rolled back: what a pass breaks is what is looked for.
        kwargs: Keyword arguments that go with positional inputs.
        export_options: Further options of :func:`bridge.export`.
        tolerance: As for :func:`check`.
        progress: Called with a line of text for each combination.
        **options: Further options of :func:`check`.

    Returns:
        A report for each combination. What cannot be run is an error in its place, not raised.
    """
    tell = progress or (lambda _: None)
    cells: list[Cell] = []
    targets = [None if p == "none" else p for p in passes]
    for opset, target in itertools.product(opsets or (None,), targets):
        model: Any = candidate
        failure: str | None = None
        if opset is not None or (model is None and is_eager(reference)):
            model, failure = _export(reference, inputs, kwargs, opset, export_options or {}, tell)
        if target is not None and failure is None:
            model, failure = _rewritten(model, target, tell)
        for provider, level in itertools.product(providers, optimizations):
            cell = Cell(provider, level, opset, None, failure, target)
            tell(cell.label)
            if failure is None:
                cell = _cell(cell, reference, model, inputs, kwargs=kwargs, tolerance=tolerance,
                             **options)  # fmt: skip
            cells.append(cell)
    return MatrixReport(cells)


def _rewritten(model: Any, target: str, tell: Callable[[str], None]) -> tuple[Any, str | None]:
    from bridge.optimizing import optimize

    tell(f"running the passes for {target}")
    try:
        return optimize(model, target=target, verify=False), None
    except BridgeError as error:
        return None, str(error)


def _export(
    model: Any, inputs: Any, kwargs: Any, opset: int | None, options: Any, tell: Any
) -> tuple[Any, str | None]:
    from bridge.exporting import export

    tell(f"exporting for opset {opset}" if opset else "exporting")
    first = inputs[0] if isinstance(inputs, list) and inputs else inputs
    try:
        program = export(model, first, kwargs=kwargs, opset=opset, verify=False, **options)
    except (BridgeError, ExportError) as error:
        return None, str(error)
    return program, None


def _cell(cell: Cell, reference: Any, model: Any, inputs: Any, **options: Any) -> Cell:
    try:
        session = Session(model, providers=cell.provider, optimization=cell.optimization)  # type: ignore[arg-type]
        report = check(reference, session, inputs, **options)
    except BridgeError as error:
        return dataclasses.replace(cell, error=str(error))
    return dataclasses.replace(cell, report=report)
