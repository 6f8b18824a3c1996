"""Which nodes have to stay in float32 when a model goes to 16 bits."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir

from optim_passes.scopes import scopes
from optim_passes.values import attribute, constant, producer, scalar

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["Limits", "half_operands", "is_float", "sensitive_nodes"]

_MARGIN = 4.0  # other inputs than the measured ones may reach this much further
_MASK = 1e30  # from here on a number means "infinite", as finfo.min does in masks
_CHUNK = 1 << 20

# A rounding of what these read moves what they return by more than a rounding.
_ANGLES = frozenset({"Sin", "Cos", "Tan"})
_SUMS = frozenset({"CumSum"})
_SCATTERING = frozenset({"ScatterElements", "ScatterND"})
_SIZED = 2048  # from here on 16 bits have no place for every integer
_CHEAP = frozenset({
    "Abs", "Add", "Cast", "Ceil", "Clip", "Concat", "Div", "Exp", "Expand", "Floor", "Gather",
    "Identity", "Log", "Max", "Min", "Mod", "Mul", "Neg", "Pow", "Range", "Reciprocal", "Reshape",
    "Round", "Slice", "Split", "Sqrt", "Squeeze", "Sub", "Tile", "Transpose", "Unsqueeze", "Where",
})  # fmt: skip
_INDEXING = frozenset({"NonMaxSuppression", "RoiAlign", "GridSample", "Range", "CenterCropPad"})
_QUANTIZING = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})

# ONNX Runtime's own operators with 16-bit kernels, and their operands that stay in float32.
_CONTRIB: dict[str, tuple[int, ...]] = {
    "BiasGelu": (), "BiasSplitGelu": (), "FastGelu": (), "FusedConv": (), "FusedMatMul": (),
    "Gelu": (), "GroupNorm": (1, 2), "GroupQueryAttention": (), "MultiHeadAttention": (),
    "NhwcConv": (), "PackedMultiHeadAttention": (), "QuickGelu": (), "RotaryEmbedding": (),
    "SimplifiedLayerNormalization": (), "SkipGroupNorm": (1, 2), "SkipLayerNormalization": (),
    "SkipSimplifiedLayerNormalization": (), "BiasAdd": (), "EmbedLayerNormalization": (),
}  # fmt: skip


class Limits:
    """What a 16-bit type can hold, and which values of a model it cannot.

    Args:
        dtype: FLOAT16 or BFLOAT16.
        ranges: The largest magnitude that each value has been seen to have, by name.
    """

    def __init__(self, dtype: ir.DataType, ranges: Mapping[str, float]) -> None:
        info: Any = ml_dtypes.finfo(dtype.numpy())  # type: ignore[no-untyped-call]
        self.dtype = dtype
        self.ranges = ranges
        self.largest = float(info.max)
        self.smallest = float(info.smallest_normal)
        self._constants: dict[int, float] = {}

    def is_wide(self, value: ir.Value) -> bool:
        """Whether a value needs the range of float32."""
        tensor = constant(value)
        if tensor is None:
            magnitude = self.ranges.get(str(value.name), 0.0)
            return self.largest < magnitude * _MARGIN and magnitude < _MASK
        magnitude = self._magnitude(tensor)
        if tensor.size == 1 and 0 < magnitude < self.smallest:
            return True  # an epsilon that would vanish, and let something be divided by zero
        return self.largest < magnitude < _MASK

    def _magnitude(self, tensor: ir.TensorProtocol) -> float:
        found = self._constants.get(id(tensor))
        if found is None:
            flat = tensor.numpy().reshape(-1)
            parts = (flat[i : i + _CHUNK] for i in range(0, flat.size, _CHUNK))
            maxima = [float(np.abs(p[np.isfinite(p)]).max(initial=0.0)) for p in parts]
            found = self._constants[id(tensor)] = max(maxima, default=0.0)
        return found

    def convert(self, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """A constant in the type; what means "infinite" becomes half of the largest number.

        Half of it, so that adding to it stays finite: rows of a softmax that are masked
        everywhere are means then, and not NaN.
        """
        large = self.largest / 2
        masked = np.isfinite(array) & (np.abs(array) >= _MASK)
        array = np.where(masked, np.copysign(large, array), array) if masked.any() else array
        with np.errstate(over="ignore"):
            return array.astype(self.dtype.numpy())


def is_float(value: ir.Value | None) -> bool:
    """Whether a value is a tensor of float32."""
    return value is not None and isinstance(value.type, ir.TensorType) and (
        value.dtype == ir.DataType.FLOAT
    )  # fmt: skip


@functools.cache
def _schema(op_type: str, opset: int) -> onnx.defs.OpSchema | None:
    try:
        return onnx.defs.get_schema(op_type, opset, "")
    except onnx.defs.SchemaError:
        return None


def half_operands(
    node: ir.Node, opset: int, dtype: ir.DataType
) -> tuple[set[int], set[int]] | None:
    """Positions of inputs and outputs that may be in 16 bits; None if the node knows float32 only."""
    if node.domain == "com.microsoft":
        fixed = _CONTRIB.get(node.op_type)
        if fixed is None:
            return None
        return set(range(len(node.inputs))) - set(fixed), set(range(len(node.outputs)))
    schema = _schema(node.op_type, opset) if not node.domain else None
    if schema is None or any(a.is_ref() for a in node.attributes.values()):
        return None
    named = f"tensor({dtype.name.lower()})"
    allowed = {c.type_param_str: named in c.allowed_type_strs for c in schema.type_constraints}

    def chosen(formals: Any, count: int) -> set[int]:
        return {
            i for i in range(count)
            if formals and allowed.get(formals[min(i, len(formals) - 1)].type_str, False)
        }  # fmt: skip

    outputs = chosen(schema.outputs, len(node.outputs))
    inputs = chosen(schema.inputs, len(node.inputs))
    if any(is_float(v) for i, v in enumerate(node.outputs) if i in outputs):
        return inputs, outputs
    reads = any(is_float(v) for i, v in enumerate(node.inputs) if i in inputs)
    makes = any(is_float(v) for v in node.outputs)
    return (inputs, outputs) if reads and not makes else None


def sensitive_nodes(model: ir.Model, limits: Limits) -> Iterator[tuple[ir.Node, str]]:
    """Nodes that have to compute in float32, each with the reason."""
    seen: set[ir.Node] = set()
    for scope in scopes(model):
        for node in scope.body:
            for found, reason in _sensitive(node, limits):
                floats = any(is_float(v) for v in (*found.inputs, *found.outputs))
                if found not in seen and floats:
                    seen.add(found)
                    yield found, reason


def _sensitive(node: ir.Node, limits: Limits) -> Iterator[tuple[ir.Node, str]]:
    reason = _own_reason(node, limits)
    if reason is not None:
        yield node, reason
    if node.domain:
        return
    if node.op_type in _ANGLES:
        yield node, f"{node.op_type} of a rounded angle"
        yield from ((n, "an angle is computed of it") for n in _behind(node))
    elif node.op_type in _INDEXING or _makes_integers(node):
        yield node, "places are computed in it"
        yield from ((n, "places are computed of it") for n in _behind(node))


def _own_reason(node: ir.Node, limits: Limits) -> str | None:
    if node.op_type in _QUANTIZING:
        return "it quantizes"
    if node.op_type in _SUMS:
        return "rounding adds up in it"
    if node.op_type in _SCATTERING and attribute(node, "reduction", "none") != "none":
        return "ONNX Runtime's CPU provider adds up no 16 bits in it"  # version 1.32
    for value in (*node.inputs, *node.outputs):
        if value is not None and is_float(value) and limits.is_wide(value):
            tensor = constant(value)
            magnitude = limits.ranges.get(str(value.name)) if tensor is None else None
            told = scalar(value) if magnitude is None else f"up to {magnitude:.3g}"
            return f"{value.name} is {'large' if told is None else told}"
    if node.op_type == "Cast" and not is_float(node.inputs[0]) and is_float(node.outputs[0]):
        largest = limits.ranges.get(str(node.outputs[0].name), math.inf)
        kind = node.inputs[0].dtype if node.inputs[0] is not None else None
        if kind is not None and kind.is_integer() and _SIZED < largest < _MASK and limits.ranges:
            return f"it makes integers up to {largest:.3g} floating-point"
    return None


def _makes_integers(node: ir.Node) -> bool:
    """Whether it rounds floating-point numbers to integers, other than pictures to bytes."""
    if node.op_type != "Cast" or not is_float(node.inputs[0]):
        return False
    dtype = node.outputs[0].dtype
    return dtype in (ir.DataType.INT64, ir.DataType.INT32)


def _behind(node: ir.Node) -> Iterator[ir.Node]:
    """The cheap nodes that lead to a node: products with weights end the way."""
    pending, seen = [node], {node}
    while pending:
        for value in pending.pop().inputs:
            before = None if value is None else value.producer()
            if before is None or before in seen or before.domain or not is_float(value):
                continue
            small = before.op_type == "MatMul" and all(
                constant(v) is None or v.const_value.size < _SIZED  # type: ignore[union-attr]
                for v in before.inputs
            ) and producer(value, "MatMul") is not None  # fmt: skip
            if before.op_type in _CHEAP or (small and node.op_type in _ANGLES):
                seen.add(before)
                pending.append(before)
                yield before
