"""Does the graph compute what eager computes? Asked of ONNX Runtime after every export."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

import torch

from bridge.control import time_limit
from bridge.errors import BridgeError, ParityError, RunError, RunTimeoutError
from bridge.feeds import to_numpy
from bridge.parity.checking import Trial, compare_outputs
from bridge.parity.endless import find_endless, time_for
from bridge.parity.locating import is_rounding, locate_divergence
from bridge.parity.sides import EagerSide
from bridge.session import Session
from exporters.errors import ExportError, ScriptError
from exporters.pytorch import frontend
from exporters.pytorch.inputs import is_ordered, world_leaves
from exporters.tracing.worlds import smaller_sizes, unseen_sizes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from bridge.parity.comparison import Comparison
    from bridge.parity.divergence import Divergence
    from bridge.program import Program
    from exporters.pytorch.frontend import TracedModel
    from exporters.tracing.worlds import Symbol

__all__ = ["UnseenInputsError", "verify"]

# How long eager code may run on inputs that the trace did not see: seconds, and times the trace.
_SECONDS, _TRACES = 1.0, 4.0
_SLOW = 5.0  # seconds of a trace, after which only dims of this size and more are twice as large
_LARGE = 16


class UnseenInputsError(Exception):
    """The graph is wrong on inputs that no world had.

    Sizes that are equal in all worlds by coincidence (both padded to the same multiple) look
    static; another world tells them apart.

    Attributes:
        sizes: The sizes of the dynamic dims in these inputs.
        finding: What to tell the user if another trace does not help: a mismatch, or what the
            trace froze.
    """

    def __init__(self, sizes: dict[str, int], finding: Exception) -> None:
        super().__init__(str(sizes))
        self.sizes, self.finding = sizes, finding


class UnsettledError(Exception):
    """Outputs differ although no node does: rounding, another order of equals, signs of vectors.

    Attributes:
        agreed: The outputs that do not differ.
    """

    def __init__(self, message: str, agreed: list[Comparison]) -> None:
        super().__init__(message)
        self.agreed = agreed


def verify(traced: TracedModel, program: Program) -> list[Comparison]:
    """Run every world, and inputs that no world had, through ONNX Runtime and eager code.

    Returns:
        A comparison of each output in each run.

    Raises:
        ParityError: An output differs; the message names the first node that goes wrong.
        UnseenInputsError: It differs because the trace froze something that varies, or because the
            worlds' sizes happened to agree somewhere.
    """
    check = _Verification(traced, Session(program))
    rows: list[Comparison] = []
    unsettled: list[str] = []
    for number, world in enumerate(traced.worlds):
        label = "example" if number == 0 else f"world {number}"
        try:
            rows += check.run(f"{label} {_sizes(world.sizes)}", world.leaves, world.outputs)
        except UnsettledError as error:
            rows += error.agreed
            unsettled.append(str(error))
    for sizes, leaves in fresh_inputs(traced):
        try:
            with _Deadline(_SECONDS + _TRACES * _seconds(traced)):
                expected = traced.eager_outputs(leaves)
        except Exception:  # eager does not take these inputs, so nobody will give them
            continue
        try:
            rows += check.run(f"unseen inputs {_sizes(sizes)}", leaves, expected)
        except UnsettledError as error:
            reason = frontend.explain(traced, leaves, sizes)
            if reason is not None:
                raise UnseenInputsError(sizes, reason) from error
            rows += error.agreed
            unsettled.append(str(error))
        except (ParityError, RunError) as error:
            reason = frontend.explain(traced, leaves, sizes)
            if isinstance(reason, ScriptError) or (reason is None and not sizes):
                raise
            raise UnseenInputsError(sizes, reason or error) from error
    program.report.warnings += [*unsettled[:1], *_told_otherwise(traced)]
    return rows


def _told_otherwise(traced: TracedModel) -> list[str]:
    """A warning where the model computes something else because it sees that it is exported."""
    if traced.random:
        return []
    try:
        others = traced.other_when_exported()
    except Exception:  # outside of an export it takes ways of its own, which may fail
        return []
    if not others:
        return []
    return [
        f"{', '.join(others[:3])}: the model computes other values when torch.compiler.is_exporting() "
        "tells it of an export, and the graph computes those"
    ]


class _Deadline(torch.overrides.TorchFunctionMode):
    """Ends eager code that runs too long: a loop may never end on inputs that nobody would give."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.end = time.monotonic() + seconds

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if time.monotonic() > self.end:
            self.end = math.inf  # the way out makes calls, too: no_grad's exit is one
            raise TimeoutError
        return func(*args, **(kwargs or {}))


def _sizes(sizes: dict[str, int]) -> str:
    return ", ".join(f"{k}={v}" for k, v in sizes.items()) or "as exported"


