"""Algebra of ``Slice``, ``Split`` and ``Concat``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from optim_passes.rewriting import NodePass
from optim_passes.values import attribute, dims, input_of, ints, norm_axis, producer, rank

if TYPE_CHECKING:
    import onnx_ir as ir

    from optim_passes.builder import Builder

__all__ = ["ConcatPass", "SlicePass", "slice_ranges"]

INT64_MAX = 2**63 - 1  # ONNX slices "to the end"


def slice_ranges(node: ir.Node) -> dict[int, tuple[int, int]] | None:
    """Start and end by axis, of a Slice with constant bounds that counts from the front.

    The end may lie behind the last element. None for anything else.
    """
    size = rank(node.inputs[0])
    starts, ends = ints(input_of(node, 1)), ints(input_of(node, 2))
    steps = [1] if input_of(node, 4) is None else ints(input_of(node, 4))
    if starts is None or ends is None or size is None or not steps or any(n != 1 for n in steps):
        return None
    given = list(range(len(starts))) if input_of(node, 3) is None else ints(input_of(node, 3))
    shape = dims(node.inputs[0])
    if given is None or shape is None:
        return None
    ranges = {}
    for raw, start, end in zip(given, starts, ends, strict=True):
        axis = norm_axis(raw, size)
        length = shape[axis]
        if isinstance(length, int):
            start = max(start + length, 0) if start < 0 else min(start, length)
            end = end + length if end < 0 else min(end, length)
        if start < 0 or end < start:
            return None
        ranges[axis] = (start, end)
    return ranges


class SlicePass(NodePass):
    """``Slice(Slice(x))`` with constant bounds and step 1 becomes one Slice."""

    op_types: ClassVar[frozenset[str]] = frozenset({"Slice"})

    def rewrite(self, node: ir.Node, op: Builder) -> Any:
        """The one Slice."""
        inner = producer(node.inputs[0], "Slice")
        if node.domain or inner is None or op.opset < 10:
            return None
        first, second = slice_ranges(inner), slice_ranges(node)
        if first is None or second is None:
            return None
        merged = dict(first)
        for axis, (start, end) in second.items():
            low, high = first.get(axis, (0, INT64_MAX))
            merged[axis] = (min(low + start, high), min(low + end, high))
        axes = sorted(merged)
        return op.Slice(
            inner.inputs[0], [merged[a][0] for a in axes], [merged[a][1] for a in axes], axes
        )


class ConcatPass(NodePass):
    """Nested concatenations become one; one that puts a Split together again becomes nothing."""

    op_types: ClassVar[frozenset[str]] = frozenset({"Concat"})

    def rewrite(self, node: ir.Node, op: Builder) -> Any:
        """The flat concatenation, or what was split."""
        size = rank(node.outputs[0])
        if node.domain or size is None:
            return None
        axis = norm_axis(attribute(node, "axis"), size)
        split = producer(node.inputs[0], "Split")
        whole = split is not None and list(split.outputs) == list(node.inputs)
        if split is not None and whole and norm_axis(attribute(split, "axis", 0), size) == axis:
            return split.inputs[0]
        flat: list[ir.Value | None] = []
        for x in node.inputs:
            inner = producer(x, "Concat")
            if (
                inner is not None
                and norm_axis(attribute(inner, "axis"), size) == axis
                and x is not None
                and len(x.uses()) == 1
                and not x.is_graph_output()
            ):
                flat += inner.inputs
            else:
                flat.append(x)
        if len(flat) == len(node.inputs):
            return None
        return op.Concat(*flat, axis=axis)
