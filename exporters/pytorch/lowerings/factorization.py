"""Factorizations of matrices, each a ``Scan`` over columns, rows or pairs of columns.

ONNX has a determinant and nothing else of this kind. What is registered here as lowerings are the
factorizations themselves; what solves and inverts with them is in :mod:`.solving`.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import torch

from exporters.pytorch.lowerings.dims import static_size
from exporters.pytorch.lowerings.reductions import reduce
from exporters.pytorch.lowerings.scanning import scan
from exporters.pytorch.lowerings.shaping import rank
from exporters.pytorch.registry import Unlowerable, lowers

if TYPE_CHECKING:
    from exporters.tracing.graph import GraphBuilder as Op

aten = torch.ops.aten
States = list[ir.Value]

_SWEEPS = 10  # of Jacobi rotations over all pairs: double precision takes 6 to 8
_LARGEST = 64  # columns up to which rotating all pairs takes milliseconds


def _places(op: Op, x: ir.Value, axis: int) -> Any:
    """0, 1, ... along an axis."""
    size = static_size(x, axis)
    if size is not None:
        return op.constant(np.arange(size))
    return op.Range(0, op.Squeeze(op.dim_vector(x, axis), [0]), 1)


def _steps(op: Op, x: ir.Value) -> ir.Value:
    """0, 1, ... for every column that has a diagonal element."""
    rows, columns = static_size(x, -2), static_size(x, -1)
    if rows is not None and columns is not None:
        if min(rows, columns) == 0:
            raise Unlowerable("ORT runs no Scan over nothing: the matrix is empty")
        return op.constant(np.arange(min(rows, columns)))
    least = op.Min(op.dim_vector(x, -2), op.dim_vector(x, -1))
    steps: ir.Value = op.Range(0, op.Squeeze(least, [0]), 1)
    return steps


def _column(op: Op, x: ir.Value, k: ir.Value) -> ir.Value:
    return op.Gather(x, k, axis=rank(x) - 1)


def _row(op: Op, x: ir.Value, k: ir.Value) -> ir.Value:
    return op.Gather(x, k, axis=rank(x) - 2)


def _upright(op: Op, x: ir.Value) -> ir.Value:
    return op.Unsqueeze(x, [-1])


def _flat(op: Op, x: ir.Value) -> ir.Value:
    return op.Unsqueeze(x, [-2])


def _turned(op: Op, x: ir.Value) -> ir.Value:
    order = list(range(rank(x)))
    order[-2:] = order[:-3:-1]
    return op.Transpose(x, perm=order)


def _stacked_last(op: Op, x: ir.Value, dims: int) -> ir.Value:
    """Outputs of a scan, [steps, ...], with the steps last."""
    return op.Transpose(x, perm=[*range(1, dims), 0])


def _zero(x: ir.Value) -> np.ndarray[Any, Any]:
    return np.zeros([], x.dtype.numpy())


def _first_bad(op: Op, bad: ir.Value) -> ir.Value:
    """LAPACK's ``info``: the number of the first bad diagonal element, or 0."""
    numbers = op.cast(bad, ir.DataType.INT32)
    first = op.ArgMax(numbers, axis=-1, keepdims=0)
    some = reduce(op, "ReduceMax", numbers, -1, False)
    info: ir.Value = op.Mul(some, op.cast(op.Add(first, 1), ir.DataType.INT32))
    return info


def _diagonal(op: Op, x: ir.Value) -> ir.Value:
    """The diagonal of square matrices."""
    here = op.Equal(_upright(op, _places(op, x, -2)), _places(op, x, -1))
    return reduce(op, "ReduceSum", op.Where(here, x, _zero(x)), -1, False)


# LU


