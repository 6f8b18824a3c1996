"""Runs passes in order, and says what each of them did."""

from __future__ import annotations

import collections
import dataclasses
import time
from typing import TYPE_CHECKING, Any

from optim_passes.rewriting import Outcome, Refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import onnx_ir as ir

__all__ = ["Repeat", "Report", "Step", "leaves", "pass_name", "run"]

_SHOWN = 12  # refusals that the text of a report spells out


class Repeat:
    """Passes that are run over and over until none of them finds anything.

    Args:
        *passes: Run in this order.
        limit: The most rounds.
    """

    def __init__(self, *passes: ir.passes.PassBase, limit: int = 8) -> None:
        self.passes = passes
        self.limit = limit


@dataclasses.dataclass(slots=True)
class Step:
    """What one pass did, all its runs taken together.

    Attributes:
        name: The pass.
        rewrites: How many times it changed something.
        removed: How many nodes it removed; negative when it added some.
        seconds: How long it took.
        rolled_back: Why its changes were undone, empty if they were not.
    """

    name: str
    rewrites: int = 0
    removed: int = 0
    seconds: float = 0.0
    rolled_back: str = ""


@dataclasses.dataclass(slots=True)
class Report:
    """What a pipeline did to a model.

    Attributes:
        steps: The passes that did something, by name, in order of their first run.
        refusals: Where passes nearly did something, from each pass's last run.
        nodes: Nodes before and after.
        seconds: Time in all.
    """

    steps: dict[str, Step] = dataclasses.field(default_factory=dict)
    refusals: list[Refusal] = dataclasses.field(default_factory=list)
    nodes: tuple[int, int] = (0, 0)
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        before, after = self.nodes
        lines = [f"{before} nodes became {after} in {self.seconds:.2f} s"]
        for step in self.steps.values():
            if step.rolled_back:
                lines.append(f"  {step.name}: rolled back, {step.rolled_back}")
            elif step.rewrites:
                lines.append(f"  {step.name}: {step.rewrites}")
        reasons = collections.Counter((r.pass_name, r.reason) for r in self.refusals)
        for (name, reason), count in reasons.most_common(_SHOWN):
            places = "place" if count == 1 else "places"
            lines.append(f"  refused: {name} at {count} {places}: {reason}")
        return "\n".join(lines)


def pass_name(pass_: ir.passes.PassBase) -> str:
    """What reports call a pass."""
    name = getattr(pass_, "name", None)
    return name if isinstance(name, str) else type(pass_).__name__


def leaves(passes: Sequence[ir.passes.PassBase | Repeat]) -> Iterator[ir.passes.PassBase]:
    """The passes of a pipeline without their grouping."""
    for pass_ in passes:
        if isinstance(pass_, Repeat):
            yield from pass_.passes
        else:
            yield pass_


def run(
    model: ir.Model,
    passes: Sequence[ir.passes.PassBase | Repeat],
    *,
    apply: Callable[[ir.passes.PassBase, ir.Model], ir.passes.PassResult] | None = None,
) -> tuple[ir.Model, Report]:
    """Run a pipeline.

    Args:
        model: Passes that work in place change it.
        passes: In order; any ``onnx_ir`` pass will do.
        apply: Runs one pass; it may check what the pass did, and undo it.

    Returns:
        The model that came out, and the report.
    """
    started = time.perf_counter()
    count = _count(model)
    report = Report(nodes=(count, 0))
    refusals: dict[str, list[Refusal]] = {}

    def once(pass_: ir.passes.PassBase, model: ir.Model) -> tuple[ir.Model, bool]:
        nonlocal count
        begun = time.perf_counter()
        result = (apply or _call)(pass_, model)
        name = pass_name(pass_)
        step = report.steps.setdefault(name, Step(name))
        step.seconds += time.perf_counter() - begun
        if result.modified:
            before, count = count, _count(result.model)
            step.removed += before - count
        if isinstance(result, Outcome):
            step.rewrites += result.rewrites
            refusals[name] = result.refusals
        else:
            step.rewrites += result.modified
        return result.model, result.modified

    for group in passes:
        if not isinstance(group, Repeat):
            model, _ = once(group, model)
            continue
        for _ in range(group.limit):
            changed = False
            for pass_ in group.passes:
                model, modified = once(pass_, model)
                changed |= modified
            if not changed:
                break
    report.refusals = [r for given in refusals.values() for r in given]
    report.nodes = (report.nodes[0], count)
    report.seconds = time.perf_counter() - started
    return model, report


def _call(pass_: ir.passes.PassBase, model: ir.Model) -> ir.passes.PassResult:
    return pass_(model)


def _count(model: ir.Model) -> int:
    return sum(1 for _ in model.graph.all_nodes())
