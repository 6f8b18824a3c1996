"""``einsum`` as products of matrices.

ORT 1.32 CPU has a kernel of ``Einsum-12``, but it divides by zero, and ends the process, when the
product is of empty batches or of empty rows.
"""

from __future__ import annotations

import math
import string
from typing import TYPE_CHECKING, Any

import onnx_ir as ir
import torch

from exporters.pytorch.dtypes import promote
from exporters.pytorch.lowerings.dims import static_size
from exporters.pytorch.lowerings.shaping import rank
from exporters.pytorch.lowerings.slicing import diagonal
from exporters.pytorch.registry import Unlowerable, lowers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from exporters.tracing.graph import GraphBuilder as Op


@lowers(torch.functional.einsum, torch.ops.aten.einsum)
def einsum(op: Op, /, equation: str, *operands: Any, path: object = None) -> ir.Value:
    """Lower to ``MatMul-13`` for two operands that share a summed label, else to ``Mul-14``."""
    values = list(operands[0]) if isinstance(operands[0], list | tuple) else list(operands)
    values = list(promote(op, *values))
    dtype = values[0].dtype
    if not dtype.is_floating_point():
        values = list(promote(op, *values, to=ir.DataType.INT64))
    terms, wanted = _spell_out(equation, [rank(x) for x in values])
    terms, values = list(terms), list(values)
    for i, term in enumerate(terms):
        terms[i], values[i] = _without_repeats(op, term, values[i])
    while len(values) > 1:  # from left to right, as torch does
        needed = set(wanted).union(*terms[2:])
        term = "".join(x for x in dict.fromkeys(terms[0] + terms[1]) if x in needed)
        value = _product(op, values[0], terms[0], values[1], terms[1], term)
        terms[:2], values[:2] = [term], [value]
    (value,), (term,) = values, terms
    value, term = _summed(op, value, term, set(wanted))
    return _permuted(op, value, term, wanted)  # integers that torch sums become INT64 in eager too


def _spell_out(equation: str, ranks: Sequence[int]) -> tuple[list[str], str]:
    """Each operand's labels and the result's, with labels for ellipses."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    letters = {x for x in left if x.isalpha()}
    lengths = [n - len(term.replace("...", "")) for term, n in zip(terms, ranks, strict=True)]
    rest = [x for x in string.ascii_lowercase + string.ascii_uppercase if x not in letters]
    longest = max((n for n, t in zip(lengths, terms, strict=True) if "..." in t), default=0)
    dots = "".join(rest[:longest])
    if not arrow:
        right = "..." + "".join(sorted(x for x in letters if left.count(x) == 1))
    spelled = [
        term.replace("...", dots[longest - n :]) for term, n in zip(terms, lengths, strict=True)
    ]
    return spelled, right.replace("...", dots)


def _without_repeats(op: Op, term: str, x: ir.Value) -> tuple[str, ir.Value]:
    """Diagonals in place of dims that share a label."""
    while len(set(term)) < len(term):
        label = next(a for a in term if term.count(a) > 1)
        first = term.index(label)
        second = term.index(label, first + 1)
        dims = [d for i, d in enumerate(x.shape.dims) if i not in (first, second)]
        x, size = diagonal(op, x, 0, first, second), static_size(x, first)
        x.shape = ir.Shape([*dims, size])
        term = term[:first] + term[first + 1 : second] + term[second + 1 :] + label
    return term, x


def _total(op: Op, x: ir.Value, axes: Sequence[int], dims: int) -> ir.Value:
    """``ReduceSum-13``; of integers products with ones, since it adds these in float64."""
    if x.dtype.is_floating_point():
        return op.ReduceSum(x, axes, keepdims=0)
    for axis in sorted(axes, reverse=True):
        dims -= 1
        order = [i for i in range(dims + 1) if i != axis] + [axis]
        x = op.Transpose(x, perm=order) if axis < dims else x
        size = op.Slice(op.Shape(x), [dims], [dims + 1])
        x = op.MatMul(x, op.Expand(op.operand(1, x.dtype), size))
    return x


def _summed(op: Op, x: ir.Value, term: str, kept: set[str]) -> tuple[ir.Value, str]:
    """``x`` summed over the labels that nothing needs."""
    axes = [i for i, label in enumerate(term) if label not in kept]
    if axes:
        x = _total(op, x, axes, len(term))
    return x, "".join(label for label in term if label in kept)


def _permuted(op: Op, x: ir.Value, term: str, wanted: str) -> ir.Value:
    return x if term == wanted else op.Transpose(x, perm=[term.index(label) for label in wanted])


def _size(op: Op, x: ir.Value, term: str, labels: str) -> Any:
    """The product of the labels' sizes: an int, or an INT64 value of shape [1]."""
    sizes = [op.dim(x, term.index(label)) for label in labels]
    known = math.prod(s for s in sizes if isinstance(s, int))
    total: Any = known
    for size in sizes:
        if not isinstance(size, int):
            total = size if isinstance(total, int) and total == 1 else op.Mul(size, total)
    return total


