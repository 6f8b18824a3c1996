"""Products with constant matrices in the form that ONNX Runtime's CPU provider runs fastest.

ONNX Runtime turns ``MatMul`` and ``Add`` of more than two dims into ``Gemm`` between two Reshapes
when it loads a model of static sizes. Measured on version 1.32, a plain product and an addition
after it are 2 to 20 % faster. It leaves ``com.microsoft.FusedMatMul`` alone; that also takes a
weight as torch stores it, transposed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import onnx_ir as ir

from optim_passes.builder import MICROSOFT
from optim_passes.rewriting import NodePass
from optim_passes.scopes import in_loop
from optim_passes.values import (
    attribute,
    constant,
    dims,
    floats_of,
    input_of,
    ints,
    is_op,
    only_consumer,
    producer,
    rank,
    same_dim,
    same_shape,
)
from optim_passes.views import permutation

if TYPE_CHECKING:
    from optim_passes.builder import Builder

__all__ = [
    "GemmPass",
    "GemmToMatMulPass",
    "PlainProductPass",
    "PostNormResidualPass",
    "PreGeluBiasPass",
    "ProductOrderPass",
]

_DTYPES = (ir.DataType.FLOAT, ir.DataType.DOUBLE)


class GemmToMatMulPass(NodePass):
    """``Gemm(x, W, b)`` becomes ``MatMul(x, W) + b``, on ``x`` before it was made a matrix.

    The Reshape to a matrix moves behind it, where it mostly meets its inverse.
    """

    op_types: ClassVar[frozenset[str]] = frozenset({"Gemm"})

    def rewrite(self, node: ir.Node, op: Builder) -> Any:
        """The product and the sum."""
        x, weight, bias = node.inputs[0], node.inputs[1], input_of(node, 2)
        tensor = constant(weight)
        if node.domain or x is None or tensor is None or attribute(node, "transA", 0):
            return None
        if attribute(node, "alpha", 1.0) != 1 or x.dtype not in _DTYPES:
            return None
        if bias is not None and (attribute(node, "beta", 1.0) != 1 or rank(bias) != 1):
            return None
        if bias is not None and constant(bias) is None:
            return None
        if in_loop(op.scope) and _before_flattening(x) is x:
            return None  # one node of so little work is faster than two
        if attribute(node, "transB", 0):
            weight = op.Transpose(weight, perm=[1, 0])
        wide = _before_flattening(x)
        product = op.MatMul(wide, weight)
        y = product if bias is None else op.Add(product, bias)
        return y if wide is x else op.Reshape(y, [-1, (dims(y) or (0,))[-1]])


def _before_flattening(x: ir.Value) -> ir.Value:
    """What was reshaped into the matrix ``x`` with the same last axis, else ``x``."""
    reshape = producer(x, "Reshape")
    wide = None if reshape is None else reshape.inputs[0]
    size, flat = dims(wide), dims(x)
    if wide is None or not size or len(size) < 3 or flat is None or not isinstance(size[-1], int):
        return x
    return wide if same_dim(size[-1], flat[-1]) else x


class GemmPass(NodePass):
    """``x @ W + b`` becomes ``Gemm(x, W, b)`` where ``x`` is a matrix.

    One node of small matrices is up to three times as fast as two, and no slower of large ones
    (version 1.32); ONNX Runtime puts an activation behind it into it. Of more than two dims it
    would take a Reshape on either side.
    """

    op_types: ClassVar[frozenset[str]] = frozenset({"Add"})
    repeat: ClassVar[bool] = False

    def rewrite(self, node: ir.Node, op: Builder) -> Any:
        """The one node."""
        for y, bias in (list(node.inputs), list(node.inputs)[::-1]):
            product = None if node.domain else producer(y, "MatMul")
            if product is None or y is None or only_consumer(y) is None:
                continue
            x, weight = product.inputs
            turned = producer(weight, "Transpose")
            if turned is not None and permutation(turned) == [1, 0]:
                weight = turned.inputs[0]
            fits = x is not None and x.dtype in _DTYPES and rank(x) == rank(weight) == 2
            if not fits or constant(weight) is None or constant(bias) is None or rank(bias) != 1:
                continue
            transposed = None if weight is product.inputs[1] else 1
            return op.Gemm(x, weight, bias, transB=transposed)
        return None


class PlainProductPass(NodePass):
    """A product with a constant matrix becomes ``FusedMatMul``.

    That is where the matrix is transposed, where a constant is added to the product, and where a
    residual is, for :class:`PostNormResidualPass`.
    """

    op_types: ClassVar[frozenset[str]] = frozenset({"MatMul"})
    repeat: ClassVar[bool] = False

    def rewrite(self, node: ir.Node, op: Builder) -> Any:
        """The product in ONNX Runtime's own domain."""
        x, weight = node.inputs
        if node.domain or x is None or x.dtype not in _DTYPES or rank(x) in (None, 1):
            return None
        turned = producer(weight, "Transpose")
        if turned is not None and permutation(turned) == [1, 0]:
            source = turned.inputs[0]
            if constant(source) is not None:
                return op.ms("FusedMatMul", x, source, transB=1, like=node.outputs[0])
        if constant(weight) is None or rank(weight) != 2:
            return None
        after = only_consumer(node.outputs[0])
        if after is None or not is_op(after, "Add"):
            return None
        after_that = only_consumer(after.outputs[0])
        normed = after_that is not None and is_op(after_that, "LayerNormalization")
        if all(constant(v) is None for v in after.inputs) and not normed:
            return None
        return op.ms("FusedMatMul", x, weight, like=node.outputs[0])


