"""Constants made from other constants when they are written or loaded, and not before.

A pass that transposes or scales a weight makes one of these: no copy of the weight exists while
the model is optimised, however many gigabytes it has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["derived", "transposed"]

_EAGER = 1024  # bytes up to which there is nothing to gain from waiting


def derived(
    compute: Callable[..., np.ndarray[Any, Any]],
    *tensors: ir.TensorProtocol,
    shape: Sequence[int] | None = None,
    dtype: ir.DataType | None = None,
) -> ir.TensorProtocol:
    """The tensor that ``compute`` makes from the contents of others.

    Args:
        compute: From arrays to an array; it is called whenever the contents are asked for.
        *tensors: What it is called with.
        shape: Shape of the result; that of the first tensor unless given.
        dtype: Element type of the result; that of the first tensor unless given.
    """
    first = tensors[0]
    sizes = list(first.shape.numpy() if shape is None else shape)
    dtype = dtype or first.dtype

    def make() -> ir.TensorProtocol:
        array = compute(*(t.numpy() for t in tensors))
        array = np.asarray(array, dtype.numpy())
        return ir.tensor(np.ascontiguousarray(array).reshape(sizes), dtype=dtype)

    if sum(t.nbytes for t in tensors) <= _EAGER:
        return make()
    return ir.LazyTensor(make, dtype, ir.Shape(sizes), cache=False)


def transposed(tensor: ir.TensorProtocol, perm: Sequence[int]) -> ir.TensorProtocol:
    """The tensor with its axes in another order."""
    sizes = tensor.shape.numpy()
    return derived(lambda x: np.transpose(x, perm), tensor, shape=[sizes[i] for i in perm])
