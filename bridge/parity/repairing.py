"""Which node spoils a result: the first one whose output, put right, puts the result right.

Numbers that no right array has may still be right: eager code has no name for a part of an
operator. But where a right array takes a value's place and the result is right again, what made the
value, or what comes before it, is wrong.
"""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from bridge.errors import BridgeError
from bridge.parity.comparison import is_floating
from bridge.parity.forcing import as_type, compare_local
from bridge.parity.right_numbers import RightNumbers
from bridge.parity.surgery import GIVEN, reads

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import onnx_ir as ir

    from bridge.parity.forcing import Probe
__all__ = ["Repair", "Repaired"]

Array = np.ndarray[Any, Any]

_SECONDS = 8.0  # that are spent on trials
_MOST = 60  # right arrays that are tried in one place


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
    """

    probe: Probe
    feed: Mapping[str, Any]
    known: Mapping[str, Any]
    value: str
    got: Mapping[str, Any]
    right: tuple[RightNumbers, ...]
    sound: Mapping[str, int]

    def first(self, region: Sequence[ir.Node]) -> Repaired | None:
        """The first node that, put right, puts the value right; None if none is found that does.

        Args:
            region: The nodes that compute the value, in graph order.
        """
        ends = time.monotonic() + _SECONDS
        for node in region[:-1]:
            if time.monotonic() > ends:
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
        )
        return next(flat.places(x.reshape(-1)), None) is not None

    def _repaired(self, node: ir.Node) -> Repaired | None:
        name = next((str(v.name) for v in node.outputs if v.name in self.got), None)
        if name is None or np.size(self.got[name]) < 2:
            return None
        after = max((self.sound.get(str(v.name), -1) for v in reads(node)), default=-1)
        given = {n: x for n, x in self.known.items() if n in self.probe.types and n != self.value}
        given[name] = np.asarray(self.got[name])
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

    def _gives(self, session: Any, feed: Mapping[str, Any]) -> bool:
        try:
            got = session.run(feed)[self.value]
        except BridgeError:  # indices of something else
            return False
        coarse = self.probe.coarse(self.value, self.known)
        kind = self.probe.types[self.value]
        return compare_local(self.value, self.known[self.value], got, kind, coarse).passed

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
