"""A residual, a bias and a normalisation as one node of ONNX Runtime's own domain."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import onnx_ir as ir

from optim_passes.rewriting import NodePass, require, require_dtype
from optim_passes.values import (
    attribute,
    constant,
    input_of,
    norm_axis,
    only_consumer,
    producer,
    rank,
    same_shape,
)

if TYPE_CHECKING:
    from optim_passes.builder import Builder

__all__ = ["SkipNormPass"]

_DTYPES = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


class SkipNormPass(NodePass):
    """``norm(x + b + r)`` becomes ``SkipLayerNormalization`` or ``SkipSimplifiedLayerNormalization``.

    The sum is a result of the node, too, so it may be read further on. For the CUDA provider: on
    the CPU the kernel takes longer than the nodes that it stands for.
    """

    op_types: ClassVar[frozenset[str]] = frozenset({"LayerNormalization", "RMSNormalization"})

    def rewrite(self, node: ir.Node, op: Builder) -> Any:
        """The normalisation, with the sum as a result where that is read."""
        add = producer(node.inputs[0], "Add")
        used = [v for v in node.outputs[1:] if v.uses() or v.is_graph_output()]
        if node.domain or add is None or used:
            return None
        total = add.outputs[0]
        size = rank(total)
        x, skip = add.inputs
        if size is None or x is None or skip is None or not same_shape(x, skip):
            return None
        require(size == 3, f"the rank is {size}", total)
        require_dtype(total, *_DTYPES)
        require(
            norm_axis(attribute(node, "axis", -1), size) == size - 1, "it is not of rows", node
        )
        require(not total.is_graph_output(), "the sum is a result of the model", total)
        scale, shift = node.inputs[1], input_of(node, 2)
        require(rank(scale) == 1, "the scale is not of rows", scale)
        x, bias = _without_bias(x)
        if bias is None:
            skip, bias = _without_bias(skip)
        simple = node.op_type == "RMSNormalization"
        parameters = [scale, bias] if simple else [scale, shift, bias]
        alone = only_consumer(total) is node
        later = _nodes_after(node)
        early = [u for u in total.uses() if u.node is not node and u.node not in later]
        require(not early, "the sum is read before", total)
        made = op.ms(
            "SkipSimplifiedLayerNormalization" if simple else "SkipLayerNormalization",
            x, skip, *parameters, like=node.outputs[0], outputs=1 if alone else 4,
            epsilon=attribute(node, "epsilon", 1e-5),
        )  # fmt: skip
        if alone:
            return [made, *[None] * (len(node.outputs) - 1)]
        normal, mean, deviation, kept = made
        mean.name = deviation.name = ""  # left out
        kept.type, kept.shape = total.type, total.shape
        total.replace_all_uses_with(kept)
        return [normal, *[None] * (len(node.outputs) - 1)]


def _nodes_after(node: ir.Node) -> set[ir.Node]:
    """The nodes of the body behind this one, those of their subgraphs too."""
    graph = node.graph
    assert graph is not None
    found: set[ir.Node] = set()
    for each in reversed(graph):
        if each is node:
            break
        found.add(each)
        for attr in each.attributes.values():
            if attr.type == ir.AttributeType.GRAPH and not attr.is_ref():
                found.update(attr.as_graph().all_nodes())
    return found


def _without_bias(x: ir.Value) -> tuple[ir.Value, ir.Value | None]:
    """``y`` and ``b`` of ``y + b``, with a constant row that the kernel can add itself."""
    add = producer(x, "Add")
    if add is None or only_consumer(x) is None:
        return x, None
    for y, b in (list(add.inputs), list(add.inputs)[::-1]):
        if y is not None and constant(b) is not None and rank(b) == 1 and same_shape(y, x):
            return y, b
    return x, None
