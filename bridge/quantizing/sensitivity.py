"""Which nodes quantization hurts most, measured in groups on one session."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from bridge.feeds import to_numpy
from bridge.quantizing.measuring import output_accuracy
from bridge.session import Session
from optim_passes.quantization.simulation import SWITCHES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import onnx_ir as ir

    from optim_passes.quantization.simulation import SimulationPass

__all__ = ["Sensitivity", "rank_nodes"]

_GROUPS = 8  # that a set of nodes is split into
_WORTH = 0.02  # of all noise: a group with less is not split


@dataclasses.dataclass(frozen=True, slots=True)
class Sensitivity:
    """The damage of quantizing one node and no other.

    Attributes:
        node: Its name.
        noise: Noise at the output, as a share of the signal's power; for a node of a group that was
            not split, an equal share of the group's.
        measured: Whether the node was measured by itself.
    """

    node: str
    noise: float
    measured: bool

    @property
    def snr(self) -> float:
        """Signal to noise ratio at the output in dB, were this the only quantized node."""
        return -10 * math.log10(max(self.noise, 1e-30))


class _Switched:
    """A session whose nodes are quantized or not, from run to run."""

    def __init__(
        self, model: ir.Model, pass_: SimulationPass, feeds: Sequence[Mapping[str, Any]]
    ) -> None:
        simulated = model.clone()
        pass_(simulated)
        self.nodes = pass_.nodes
        self.feeds = [{n: to_numpy(x) for n, x in f.items()} for f in feeds]
        self.session = Session(simulated)
        self.runs = 0
        self.expected = self._outputs(np.zeros(max(1, len(self.nodes)), bool))

    def _outputs(self, switches: np.ndarray[Any, Any]) -> list[dict[str, Any]]:
        self.runs += 1
        return [self.session.run({**f, SWITCHES: switches}) for f in self.feeds]

    def noise(self, chosen: Sequence[int]) -> float:
        """The share of noise in the worst output when these nodes are quantized."""
        switches = np.zeros(max(1, len(self.nodes)), bool)
        switches[list(chosen)] = True
        found = output_accuracy(self.expected, self._outputs(switches))
        return float(10 ** (-found.snr / 10)) if found.finite else math.inf


def rank_nodes(
    model: ir.Model, pass_: SimulationPass, feeds: Sequence[Mapping[str, Any]]
) -> tuple[list[Sensitivity], int]:
    """Nodes by the damage that quantizing each does, the worst first.

    A group's noise is measured in one run; groups that matter are split, so the number of runs grows
    with the number of nodes that matter and not with the size of the model.

    Args:
        model: The float model, as the quantization pass gets it; not changed.
        pass_: What simulates the quantization.
        feeds: Inputs to measure on; a few.

    Returns:
        The ranking, and the number of runs that it took.
    """
    switched = _Switched(model, pass_, feeds)
    everything = list(range(len(switched.nodes)))
    if not everything:
        return [], switched.runs
    found: list[Sensitivity] = []
    whole = switched.noise(everything)
    pending = [(everything, whole)]
    while pending:
        group, noise = pending.pop()
        if len(group) == 1:
            found.append(Sensitivity(switched.nodes[group[0]], noise, True))
            continue
        if noise <= _WORTH * whole:
            share = noise / len(group)
            found += [Sensitivity(switched.nodes[i], share, False) for i in group]
            continue
        size = -(-len(group) // _GROUPS)
        for start in range(0, len(group), size):
            part = group[start : start + size]
            pending.append((part, switched.noise(part)))
    found.sort(key=lambda s: (-s.noise, s.node))
    return found, switched.runs
