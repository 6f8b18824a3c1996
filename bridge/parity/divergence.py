"""The first node that goes wrong: what it is, where it came from, and files that show it alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bridge.errors import ModelFileError
from bridge.files import save_model

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    import onnx_ir as ir

    from bridge.graph_index import NodeInfo
    from bridge.parity.comparison import Comparison

__all__ = ["Divergence", "Reproducer"]


@dataclasses.dataclass(frozen=True, slots=True)
class Reproducer:
    """The smallest part of a model that shows a divergence.

    Attributes:
        model: The part.
        feed: What it reads.
        expected: What it should compute, by output name.
    """

    model: ir.Model
    feed: Mapping[str, Any]
    expected: Mapping[str, Any]

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write ``model.onnx``, ``inputs.npz`` and ``expected.npz`` into a folder."""
        target = Path(folder)
        try:
            target.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ModelFileError(
                f"cannot write into {target}: {error.strerror or error}", hint="name a folder"
            ) from error
        save_model(self.model, target / "model.onnx")
        np.savez(target / "inputs.npz", **dict(self.feed))
        np.savez(target / "expected.npz", **dict(self.expected))
        return target


@dataclasses.dataclass(frozen=True, slots=True)
class Divergence:
    """A node that computes something else than it should from inputs that are right.

    Attributes:
        node: The node's name.
        op_type: Its operator.
        module: Path of the eager module that it came from, ``""`` if it does not say.
        source: File and line of the eager code that it came from.
        around: The If and Loop nodes that it is inside of, with branch or iteration.
        iteration: Of the innermost loop around it.
        value: The output that is wrong.
        comparison: How wrong it is when its inputs are right.
        others: Further nodes that go wrong by themselves.
        growth: How far each value of the graph is off in the whole run, in graph order: the
            smallest tolerance that would pass.
        verdicts: Explanations in words.
        reproducer: The smallest failing part.
    """

    node: str
    op_type: str
    module: str
    source: str | None
    around: tuple[str, ...]
    iteration: int | None
    value: str
    comparison: Comparison | None
    others: tuple[str, ...] = ()
    growth: tuple[tuple[str, float], ...] = ()
    verdicts: tuple[str, ...] = ()
    reproducer: Reproducer | None = None

    @classmethod
    def at(cls, info: NodeInfo, value: str, comparison: Comparison | None) -> Divergence:
        """The divergence of a node of a graph."""
        return cls(
            node=info.name,
            op_type=info.node.op_type,
            module=info.module,
            source=info.source,
            around=(),
            iteration=None,
            value=value,
            comparison=comparison,
        )

    def extract(self, folder: str | os.PathLike[str]) -> Path:
        """Write the smallest failing part: ``model.onnx``, ``inputs.npz``, ``expected.npz``.

        Raises:
            ValueError: No part could be cut out.
        """
        if self.reproducer is None:
            raise ValueError(f"no part of the model around {self.node!r} could be cut out")
        return self.reproducer.save(folder)

    def to_dict(self) -> dict[str, Any]:
        """The divergence as plain data."""
        return {
            "node": self.node,
            "op_type": self.op_type,
            "module": self.module,
            "source": self.source,
            "around": list(self.around),
            "iteration": self.iteration,
            "value": self.value,
            "comparison": None if self.comparison is None else self.comparison.to_dict(),
            "others": list(self.others),
            "growth": [list(g) for g in self.growth],
            "verdicts": list(self.verdicts),
        }

    def __str__(self) -> str:
        lines = [f"first divergence: {self.op_type} {self.node!r}"]
        if self.module:
            lines.append(f"  in module {self.module}")
        if self.source is not None:
            lines.append(f"  at {self.source}")
        lines += [f"  inside {place}" for place in self.around]
        if self.comparison is not None:
            lines.append(f"  from right inputs: {self.comparison}")
        if self.others:
            more = f" and {len(self.others) - 5} more" if len(self.others) > 5 else ""
            lines.append(f"  also wrong by themselves: {', '.join(self.others[:5])}{more}")
        steps = self._steps()
        if steps:
            lines.append(f"  error along the graph: {' -> '.join(steps)}")
        return "\n".join(lines)

    def _steps(self) -> list[str]:
        """The values at which the error grew at least tenfold."""
        steps: list[str] = []
        reached = 0.0
        for name, error in self.growth:
            if error > 1e-9 and (reached == 0.0 or error >= 10 * reached):
                steps.append(f"{name} {error:.1g}")
                reached = error
        return steps[:8]
