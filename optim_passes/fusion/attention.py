"""Scaled dot-product attention written out becomes one ``Attention`` or ``MultiHeadAttention``."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar

import ml_dtypes
import numpy as np
import onnx_ir as ir

from optim_passes.builder import refine_shape
from optim_passes.fusion.attention_layout import flat_heads
from optim_passes.rewriting import NodePass, require
from optim_passes.values import (
    attribute,
    dims,
    floats_of,
    norm_axis,
    only_consumer,
    producer,
    rank,
    same_dim,
    same_shape,
    scalar,
)
from optim_passes.views import permutation, view_of

if TYPE_CHECKING:
    from optim_passes.builder import Builder

__all__ = ["AttentionFusionPass"]

_DTYPES = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_LARGE = 1 << 24  # elements of a constant mask that are worth looking at
_FILL = -1e4  # scores at or below this contribute nothing to a softmax


@dataclasses.dataclass(slots=True)
class _Scores:
    """What goes into the softmax: ``scale * factors * query @ key.T + masks``.

    The factors are one for each head. A mask has the number of heads beside it if it came where a
    product of three dims had its batch and heads apart. What was added may be scaled by a number.
    """

    product: ir.Node
    scale: float = 1.0
    factors: list[tuple[str, ir.Value]] = dataclasses.field(default_factory=list)
    added: list[tuple[ir.Value, int | None]] = dataclasses.field(default_factory=list)
    scales: list[float] = dataclasses.field(default_factory=list)
    allowed: list[tuple[ir.Value, bool, int | None]] = dataclasses.field(default_factory=list)
    path: list[ir.Node] = dataclasses.field(default_factory=list)
    hidden: ir.Value | None = None

    def hide(self, hidden: tuple[ir.Value, bool]) -> bool:
        """Let queries that may see no key give 0; say whether a mask says where that is."""
        self.hidden = hidden[0]
        return any(hidden == (condition, allowed) for condition, allowed, _ in self.allowed)


class AttentionFusionPass(NodePass):
    """``softmax(scale * q @ k.T + mask) @ v`` becomes ``Attention`` (opset 23 and later).

    Masks may be added or chosen by ``Where``; rows of NaN may be replaced by 0, as torch.onnx
    writes it. With an older opset, ONNX Runtime's ``MultiHeadAttention`` is used if allowed.

    Args:
        contrib: Whether operators of ONNX Runtime's own domain may be used.
    """

    op_types: ClassVar[frozenset[str]] = frozenset({"MatMul"})

    def __init__(self, *, contrib: bool = False) -> None:
        super().__init__()
        self.contrib = contrib

    def rewrite(self, node: ir.Node, op: Builder) -> Any:
        """The attention."""
        weights, value = node.inputs
        softmax, guarded, hidden = _softmax(weights)
        if node.domain or softmax is None or value is None:
            return None
        size = rank(softmax.inputs[0])
        if size is None or norm_axis(attribute(softmax, "axis", -1), size) != size - 1:
            return None
        scores = _scores(softmax.inputs[0])
        size = None if scores is None else rank(scores.product.outputs[0])
        if scores is None or size is None or size != rank(node.outputs[0]):
            return None
        if hidden is not None and not scores.hide(hidden):
            return None
        require(op.opset >= 23 or self.contrib, f"opset {op.opset} has no Attention")
        require(size in (3, 4, 5), f"the scores have rank {size}", softmax)
        require(value.dtype in _DTYPES, "the dtype has no kernel", value)
        inside = [weights, softmax.outputs[0], *(n.outputs[0] for n in scores.path)]
        for inner in inside if not guarded else inside[2:]:
            alone = inner is not None and only_consumer(inner) is not None
            require(alone, "the attention weights have another use", inner)
        query, scale = _unscaled(scores.product.inputs[0], scores.scale)
        for op_type, factor in scores.factors:
            query = op.node(op_type, query, factor)
        key, scale = _key(scores.product.inputs[1], scale, op)
        require(key is not None, "the second factor of the scores is no transposed key", node)
        assert key is not None
        operands = [query, key, value]
        _require_one_batch(operands, scores, size)
        if size == 3:  # one batch of all the heads
            operands = [op.Unsqueeze(x, [0]) for x in operands]
        if size == 5:
            require(all(rank(c) != 5 for c, *_ in scores.allowed), "its mask has rank 5", node)
            batches = [(dims(m) or ())[0] for m, _ in scores.added if rank(m) == 5]
            require(all(n == 1 for n in batches), "the mask has a batch of its own", node)
            windows = any(rank(m) == 5 and (dims(m) or ())[1] != 1 for m, _ in scores.added)
            apart = _apart(query, value, op, fixed=windows)
            operands = [op.Reshape(x, [-1, *_inner_sizes(x)]) for x in operands]
        zeros = guarded or hidden is not None
        mask, causal = _mask(scores, operands, op, guarded=zeros, grouped=size == 3)
        if op.opset >= 23:
            y = op.node(
                "Attention", *operands, mask, scale=scale, is_causal=int(causal) or None,
                like=node.outputs[0] if size == 4 else None,
            )  # fmt: skip
            if size != 3:
                query, _, value = operands
                refine_shape(y, [*(dims(query) or ())[:3], (dims(value) or ())[3]])
        else:
            y = _multi_head(operands, mask, op, scale=scale, causal=causal, guarded=zeros)
        if size == 5:
            return op.Reshape(y, apart)
        return op.Squeeze(y, [0]) if size == 3 else y


def _require_one_batch(operands: list[ir.Value], scores: _Scores, size: int) -> None:
    """Refuse operands that products broadcast: the kernel takes one size of batch and of heads."""
    for x in operands:
        require(rank(x) == size, f"an operand has rank {rank(x)} beside scores of {size}", x)
    shapes = [dims(x) or () for x in operands]
    masks = [mask for mask, _ in scores.added] + [mask for mask, _, _ in scores.allowed]
    shapes += [dims(m) or () for m in masks if rank(m) == size]
    for axis in range(size - 2):
        ones = [shape[axis] == 1 for shape in shapes]
        fits = any(ones[:3]) <= all(ones[:3])
        require(fits, "an operand has one batch for many", operands[0])
        many = not all(ones[3:]) and ones[0]
        require(not many, "the mask has more batches than the operands", operands[0])


def _inner_sizes(value: ir.Value) -> list[int]:
    """The sizes of all axes but the first two, which are static."""
    sizes = (dims(value) or (None,))[2:]
    require(all(isinstance(n, int) for n in sizes), "sizes beside five dims vary", value)
    return [int(n) for n in sizes]  # type: ignore[arg-type]


def _apart(query: ir.Value, value: ir.Value, op: Builder, *, fixed: bool) -> Any:
    """The shape of the result of five dims: batch and groups as the queries have them."""
    inner = [*_inner_sizes(query)[:2], _inner_sizes(value)[-1]]
    groups = (dims(query) or (None,) * 2)[1]
    if isinstance(groups, int):
        return [-1, groups, *inner]
    require(not fixed, "the number of windows varies", query)
    require(op.opset >= 15, f"opset {op.opset} cannot take the groups apart", query)
    return op.Concat(op.Shape(query, start=0, end=2), np.asarray(inner, np.int64), axis=0)


def _softmax(
    weights: ir.Value | None,
) -> tuple[ir.Node | None, bool, tuple[ir.Value, bool] | None]:
    """The softmax that attention weights come from.

    Also whether its NaNs are replaced by 0, or where weights are: by a condition, and whether those
    are kept where it is true.
    """
    node = producer(weights, "Softmax", "Where", "Reshape")
    if node is None or node.op_type == "Softmax":
        return node, False, None
    if node.op_type == "Reshape":
        softmax = producer(node.inputs[0], "Softmax") if _regroups(node) else None
        return softmax, False, None
    condition, first, second = node.inputs
    for zero, kept, allowed in ((first, second, False), (second, first, True)):
        softmax = producer(kept, "Softmax")
        if scalar(zero) != 0 or softmax is None or condition is None:
            continue
        is_nan = producer(condition, "IsNaN")
        if is_nan is None:
            return softmax, False, (condition, allowed)
        if is_nan.inputs[0] is kept and not allowed:
            return softmax, True, None
    return None, False, None


def _scores(value: ir.Value | None) -> _Scores | None:
    """Follow the scores up to the product of queries and keys."""
    node = producer(value, "MatMul", "Mul", "Div", "Add", "Where", "Reshape")
    if node is None:
        return None
    if node.op_type == "Reshape":
        return _windows(node) or _regrouped(node)
    if node.op_type == "MatMul":
        return _Scores(node, path=[node])
    if node.op_type in ("Mul", "Div"):
        factor, x = scalar(node.inputs[1]), node.inputs[0]
        if factor is None and node.op_type == "Mul":
            factor, x = scalar(node.inputs[0]), node.inputs[1]
        if factor is None:
            return _scaled_heads(node)
        scores = None if not factor else _scores(x)
        if scores is None or factor is None or scores.allowed:
            return None
        factor = factor if node.op_type == "Mul" else 1 / factor
        scores.scale *= factor
        scores.scales = [n * factor for n in scores.scales]
        scores.path.append(node)
        return scores
    if node.op_type == "Where":
        return _where(node)
    for x, mask in (list(node.inputs), list(node.inputs)[::-1]):
        scores = _scores(x)
        if scores is None or mask is None:
            continue
        scores.added.append((mask, _heads_apart(x, mask, scores)))
        scores.scales.append(1.0)
        scores.path.append(node)
        return scores
    return None


def _scaled_heads(node: ir.Node) -> _Scores | None:
    """Scores times a factor for each head, which the queries can be multiplied by as well."""
    sides = [list(node.inputs), list(node.inputs)[::-1]]
    for x, factor in sides if node.op_type == "Mul" else sides[:1]:
        shape = dims(factor)
        if factor is None or shape is None or len(shape) < 3 or shape[-2:] != (1, 1):
            continue
        scores = _scores(x)
        if scores is None or scores.added or scores.allowed:
            continue
        size = rank(scores.product.outputs[0])
        if rank(x) != size or len(shape) > (size or 0):
            continue
        scores.factors.append((node.op_type, factor))
        scores.path.append(node)
        return scores
    return None


def _heads_apart(x: ir.Value | None, mask: ir.Value, scores: _Scores) -> int | None:
    """The number of heads if ``x`` has four dims, and the product three that come from these."""
    if rank(x) == rank(scores.product.outputs[0]) or rank(x) == 5 or (rank(mask) or 0) < 3:
        return None
    heads = (dims(x) or (None, None))[1]
    require(rank(mask) == 4 and isinstance(heads, int), "heads and their masks vary", mask)
    return heads  # type: ignore[return-value]  # just seen


def _regroups(node: ir.Node) -> bool:
    """Whether a Reshape takes the batch and the heads apart, or puts them together."""
    before, after = dims(node.inputs[0]), dims(node.outputs[0])
    if before is None or after is None or {len(before), len(after)} != {3, 4}:
        return False
    return all(map(same_dim, before[-2:], after[-2:]))


def _regrouped(node: ir.Node) -> _Scores | None:
    """Scores whose batch and heads are apart, or together again."""
    scores = _scores(node.inputs[0]) if _regroups(node) else None
    if scores is None or rank(scores.product.outputs[0]) != 3:
        return None
    scores.path.append(node)
    return scores


def _windows(node: ir.Node) -> _Scores | None:
    """Scores to which a mask for each window was added while they had one dim more.

    Swin counts the windows of all images as a batch; the mask has 1 for the images.
    """
    add = producer(node.inputs[0], "Add")
    if add is None:
        return None
    for x, mask in (list(add.inputs), list(add.inputs)[::-1]):
        apart = producer(x, "Reshape")
        if apart is None or mask is None or not same_shape(apart.inputs[0], node.outputs[0]):
            continue
        shape, windows = dims(x), dims(mask)
        if shape is None or windows is None or len(shape) != 5 or len(windows) != 5:
            continue
        if windows[0] != 1 or not isinstance(windows[1], int) or windows[1] != shape[1]:
            continue
        scores = _scores(apart.inputs[0])
        if scores is not None:
            scores.added.append((mask, None))
            scores.scales.append(1.0)
            scores.path += [apart, add, node]
            return scores
    return None


def _where(node: ir.Node) -> _Scores | None:
    condition, first, second = node.inputs
    for x, fill, allowed in ((first, second, True), (second, first, False)):
        number = scalar(fill)
        scores = None if number is None or number > _FILL else _scores(x)
        if scores is not None and condition is not None:
            scores.allowed.append((condition, allowed, _heads_apart(x, condition, scores)))
            scores.path.append(node)
            return scores
    return None


def _unscaled(value: ir.Value | None, scale: float) -> tuple[ir.Value, float]:
    """A factor of the scores without a number that it is multiplied by."""
    assert value is not None
    node = producer(value, "Mul", "Div")
    if node is None:
        return value, scale
    x, number = node.inputs
    if node.op_type == "Mul" and scalar(number) is None:
        x, number = number, x
    factor = scalar(number)
    if not factor or x is None or (rank(number) or 0) > (rank(x) or 0):
        return value, scale
    return x, scale * factor if node.op_type == "Mul" else scale / factor


def _key(value: ir.Value | None, scale: float, op: Builder) -> tuple[ir.Value | None, float]:
    """The keys, from the transposed keys; the Transpose goes away with the one before it."""
    value, scale = _unscaled(value, scale)
    size, view = rank(value), view_of(value)
    if size is None or view is None:
        return None, scale
    turned = [*range(size - 2), size - 1, size - 2]
    if all(n.op_type != "Transpose" for n in view.nodes):
        free = 1 in (dims(value) or ())[-2:]  # of one key, turning is a Reshape
        return op.Transpose(value, perm=turned) if free else None, scale
    last = view.nodes[-1]
    before = permutation(last) if last.op_type == "Transpose" else None
    if before is None:
        return op.Transpose(value, perm=turned), scale
    x, scale = _unscaled(last.inputs[0], scale)
    both = [before[i] for i in turned]
    return x if both == sorted(both) else op.Transpose(x, perm=both), scale


def _mask(
    scores: _Scores, operands: list[ir.Value], op: Builder, *, guarded: bool, grouped: bool
) -> tuple[ir.Value | None, bool]:
    """One mask of four dims that does not broadcast over queries and keys, or causal.

    ONNX Runtime's kernel returns 0 where a row is masked everywhere, by -inf or by the lowest
    number. Written out, the one is NaN, which may be replaced by 0, and the other the mean of all
    values. So masks are kept off the lowest number.
    """
    query, key, _ = operands
    given = []
    for condition, allowed, heads in scores.allowed:
        hidden = condition is scores.hidden
        low = op.number(-np.inf if hidden else _lowest(query.dtype), query)
        zero = op.number(0, query)
        given.append((op.Where(condition, *((zero, low) if allowed else (low, zero))), heads))
    for (mask, heads), factor in zip(scores.added, scores.scales, strict=True):
        given.append((mask if factor == 1 else op.Mul(mask, op.number(factor, query)), heads))
    masks = []
    for mask, heads in given:
        if heads is not None:
            mask = _for_each_head(mask, heads, query, op)
        masks.append(_for_each_image(mask, query, op) if rank(mask) == 5 else mask)
    if not masks:
        return None, False
    if len(masks) == 1 and _is_causal(masks[0], query, key):
        return None, True
    total = masks[0]
    for mask in masks[1:]:
        total = op.Add(total, mask)
    if not _is_harmless(total):
        total = _above_lowest(total, query.dtype, op, guarded=guarded)
    if grouped and rank(total) == 3:
        total = op.Unsqueeze(total, [0])
    return _full_size(total, query, key, op), False


def _lowest(dtype: ir.DataType | None) -> float:
    """Low enough to mask, and not the lowest number, which the kernel takes for -inf."""
    assert dtype is not None
    return float(ml_dtypes.finfo(dtype.numpy()).min) * 0.75


def _for_each_image(mask: ir.Value, query: ir.Value, op: Builder) -> ir.Value:
    """A mask of each window ``[1, windows, ...]`` for the windows of all images, in order."""
    windows = (dims(mask) or ())[1]
    single: ir.Value = op.Squeeze(mask, [0])
    if windows == 1 or same_dim((dims(query) or (None,))[0], windows):
        return single
    images = op.Div(op.Shape(query, start=0, end=1), np.asarray([windows], np.int64))
    ones = np.asarray([1, 1, 1], np.int64)
    tiled: ir.Value = op.Tile(single, op.Concat(images, ones, axis=0))
    return tiled


def _for_each_head(mask: ir.Value, heads: int, query: ir.Value, op: Builder) -> ir.Value:
    """A mask ``[batch, heads, queries, keys]`` as ``[batch * heads, queries, keys]``."""
    shape = dims(mask) or ()
    if shape[0] == shape[1] == 1:
        single: ir.Value = op.Squeeze(mask, [0])
        return single
    require(op.opset >= 15, f"opset {op.opset} cannot take the mask apart", mask)
    batch = op.Div(op.Shape(query, start=1, end=2), np.asarray([heads], np.int64))
    wide = op.Expand(mask, op.Concat(batch, np.asarray([heads, 1, 1], np.int64), axis=0))
    sizes = op.Concat(np.asarray([-1], np.int64), op.Shape(mask, start=2), axis=0)
    grouped: ir.Value = op.Reshape(wide, sizes)
    grouped.shape = ir.Shape([None, shape[2], shape[3]])
    return grouped


def _above_lowest(
    mask: ir.Value, dtype: ir.DataType | None, op: Builder, *, guarded: bool
) -> ir.Value:
    """The mask with larger numbers for what is too low; -inf stays where NaN becomes 0."""
    lowest = _lowest(dtype)
    chosen = producer(mask, "Where")
    fills = [] if chosen is None else [floats_of(v) for v in chosen.inputs[1:]]
    if chosen is not None and all(f is not None and f.size == 1 for f in fills):
        kept = [
            f if guarded and f == -np.inf else np.maximum(f, f.dtype.type(lowest))
            for f in fills
            if f is not None
        ]
        chosen_again: ir.Value = op.Where(chosen.inputs[0], *kept)
        return mask if kept == fills else chosen_again
    raised: ir.Value = op.Max(mask, op.number(lowest, mask))
    return op.Where(op.IsInf(mask), mask, raised) if guarded else raised


def _is_harmless(mask: ir.Value) -> bool:
    """Whether a mask leaves some key to every query, or never comes near the lowest number."""
    array = floats_of(mask)
    if array is not None and array.size <= _LARGE:
        return bool((array.astype(np.float32).max(-1) > _FILL).all())
    return _is_bounded(mask)


def _is_bounded(mask: ir.Value | None) -> bool:
    """Whether a mask is a sum of constants that are all far above the lowest number."""
    node = producer(mask, "Add", "Tile", "Squeeze", "Unsqueeze", "Expand")
    if node is not None:
        return all(map(_is_bounded, node.inputs[: 2 if node.op_type == "Add" else 1]))
    array = floats_of(mask)
    if array is None or array.size > _LARGE:
        return False
    return bool((array.astype(np.float32) > _FILL).all())


def _is_causal(mask: ir.Value, query: ir.Value, key: ir.Value) -> bool:
    """Whether a constant mask hides exactly the keys that come after the query."""
    array = floats_of(mask)
    if array is None or array.ndim < 2 or array.size > _LARGE:
        return False
    rows, columns = array.shape[-2:]
    if rows != columns or array.size != rows * columns or rows == 1:
        return False
    if not _sizes_are(query, rows) or not _sizes_are(key, rows):
        return False
    square = array.reshape(rows, columns).astype(np.float32)
    seen = np.tri(rows, dtype=bool)
    return bool((square[seen] == 0).all() and (square[~seen] <= _FILL).all())


def _sizes_are(value: ir.Value, size: int) -> bool:
    shape = dims(value)
    return shape is not None and shape[-2] == size


def _full_size(mask: ir.Value, query: ir.Value, key: ir.Value, op: Builder) -> ir.Value:
    """The mask with all queries and all keys: the kernel does not broadcast over these."""
    shape = dims(mask)
    require(shape is not None, "the rank of the mask is not known", mask)
    assert shape is not None
    if len(shape) < 4:
        mask = op.Unsqueeze(mask, list(range(4 - len(shape))))
        shape = ((1,) * (4 - len(shape))) + shape
    wanted = (dims(query) or (None,) * 4)[-2], (dims(key) or (None,) * 4)[-2]
    if all(same_dim(a, b) for a, b in zip(shape[-2:], wanted, strict=True)):
        return mask
    if all(isinstance(n, int) for n in wanted):
        return op.Expand(mask, [1, 1, *wanted])
    sizes = [op.Shape(x, start=2, end=3) for x in (query, key)]
    return op.Expand(mask, op.Concat(np.asarray([1, 1], np.int64), *sizes, axis=0))


def _multi_head(
    operands: list[ir.Value], mask: ir.Value | None, op: Builder, *,
    scale: float, causal: bool, guarded: bool,
) -> ir.Value:  # fmt: skip
    """ONNX Runtime's operator, whose operands have the heads side by side in the last axis."""
    require(not guarded or mask is None, "rows of NaN are 0 only in Attention of opset 23", mask)
    heads = (dims(operands[0]) or (None,) * 4)[1]
    require(isinstance(heads, int), "the number of heads is not static", operands[0])
    flat = []
    for x in operands:
        shape = dims(x)
        require(shape is not None and isinstance(shape[-1], int), "the head size varies", x)
        assert shape is not None
        joined = flat_heads(x, op)
        if joined is None:
            width = heads * shape[-1]  # type: ignore[operator]
            joined = op.Reshape(op.Transpose(x, perm=[0, 2, 1, 3]), [0, 0, width])
        flat.append(joined)
    query, key, value = flat
    y = op.ms(
        "MultiHeadAttention", query, key, value, None, None, mask, like=query, num_heads=heads,
        scale=scale, unidirectional=int(causal) or None,
    )  # fmt: skip
    size = (dims(operands[2]) or (None,) * 4)[-1]
    return op.Transpose(op.Reshape(y, [0, 0, heads, size]), perm=[0, 2, 1, 3])
