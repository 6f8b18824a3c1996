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
from optim_passes.quantization.dynamic import recurrent_refusal
from optim_passes.quantization.placement import PRODUCTS, RECURRENT, is_kernel, kernel_axis, place
from optim_passes.rewriting import Outcome, Pass
from optim_passes.scopes import Names
from optim_passes.values import constant, is_op

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
        ranges: Range of each activation that is quantized statically.
        options: Those of the quantization to simulate.
        static: Which nodes are quantized with these ranges; none unless given.
        dynamic: Which further products and LSTMs are quantized as their inputs come.
        weights: What a node's weights become where nothing else of it is quantized; None to leave it.

    Attributes:
        nodes: Names of the nodes, in the order of the switches.
    """

    def __init__(
        self,
        ranges: Mapping[str, tuple[float, float]],
        options: StaticOptions,
        *,
        static: Callable[[ir.Node], bool] | None = None,
        dynamic: Callable[[ir.Node], bool] | None = None,
        weights: Callable[[ir.Node], np.ndarray[Any, Any] | None] | None = None,
    ) -> None:
        super().__init__()
        self.ranges = ranges
        self.options = options
        self.static = static or (lambda _: False)
        self.dynamic = dynamic or (lambda _: False)
        self.weights = weights or (lambda _: None)
        self.nodes: list[str] = []

    def call(self, model: ir.Model) -> Outcome:
        """Add the input, then the switches."""
        self.switches = ir.Value(
            name=SWITCHES, type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape(["switches"])
        )
        model.graph.inputs.append(self.switches)
        return super().call(model)

    def run(self, scope: Scope, outcome: Outcome) -> None:
        """Make the nodes of one body switchable."""
        if scope.function is not None:
            return
        placement = place(scope, self.static, moving=self.options.followers)
        names = Names(scope.model)
        kernels = set(placement.kernels)
        others = [n for n in scope.body if n not in kernels]
        for value, result in placement.results.items():
            if result.scale_of is None and value.name and value.name in self.ranges:
                low, high = self.ranges[value.name]
                low = low if result.low is None else max(low, result.low)
                high = high if result.high is None else min(high, result.high)
                affine = affine_of_range(low, max(low, high), self.options.activation)
                last = result.absorbed or result.node
                self._made(value, last, result.node, affine, scope, names)
        for node in placement.kernels:
            self._kernel(node, scope, names, dynamic=False)
            outcome.rewrites += 1
        for node in others:
            if self.dynamic(node) and is_op(node, *PRODUCTS) and is_kernel(node):
                self._kernel(node, scope, names, dynamic=True)
            elif self.dynamic(node) and is_op(node, *RECURRENT) and not recurrent_refusal(node):
                self._recurrent(node, scope, names)
            elif (made := self.weights(node)) is not None:
                op = Builder(scope, names, [node])
                stored, weight = op.constant(made), node.inputs[1]
                node.replace_input_with(1, op.Where(self._switch(op, node), stored, weight))
                self._insert_before(op, node, scope)
            else:
                continue
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

    def _kernel(self, node: ir.Node, scope: Scope, names: Names, *, dynamic: bool) -> None:
        """What a kernel reads and its weights, rounded where its switch is on."""
        x, weight = node.inputs[:2]
        tensor = constant(weight)
        assert tensor is not None
        assert x is not None
        assert weight is not None
        op = Builder(scope, names, [node])
        switch = self._switch(op, node)
        if dynamic:
            q, scale, zero = op.node("DynamicQuantizeLinear", x, outputs=3)
            rounded = op.node("DequantizeLinear", q, scale, zero, like=x)
            node.replace_input_with(0, op.Where(switch, rounded, x))
        elif x.name is not None and x.name in self.ranges:
            affine = affine_of_range(*self.ranges[x.name], self.options.activation)
            node.replace_input_with(0, op.Where(switch, self._rounded(op, x, affine), x))
        axis = kernel_axis(node) if self.options.per_channel else None
        w = self._rounded_weights(op, weight, tensor.numpy(), axis)
        node.replace_input_with(1, op.Where(switch, w, weight))
        self._insert_before(op, node, scope)

    def _recurrent(self, node: ir.Node, scope: Scope, names: Names) -> None:
        """The weights of an LSTM or GRU, rounded where its switch is on."""
        op = Builder(scope, names, [node])
        switch = self._switch(op, node)
        for index in (1, 2):
            weight = node.inputs[index]
            tensor = constant(weight)
            assert tensor is not None
            assert weight is not None
            w = self._rounded_weights(op, weight, tensor.numpy(), 1)
            node.replace_input_with(index, op.Where(switch, w, weight))
        self._insert_before(op, node, scope)

    def _rounded_weights(
        self, op: Builder, weight: ir.Value, array: np.ndarray[Any, Any], axis: int | None
    ) -> ir.Value:
        scales = symmetric_scales(array, axis, self.options.weight_most)
        affine = Affine(scales, np.zeros(scales.shape, np.int8))
        along: dict[str, Any] = {"axis": axis} if scales.ndim else {}
        stored, zero = op.constant(quantize(array, affine, axis)), op.constant(affine.zero_point)
        made: ir.Value = op.node(
            "DequantizeLinear", stored, op.constant(scales), zero, like=weight, **along
        )
        return made

    def _rounded(self, op: Builder, x: ir.Value, affine: Affine) -> ir.Value:
        scale, zero = op.constant(affine.scale), op.constant(affine.zero_point)
        q = op.QuantizeLinear(x, scale, zero)
        return op.node("DequantizeLinear", q, scale, zero, like=x)

    def _insert_before(self, op: Builder, node: ir.Node, scope: Scope) -> None:
        for value in op.initializers:
            scope.model.graph.initializers.add(value)
        scope.body.insert_before(node, op.nodes)

    def _insert_after(self, op: Builder, node: ir.Node, scope: Scope) -> None:
        for value in op.initializers:
            scope.model.graph.initializers.add(value)
        scope.body.insert_after(node, op.nodes)
