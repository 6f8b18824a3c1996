"""Where ONNX Runtime's CPU provider has no kernel for an element type, and the way round.

float16 needs none: the runtime casts around such nodes itself. Nor does bfloat16, which CUDA has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from exporters.pytorch.lowerings.transcendental import DOUBLE_FORMULAS
from exporters.tracing.graph import schema_of

if TYPE_CHECKING:
    from exporters.tracing.graph import GraphBuilder as Op

__all__ = ["emit", "scatter", "working_dtype"]

_D = ir.DataType
_SMALL_TO_INT32 = {_D.INT16: _D.INT32, _D.INT8: _D.INT32, _D.UINT8: _D.INT32}
_INT16_TO_INT32 = {_D.INT16: _D.INT32}

# Measured with ONNX Runtime 1.32 on CPU: the element types that an operator's kernel (or schema)
# lacks, each with a wider one in which the result is the same.
_WIDER: dict[str, dict[ir.DataType, ir.DataType]] = {
    "ArgMax": {**_INT16_TO_INT32, _D.BOOL: _D.UINT8},
    "ArgMin": {**_INT16_TO_INT32, _D.BOOL: _D.UINT8},
    "Clip": _INT16_TO_INT32,
    "CumSum": {**_SMALL_TO_INT32, _D.BOOL: _D.INT32},
    "MatMul": _SMALL_TO_INT32,
    "Max": {**_INT16_TO_INT32, _D.BOOL: _D.UINT8},
    "Min": {**_INT16_TO_INT32, _D.BOOL: _D.UINT8},
    "Neg": {_D.UINT8: _D.INT32},
    "NonZero": {_D.DOUBLE: _D.BOOL, _D.FLOAT16: _D.BOOL, _D.INT16: _D.BOOL, _D.INT8: _D.BOOL},
    "Pad": _INT16_TO_INT32,
    "Pow": {**_SMALL_TO_INT32, _D.BOOL: _D.INT32},
    "ReduceMax": {**_INT16_TO_INT32, _D.BOOL: _D.UINT8},
    "ReduceMin": {**_INT16_TO_INT32, _D.BOOL: _D.UINT8},
    "ReduceProd": {**_SMALL_TO_INT32, _D.BOOL: _D.INT32},
    "ReduceSum": {**_SMALL_TO_INT32, _D.BOOL: _D.INT32},
    "Sign": {_D.BOOL: _D.UINT8},
    "Compress": {_D.BFLOAT16: _D.FLOAT},
    "TopK": {_D.BOOL: _D.UINT8, _D.BFLOAT16: _D.FLOAT},
    "Trilu": _SMALL_TO_INT32,
    "Unique": {_D.INT32: _D.INT64, _D.INT16: _D.INT64, _D.UINT8: _D.INT64, _D.BOOL: _D.INT8,
               _D.FLOAT16: _D.FLOAT, _D.BFLOAT16: _D.FLOAT},
    "Where": {_D.BOOL: _D.UINT8, _D.INT16: _D.INT32},
}  # fmt: skip


def working_dtype(op_type: str, dtype: ir.DataType) -> ir.DataType:
    """The element type to run an operator in where ``dtype`` is asked for."""
    return _WIDER.get(op_type, {}).get(dtype, dtype)


# Of the scatters that reduce, whatever the schema says.
_SCATTERED = {_D.BOOL: _D.INT32, _D.FLOAT16: _D.FLOAT, _D.BFLOAT16: _D.FLOAT}


def scatter(
    op: Op,
    op_type: str,
    data: ir.Value,
    indices: ir.Value,
    updates: ir.Value,
    *,
    reduction: str | None = None,
    **attributes: Any,
) -> ir.Value:
    """A scatter that may reduce."""
    dtype = data.dtype
    wider = _SCATTERED.get(dtype, dtype) if reduction else dtype
    made = op.emit(
        op_type,
        op.cast(data, wider),
        indices,
        op.cast(updates, wider),
        reduction=reduction,
        **attributes,
    )
    return op.cast(made, dtype)


def emit(op: Op, op_type: str, *inputs: Any, **attributes: Any) -> Any:
    """``op.emit`` that goes through another element type where the asked one has no kernel."""
    dtype = next(x.dtype for x in inputs if isinstance(x, ir.Value))
    if dtype == _D.DOUBLE and op_type in DOUBLE_FORMULAS:
        return DOUBLE_FORMULAS[op_type](op, *inputs, **attributes)
    gaps = _WIDER.get(op_type)
    if gaps is None:
        return op.emit(op_type, *inputs, **attributes)
    schema = schema_of(op_type, op.opset, "")
    generic = [schema.formal(i).dtype is None for i in range(len(inputs))]
    dtype = next(
        x.dtype for x, g in zip(inputs, generic, strict=True) if g and isinstance(x, ir.Value)
    )
    wider = working_dtype(op_type, dtype)
    if wider == dtype:
        return op.emit(op_type, *inputs, **attributes)
    cast = [
        op.cast(x, wider) if g and isinstance(x, ir.Value) and x.dtype == dtype else x
        for x, g in zip(inputs, generic, strict=True)
    ]
    made = op.emit(op_type, *cast, **attributes)
    if isinstance(made, list):
        return [op.cast(y, dtype) if y.dtype == wider else y for y in made]
    same = schema.outputs[0].type_name == schema.inputs[generic.index(True)].type_name
    return op.cast(made, dtype) if same else made
