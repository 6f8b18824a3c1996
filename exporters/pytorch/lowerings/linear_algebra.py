"""Products of vectors, matrices and tensors."""

from __future__ import annotations

import math
import string
from typing import TYPE_CHECKING, Any

import onnx_ir as ir
import torch
import torch.nn.functional as F

from exporters.pytorch.dtypes import from_torch_dtype
from exporters.pytorch.lowerings.scanning import repeat
from exporters.pytorch.lowerings.shaping import rank
from exporters.pytorch.registry import Unlowerable, decomposes, lowers
from exporters.tracing.graph import INT64_MAX

if TYPE_CHECKING:
    from exporters.tracing.graph import GraphBuilder as Op

T = torch.Tensor

# ORT 1.32 multiplies matrices of these; others are widened, which changes no product of 8 bits.
MULTIPLIED = {
    ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16,
    ir.DataType.INT32, ir.DataType.INT64, ir.DataType.UINT32, ir.DataType.UINT64,
}  # fmt: skip


def _matmul(op: Op, a: ir.Value, b: ir.Value) -> ir.Value:
    if a.dtype not in MULTIPLIED:
        wide = ir.DataType.INT32
        return op.cast(_matmul(op, op.cast(a, wide), op.cast(b, wide)), a.dtype)
    if rank(b) > 1 or rank(a) < 2:
        return op.MatMul(a, b)
    # By a vector ORT 1.32 multiplies row by row, 50 times slower, and where its optimizer takes in
    # a Transpose of the matrix, wrongly.
    if (plain := _transpose_of(a)) is not None:
        return op.MatMul(b, plain)
    return op.Squeeze(op.MatMul(a, op.Unsqueeze(b, [1])), [rank(a) - 1])


def _transpose_of(x: ir.Value) -> ir.Value | None:
    """What ``x`` is the transpose of, in its last two dims."""
    node = x.producer()
    if node is None or node.op_type != "Transpose" or node.domain:
        return None
    dims = list(range(rank(x)))
    swapped = [*dims[:-2], *reversed(dims[-2:])]
    perm = node.attributes["perm"].as_ints() if "perm" in node.attributes else dims[::-1]
    return node.inputs[0] if list(perm) == swapped else None


def _transposed(op: Op, weight: ir.Value) -> ir.Value:
    """The transpose of a matrix, made once however often it is used."""
    made: ir.Value = op.once(
        ("transpose", weight), lambda _: op.Transpose(weight, perm=[1, 0]), weight
    )
    return made


@lowers(F.linear)
def linear(op: Op, /, input: ir.Value, weight: ir.Value, bias: ir.Value | None = None) -> ir.Value:
    """Lower to ``Gemm-13`` for matrices, else to ``MatMul-13`` and ``Add-14``."""
    floating = input.dtype.is_floating_point()
    if rank(input) == 2 and rank(weight) == 2 and floating and (not bias or rank(bias) < 2):
        return op.Gemm(input, weight, bias, transB=1)
    product = _matmul(op, input, weight if rank(weight) < 2 else _transposed(op, weight))
    return product if bias is None else op.Add(product, bias)


@lowers(torch.matmul)
def matmul(op: Op, /, input: ir.Value, other: ir.Value) -> ir.Value:
    """Lower to ``MatMul-13``."""
    return _matmul(op, input, other)


@lowers(torch.mm, torch.bmm)
def mm(op: Op, /, input: ir.Value, mat2: ir.Value) -> ir.Value:
    return _matmul(op, input, mat2)


@lowers(torch.mv)
def mv(op: Op, /, input: ir.Value, vec: ir.Value) -> ir.Value:
    return _matmul(op, input, vec)


@lowers(torch.dot)
def dot(op: Op, /, input: ir.Value, tensor: ir.Value) -> ir.Value:
    return _matmul(op, input, tensor)


@decomposes(torch.vdot)
def vdot(input: torch.Tensor, other: torch.Tensor) -> T:
    return torch.dot(input.conj() if input.is_complex() else input, other)


@decomposes(torch.outer, torch.ger)
def outer(input: torch.Tensor, vec2: torch.Tensor) -> T:
    return input[:, None] * vec2


# Sums with products


def _gemm_fits(op: Op, c: ir.Value, a: ir.Value, *factors: Any) -> bool:
    plain = all(isinstance(x, int | float) and not hasattr(x, "record") for x in factors)
    return plain and rank(c) <= 2 and c.dtype == a.dtype and a.dtype.is_floating_point()


@lowers(torch.addmm)
def addmm(
    op: Op, /, input: ir.Value, mat1: ir.Value, mat2: ir.Value, *, beta: Any = 1, alpha: Any = 1
) -> ir.Value:
    """Lower to ``Gemm-13``; a ``beta`` of 0 forgets what ``input`` holds."""
    if not _gemm_fits(op, input, mat1, beta, alpha) or mat1.dtype == ir.DataType.DOUBLE:
        raise Unlowerable("Gemm scales by float32 numbers, and takes floats")
    added = None if beta == 0 else input
    return op.Gemm(mat1, mat2, added, alpha=float(alpha), beta=float(beta))


