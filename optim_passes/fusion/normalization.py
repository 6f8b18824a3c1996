"""Normalisation written out becomes ``LayerNormalization`` or ``RMSNormalization``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import onnx_ir as ir

from optim_passes.rewriting import NodePass, require, require_opset
from optim_passes.values import (
    attribute,
    constant,
    dims,
    input_of,
    ints,
    is_scalar,
    norm_axis,
    only_consumer,
    producer,
    rank,
    scalar,
)

if TYPE_CHECKING:
    from optim_passes.builder import Builder

__all__ = ["FactoredNormPass", "NormAffinePass", "NormPass"]

_DTYPES = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)


class NormPass(NodePass):
    """``d / sqrt(mean(d ** 2) + epsilon)`` becomes a normalisation with a scale of ones.

    With ``d = x - mean(x)`` it is ``LayerNormalization`` (opset 17), with ``d = x``
    ``RMSNormalization`` (opset 23). The means are over the last axes, whose sizes are static. The
    scale may be multiplied before the division.
    """

    op_types: ClassVar[frozenset[str]] = frozenset({"Div", "Mul"})

    def rewrite(self, node: ir.Node, op: Builder) -> Any:
        """The normalisation."""
        if node.domain:
            return None
        d, deviation = node.inputs
        root = producer(deviation, "Sqrt") if node.op_type == "Div" else None
        if node.op_type == "Mul":
            d, root = _reciprocal_root(node)
        if d is None or root is None:
            return None
        found, factor = _mean_square(root.inputs[0], d), None
        scaled = producer(d, "Mul") if found is None else None
        for part, other in () if scaled is None else (scaled.inputs, scaled.inputs[::-1]):
            if found is None and part is not None:
                found, d, factor = _mean_square(root.inputs[0], part), part, other
        if found is None:
            return None
        axes, epsilon = found
        x = _centred(d, axes)
        centred = x is not None
        x = x if x is not None else d
        shape, size = dims(x), rank(x)
        require(shape is not None and size is not None, "the rank is not known", x)
        assert shape is not None
        assert size is not None
        first = min(axes)
        require(sorted(axes) == list(range(first, size)), "the axes are not the last ones", node)
        tail = shape[first:]
        require(all(isinstance(n, int) for n in tail), "the size of the axes varies", x)
        require(0 not in tail, "there is nothing to normalise", x)
        require(x.dtype in _DTYPES, "the dtype has no kernel", x)
        require_opset(op, 17 if centred else 23)
        ones = op.constant(np.ones([int(n) for n in tail], x.dtype.numpy()))  # type: ignore[union-attr, arg-type]
        name = "LayerNormalization" if centred else "RMSNormalization"
        y = op.node(name, x, ones, axis=first - size, epsilon=float(epsilon))
        return y if factor is None else op.Mul(y, factor)


def _reciprocal_root(node: ir.Node) -> tuple[ir.Value | None, ir.Node | None]:
    """``d`` and the Sqrt of ``d * (1 / sqrt(v))``."""
    for d, factor in (list(node.inputs), list(node.inputs)[::-1]):
        inverse = producer(factor, "Reciprocal", "Div", "Pow")
        if inverse is None:
            continue
        if inverse.op_type == "Reciprocal":
            return d, producer(inverse.inputs[0], "Sqrt")
        if inverse.op_type == "Div" and scalar(inverse.inputs[0]) == 1:
            return d, producer(inverse.inputs[1], "Sqrt")
        if inverse.op_type == "Pow" and scalar(inverse.inputs[1]) == -0.5:
            return d, inverse
    return None, None


def _mean_square(value: ir.Value | None, d: ir.Value) -> tuple[list[int], float] | None:
    """Axes and epsilon of ``mean(d ** 2) + epsilon``."""
    add = producer(value, "Add")
    if add is None:
        return None
    for mean, number in (list(add.inputs), list(add.inputs)[::-1]):
        epsilon = scalar(number)
        axes = _mean_axes(mean)
        if epsilon is None or axes is None or not is_scalar(number):
            continue
        reduce = _reduction(mean)
        assert reduce is not None
        if _is_square(reduce.inputs[0], d):
            return axes, float(epsilon)
    return None


def _mean_axes(value: ir.Value | None) -> list[int] | None:
    """The axes of a ReduceMean that keeps the rank."""
    node = _reduction(value)
    size = None if node is None else rank(node.inputs[0])
    if node is None or size is None:
        return None
    axes = attribute(node, "axes") if len(node.inputs) < 2 else ints(node.inputs[1])
    return None if not axes else [norm_axis(a, size) for a in axes]


def _reduction(value: ir.Value | None) -> ir.Node | None:
    """The ReduceMean that keeps the rank, or over the last axis that is put back after it."""
    node = producer(value, "ReduceMean", "Unsqueeze", "Reshape")
    if node is None or node.op_type == "ReduceMean":
        return node if node is not None and attribute(node, "keepdims", 1) else None
    reduce, size = producer(node.inputs[0], "ReduceMean"), rank(value)
    if reduce is None or size is None or rank(reduce.inputs[0]) != size:
        return None
    axes = attribute(reduce, "axes") if len(reduce.inputs) < 2 else ints(reduce.inputs[1])
    placed = ints(input_of(node, 1))
    if attribute(reduce, "keepdims", 1) or axes not in ([-1], [size - 1]) or placed is None:
        return None
    if node.op_type == "Unsqueeze":
        return reduce if placed in ([-1], [size - 1]) else None
    kept = placed[:-1] == [0] * (size - 1) or placed[:-1] == [*[0] * (size - 2), -1]
    return reduce if placed[-1] == 1 and kept and not attribute(node, "allowzero", 0) else None


def _is_square(value: ir.Value | None, d: ir.Value) -> bool:
    node = producer(value, "Pow", "Mul")
    if node is None:
        return False
    if node.op_type == "Pow":
        return _same(node.inputs[0], d) and scalar(node.inputs[1]) == 2
    return node.inputs[0] is node.inputs[1] and _same(node.inputs[0], d)


def _same(a: ir.Value | None, b: ir.Value) -> bool:
    """Whether two values are one, or the same difference computed twice."""
    first, second = producer(a, "Sub"), producer(b, "Sub")
    if a is b or first is None or second is None:
        return a is b
    return list(first.inputs) == list(second.inputs)


def _centred(d: ir.Value, axes: list[int]) -> ir.Value | None:
    """``x`` where ``d`` is ``x - mean(x)`` over the same axes."""
    node = producer(d, "Sub")
    if node is None or _mean_axes(node.inputs[1]) != axes:
        return None
    reduce = _reduction(node.inputs[1])
    assert reduce is not None
    return node.inputs[0] if reduce.inputs[0] is node.inputs[0] else None


class FactoredNormPass(NodePass):
    """``x * k + (shift - mean(x) * k)`` with ``k = scale / sqrt(variance + epsilon)``: one node.

    That is how Keras writes ``LayerNormalization`` (opset 17), and how it leaves tf2onnx.
    """

    op_types: ClassVar[frozenset[str]] = frozenset({"Add"})

    def rewrite(self, node: ir.Node, op: Builder) -> Any:
        """The normalisation with scale and shift."""
        if node.domain:
            return None
        for first, second in (list(node.inputs), list(node.inputs)[::-1]):
            scaled, rest = producer(first, "Mul"), producer(second, "Sub")
            moved = None if rest is None else producer(rest.inputs[1], "Mul")
            if scaled is None or rest is None or moved is None:
                continue
            for x, k in (list(scaled.inputs), list(scaled.inputs)[::-1]):
                mean = [v for v in moved.inputs if v is not k]
                if x is None or k is None or len(mean) != 1 or k not in moved.inputs:
                    continue
                made = self._fuse(x, mean[0], k, rest.inputs[0], op)
                if made is not None:
                    return made
        return None

    def _fuse(
        self, x: ir.Value, mean: ir.Value | None, k: ir.Value, shift: ir.Value | None, op: Builder
    ) -> ir.Value | None:
        axes, reduce = _mean_axes(mean), _reduction(mean)
        inverse, product = producer(k, "Mul"), None
        size, width = rank(x), (dims(x) or (None,))[-1]
        if reduce is None or reduce.inputs[0] is not x or inverse is None or size is None:
            return None
        for root, scale in (list(inverse.inputs), list(inverse.inputs)[::-1]):
            if dims(scale) != (width,) or dims(shift) != (width,):
                continue
            product = _inverse_root(root)
            total = None if product is None else product.inputs[0]
            add = producer(total, "Add")
            squares = [] if add is None else [producer(v, "ReduceMean") for v in add.inputs]
            square = next((s for s in squares if s is not None), None)
            d = None if square is None else producer(square.inputs[0], "Mul", "Pow")
            if d is None or d.inputs[0] is None or _centred(d.inputs[0], axes or []) is not x:
                continue
            found = _mean_square(total, d.inputs[0])
            if found is None or found[0] != axes or axes != [size - 1]:
                continue
            require_opset(op, 17)
            require(x.dtype in _DTYPES, "the dtype has no kernel", x)
            y: ir.Value = op.LayerNormalization(x, scale, shift, axis=-1, epsilon=found[1])
            return y
        return None


def _inverse_root(value: ir.Value | None) -> ir.Node | None:
    """The Sqrt of ``1 / sqrt(v)``."""
    node = producer(value, "Reciprocal", "Div")
    if node is None:
        return None
    if node.op_type == "Div" and scalar(node.inputs[0]) != 1:
        return None
    return producer(node.inputs[-1], "Sqrt")


class NormAffinePass(NodePass):
    """A scale and a shift after a normalisation become its own."""

    op_types: ClassVar[frozenset[str]] = frozenset({"Mul", "Add"})

    def rewrite(self, node: ir.Node, op: Builder) -> Any:
        """The normalisation with the scale or shift."""
        if node.domain:
            return None
        for y, parameter in (list(node.inputs), list(node.inputs)[::-1]):
            norm = producer(y, "LayerNormalization", "RMSNormalization")
            if norm is None or y is None or parameter is None:
                continue
            if norm.op_type == "RMSNormalization" and node.op_type == "Add":
                continue
            taken = self._absorb(node, norm, parameter, op)
            if taken is None:
                continue
            require(only_consumer(y) is not None, "the normalised value has another use", y)
            return taken
        return None

    def _absorb(
        self, node: ir.Node, norm: ir.Node, parameter: ir.Value, op: Builder
    ) -> ir.Value | None:
        scale, bias = norm.inputs[1], input_of(norm, 2)
        if scale is None or dims(parameter) != dims(scale) or parameter.dtype != scale.dtype:
            return None
        if node.op_type == "Add":
            if bias is not None:
                return None
            bias = parameter
        else:
            ones = constant(scale)
            if ones is None or bias is not None or not bool(np.all(ones.numpy() == 1)):
                return None
            scale = parameter
        return op.node(
            norm.op_type, norm.inputs[0], scale, bias, like=node.outputs[0], attributes_of=norm
        )
