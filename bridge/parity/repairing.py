"""Which node spoils a result: the first one whose output, put right, puts the result right.

Numbers that no right array has may still be right: eager code has no name for a part of an
operator. But where a right array takes a value's place and the result is right again, what made the
value, or what comes before it, is wrong.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from bridge.errors import BridgeError
from bridge.parity.comparison import agrees, is_floating
from bridge.parity.forcing import as_type
from bridge.parity.right_numbers import RightNumbers
from bridge.parity.surgery import GIVEN, reads

if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Mapping, Sequence

    import onnx_ir as ir

    from bridge.parity.forcing import Probe
__all__ = ["MOVING", "Repair", "Repaired"]

Array = np.ndarray[Any, Any]

MOVING = {
    "Cast", "Concat", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Split",
    "Squeeze", "Transpose", "Unsqueeze",
}  # fmt: skip
_SECONDS = 8.0  # that are spent on trials
_MOST = 40  # right arrays that are tried in one place


@dataclasses.dataclass(frozen=True, slots=True)
class Repaired:
    """A node without whose fault the result would be right.

    Attributes:
        node: The node.
        value: Its output.
        right: What that should be.
    """

    node: ir.Node
    value: str
    right: Array


@dataclasses.dataclass(slots=True)
class Repair:
    """The search for one wrong value.

    Attributes:
        probe: The graph.
        feed: Its inputs.
        known: Values that are right by name, the wrong one included.
        value: The wrong value.
        got: What the graph makes on the way to it, by name.
        right: Right arrays that have no names.
        sound: Values that are right by their numbers, with the place of these in the first of
            ``right``.
        region: The nodes that compute the value, in graph order.
    """

    probe: Probe
    feed: Mapping[str, Any]
    known: Mapping[str, Any]
    value: str
    got: Mapping[str, Any]
    right: tuple[RightNumbers, ...]
    sound: Mapping[str, int]
    region: Sequence[ir.Node]
    _places: dict[ir.Value, int] = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self._places = {}  # how far eager code has got when it makes a value
        for node in self.region:
            before = max((self._places.get(v, -1) for v in reads(node)), default=-1)
            for made in node.outputs:
                self._places[made] = max(before, self.sound.get(str(made.name), -1))

    def first(self, nodes: Sequence[ir.Node], vouched: Container[ir.Node]) -> Repaired | None:
        """The first node that, put right, puts the value right; None if none is found that does.

        Args:
            nodes: Those that may be wrong, in graph order.
            vouched: Those that a right value comes from; it may be right by chance.
        """
        ends = time.monotonic() + _SECONDS
        found = self._first((n for n in nodes if n not in vouched), ends)
        last = nodes[-1] if found is None else found.node
        before = itertools.takewhile(lambda n: n is not last, nodes)
        found = self._first((n for n in before if n in vouched), ends) or found
        return None if found is None else self._stale(found)

    def _stale(self, found: Repaired) -> Repaired:
        """The node that changes nothing, such as a sum with zeros, whose result is only moved."""
        while found.node.op_type in MOVING and found.node.op_type != "Identity":
            makers = [n for v in reads(found.node) if (n := v.producer()) is not None]
            makers = [n for n in makers if n in self.region and self._changes_nothing(n)]
            further = next((r for n in makers if (r := self._repaired(n)) is not None), None)
            if further is None:
                break
            found = further
        return found

    def _changes_nothing(self, node: ir.Node) -> bool:
        places = {self.sound.get(str(v.name)) for v in reads(node)} - {None, -1}
        return node.op_type in MOVING or self.sound.get(str(node.outputs[0].name)) in places

    def _first(self, nodes: Iterator[ir.Node], ends: float) -> Repaired | None:
        for node in nodes:
            if node.outputs[0].name == self.value or time.monotonic() > ends:
                return None
            found = None if self._is_right(node) else self._repaired(node)
            if found is not None:
                return found
        return None

    def _is_right(self, node: ir.Node) -> bool:
        """Whether nothing speaks against a node: not numbers, nor their order.

        An Identity has right numbers even where eager code has an operator.
        """
        made = [str(v.name) for v in node.outputs if v.name in self.got]
        sound = all(n in self.sound for n in made)
        return sound and node.op_type != "Identity" and all(map(self._is_ordered, made))

    def _is_ordered(self, name: str) -> bool:
        """Whether a right array has the numbers of a value in their order."""
        x = np.asarray(self.got[name])
        flat = RightNumbers(
            [n.arrays[p].reshape(-1) for n in self.right for p in n.of_size(x.size)],
            self.right[0].coarse,
            whole=self.right[0].whole,
        )
        return next(flat.places(x.reshape(-1)), None) is not None

    def _repaired(self, node: ir.Node) -> Repaired | None:
        name = next((str(v.name) for v in node.outputs if v.name in self.got), None)
        if name is None or np.size(self.got[name]) < 2:
            return None
        after = max((self._places.get(v, -1) for v in reads(node)), default=-1)
        given = {**self._untouched(node), name: np.asarray(self.got[name])}
        try:
            session, inputs = self.probe.session([self.value], given)
            if inputs.get(name) != f"{name}{GIVEN}":
                return None
            feed = {
                own: as_type(given[n], self.probe.types[n]) if n in given else self.feed[n]
                for n, own in inputs.items()
            }
        except (BridgeError, KeyError):
            return None
        for x in self._candidates(given[name], after):
            if self._gives(session, {**feed, inputs[name]: x}):
                return Repaired(node, name, x)
        return None

    def _untouched(self, node: ir.Node) -> dict[str, Any]:
        """The values that a node has no part in: they need not be computed again."""
        touched = {node}
        given = {n: x for n, x in self.known.items() if n in self.probe.types and n != self.value}
        for other in self.region:
            read = [v for v in reads(other) if v.name not in given]
            if any(v.producer() in touched for v in read):
                touched.add(other)
                kept = (str(v.name) for v in read if v.producer() not in touched)
                given.update((n, np.asarray(self.got[n])) for n in kept if n in self.got)
        return given

    def _gives(self, session: Any, feed: Mapping[str, Any]) -> bool:
        try:
            got = session.run(feed)[self.value]
        except BridgeError:  # indices of something else
            return False
        expected = as_type(np.asarray(self.known[self.value]), self.probe.types[self.value])
        limits = self.right[0].tolerance(expected.dtype)
        return expected.shape == got.shape and agrees(expected, got, limits)

    def _candidates(self, like: Array, after: int) -> Iterator[Array]:
        """Right arrays of an array's size and kind that are not it, each once.

        Args:
            like: The array.
            after: The place behind which the right one is likely to be.
        """
        places = sorted(
            self.right[0].of_size(like.size), key=lambda p: (p <= after, abs(p - after))
        )
        arrays = [self.right[0].arrays[p] for p in places]
        arrays += [n.arrays[p] for n in self.right[1:] for p in n.of_size(like.size)]
        seen: list[Array] = [like]
        for array in arrays:
            if is_floating(array.dtype) != is_floating(like.dtype) or len(seen) > _MOST:
                continue
            x = array.astype(like.dtype).reshape(like.shape)
            if not any(np.array_equal(x, other) for other in seen):
                seen.append(x)
                yield x
