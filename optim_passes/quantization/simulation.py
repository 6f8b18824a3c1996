"""A float graph in which each node can be quantized and set free again while it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from optim_passes.builder import Builder
from optim_passes.quantization.arithmetic import (
    Affine,
    affine_of_range,
    quantize,
    symmetric_scales,
)
from optim_passes.quantization.placement import CONVOLUTIONS, kernel_axis, place
from optim_passes.rewriting import Outcome, Pass
from optim_passes.scopes import Names
from optim_passes.values import constant

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from optim_passes.quantization.static import StaticOptions
    from optim_passes.scopes import Scope

__all__ = ["SWITCHES", "SimulationPass"]

SWITCHES = "bridge.quantized"  # the input with a truth value for each node


class SimulationPass(Pass):
    """``x`` becomes ``Where(switch, DQ(Q(x)), x)`` for what a node reads and makes.

    One session of the result tells what quantizing any set of nodes does: one run for each set.

    Args:
        ranges: Range of each activation; None simulates activations quantized as they come.
        wanted: Whether a node may be quantized.
        options: Those of the quantization to simulate.

    Attributes:
        nodes: Names of the nodes, in the order of the switches.
    """

    def __init__(
        self,
        ranges: Mapping[str, tuple[float, float]] | None,
        *,
        wanted: Callable[[ir.Node], bool],
        options: StaticOptions,
    ) -> None:
        super().__init__()
        self.ranges = ranges
        self.wanted = wanted
        self.options = options
        self.nodes: list[str] = []

    def call(self, model: ir.Model) -> Outcome:
        """Add the input, then the switches of the main graph."""
        self.switches = ir.Value(
            name=SWITCHES, type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape(["switches"])
        )
        model.graph.inputs.append(self.switches)
        return super().call(model)

    def run(self, scope: Scope, outcome: Outcome) -> None:
        """Make the nodes of one body switchable; of the main graph only."""
        if scope.outer is not None or scope.function is not None:
            return
        placement = place(scope, self.wanted, moving=self.options.followers)
        names = Names(scope.model)
        kernels = placement.kernels
        if self.ranges is None:
            kernels = [n for n in kernels if n.op_type not in CONVOLUTIONS]
        else:
            for value, result in placement.results.items():
                if result.scale_of is None and value.name and value.name in self.ranges:
                    low, high = self.ranges[value.name]
                    low = low if result.low is None else max(low, result.low)
                    high = high if result.high is None else min(high, result.high)
                    affine = affine_of_range(low, max(low, high), self.options.activation)
                    self._made(
                        value, result.absorbed or result.node, result.node, affine, scope, names
                    )
        for node in kernels:
            if self._kernel(node, scope, names):
                outcome.rewrites += 1

    def _switch(self, op: Builder, node: ir.Node) -> ir.Value:
        name = node.name or node.op_type
        if name not in self.nodes:
            self.nodes.append(name)
        index = op.constant(np.asarray(self.nodes.index(name), np.int64))
        return op.Gather(self.switches, index, axis=0)

    def _made(
        self,
        value: ir.Value,
        last: ir.Node,
        node: ir.Node,
        affine: Affine,
        scope: Scope,
        names: Names,
    ) -> None:
        """What a node makes, rounded where its switch is on."""
        uses = [(u.node, u.idx) for u in value.uses()]
        if not uses or value.is_graph_output():
            return
        op = Builder(scope, names, [last])
        y = op.Where(self._switch(op, node), self._rounded(op, value, affine), value)
        self._insert_after(op, last, scope)
        for user, index in uses:
            user.replace_input_with(index, y)

    def _kernel(self, node: ir.Node, scope: Scope, names: Names) -> bool:
        """What a kernel reads and its weights, rounded where its switch is on."""
        x, weight = node.inputs[:2]
        tensor = constant(weight)
        assert tensor is not None
        assert x is not None
        assert weight is not None
        op = Builder(scope, names, [node])
        switch = self._switch(op, node)
        if self.ranges is None:
            q, scale, zero = op.node("DynamicQuantizeLinear", x, outputs=3)
            rounded = op.node("DequantizeLinear", q, scale, zero, like=x)
            node.replace_input_with(0, op.Where(switch, rounded, x))
        elif x.name is not None and x.name in self.ranges:
            affine = affine_of_range(*self.ranges[x.name], self.options.activation)
            node.replace_input_with(0, op.Where(switch, self._rounded(op, x, affine), x))
        axis = kernel_axis(node) if self.options.per_channel else None
        array = tensor.numpy()
        scales = symmetric_scales(array, axis, self.options.weight_most)
        affine = Affine(scales, np.zeros(scales.shape, np.int8))
        along: dict[str, Any] = {"axis": axis} if scales.ndim else {}
        stored = op.constant(quantize(array, affine, axis))
        zero = op.constant(affine.zero_point)
        w = op.node("DequantizeLinear", stored, op.constant(scales), zero, like=weight, **along)
        node.replace_input_with(1, op.Where(switch, w, weight))
        for value in op.initializers:
            scope.model.graph.initializers.add(value)
        scope.body.insert_before(node, op.nodes)
        return True

    def _rounded(self, op: Builder, x: ir.Value, affine: Affine) -> ir.Value:
        scale, zero = op.constant(affine.scale), op.constant(affine.zero_point)
        q = op.QuantizeLinear(x, scale, zero)
        return op.node("DequantizeLinear", q, scale, zero, like=x)

    def _insert_after(self, op: Builder, node: ir.Node, scope: Scope) -> None:
        for value in op.initializers:
            scope.model.graph.initializers.add(value)
        scope.body.insert_after(node, op.nodes)
