"""Packed sequences: rows of a padded [T, B, ...] tensor that are not padding, time after time.

What is packed remembers what it was packed from, so that a recurrent layer reads the padded tensor
and the graph packs only what is used in its packed form.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import torch

from exporters.pytorch.lowerings import kernels
from exporters.pytorch.lowerings.dims import static_size
from exporters.pytorch.lowerings.shaping import rank
from exporters.pytorch.registry import lowers

if TYPE_CHECKING:
    from exporters.tracing.graph import GraphBuilder as Op

__all__ = ["Padded", "pack", "unpack"]

_KEY = "padded"  # in a packed value's meta


@dataclasses.dataclass(frozen=True)
class Padded:
    """A batch of sequences.

    Attributes:
        value: [T, B, ...], sorted from the longest sequence to the shortest.
        lengths: INT64 [B].
        clean: Whether there are zeros after each sequence's end.
    """

    value: ir.Value
    lengths: ir.Value
    clean: bool = False


def _swap(op: Op, x: ir.Value) -> ir.Value:
    return op.Transpose(x, perm=[1, 0, *range(2, rank(x))])


def _steps(op: Op, x: ir.Value) -> Any:
    """0, 1, ... along the first dim."""
    size = static_size(x, 0)
    if size is not None:
        return op.constant(np.arange(size))
    return op.Range(0, op.Squeeze(op.dim_vector(x, 0), [0]), 1)


def _inside(op: Op, padded: Padded) -> ir.Value:
    """Which places of [T, B] are not padding."""
    x, lengths = padded.value, padded.lengths
    size = static_size(x, 0)
    if size is not None and lengths.const_value is not None:
        return op.constant(np.arange(size)[:, None] < lengths.const_value.numpy())
    made: ir.Value = op.once(
        ("inside", x, lengths),
        lambda _: op.Less(op.Unsqueeze(_steps(op, x), [1]), lengths), x, lengths,
    )  # fmt: skip
    return made


def pack(op: Op, padded: Padded) -> ir.Value:
    """The rows that are not padding, [sum of lengths, ...]."""
    x, inside = padded.value, _inside(op, padded)
    flat = op.Reshape(x, op.concat_dims([-1, *(op.dim(x, i) for i in range(2, rank(x)))]))
    if inside.const_value is not None:
        data = op.Gather(flat, np.flatnonzero(inside.const_value.numpy()), axis=0)
    else:
        data = kernels.emit(op, "Compress", flat, op.Reshape(inside, [-1]), axis=0)
        data.shape = ir.Shape([None, *x.shape.dims[2:]])
        data.meta["unbacked"] = True
    data.meta[_KEY] = padded
    return data


def unpack(op: Op, data: ir.Value, batch_sizes: ir.Value) -> Padded:
    """What was packed, or what ``data`` looks like when it is padded with zeros."""
    known: Padded | None = data.meta.get(_KEY)
    if known is not None:
        return known
    source: Padded | None = batch_sizes.meta.get(_KEY)
    if source is not None:
        inside, lengths = _inside(op, source), source.lengths
    else:
        count = op.Gather(batch_sizes, 0)
        inside = op.Less(op.Range(0, count, 1), op.Unsqueeze(batch_sizes, [1]))
        lengths = op.ReduceSum(op.cast(inside, ir.DataType.INT64), [0], keepdims=0)
    numbers = op.Reshape(op.cast(inside, ir.DataType.INT64), [-1])
    places = op.Max(op.Sub(op.CumSum(numbers, np.asarray(0)), 1), np.asarray(0))
    rows = op.Gather(data, op.Reshape(places, op.Shape(inside)), axis=0)
    gate = op.Unsqueeze(inside, list(range(2, rank(data) + 1))) if rank(data) > 1 else inside
    value = op.Where(gate, rows, np.zeros([], data.dtype.numpy()))
    batch = None if source is None else source.value.shape.dims[1]
    value.shape = ir.Shape([None, batch, *data.shape.dims[1:]])
    return Padded(value, lengths, clean=True)


@lowers(torch._pack_padded_sequence)
def _pack_padded_sequence(
    op: Op, /, input: ir.Value, lengths: ir.Value, batch_first: bool
) -> tuple[ir.Value, ir.Value]:
    """Lower to ``Compress-11``, unless only recurrent layers read it."""
    padded = Padded(_swap(op, input) if batch_first else input, lengths)
    inside = _inside(op, padded)
    if inside.const_value is not None:
        longest = lengths.const_value.numpy().max()
        sizes = op.Identity(inside.const_value.numpy().sum(1)[:longest])
    else:
        counts = op.ReduceSum(op.cast(inside, ir.DataType.INT64), [1], keepdims=0)
        sizes = op.Slice(counts, [0], op.Gather(lengths, [0]))  # they are sorted
        sizes.shape = ir.Shape([None])
        sizes.meta["unbacked"] = True
    sizes.meta[_KEY] = padded
    return pack(op, padded), sizes


@lowers(torch._pad_packed_sequence)
def _pad_packed_sequence(
    op: Op, /, data: ir.Value, batch_sizes: ir.Value, batch_first: bool, padding_value: Any,
    total_length: int,
) -> tuple[ir.Value, ir.Value]:  # fmt: skip
    """Lower to ``Slice-13`` of what was packed, and to ``Where-16`` if its padding differs."""
    padded = unpack(op, data, batch_sizes)
    x, lengths = padded.value, padded.lengths
    if padding_value != 0 or not padded.clean:
        gate = op.Unsqueeze(_inside(op, padded), list(range(2, rank(x))))
        fill = np.asarray(padding_value, x.dtype.numpy())
        x = op.Where(gate if rank(x) > 2 else _inside(op, padded), x, fill)
    if op.same_size(total_length, batch_sizes, 0):
        x = op.Slice(x, [0], op.Gather(lengths, [0]))
        x.meta["unbacked"] = True
        x.shape = ir.Shape([None, *padded.value.shape.dims[1:]])
    elif static_size(x, 0) != total_length or hasattr(total_length, "record"):
        missing = op.Sub(op.operand([total_length]), op.dim_vector(x, 0))  # below 0 crops
        after = op.concat_dims([*[0] * rank(x), missing, *[0] * (rank(x) - 1)])
        x = op.Pad(x, after, np.asarray(padding_value, x.dtype.numpy()))
    return (_swap(op, x) if batch_first else x), op.Identity(lengths)
