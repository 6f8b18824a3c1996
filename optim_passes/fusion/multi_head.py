"""Attention as ONNX Runtime's CUDA provider runs it fastest: its own operator, on packed products.

``com.microsoft.MultiHeadAttention`` reaches the flash kernels in 16 bits. It reads queries, keys
and values from one product, which is one kernel launch in place of three and needs no copies.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import onnx_ir as ir

from optim_passes.rewriting import NodePass, require
from optim_passes.tensors import derived
from optim_passes.values import (
    attribute,
    constant,
    dims,
    input_of,
    only_consumer,
    producer,
    rank,
    same_dim,
)
from optim_passes.views import permutation

if TYPE_CHECKING:
    from optim_passes.builder import Builder

__all__ = ["MultiHeadAttentionPass", "PackedAttentionPass"]

_LOWEST = -3e4  # masks in 16 bits too, with room for what is added to it


class MultiHeadAttentionPass(NodePass):
    """``Attention`` of opset 23 becomes ``com.microsoft.MultiHeadAttention``.

    Refused where heads share keys, scores are capped, a cache goes in or weights come out.
    """

    op_types: ClassVar[frozenset[str]] = frozenset({"Attention"})

    def rewrite(self, node: ir.Node, op: Builder) -> Any:
        """The attention in ONNX Runtime's own domain."""
        if node.domain:
            return None
        require(len(node.inputs) <= 4, "it has a cache of keys and values", node)
        require(len(node.outputs) == 1, "it returns more than the result", node)
        require(not attribute(node, "softcap", 0.0), "it caps the scores", node)
        query, key, value = node.inputs[:3]
        assert query is not None
        flat = rank(query) == 3
        heads = attribute(node, "q_num_heads") if flat else (dims(query) or (None, None))[1]
        shared = attribute(node, "kv_num_heads") if flat else (dims(key) or (None, None))[1]
        require(isinstance(heads, int), "the number of heads is not static", query)
        require(heads == shared, "heads share keys", key)
        causal = bool(attribute(node, "is_causal", 0))
        if causal:
            lengths = [(dims(x) or (None,) * 4)[1 if flat else 2] for x in (query, key)]
            require(same_dim(*lengths), "it is causal with a cache", key)
        size = (dims(value) or (None,))[-1]
        require(flat or isinstance(size, int), "the head size varies", value)
        bias = _bias(input_of(node, 3), query, key, op, flat=flat)
        operands = [query, key, value] if flat else [_flat(x, op) for x in node.inputs[:3]]
        y = op.ms(
            "MultiHeadAttention", *operands, None, None, bias, num_heads=heads,
            scale=attribute(node, "scale"), unidirectional=int(causal) or None,
            like=node.outputs[0] if flat else operands[0],
        )  # fmt: skip
        if flat:
            return y
        return op.Transpose(op.Reshape(y, [0, 0, heads, size]), perm=[0, 2, 1, 3])


def _flat(x: ir.Value | None, op: Builder) -> ir.Value:
    """``[batch, sequence, heads * size]`` from ``[batch, heads, sequence, size]``."""
    shape = dims(x)
    known = shape is not None and isinstance(shape[1], int) and isinstance(shape[3], int)
    require(known, "number or size of heads varies", x)
    assert shape is not None
    width = int(shape[1]) * int(shape[3])  # type: ignore[arg-type]
    made: ir.Value = op.Reshape(op.Transpose(x, perm=[0, 2, 1, 3]), [0, 0, width])
    return made


