"""Nodes whose operands are all constant become constants."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from optim_passes.builder import infer_types
from optim_passes.purity import is_pure
from optim_passes.rewriting import Outcome, Pass
from optim_passes.tensors import derived
from optim_passes.values import constant, static_shape

if TYPE_CHECKING:
    from collections.abc import Sequence

    from optim_passes.scopes import Scope

__all__ = ["ConstantFoldPass", "evaluate_by_reference"]

_SMALL = 1 << 20  # bytes of operands up to which a node is worth computing at once

# What weights are stored as; ONNX Runtime fuses these nodes with those that use them.
_QUANTIZED = frozenset({"DequantizeLinear", "DynamicQuantizeLinear", "QuantizeLinear"})


class ConstantFoldPass(Pass):
    """Computes nodes of constants.

    The result of a fold is never larger than its operands or a few megabytes. What is large is
    computed when the model is written or loaded; until then it takes no memory.

    Args:
        large: Whether to fold nodes over weights too. Fusions see a transposed weight more easily
            when the ``Transpose`` is still there, so it is for the end of a pipeline.
        evaluate: Computes a model of one node; ONNX's reference evaluator unless given.
        limit: Bytes up to which a result may be larger than its operands.
    """

    def __init__(self, *, large: bool = False, evaluate: Any = None, limit: int = 1 << 22) -> None:
        super().__init__()
        self.large = large
        self.evaluate = evaluate or evaluate_by_reference
        self.limit = limit

    def run(self, scope: Scope, outcome: Outcome) -> None:
        """Fold the nodes of one body, first ones first, so that chains fold in one go."""
        for node in list(scope.body):
            if node.op_type == "Constant" or node.domain or node.op_type in _QUANTIZED:
                continue
            if not is_pure(node) or any(v.is_graph_output() for v in node.outputs):
                continue
            if any(a.is_ref() for a in node.attributes.values()):
                continue
            operands = [constant(v) for v in node.inputs if v is not None]
            if any(t is None or t.dtype == ir.DataType.STRING for t in operands):
                continue
            tensors = [t for t in operands if t is not None]
            results = self._fold(node, tensors, scope)
            if results is None:
                continue
            for value, tensor in zip(node.outputs, results, strict=True):
                if value.uses():
                    _become_constant(value, tensor, scope, node)
            scope.body.remove(node, safe=True)
            outcome.rewrites += 1

    def _fold(
        self, node: ir.Node, tensors: Sequence[ir.TensorProtocol], scope: Scope
    ) -> list[ir.TensorProtocol] | None:
        infer_types(node, scope.opset)
        shapes = [static_shape(v) for v in node.outputs]
        if any(s is None or v.dtype is None for s, v in zip(shapes, node.outputs, strict=True)):
            return None
        given = sum(t.nbytes for t in tensors)
        made = sum(
            math.prod(s or ()) * v.dtype.itemsize
            for s, v in zip(shapes, node.outputs, strict=True)
            if v.dtype is not None
        )
        if made > max(given, self.limit):
            return None
        if given <= _SMALL:
            return self._now(node, tensors, scope)
        if not self.large or len(node.outputs) != 1:
            return None
        (shape,), model = shapes, _single_node_model(node, scope)
        names = [v.name or "" for v in node.inputs if v is not None]
        return [
            derived(
                lambda *arrays: self.evaluate(model, dict(zip(names, arrays, strict=True)))[0],
                *tensors,
                shape=shape,
                dtype=node.outputs[0].dtype,
            )
        ]

    def _now(
        self, node: ir.Node, tensors: Sequence[ir.TensorProtocol], scope: Scope
    ) -> list[ir.TensorProtocol] | None:
        names = [v.name or "" for v in node.inputs if v is not None]
        feed = {n: t.numpy() for n, t in zip(names, tensors, strict=True)}
        try:
            with np.errstate(all="ignore"):
                arrays = self.evaluate(_single_node_model(node, scope), feed)
        except Exception:  # whatever it cannot compute is left for the runtime
            return None
        tensors_out: list[ir.TensorProtocol] = []
        for value, array in zip(node.outputs, arrays, strict=True):
            if not isinstance(array, np.ndarray | np.generic) or value.dtype is None:
                return None
            array = np.asarray(array)
            if value.dtype.bitwidth >= 8:
                array = array.astype(value.dtype.numpy(), copy=False)
            tensors_out.append(ir.tensor(array, dtype=value.dtype))
        return tensors_out


def _become_constant(
    value: ir.Value, tensor: ir.TensorProtocol, scope: Scope, node: ir.Node
) -> None:
    """Let the users of ``value`` use a constant of the same name."""
    shape = ir.Shape(tensor.shape.numpy())
    if scope.function is not None:
        maker = ir.node("Constant", [], {"value": tensor}, name=node.name)
        scope.body.insert_before(node, maker)
        made = maker.outputs[0]
    else:
        made = ir.Value()
    made.const_value = tensor
    made.type, made.shape = ir.TensorType(tensor.dtype), shape
    made.meta.update(value.meta)
    name, value.name = value.name, None
    value.replace_all_uses_with(made)
    made.name = name
    if scope.function is None:
        scope.model.graph.initializers.add(made)


def _single_node_model(node: ir.Node, scope: Scope) -> onnx.ModelProto:
    """The node as a model of its own."""
    untyped = onnx.TypeProto()
    given = dict.fromkeys(v.name for v in node.inputs if v is not None)
    graph = onnx.GraphProto(
        name="fold",
        node=[ir.to_proto(node)],
        input=[onnx.ValueInfoProto(name=n, type=untyped) for n in given],
        output=[onnx.ValueInfoProto(name=v.name, type=untyped) for v in node.outputs],
    )
    opsets = [onnx.OperatorSetIdProto(domain="", version=scope.opset)]
    return onnx.ModelProto(ir_version=10, graph=graph, opset_import=opsets)


def evaluate_by_reference(
    model: onnx.ModelProto, feed: dict[str, np.ndarray[Any, Any]]
) -> Sequence[np.ndarray[Any, Any]]:
    """The outputs of a small model, by ONNX's reference implementation."""
    results: Sequence[np.ndarray[Any, Any]] = ReferenceEvaluator(model).run(None, feed)
    return results
