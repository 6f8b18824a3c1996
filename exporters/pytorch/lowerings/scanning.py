"""``Scan``: a body of nodes that runs over the first dim of sequences."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

from exporters.tracing.finish import live_nodes
from exporters.tracing.graph import Block

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from exporters.tracing.graph import GraphBuilder as Op

__all__ = ["scan"]


def _item(op: Op, name: str, like: ir.Value, dims: Sequence[object]) -> ir.Value:
    return ir.Value(
        name=op.unique_name(name),
        type=ir.TensorType(like.dtype),
        shape=ir.Shape([d if isinstance(d, int) else None for d in dims]),
    )


def scan(
    op: Op,
    step: Callable[[list[ir.Value], list[ir.Value]], tuple[list[ir.Value], ir.Value]],
    states: Sequence[ir.Value],
    sequences: Sequence[ir.Value],
    *,
    backward: bool = False,
) -> tuple[ir.Value, list[ir.Value]]:
    """Emit a ``Scan-11``.

    Args:
        op: Builder of the graph.
        step: ``(states, items) -> (new states, output)``, values of nodes that it emits.
        states: What the first step starts with.
        sequences: What the items are cut from, along the first dim.
        backward: The last items come first, and the last output belongs to them.

    Returns:
        The stacked outputs, and the states after the last step.
    """
    block = Block("loop", op.block)
    inputs = [_item(op, "state", s, s.shape.dims) for s in states]
    items = [_item(op, "item", s, s.shape.dims[1:]) for s in sequences]
    block.inputs = [*inputs, *items]
    for value in block.inputs:
        value.meta["block"] = block
    op.block = block
    try:
        new, output = step(inputs, items)
    finally:
        assert block.parent is not None
        op.block = block.parent
    results = [*new, output]
    body = ir.Graph(
        block.inputs, results, nodes=live_nodes(block.nodes, results), name=op.unique_name("scan")
    )
    direction = [1] * len(sequences) if backward else None
    emitted = op.Scan(
        *states, *sequences, body=body, num_scan_inputs=len(sequences), outputs=len(results),
        scan_input_directions=direction, scan_output_directions=[1] if backward else None,
    )  # fmt: skip
    *finals, outputs = emitted if isinstance(emitted, list) else [emitted]
    for final, state in zip(finals, states, strict=True):
        final.type, final.shape = ir.TensorType(state.dtype), state.shape.copy()
    outputs.type = ir.TensorType(output.dtype)
    return outputs, finals