def _bias(
    mask: ir.Value | None, query: ir.Value, key: ir.Value | None, op: Builder, *, flat: bool
) -> ir.Value | None:
    """What is added to the scores, of all queries and all keys: the kernels broadcast no others."""
    if mask is None:
        return None
    shape = dims(mask)
    require(shape is not None and mask.dtype is not None, "the mask's rank is unknown", mask)
    assert shape is not None
    if mask.dtype == ir.DataType.BOOL:
        mask = op.Where(mask, op.number(0, query), op.number(_LOWEST, query))
    if len(shape) < 4:
        mask = op.Unsqueeze(mask, list(range(4 - len(shape))))
        shape = (*([1] * (4 - len(shape))), *shape)
    axis = 1 if flat else 2
    wanted = [(dims(x) or (None,) * 4)[axis] for x in (query, key)]
    if all(same_dim(a, b) for a, b in zip(shape[-2:], wanted, strict=True)):
        return mask
    sizes = [op.Shape(x, start=axis, end=axis + 1) for x in (query, key)]
    made: ir.Value = op.Expand(mask, op.Concat(np.array([1, 1], np.int64), *sizes, axis=0))
    return made


class PackedAttentionPass(NodePass):
    """Three products of the same values become one, whose heads lie as packed attention reads them.

    ``MultiHeadAttention(x @ Q + q, x @ K + k, x @ V + v)`` becomes
    ``MultiHeadAttention(reshape(x @ W + b, [.., heads, 3, size]))``. The CUDA provider only.
    """

    op_types: ClassVar[frozenset[str]] = frozenset({"MultiHeadAttention"})

    def rewrite(self, node: ir.Node, op: Builder) -> Any:
        """The attention on one product."""
        operands = list(node.inputs[:3])
        if len(operands) < 3 or any(x is None or rank(x) != 3 for x in operands):
            return None
        if any(input_of(node, i) is not None for i in (3, 4, 6, 7)):
            return None
        parts = [_product(x) for x in operands]
        if any(p is None for p in parts):
            return None
        sources = {p[0] for p in parts if p is not None}
        require(len(sources) == 1, "queries, keys and values are made of different values", node)
        weights = [p[1] for p in parts if p is not None]
        biases = [p[2] for p in parts if p is not None]
        heads = attribute(node, "num_heads")
        rows, width = weights[0].shape.numpy()
        same = all(w.shape.numpy() == (rows, width) for w in weights)
        require(same and width % heads == 0, "queries, keys and values differ in size", node)
        size = width // heads

        def packed(*arrays: Any) -> Any:
            split = [a.reshape(-1, heads, size) for a in arrays]
            return np.stack(split, axis=2).reshape((*arrays[0].shape[:-1], 3 * width))

        weight = derived(packed, *weights, shape=[rows, 3 * width])
        y = op.MatMul(sources.pop(), op.constant(weight))
        if any(b is not None for b in biases):
            dtype = weights[0].dtype
            zero = ir.tensor(np.zeros(width, dtype.numpy()), dtype=dtype)
            rows_of_bias = [zero if b is None else b for b in biases]
            y = op.Add(y, op.constant(derived(packed, *rows_of_bias, shape=[3 * width])))
        y = op.Reshape(y, [0, 0, heads, 3, size])
        return op.ms(
            "MultiHeadAttention", y, None, None, None, None, input_of(node, 5),
            attributes_of=node, like=node.outputs[0],
        )  # fmt: skip


def _product(
    value: ir.Value | None,
) -> tuple[ir.Value, ir.TensorProtocol, ir.TensorProtocol | None] | None:
    """What is multiplied, the matrix that it is multiplied with, and what is added."""
    bias = None
    add = producer(value, "Add")
    if add is not None:
        if only_consumer(add.outputs[0]) is None:
            return None
        value, other = add.inputs
        if constant(value) is not None:
            value, other = other, value
        bias = constant(other)
        if bias is None or len(bias.shape) != 1:
            return None
    node = producer(value, "MatMul")
    if node is None or node.inputs[0] is None or only_consumer(node.outputs[0]) is None:
        return None
    weight = constant(node.inputs[1])
    if weight is None:
        turned = producer(node.inputs[1], "Transpose")
        weight = None if turned is None else constant(turned.inputs[0])
        if weight is None or turned is None or permutation(turned) != [1, 0]:
            return None
        rows, columns = weight.shape.numpy()
        weight = derived(np.transpose, weight, shape=[columns, rows])
    if len(weight.shape) != 2:
        return None
    return node.inputs[0], weight, bias
