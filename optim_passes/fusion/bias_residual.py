"""Biases and residual sums that ONNX Runtime's CUDA provider takes into the kernel after them.

A product, its bias, a residual sum and a normalisation are four kernels that each read and write
everything; with these passes they are two.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import onnx_ir as ir

from optim_passes.builder import Builder
from optim_passes.rewriting import NodePass, commit, require
from optim_passes.tensors import derived
from optim_passes.values import (
    attribute,
    constant,
    dims,
    input_of,
    norm_axis,
    only_consumer,
    producer,
    rank,
    same_shape,
)

if TYPE_CHECKING:
    from optim_passes.scopes import Names, Scope

__all__ = ["AttentionBiasPass", "BiasGeluPass", "SkipLayerNormPass"]


def _without_bias(value: ir.Value | None) -> tuple[ir.Value, ir.Value] | None:
    """What a constant row is added to, and that row; None where there is none, or others read it."""
    add = producer(value, "Add")
    if add is None or only_consumer(add.outputs[0]) is None:
        return None
    x, bias = add.inputs
    if constant(x) is not None:
        x, bias = bias, x
    tensor, shape = constant(bias), dims(x)
    if x is None or bias is None or tensor is None or not shape or len(tensor.shape) != 1:
        return None
    return (x, bias) if tensor.shape[0] == shape[-1] else None


class SkipLayerNormPass(NodePass):
    """``LayerNorm(x + skip)`` becomes ``com.microsoft.SkipLayerNormalization(x, skip)``.

    A bias that is added to ``x`` comes along; the sum comes out too where it is read again, as in
    networks that normalise first.
    """

    op_types: ClassVar[frozenset[str]] = frozenset({"LayerNormalization"})

    def rewrite(self, node: ir.Node, op: Builder) -> Any:
        """Not used: two values are replaced."""
        raise NotImplementedError

    def _apply(self, node: ir.Node, scope: Scope, names: Names) -> bool:
        total = producer(node.inputs[0], "Add")
        size = rank(node.inputs[0])
        if node.domain or total is None or total.graph is not node.graph or size not in (2, 3):
            return False
        if len(node.outputs) > 1 or norm_axis(attribute(node, "axis", -1), size) != size - 1:
            return False
        x, skip = total.inputs
        if x is None or skip is None or not same_shape(x, skip):
            return False
        for parameter in node.inputs[1:]:
            known = parameter is None or parameter.is_initializer()
            require(known, "scale or bias is computed", parameter)
        bias = None
        for first, second in ((x, skip), (skip, x)):
            found = _without_bias(first)
            if found is not None:
                (x, bias), skip = found, second
                break
        op = Builder(scope, names, [node, total])
        with op.discarding():
            y, mean, deviation, summed = op.ms(
                "SkipLayerNormalization", x, skip, node.inputs[1], input_of(node, 2), bias,
                epsilon=attribute(node, "epsilon", 1e-5), outputs=4, like=node.outputs[0],
            )  # fmt: skip
        mean.name = deviation.name = ""  # only training asks for these
        summed.type, summed.shape = total.outputs[0].type, total.outputs[0].shape
        commit(op, total, [total.outputs[0], node.outputs[0]], [summed, y], [total, node])
        return True


class BiasGeluPass(NodePass):
    """``Gelu(x + bias)`` becomes ``com.microsoft.BiasGelu(x, bias)``."""

    op_types: ClassVar[frozenset[str]] = frozenset({"Gelu"})

    def rewrite(self, node: ir.Node, op: Builder) -> Any:
        """Both in one."""
        if attribute(node, "approximate", "none") != "none":
            return None
        found = _without_bias(node.inputs[0])
        if found is None:
            return None
        return op.ms("BiasGelu", *found, like=node.outputs[0])


class AttentionBiasPass(NodePass):
    """Rows that are added to queries, keys and values become the bias of the attention."""

    op_types: ClassVar[frozenset[str]] = frozenset({"MultiHeadAttention"})

    def rewrite(self, node: ir.Node, op: Builder) -> Any:
        """The attention of the products alone."""
        operands = list(node.inputs[:3])
        if len(operands) < 3 or input_of(node, 3) is not None or len(node.inputs) > 6:
            return None
        if any(x is None or rank(x) != 3 for x in operands):
            return None
        found = [_without_bias(x) for x in operands]
        if all(f is None for f in found):
            return None
        widths: list[int] = []
        for x in operands:
            width = (dims(x) or (None,))[-1]
            require(isinstance(width, int), "the width varies", node)
            assert isinstance(width, int)
            widths.append(width)
        kind = None if operands[0] is None else operands[0].dtype
        require(kind is not None, "the dtype is not known", node)
        assert kind is not None
        rows = []
        for each, width in zip(found, widths, strict=True):
            tensor = None if each is None else constant(each[1])
            zeros = ir.tensor(np.zeros(width, kind.numpy()), dtype=kind)
            rows.append(zeros if tensor is None else tensor)
        bias = derived(lambda *parts: np.concatenate(parts), *rows, shape=[sum(widths)])
        inputs = [x if f is None else f[0] for x, f in zip(operands, found, strict=True)]
        return op.ms(
            "MultiHeadAttention", *inputs, op.constant(bias), input_of(node, 4), input_of(node, 5),
            attributes_of=node, like=node.outputs[0],
        )  # fmt: skip
