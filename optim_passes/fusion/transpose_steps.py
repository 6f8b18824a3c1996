"""Transposes for which the CPU provider has no quick way, in two that it has one for."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import TYPE_CHECKING, Any, ClassVar

import onnx_ir as ir

from optim_passes.rewriting import NodePass
from optim_passes.values import dims
from optim_passes.views import permutation

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from optim_passes.builder import Builder

__all__ = ["TransposeStepsPass"]

Sizes = list[int | None]

_FEW = 2048  # elements that are moved one by one in less time than two more nodes take
_UNKNOWN = 8  # what a size is taken for that only run time knows


class TransposeStepsPass(NodePass):
    """Blocks of the last axis are moved as they are, and then one axis: patches of an image.

    ORT 1.32's CPU provider copies blocks where the last axes stay, and has a kernel for one axis
    that moves. All else it moves element by element, which takes 10 to 30 times as long:
    ``b (h p) (w q) c -> b (h w) (c p q)`` and its kin. A Reshape that joins two axes stands between
    the two steps, or ONNX Runtime puts them together again.
    """

    op_types: ClassVar[frozenset[str]] = frozenset({"Transpose"})
    repeat: ClassVar[bool] = False

    def rewrite(self, node: ir.Node, op: Builder) -> Any:
        """The two steps."""
        x, perm, known = node.inputs[0], permutation(node), dims(node.inputs[0])
        if node.domain or x is None or perm is None or known is None:
            return None
        sizes: Sizes = [d if isinstance(d, int) else None for d in known]
        if not _is_slow(perm, sizes) or x.dtype == ir.DataType.STRING:
            return None
        if math.prod(_UNKNOWN if s is None else s for s in sizes) < _FEW:
            return None
        step = max(_steps(perm, sizes), key=lambda s: s.block, default=None)
        if step is None:
            return None
        joined = op.Reshape(op.Transpose(x, perm=step.first), step.joined)
        y = op.Transpose(joined, perm=step.second)
        return y if step.apart is None else op.Reshape(y, step.apart)


def _is_slow(perm: Sequence[int], sizes: Sizes) -> bool:
    moved = [p for p in perm if sizes[p] != 1]
    if moved == sorted(moved) or perm[-1] == len(perm) - 1:
        return False
    for axis in range(len(perm)):
        left = [p for p in perm if p != axis]
        if left == sorted(left):
            return False
    return True


@dataclasses.dataclass(frozen=True, slots=True)
class _Steps:
    """``Transpose(first)``, ``Reshape(joined)``, ``Transpose(second)``, ``Reshape(apart)``.

    Attributes:
        block: How many elements are moved at once.
    """

    first: list[int]
    joined: list[int]
    second: list[int]
    apart: list[int] | None
    block: int


def _steps(perm: Sequence[int], sizes: Sizes) -> Iterator[_Steps]:
    """Both ways: the last axis moves after the others, or what becomes the last one before them."""
    last = len(perm) - 1
    for moving in (last, perm[-1]):
        others = perm if moving == last else range(len(perm))
        first = [p for p in others if p != moving] + [moving]
        block = _common(first, range(len(perm)) if moving == last else perm)
        moved = math.prod(_UNKNOWN if (s := sizes[p]) is None else s for p in block)
        found = next(_joinings(first, perm, sizes), None)
        if found is not None:
            yield _Steps(first, *found, moved)


def _common(a: Sequence[int], b: Sequence[int]) -> list[int]:
    """The axes that both end with."""
    pairs = zip(reversed(a), reversed(b), strict=True)
    return [x for x, _ in itertools.takewhile(lambda p: p[0] == p[1], pairs)]


def _joinings(
    first: Sequence[int], perm: Sequence[int], sizes: Sizes
) -> Iterator[tuple[list[int], list[int], list[int] | None]]:
    """Two axes that stay neighbours, as one: the Reshapes before and after, the Transpose between."""
    for place, (a, b) in reversed(list(enumerate(itertools.pairwise(first)))):
        at = perm.index(a)
        if perm[at + 1 : at + 2] != [b]:
            continue
        left, right = sizes[a], sizes[b]
        both = None if left is None or right is None else left * right
        joined = _target(place, [both, *(sizes[p] for p in first[place + 2 :])], first, sizes)
        apart = _target(at, [left, right, *(sizes[p] for p in perm[at + 2 :])], perm, sizes)
        if joined is not None and apart is not None:
            order = [p for p in first if p != b]
            yield joined, [order.index(p) for p in perm if p != b], apart
    if None in sizes:  # ONNX Runtime cannot tell that this Reshape does nothing
        yield [0] * len(perm), [first.index(p) for p in perm], None


def _target(kept: int, rest: Sizes, order: Sequence[int], sizes: Sizes) -> list[int] | None:
    """The target of a Reshape that keeps some dims; None if no constant tells it for all sizes."""
    if None not in rest:
        return [0] * kept + [s for s in rest if s is not None]
    if rest.count(None) > 1 or None in [sizes[p] for p in order[:kept]] or 0 in rest:
        return None  # -1 is not found out where another dim may be 0
    return [0] * kept + [-1 if s is None else s for s in rest]
