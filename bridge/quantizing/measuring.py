"""Size, accuracy and latency of two models, side by side on this machine."""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from bridge.parity.comparison import compare

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import onnx_ir as ir

    from bridge.session import Session

__all__ = ["Accuracy", "Latency", "model_bytes", "output_accuracy", "side_by_side"]

_ROUNDS = (7, 60)  # fewest and most rounds of a measurement
_SECONDS = 2.0  # after which a measurement has enough rounds
_MOST = 300.0  # dB, instead of infinity


@dataclasses.dataclass(frozen=True, slots=True)
class Accuracy:
    """How close the outputs are to the float model's.

    Attributes:
        snr: Signal to noise ratio of the worst output, in dB.
        agreement: Share of rows whose largest element is at the same place; None without rows.
        metric: The task's own metric; None without one.
        finite: Whether outputs are finite where the float model's are.
        by_output: SNR of each output, in dB.
    """

    snr: float
    agreement: float | None = None
    metric: float | None = None
    finite: bool = True
    by_output: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True)
class Latency:
    """Seconds per run, in the median of runs in turn.

    Attributes:
        before: Of the float model.
        after: Of the quantized one.
        rounds: How often both ran.
    """

    before: float
    after: float
    rounds: int

    @property
    def speedup(self) -> float:
        """How many times faster the quantized model is."""
        return self.before / self.after if self.after else math.inf


def model_bytes(model: ir.Model) -> int:
    """Bytes of the constants, subgraphs and functions included."""
    seen: dict[int, int] = {}
    graphs = [model.graph, *model.graph.subgraphs(), *(f.graph for f in model.functions.values())]
    for graph in graphs:
        for value in graph.initializers.values():
            if value.const_value is not None:
                seen[id(value.const_value)] = value.const_value.nbytes
        for node in graph:
            given = node.attributes.get("value") if node.op_type == "Constant" else None
            if given is not None and not given.is_ref():
                tensor = given.as_tensor()
                seen[id(tensor)] = tensor.nbytes
    return sum(seen.values())


def output_accuracy(
    expected: Sequence[Mapping[str, Any]], got: Sequence[Mapping[str, Any]]
) -> Accuracy:
    """Compare the outputs of several runs; an output's SNR is that of all its runs together."""
    by_output: dict[str, float] = {}
    agreements: list[float] = []
    finite = True
    for name in expected[0] if expected else ():
        rows = [compare(name, a[name], b[name]) for a, b in zip(expected, got, strict=True)]
        finite &= all(r.problem is None for r in rows)
        if any(r.problem is not None for r in rows):
            by_output[name] = -_MOST
            continue
        agreements += [r.top1 for r in rows if r.top1 is not None]
        by_output[name] = _snr([a[name] for a in expected], [b[name] for b in got])
    return Accuracy(
        min(by_output.values(), default=_MOST),
        statistics.fmean(agreements) if agreements else None,
        None,
        finite,
        by_output,
    )


def _snr(expected: Sequence[Any], got: Sequence[Any]) -> float:
    signal = noise = 0.0
    for a, b in zip(_numbers(expected), _numbers(got), strict=True):
        wide = np.asarray(a, np.float64)
        if not np.isfinite(wide).all():  # alike in both, or compare() would have told
            keep = np.isfinite(wide)
            wide, b = wide[keep], np.asarray(b)[keep]
        signal += float((wide**2).sum())
        noise += float(((wide - np.asarray(b, np.float64)) ** 2).sum())
    if noise == 0:
        return _MOST
    return max(-_MOST, min(_MOST, 10 * math.log10(max(signal, 1e-300) / noise)))


def _numbers(values: Sequence[Any]) -> list[Any]:
    """Arrays of numbers: what a sequence holds, and no texts, which are compared as they are."""
    arrays = [np.asarray(x) for v in values for x in (v if isinstance(v, list) else [v])]
    return [a for a in arrays if a.dtype.kind in "biufc"]


def side_by_side(
    runs: Sequence[Callable[[], Any]], *, seconds: float = _SECONDS
) -> list[tuple[float, int]]:
    """Median seconds of several functions, called in turn, so that all meet the same noise.

    Returns:
        For each, the median and the number of calls.
    """
    for run in runs:
        run()
        run()
    times: list[list[float]] = [[] for _ in runs]
    fewest, most = _ROUNDS
    started = time.perf_counter()
    for number in range(most):
        if number >= fewest and time.perf_counter() - started > seconds:
            break
        order = list(enumerate(runs))
        for index, run in order if number % 2 == 0 else reversed(order):
            begun = time.perf_counter()
            run()
            times[index].append(time.perf_counter() - begun)
    return [(statistics.median(t), len(t)) for t in times]


def latency(before: Session, after: Session, feed: Mapping[str, Any], **options: Any) -> Latency:
    """Latency of two sessions on one feed."""
    measured = side_by_side([lambda: before.run(feed), lambda: after.run(feed)], **options)
    (first, rounds), (second, _) = measured
    return Latency(first, second, rounds)