def _sum_with_product(input: T, product: T, beta: Any, alpha: Any) -> T:
    if not (input.is_floating_point() or input.is_complex() or hasattr(beta, "record")):
        beta, alpha = int(beta), int(alpha)  # as eager reads them
    if hasattr(alpha, "record") or alpha != 1:
        product = product * alpha
    if not hasattr(beta, "record") and beta == 0:
        return product
    return input * beta + product if hasattr(beta, "record") or beta != 1 else input + product


@decomposes(torch.addmm, torch.addmv)
def addmm_by_sum(
    input: torch.Tensor, mat1: torch.Tensor, mat2: torch.Tensor, *, beta: Any = 1, alpha: Any = 1
) -> T:
    return _sum_with_product(input, mat1 @ mat2, beta, alpha)


@decomposes(torch.addmv)
def addmv(
    input: torch.Tensor, mat: torch.Tensor, vec: torch.Tensor, *, beta: Any = 1, alpha: Any = 1
) -> T:
    return _sum_with_product(input, mat @ vec, beta, alpha)


@decomposes(torch.baddbmm)
def baddbmm(
    input: torch.Tensor, batch1: torch.Tensor, batch2: torch.Tensor, *,
    beta: Any = 1, alpha: Any = 1,
) -> T:  # fmt: skip
    return _sum_with_product(input, batch1 @ batch2, beta, alpha)


@decomposes(torch.addbmm)
def addbmm(
    input: torch.Tensor, batch1: torch.Tensor, batch2: torch.Tensor, *,
    beta: Any = 1, alpha: Any = 1,
) -> T:  # fmt: skip
    return _sum_with_product(input, (batch1 @ batch2).sum(0, dtype=batch1.dtype), beta, alpha)


@decomposes(torch.addr)
def addr(
    input: torch.Tensor, vec1: torch.Tensor, vec2: torch.Tensor, *, beta: Any = 1, alpha: Any = 1
) -> T:
    if vec1.dtype == torch.bool:
        product = vec1[:, None] & vec2
        product = product if alpha else torch.zeros_like(product)
        return product | input if beta else product
    return _sum_with_product(input, vec1[:, None] * vec2, beta, alpha)


# Contractions


@decomposes(torch.ops.aten.tensordot)
def tensordot(input: torch.Tensor, other: torch.Tensor, dims_self: Any, dims_other: Any) -> T:
    left = list(string.ascii_lowercase[: input.dim()])
    right = list(string.ascii_uppercase[: other.dim()])
    for i, j in zip(dims_self, dims_other, strict=True):
        right[j] = left[i]
    kept = [x for x in (*left, *right) if (x in left) != (x in right)]
    y: T = torch.einsum(f"{''.join(left)},{''.join(right)}->{''.join(kept)}", input, other)
    return y.to(input.dtype)  # sums of integers are of 64 bits


@decomposes(torch.bilinear)
def bilinear(
    input1: torch.Tensor, input2: torch.Tensor, weight: torch.Tensor, bias: Any = None
) -> T:
    outputs, first, second = weight.shape
    product = input1 @ weight.permute(1, 0, 2).reshape(first, outputs * second)
    y = (torch.unflatten(product, -1, [outputs, second]) @ input2.unsqueeze(-1)).squeeze(-1)
    return y if bias is None else y + bias


@decomposes(torch.ops.aten._trilinear)
def _trilinear(
    i1: torch.Tensor, i2: torch.Tensor, i3: torch.Tensor, expand1: Any, expand2: Any,
    expand3: Any, sumdim: Any, unroll_dim: int = 1,
) -> T:  # fmt: skip
    for axes, operand in ((expand1, 0), (expand2, 1), (expand3, 2)):
        for axis in sorted(axes):
            if operand == 0:
                i1 = i1.unsqueeze(axis)
            elif operand == 1:
                i2 = i2.unsqueeze(axis)
            else:
                i3 = i3.unsqueeze(axis)
    return (i1 * i2 * i3).sum(list(sumdim)) if sumdim else i1 * i2 * i3


# Norms


