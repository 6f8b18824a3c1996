"""Bicubic interpolation between known sizes as two products with constant matrices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import onnx_ir as ir

from optim_passes.rewriting import NodePass
from optim_passes.values import attribute, dims, input_of, ints

if TYPE_CHECKING:
    from optim_passes.builder import Builder

__all__ = ["CubicResizePass"]

_LARGEST = 512  # pixels a side, above which most of a product is zeros
_COORDINATES = ("half_pixel", "align_corners", "asymmetric")


class CubicResizePass(NodePass):
    """``Resize<mode="cubic">`` of the last two axes becomes ``A @ x @ B``.

    ORT 1.32's CPU kernel takes 70 ns for a pixel, which is 16 products and looking each of them up;
    the products with all pixels of a row and a column take a tenth of that. An infinite pixel makes
    NaN of its whole row and column, in place of its neighbours.
    """

    op_types: ClassVar[frozenset[str]] = frozenset({"Resize"})

    def rewrite(self, node: ir.Node, op: Builder) -> Any:
        """The two products."""
        x = node.inputs[0]
        if node.domain or x is None or x.dtype != ir.DataType.FLOAT or not _is_plain(node):
            return None
        before, after = dims(x), _sizes(node)
        if before is None or after is None or len(before) < 3:
            return None
        known = [n for n in before[-2:] if isinstance(n, int) and n]
        if len(known) < 2 or max(*known, *after) > _LARGEST:
            return None
        rows, columns = (_weights(n, m, node) for n, m in zip(known, after, strict=True))
        if rows.shape[0] < rows.shape[1]:  # the fewer rows, the less is left to do
            return op.MatMul(op.MatMul(op.constant(rows), x), op.constant(columns.T.copy()))
        return op.MatMul(op.constant(rows), op.MatMul(x, op.constant(columns.T.copy())))


def _is_plain(node: ir.Node) -> bool:
    """Whether it is what eager code calls bicubic, without smoothing."""
    return (
        attribute(node, "mode", "nearest") == "cubic"
        and attribute(node, "coordinate_transformation_mode", "half_pixel") in _COORDINATES
        and not attribute(node, "antialias", 0)
        and not attribute(node, "exclude_outside", 0)
        and attribute(node, "keep_aspect_ratio_policy", "stretch") == "stretch"
    )


def _sizes(node: ir.Node) -> list[int] | None:
    """What the last two axes become, where the others stay and the scales are what the sizes say."""
    before, target = dims(node.inputs[0]), ints(input_of(node, 3))
    axes = attribute(node, "axes")
    if before is None or target is None or min(target, default=0) < 1:
        return None
    given = list(range(len(before))) if axes is None else [int(a) % len(before) for a in axes]
    if len(target) != len(given) or given[-2:] != [len(before) - 2, len(before) - 1]:
        return None
    kept = all(before[a] == n for a, n in zip(given[:-2], target[:-2], strict=True))
    return target[-2:] if kept else None


def _weights(before: int, after: int, node: ir.Node) -> np.ndarray[Any, Any]:
    """``[after, before]``: how much of each pixel is in each new one."""
    a = float(attribute(node, "cubic_coeff_a", -0.75))
    places = np.arange(after, dtype=np.float64)
    coordinates = attribute(node, "coordinate_transformation_mode", "half_pixel")
    if coordinates == "half_pixel":
        places = (places + 0.5) * before / after - 0.5
    elif coordinates == "asymmetric":
        places = places * before / after
    else:
        places = places * (before - 1) / max(after - 1, 1)
    left = np.floor(places).astype(int)
    found = np.zeros((after, before))
    for tap in range(-1, 3):
        far = np.abs(places - left - tap)
        near = ((a + 2) * far - (a + 3)) * far**2 + 1
        share = np.where(far <= 1, near, ((far - 5) * far + 8) * far * a - 4 * a)
        np.add.at(found, (np.arange(after), (left + tap).clip(0, before - 1)), share)
    return found.astype(np.float32)
