"""Weights stored as integers of 4 or 8 bits; activations stay in floating point.

For ONNX Runtime's ``MatMulNBits``, whose fast kernels make 8-bit integers of each row of activations
on the way (``accuracy_level`` 4).
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from optim_passes.builder import Builder
from optim_passes.quantization.arithmetic import Affine, quantize, symmetric_scales
from optim_passes.quantization.blocks import (
    Blocks,
    error_corrected,
    half_quadratic,
    least_error,
    round_to_nearest,
)
from optim_passes.quantization.dynamic import with_bias
from optim_passes.quantization.placement import FLOAT, is_kernel
from optim_passes.rewriting import Outcome, Pass, commit
from optim_passes.scopes import Names
from optim_passes.values import attribute, constant, is_op, producer, rank
from optim_passes.views import permutation

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import onnx_ir as ir

    from optim_passes.scopes import Scope

__all__ = ["WeightOptions", "WeightQuantizationPass"]

Array = np.ndarray[Any, Any]
Method = Literal["rtn", "mse", "hqq", "gptq"]

_FUNCTIONS = {"rtn": round_to_nearest, "mse": least_error, "hqq": half_quadratic}
# Blocks of 128 take two thirds of the time of those of 32, which small products need not save.
_SMALL_BLOCK, _LARGE_BLOCK, _LARGE = 32, 128, 512
_INTEGERS_OF_ROWS = 4  # MatMulNBits' accuracy_level that computes on 8-bit integers


@dataclasses.dataclass(frozen=True, slots=True)
class WeightOptions:
    """How weights become integers.

    Attributes:
        bits: 4 or 8.
        block_size: Inputs that share a scale: 16, 32, 64, 128 or 256. None is 128 for products of
            512 inputs and more, else 32.
        symmetric: Whether every zero point is the middle of the integers.
        method: ``rtn`` (round to nearest), ``mse`` (the scale with the least squared error), ``hqq``
            (half-quadratic) or ``gptq`` (errors corrected by calibration).
        accuracy_level: MatMulNBits' own; 4 computes on integers, 0 in float32.
        embeddings: Whether tables that rows are gathered from become 8-bit integers.
        smallest: Weights with fewer elements stay as they are.
    """

    bits: int = 4
    block_size: int | None = None
    symmetric: bool = False
    method: Method = "mse"
    accuracy_level: int = _INTEGERS_OF_ROWS
    embeddings: bool = True
    smallest: int = 1 << 12


class WeightQuantizationPass(Pass):
    """``x @ W + b`` becomes ``MatMulNBits(x, Q(W)) + b``; a gathered table has a scale for each row.

    Args:
        options: How.
        wanted: Whether a node's weights may become integers; all unless given.
        moments: For ``gptq``: the mean of ``x x^T`` by name of ``x``; a product whose input is
            missing there is quantized by ``mse``.
        products: Whether products are quantized, and not tables alone.
    """

    def __init__(
        self,
        options: WeightOptions | None = None,
        *,
        wanted: Callable[[ir.Node], bool] | None = None,
        moments: Mapping[str, Array] | None = None,
        products: bool = True,
    ) -> None:
        super().__init__()
        self.options = options or WeightOptions()
        self.wanted = wanted or (lambda _: True)
        self.moments = moments or {}
        self.products = products

    def run(self, scope: Scope, outcome: Outcome) -> None:
        """Quantize the weights of one body."""
        if scope.function is not None:
            return
        names = Names(scope.model)
        tables: dict[ir.Value, tuple[ir.Value, ir.Value]] = {}
        for node in list(scope.body):
            if not self.wanted(node):
                continue
            if is_op(node, "MatMul", "Gemm") and self.products:
                outcome.rewrites += self._product(node, scope, names, outcome)
            elif is_op(node, "Gather") and self.options.embeddings:
                outcome.rewrites += self._table(node, scope, names, tables)

    def rounded(self, node: ir.Node) -> Array | None:
        """The numbers that a product's integers will stand for, shaped like its second input."""
        matrix = _rows_of(node) if self.products and self.wanted(node) else None
        if matrix is None or matrix[0].size < self.options.smallest or rank(node.inputs[0]) == 1:
            return None
        weights = matrix[0].numpy() if matrix[1] else matrix[0].numpy().T
        x = node.inputs[0]
        assert x is not None
        made = self._blocks(np.ascontiguousarray(weights, np.float32), x.name or "")
        real = made.floats(weights.shape[1])
        rows = bool(attribute(node, "transB", 0))
        return real if rows else np.ascontiguousarray(real.T)

    def _product(self, node: ir.Node, scope: Scope, names: Names, outcome: Outcome) -> bool:
        matrix = _rows_of(node)
        if matrix is None:
            return False
        tensor, turned, name = matrix
        if tensor.size < self.options.smallest:
            self.refuse(outcome, node, "its weights are small", node.inputs[1])
            return False
        x = node.inputs[0]
        assert x is not None
        if rank(x) == 1:
            self.refuse(outcome, node, "it multiplies a vector", x)
            return False
        weights = tensor.numpy()
        if not turned:
            weights = weights.T
        count, columns = weights.shape
        last, bias = with_bias(node, count)
        op = Builder(scope, names, [last])
        made = self._blocks(np.ascontiguousarray(weights, np.float32), x.name or "")
        del weights
        stored = [
            op.constant(made.packed(), f"{name}.quantized"),
            op.constant(made.scales, f"{name}.scales"),
            None if made.symmetric else op.constant(made.packed_zeros(), f"{name}.zeros"),
        ]
        options = self.options
        y = op.ms(
            "MatMulNBits", x, *stored, None, bias, like=last.outputs[0], K=columns, N=count,
            bits=options.bits, block_size=self._block_size(columns),
            accuracy_level=options.accuracy_level,
        )  # fmt: skip
        commit(op, last, last.outputs, [y], [last] if last is node else [last, node])
        return True

    def _block_size(self, columns: int) -> int:
        given = self.options.block_size
        return given or (_LARGE_BLOCK if columns >= _LARGE else _SMALL_BLOCK)

    def _blocks(self, weights: Array, x: str) -> Blocks:
        options = self.options
        size, symmetric = self._block_size(weights.shape[1]), options.symmetric
        if options.method == "gptq" and x in self.moments:
            moments = self.moments[x]
            return error_corrected(weights, moments, options.bits, size, symmetric=symmetric)
        function = _FUNCTIONS.get(options.method, least_error)
        return function(weights, options.bits, size, symmetric=symmetric)

    def _table(
        self,
        node: ir.Node,
        scope: Scope,
        names: Names,
        tables: dict[ir.Value, tuple[ir.Value, ir.Value]],
    ) -> bool:
        """Rows of integers, each with its scale: ``Cast(Gather(Q, i)) * Gather(s, i)``."""
        value, rows = node.inputs
        tensor = constant(value)
        if tensor is None or value is None or rows is None or attribute(node, "axis", 0) != 0:
            return False
        if tensor.dtype != FLOAT or len(tensor.shape) != 2 or tensor.size < self.options.smallest:
            return False
        op = Builder(scope, names, [node])
        if value not in tables:
            array = tensor.numpy()
            scales = symmetric_scales(array, 0)
            affine = Affine(scales, np.zeros(scales.shape, np.int8))
            tables[value] = (
                op.constant(quantize(array, affine, 0), f"{value.name}.quantized"),
                op.constant(scales[:, None], f"{value.name}.scales"),
            )
        integers, factors = tables[value]
        numbers = op.Cast(op.Gather(integers, rows), to=FLOAT)
        y = op.node("Mul", numbers, op.Gather(factors, rows), like=node.outputs[0])
        commit(op, node, node.outputs, [y], [node])
        return True


def _rows_of(node: ir.Node) -> tuple[ir.TensorProtocol, bool, str] | None:
    """A product's constant weights, whether they have a row for each output, and their name."""
    if is_kernel(node):
        value = node.inputs[1]
        tensor = constant(value)
        assert tensor is not None
        assert value is not None
        return tensor, bool(attribute(node, "transB", 0)), value.name or "weight"
    turned = producer(node.inputs[1], "Transpose") if is_op(node, "MatMul") else None
    if turned is None or permutation(turned) != [1, 0]:
        return None
    source = turned.inputs[0]
    tensor = constant(source)
    if tensor is None or source is None or tensor.dtype != FLOAT or len(tensor.shape) != 2:
        return None
    return tensor, True, source.name or "weight"
