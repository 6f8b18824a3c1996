"""An exported model: its graph, how it nests in eager code, and the report of its making."""

from __future__ import annotations

import collections
import dataclasses
from typing import TYPE_CHECKING, Any

from bridge.files import save_model
from bridge.session import Session

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    import onnx_ir as ir

    from bridge.optimization_report import OptimizationReport
    from bridge.parity.comparison import Comparison
    from bridge.signature import Signature

__all__ = ["ExportReport", "Program"]


@dataclasses.dataclass(slots=True)
class ExportReport:
    """What an export assumed, did and measured.

    Attributes:
        assumptions: Questions that Python asked, with the one answer taken for granted.
        scripted: Functions whose control flow was compiled.
        dynamic: The dynamic dims: name and the sizes they had in each world.
        mutated: State that forward writes to, by ``state_dict`` name.
        warnings: What the user should look at.
        verified: The comparison of every output in every verified run.
        seconds: Time by phase.
        op_counts: Nodes by op type, subgraphs included.
        modules: The class names of the modules that nodes came from, by path.
    """

    assumptions: list[str] = dataclasses.field(default_factory=list)
    scripted: list[str] = dataclasses.field(default_factory=list)
    dynamic: dict[str, list[int]] = dataclasses.field(default_factory=dict)
    mutated: list[str] = dataclasses.field(default_factory=list)
    warnings: list[str] = dataclasses.field(default_factory=list)
    verified: list[Comparison] = dataclasses.field(default_factory=list)
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    op_counts: dict[str, int] = dataclasses.field(default_factory=dict)
    modules: dict[str, str] = dataclasses.field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        lines = []
        total = sum(self.op_counts.values())
        common = collections.Counter(self.op_counts).most_common(8)
        lines.append(f"{total} nodes: {', '.join(f'{n} {op}' for op, n in common)}")
        for name, sizes in self.dynamic.items():
            lines.append(f"dynamic dim {name}: {', '.join(map(str, sizes))}")
        for title, items in (
            ("assumed", self.assumptions),
            ("compiled", self.scripted),
            ("writes to", self.mutated),
            ("warning", self.warnings),
        ):
            lines += [f"{title}: {item}" for item in items]
        if self.verified:
            worst = max(self.verified, key=lambda c: c.needed)
            lines.append(f"verified {len(self.verified)} outputs; the worst: {worst}")
        lines.append(", ".join(f"{k} {v:.3f} s" for k, v in self.seconds.items()))
        return "\n".join(lines)


class Program:
    """An ONNX model that can be called like the eager code it came from.

    Attributes:
        model: The graph.
        signature: How its inputs and outputs nest in eager code; None if nobody knows, as of a
            foreign file: then calls take the inputs in order, and return the outputs in order.
        report: What the export, or whatever was done to the program last, found and measured.
        state: Buffers that are extra inputs, with the values that the next call takes.
        probes: Inputs by name that the model is known to take, to compare what is made of it on.
    """

    def __init__(
        self,
        model: ir.Model,
        signature: Signature | None,
        report: ExportReport | OptimizationReport,
        *,
        state: Mapping[str, Any] | None = None,
        probes: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self.state = dict(state or {})
        self.probes = list(probes)
        self.model = model
        self.signature = signature
        self.report = report
        self._session: Session | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run on ONNX Runtime's CPU provider; takes and returns the eager structure."""
        if self._session is None:
            self._session = self.session()
        if not self.state:
            return self._session(*args, **kwargs)
        assert self.signature is not None  # only exports have state
        leaves = self.signature.flatten(args, kwargs)
        feed = dict(zip(self._session.input_names, leaves, strict=False)) | self.state
        results = self._session.run(feed)
        self.state = {name: results.pop(f"{name}.out") for name in self.state}
        return self.signature.restore(list(results.values()))

    def session(self, *, providers: str | Sequence[str] = "cpu") -> Session:
        """A session of its own on the given providers."""
        return Session(self, providers=providers)

    def save(self, path: str | os.PathLike[str], *, external_data: bool | None = None) -> None:
        """Write the model; see :func:`bridge.files.save_model`."""
        save_model(self.model, path, external_data=external_data)


def count_ops(model: ir.Model) -> dict[str, int]:
    """Nodes by op type, subgraphs and functions included."""
    counts: collections.Counter[str] = collections.Counter()
    for node in model.graph.all_nodes():
        counts[node.op_type] += 1
    return dict(counts.most_common())