class _Verification:
    """One session, compared with the eager code that it came from."""

    def __init__(self, traced: TracedModel, session: Session) -> None:
        self.random = traced.random
        self.state = traced.state
        self.inputs = traced.inputs
        self.seconds = traced.seconds.get("trace", 0.0)
        self.session = session
        self.eager = EagerSide(traced.callable, session, traced.arguments, traced)

    def run(self, label: str, leaves: Sequence[Any], expected: Sequence[Any]) -> list[Comparison]:
        """Compare one run.

        Raises:
            ParityError: An output differs.
            UnsettledError: It does, although no node computes anything else.
            RunTimeoutError: The run does not end; names the Loop.
        """
        names = [n for n in self.session.input_names if n not in self.state]
        feed = {n: to_numpy(leaves[i]) for n, i in zip(names, self.inputs, strict=True)}
        feed |= {n: to_numpy(x) for n, x in self.state.items()}
        outputs = self.session.output_names[: len(expected)]
        try:
            with time_limit(time_for(self.seconds, self.session)):
                results = self.session.run(feed, outputs=outputs)
        except RunTimeoutError as error:
            endless = find_endless(self.session, feed)
            told = error.message if endless is None else f"{error.message}; {endless.told}"
            raise RunTimeoutError(f"{label.strip()}: {told}") from error
        if self.random:
            return []
        wanted = dict(zip(results, map(to_numpy, expected), strict=True))
        trial = Trial(label.strip(), self.eager, feed, given=True)
        rows = compare_outputs(wanted, results, None, trial)
        failed = [r for r in rows if not r.passed]
        if not failed:
            return rows
        found = self._located(feed)
        told = "\n".join(f"  {trial.label}: {r}" for r in failed)
        if found is not None and is_rounding(found):
            raise UnsettledError(
                _unsettled(trial.label, failed, found), [r for r in rows if r.passed]
            )
        where = [] if found is None else ["", *(f"  {v}" for v in found.verdicts), str(found)]
        raise ParityError(
            f"the exported model does not compute what eager computes:\n{told}" + "\n".join(where),
            hint="to look at the model all the same, export with verify=False",
        )

    def _located(self, feed: dict[str, Any]) -> Divergence | None:
        """The first node that goes wrong; None if that cannot be told."""
        try:
            return locate_divergence(self.eager, self.session, feed)
        except (BridgeError, ExportError):
            return None


def _unsettled(label: str, failed: Sequence[Comparison], found: Divergence) -> str:
    names = ", ".join(r.name for r in failed[:3])
    at = "" if found.source is None else f" at {found.source}"
    return (
        f"{names}: every node of the graph computes what eager computes from the same inputs, but for "
        f"{label} rounding, the order of equal values or the signs of eigenvectors decide what comes "
        f"out (errors grow most in "
        f"{found.op_type} {found.node!r}{at})"
    )


def fresh_inputs(traced: TracedModel) -> Iterator[tuple[dict[str, int], list[Any]]]:
    """Inputs that no world had: other values, and if there are dynamic dims, smaller and larger ones."""
    moved = [_rolled(x) for x in traced.worlds[0].leaves]
    if not traced.symbols:
        yield {}, moved
        return
    seen = {s.name: {w.sizes.get(s.name, s.size) for w in traced.worlds} for s in traced.symbols}
    smaller = smaller_sizes(traced.symbols, seen)
    larger = {s.name: _larger(s, seen[s.name]) for s in traced.symbols}
    if _seconds(traced) > _SLOW and any(s.size >= _LARGE for s in traced.symbols):
        larger |= {s.name: smaller[s.name] for s in traced.symbols if s.size < _LARGE}
    for sizes in (smaller, larger):
        yield sizes, world_leaves(moved, traced.symbols, sizes)


def _seconds(traced: TracedModel) -> float:
    """How long a trace takes in which no call is known from another one."""
    return max(traced.seconds.get("trace", 0.0), traced.attempt.runs.seconds * len(traced.worlds))


def _larger(symbol: Symbol, seen: set[int]) -> int:
    """About twice the example's size, so that loops and windows that ran once run twice."""
    above = [n for n in unseen_sizes(symbol, seen) if n >= 2 * symbol.size]
    return above[0] if above else symbol.size


def _rolled(x: Any) -> Any:
    """The same values in other places, so that token ids and masks stay valid."""
    if not isinstance(x, torch.Tensor) or x.numel() < 2:
        return x
    for axis in reversed(range(x.dim())):
        if is_ordered(x, axis):  # stays so, from the same start
            places = torch.arange(x.shape[axis], device=x.device)
            before = x.index_select(axis, (places - 1).clamp(min=0))
            return (before + x) / 2 if x.is_floating_point() else before
    return x.flatten().roll(1).view(x.shape)