@lowers(aten.linalg_lu_factor_ex)
def linalg_lu_factor_ex(
    op: Op, /, A: ir.Value, *, pivot: bool = True, check_errors: object = False
) -> tuple[ir.Value, ...]:
    """Gaussian elimination, column after column, with the largest pivot of each."""
    rows, columns = _places(op, A, -2), _places(op, A, -1)

    def step(states: States, items: States) -> tuple[States, ir.Value]:
        (x,), (k,) = states, items
        chosen: ir.Value = op.Expand(k, op.Shape(x, start=0, end=rank(x) - 2))
        if pivot:
            sizes = op.Where(op.Less(rows, k), -1.0, op.Abs(_column(op, x, k)))
            chosen = op.ArgMax(sizes, axis=-1, keepdims=0)
            order = op.Where(op.Equal(rows, _upright(op, chosen)), k, rows)
            order = op.Where(op.Equal(rows, k), _upright(op, chosen), order)
            x = op.GatherElements(x, op.Expand(_upright(op, order), op.Shape(x)), axis=-2)
            x.shape = states[0].shape.copy()
        head = op.Gather(_row(op, x, k), k, axis=rank(x) - 2)
        safe = _upright(op, op.Where(op.Equal(head, 0), 1, head))
        below = op.Greater(rows, k)
        factors = op.Where(below, op.Div(_column(op, x, k), safe), _zero(x))
        rest = op.Where(op.Greater(columns, k), _row(op, x, k), _zero(x))
        x = op.Sub(x, op.Mul(_upright(op, factors), _flat(op, rest)))
        here = op.And(_upright(op, below), op.Equal(columns, k))
        x = op.Where(here, _upright(op, factors), x)
        return [x], op.cast(op.Add(chosen, 1), ir.DataType.INT32)

    chosen, (x,) = scan(op, step, [A], [_steps(op, A)])
    pivots = _stacked_last(op, chosen, rank(A) - 1)
    size = op.Shape(pivots, start=rank(A) - 2)
    square = op.Slice(x, op.Mul(size, 0), size, [-1])
    square = op.Slice(square, op.Mul(size, 0), size, [-2])
    least = [static_size(A, -2), static_size(A, -1)]
    known = min(least) if None not in least else None  # type: ignore[type-var]
    square.shape = ir.Shape([*A.shape.dims[:-2], known, known])
    return x, pivots, _first_bad(op, op.Equal(_diagonal(op, square), 0))


@lowers(torch.lu_unpack)
def lu_unpack(
    op: Op, /, LU_data: ir.Value, LU_pivots: ir.Value, unpack_data: bool = True,
    unpack_pivots: bool = True,
) -> tuple[ir.Value, ...]:  # fmt: skip
    """The triangles, and the permutation that the exchanges of rows amount to."""
    x, dims = LU_data, rank(LU_data)
    rows, columns = _places(op, x, -2), _places(op, x, -1)
    least = op.Min(op.dim_vector(x, -2), op.dim_vector(x, -1))
    below = op.Greater(_upright(op, rows), columns)
    unit = op.cast(op.Equal(_upright(op, rows), columns), x.dtype)
    lower = op.Slice(op.Add(op.Where(below, x, _zero(x)), unit), [0], least, [dims - 1])
    upper = op.Slice(op.Where(below, _zero(x), x), [0], least, [dims - 2])
    if not unpack_data:
        lower = upper = op.Slice(op.Reshape(x, [-1]), [0], [0], [0])
    if not unpack_pivots:
        return op.Slice(op.Reshape(x, [-1]), [0], [0], [0]), lower, upper

    def step(states: States, items: States) -> tuple[States, ir.Value]:
        (order,), (k, other) = states, items
        other = _upright(op, op.Sub(op.cast(other, ir.DataType.INT64), 1))
        mine = op.Gather(order, k, axis=rank(order) - 1)
        theirs = op.GatherElements(order, other, axis=-1)
        order = op.Where(op.Equal(rows, other), _upright(op, mine), order)
        order = op.Where(op.Equal(rows, k), theirs, order)
        return [order], op.Identity(mine)

    turned = op.Transpose(LU_pivots, perm=[dims - 2, *range(dims - 2)])
    begin = op.Expand(rows, op.Shape(x, start=0, end=dims - 1))
    begin.shape = ir.Shape(list(x.shape.dims[: dims - 1]))
    _, (order,) = scan(op, step, [begin], [_steps(op, x), turned])
    permutation = op.Equal(_upright(op, rows), _flat(op, order))
    return op.cast(permutation, x.dtype), lower, upper


# Cholesky


