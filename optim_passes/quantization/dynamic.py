"""Dynamic 8-bit integers: weights are stored as integers, activations become integers as they come.

For ONNX Runtime's CPU provider. Convolutions stay in floating point: its ConvInteger (version 1.32)
takes 3 to 7 times as long as the float convolution.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from optim_passes.builder import Builder
from optim_passes.quantization.arithmetic import Affine, quantize, symmetric_scales
from optim_passes.quantization.placement import FLOAT, is_kernel
from optim_passes.quantization.recurrent import gru_refusal, scanned_gru
from optim_passes.rewriting import Outcome, Pass, commit
from optim_passes.scopes import Names
from optim_passes.values import (
    attribute,
    constant,
    dims,
    input_of,
    is_op,
    only_consumer,
    rank,
    same_dim,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from optim_passes.scopes import Scope

__all__ = ["DynamicQuantizationPass", "recurrent_refusal", "with_bias"]


class DynamicQuantizationPass(Pass):
    """``x @ W + b`` becomes ``DynamicQuantizeMatMul(x, Q(W), b)``.

    An LSTM becomes ``DynamicQuantizeLSTM``, a large GRU a Scan.
    Products that read the same value share its integers.

    Args:
        wanted: Whether a node may compute in integers; every one unless given.
        weight_most: The integer that the largest weight becomes.
        per_channel: Whether each output channel has a scale of its own.
    """

    def __init__(
        self,
        *,
        wanted: Callable[[ir.Node], bool] | None = None,
        weight_most: int = 127,
        per_channel: bool = True,
    ) -> None:
        super().__init__()
        self.wanted = wanted or (lambda _: True)
        self.weight_most = weight_most
        self.per_channel = per_channel

    def run(self, scope: Scope, outcome: Outcome) -> None:
        """Quantize the products and LSTMs of one body."""
        if scope.function is not None:
            return
        names = Names(scope.model)
        readers: dict[ir.Value, list[ir.Node]] = {}
        for node in list(scope.body):
            if is_op(node, "MatMul", "Gemm") and is_kernel(node) and self.wanted(node):
                x = node.inputs[0]
                assert x is not None
                if rank(x) == 1:
                    self.refuse(outcome, node, "it multiplies a vector", x)
                    continue
                readers.setdefault(x, []).append(node)
            elif is_op(node, "LSTM") and self.wanted(node):
                outcome.rewrites += self._lstm(node, scope, names, outcome)
            elif is_op(node, "GRU") and self.wanted(node):
                outcome.rewrites += self._gru(node, scope, names, outcome)
            elif is_op(node, "Conv", "ConvTranspose", "RNN") and self.wanted(node):
                reason = "ONNX Runtime has no fast kernel that makes integers of its input"
                self.refuse(outcome, node, reason, None)
        for nodes in readers.values():
            self._products(nodes, scope, names)
            outcome.rewrites += len(nodes)

    def _products(self, nodes: list[ir.Node], scope: Scope, names: Names) -> None:
        shared = None
        x = nodes[0].inputs[0]  # a product before it may have been replaced
        assert x is not None
        if len(nodes) > 1:
            op = Builder(scope, names, [nodes[0]])
            shared = op.node("DynamicQuantizeLinear", x, outputs=3)
            scope.body.insert_before(nodes[0], op.nodes)
        for node in nodes:
            self._product(x, node, shared, scope, names)

    def _product(
        self, x: ir.Value, node: ir.Node, shared: Any, scope: Scope, names: Names
    ) -> None:
        value = node.inputs[1]
        tensor = constant(value)
        assert tensor is not None
        assert value is not None
        matrix = tensor.numpy()
        if attribute(node, "transB", 0):
            matrix = matrix.T
        last, bias = with_bias(node, matrix.shape[1])
        op = Builder(scope, names, [last])
        weight, affine = self._integers(matrix, 1)
        stored = op.constant(weight, f"{value.name}.quantized")
        scale, zero = op.constant(affine.scale), op.constant(affine.zero_point)
        like = last.outputs[0]
        if shared is None:
            y = op.ms("DynamicQuantizeMatMul", x, stored, scale, zero, bias, like=like)
        else:
            q, scale_x, zero_x = shared
            y = op.ms(
                "MatMulIntegerToFloat", q, stored, scale_x, scale, zero_x, zero, bias, like=like
            )
        commit(op, last, last.outputs, [y], [last] if last is node else [last, node])

    def _integers(self, array: Any, axis: int) -> tuple[Any, Affine]:
        along = axis if self.per_channel else None
        scales = symmetric_scales(array, along, self.weight_most)
        affine = Affine(scales, np.zeros(scales.shape, np.int8))
        return np.ascontiguousarray(quantize(array, affine, along)), affine

    def _lstm(self, node: ir.Node, scope: Scope, names: Names, outcome: Outcome) -> bool:
        """An LSTM whose two products are done on integers."""
        reason = _lstm_refusal(node)
        if reason is not None:
            self.refuse(outcome, node, reason, None)
            return False
        weights = [constant(v) for v in node.inputs[1:3]]
        op = Builder(scope, names, [node])
        stored, parameters = [], []
        for value, tensor in zip(node.inputs[1:3], weights, strict=True):
            array = tensor.numpy()  # type: ignore[union-attr]
            directions, gates, size = array.shape
            integers, affine = self._integers(array.reshape(directions * gates, size), 0)
            turned = integers.reshape(array.shape).transpose(0, 2, 1)
            stored.append(op.constant(np.ascontiguousarray(turned), f"{value.name}.quantized"))  # type: ignore[union-attr]
            shape = (directions, gates) if affine.scale.ndim else (1,)
            parameters += [
                op.constant(affine.scale.reshape(shape)),
                op.constant(affine.zero_point.reshape(shape)),
            ]
        others = [input_of(node, i) for i in range(3, 8)]
        made = op.ms(
            "DynamicQuantizeLSTM", node.inputs[0], *stored, *others, *parameters,
            outputs=len(node.outputs), attributes_of=node, layout=None,
        )  # fmt: skip
        values = [made] if isinstance(made, ir.Value) else list(made)
        for old, new in zip(node.outputs, values, strict=True):
            new.type, new.shape = old.type, old.shape
        commit(op, node, node.outputs, values, [node])
        return True

    def _gru(self, node: ir.Node, scope: Scope, names: Names, outcome: Outcome) -> bool:
        reason = gru_refusal(node)
        if reason is not None:
            self.refuse(outcome, node, reason, None)
            return False
        op = Builder(scope, names, [node])
        values = scanned_gru(node, op, names, self._integers)
        for old, new in zip(node.outputs, values, strict=True):
            new.type, new.shape = old.type, old.shape
        commit(op, node, node.outputs, values, [node])
        return True


def recurrent_refusal(node: ir.Node) -> str | None:
    """Why an LSTM or GRU stays in floating point; None if it need not."""
    return gru_refusal(node) if node.op_type == "GRU" else _lstm_refusal(node)


def _lstm_refusal(node: ir.Node) -> str | None:
    weights = [constant(v) for v in node.inputs[1:3]]
    if any(t is None or t.dtype != FLOAT for t in weights):
        return "its weights are not constant float32"
    if attribute(node, "layout", 0) or attribute(node, "input_forget", 0):
        return "its layout has no kernel for integers"
    return None


def with_bias(node: ir.Node, columns: int) -> tuple[ir.Node, ir.Value | None]:
    """The node that adds a bias to the product, and the bias; the product itself without one."""
    if node.op_type == "Gemm":
        return node, input_of(node, 2)
    after = only_consumer(node.outputs[0])
    if after is None or not is_op(after, "Add") or after.graph is not node.graph:
        return node, None
    bias = after.inputs[1] if after.inputs[0] is node.outputs[0] else after.inputs[0]
    tensor = constant(bias)
    if tensor is None or tuple(tensor.shape.numpy()) != (columns,):
        return node, None
    size, product = dims(after.outputs[0]), dims(node.outputs[0])
    if size is not None and product is not None and not same_dim(size[-1], product[-1]):
        return node, None  # a column that the bias broadcasts
    return after, bias