@decomposes(torch.linalg.vector_norm)
def vector_norm(
    x: torch.Tensor, ord: Any = 2, dim: Any = None, keepdim: bool = False, *,
    dtype: torch.dtype | None = None,
) -> T:  # fmt: skip
    """Like torch's reference, which asks whether dims have size 1, but for every size."""
    dims = list(range(x.dim())) if dim is None else dim
    x = x if dtype is None else x.to(dtype)
    narrow = x.dtype if x.dtype in (torch.float16, torch.bfloat16) else None
    wide = x.abs() if narrow is None else x.float().abs()  # the sums overflow in 16 bits
    if ord == math.inf:
        found = wide.amax(dims, keepdim)
    elif ord == -math.inf:
        found = wide.amin(dims, keepdim)
    elif ord == 0:
        found = (wide != 0).sum(dims, keepdim).to(wide.dtype)
    elif ord == 1:
        found = wide.sum(dims, keepdim)
    elif ord == 2:
        found = wide.square().sum(dims, keepdim).sqrt()
    else:
        found = wide.pow(ord).sum(dims, keepdim).pow(1 / ord)
    return found if narrow is None else found.to(narrow)


@decomposes(torch.kron)
def kron(input: torch.Tensor, other: torch.Tensor) -> T:
    """Every element of one times the whole of the other, dim by dim side by side."""
    dims = max(input.dim(), other.dim())
    a, b = (x.reshape([1] * (dims - x.dim()) + list(x.shape)) for x in (input, other))
    shape = [m * n for m, n in zip(a.shape, b.shape, strict=True)]
    for axis in range(dims):
        a, b = a.unsqueeze(2 * axis + 1), b.unsqueeze(2 * axis)
    return (a * b).reshape(shape)


# Distances

_EXACT = 25  # rows up to which torch measures differences rather than use a product


@decomposes(torch.functional.cdist)
def cdist(
    x1: torch.Tensor, x2: torch.Tensor, p: float = 2.0,
    compute_mode: str | None = "use_mm_for_euclid_dist_if_necessary",
) -> T:  # fmt: skip
    rows = [n for x in (x1, x2) for n in _in_worlds(x.shape[-2])]
    needed = compute_mode is None or compute_mode.endswith("if_necessary")
    if p == 2 and ((needed and max(rows) > _EXACT) or compute_mode == "use_mm_for_euclid_dist"):
        squares = [x.square().sum(-1, keepdim=True) for x in (x1, x2)]
        squared = squares[0] + squares[1].mT - 2 * (x1 @ x2.mT)
        return squared.clamp_min(0).sqrt()
    differences = x1.unsqueeze(-2) - x2.unsqueeze(-3)
    if p == math.inf:  # a norm that torch refuses to take of no vectors at all
        return differences.abs().amax(-1)
    return torch.linalg.vector_norm(differences, p, -1)


def _in_worlds(size: int) -> list[int]:
    return list(size.record.worlds.values()) if hasattr(size, "record") else [size]


@decomposes(torch.pdist)
def pdist(input: torch.Tensor, p: float = 2.0) -> T:
    first, second = torch.triu_indices(input.shape[0], input.shape[0], 1).unbind(0)
    return torch.linalg.vector_norm(input[first] - input[second], p, -1)


@lowers(F.grouped_mm, torch.ops.aten._grouped_mm)
def grouped_mm(
    op: Op, /, mat_a: ir.Value, mat_b: ir.Value, *, offs: ir.Value | None = None,
    bias: ir.Value | None = None, out_dtype: torch.dtype | None = None,
) -> ir.Value:  # fmt: skip
    """Rows in groups, each times a matrix of its own: a ``Loop-13`` over the groups."""
    if rank(mat_b) != 3 or (rank(mat_a) == 2) != (offs is not None) or bias is not None:
        raise Unlowerable("the columns are in groups, or there is a bias")
    dtype = mat_a.dtype if out_dtype is None else from_torch_dtype(out_dtype)
    if offs is None:
        return op.cast(op.MatMul(mat_a, mat_b), dtype)
    ends = op.cast(offs, ir.DataType.INT64)
    bounds = op.Concat(op.operand([0]), ends, axis=0)

    def step(group: ir.Value, done: ir.Value) -> ir.Value:
        start = op.Unsqueeze(group, [0])
        rows = op.Slice(
            mat_a, op.Gather(bounds, start, axis=0), op.Gather(ends, start, axis=0), [0]
        )
        return op.Concat(done, op.MatMul(rows, op.Gather(mat_b, group, axis=0)), axis=0)

    width = op.dim(mat_b, 2)
    nothing = op.Expand(op.operand(0.0, mat_a.dtype), [0, width])
    done = repeat(op, op.Squeeze(op.Shape(mat_b, start=0, end=1), [0]), step, nothing)
    left = op.Sub(op.dim_vector(mat_a, 0), op.Slice(ends, [-1], [INT64_MAX], [0]))
    rest = op.Expand(op.operand(0.0, mat_a.dtype), [left, width])  # torch leaves these rows open
    return op.cast(op.Concat(done, rest, axis=0), dtype)


@lowers("transformers::grouped_mm_fallback")
def grouped_mm_fallback(op: Op, /, input: ir.Value, weight: ir.Value, offs: ir.Value) -> ir.Value:
    """What transformers calls for want of a kernel."""
    return grouped_mm(op, input, weight, offs=offs)
