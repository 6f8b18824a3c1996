"""Forms of a float graph that quantize well: plain operators, products that keep their bias."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import onnx_ir as ir

from optim_passes.builder import MICROSOFT
from optim_passes.rewriting import NodePass, require
from optim_passes.tensors import derived
from optim_passes.values import (
    attribute,
    constant,
    input_of,
    is_op,
    only_consumer,
    producer,
    rank,
    same_shape,
)

if TYPE_CHECKING:
    from optim_passes.builder import Builder

__all__ = ["NegatedResidualPass", "PlainOperatorsPass", "ProductBiasPass"]

FLOAT = ir.DataType.FLOAT

_PLAIN_ATTRIBUTES = frozenset({"activation", "activation_params"})


class PlainOperatorsPass(NodePass):
    """``FusedConv`` and ``FusedMatMul`` become the standard operators that they are made of.

    ONNX Runtime knows no integers for the fused ones.
    """

    op_types: ClassVar[frozenset[str]] = frozenset({"FusedConv", "FusedMatMul"})

    def rewrite(self, node: ir.Node, op: Builder) -> Any:
        """What the fused node computes, in steps."""
        if node.domain != MICROSOFT:
            return None
        return _convolution(node, op) if node.op_type == "FusedConv" else _product(node, op)


def _convolution(node: ir.Node, op: Builder) -> ir.Value:
    y = node.outputs[0]
    kept = {k: v for k, v in node.attributes.items() if k not in _PLAIN_ATTRIBUTES}
    made: ir.Value = op.node("Conv", *node.inputs[:3], like=y)
    for name, given in kept.items():
        made.producer().attributes[name] = given  # type: ignore[union-attr]
    residual = input_of(node, 3)
    if residual is not None:
        made = op.node("Add", made, residual, like=y)
    activation = attribute(node, "activation")
    if activation is None:
        return made
    numbers = attribute(node, "activation_params") or []
    if activation == "Clip":
        assert y.dtype is not None
        bounds = [op.number(x, y) for x in numbers]
        return op.node("Clip", made, *bounds, like=y)
    names = {"LeakyRelu": ("alpha",), "HardSigmoid": ("alpha", "beta")}.get(activation, ())
    named = dict(zip(names, numbers, strict=False))
    return op.node(activation, made, like=y, **named)


def _product(node: ir.Node, op: Builder) -> ir.Value:
    y = node.outputs[0]
    flags = ("transBatchA", "transBatchB")
    require(not any(attribute(node, f, 0) for f in flags), "it rearranges batch dims", node)
    operands = []
    for x, flag in zip(node.inputs, ("transA", "transB"), strict=True):
        size = rank(x)
        if attribute(node, flag, 0) and size != 1:
            require(size is not None, "the rank of what it transposes is not known", x)
            assert size is not None
            x = op.Transpose(x, perm=[*range(size - 2), size - 1, size - 2])
        operands.append(x)
    made: ir.Value = op.node("MatMul", *operands, like=y)
    alpha = attribute(node, "alpha", 1.0)
    return made if alpha == 1 else op.node("Mul", made, op.number(alpha, y), like=y)


class ProductBiasPass(NodePass):
    """``MatMul(x, W) + b`` becomes ``Gemm(x, W, b)`` where ``x`` is a matrix.

    ONNX Runtime would do so too, but only after it has lost sight of the integers of ``W``.
    """

    op_types: ClassVar[frozenset[str]] = frozenset({"Add"})

    def rewrite(self, node: ir.Node, op: Builder) -> Any:
        """The product with its bias."""
        if node.domain:
            return None
        for y, bias in (tuple(node.inputs), tuple(node.inputs)[::-1]):
            product = None if y is None else y.producer()
            if product is None or not is_op(product, "MatMul") or constant(bias) is None:
                continue
            x, weight = product.inputs
            if rank(x) != 2 or rank(weight) != 2 or rank(bias) != 1 or constant(weight) is None:
                continue
            if y is None or only_consumer(y) is not node or x is None:
                continue
            columns = constant(weight).shape.numpy()[1]  # type: ignore[union-attr]
            if constant(bias).shape.numpy() != (columns,):  # type: ignore[union-attr]
                continue
            return op.node("Gemm", x, weight, bias, like=node.outputs[0])
        return None


class NegatedResidualPass(NodePass):
    """``LayerNorm(r + (x @ W + b))`` becomes ``LayerNorm(r - (x @ -W + -b))``.

    The numbers are the same. ONNX Runtime would make an addition and a normalisation one
    ``SkipLayerNormalization``, whose CPU kernel (version 1.32) takes 2 to 8 times as long as both.
    """

    op_types: ClassVar[frozenset[str]] = frozenset({"LayerNormalization"})
    repeat: ClassVar[bool] = False

    def rewrite(self, node: ir.Node, op: Builder) -> Any:
        """The normalisation of the difference."""
        total = producer(node.inputs[0], "Add")
        if node.domain or total is None or len(node.outputs) > 1:
            return None
        if only_consumer(total.outputs[0]) is not node:
            return None
        for y, r in (tuple(total.inputs), tuple(total.inputs)[::-1]):
            if y is None or r is None or not same_shape(y, r) or constant(r) is not None:
                continue
            negated = _negated(y, op)
            if negated is not None:
                inputs = [op.Sub(r, negated), *node.inputs[1:]]
                return op.node(
                    "LayerNormalization", *inputs, like=node.outputs[0], attributes_of=node
                )
        return None


def _negated(y: ir.Value, op: Builder) -> ir.Value | None:
    """``-y`` for a product with constants, from constants with the other sign."""
    add = producer(y, "Add")
    product, bias = (y, None) if add is None else tuple(add.inputs)
    if add is not None and constant(product) is not None:
        product, bias = bias, product
    node = producer(product, "MatMul")
    weight = None if node is None else constant(node.inputs[1])
    offset = constant(bias)
    if node is None or weight is None or weight.dtype != FLOAT or only_consumer(y) is None:
        return None
    if product is None or only_consumer(product) is None or (add is not None and offset is None):
        return None
    matrix = op.constant(derived(np.negative, weight), f"{node.inputs[1].name}.negated")  # type: ignore[union-attr]
    made: ir.Value = op.node("MatMul", node.inputs[0], matrix, like=product)
    if offset is None or bias is None:
        return made
    return op.node("Add", made, op.constant(derived(np.negative, offset)), like=y)