class PostNormResidualPass(NodePass):
    """``LayerNorm(r + (x @ W + b))`` becomes ``LayerNorm(r - (-(x @ W) - b))``.

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
        for y, r in (list(total.inputs), list(total.inputs)[::-1]):
            negated = None if y is None or not same_shape(y, r) else _negated(y, op)
            if negated is None:
                continue
            inputs = [op.Sub(r, negated), *node.inputs[1:]]
            return op.node("LayerNormalization", *inputs, like=node.outputs[0], attributes_of=node)
        return None


def _negated(y: ir.Value, op: Builder) -> ir.Value | None:
    """``-y`` at no cost, where ``y`` is a product, with or without a bias."""
    add = producer(y, "Add")
    if add is None:
        node = _plain_product(y)
        if node is None:
            return None
        return op.ms("FusedMatMul", *node.inputs, like=y, attributes_of=node, alpha=-1.0)
    if only_consumer(y) is None:
        return None
    product, bias = add.inputs
    if constant(product) is not None:
        product, bias = bias, product
    node = None if product is None else _plain_product(product)
    if node is None or product is None or constant(bias) is None:
        return None
    made = op.ms("FusedMatMul", *node.inputs, like=product, attributes_of=node, alpha=-1.0)
    return op.Sub(made, bias)


def _plain_product(y: ir.Value) -> ir.Node | None:
    """The product with a constant matrix that ``y`` alone is, if nothing else reads it."""
    node = producer(y, "FusedMatMul", domain=MICROSOFT)
    if node is None or constant(node.inputs[1]) is None or only_consumer(y) is None:
        return None
    return None if "alpha" in node.attributes else node


class PreGeluBiasPass(NodePass):
    """``Gelu(x @ W + b)`` becomes ``Gelu(x @ W - (-b))``.

    The numbers are the same. ONNX Runtime would make the addition and the activation one
    ``BiasGelu``, whose CPU kernel (version 1.32) takes 1.4 to 2 times as long as both.
    """

    op_types: ClassVar[frozenset[str]] = frozenset({"Gelu"})
    repeat: ClassVar[bool] = False

    def rewrite(self, node: ir.Node, op: Builder) -> Any:
        """The activation of the difference."""
        add = producer(node.inputs[0], "Add")
        if node.domain or add is None or only_consumer(add.outputs[0]) is not node:
            return None
        y, bias = add.inputs
        if constant(y) is not None:
            y, bias = bias, y
        array = floats_of(bias)
        if y is None or array is None or rank(bias) != 1 or _plain_product(y) is None:
            return None
        return op.node("Gelu", op.Sub(y, -array), like=node.outputs[0], attributes_of=node)


class ProductOrderPass(NodePass):
    """A product with a constant matrix, or a bias, goes before a rearrangement of its rows.

    ``f(Reshape(x))`` becomes ``Reshape(f(x))`` where what follows is the inverse Reshape, and the
    same for a Transpose.
    """

    op_types: ClassVar[frozenset[str]] = frozenset({"MatMul", "Add"})

    def rewrite(self, node: ir.Node, op: Builder) -> Any:
        """The rearrangement of the product."""
        y, parameter = node.inputs
        if node.op_type == "Add" and constant(y) is not None:
            y, parameter = parameter, y
        moved = producer(y, "Reshape", "Transpose")
        x = None if moved is None else moved.inputs[0]
        if (
            node.domain
            or moved is None
            or x is None
            or y is None
            or not _is_row_map(node, parameter)
        ):
            return None
        shape, last = dims(x), (dims(y) or (None,))[-1]
        if not shape or len(shape) < 2 or not same_dim(shape[-1], last):
            return None
        out = dims(node.outputs[0])
        if out is None or not isinstance(out[-1], int):
            return None
        if moved.op_type == "Transpose":
            perm = permutation(moved)
            after = _next_rearrangement(node, "Transpose")
            following = None if after is None else permutation(after)
            if perm is None or following is None or perm[-1] != len(perm) - 1:
                return None
            if [perm[i] for i in following] != sorted(perm):
                return None
            return op.Transpose(_map(node, x, parameter, op), perm=perm)
        target, after = ints(moved.inputs[1]), _next_rearrangement(node, "Reshape")
        back = None if after is None else dims(after.outputs[0])
        if target is None or back is None or len(back) != len(shape):
            return None
        if not all(map(same_dim, back[:-1], shape[:-1])):
            return None
        return op.Reshape(_map(node, x, parameter, op), [*target[:-1], out[-1]])


def _map(node: ir.Node, x: ir.Value, parameter: ir.Value | None, op: Builder) -> ir.Value:
    made: ir.Value = op.node(node.op_type, x, parameter)
    return made


def _is_row_map(node: ir.Node, parameter: ir.Value | None) -> bool:
    """Whether the node treats rows alike: a product with a matrix, an added row."""
    turned = producer(parameter, "Transpose")
    known = constant(parameter if turned is None else turned.inputs[0]) is not None
    if node.op_type == "MatMul":
        return known and parameter is node.inputs[1] and rank(parameter) == 2
    return known and turned is None and rank(parameter) == 1


def _next_rearrangement(node: ir.Node, op_type: str) -> ir.Node | None:
    """The rearrangement that alone reads the result, over an added row."""
    after = only_consumer(node.outputs[0])
    if after is not None and is_op(after, "Add") and node.op_type == "MatMul":
        after = only_consumer(after.outputs[0])
    return after if after is not None and is_op(after, op_type) else None
