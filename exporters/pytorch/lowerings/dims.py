"""What is known of a graph value's sizes while a lowering runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Hashable

    import onnx_ir as ir

    from exporters.tracing.graph import GraphBuilder as Op

__all__ = ["same_size", "size_key", "static_size", "static_sizes", "sum_of", "tuple_of"]


def tuple_of(x: Any, n: int) -> list[int]:
    """Torch's "one number or one per dim", as one per dim."""
    if not isinstance(x, list | tuple):
        return [x] * n
    return [x[0]] * n if len(x) == 1 else list(x)


def static_size(x: ir.Value, axis: int) -> int | None:
    """The size along ``axis`` when it is the same for every input."""
    size = x.shape.dims[axis]
    return size if isinstance(size, int) else None


def static_sizes(x: ir.Value) -> list[int | None]:
    """The size of every dim, None where it is dynamic."""
    return [static_size(x, axis) for axis in range(len(x.shape.dims))]


def size_key(x: ir.Value, axis: int) -> Hashable | None:
    """What two dims of always equal size have in common; None where nothing is known."""
    static = static_size(x, axis)
    if static is not None:
        return static
    sizes = x.meta.get("sizes")
    if sizes is None:
        return None
    here: tuple[int, ...] = sizes[axis]
    return here if len(set(here)) > 1 else None  # one world, or a size that depends on data


def same_size(x: ir.Value, axis: int, y: ir.Value, other_axis: int) -> bool:
    """Whether a dim of ``x`` and a dim of ``y`` have the same size for every input."""
    key = size_key(x, axis)
    return key is not None and key == size_key(y, other_axis)


def sum_of(op: Op, *sizes: Any) -> Any:
    """The sum of ints and INT64 values."""
    total: Any = sum(s for s in sizes if isinstance(s, int))
    for size in sizes:
        if not isinstance(size, int):
            total = size if isinstance(total, int) and total == 0 else op.Add(size, total)
    return total
