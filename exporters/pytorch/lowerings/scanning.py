"""``Scan`` and ``Loop``: a body of nodes that runs several times."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

from exporters.tracing.finish import live_nodes
from exporters.tracing.graph import Block

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from exporters.tracing.graph import GraphBuilder as Op

__all__ = ["repeat", "scan"]


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
    computes: str = "",
) -> tuple[ir.Value, list[ir.Value]]:
    """Emit a ``Scan-11``.

    Args:
        op: Builder of the graph.
        step: ``(states, items) -> (new states, output)``, values of nodes that it emits.
        states: What the first step starts with.
        sequences: What the items are cut from, along the first dim.
        backward: The last items come first, and the last output belongs to them.
        computes: What it is part of, for passes that know a better way to compute that.

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
    if computes:
        outputs.producer().metadata_props["bridge.computes"] = computes
    for final, state in zip(finals, states, strict=True):
        final.type, final.shape = ir.TensorType(state.dtype), state.shape.copy()
    outputs.type = ir.TensorType(output.dtype)
    return outputs, finals


def repeat(
    op: Op,
    count: ir.Value,
    step: Callable[[ir.Value, ir.Value], ir.Value],
    state: ir.Value,
) -> ir.Value:
    """Emit a ``Loop-13`` that carries one state, whose sizes may change.

    Args:
        op: Builder of the graph.
        count: How often the body runs, INT64 of rank 0.
        step: ``(iteration, state) -> new state``, values of nodes that it emits.
        state: What the first iteration starts with.

    Returns:
        The state after the last iteration.
    """
    block = Block("loop", op.block)
    number, going = (
        ir.Value(name=op.unique_name(name), type=ir.TensorType(dtype), shape=ir.Shape([]))
        for name, dtype in (("iteration", ir.DataType.INT64), ("going", ir.DataType.BOOL))
    )
    carried = _item(op, "state", state, [None] * len(state.shape.dims))
    block.inputs = [number, going, carried]
    for value in block.inputs:
        value.meta["block"] = block
    op.block = block
    try:
        results = [op.Identity(going), step(number, carried)]
    finally:
        assert block.parent is not None
        op.block = block.parent
    body = ir.Graph(
        block.inputs, results, nodes=live_nodes(block.nodes, results), name=op.unique_name("loop")
    )
    final: ir.Value = op.Loop(count, True, state, body=body)
    final.type = ir.TensorType(state.dtype)
    return final
