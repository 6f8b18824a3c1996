"""What quantization did: a table, each tensor's range and loss, and why nodes stayed in float."""

from __future__ import annotations

import dataclasses
import html
import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from bridge.quantizing.histograms import Histogram
    from bridge.quantizing.measuring import Accuracy, Latency
    from bridge.quantizing.sensitivity import Sensitivity
    from optim_passes.quantization.static import QuantizedTensor

__all__ = ["QuantizationReport", "TensorReport", "tensor_reports"]

_SHOWN = 8  # rows of each list that the text spells out
_BARS = 64  # of a histogram in HTML
_UNITS = ((2**30, "GB"), (2**20, "MB"), (2**10, "kB"), (1, "B"))


@dataclasses.dataclass(frozen=True, slots=True)
class TensorReport:
    """One quantized tensor.

    Attributes:
        name: The value in the float model.
        kind: ``activation``, ``weight`` or ``bias``.
        node: The node that makes or reads it.
        dtype: Element type of its integers.
        scale: Its scale, the largest of several.
        zero_point: Its zero point.
        low: The smallest number that integers stand for.
        high: The largest.
        seen: The smallest and largest number that calibration saw; None for constants.
        clipped: Share of the numbers seen that saturate.
        snr: Signal to noise ratio of rounding, in dB; None for constants.
        bars: Counts over the numbers seen, for a histogram.
    """

    name: str
    kind: str
    node: str
    dtype: str
    scale: float
    zero_point: int
    low: float
    high: float
    seen: tuple[float, float] | None = None
    clipped: float = 0.0
    snr: float | None = None
    bars: Sequence[int] = ()

    def __str__(self) -> str:
        text = (
            f"{self.name}: {self.dtype} [{self.low:.4g}, {self.high:.4g}], scale {self.scale:.4g}"
        )
        if self.seen is not None:
            text += f", saw [{self.seen[0]:.4g}, {self.seen[1]:.4g}], {self.clipped:.2%} clipped"
        return text + (f", {self.snr:.1f} dB" if self.snr is not None else "")


def tensor_reports(
    tensors: Sequence[QuantizedTensor], histograms: dict[str, Histogram]
) -> list[TensorReport]:
    """Rows for quantized tensors, with what calibration saw of them."""
    rows = []
    for tensor in tensors:
        row = TensorReport(**{f.name: getattr(tensor, f.name) for f in dataclasses.fields(tensor)})
        histogram = histograms.get(tensor.name) if tensor.kind == "activation" else None
        if histogram is not None and histogram.batches:
            signal, noise = histogram.noise(tensor.low, tensor.high)
            snr = 10 * math.log10(signal / noise) if signal > 0 and noise > 0 else None
            row = dataclasses.replace(
                row,
                seen=(histogram.low, histogram.high),
                clipped=histogram.clipped(tensor.low, tensor.high),
                snr=snr,
                bars=_bars(histogram),
            )
        rows.append(row)
    return rows


def _bars(histogram: Histogram) -> list[int]:
    """Counts over the numbers seen, in a few bins."""
    if not histogram.bound or histogram.high == histogram.low:
        return [int(histogram.counts.sum())]
    middles = (histogram.edges()[:-1] + histogram.edges()[1:]) / 2
    extent = histogram.high - histogram.low
    index = np.clip(((middles - histogram.low) / extent * _BARS).astype(int), 0, _BARS - 1)
    return [int(n) for n in np.bincount(index, histogram.counts, _BARS)]


