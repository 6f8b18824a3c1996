"""What each node of a graph does to right inputs: errors of its own, without those it inherits."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from bridge.errors import BridgeError, RunError
from bridge.parity.comparison import (
    Comparison,
    Tolerance,
    compare,
    default_tolerance,
    is_floating,
)
from bridge.parity.precision import coarsest_of
from bridge.parity.surgery import cut, reads, value_types
from bridge.session import Session

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from bridge.runtime import Settings

__all__ = ["Probe", "local_tolerance", "severity"]

_CHUNK = 2**28  # bytes of values that one part takes and gives
_LOCAL = 0.03  # of the tolerance for whole models; sound kernels stay below a fifth of this
_HALF = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_COARSE = 0.25  # half-precision kernels round almost as differently as whole models


def local_tolerance(dtype: np.dtype[Any]) -> Tolerance:
    """How far one node may be off."""
    whole = default_tolerance(dtype)
    factor = _COARSE if dtype.itemsize <= 2 else _LOCAL
    return Tolerance(whole.rtol * factor, whole.atol * factor)


def severity(row: Comparison) -> float:
    """How many times the local tolerance a difference is; infinite for one of shape or NaN."""
    if row.passed:
        return 0.0
    if row.problem is not None:
        return float("inf")
    return row.needed / row.allowed if row.allowed > 0 else float("inf")


@dataclasses.dataclass(slots=True)
class Probe:
    """A graph whose inner values can be computed, from its inputs or from given inner values.

    Attributes:
        model: The graph.
        settings: How to run it.
    """

    model: ir.Model
    settings: Settings
    types: dict[str, ir.TypeProtocol] = dataclasses.field(init=False)
    _makers: dict[str, tuple[int, ir.Node]] = dataclasses.field(init=False)
    _is_half: bool = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self.types = value_types(self.model)
        self._makers = {
            str(v.name): (place, n) for place, n in enumerate(self.model.graph) for v in n.outputs
        }
        self._is_half = any(getattr(k, "dtype", None) in _HALF for k in self.types.values())

    def names(self) -> list[str]:
        """The tensors that nodes of the main graph make, in graph order."""
        return [
            str(v.name)
            for node in self.model.graph
            for v in node.outputs
            if v.name and isinstance(self.types.get(v.name), ir.TensorType)
        ]

    def values(
        self,
        names: Sequence[str],
        feed: Mapping[str, Any],
        given: Mapping[str, np.ndarray[Any, Any]] | None = None,
    ) -> Iterator[tuple[str, Any]]:
        """Inner values, or the error in place of what could not be computed.

        Args:
            names: Which.
            feed: The model's inputs by name.
            given: Values that are taken from here wherever a node reads them.
        """
        given = {n: x for n, x in (given or {}).items() if n in self.types}
        sized = {n: given[n].nbytes if n in given else 0 for n in names}
        for part in _chunks(names, sized):
            yield from self._part(part, feed, given)

    def _part(
        self, names: Sequence[str], feed: Mapping[str, Any], given: Mapping[str, Any]
    ) -> Iterator[tuple[str, Any]]:
        try:
            session, inputs = self.session(names, given)
            values = {own: self._input(n, feed, given) for n, own in inputs.items()}
            found = session.run(values)
        except BridgeError as error:
            if len(names) == 1:
                yield names[0], error
                return
            half = len(names) // 2
            yield from self._part(names[:half], feed, given)
            yield from self._part(names[half:], feed, given)
            return
        for name in names:
            yield name, found[name]

    def session(
        self, names: Sequence[str], given: Mapping[str, Any] | None = None
    ) -> tuple[Session, dict[str, str]]:
        """A session of the part that computes some values, and its inputs' names."""
        kinds = {n: self.types[n] for n in given or {}}
        part, inputs = cut(self.model, names, kinds)
        return Session(part, settings=self.settings), inputs

    def _input(self, name: str, feed: Mapping[str, Any], given: Mapping[str, Any]) -> Any:
        if name not in given:
            if name not in feed:
                raise RunError(f"nothing is known of {name!r}")
            return feed[name]
        return as_type(given[name], self.types[name])

    def region(self, value: str, given: Mapping[str, Any]) -> list[ir.Node]:
        """The nodes that compute a value from given ones, in graph order."""
        found: dict[ir.Node, int] = {}
        pending = [self._makers[value]] if value in self._makers else []
        while pending:
            place, node = pending.pop()
            if node in found:
                continue
            found[node] = place
            names = (str(v.name) for v in reads(node))
            pending += [self._makers[n] for n in names if n in self._makers and n not in given]
        return sorted(found, key=found.__getitem__)

    def coarse(self, value: str, given: Mapping[str, Any]) -> np.dtype[Any] | None:
        """The half precision that a value goes through on its way from given ones; None if it does not."""
        if not self._is_half:
            return None
        region = self.region(value, given)
        read = {str(v.name) for n in region for v in reads(n)}
        kinds = [self.types[n] for n in read if n in given and n in self.types]
        found = coarsest_of(region, self.types, kinds)
        return found.numpy() if found in _HALF else None


def as_type(x: np.ndarray[Any, Any], kind: ir.TypeProtocol) -> np.ndarray[Any, Any]:
    """An array in the element type that a graph has for it."""
    wanted = kind.dtype.numpy()
    return x if x.dtype == wanted else x.astype(wanted)


def comparable(x: np.ndarray[Any, Any], kind: ir.TypeProtocol | None) -> bool:
    """Whether an array may stand for a value: same element type, or both approximate numbers."""
    if not isinstance(kind, ir.TensorType) or kind.dtype == ir.DataType.STRING:
        return False
    wanted = kind.dtype.numpy()
    return x.dtype == wanted or (is_floating(x.dtype) and is_floating(wanted))


def compare_local(
    name: str,
    expected: np.ndarray[Any, Any],
    got: Any,
    kind: ir.TypeProtocol,
    coarse: np.dtype[Any] | None = None,
) -> Comparison:
    """Compare what one node makes of right inputs with what it should make.

    Args:
        name: The value.
        expected: What it should be.
        got: What it is, or the error that came instead.
        kind: The type that the graph has for it.
        coarse: A less precise type that it goes through; see :meth:`Probe.coarse`.
    """
    expected = as_type(np.asarray(expected), kind)
    if isinstance(got, Exception):
        return Comparison(name, False, f"it fails: {got}", expected.shape, expected.dtype.name)
    limits = coarse if coarse is not None and is_floating(expected.dtype) else expected.dtype
    return compare(name, expected, got, local_tolerance(limits))


def _chunks(names: Sequence[str], sizes: Mapping[str, int]) -> Iterator[list[str]]:
    chunk: list[str] = []
    total = 0
    for name in names:
        if chunk and total + sizes[name] > _CHUNK:
            yield chunk
            chunk, total = [], 0
        chunk.append(name)
        total += sizes[name]
    if chunk:
        yield chunk
