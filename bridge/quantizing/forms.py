"""Models of any age and precision in the form that quantization passes know."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx
import onnx_ir as ir

from bridge.quantizing.recipes import RecipeError
from optim_passes.precision.wide import widened

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["quantizable"]

_OLDEST = 13  # the first opset whose DequantizeLinear has an axis
_HALVES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def quantizable(model: ir.Model) -> ir.Model:
    """A copy of at least opset 13, with float32 weights that cannot be overridden.

    Raises:
        RecipeError: Its operators have no form in opset 13.
    """
    opset = model.graph.opset_imports.get("", _OLDEST)
    made = model.clone() if opset >= _OLDEST else _converted(model, opset)
    for narrow in _HALVES:
        if any(v.dtype == narrow for v in _weights(made)):
            made = widened(made, narrow)
    inputs = made.graph.inputs
    for value in [v for v in inputs if v.name in made.graph.initializers]:
        inputs.remove(value)  # an optional input, which old files make of every weight
    made.ir_version = max(made.ir_version, 4)  # the first in which weights need not be inputs
    return made


def _weights(model: ir.Model) -> Iterator[ir.Value]:
    for graph in model.graphs():
        yield from graph.initializers.values()
        for node in graph:
            if node.op_type == "Constant":
                yield from node.outputs


def _converted(model: ir.Model, opset: int) -> ir.Model:
    try:
        proto = onnx.version_converter.convert_version(ir.to_proto(model), _OLDEST)
        return ir.from_proto(proto)
    except Exception as error:  # the converter raises what its adapters raise
        raise RecipeError(
            f"the model of opset {opset} cannot be converted to opset {_OLDEST}, which integers "
            f"with a scale for each channel need: {error}",
            hint="export it again with a newer opset",
        ) from error
