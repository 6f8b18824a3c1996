"""Ranks and sizes of values between an operator's first node and its last.

The tracer knows the shape of every value that eager code sees. Lowerings of several nodes have
values in between; for these a small table suffices, and None means "not known", never a guess.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx_ir as ir

__all__ = ["broadcast_dims", "infer_shape", "infer_shapes"]

Dims = list[int | None]

_ELEMENTWISE = frozenset(
    [
        "Abs",
        "Acos",
        "Acosh",
        "Add",
        "And",
        "Asin",
        "Asinh",
        "Atan",
        "Atanh",
        "BitShift",
        "BitwiseAnd",
        "BitwiseNot",
        "BitwiseOr",
        "BitwiseXor",
        "Cast",
        "CastLike",
        "Ceil",
        "Celu",
        "Clip",
        "Cos",
        "Cosh",
        "Div",
        "Elu",
        "Equal",
        "Erf",
        "Exp",
        "Floor",
        "Gelu",
        "Greater",
        "GreaterOrEqual",
        "HardSigmoid",
        "HardSwish",
        "Hardmax",
        "Identity",
        "IsInf",
        "IsNaN",
        "LeakyRelu",
        "Less",
        "LessOrEqual",
        "Log",
        "LogSoftmax",
        "Max",
        "Min",
        "Mish",
        "Mod",
        "Mul",
        "Neg",
        "Not",
        "Or",
        "PRelu",
        "Pow",
        "Reciprocal",
        "Relu",
        "Round",
        "Selu",
        "Sigmoid",
        "Sign",
        "Sin",
        "Sinh",
        "Softmax",
        "Softplus",
        "Softsign",
        "Sqrt",
        "Sub",
        "Tan",
        "Tanh",
        "ThresholdedRelu",
        "Where",
        "Xor",
        "CumSum",
    ]
)
_SAME_SHAPE = frozenset(
    """
    BatchNormalization GroupNormalization InstanceNormalization LayerNormalization LRN
    MeanVarianceNormalization RMSNormalization ScatterElements ScatterND Trilu
    """.split()
)
_REDUCTIONS = frozenset(
    [
        "ReduceL1",
        "ReduceL2",
        "ReduceLogSum",
        "ReduceLogSumExp",
        "ReduceMax",
        "ReduceMean",
        "ReduceMin",
        "ReduceProd",
        "ReduceSum",
        "ReduceSumSquare",
    ]
)


def _dims(value: ir.Value | None) -> Dims | None:
    if value is None or value.shape is None:
        return None
    return [d if isinstance(d, int) else None for d in value.shape.dims]


def _ints(value: ir.Value | None) -> list[int] | None:
    if value is None or value.const_value is None or value.const_value.size > 64:
        return None
    return [int(i) for i in value.const_value.numpy().reshape(-1)]


def _entries(shape: ir.Value | None) -> Dims | None:
    """The entries of a shape that the graph computes, as far as they are constants."""
    if shape is None:
        return None
    constant = _ints(shape)
    if constant is not None:
        return [*constant]
    node, length = shape.producer(), _dims(shape)
    if node is not None and node.op_type == "Concat":
        parts = [_entries(x) for x in node.inputs]
        return None if None in parts else [e for p in parts for e in p or ()]
    if node is not None and node.op_type == "Shape":
        whole = _dims(node.inputs[0])
        ends = [
            node.attributes[k].as_int() if k in node.attributes else None for k in ("start", "end")
        ]
        return None if whole is None else whole[slice(*ends)]
    return None if not length or length[0] is None else [None] * length[0]


def broadcast_dims(shapes: Sequence[Dims]) -> Dims:
    """NumPy's broadcast of shapes in which None is any size."""
    rank = max(len(s) for s in shapes)
    padded: list[Dims] = [[*[1] * (rank - len(s)), *s] for s in shapes]
    result: Dims = []
    for sizes in zip(*padded, strict=True):
        large = [s for s in sizes if s is not None and s != 1]
        result.append(large[0] if large else None if None in sizes else 1)
    return result