@lowers(aten.linalg_cholesky_ex)
def linalg_cholesky_ex(
    op: Op, /, self: ir.Value, *, upper: bool = False, check_errors: object = False
) -> tuple[ir.Value, ...]:
    """Column after column; NaN from the column on that shows that the matrix is not positive."""
    begin = _turned(op, self) if upper else self
    rows = _places(op, self, -2)

    def step(states: States, items: States) -> tuple[States, ir.Value]:
        (x,), (k,) = states, items
        column = _column(op, x, k)
        head = _upright(op, op.Gather(column, k, axis=rank(column) - 1))
        factors = op.Where(op.Less(rows, k), _zero(x), op.Div(column, op.Sqrt(head)))
        left = op.Sub(x, op.Mul(_upright(op, factors), _flat(op, factors)))
        return [left], op.Identity(factors)

    columns, _ = scan(op, step, [begin], [_steps(op, self)])
    columns.shape = ir.Shape([None] * rank(self))
    lower = _stacked_last(op, columns, rank(self))
    lower.shape = self.shape.copy()
    info = _first_bad(op, op.IsNaN(_diagonal(op, lower)))
    return (_turned(op, lower) if upper else lower), info


# Triangular systems


@lowers(aten.linalg_solve_triangular)
def linalg_solve_triangular(
    op: Op, /, self: ir.Value, B: ir.Value, *, upper: bool, left: bool = True,
    unitriangular: bool = False,
) -> ir.Value:  # fmt: skip
    """Substitution, row after row."""
    a, b = (self, B) if left else (_turned(op, self), _turned(op, B))
    upper = upper == left
    if static_size(a, -1) == 0 or static_size(b, -1) == 0:
        return op.MatMul(self, B) if left else op.MatMul(B, self)  # as empty
    begin = op.Expand(b, op.Shape(op.MatMul(a, b)))
    begin.shape = ir.Shape([None] * max(rank(a), rank(b)))
    columns, dims = _places(op, a, -1), rank(a)
    turned = op.Transpose(a, perm=[dims - 2, *range(dims - 2), dims - 1])

    def step(states: States, items: States) -> tuple[States, ir.Value]:
        (x,), (k, row) = states, items
        known = op.Greater(columns, k) if upper else op.Less(columns, k)
        row_known = _flat(op, op.Where(known, row, _zero(x)))
        value = op.Sub(_row(op, x, k), op.Squeeze(op.MatMul(row_known, x), [-2]))
        if not unitriangular:
            value = op.Div(value, _upright(op, op.Gather(row, k, axis=rank(row) - 1)))
        here = op.Equal(_upright(op, columns), k)
        return [op.Where(here, _flat(op, value), x)], op.Identity(value)

    _, (x,) = scan(op, step, [begin], [_steps(op, a), turned], backward=upper)
    return x if left else _turned(op, x)


# Householder reflections


