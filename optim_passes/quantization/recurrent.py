"""GRUs whose products are done on 8-bit integers: ONNX Runtime has a kernel for LSTMs only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from optim_passes.quantization.placement import FLOAT
from optim_passes.values import attribute, constant, input_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from optim_passes.builder import Builder
    from optim_passes.quantization.arithmetic import Affine

__all__ = ["gru_refusal", "scanned_gru"]

_LARGE = 384  # hidden numbers; below, a Scan of single nodes takes longer than the float kernel


def gru_refusal(node: ir.Node) -> str | None:
    """Why a GRU stays in floating point; None if it need not."""
    weights = [constant(v) for v in node.inputs[1:3]]
    if any(t is None or t.dtype != FLOAT for t in weights):
        return "its weights are not constant float32"
    bias = input_of(node, 3)
    if bias is not None and constant(bias) is None:
        return "its bias is not constant"
    if input_of(node, 4) is not None:
        return "its sequences differ in length"
    if attribute(node, "layout", 0) or not attribute(node, "linear_before_reset", 0):
        return "its layout has no form in integers"
    if "activations" in node.attributes or "clip" in node.attributes:
        return "its activations are not the usual ones"
    if weights[1].shape.numpy()[2] < _LARGE:  # type: ignore[union-attr]
        return "it is small, and faster in floating point"
    return None


def scanned_gru(
    node: ir.Node, op: Builder, names: Any, integers: Callable[[Any, int], tuple[Any, Affine]]
) -> list[ir.Value]:
    """A GRU as one product of all inputs, and a Scan with a product of the state in each step.

    Args:
        node: The GRU.
        op: Where nodes are added.
        names: Names that are taken.
        integers: Makes integers of a matrix, with scales along an axis.

    Returns:
        Values in the place of ``Y`` and ``Y_h``.
    """
    x, start = node.inputs[0], input_of(node, 5)
    weight, recurrent = (constant(v).numpy() for v in node.inputs[1:3])  # type: ignore[union-attr]
    directions, gates, hidden = recurrent.shape
    tensor = constant(input_of(node, 3))
    bias = np.zeros((directions, 2 * gates), np.float32) if tensor is None else tensor.numpy()
    way = attribute(node, "direction", "forward")
    sequences, states = [], []
    for index in range(directions):
        # The biases of both products of a gate add up, but for the last gate's, which is scaled.
        inner = np.concatenate([np.zeros(2 * hidden), bias[index, gates + 2 * hidden :]])
        outer = bias[index, :gates].copy()
        outer[: 2 * hidden] += bias[index, gates : gates + 2 * hidden]
        first = _start(op, x, start, index, hidden)
        gx = _product(op, x, weight[index], outer, integers)
        body = _step(op, names, recurrent[index], inner, integers)
        back = int(way == "reverse" or index == 1)
        h, y = op.node(
            "Scan", first, gx, outputs=2, body=body, num_scan_inputs=1,
            scan_input_directions=[back], scan_output_directions=[back],
        )  # fmt: skip
        sequences.append(op.Unsqueeze(y, [1]))
        states.append(op.Unsqueeze(h, [0]))
    made = [sequences[0], states[0]]
    if directions == 2:
        made = [op.Concat(*sequences, axis=1), op.Concat(*states, axis=0)]
    return made[: len(node.outputs)]


def _start(
    op: Builder, x: ir.Value | None, start: ir.Value | None, index: int, hidden: int
) -> ir.Value:
    if start is not None:
        made: ir.Value = op.Gather(start, op.constant(np.asarray(index, np.int64)), axis=0)
        return made
    size = op.node("Shape", x, start=1, end=2)
    shape = op.Concat(size, op.constant(np.asarray([hidden], np.int64)), axis=0)
    zeros: ir.Value = op.ConstantOfShape(shape)
    return zeros


def _product(op: Builder, x: Any, matrix: Any, bias: Any, integers: Any) -> ir.Value:
    """``x @ matrix.T + bias``."""
    made: ir.Value = op.ms("DynamicQuantizeMatMul", x, *_constants(op, matrix, bias, integers))
    return made


def _constants(op: Builder, matrix: Any, bias: Any, integers: Any) -> list[ir.Value]:
    stored, affine = integers(np.ascontiguousarray(matrix.T), 1)
    arrays = (stored, affine.scale, affine.zero_point, bias.astype(np.float32))
    return [op.constant(a) for a in arrays]


def _step(op: Builder, names: Any, matrix: Any, bias: Any, integers: Any) -> ir.Graph:
    """One step: ``h' = c + z * (h - c)`` with ``c = tanh(x + r * (h @ R.T + b))``."""
    gates, hidden = matrix.shape
    constants = _constants(op, matrix, bias, integers)
    parts = op.constant(np.asarray([2 * hidden, hidden], np.int64))
    nodes: list[ir.Node] = []

    def value(*dims: Any) -> ir.Value:
        return ir.Value(
            name=names.fresh("gru"), type=ir.TensorType(FLOAT), shape=ir.Shape([None, *dims])
        )

    def node(
        op_type: str, *inputs: ir.Value, domain: str = "", outputs: int = 1, **given: Any
    ) -> Any:
        made = ir.node(
            op_type, inputs, given, domain=domain, num_outputs=outputs, name=names.fresh(op_type)
        )
        for output in made.outputs:
            output.name = names.fresh("gru")
        nodes.append(made)
        return made.outputs[0] if outputs == 1 else made.outputs

    h, x = value(hidden), value(gates)
    product = node("DynamicQuantizeMatMul", h, *constants, domain="com.microsoft")
    of_x, new = node("Split", x, parts, outputs=2, axis=-1)
    of_h, old = node("Split", product, parts, outputs=2, axis=-1)
    opened = node("Sigmoid", node("Add", of_x, of_h))
    z, r = node("Split", opened, outputs=2, axis=-1, num_outputs=2)
    c = node("Tanh", node("Add", new, node("Mul", r, old)))
    state = node("Add", c, node("Mul", z, node("Sub", h, c)))
    results = [state, node("Identity", state)]
    for result in results:
        result.type, result.shape = ir.TensorType(FLOAT), ir.Shape([None, hidden])
    return ir.Graph([h, x], results, nodes=nodes, name=names.fresh("step"))
