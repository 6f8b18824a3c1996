"""Chains of nodes that only rearrange elements, seen as one rearrangement.

The elements of a source are indexed by *atoms*: its axes, split where a Reshape in the chain
splits them. Every value of the chain is a list of dims, each of them a list of atoms. Two chains
with the same atoms in the same dims are the same function, however they are written.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, NamedTuple

from optim_passes.simplify.shapes import Term, dim_terms, reshape_target
from optim_passes.values import attribute, constant, norm_axis, rank, scalar

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import onnx_ir as ir

    from optim_passes.builder import Builder

__all__ = ["RESHAPES", "Atom", "View", "emit", "permutation", "plan", "view_of"]

ONE = Term(1)
RESHAPES = ("Reshape", "Squeeze", "Unsqueeze", "Flatten")
_LONGEST = 24


def permutation(node: ir.Node) -> list[int] | None:
    """The order of axes of a Transpose; the reverse where none is given."""
    perm: list[int] | None = attribute(node, "perm")
    size = rank(node.inputs[0])
    if perm is None and "perm" not in node.attributes and size is not None:
        return list(range(size))[::-1]
    return perm


class Atom(NamedTuple):
    """Part of an axis of the source.

    Attributes:
        axis: Axis of the source.
        inner: Elements of the axis from one step of this atom to the next.
        size: Number of steps.
    """

    axis: int
    inner: int
    size: Term


@dataclasses.dataclass(frozen=True, slots=True)
class View:
    """A value as a rearrangement of another.

    Attributes:
        source: Where the elements come from.
        dims: The atoms of each dim; none for a dim of size 1.
        fixed: Atoms of which only one step is taken, and which.
        nodes: The chain, from the source on.
    """

    source: ir.Value
    dims: tuple[tuple[Atom, ...], ...]
    fixed: tuple[tuple[Atom, int], ...] = ()
    nodes: tuple[ir.Node, ...] = ()

    def terms(self) -> list[Term]:
        """The size of each dim."""
        return [_product(a.size for a in group) for group in self.dims]


def _product(terms: Iterator[Term]) -> Term:
    total = ONE
    for term in terms:
        total = total.times(term)
    return total


def view_of(value: ir.Value, *, gathers: bool = False) -> View | None:
    """The value as a view of the start of the longest chain that can be followed.

    Args:
        value: The end of the chain.
        gathers: Whether taking one element along an axis is part of a chain.

    Returns:
        The view; None if the shape of the value is not known.
    """
    chain: list[ir.Node] = []
    source = value
    while len(chain) < _LONGEST:
        node = source.producer()
        if node is None or node.domain or node.inputs[0] is None:
            break
        known = node.op_type in RESHAPES or node.op_type == "Transpose"
        if not known and not (gathers and node.op_type == "Gather"):
            break
        if constant(node.inputs[0]) is not None:
            break
        chain.append(node)
        source = node.inputs[0]
    view = _whole(source)
    for node in reversed(chain):
        stepped = None if view is None else _step(view, node)
        view = stepped or _whole(node.outputs[0])
    return view


def _whole(value: ir.Value) -> View | None:
    terms = dim_terms(value)
    if terms is None or any(t == Term(0) for t in terms):
        return None
    atoms = [() if t == ONE else (Atom(axis, 1, t),) for axis, t in enumerate(terms)]
    return View(value, tuple(atoms))


def _step(view: View, node: ir.Node) -> View | None:
    """The view after one more node; None if that cannot be expressed."""
    nodes = (*view.nodes, node)
    if node.op_type == "Transpose":
        perm = permutation(node)
        if perm is None or len(perm) != len(view.dims):
            return None
        return dataclasses.replace(view, dims=tuple(view.dims[i] for i in perm), nodes=nodes)
    if node.op_type == "Gather":
        return _gathered(view, node, nodes)
    terms = dim_terms(node.outputs[0])
    if terms is None:
        return None
    regrouped = _regroup([a for group in view.dims for a in group], terms)
    if regrouped is None:
        return None
    return dataclasses.replace(view, dims=regrouped, nodes=nodes)


def _gathered(view: View, node: ir.Node, nodes: tuple[ir.Node, ...]) -> View | None:
    index, size = scalar(node.inputs[1]), rank(node.inputs[1])
    axis = norm_axis(attribute(node, "axis", 0), len(view.dims))
    atoms = view.dims[axis]
    if not isinstance(index, int) or size is None or size > 1 or len(atoms) != 1:
        return None
    (atom,) = atoms
    if atom.size.dims:
        return None
    kept = list(view.dims)
    kept[axis : axis + 1] = [()] * size
    fixed = (*view.fixed, (atom, index % atom.size.factor))
    return View(view.source, tuple(kept), fixed, nodes)


def _regroup(atoms: list[Atom], terms: list[Term]) -> tuple[tuple[Atom, ...], ...] | None:
    """The atoms in their order, dealt out to dims of the given sizes."""
    left = list(atoms)
    groups: list[tuple[Atom, ...]] = []
    unknown = len(terms)
    for index, term in enumerate(terms):
        taken = _take(left, term, front=True)
        if taken is None:
            unknown = index
            break
        groups.append(taken)
    tail: list[tuple[Atom, ...]] = []
    for term in reversed(terms[unknown + 1 :]):
        taken = _take(left, term, front=False)
        if taken is None:
            return None
        tail.append(taken)
    if unknown < len(terms):
        groups.append(tuple(left))
        left = []
    return None if left else (*groups, *reversed(tail))


def _take(left: list[Atom], term: Term, *, front: bool) -> tuple[Atom, ...] | None:
    """Remove atoms whose sizes multiply to ``term`` from one end, splitting the last one."""
    taken: list[Atom] = []
    rest = list(left)
    need = term
    while need != ONE:
        if not rest:
            return None
        atom = rest.pop(0 if front else -1)
        smaller = need.over(atom.size)
        if smaller is not None:
            need = smaller
        else:
            lower = atom.size.over(need)
            if lower is None or need.dims or lower.dims:
                return None
            high = Atom(atom.axis, atom.inner * lower.factor, need)
            low = Atom(atom.axis, atom.inner, lower)
            if not front:
                high = Atom(atom.axis, atom.inner * need.factor, lower)
                low = Atom(atom.axis, atom.inner, need)
            atom = high if front else low
            rest.insert(0 if front else len(rest), low if front else high)
            need = ONE
        taken.append(atom)
    left[:] = rest
    return tuple(taken if front else taken[::-1])


def plan(view: View) -> list[tuple[str, list[int]]] | None:
    """How to make the view: at most Slice, Reshape, Transpose, Reshape, with their arguments.

    What is fixed has to be the outermost part of its axis. None where no such nodes do it.
    """
    sizes = dim_terms(view.source)
    assert sizes is not None
    steps: list[tuple[str, list[int]]] = []
    for atom, index in view.fixed:
        if Term(atom.inner).times(atom.size) != sizes[atom.axis]:
            return None
        start = index * atom.inner
        steps.append(("Slice", [start, start + atom.inner, atom.axis]))
        sizes = [Term(atom.inner) if i == atom.axis else t for i, t in enumerate(sizes)]
    wanted = view.terms()
    groups = _joined([a for group in view.dims for a in group])
    order = sorted(range(len(groups)), key=lambda i: (groups[i][0].axis, -groups[i][0].inner))
    shapes = [wanted]
    if order != list(range(len(groups))):
        shapes.insert(0, [_product(a.size for a in groups[i]) for i in order])
    for shape in shapes:
        if shape != sizes:
            target = reshape_target(shape, sizes)
            if target is None:
                return None
            steps.append(("Reshape", target))
        sizes = shape
        if shape is not wanted:
            perm = [order.index(i) for i in range(len(groups))]
            steps.append(("Transpose", perm))
            sizes = [shape[i] for i in perm]
    return steps


def emit(view: View, op: Builder) -> ir.Value | None:
    """The nodes of :func:`plan`, None where there is none."""
    steps = plan(view)
    if steps is None:
        return None
    x = view.source
    for op_type, arguments in steps:
        if op_type == "Slice":
            start, end, axis = arguments
            x = op.Slice(x, [start], [end], [axis])
        else:
            x = (
                op.Reshape(x, arguments)
                if op_type == "Reshape"
                else op.Transpose(x, perm=arguments)
            )
    return x


def _joined(atoms: Sequence[Atom]) -> list[list[Atom]]:
    """Neighbouring atoms that are neighbours in the source as well, taken together."""
    groups: list[list[Atom]] = []
    for atom in atoms:
        if groups and _follows(groups[-1][-1], atom):
            groups[-1].append(atom)
        else:
            groups.append([atom])
    return groups


def _follows(first: Atom, second: Atom) -> bool:
    return first.axis == second.axis and first.inner == second.inner * second.size.factor
