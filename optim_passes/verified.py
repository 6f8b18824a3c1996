"""Runs a pipeline and finds the passes that break a model, by halving; these are left out."""

from __future__ import annotations

import dataclasses
import traceback
from typing import TYPE_CHECKING

import onnx_ir as ir

from optim_passes.errors import PassError
from optim_passes.pipeline import Repeat, Report, Step, pass_name, run

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Culprit", "first_culprit", "run_verified"]


@dataclasses.dataclass(frozen=True, slots=True)
class Culprit:
    """One run of a pass that turned a right model into a wrong one.

    Attributes:
        pass_: The pass.
        index: How many runs of passes came before it.
        reason: What is wrong after it.
        before: The model that it was given; still right.
    """

    pass_: ir.passes.PassBase
    index: int
    reason: str
    before: ir.Model

    @property
    def name(self) -> str:
        """What reports call the pass."""
        return pass_name(self.pass_)


class _RaisedError(Exception):
    """A pass raised something; the model may be half changed."""

    def __init__(self, pass_: ir.passes.PassBase, reason: str) -> None:
        super().__init__(reason)
        self.pass_ = pass_
        self.reason = reason


@dataclasses.dataclass(slots=True)
class _Attempt:
    """Runs passes but for those that are left out, and remembers which ran."""

    left_out: dict[int, str]
    ran: list[ir.passes.PassBase] = dataclasses.field(default_factory=list)

    def apply(self, pass_: ir.passes.PassBase, model: ir.Model) -> ir.passes.PassResult:
        if id(pass_) in self.left_out:
            return ir.passes.PassResult(model, modified=False)
        self.ran.append(pass_)
        try:
            return pass_(model)
        except Exception as error:
            raise _RaisedError(pass_, _told(error)) from error


def run_verified(
    model: ir.Model,
    passes: Sequence[ir.passes.PassBase | Repeat],
    failure: Callable[[ir.Model], str | None] | None = None,
    *,
    tell: Callable[[str], None] | None = None,
) -> tuple[ir.Model, Report]:
    """Run a pipeline, and leave out the passes that raise something or give a wrong model.

    The result is looked at once, after all passes. Only if something is wrong are prefixes of the
    pipeline looked at, to find the first pass after which it is.

    Args:
        model: Stays as it is; it shares its weights with the result.
        passes: In order.
        failure: Says what is wrong with a model, None if nothing is. ``model`` itself has to be
            right by it.
        tell: Called with a line of text before what takes long.

    Returns:
        The result, and the report; its steps say which passes were rolled back, and why.

    Raises:
        PassError: The model is wrong even without any pass.
    """
    left_out: dict[int, str] = {}
    names: dict[int, str] = {}
    while True:
        attempt = _Attempt(left_out)
        try:
            result, report = run(model.clone(), passes, apply=attempt.apply)
        except _RaisedError as error:
            names[id(error.pass_)] = pass_name(error.pass_)
            left_out[id(error.pass_)] = error.reason
            continue
        wrong = None if failure is None else failure(result)
        if failure is None or wrong is None:
            break
        if tell is not None:
            tell(f"looking for the pass that is to blame: {wrong}")
        culprit = first_culprit(model, attempt.ran, failure, wrong)
        if culprit is None:
            raise PassError(f"the model is wrong without any pass: {wrong}")
        names[id(culprit.pass_)] = culprit.name
        left_out[id(culprit.pass_)] = culprit.reason
        if tell is not None:
            tell(f"rolled back {culprit.name}")
    for key, reason in left_out.items():
        name = names[key]
        report.steps.setdefault(name, Step(name)).rolled_back = reason
    return result, report


def first_culprit(
    model: ir.Model,
    ran: Sequence[ir.passes.PassBase],
    failure: Callable[[ir.Model], str | None],
    wrong: str,
) -> Culprit | None:
    """The pass run after which a model is wrong that was right before, found by halving.

    Args:
        model: The model before all passes; it stays as it is.
        ran: The passes in the order in which they ran.
        failure: Says what is wrong with a model.
        wrong: What it says after all of ``ran``.

    Returns:
        The culprit; None if the model is wrong before any pass.
    """
    low, high = 0, len(ran)
    if failure(model) is not None:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        found = failure(replay(model, ran[:middle]))
        if found is None:
            low = middle
        else:
            high, wrong = middle, found
    if high == 0:
        return None
    return Culprit(ran[low], low, wrong, replay(model, ran[:low]))


def replay(model: ir.Model, passes: Sequence[ir.passes.PassBase]) -> ir.Model:
    """What becomes of a copy of the model when these passes run once each."""
    copy = model.clone()
    for pass_ in passes:
        copy = pass_(copy).model
    return copy


def _told(error: Exception) -> str:
    """The error, and where in the pass it was raised."""
    cause = error.__cause__ or error  # onnx_ir wraps what a pass raises
    frames = traceback.extract_tb(cause.__traceback__)
    where = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    return f"it raised {type(cause).__name__}: {cause}{where}"
