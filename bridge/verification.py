"""Does the graph compute what eager computes? Asked of ONNX Runtime after every export."""

from __future__ import annotations

import itertools
import math
import time
from typing import TYPE_CHECKING, Any

import torch

from bridge.errors import BridgeError, ParityError, RunError
from bridge.feeds import to_numpy
from bridge.parity.checking import Trial, compare_outputs
from bridge.parity.locating import locate_divergence
from bridge.parity.sides import EagerSide
from bridge.session import Session
from exporters.errors import ExportError, ScriptError
from exporters.pytorch import frontend
from exporters.pytorch.inputs import world_leaves
from exporters.tracing.worlds import are_sides, candidate_sizes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from bridge.parity.comparison import Comparison
    from bridge.program import Program
    from exporters.pytorch.frontend import TracedModel
    from exporters.tracing.worlds import Symbol

__all__ = ["UnseenSizesError", "verify"]

# How long eager code may run on inputs that the trace did not see: seconds, and times the trace.
_SECONDS, _TRACES = 1.0, 4.0
_SLOW = 5.0  # seconds of a trace, after which unseen sizes are a little larger, not twice as large


class UnseenSizesError(Exception):
    """The graph is wrong at sizes that no world had, and right once a world has them.

    Sizes that are equal in all worlds by coincidence (both padded to the same multiple) look
    static; another world tells them apart.

    Attributes:
        sizes: The sizes, by dim.
        finding: What to tell the user if more worlds do not help.
    """

    def __init__(self, sizes: dict[str, int], finding: Exception) -> None:
        super().__init__(str(sizes))
        self.sizes, self.finding = sizes, finding


def verify(traced: TracedModel, program: Program) -> list[Comparison]:
    """Run every world, and inputs that no world had, through ONNX Runtime and eager code.

    Returns:
        A comparison of each output in each run.

    Raises:
        ParityError: An output differs; the message names the first node that goes wrong.
        SpecialisationError: It differs because the trace froze something that varies.
        UnseenSizesError: It differs because the worlds' sizes happened to agree somewhere.
    """
    check = _Verification(traced, Session(program))
    rows: list[Comparison] = []
    for number, world in enumerate(traced.worlds):
        label = "example" if number == 0 else f"world {number}"
        rows += check.run(f"{label} {_sizes(world.sizes)}", world.leaves, world.outputs)
    for sizes, leaves in fresh_inputs(traced):
        try:
            with _Deadline(_SECONDS + _TRACES * traced.seconds.get("trace", 0.0)):
                expected = traced.eager_outputs(leaves)
        except Exception:  # eager does not take these inputs, so nobody will give them
            continue
        try:
            rows += check.run(f"unseen inputs {_sizes(sizes)}", leaves, expected)
        except (ParityError, RunError) as error:
            reason = frontend.explain(traced, leaves, sizes)
            if reason is not None and not isinstance(reason, ScriptError):
                raise reason from error
            if sizes and reason is None:
                raise UnseenSizesError(sizes, error) from error
            raise
    program.report.warnings += _told_otherwise(traced)
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
        self.session = session
        self.eager = EagerSide(traced.callable, session, traced.arguments)

    def run(self, label: str, leaves: Sequence[Any], expected: Sequence[Any]) -> list[Comparison]:
        """Compare one run.

        Raises:
            ParityError: An output differs.
        """
        names = [n for n in self.session.input_names if n not in self.state]
        feed = {n: to_numpy(leaves[i]) for n, i in zip(names, self.inputs, strict=True)}
        feed |= {n: to_numpy(x) for n, x in self.state.items()}
        outputs = self.session.output_names[: len(expected)]
        results = self.session.run(feed, outputs=outputs)
        if self.random:
            return []
        wanted = dict(zip(results, map(to_numpy, expected), strict=True))
        trial = Trial(label.strip(), self.eager, feed, given=True)
        rows = compare_outputs(wanted, results, None, trial)
        failed = [r for r in rows if not r.passed]
        if failed:
            told = "\n".join(f"  {trial.label}: {r}" for r in failed)
            raise ParityError(
                f"the exported model does not compute what eager computes:\n{told}"
                f"{self._where(feed)}",
                hint="to look at the model all the same, export with verify=False",
            )
        return rows

    def _where(self, feed: dict[str, Any]) -> str:
        """The first node that goes wrong, in words; empty if that cannot be told."""
        try:
            found = locate_divergence(self.eager, self.session, feed)
        except (BridgeError, ExportError):
            return ""
        if found is None:
            return ""
        return "\n".join(["", *(f"  {v}" for v in found.verdicts), str(found)])


def fresh_inputs(traced: TracedModel) -> Iterator[tuple[dict[str, int], list[Any]]]:
    """Inputs that no world had: other values, and if there are dynamic dims, smaller and larger ones."""
    moved = [_rolled(x) for x in traced.worlds[0].leaves]
    if not traced.symbols:
        yield {}, moved
        return
    slow = traced.seconds.get("trace", 0.0) > _SLOW
    for pick in (_smaller, _next_larger if slow else _larger):
        sizes = {s.name: pick(s, traced) for s in traced.symbols}
        if pick is _smaller:
            _make_square(sizes, traced.symbols)
        yield sizes, world_leaves(moved, traced.symbols, sizes)


def _make_square(sizes: dict[str, int], symbols: Sequence[Symbol]) -> None:
    """An image as high as it is wide, where no world had one."""
    for first, second in itertools.combinations(symbols, 2):
        size = sizes[first.name]
        if size > 1 and first.size != second.size and are_sides(first, second):
            sizes[second.name] = size if second.allows(size) else sizes[second.name]


def _unseen(symbol: Symbol, traced: TracedModel) -> list[int]:
    seen = {w.sizes.get(symbol.name, symbol.size) for w in traced.worlds}
    options = [1, *candidate_sizes(symbol)] if symbol.allows(1) else [*candidate_sizes(symbol)]
    return sorted({n for n in options if n not in seen}) or [symbol.size]


def _smaller(symbol: Symbol, traced: TracedModel) -> int:
    """1 for a dim that is small; for a large one another size below the example's."""
    below = [n for n in _unseen(symbol, traced) if n <= symbol.size] or [symbol.size]
    return below[0] if symbol.size < 16 else below[-1]


def _larger(symbol: Symbol, traced: TracedModel) -> int:
    """About twice the example's size: loops and windows that ran once run twice."""
    above = [n for n in _unseen(symbol, traced) if n >= 2 * symbol.size]
    return above[0] if above else symbol.size


def _next_larger(symbol: Symbol, traced: TracedModel) -> int:
    """A little more than the example's size, for models that take long."""
    return next((n for n in _unseen(symbol, traced) if n > symbol.size), symbol.size)


def _rolled(x: Any) -> Any:
    """The same values in other places, so that token ids and masks stay valid."""
    if not isinstance(x, torch.Tensor) or x.numel() < 2:
        return x
    return x.flatten().roll(1).view(x.shape)