def infer_shape(
    op_type: str, operands: Sequence[ir.Value | None], attributes: dict[str, Any]
) -> Dims | None:
    """The shape of a one-output node, None where this table does not say."""
    if op_type in _ELEMENTWISE:
        shapes = [_dims(x) for x in operands if x is not None]
        if op_type in ("Clip", "CumSum"):
            return shapes[0]
        known = [s for s in shapes if s is not None]
        return broadcast_dims(known) if known and len(known) == len(shapes) else None
    first = _dims(operands[0]) if operands else None
    if op_type == "Reshape":
        return _reshaped(first, _entries(operands[1]), attributes)
    if op_type in ("Expand", "ConstantOfShape"):
        sizes = _entries(operands[-1])
        if sizes is None or op_type == "ConstantOfShape":
            return sizes
        return [None] * len(sizes) if first is None else broadcast_dims([first, sizes])
    if op_type == "Range":
        return [None]
    if first is None:
        return None
    return _infer_from_first(op_type, first, operands, attributes)


def _reshaped(first: Dims | None, target: Dims | None, attributes: dict[str, Any]) -> Dims | None:
    if target is None:
        return None
    copies = not attributes.get("allowzero")
    at = target.index(-1) if target.count(-1) == 1 else None
    if at is not None and first is not None and copies and target[:at] == [0] * at:
        before, after = first[at:], target[at + 1 :]
        if all(before) and all(after):  # behind the dims that are copied, all are known
            rest = math.prod(d for d in before if d) // math.prod(d for d in after if d)
            return [*first[:at], rest, *after]
    return [
        first[i] if s == 0 and copies and first is not None and i < len(first)
        else None if s is None or s < 0 or (s == 0 and copies)
        else s
        for i, s in enumerate(target)
    ]  # fmt: skip


