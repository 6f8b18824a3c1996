"""What a pass may know of a value: constants, shapes, uses, attributes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

__all__ = [
    "PLACEHOLDER",
    "attribute",
    "constant",
    "dims",
    "floats_of",
    "input_of",
    "ints",
    "is_known",
    "is_op",
    "is_scalar",
    "norm_axis",
    "only_consumer",
    "producer",
    "rank",
    "same_dim",
    "same_shape",
    "scalar",
    "small_array",
    "static_shape",
]

PLACEHOLDER = "_size"  # how names of sizes begin that nothing is known of
_SMALL = 4096  # elements; larger constants are weights, whose contents no pattern asks for


def constant(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The tensor that ``value`` always is, None if it may vary.

    An initializer that is a graph input too is only a default, so it may vary.
    """
    if value is None or value.is_graph_input():
        return None
    if value.const_value is not None:
        return value.const_value
    node = value.producer()
    if node is None or node.op_type != "Constant" or node.domain:
        return None
    for name, given in node.attributes.items():
        if given.is_ref():
            return None
        if name == "value":
            return given.as_tensor()
        if name in ("value_int", "value_ints"):
            return ir.tensor(np.asarray(given.value, np.int64))
        if name in ("value_float", "value_floats"):
            return ir.tensor(np.asarray(given.value, np.float32))
    return None


def small_array(value: ir.Value | None) -> np.ndarray[Any, Any] | None:
    """The contents of a small constant, None for anything else."""
    tensor = constant(value)
    if tensor is None or tensor.size > _SMALL or tensor.dtype == ir.DataType.STRING:
        return None
    return tensor.numpy()


def scalar(value: ir.Value | None) -> float | int | bool | None:
    """The one element of a constant, None if there is no constant or more than one element."""
    tensor = constant(value)
    if tensor is None or tensor.size != 1 or tensor.dtype == ir.DataType.STRING:
        return None
    return tensor.numpy().reshape(-1)[0].item()


def is_scalar(value: ir.Value | None) -> bool:
    """Whether a constant of one element cannot raise the rank of what it is combined with.

    Rank 1 is fine beside anything of rank 1 and above; rank 2 and more need a look.
    """
    tensor = constant(value)
    return tensor is not None and tensor.size == 1 and len(tensor.shape) <= 1


def ints(value: ir.Value | None) -> list[int] | None:
    """The elements of a small constant of integers, in order."""
    array = small_array(value)
    if array is None or array.dtype.kind not in "iu":
        return None
    return [int(i) for i in array.reshape(-1)]


def floats_of(value: ir.Value | None) -> np.ndarray[Any, Any] | None:
    """The contents of a constant of floating-point numbers of any size."""
    tensor = constant(value)
    if tensor is None or not tensor.dtype.is_floating_point():
        return None
    return tensor.numpy()


def dims(value: ir.Value | None) -> tuple[int | ir.SymbolicDim, ...] | None:
    """The dims, None if not even the rank is known."""
    if value is None or value.shape is None:
        return None
    return tuple(value.shape.dims)


def rank(value: ir.Value | None) -> int | None:
    """The number of dims."""
    shape = dims(value)
    return None if shape is None else len(shape)


def static_shape(value: ir.Value | None) -> tuple[int, ...] | None:
    """The shape when every dim of it is known."""
    shape = dims(value)
    if shape is None or not all(isinstance(d, int) for d in shape):
        return None
    return tuple(int(d) for d in shape)  # type: ignore[arg-type]


def same_dim(a: int | ir.SymbolicDim | None, b: int | ir.SymbolicDim | None) -> bool:
    """Whether two dims are certainly equal; unknown dims never are."""
    if isinstance(a, int) or isinstance(b, int):
        return isinstance(a, int) and isinstance(b, int) and a == b
    return a is not None and b is not None and a.value is not None and a.value == b.value


def is_known(dim: int | ir.SymbolicDim) -> bool:
    """Whether a dim is a number or has a name of more than a placeholder.

    onnx's inference calls unknown sizes ``unk__0``, :class:`InferShapesPass` ``_size0``.
    """
    if isinstance(dim, int):
        return True
    return dim.value is not None and not dim.value.startswith(("unk__", PLACEHOLDER))


def same_shape(a: ir.Value | None, b: ir.Value | None) -> bool:
    """Whether two values certainly have the same shape."""
    left, right = dims(a), dims(b)
    if left is None or right is None or len(left) != len(right):
        return False
    return a is b or all(map(same_dim, left, right))


def norm_axis(axis: int, size: int) -> int:
    """An axis counted from the front."""
    return axis + size if axis < 0 else axis


def producer(value: ir.Value | None, *op_types: str, domain: str | None = "") -> ir.Node | None:
    """The node that makes ``value``, if it is one of ``op_types``."""
    node = None if value is None else value.producer()
    return node if node is not None and is_op(node, *op_types, domain=domain) else None


def is_op(node: ir.Node, *op_types: str, domain: str | None = "") -> bool:
    """Whether the node is one of these operators of ``domain``; None takes any domain."""
    return (domain is None or node.domain == domain) and (not op_types or node.op_type in op_types)


def only_consumer(value: ir.Value) -> ir.Node | None:
    """The node that alone uses ``value``; None if there are others, or it is a graph output."""
    if value.is_graph_output():
        return None
    consumers = {use.node for use in value.uses()}
    return next(iter(consumers)) if len(consumers) == 1 else None


def input_of(node: ir.Node, index: int) -> ir.Value | None:
    """An input, None where it is left out."""
    return node.inputs[index] if index < len(node.inputs) else None


def attribute(node: ir.Node, name: str, default: Any = None) -> Any:
    """An attribute's value, the default where it is left out.

    A reference to a function's attribute has no value here, and gives None.
    """
    given = node.attributes.get(name)
    if given is None:
        return default
    if given.is_ref():
        return None
    return list(given.value) if isinstance(given.value, tuple | list) else given.value
