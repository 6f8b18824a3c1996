"""Probes: inputs on which a model and what is made of it must agree."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from bridge.errors import BridgeError, FeedError, RunError
from bridge.feeds import to_numpy
from bridge.parity.checking import cases_of, tolerance_of
from bridge.parity.comparison import Comparison, compare, default_tolerance
from bridge.parity.inputs import generate
from bridge.session import Session

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import onnx_ir as ir

    from bridge.feeds import TensorSpec
    from bridge.parity.checking import Tolerances
    from bridge.runtime import Settings

__all__ = ["NoProbesError", "ProbeCheck", "as_feeds", "made_up_feeds", "narrowed"]

_LONGEST = 600.0  # seconds of a run: Loops that a pass broke may not end
_FEEDS = 2  # made-up feeds, of different sizes
_SIZES = (8, 16, 32, 64, 128, 224)  # for models that take no small sizes
_DISTINCT = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29)
_NOISE = 4.0  # times the difference that ONNX Runtime's own optimizer makes
_LARGE = 1 << 29  # bytes of weights of a model that is compared as it is written
_MOST_NOISE = 20.0  # times the tolerance: what differs by more is wrong, not noisy


class NoProbesError(BridgeError):
    """There are no inputs on which a model could be compared."""


def made_up_feeds(session: Session) -> list[dict[str, Any]]:
    """Random inputs of two choices of sizes that a model accepts.

    Raises:
        NoProbesError: It accepts none of those that were tried.
    """
    found: list[dict[str, Any]] = []
    problem = ""
    for seed, sizes in enumerate(_choices(session.inputs)):
        try:
            feed = generate(session.inputs, sizes=sizes, seed=seed)
            results = session.run(feed, timeout=_LONGEST)
        except (RunError, FeedError) as error:
            problem = problem or error.message
            continue
        if not any(_has_nan(x) for x in results.values()):
            found.append(feed)
        if len(found) == _FEEDS:
            break
    if not found:
        raise NoProbesError(
            f"no made-up inputs were accepted: {problem or 'every result has NaNs'}",
            hint="give inputs that the model takes",
        )
    return found


def _choices(specs: Sequence[TensorSpec]) -> Iterator[dict[str, int]]:
    """Sizes for the symbols: small and distinct ones first, and the same for all where these fail."""
    symbols = list(dict.fromkeys(str(d) for s in specs for d in s.dims or () if not _fixed(d)))
    if not symbols:
        yield {}
        return
    for shift in (1, 2):
        yield {n: _DISTINCT[(i + shift) % len(_DISTINCT)] for i, n in enumerate(symbols)}
    for size in _SIZES:
        yield {n: 2 if i == 0 else size for i, n in enumerate(symbols)}  # the first is the batch
    for size in (1, 2, *_SIZES):
        yield dict.fromkeys(symbols, size)


def _fixed(dim: int | str | None) -> bool:
    return isinstance(dim, int)


def _has_nan(x: Any) -> bool:
    array = np.asarray(x)
    return array.dtype.kind == "f" and bool(np.isnan(array).any())


@dataclasses.dataclass(slots=True)
class ProbeCheck:
    """Tells whether a model computes what another one computes.

    Attributes:
        feeds: The inputs.
        expected: What the right model returns for each, by name.
        settings: Of the sessions that run the models in question.
        tolerance: How far they may be off; by element type unless given.
        original: The right model.
        noise: By output, how far off the right model is that ONNX Runtime has optimized; None as
            long as nobody had to know.
        rows: The comparisons of the last model.
        elsewhere: Whether the model is for a provider that is not here: what the CPU refuses to run
            may be right then.
        refused: Why the last model could not be compared; empty if it could.
    """

    feeds: list[Mapping[str, Any]]
    expected: list[dict[str, Any]]
    settings: Settings
    tolerance: Tolerances = None
    original: ir.Model | None = None
    noise: dict[str, float] | None = None
    rows: list[Comparison] = dataclasses.field(default_factory=list)
    elsewhere: bool = False
    refused: str = ""

    @classmethod
    def of(
        cls,
        model: ir.Model,
        feeds: Sequence[Mapping[str, Any]],
        settings: Settings,
        tolerance: Tolerances = None,
    ) -> ProbeCheck:
        """Compare with what ``model`` computes as it is written.

        Args:
            model: The model that is right.
            feeds: Inputs by name; made up from the declared inputs if there are none.
            settings: Of the sessions that run the models in question.
            tolerance: How far they may be off.

        Raises:
            NoProbesError: The model cannot be run, or not twice with the same result.
        """
        # Sessions that run a few times need no weights laid out for their kernels.
        config = {**settings.config, "session.disable_prepacking": "1"}
        settings = dataclasses.replace(settings, config=config)
        plain = dataclasses.replace(
            settings, optimization="none", optimized_path=None, share_weights=True
        )
        if _weight_bytes(model) > _LARGE:  # what ONNX Runtime rewrites, it copies
            settings = plain
        try:
            session = Session(model, settings=plain)
        except BridgeError as error:
            raise NoProbesError(f"the model does not run here: {error.message}") from error
        feeds = [{n: to_numpy(x) for n, x in f.items()} for f in feeds] or made_up_feeds(session)
        expected = [_run(session, feed) for feed in feeds]
        again = _run(session, feeds[0])
        del session
        if any(not compare(n, x, again[n]).passed for n, x in expected[0].items()):
            raise NoProbesError("the model draws random numbers, so no two runs agree")
        noise: dict[str, float] | None = {} if settings.optimization == "none" else None
        return cls(list(feeds), expected, settings, tolerance, model, noise)

    def _measure_noise(self) -> None:
        """See how much it matters in which order kernels add up, by ONNX Runtime's own changes."""
        self.noise = {}
        if self.original is None:
            return
        try:
            rows = self._compare(self.original, widened=_MOST_NOISE)
            right = all(r.passed for r in rows)
        except BridgeError:
            right = False
        if (
            not right
        ):  # ONNX Runtime's optimizer breaks the model; passes are not to blame for that
            self.settings = dataclasses.replace(self.settings, optimization="none")
            return
        for row in rows:
            self.noise[row.name] = max(self.noise.get(row.name, 0.0), row.needed)

    def _compare(self, model: ir.Model, *, widened: float = 1.0) -> list[Comparison]:
        session = Session(model, settings=self.settings)
        rows = []
        for feed, expected in zip(self.feeds, self.expected, strict=True):
            got = _run(session, feed)
            for name, want in expected.items():
                base = tolerance_of(self.tolerance, name) or default_tolerance(want.dtype)
                noise = 0.0 if self.noise is None else self.noise.get(name, 0.0)
                atol = max(base.atol * widened, _NOISE * noise)
                limit = dataclasses.replace(base, atol=atol)
                rows.append(compare(name, want, got[name], limit))
        return rows

    def in_precision(self, model: ir.Model, dtype: ir.DataType) -> ProbeCheck:
        """The check for a model that computes the same in 16 bits, perhaps with inputs in these."""
        if self.noise is None:
            self._measure_noise()
        narrow = {str(v.name) for v in model.graph.inputs if v.dtype == dtype}
        kinds = {str(v.name): v.dtype for v in model.graph.outputs}
        feeds = [
            {n: narrowed(x, dtype) if n in narrow else x for n, x in f.items()} for f in self.feeds
        ]
        expected = [
            {n: narrowed(x, dtype) if kinds.get(n) == dtype else x for n, x in e.items()}
            for e in self.expected
        ]
        limit = default_tolerance(dtype.numpy())
        tolerance = {
            n: tolerance_of(self.tolerance, n) or limit
            for n, x in self.expected[0].items()
            if x.dtype == np.float32
        }
        return dataclasses.replace(
            self, feeds=list(feeds), expected=expected, tolerance=tolerance, rows=[]
        )

    def failure(self, model: ir.Model) -> str | None:
        """What is wrong with a model; None if it computes the same on every probe."""
        wrong = self._failure(model)
        if wrong is not None and self.noise is None:
            self._measure_noise()
            wrong = self._failure(model)
        return wrong

    def _failure(self, model: ir.Model) -> str | None:
        try:
            if set(_names(model)) != set(self.expected[0]):
                return f"its outputs are {', '.join(_names(model))}"
            self.rows = self._compare(model)
            self.refused = ""
        except BridgeError as error:
            self.rows = []
            self.refused = f"{type(error).__name__}: {error.message}"
            return None if self.elsewhere else self.refused
        failed = [r for r in self.rows if not r.passed]
        return str(failed[0]) if failed else None


def _weight_bytes(model: ir.Model) -> int:
    tensors = [v.const_value for v in model.graph.initializers.values()]
    return sum(t.nbytes for t in tensors if t is not None)


def narrowed(x: Any, dtype: ir.DataType) -> Any:
    """A float32 input in 16 bits, anything else as it is."""
    array = to_numpy(x)
    return array.astype(dtype.numpy()) if array.dtype == np.float32 else x


def _run(session: Session, feed: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return {n: np.asarray(to_numpy(x)) for n, x in session.run(feed, timeout=_LONGEST).items()}
    except BridgeError as error:
        raise NoProbesError(
            f"the model refuses a probe: {error.message}", hint=error.hint
        ) from error


def _names(model: ir.Model) -> list[str]:
    return [str(v.name) for v in model.graph.outputs]


def as_feeds(inputs: Any, session: Session) -> list[Mapping[str, Any]]:
    """Inputs in any form that :func:`bridge.check` takes, as feeds by input name."""
    return [] if inputs is None else [c.feed for c in cases_of(session, inputs)]
