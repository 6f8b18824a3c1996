"""The smallest part of a model on which a pass, ours or ONNX Runtime's, goes wrong."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from bridge.parity.comparison import Tolerance
from bridge.parity.divergence import Reproducer
from bridge.parity.forcing import Probe, as_type
from bridge.parity.surgery import cut

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import onnx_ir as ir

    from bridge.probes import ProbeCheck
    from bridge.runtime import Settings

__all__ = ["Reduction"]

_DEPTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24)
_MOST_TRIALS = 60  # nodes that are tried to be left out of a failing part


class Reduction:
    """Parts of a model that are tried for whether they fail alone.

    Args:
        probe: The model before the change.
        right: The values in it.
        feed: Its inputs.
        change: What the culprit makes of a model.
        settings: Of sessions that run what was changed.
        check: Gives the tolerances.
    """

    def __init__(
        self,
        probe: Probe,
        right: Mapping[str, Any],
        feed: Mapping[str, Any],
        change: Callable[[ir.Model], ir.Model],
        settings: Settings,
        check: ProbeCheck,
    ) -> None:
        self.probe = probe
        self.right = right
        self.feed = feed
        self.change = change
        self.settings = settings
        self.check = check
        given = check.tolerance
        self.tolerance = given if isinstance(given, Tolerance) else None

    def raising(self) -> Reproducer | None:
        """The first node alone that makes the culprit raise something."""
        for name in self.right:
            part = self._part(name, self._boundary(name, 1))
            if part is not None:
                try:
                    self.change(part.model.clone())
                except Exception:  # this is what is sought
                    return part
        return None

    def smallest(self, value: str) -> Reproducer | None:
        """The smallest part that computes a value and fails; None if not even the largest does."""
        found: tuple[set[str], Reproducer] | None = None
        for depth in _DEPTHS:
            given = self._boundary(value, depth)
            part = self._failing(value, given)
            if part is not None:
                found = given, part
                break
            if not given:
                return None
        if found is None:
            part = self._failing(value, set())
            if part is None:
                return None
            found = set(), part
        given, best = found
        for name in self._inner(value, given)[:_MOST_TRIALS]:
            part = self._failing(value, given | {name})
            if part is not None:
                given, best = given | {name}, part
        return best

    def _boundary(self, value: str, depth: int) -> set[str]:
        """The values that the nodes within some steps before a value read from further away."""
        makers = {str(v.name): n for n in self.probe.model.graph for v in n.outputs}
        inside, edge = {value}, {value}
        for _ in range(depth):
            edge = {
                str(v.name) for n in edge for v in makers[n].inputs if v is not None
                and str(v.name) in makers
            } - inside  # fmt: skip
            inside |= edge
        read = {str(v.name) for n in inside for v in makers[n].inputs if v is not None}
        return {n for n in (read & set(makers)) - (inside - edge) if n in self.right} - {value}

    def _inner(self, value: str, given: set[str]) -> list[str]:
        """The values that a part computes on its way, in graph order."""
        region = self.probe.region(value, dict.fromkeys(given))
        names = [str(v.name) for n in region for v in n.outputs]
        return [n for n in names if n != value and n in self.right]

    def _part(self, value: str, given: set[str]) -> Reproducer | None:
        """The part that computes a value from given ones; None if it cannot be cut out."""
        kinds = {n: self.probe.types[n] for n in given}
        try:
            part, names = cut(self.probe.model, [value], kinds)
        except (KeyError, ValueError):
            return None
        inputs = {
            own: as_type(self.right[n], kinds[n]) if n in given else self.feed[n]
            for n, own in names.items()
        }
        return Reproducer(part, inputs, {value: self.right[value]})

    def _failing(self, value: str, given: set[str]) -> Reproducer | None:
        """The part, if it is right by itself and the culprit makes it wrong."""
        part = self._part(value, given)
        if part is None:
            return None
        check = dataclasses.replace(
            self.check, feeds=[part.feed], expected=[dict(part.expected)], settings=self.settings,
            noise={}, tolerance=self.tolerance,
        )  # fmt: skip
        plain = dataclasses.replace(check, settings=self.probe.settings)
        if plain.failure(part.model) is not None:
            return None
        try:
            wrong = check.failure(self.change(part.model.clone()))
        except Exception as error:  # the culprit may be a pass that raises
            wrong = str(error)
        return None if wrong is None else part