def infer_shapes(
    op_type: str, operands: Sequence[ir.Value | None], attributes: dict[str, Any], count: int
) -> list[Dims | None]:
    """The shapes of the outputs of a node that has several."""
    first = _dims(operands[0]) if operands else None
    if first is None:
        return [None] * count
    if op_type == "Split":
        axis = attributes.get("axis", 0) % len(first)
        size = first[axis]
        pieces = _entries(operands[1]) if len(operands) > 1 else None
        if pieces is None:
            whole = size is not None and size % count == 0
            pieces = [size // count if whole and size is not None else None] * count
        return [[*first[:axis], n, *first[axis + 1 :]] for n in pieces]
    if op_type == "TopK":
        axis = attributes.get("axis", -1) % len(first)
        k = _ints(operands[1])
        return [[*first[:axis], k[0] if k else None, *first[axis + 1 :]]] * count
    return [None] * count


def _infer_from_first(
    op_type: str,
    first: Dims,
    operands: Sequence[ir.Value | None],
    attributes: dict[str, Any],
) -> Dims | None:
    rank = len(first)
    if op_type == "Shape":
        return [len(range(rank)[slice(attributes.get("start"), attributes.get("end"))])]
    if op_type == "Size":
        return []
    if op_type == "Transpose":
        order = attributes.get("perm") or range(rank)[::-1]
        return [first[i] for i in order]
    if op_type == "Unsqueeze":
        axes = _ints(operands[1])
        if axes is None:
            return None
        new = {a % (rank + len(axes)) for a in axes}
        rest = iter(first)
        return [1 if i in new else next(rest) for i in range(rank + len(axes))]
    if op_type == "Squeeze" and len(operands) > 1:
        axes = _ints(operands[1])
        dropped = {a % rank for a in axes} if axes is not None else None
        return None if dropped is None else [d for i, d in enumerate(first) if i not in dropped]
    if op_type in _REDUCTIONS or op_type in ("ArgMax", "ArgMin"):
        return _reduced(op_type, first, operands, attributes)
    if op_type == "Gather":
        indices = _dims(operands[1])
        axis = attributes.get("axis", 0) % rank
        return None if indices is None else [*first[:axis], *indices, *first[axis + 1 :]]
    if op_type == "Concat":
        shapes = [_dims(x) for x in operands]
        if any(s is None for s in shapes):
            return None
        axis = attributes["axis"] % rank
        total: int | None = 0
        for s in shapes:
            size = s[axis]  # type: ignore[index]
            total = None if total is None or size is None else total + size
        return [*first[:axis], total, *first[axis + 1 :]]
    if op_type == "Gemm":
        second = _dims(operands[1])
        rows, columns = first[1 if attributes.get("transA") else 0], None
        if second is not None:
            columns = second[0 if attributes.get("transB") else 1]
        return [rows, columns]
    if op_type == "MatMul":
        second = _dims(operands[1])
        if second is None or rank < 2 or len(second) < 2:
            return None
        return [
            *broadcast_dims([first[:-2], second[:-2]] if rank > 2 or len(second) > 2 else [[]]),
            first[-2],
            second[-1],
        ]
    if op_type in _SAME_SHAPE:
        return first
    if op_type == "GatherElements":
        return _dims(operands[1])
    if op_type == "Slice":
        return _sliced(first, operands)
    if op_type == "Pad":
        return _padded(first, operands)
    if op_type == "Tile":
        times = _entries(operands[1]) or [None] * rank
        return [
            None if d is None or t is None else d * t for d, t in zip(first, times, strict=True)
        ]
    if op_type == "Resize":
        return [None] * rank
    return _of_weights(op_type, first, operands, attributes)


def _sliced(first: Dims, operands: Sequence[ir.Value | None]) -> Dims:
    starts, ends, axes, steps = (_ints(x) for x in [*operands[1:], None, None][:4])
    given = len(operands) > 3 and operands[3] is not None
    rank = len(first)
    if axes is None:
        length = _dims(operands[1])
        if given or not length or length[0] is None:
            return [None] * rank
        axes = list(range(length[0]))
    result = list(first)
    known = starts is not None and ends is not None
    stepped = len(operands) > 4 and operands[4] is not None
    for number, axis in enumerate(a % rank for a in axes):
        size = first[axis]
        step = steps[number] if steps is not None else None if stepped else 1
        if size is None or not known or step is None:
            result[axis] = None
        else:
            assert starts is not None
            assert ends is not None
            result[axis] = len(range(*slice(starts[number], ends[number], step).indices(size)))
    return result


def _padded(first: Dims, operands: Sequence[ir.Value | None]) -> Dims:
    pads = _entries(operands[1])
    rank = len(first)
    axes = _ints(operands[3]) if len(operands) > 3 and operands[3] is not None else [*range(rank)]
    if pads is None or axes is None:
        return [None] * rank
    result = list(first)
    for number, axis in enumerate(a % rank for a in axes):
        size, before, after = first[axis], pads[number], pads[number + len(axes)]
        known = size is not None and before is not None and after is not None
        result[axis] = size + before + after if known else None  # type: ignore[operator]
    return result


def _of_weights(
    op_type: str, first: Dims, operands: Sequence[ir.Value | None], attributes: dict[str, Any]
) -> Dims | None:
    """What a weight's shape or the operator alone says; the places along an image are not told."""
    rank = len(first)
    if op_type in ("Conv", "ConvTranspose"):
        weight = _dims(operands[1])
        if weight is None:
            return None
        channels = weight[0]
        if op_type == "ConvTranspose":
            channels = None if weight[1] is None else weight[1] * attributes.get("group", 1)
        return [first[0], channels, *[None] * (rank - 2)]
    if op_type in ("AveragePool", "MaxPool"):
        return [*first[:2], *[None] * (rank - 2)]
    if op_type == "GlobalAveragePool":
        return [*first[:2], *[1] * (rank - 2)]
    return None


def _reduced(
    op_type: str,
    first: Dims,
    operands: Sequence[ir.Value | None],
    attributes: dict[str, Any],
) -> Dims | None:
    rank = len(first)
    keep = attributes.get("keepdims", 1)
    if op_type.startswith("Arg"):
        axes: list[int] | None = [attributes.get("axis", 0)]
    elif attributes.get("axes") is not None:
        axes = list(attributes["axes"])
    elif len(operands) > 1:
        axes = _ints(operands[1])
        if axes is None:
            return None
    else:
        axes = list(range(rank))
    reduced = {a % rank for a in axes or ()} if rank else set()
    if keep:
        return [1 if i in reduced else d for i, d in enumerate(first)]
    return [d for i, d in enumerate(first) if i not in reduced]
