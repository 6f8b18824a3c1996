"""Computations of shapes: what of them is constant, or can be said without computing it.

A small integer tensor that is computed from ``Shape`` is followed symbolically: each element is a
product of a number and of dims of other values. So ``Reshape(x, Concat(Shape(x)[0], 12, 64))``
becomes ``Reshape(x, [0, 12, 64])`` and the chain of nodes dies.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from optim_passes.rewriting import NodePass, require
from optim_passes.values import (
    attribute,
    dims,
    input_of,
    ints,
    producer,
    rank,
    small_array,
)

if TYPE_CHECKING:
    import onnx_ir as ir

    from optim_passes.builder import Builder

__all__ = ["ShapeChainPass", "Term", "dim_terms", "elements", "reshape_target"]

_DEPTH = 40  # nodes that a chain may have
_INTEGERS = ("INT32", "INT64")


@dataclasses.dataclass(frozen=True, slots=True)
class Term:
    """``factor * dims[0] * dims[1] * ...``; each dim is a name, or a value and an axis."""

    factor: int
    dims: tuple[Any, ...] = ()

    def times(self, other: Term) -> Term:
        """The product."""
        return Term(self.factor * other.factor, _sorted(self.dims + other.dims))

    def over(self, other: Term) -> Term | None:
        """The quotient, where it comes out even."""
        rest = list(self.dims)
        for dim in other.dims:
            if dim not in rest:
                return None
            rest.remove(dim)
        if other.factor == 0 or self.factor % other.factor:
            return None
        return Term(self.factor // other.factor, tuple(rest))

    @classmethod
    def of(cls, dim: int | ir.SymbolicDim, unnamed: Any) -> Term:
        """A dim of a shape; ``unnamed`` stands for one without a name."""
        if isinstance(dim, int):
            return cls(dim)
        if dim.value is None:
            return cls(1, (unnamed,))
        parts = str(dim.value).split("*")
        factor = int(parts.pop(0)) if parts[0].isdecimal() else 1
        return cls(factor, _sorted(tuple(parts)))

    def dim(self) -> int | str | None:
        """The term as a dim of a shape; None if something in it has no name."""
        if not self.dims:
            return self.factor
        if not all(isinstance(d, str) for d in self.dims):
            return None
        return "*".join([str(self.factor)] * (self.factor != 1) + list(self.dims))


def _sorted(given: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(sorted(given, key=str))


def dim_terms(value: ir.Value | None) -> list[Term] | None:
    """The shape of a value, dim by dim; None if not even the rank is known."""
    shape = dims(value)
    if shape is None:
        return None
    return [Term.of(d, (id(value), axis)) for axis, d in enumerate(shape)]


def elements(value: ir.Value | None, depth: int = 0) -> list[Term] | None:
    """The elements of an integer tensor of rank 0 or 1, as far as they can be followed."""
    if value is None or (value.dtype is not None and value.dtype.name not in _INTEGERS):
        return None
    known = small_array(value)
    if known is not None:
        return [Term(int(n)) for n in known.reshape(-1)] if known.ndim < 2 else None
    node = value.producer()
    if node is None or node.domain or depth > _DEPTH:
        return None
    rule = _RULES.get(node.op_type)
    return None if rule is None else rule(node, depth + 1)


def _shape(node: ir.Node, depth: int) -> list[Term] | None:
    terms = dim_terms(node.inputs[0])
    if terms is None:
        return None
    start, end = attribute(node, "start", 0), attribute(node, "end", len(terms))
    return terms[slice(start, end)]


def _same(node: ir.Node, depth: int) -> list[Term] | None:
    return elements(node.inputs[0], depth)


def _reshape(node: ir.Node, depth: int) -> list[Term] | None:
    given = elements(node.inputs[0], depth)
    return given if rank(node.outputs[0]) in (0, 1) else None


def _concat(node: ir.Node, depth: int) -> list[Term] | None:
    joined: list[Term] = []
    for x in node.inputs:
        part = elements(x, depth)
        if part is None or rank(x) == 0:
            return None
        joined += part
    return joined


def _gather(node: ir.Node, depth: int) -> list[Term] | None:
    given, chosen = elements(node.inputs[0], depth), ints(node.inputs[1])
    if given is None or chosen is None or rank(node.inputs[1]) not in (0, 1):
        return None
    if any(not -len(given) <= i < len(given) for i in chosen):
        return None
    return [given[i] for i in chosen]


def _slice(node: ir.Node, depth: int) -> list[Term] | None:
    given = elements(node.inputs[0], depth)
    starts, ends = ints(input_of(node, 1)), ints(input_of(node, 2))
    if given is None or starts is None or ends is None or len(starts) != 1:
        return None
    steps = [1] if input_of(node, 4) is None else ints(input_of(node, 4))
    return given[slice(starts[0], ends[0], steps[0])] if steps else None


def _binary(operation: str) -> Any:
    def rule(node: ir.Node, depth: int) -> list[Term] | None:
        left, right = (elements(x, depth) for x in node.inputs)
        if left is None or right is None:
            return None
        size = max(len(left), len(right))
        if min(len(left), len(right)) not in (1, size):
            return None
        left, right = left * (size // len(left)), right * (size // len(right))
        results = [_combine(operation, a, b) for a, b in zip(left, right, strict=True)]
        return None if any(r is None for r in results) else [r for r in results if r is not None]

    return rule


def _where(node: ir.Node, depth: int) -> list[Term] | None:
    """``Where(shape == -1, 1, shape)``, as TorchScript writes expand."""
    comparison = producer(node.inputs[0], "Equal")
    operands = [] if comparison is None else [*comparison.inputs, *node.inputs[1:]]
    given = [elements(x, depth) for x in operands]
    size = max((len(g) for g in given if g is not None), default=0)
    if not given or any(g is None or len(g) not in (1, size) for g in given):
        return None
    left, right, then, other = (g * (size // len(g)) for g in given if g is not None)
    chosen: list[Term] = []
    for a, b, yes, no in zip(left, right, then, other, strict=True):
        if a.dims and b.dims:
            return None
        number = min(a, b, key=lambda t: len(t.dims))
        if (a.dims or b.dims) and number.factor >= 0:
            return None  # a size may be that number
        chosen.append(yes if a == b else no)
    return chosen


def _combine(operation: str, a: Term, b: Term) -> Term | None:
    if operation == "Mul":
        return a.times(b)
    if operation == "Div":
        return a.over(b) if a.factor >= 0 and b.factor > 0 else None
    if not a.dims and not b.dims:
        return Term(a.factor + b.factor if operation == "Add" else a.factor - b.factor)
    if a.dims == b.dims:
        total = a.factor + b.factor if operation == "Add" else a.factor - b.factor
        return Term(total, a.dims if total else ())
    if b == Term(0):
        return a
    return b if operation == "Add" and a == Term(0) else None


_RULES = {
    "Shape": _shape,
    "Identity": _same,
    "Cast": _same,
    "Squeeze": _same,
    "Unsqueeze": lambda node, depth: (
        elements(node.inputs[0], depth) if rank(node.inputs[0]) == 0 else None
    ),
    "Reshape": _reshape,
    "Concat": _concat,
    "Gather": _gather,
    "Slice": _slice,
    "Add": _binary("Add"),
    "Sub": _binary("Sub"),
    "Mul": _binary("Mul"),
    "Div": _binary("Div"),
    "Where": _where,
}


class ShapeChainPass(NodePass):
    """Constants in the place of integers that follow from static shapes, and simpler reshapes.

    The target of a ``Reshape`` becomes a constant of sizes, 0 (as before) and at most one -1. A -1
    beside a 0 would be ambiguous for empty tensors, so such chains stay. A size that an input of
    the model has is taken from there.
    """

    op_types: ClassVar[frozenset[str]] = frozenset({*_RULES, "Size", "Expand"})

    def rewrite(self, node: ir.Node, op: Builder) -> Any:
        """The constant, or the Reshape or Expand with a constant target."""
        if node.domain:
            return None
        if node.op_type in ("Reshape", "Expand") and small_array(input_of(node, 1)) is None:
            made = self._constant_target(node, op)
            if made is not None:
                return made
        if node.op_type == "Size":
            sizes = dim_terms(node.inputs[0])
            if sizes is None or any(t.dims for t in sizes):
                return None
            return op.constant(np.asarray(np.prod([t.factor for t in sizes]), np.int64))
        value = node.outputs[0]
        if value.dtype is None or value.dtype.name not in _INTEGERS or rank(value) not in (0, 1):
            return None
        if value.is_graph_output() or node.op_type == "Expand":
            return None
        terms = elements(value)
        if terms is not None and node.op_type == "Shape" and len(terms) == 1 and terms[0].dims:
            return _size_of_input(node, terms[0], op)
        if terms is None or any(t.dims for t in terms):
            return None
        array = np.asarray([t.factor for t in terms], value.dtype.numpy())
        return op.constant(array.reshape(()) if rank(value) == 0 else array)

    def _constant_target(self, node: ir.Node, op: Builder) -> ir.Value | None:
        x, target = node.inputs[:2]
        wanted, given = elements(target), dim_terms(x)
        if wanted is None or given is None or x is None:
            return None
        if node.op_type == "Expand":
            sizes = [_expanded(t, given, i - len(wanted)) for i, t in enumerate(wanted)]
            if any(n is None for n in sizes):
                return None
            return op.Expand(x, np.asarray(sizes, np.int64))
        if attribute(node, "allowzero", 0) and Term(0) in wanted:
            return None  # that would mean "as before" in the target that is made here
        if any(not t.dims and t.factor < -1 for t in wanted):
            return None
        reshaped = reshape_target(wanted, given)
        require(reshaped is not None, "more than one size is new in the shape", target)
        return op.Reshape(x, reshaped)


def _size_of_input(node: ir.Node, term: Term, op: Builder) -> ir.Value | None:
    """The size from an input of the model that has it, so that ``node``'s operand may go."""
    if op.scope.outer is not None or op.scope.function is not None:
        return None  # a name may mean another size there
    x = node.inputs[0]
    if x is None or x.is_graph_input():
        return None
    for value in op.scope.body.inputs:
        for axis, given in enumerate(dim_terms(value) or ()):
            if given == term and isinstance(term.dims[0], str):
                made: ir.Value = op.Shape(value, start=axis, end=axis + 1)
                return made
    return None


def _expanded(term: Term, given: list[Term], axis: int) -> int | None:
    """The size to expand an axis (counted from the back) to; 1 leaves it as it is."""
    if not term.dims:
        return term.factor
    return 1 if -axis <= len(given) and given[axis] == term else None


def reshape_target(wanted: list[Term], given: list[Term]) -> list[int] | None:
    """A constant target that turns the shape ``given`` into ``wanted``; None if there is none."""
    dynamic = [i for i, t in enumerate(wanted) if t.dims]
    sizes = [t.factor for t in wanted]
    if len(dynamic) == 1 and -1 not in [t.factor for t in wanted if not t.dims]:
        others = [t.factor for t in wanted if not t.dims]
        if 0 not in others:
            sizes[dynamic[0]] = -1
            return sizes
    for i in dynamic:
        if i >= len(given) or given[i] != wanted[i]:
            return None
        sizes[i] = 0
    return None if -1 in sizes and dynamic else sizes