def _product(op: Op, a: ir.Value, left: str, b: ir.Value, right: str, wanted: str) -> ir.Value:
    """Two operands multiplied, and summed over what is not wanted."""
    shared = set(left) & set(right)
    a, left = _summed(op, a, left, set(wanted) | shared)
    b, right = _summed(op, b, right, set(wanted) | shared)
    batch = [x for x in wanted if x in shared]
    rows = [x for x in wanted if x in left and x not in right]
    columns = [x for x in wanted if x in right and x not in left]
    inner = [x for x in left if x in shared and x not in wanted]
    if not inner or not (rows or columns):
        y = op.Mul(_spread(op, a, left, wanted, inner), _spread(op, b, right, wanted, inner))
        axes = list(range(len(wanted), len(wanted) + len(inner)))
        return _total(op, y, axes, len(wanted) + len(inner)) if inner else y
    for label in inner:
        pair = {static_size(a, left.index(label)), static_size(b, right.index(label))}
        if 1 in pair and len(pair) > 1:
            raise Unlowerable("einsum broadcasts a label that it sums over")
    first = _matrix(op, _permuted(op, a, left, _join(batch, rows, inner)), batch, rows, inner)
    second = _matrix(
        op, _permuted(op, b, right, _join(batch, inner, columns)), batch, inner, columns
    )
    y = op.MatMul(first, second)
    if len(rows) != 1 or len(columns) != 1:
        # A batch dim of size 1 in one operand may be longer in the other: read it off the product.
        sizes = [op.dim(y, i) for i in range(len(batch))]
        sizes += [op.dim(a, left.index(x)) for x in rows]
        sizes += [op.dim(b, right.index(x)) for x in columns]
        y = op.reshape(y, sizes, copied=[True] * len(batch))
    return _permuted(op, y, _join(batch, rows, columns), wanted)


def _join(*groups: Sequence[str]) -> str:
    return "".join(x for group in groups for x in group)


def _spread(op: Op, x: ir.Value, term: str, wanted: str, inner: Sequence[str]) -> ir.Value:
    """``x`` with a dim of size 1 for every label that it lacks."""
    order = wanted + _join(inner)
    x = _permuted(op, x, term, "".join(label for label in order if label in term))
    axes = [i for i, label in enumerate(order) if label not in term]
    return op.Unsqueeze(x, axes) if axes else x


def _matrix(
    op: Op, x: ir.Value, batch: Sequence[str], rows: Sequence[str], columns: Sequence[str]
) -> ir.Value:
    """Matrices of what has one dim per label: [batch..., rows, columns]."""
    if len(rows) == 1 and len(columns) == 1:
        return x
    term = _join(batch, rows, columns)
    sizes = [op.dim(x, i) for i in range(len(batch))]
    sizes += [_size(op, x, term, _join(rows)), _size(op, x, term, _join(columns))]
    return op.reshape(x, sizes, copied=[True] * len(batch))
