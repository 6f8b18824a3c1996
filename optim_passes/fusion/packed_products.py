"""One product that is cut into parts afterwards becomes one product for each part."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from optim_passes.rewriting import NodePass
from optim_passes.simplify.slices import slice_ranges
from optim_passes.tensors import derived
from optim_passes.values import (
    attribute,
    constant,
    dims,
    input_of,
    ints,
    norm_axis,
    only_consumer,
    producer,
    rank,
)
from optim_passes.views import permutation

if TYPE_CHECKING:
    import onnx_ir as ir

    from optim_passes.builder import Builder

__all__ = ["UnpackProductPass"]


class UnpackProductPass(NodePass):
    """Slices of ``x @ W + b`` along its last axis become products with columns of ``W``.

    Splitting costs a copy of the result; as many products of the columns cost, on a CPU, as much
    as the one. Only where all that is read of the product are such slices.
    """

    op_types: ClassVar[frozenset[str]] = frozenset({"Slice", "Split"})

    def rewrite(self, node: ir.Node, op: Builder) -> Any:
        """The product of each part."""
        y = node.inputs[0]
        ranges = _ranges(node)
        if node.domain or y is None or ranges is None:
            return None
        used = [_ranges(use.node) for use in y.uses()]
        width = (dims(y) or (None,))[-1]
        if y.is_graph_output() or any(r is None for r in used) or not isinstance(width, int):
            return None
        if sum(high - low for r in used if r is not None for low, high in r) > width:
            return None
        parts = [_columns(y, low, high, op) for low, high in ranges]
        return None if any(p is None for p in parts) else parts


def _ranges(node: ir.Node) -> list[tuple[int, int]] | None:
    """The parts of the last axis that a Slice or Split takes; None if it takes something else."""
    size, shape = rank(node.inputs[0]), dims(node.inputs[0])
    if size is None or shape is None or node.domain:
        return None
    if node.op_type == "Slice":
        found = slice_ranges(node)
        if found is None or set(found) != {size - 1}:
            return None
        return list(found.values())
    if node.op_type != "Split" or norm_axis(attribute(node, "axis", 0), size) != size - 1:
        return None
    given = input_of(node, 1)
    sizes = attribute(node, "split") if given is None else ints(given)
    if given is not None and sizes is None:
        return None
    width, count = shape[-1], len(node.outputs)
    if sizes is None:
        if not isinstance(width, int) or width % count:
            return None
        sizes = [width // count] * count
    ranges, start = [], 0
    for part in sizes:
        ranges.append((start, start + part))
        start += part
    return ranges


def _columns(y: ir.Value, low: int, high: int, op: Builder) -> ir.Value | None:
    """Some columns of a product with a constant matrix, and of the bias added to it."""
    add = producer(y, "Add")
    if add is not None:
        product, bias = add.inputs
        if constant(product) is not None:
            product, bias = bias, product
        tensor = constant(bias)
        if tensor is None or product is None or only_consumer(product) is None:
            return None
        size, shape = rank(product), tensor.shape.numpy()
        if size != rank(y) or any(n != 1 for n in shape[:-1]) or not shape or shape[-1] < high:
            return None
        part = _columns(product, low, high, op)
        if part is None:
            return None
        row = derived(lambda b: b[..., low:high], tensor, shape=[*shape[:-1], high - low])
        return op.Add(part, op.constant(row))
    node = producer(y, "MatMul")
    if node is None:
        return None
    weight, turned = node.inputs[1], producer(node.inputs[1], "Transpose")
    if turned is not None and permutation(turned) == [1, 0]:
        tensor = constant(turned.inputs[0])
        if tensor is None:
            return None
        rows = derived(lambda w: w[low:high], tensor, shape=[high - low, tensor.shape.numpy()[1]])
        return op.MatMul(node.inputs[0], op.Transpose(op.constant(rows), perm=[1, 0]))
    tensor = constant(weight)
    if tensor is None or len(tensor.shape) != 2:
        return None
    columns = derived(
        lambda w: w[:, low:high], tensor, shape=[tensor.shape.numpy()[0], high - low]
    )
    return op.MatMul(node.inputs[0], op.constant(columns))
