"""Linear systems by ONNX Runtime's own kernel for inverses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import onnx_ir as ir

from optim_passes.rewriting import NodePass
from optim_passes.values import floats_of, producer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from optim_passes.builder import Builder

__all__ = ["LinearSolvePass"]

_DTYPES = (ir.DataType.FLOAT, ir.DataType.DOUBLE)


class LinearSolvePass(NodePass):
    """An elimination or a substitution in a Scan becomes ``Inverse`` and products.

    ONNX has no operator that solves linear systems, so exports eliminate column after column, at some
    microseconds each. ONNX Runtime's CPU provider has an ``Inverse``. What it gives is improved once
    by what is left of the right side, which makes up for solutions by way of an inverse being less
    exact than those by elimination.
    """

    op_types: ClassVar[frozenset[str]] = frozenset({"Div", "Scan"})

    def rewrite(self, node: ir.Node, op: Builder) -> Any:
        """The solution."""
        system = _triangular(node, op) if node.op_type == "Scan" else _square(node)
        known = [v for v in system or () if v is not None and v.dtype in _DTYPES]
        if len(known) < 2:
            return None
        a, b = known
        solution = inverse = op.ms("Inverse", a, like=a)
        if not _is_identity(b):
            solution = op.MatMul(inverse, b)
            left = op.Sub(b, op.MatMul(a, solution))
            solution = op.Add(solution, op.MatMul(inverse, left))
        return [solution, *[None] * (len(node.outputs) - 1)]


def _square(node: ir.Node) -> Sequence[ir.Value | None] | None:
    """The matrices and the right sides, if the node is the last one of an elimination."""
    right = producer(node.inputs[0], "Slice")
    rows = producer(right.inputs[0], "Gather", "GatherElements") if right is not None else None
    scan = producer(rows.inputs[0], "Scan") if rows is not None else None
    if scan is None or scan.metadata_props.get("bridge.computes") != "solve":
        return None
    both = producer(scan.inputs[0], "Concat")
    return both.inputs if both is not None and len(both.inputs) == 2 else None


def _triangular(scan: ir.Node, op: Builder) -> Sequence[ir.Value | None] | None:
    """The triangles and the right sides of a substitution."""
    triangle = scan.metadata_props.get("bridge.computes", "").removeprefix("solve ")
    if triangle not in ("upper", "lower") or any(v.uses() for v in scan.outputs[1:]):
        return None
    turned = producer(scan.inputs[2], "Transpose")
    if turned is None:
        return None
    return op.Trilu(turned.inputs[0], upper=int(triangle == "upper")), scan.inputs[0]


def _is_identity(value: ir.Value) -> bool:
    wide = producer(value, "Expand")
    known = floats_of(value if wide is None else wide.inputs[0])
    return known is not None and known.ndim >= 2 and bool((known == np.eye(known.shape[-1])).all())