@dataclasses.dataclass(slots=True)
class QuantizationReport:
    """What a quantization did and measured.

    Attributes:
        recipe: Its name.
        processor: How the CPU was taken into account.
        size: Bytes of the weights, before and after.
        accuracy: Of the quantized model against the float one; None if not measured.
        float_metric: The task's metric of the float model.
        latency: Both models' on this machine; None if not measured.
        quantized: Nodes that compute in integers, by operator.
        kept_float: Nodes that stayed in floating point, with the reason.
        sensitivity: Damage done by each node, the worst first, where it was measured.
        tensors: Each quantized tensor.
        calibrated: Batches that were counted.
        warnings: What to look at.
        rejected: Why the gate refuses it, empty if it does not.
        seconds: Time by phase.
    """

    recipe: str
    processor: str = ""
    size: tuple[int, int] = (0, 0)
    accuracy: Accuracy | None = None
    float_metric: float | None = None
    latency: Latency | None = None
    quantized: dict[str, int] = dataclasses.field(default_factory=dict)
    kept_float: dict[str, str] = dataclasses.field(default_factory=dict)
    sensitivity: list[Sensitivity] = dataclasses.field(default_factory=list)
    tensors: list[TensorReport] = dataclasses.field(default_factory=list)
    calibrated: int = 0
    warnings: list[str] = dataclasses.field(default_factory=list)
    rejected: str = ""
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)

    @property
    def drop(self) -> float | None:
        """What was lost: of the metric, else of top-1 agreement, else of amplitude (noise / signal)."""
        found = self.accuracy
        if found is None:
            return None
        if found.metric is not None and self.float_metric is not None:
            return self.float_metric - found.metric
        if found.agreement is not None:
            return 1 - found.agreement
        return float(10 ** (-found.snr / 20))

    def rows(self) -> list[tuple[str, str, str]]:
        """The table: what, before, after."""
        before, after = self.size
        rows = [("weights", _bytes(before), _bytes(after))]
        if self.latency is not None:
            found = self.latency
            rows.append(
                ("latency", f"{1e3 * found.before:.2f} ms",
                 f"{1e3 * found.after:.2f} ms ({found.speedup:.2f}x)")
            )  # fmt: skip
        if self.accuracy is not None:
            rows.append(("output SNR", "", f"{self.accuracy.snr:.1f} dB"))
            if self.accuracy.agreement is not None:
                rows.append(("top-1 agreement", "", f"{self.accuracy.agreement:.2%}"))
            if self.accuracy.metric is not None:
                rows.append(("metric", f"{self.float_metric:.4f}", f"{self.accuracy.metric:.4f}"))
        return rows

    def table(self) -> str:
        """The table as text."""
        rows = [("", "float", self.recipe), *self.rows()]
        widths = [max(len(r[i]) for r in rows) for i in range(3)]
        return "\n".join(
            "  ".join(cell.ljust(w) for cell, w in zip(r, widths, strict=True)).rstrip()
            for r in rows
        )

    def __str__(self) -> str:
        lines = [self.table()]
        if self.rejected:
            lines.append(f"rejected: {self.rejected}")
        told = ", ".join(f"{n} {op}" for op, n in self.quantized.items())
        lines.append(f"quantized: {told or 'nothing'}")
        lines += _listed("kept in float", [f"{n}: {r}" for n, r in self.kept_float.items()])
        lines += _listed(
            "most damage",
            [f"{s.node}: {s.snr:.1f} dB alone" for s in self.sensitivity if s.measured],
        )
        worst = sorted((t for t in self.tensors if t.snr is not None), key=lambda t: t.snr or 0.0)
        lines += _listed("coarsest tensors", [str(t) for t in worst])
        if self.processor:
            lines.append(f"processor: {self.processor}")
        lines += [f"warning: {w}" for w in self.warnings]
        lines.append(", ".join(f"{k} {v:.2f} s" for k, v in self.seconds.items()))
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data."""
        data = dataclasses.asdict(self)
        data["drop"] = self.drop
        data["speedup"] = None if self.latency is None else self.latency.speedup
        return data

    def to_json(self) -> str:
        """The report as JSON; what is not finite is null."""
        return json.dumps(_plain(self.to_dict()), indent=1)

    def to_html(self) -> str:
        """A page with the table and a histogram of each activation."""
        cells = "".join(
            f"<tr><th>{html.escape(a)}</th><td>{html.escape(b)}</td><td>{html.escape(c)}</td></tr>"
            for a, b, c in [("", "float", self.recipe), *self.rows()]
        )
        blocks = "".join(_histogram(t) for t in self.tensors if t.bars)
        text = html.escape(str(self))
        return (
            "<!doctype html><html lang='en'><meta charset='utf-8'>"
            f"<title>Quantization: {html.escape(self.recipe)}</title>"
            "<style>body{font:14px sans-serif;margin:2em}td,th{padding:2px 12px;text-align:left}"
            "figure{display:inline-block;margin:8px;width:320px}figcaption{font-size:11px;"
            "overflow-wrap:anywhere}</style>"
            f"<h1>{html.escape(self.recipe)}</h1><table>{cells}</table>"
            f"<pre>{text}</pre><h2>Activations</h2>{blocks}</html>"
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as JSON, HTML or text, by the suffix of ``path``."""
        from pathlib import Path

        target = Path(path)
        forms = {".json": self.to_json, ".html": self.to_html}
        target.write_text(forms.get(target.suffix, self.__str__)(), encoding="utf-8")


def _listed(title: str, items: Sequence[str]) -> list[str]:
    if not items:
        return []
    lines = [f"{title}:", *(f"  {item}" for item in items[:_SHOWN])]
    if len(items) > _SHOWN:
        lines.append(f"  and {len(items) - _SHOWN} more")
    return lines


def _bytes(count: int) -> str:
    size, unit = next((s, u) for s, u in _UNITS if count >= s or s == 1)
    return f"{count / size:.1f} {unit}" if size > 1 else f"{count} B"


def _plain(x: Any) -> Any:
    """JSON knows neither NaN nor infinity nor NumPy."""
    if isinstance(x, dict):
        return {str(k): _plain(v) for k, v in x.items()}
    if isinstance(x, list | tuple):
        return [_plain(v) for v in x]
    if isinstance(x, np.generic):
        x = x.item()
    return None if isinstance(x, float) and not math.isfinite(x) else x


def _histogram(tensor: TensorReport) -> str:
    """Bars on a logarithmic scale, with the represented range shaded."""
    assert tensor.seen is not None
    low, high = tensor.seen
    extent = (high - low) or 1.0
    top = math.log1p(max(tensor.bars))
    width = 300 / len(tensor.bars)
    bars = "".join(
        f"<rect x='{i * width:.1f}' y='{80 - 80 * math.log1p(n) / top:.1f}' width='{width:.1f}' "
        f"height='{80 * math.log1p(n) / top:.1f}' fill='#47a'/>"
        for i, n in enumerate(tensor.bars)
        if n
    )
    left = max(0.0, min(300.0, (tensor.low - low) / extent * 300))
    right = max(0.0, min(300.0, (tensor.high - low) / extent * 300))
    shade = f"<rect x='{left:.1f}' y='0' width='{right - left:.1f}' height='80' fill='#fd8' />"
    caption = html.escape(str(tensor))
    return (
        f"<figure><svg viewBox='0 0 300 80' width='300' height='80' role='img'>{shade}{bars}</svg>"
        f"<figcaption>{caption}</figcaption></figure>"
    )
