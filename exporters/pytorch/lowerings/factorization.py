"""Factorizations of matrices, each a ``Scan`` over columns, rows or pairs of columns.

ONNX has a determinant and nothing else of this kind. What is registered here as lowerings are the
factorizations themselves; what solves and inverts with them is in :mod:`.solving`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import torch

from exporters.pytorch.lowerings.dims import same_size, static_size
from exporters.pytorch.lowerings.reductions import reduce
from exporters.pytorch.lowerings.scanning import scan
from exporters.pytorch.lowerings.shaping import rank
from exporters.pytorch.registry import Unlowerable, lowers

if TYPE_CHECKING:
    from exporters.tracing.graph import GraphBuilder as Op

aten = torch.ops.aten
States = list[ir.Value]

_SWEEPS = 16  # of Jacobi rotations over all pairs, when the number of columns is not known
_LARGEST = 256  # columns up to which rotating all pairs takes less than a second


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


# Elimination


@lowers(torch.linalg.solve)
def linalg_solve(op: Op, /, A: ir.Value, B: ir.Value, *, left: bool = True) -> ir.Value:
    """Gauss-Jordan elimination of square matrices beside their right sides.

    Rows stay where they are, and those that gave a pivot are marked: to exchange them takes more
    nodes. What it computes is written on the ``Scan``: a runtime may have a kernel for it.
    """
    if not left or rank(A) != rank(B) or 0 in (*A.shape.dims, *B.shape.dims):
        raise Unlowerable(
            "right sides are matrices on the left, and ORT runs no Scan over nothing"
        )
    a, b = _of_one_batch(op, A, B)
    both = op.Concat(a, b, axis=-1)
    both.shape = ir.Shape([*a.shape.dims[:-1], None])
    rows = _places(op, A, -2)
    free = op.Expand(np.asarray(True), op.concat_dims([op.dim(a, i) for i in range(rank(A) - 1)]))
    free.shape = ir.Shape(list(a.shape.dims[:-1]))

    def step(states: States, items: States) -> tuple[States, ir.Value]:
        (x, free), (k,) = states, items
        column = _column(op, x, k)
        chosen = op.ArgMax(op.Where(free, op.Abs(column), -1.0), axis=-1, keepdims=1)
        here = op.Equal(rows, chosen)
        row = _rows(op, x, chosen)
        factors = op.Where(here, _zero(x), op.Div(column, _column(op, row, k)))
        x = op.Sub(x, op.Mul(_upright(op, factors), row))
        free = op.And(free, op.Not(here))
        x.shape, free.shape = (s.shape.copy() for s in states)
        return [x, free], op.Squeeze(chosen, [-1])

    chosen, (x, _) = scan(op, step, [both, free], [_steps(op, A)], computes="solve")
    x = _rows(op, x, _stacked_last(op, chosen, rank(A) - 1))
    right = op.Slice(x, op.dim_vector(A, -1), [np.iinfo(np.int64).max], [-1])
    return op.Div(right, _picked(op, x, rows))


def _of_one_batch(op: Op, *matrices: ir.Value) -> list[ir.Value]:
    """The matrices, repeated along the outer dims of the others."""
    first, outer = matrices[0], rank(matrices[0]) - 2
    if all(same_size(first, i, m, i) for m in matrices for i in range(outer)):
        return list(matrices)
    corners = [op.Slice(m, [0, 0], [1, 1], [-2, -1]) for m in matrices]
    batch = op.Shape(op.Add(*corners), start=0, end=outer)
    wide = []
    for m in matrices:
        wide.append(op.Expand(m, op.Concat(batch, op.Shape(m, start=outer), axis=0)))
        wide[-1].shape = ir.Shape([*[None] * outer, *m.shape.dims[outer:]])
    return wide


def _rows(op: Op, x: ir.Value, which: ir.Value) -> ir.Value:
    """Some rows, [..., k], of matrices."""
    batch = [op.dim(x, i) for i in range(rank(x) - 2)]
    if batch:
        wide = op.Expand(_upright(op, which), op.concat_dims([*batch, 1, op.dim(x, -1)]))
        taken = op.GatherElements(x, wide, axis=-2)
    else:
        taken = op.Gather(x, which, axis=0)
    taken.shape = ir.Shape([*x.shape.dims[:-2], None, x.shape.dims[-1]])
    return taken


def _picked(op: Op, x: ir.Value, which: ir.Value) -> ir.Value:
    """One element of each row, [..., n, 1], by its column in ``which``, [n]."""
    places, batch = _upright(op, which), [op.dim(x, i) for i in range(rank(x) - 2)]
    if batch:
        places = op.Expand(places, op.concat_dims([*batch, 1, 1]))
    return op.GatherElements(x, places, axis=-1)


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
    dims, begin = rank(a), b
    if dims != rank(b) or not all(same_size(a, i, b, i) for i in range(dims - 2)):
        begin = op.Expand(b, op.Shape(op.MatMul(a, b)))
        begin.shape = ir.Shape([None] * max(dims, rank(b)))
    columns = _places(op, a, -1)
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

    computes = "" if unitriangular else "solve upper" if upper else "solve lower"
    sequences = [_steps(op, a), turned]
    _, (x,) = scan(op, step, [begin], sequences, backward=upper, computes=computes)
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


def _sweeps(rows: int, dtype: ir.DataType) -> int:
    """How often all pairs are rotated until those of clustered values are done, too."""
    return max(1, math.ceil(2 * math.log2(rows))) + (2 if dtype == ir.DataType.DOUBLE else 0)


def _rotation(
    op: Op, sizes: ir.Value, products: ir.Value, rows: ir.Value, partner: ir.Value
) -> tuple[ir.Value, ir.Value]:
    """Cosines and sines, [..., n, 1], that make each row orthogonal to its partner.

    Both rows of a pair have the same cosine, and sines of opposite signs to the last bit, or the
    rotations would not be orthogonal: what they are computed from is made symmetric first.

    Args:
        op: Builder of the graph.
        sizes: Each row's product with itself, [..., n, 1].
        products: Its product with its partner, [..., n, 1].
        rows: 0, 1, ... n - 1, as [n, 1].
        partner: The number of each row's partner, [n].
    """
    zero, one = _zero(sizes), np.ones([], sizes.dtype.numpy())
    axis = rank(sizes) - 2
    twice = op.Add(products, op.Gather(products, partner, axis=axis))
    other = _upright(op, partner)
    idle = op.Or(op.Equal(twice, 0), op.Equal(rows, other))
    gap = op.Sub(op.Gather(sizes, partner, axis=axis), sizes)
    ratio = op.Div(gap, op.Where(idle, one, twice))
    side = op.Where(op.Less(rows, other), one, np.negative(one))
    sign = op.Where(op.Equal(ratio, 0), side, op.Sign(ratio))
    tangent = op.Div(sign, op.Add(op.Abs(ratio), op.Sqrt(op.Add(op.Mul(ratio, ratio), one))))
    tangent = op.Where(idle, zero, tangent)
    cosine = op.Reciprocal(op.Sqrt(op.Add(op.Mul(tangent, tangent), one)))
    return cosine, op.Mul(tangent, cosine)


def _rotate_all(op: Op, begin: ir.Value, *, symmetric: bool) -> tuple[ir.Value, ir.Value]:
    """Rotate pairs of rows until all are orthogonal; what was rotated, and all rotations.

    In step s of a sweep row i turns with row s - i, modulo their number: all pairs of the step at
    once, and each pair once in a sweep. Columns turn likewise if the matrices are symmetric.
    """
    known = static_size(begin, -2)
    if known is not None and known > _LARGEST:
        raise Unlowerable(f"{known} columns are too many to rotate in pairs")
    if 0 in list(begin.shape.dims):
        raise Unlowerable("the matrix is empty")
    numbers, axis = _places(op, begin, -2), rank(begin) - 2
    rows = _upright(op, numbers)
    batch = [op.dim(begin, i) for i in range(axis)]
    unit = op.cast(op.Equal(rows, numbers), begin.dtype)
    turns = op.Expand(unit, op.concat_dims([*batch, *2 * [op.dim(begin, -2)]]))
    turns.shape = ir.Shape([*begin.shape.dims[:-2], known, known])
    if known is None:
        count = op.Max(op.Squeeze(op.dim_vector(begin, -2), [0]), 1)
        steps = op.Range(0, op.Mul(count, _SWEEPS), 1)
    else:
        count = op.constant(np.asarray(known))
        steps = op.constant(np.arange(known * _sweeps(known, begin.dtype)))

    def rotated(x: ir.Value, partner: ir.Value, turn: tuple[ir.Value, ir.Value]) -> ir.Value:
        return op.Sub(op.Mul(x, turn[0]), op.Mul(op.Gather(x, partner, axis=axis), turn[1]))

    def step(states: States, items: States) -> tuple[States, ir.Value]:
        (x, turned), (number,) = states, items
        partner = op.Mod(op.Sub(number, numbers), count)
        if symmetric:
            sizes, products = (_picked(op, x, i) for i in (numbers, partner))
        else:
            other = op.Gather(x, partner, axis=axis)
            sizes, products = (reduce(op, "ReduceSum", op.Mul(x, y), -1, True) for y in (x, other))
        turn = _rotation(op, sizes, products, rows, partner)
        x = rotated(x, partner, turn)
        if symmetric:
            x = rotated(_turned(op, x), partner, turn)
        turned = rotated(turned, partner, turn)
        x.shape, turned.shape = (s.shape.copy() for s in states)
        return [x, turned], op.Identity(number)

    _, (x, turned) = scan(op, step, [begin, turns], [steps])
    return x, _turned(op, turned)


def _sorted(
    op: Op, values: ir.Value, matrices: list[ir.Value], count: ir.Value, *, largest: bool
) -> tuple[ir.Value, list[ir.Value]]:
    """The first values in order, and the columns that belong to them."""
    ordered, places = op.TopK(values, count, largest=int(largest), sorted=1, outputs=2)
    index = _flat(op, places)
    moved = []
    for matrix in matrices:
        outer = op.Shape(matrix, start=0, end=rank(matrix) - 1)
        wide = op.Expand(index, op.Concat(outer, count, axis=0))
        moved.append(op.GatherElements(matrix, wide, axis=-1))
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
    ordered, (vectors,) = _sorted(op, values, [vectors], op.dim_vector(x, -1), largest=False)
    vectors.shape = A.shape.copy()
    return ordered, _of_either_sign(vectors, "columns")


@lowers(aten._linalg_svd)
def _linalg_svd(
    op: Op, /, A: ir.Value, full_matrices: bool = False, compute_uv: bool = True, *,
    driver: object = None,
) -> tuple[ir.Value, ...]:  # fmt: skip
    """Hestenes' method; singular vectors have signs of their own, as LAPACK's have."""
    rows, columns = static_size(A, -2), static_size(A, -1)
    if full_matrices and compute_uv and (rows is None or rows != columns):
        raise Unlowerable("singular vectors of the null space")
    wide = rows is not None and columns is not None and rows < columns
    least = min(rows, columns) if rows is not None and columns is not None else None
    batch = A.shape.dims[:-2]
    begin = A if wide else _turned(op, A)
    begin.shape = A.shape if wide else ir.Shape([*batch, columns, rows])
    x, turns = _rotate_all(op, begin, symmetric=False)
    lengths = op.Sqrt(reduce(op, "ReduceSum", op.Mul(x, x), -1, False))
    lengths.shape = ir.Shape(list(begin.shape.dims[:-1]))
    count = op.Min(op.dim_vector(A, -2), op.dim_vector(A, -1))
    values, (left, right) = _sorted(op, lengths, [_turned(op, x), turns], count, largest=True)
    values.shape = ir.Shape([*batch, least])
    if not compute_uv:
        empty = op.Slice(op.Reshape(A, [-1]), [0], [0], [0])
        return empty, values, empty
    left.shape = ir.Shape([*batch, static_size(begin, -1), least])
    right.shape = ir.Shape([*batch, static_size(begin, -2), least])
    left = _directions(op, left)
    left, right = (right, left) if wide else (left, right)
    right = _of_either_sign(_turned(op, right), "rows")
    return _of_either_sign(left, "columns"), values, right


def _directions(op: Op, x: ir.Value) -> ir.Value:
    """Orthogonal columns with length 1; of columns that are nothing, what is orthogonal to the rest."""
    stored, tau = geqrf(op, x)
    tau.shape = ir.Shape([*x.shape.dims[:-2], static_size(x, -1)])
    turned = _turned(op, stored)
    turned.shape = ir.Shape([*x.shape.dims[:-2], static_size(x, -1), static_size(x, -2)])
    lengths = _turned(op, _picked(op, turned, _places(op, x, -1)))
    vectors = linalg_householder_product(op, stored, tau)
    one = np.ones([], x.dtype.numpy())
    return op.Mul(vectors, op.Where(op.Less(lengths, _zero(x)), np.negative(one), one))


def _of_either_sign(vectors: ir.Value, where: str) -> ir.Value:
    """The vectors, with a note that their signs are not to be compared with LAPACK's."""
    node = vectors.producer()
    assert node is not None
    node.metadata_props["bridge.computes"] = f"vectors in {where}"
    return vectors
