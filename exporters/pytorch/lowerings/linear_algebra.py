"""Matrix products."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnx_ir as ir
import torch
import torch.nn.functional as F

from exporters.pytorch.dtypes import promote
from exporters.pytorch.lowerings.shaping import rank
from exporters.pytorch.registry import lowers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from exporters.tracing.graph import GraphBuilder as Op

T = torch.Tensor


@lowers(F.linear)
def linear(op: Op, /, input: ir.Value, weight: ir.Value, bias: ir.Value | None = None) -> ir.Value:
    """Lower to ``Gemm-13`` for matrices, else to ``MatMul-13`` and ``Add-14``."""
    if rank(input) == 2 and rank(weight) == 2 and input.dtype.is_floating_point():
        return op.Gemm(input, weight, bias, transB=1)
    transposed = op.once(("transpose", weight), lambda block: op.emit("Transpose", weight, perm=[1, 0], block=block), weight) if rank(weight) == 2 else weight
    product = op.MatMul(input, transposed)
    return product if bias is None else op.Add(product, bias)


@lowers(torch.matmul, torch.mm, torch.bmm)
def matmul(op: Op, /, input: ir.Value, other: ir.Value) -> ir.Value:
    return op.MatMul(input, other)


@lowers(torch.addmm)
def addmm(op: Op, /, input: ir.Value, mat1: ir.Value, mat2: ir.Value, *, beta: Any = 1, alpha: Any = 1) -> ir.Value:
    return op.Gemm(mat1, mat2, input, alpha=float(alpha), beta=float(beta))


@lowers(torch.baddbmm)
def baddbmm(op: Op, /, input: ir.Value, batch1: ir.Value, batch2: ir.Value, *, beta: Any = 1, alpha: Any = 1) -> ir.Value:
    product = op.MatMul(batch1, batch2)
    product = product if alpha == 1 else op.Mul(product, alpha)
    return product if beta == 0 else op.Add(product, input if beta == 1 else op.Mul(input, beta))


@lowers(torch.functional.einsum)
def einsum(op: Op, /, equation: str, *operands: ir.Value) -> ir.Value:
    values = list(operands[0]) if isinstance(operands[0], list | tuple) else list(operands)
    return op.Einsum(*promote(op, *values), equation=equation.replace(" ", ""))