@lowers(torch.geqrf)
def geqrf(op: Op, /, input: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Reflect column after column; LAPACK's signs, and its way to store both factors in one."""
    rows, columns = _places(op, input, -2), _places(op, input, -1)

    def step(states: States, items: States) -> tuple[States, ir.Value]:
        (x,), (k,) = states, items
        column, zero = _column(op, x, k), _zero(x)
        below = op.Greater(rows, k)
        head = _upright(op, op.Gather(column, k, axis=rank(column) - 1))
        tail = op.Where(below, column, zero)
        length = op.Sqrt(reduce(op, "ReduceSum", op.Mul(tail, tail), -1, True))
        beta = op.Sqrt(op.Add(op.Mul(head, head), op.Mul(length, length)))
        beta = op.Where(op.Less(head, 0), beta, op.Neg(beta))
        done = op.Equal(length, 0)
        tau = op.Where(done, zero, op.Div(op.Sub(beta, head), beta))
        vector = op.Where(done, zero, op.Div(tail, op.Sub(head, beta)))
        unit = op.Where(op.Equal(rows, k), 1, vector)
        product = op.MatMul(_flat(op, op.Mul(unit, tau)), x)
        rest = op.Where(op.Greater(columns, k), product, zero)
        x = op.Sub(x, op.Mul(_upright(op, unit), rest))
        beta = op.Where(done, head, beta)
        stored = op.Where(op.Equal(rows, k), beta, op.Where(below, vector, column))
        x = op.Where(op.Equal(columns, k), _upright(op, stored), x)
        return [x], op.Squeeze(tau, [-1])

    taus, (x,) = scan(op, step, [input], [_steps(op, input)])
    return x, _stacked_last(op, taus, rank(input) - 1)


@lowers(aten.linalg_householder_product, torch.orgqr)
def linalg_householder_product(op: Op, /, input: ir.Value, tau: ir.Value) -> ir.Value:
    """Apply the reflections to the identity, the last one first."""
    rows, columns, dims = _places(op, input, -2), _places(op, input, -1), rank(input)
    if static_size(tau, -1) == 0 or 0 in list(input.shape.dims):
        raise Unlowerable("ORT runs no Scan over nothing: there are no reflections")
    unit = op.cast(op.Equal(_upright(op, rows), columns), input.dtype)
    begin = op.Expand(unit, op.Shape(input))
    begin.shape = input.shape.copy()
    steps = _places(op, tau, -1)
    turned = op.Transpose(tau, perm=[dims - 2, *range(dims - 2)])

    def step(states: States, items: States) -> tuple[States, ir.Value]:
        (q,), (k, factor) = states, items
        stored = op.Where(op.Greater(rows, k), _column(op, input, k), _zero(q))
        vector = op.Where(op.Equal(rows, k), 1, stored)
        weighed = op.Mul(vector, _upright(op, factor))
        q = op.Sub(q, op.Mul(_upright(op, weighed), op.MatMul(_flat(op, vector), q)))
        return [q], op.Identity(factor)

    _, (q,) = scan(op, step, [begin], [steps, turned], backward=True)
    return q


# Jacobi rotations


def _pairs(op: Op, count: int) -> list[ir.Value]:
    if count > _LARGEST:
        raise Unlowerable(f"{count} columns are too many to rotate in pairs")
    pairs = list(itertools.combinations(range(count), 2)) * _SWEEPS or [(0, 0)]
    first, second = np.asarray(pairs).T
    return [op.constant(first.copy()), op.constant(second.copy())]


def _rotation(
    op: Op, gap: ir.Value, twice: ir.Value, columns: Any, p: ir.Value, q: ir.Value
) -> ir.Value:
    """The matrix that makes columns p and q orthogonal: tan(2 angle) = ``twice / gap``."""
    zero, one = _zero(gap), np.ones([], gap.dtype.numpy())
    idle = op.Or(op.Equal(twice, 0), op.Equal(p, q))
    ratio = op.Div(gap, op.Where(idle, one, twice))
    sign = op.Where(op.Less(ratio, 0), np.negative(one), one)
    tangent = op.Div(sign, op.Add(op.Abs(ratio), op.Sqrt(op.Add(op.Mul(ratio, ratio), one))))
    tangent = op.Where(idle, zero, tangent)
    cosine = op.Reciprocal(op.Sqrt(op.Add(op.Mul(tangent, tangent), one)))
    sine = op.Mul(tangent, cosine)
    at_p, at_q = (op.cast(op.Equal(columns, i), gap.dtype) for i in (p, q))
    both = op.Mul(op.Add(at_p, at_q), _upright(op, op.Sub(cosine, one)))
    diagonal = op.Add(both, one)
    square = op.cast(op.Equal(_upright(op, columns), columns), gap.dtype)
    across = op.Sub(op.Mul(_upright(op, at_p), at_q), op.Mul(_upright(op, at_q), at_p))
    return op.Add(op.Mul(square, _flat(op, diagonal)),
                  op.Mul(across, _upright(op, _upright(op, sine))))  # fmt: skip


def _dot(op: Op, a: ir.Value, b: ir.Value) -> ir.Value:
    return reduce(op, "ReduceSum", op.Mul(a, b), -1, False)


def _rotate_all(op: Op, begin: ir.Value, *, symmetric: bool) -> tuple[ir.Value, ir.Value]:
    """Rotate pairs of columns until all are orthogonal; what was rotated, and all rotations."""
    count = static_size(begin, -1)
    if count is None:
        raise Unlowerable("the number of columns is dynamic")
    if 0 in list(begin.shape.dims):
        raise Unlowerable("the matrix is empty")
    columns = _places(op, begin, -1)
    square = [*begin.shape.dims[:-2], count, count]
    sizes = op.concat_dims([*(op.dim(begin, i) for i in range(rank(begin) - 2)), count, count])
    turns = op.Expand(np.eye(count, dtype=begin.dtype.numpy()), sizes)
    turns.shape = ir.Shape(square)

    def step(states: States, items: States) -> tuple[States, ir.Value]:
        (x, turned), (p, q) = states, items
        first, second = _column(op, x, p), _column(op, x, q)
        if symmetric:
            last = rank(first) - 1
            alpha, beta = op.Gather(first, p, axis=last), op.Gather(second, q, axis=last)
            gamma = op.Gather(first, q, axis=last)
        else:
            alpha, beta = _dot(op, first, first), _dot(op, second, second)
            gamma = _dot(op, first, second)
        turn = _rotation(op, op.Sub(beta, alpha), op.Mul(gamma, 2.0), columns, p, q)
        x = op.MatMul(x, turn)
        if symmetric:
            x = op.MatMul(_turned(op, turn), x)
        x.shape = states[0].shape.copy()
        return [x, op.MatMul(turned, turn)], op.Identity(alpha)

    _, (x, turned) = scan(op, step, [begin, turns], _pairs(op, count))
    return x, turned


def _sorted(
    op: Op, values: ir.Value, matrices: list[ir.Value], *, largest: bool
) -> tuple[ir.Value, list[ir.Value]]:
    """Values in order, and the columns that belong to them."""
    count = static_size(values, -1)
    assert count is not None
    ordered, places = op.TopK(
        values, np.asarray([count]), largest=int(largest), sorted=1, outputs=2
    )
    index = _flat(op, places)
    moved = [op.GatherElements(m, op.Expand(index, op.Shape(m)), axis=-1) for m in matrices]
    return ordered, moved


@lowers(aten._linalg_eigh)
def _linalg_eigh(
    op: Op, /, A: ir.Value, UPLO: str = "L", compute_v: bool = True
) -> tuple[ir.Value, ir.Value]:
    """Jacobi's method; eigenvectors have signs of their own, as LAPACK's have."""
    rows, columns = _places(op, A, -2), _places(op, A, -1)
    kept = op.GreaterOrEqual(_upright(op, rows), columns)  # eager reads one triangle
    other = _turned(op, A)
    whole = op.Where(kept, A, other) if UPLO.upper() == "L" else op.Where(kept, other, A)
    whole.shape = A.shape.copy()
    x, vectors = _rotate_all(op, whole, symmetric=True)
    values = _diagonal(op, x)
    values.shape = ir.Shape(list(A.shape.dims[:-1]))
    ordered, (vectors,) = _sorted(op, values, [vectors], largest=False)
    return ordered, vectors


@lowers(aten._linalg_svd)
def _linalg_svd(
    op: Op, /, A: ir.Value, full_matrices: bool = False, compute_uv: bool = True, *,
    driver: object = None,
) -> tuple[ir.Value, ...]:  # fmt: skip
    """Hestenes' method; singular vectors have signs of their own, as LAPACK's have."""
    rows, columns = static_size(A, -2), static_size(A, -1)
    if rows is None or columns is None:
        raise Unlowerable("the size of the matrix is dynamic")
    if full_matrices and compute_uv and rows != columns:
        raise Unlowerable("singular vectors of the null space")
    wide = rows < columns
    begin = _turned(op, A) if wide else A
    begin.shape = ir.Shape([*A.shape.dims[:-2], max(rows, columns), min(rows, columns)])
    x, turns = _rotate_all(op, begin, symmetric=False)
    lengths = op.Sqrt(reduce(op, "ReduceSum", op.Mul(x, x), -2, False))
    lengths.shape = ir.Shape([*A.shape.dims[:-2], min(rows, columns)])
    values, (left, right) = _sorted(op, lengths, [x, turns], largest=True)
    if not compute_uv:
        empty = op.Slice(op.Reshape(A, [-1]), [0], [0], [0])
        return empty, values, empty
    scale = _flat(op, op.Where(op.Equal(values, 0), 1, values))
    left = op.Div(left, scale)
    left.shape, right.shape = begin.shape.copy(), turns.shape.copy()
    if wide:
        return right, values, _turned(op, left)
    return left, values, _turned(op, right)
