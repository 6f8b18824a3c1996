"""Types and shapes of values, with names for sizes that are only known at run time.

Equal names are equal sizes. They come from the graph's inputs, and sizes computed from them have
names such as ``2*batch`` or ``floor((height-1)/2)+1``: so the two sides of a residual block are
seen to have one shape. A size that nothing is known of gets a placeholder, so that a Reshape to
``Shape(x)`` is still seen to have the shape of ``x``.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import onnx_ir as ir

from optim_passes.builder import infer_types, refine_shape
from optim_passes.rewriting import Outcome, Pass
from optim_passes.simplify.shapes import Term, dim_terms, elements
from optim_passes.values import (
    PLACEHOLDER,
    attribute,
    dims,
    input_of,
    ints,
    is_known,
    norm_axis,
    producer,
    rank,
    static_shape,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from optim_passes.scopes import Scope

__all__ = ["ForgetSizesPass", "InferShapesPass"]


class InferShapesPass(Pass):
    """Works out dtypes and shapes that the file left out; what it says is kept."""

    def call(self, model: ir.Model) -> Outcome:
        """Run on every body, counting placeholders."""
        self._placeholders = _placeholders(model)
        return super().call(model)

    def run(self, scope: Scope, outcome: Outcome) -> None:
        """Go through one body from its first node."""
        for node in scope.body:
            for value in node.outputs:
                _drop_foreign_placeholders(value)
            if node.domain or not any(map(_is_open, node.outputs)):
                continue
            before = [(v.dtype, dims(v)) for v in node.outputs]
            infer_types(node, scope.opset)
            rule = _RULES.get(node.op_type)
            found = None if rule is None else rule(node)
            if found is not None:
                refine_shape(node.outputs[0], found)
            for value in node.outputs:
                self._name_sizes(value)
            outcome.rewrites += before != [(v.dtype, dims(v)) for v in node.outputs]

    def _name_sizes(self, value: ir.Value) -> None:
        if value.shape is None or value.is_graph_output():
            return
        if all(isinstance(d, int) or d.value is not None for d in value.shape.dims):
            return
        value.shape = ir.Shape(
            f"{PLACEHOLDER}{next(self._placeholders)}"
            if not isinstance(d, int) and d.value is None
            else d
            for d in value.shape.dims
        )


def _drop_foreign_placeholders(value: ir.Value) -> None:
    """Graphs that were joined may use the same one for different sizes."""
    shape = dims(value)
    if shape is not None and any("unk__" in str(d) for d in shape) and not value.is_graph_output():
        value.shape = ir.Shape(None if "unk__" in str(d) else d for d in shape)


def _placeholders(model: ir.Model) -> Iterator[int]:
    """Numbers that no placeholder of the model has."""
    highest = -1
    for node in model.graph.all_nodes():
        for value in node.outputs:
            for dim in dims(value) or ():
                if not isinstance(dim, int) and (dim.value or "").startswith(PLACEHOLDER):
                    number = str(dim.value).removeprefix(PLACEHOLDER)
                    highest = max(highest, int(number) if number.isdecimal() else -1)
    return itertools.count(highest + 1)


class ForgetSizesPass(Pass):
    """Takes the placeholders of :class:`InferShapesPass` away again, and names if wanted.

    ONNX Runtime reuses the memory of values whose sizes have one name. Measured on version 1.32,
    its CPU provider is then up to 10 % slower than with memory from its arena.

    Args:
        names: Whether to take all names of sizes but those of the inputs and outputs.
    """

    def __init__(self, *, names: bool = False) -> None:
        super().__init__()
        self.names = names

    def run(self, scope: Scope, outcome: Outcome) -> None:
        """Take those of one body away."""
        for node in scope.body:
            for value in node.outputs:
                sizes = dims(value)
                if sizes is None or not any(self._is_forgotten(d, value) for d in sizes):
                    continue
                value.shape = ir.Shape(None if self._is_forgotten(d, value) else d for d in sizes)
                outcome.rewrites += 1

    def _is_forgotten(self, dim: int | ir.SymbolicDim, value: ir.Value) -> bool:
        if isinstance(dim, int) or dim.value is None:
            return False
        return dim.value.startswith(PLACEHOLDER) or (self.names and not value.is_graph_output())


def _is_open(value: ir.Value) -> bool:
    """Whether there is something to find out."""
    shape = dims(value)
    if shape is None or value.dtype is None:
        return True
    return not all(map(is_known, shape))


def _named(terms: list[Term]) -> list[int | str | None]:
    return [t.dim() for t in terms]


def _convolution(node: ir.Node) -> list[int | str | None] | None:
    """``floor((size + pads - dilation * (kernel - 1) - 1) / stride) + 1`` for each axis."""
    shape, out = dims(node.inputs[0]), dims(node.outputs[0])
    if shape is None or out is None or attribute(node, "ceil_mode", 0):
        return None
    count = len(shape) - 2
    weight = static_shape(input_of(node, 1)) if node.op_type == "Conv" else None
    kernel = attribute(node, "kernel_shape", list(weight[2:]) if weight else None)
    if kernel is None or attribute(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return None
    strides = attribute(node, "strides", [1] * count)
    dilations = attribute(node, "dilations", [1] * count)
    pads = attribute(node, "pads", [0] * 2 * count)
    batch = shape[0] if isinstance(shape[0], int) else shape[0].value
    found: list[int | str | None] = [batch, out[1] if isinstance(out[1], int) else None]
    for axis in range(count):
        size = shape[2 + axis]
        rest = pads[axis] + pads[count + axis] - dilations[axis] * (kernel[axis] - 1) - 1
        if isinstance(size, int):
            found.append((size + rest) // strides[axis] + 1)
        elif size.value is None or "*" in size.value:
            found.append(None)
        elif strides[axis] == 1:
            found.append(size.value if rest == -1 else f"{size.value}{rest + 1:+d}")
        else:
            found.append(f"floor(({size.value}{rest:+d})/{strides[axis]})+1")
    return found


def _reshape(node: ir.Node) -> list[int | str | None] | None:
    given, wanted = dim_terms(node.inputs[0]), elements(input_of(node, 1))
    if given is None or wanted is None:
        return _partly_reshaped(node)
    if attribute(node, "allowzero", 0) and Term(0) in wanted:
        return None
    if any(t == Term(0) and i >= len(given) for i, t in enumerate(wanted)):
        return None
    sizes = [given[i] if t == Term(0) else t for i, t in enumerate(wanted)]
    if Term(-1) in sizes:
        rest: Term | None = Term(1)
        for term in given:
            rest = rest.times(term) if rest is not None else None
        for term in sizes:
            if term != Term(-1):
                rest = None if rest is None else rest.over(term)
        sizes = [t if t != Term(-1) else rest or Term(1, (None,)) for t in sizes]
    return _named(sizes)


def _partly_reshaped(node: ir.Node) -> list[int | str | None] | None:
    """The rank, and the sizes that are written in the target."""
    target = input_of(node, 1)
    concat, length = producer(target, "Concat"), static_shape(target)
    if concat is None:
        return None if length is None else [None] * length[0]
    found: list[int | str | None] = []
    for x in concat.inputs:
        known, length = elements(x), static_shape(x)
        if known is None and length is None:
            return None
        terms: list[Term | None] = [None] * (length or (0,))[0] if known is None else [*known]
        found += [None if t is None or t.dims or t.factor < 1 else t.factor for t in terms]
    return found


def _expand(node: ir.Node) -> list[int | str | None] | None:
    given, wanted = dim_terms(node.inputs[0]), elements(input_of(node, 1))
    if given is None or wanted is None:
        return None
    size = max(len(given), len(wanted))
    left = [Term(1)] * (size - len(given)) + given
    right = [Term(1)] * (size - len(wanted)) + wanted
    return _named([a if b in (Term(1), a) else b for a, b in zip(left, right, strict=True)])


def _constant_of_shape(node: ir.Node) -> list[int | str | None] | None:
    wanted = elements(node.inputs[0])
    return None if wanted is None else _named(wanted)


def _range(node: ir.Node) -> list[int | str | None] | None:
    start, limit, step = (elements(v) for v in node.inputs)
    if start != [Term(0)] or step != [Term(1)] or limit is None:
        return None
    return _named(limit)


def _slice(node: ir.Node) -> list[int | str | None] | None:
    """``x[:n]`` of an axis of static size, where ``n`` is not constant."""
    shape, size = dims(node.inputs[0]), rank(node.inputs[0])
    starts, ends = ints(input_of(node, 1)), elements(input_of(node, 2))
    axes = ints(input_of(node, 3))
    if shape is None or size is None or starts != [0] or axes is None or len(axes) != 1:
        return None
    if ends is None or (input_of(node, 4) is not None and ints(input_of(node, 4)) != [1]):
        return None
    axis, end = norm_axis(axes[0], size), ends[0].dim()
    found = [d if isinstance(d, int) else d.value for d in shape]
    limit = found[axis]
    found[axis] = f"min({limit},{end})" if isinstance(limit, int) and end is not None else None
    return found


def _broadcast(node: ir.Node) -> list[int | str | None] | None:
    """Sizes that fit together: from ``n`` and ``min(512,n)`` comes ``n``, if anything."""
    shapes = [dims(v) for v in node.inputs if v is not None]
    if any(s is None for s in shapes):
        return None
    known: list[list[int | str | None]] = [
        [d if isinstance(d, int) else d.value for d in s] for s in shapes if s is not None
    ]
    size = max(map(len, known))
    ones: list[int | str | None] = [1] * size
    padded = [ones[: size - len(s)] + s for s in known]
    return [_fitting([s[axis] for s in padded]) for axis in range(size)]


def _fitting(sizes: list[int | str | None]) -> int | str | None:
    result: int | str | None = 1
    for size in sizes:
        if size in (1, result) or _is_cut(size, result):
            continue
        if result != 1 and not _is_cut(result, size):
            return None
        result = size
    return result


def _is_cut(size: int | str | None, whole: int | str | None) -> bool:
    """Whether the size is the other's, or less and then does not fit."""
    if not isinstance(size, str) or not isinstance(whole, str):
        return False
    return (
        size.startswith("min(") and size.endswith(f",{whole})") and not size.startswith("min(1,")
    )


_RULES: dict[str, Callable[[ir.Node], list[int | str | None] | None]] = {
    "Conv": _convolution,
    "MaxPool": _convolution,
    "AveragePool": _convolution,
    "Reshape": _reshape,
    "Expand": _expand,
    "ConstantOfShape": _constant_of_shape,
    "Range": _range,
    "Slice": _slice,
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Where", "And", "Or", "Equal"), _broadcast),
}
