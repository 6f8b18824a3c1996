"""The gate: what a quantized model must not be worse than."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bridge.errors import BridgeError

if TYPE_CHECKING:
    from bridge.quantizing.report import QuantizationReport

__all__ = ["QuantizationRejected", "accuracy_problem", "latency_problem"]

_LEAST_SNR = 10.0  # dB, unless a budget says more
_SLOWER = 1.03  # what noise of the measurement may feign
_CULPRITS = 5


class QuantizationRejected(BridgeError):  # noqa: N818 - what it is called in the API
    """A quantized model is worse than was asked for, or slower than the float model.

    Args:
        message: What is worse.
        report: What was measured; its table becomes part of the text.
        hint: What mends it.

    Attributes:
        report: What was measured.
    """

    def __init__(
        self, message: str, report: QuantizationReport | None = None, *, hint: str | None = None
    ) -> None:
        self.report = report
        table = "" if report is None else f"\n{_indented(report.table())}"
        super().__init__(f"{message}{table}", hint=hint)


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())


def accuracy_problem(report: QuantizationReport, max_drop: float | None) -> str:
    """Why the accuracy is not enough; empty if it is."""
    found = report.accuracy
    if found is None:
        return ""
    if not found.finite:
        return "an output is NaN or infinite, or of another shape, where the float model's is not"
    drop = report.drop
    assert drop is not None
    if max_drop is not None and not drop <= max_drop:  # a metric may be NaN
        what = "top-1 agreement"
        if found.metric is not None:
            what = "the metric"
        elif found.agreement is None:
            what = "the outputs"
        told = f"{what} lost {drop:.4f}, more than {max_drop}"
        return told + _culprits(report)
    if max_drop is None and found.metric is None and found.snr < _LEAST_SNR:
        return f"the outputs are noise: SNR {found.snr:.1f} dB" + _culprits(report)
    return ""


def latency_problem(report: QuantizationReport) -> str:
    """Why the model is not fast enough; empty if it is."""
    found = report.latency
    if found is None or found.after <= _SLOWER * found.before:
        return ""
    return f"slower than float: {1e3 * found.after:.2f} ms instead of {1e3 * found.before:.2f} ms a run"


def _culprits(report: QuantizationReport) -> str:
    """The nodes that do most of the damage."""
    worst = [s for s in report.sensitivity if s.measured][:_CULPRITS]
    if not worst:
        return ""
    return "; most damage comes from " + ", ".join(
        f"{s.node} ({s.snr:.1f} dB alone)" for s in worst
    )
