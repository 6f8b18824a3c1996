"""Static 8-bit integers: QuantizeLinear and DequantizeLinear around what computes on integers."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from optim_passes.builder import Builder
from optim_passes.quantization.arithmetic import (
    Affine,
    affine_of_range,
    dequantize,
    quantize,
    symmetric_scales,
)
from optim_passes.quantization.placement import (
    CONVOLUTIONS,
    Placement,
    Result,
    kernel_axis,
    place,
)
from optim_passes.rewriting import NodePass, Outcome, Pass, erase, replace_value
from optim_passes.scopes import Names
from optim_passes.values import attribute, constant, input_of, only_consumer, producer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import onnx_ir as ir

    from optim_passes.scopes import Scope

__all__ = [
    "PoolFirstPass",
    "QuantizedTensor",
    "StaticOptions",
    "StaticQuantizationPass",
    "observed_values",
]

_PACKED = 4  # integers that are multiplied and added in one instruction
_BIAS_STEPS = 2**30  # the largest integer that a bias may become
_HARD = 254  # integers from 0 to 1 of a HardSigmoid: even, so that 1/2 is one of them
_LINEAR = 3 / 512  # up to here HardSwish(x) is x / 2, to half a step of 8 bits
_WIDER = 1.25  # by so much a range may grow to save a sum


@dataclasses.dataclass(frozen=True, slots=True)
class StaticOptions:
    """How static quantization is done.

    Attributes:
        activation: dtype of activations: uint8, or int8.
        symmetric: Whether the zero point of activations is the middle of their integers; where
            Relu and its like bound them, it is not.
        per_channel: Whether each output channel has a scale of its own.
        weight_most: The integer that the largest weight becomes: 127, or 63 where the CPU adds
            two products in 16 bits.
        followers: Whether sums, pools and rearrangements between convolutions are quantized.
    """

    activation: str = "uint8"
    symmetric: bool = False
    per_channel: bool = True
    weight_most: int = 127
    followers: bool = True


@dataclasses.dataclass(frozen=True, slots=True)
class QuantizedTensor:
    """One quantized tensor.

    Attributes:
        name: Name of the value in the float model.
        kind: ``"activation"``, ``"weight"`` or ``"bias"``.
        node: Name of the node that makes or reads it.
        dtype: Element type of the integers.
        scale: Scale, the largest of several.
        zero_point: Zero point, 0 where there are several.
        low: The smallest number that is represented.
        high: The largest.
    """

    name: str
    kind: str
    node: str
    dtype: str
    scale: float
    zero_point: int
    low: float
    high: float


def observed_values(
    scope: Scope, wanted: Callable[[ir.Node], bool], options: StaticOptions
) -> list[ir.Value]:
    """The values of one body whose ranges :class:`StaticQuantizationPass` asks for."""
    return list(dict.fromkeys(place(scope, wanted, moving=options.followers).observed()))


class StaticQuantizationPass(Pass):
    """``y = f(x)`` becomes ``y = DQ(Q(f(DQ(Q(x)))))`` for what runs on 8-bit integers.

    Activations that only set bounds (Relu, Clip, HardSigmoid) vanish: rounding to integers
    saturates at the bounds. ``HardSwish(x)`` becomes ``x * clip(x)`` on the integers of ``x``, which
    start at -3, where HardSwish does.

    Args:
        ranges: Smallest and largest number of each value that :func:`observed_values` names.
        wanted: Whether a node may compute in integers; every one unless given.
        options: How.
        means: The mean of each input channel by name of what a kernel reads: biases then make up for
            the mean error that rounded weights cause.

    Attributes:
        tensors: What was quantized.
    """

    def __init__(
        self,
        ranges: Mapping[str, tuple[float, float]],
        *,
        wanted: Callable[[ir.Node], bool] | None = None,
        options: StaticOptions | None = None,
        means: Mapping[str, np.ndarray[Any, Any]] | None = None,
    ) -> None:
        super().__init__()
        self.ranges = ranges
        self.means = means or {}
        self.wanted = wanted or (lambda _: True)
        self.options = options or StaticOptions()
        self.tensors: list[QuantizedTensor] = []

    def run(self, scope: Scope, outcome: Outcome) -> None:
        """Quantize one body."""
        if scope.function is not None:
            return  # a function has no initializers; pipelines inline them
        wanted = self._with_ranges(scope, outcome)
        placement = place(scope, wanted, moving=self.options.followers)
        _Insertion(self, placement).run()
        outcome.rewrites += len(placement.kernels) + len(placement.followers)

    def _with_ranges(self, scope: Scope, outcome: Outcome) -> Callable[[ir.Node], bool]:
        """Which nodes to quantize: those of which all ranges are known."""
        unknown: set[ir.Node] = set()

        def wanted(node: ir.Node) -> bool:
            return node not in unknown and self.wanted(node)

        while True:
            placement = place(scope, wanted, moving=self.options.followers)
            missing = [v for v in placement.observed() if v.name not in self.ranges]
            if not missing:
                return wanted
            for value in missing:
                makers = [r.node for r in placement.results.values() if value in _values_of(r)]
                readers = [n for n in placement.kernels if n.inputs[0] is value]
                for node in makers or readers:
                    unknown.add(node)
                    self.refuse(outcome, node, "its range was not calibrated", value)

    def affine(self, name: str, low: float | None = None, high: float | None = None) -> Affine:
        """Scale and zero point of a value, within the bounds that its activation sets."""
        least, most = self.ranges[name]
        if low is not None:
            least, most = max(least, low), max(most, low)
        if high is not None:
            least, most = min(least, high), min(most, high)
        options = self.options
        # An activation vanishes because rounding saturates at its bounds: they have to be the ends.
        symmetric = options.symmetric and low is None and high is None
        return affine_of_range(least, most, options.activation, symmetric=symmetric)


def _values_of(result: Result) -> tuple[ir.Value | None, ...]:
    inner = None if result.absorbed is None else result.absorbed.inputs[0]
    return result.value, inner


class _Insertion:
    """Puts a placement into the graph."""

    def __init__(self, owner: StaticQuantizationPass, placement: Placement) -> None:
        self.owner = owner
        self.options = owner.options
        self.placement = placement
        self.scope = placement.scope
        self.names = Names(placement.scope.model)
        self.affines: dict[ir.Value, Affine] = {}
        self.weights: dict[tuple[ir.Value, int | None], tuple[ir.Value, Affine]] = {}

    def run(self) -> None:
        """Activations first: the scales of biases depend on them."""
        takers = {*self.placement.kernels, *self.placement.followers}
        for value in self.placement.fed:
            readers = [u.node for u in value.uses() if u.idx == 0 and u.node in takers]
            self._feed(value, readers)
        inputs = {n: n.inputs[0].name for n in self.placement.kernels}  # type: ignore[union-attr]
        for result in list(self.placement.results.values()):
            self._result(result)
        for node in self.placement.kernels:
            source = node.inputs[0]
            assert source is not None
            means = self.owner.means.get(inputs[node] or "")
            self._parameters(node, self.affines[source], means)
        for node in self.placement.followers:
            self._constants(node)

    # Activations

    def _pair(self, op: Builder, x: ir.Value, affine: Affine) -> tuple[ir.Value, ir.Value]:
        """``Q(x)`` and ``DQ(Q(x))``."""
        scale, zero = op.constant(affine.scale), op.constant(affine.zero_point)
        q = op.QuantizeLinear(x, scale, zero)
        return q, op.node("DequantizeLinear", q, scale, zero, like=x)

    def _feed(self, value: ir.Value, readers: list[ir.Node]) -> None:
        """Integers of a floating-point value, for the kernels that read it."""
        assert value.name is not None
        affine = self.owner.affine(value.name)
        op = Builder(self.scope, self.names, [readers[0]])
        added = _missing_channels(value, readers)
        if added:
            y = self._padded(op, value, affine, added)
        else:
            _, y = self._pair(op, value, affine)
        self._insert(op, value, readers)
        for node in readers:
            node.replace_input_with(0, y)
        self.affines[y] = self.affines[value] = affine
        self._note(value.name, readers[0], affine)

    def _padded(self, op: Builder, x: ir.Value, affine: Affine, added: int) -> ir.Value:
        """``DQ(Q(x))`` with channels behind the last, which weights of zero will meet."""
        scale, zero = op.constant(affine.scale), op.constant(affine.zero_point)
        rank = len(x.shape)  # type: ignore[arg-type]
        pads = [0] * (2 * rank)
        pads[rank + 1] = added
        q = op.Pad(op.QuantizeLinear(x, scale, zero), pads, zero)
        return op.DequantizeLinear(q, scale, zero)

    def _result(self, result: Result) -> None:
        """Integers of a value that a quantized node makes."""
        last = result.absorbed or result.node
        op = Builder(self.scope, self.names, [last])
        raw = result.value if result.absorbed is None else result.absorbed.inputs[0]
        assert raw is not None
        assert result.value.name is not None
        if result.activation == "HardSwish":
            y, affine = self._hard_swish(op, result, raw)
        elif result.activation == "HardSigmoid":
            y, affine = self._hard_sigmoid(op, result, raw)
        else:
            if result.scale_of is not None:
                affine = self.affines[result.scale_of]
            else:
                affine = self.owner.affine(result.value.name, result.low, result.high)
            _, y = self._pair(op, raw, affine)
        self._note(result.value.name, result.node, affine)
        inserted = set(op.nodes)
        self._insert(op, raw, [])
        self._replace(result, raw, y, inserted, op)
        self.affines[y] = self.affines[result.value] = affine

    def _replace(
        self, result: Result, raw: ir.Value, y: ir.Value, inserted: set[ir.Node], op: Builder
    ) -> None:
        """Let all that reads the result read ``y``, but for what makes ``y`` of it."""
        old = result.value
        if result.absorbed is not None:
            replace_value(old, y, self.scope.body, result.absorbed, rename=False)
            erase(result.absorbed)
            return
        keep = [(u.node, u.idx) for u in old.uses() if u.node in inserted]
        replace_value(old, y, self.scope.body, op.nodes[-1], rename=False)
        for node, index in keep:
            node.replace_input_with(index, raw)

    def _hard_sigmoid(self, op: Builder, result: Result, raw: ir.Value) -> tuple[ir.Value, Affine]:
        """Integers from 0 to 254 of ``x`` are those of ``clip(alpha * x + beta, 0, 1)``."""
        node = result.absorbed
        assert node is not None
        alpha, beta = attribute(node, "alpha", 0.2), attribute(node, "beta", 0.5)
        kind = np.uint8
        scale = np.asarray(1 / (_HARD * alpha), np.float32)
        q = op.QuantizeLinear(raw, op.constant(scale), op.constant(kind(round(_HARD * beta))))
        affine = Affine(np.asarray(1 / _HARD, np.float32), np.asarray(0, kind))
        y = op.node(
            "DequantizeLinear", q, op.constant(affine.scale), op.constant(affine.zero_point),
            like=result.value,
        )  # fmt: skip
        return y, affine

    def _hard_swish(self, op: Builder, result: Result, raw: ir.Value) -> tuple[ir.Value, Affine]:
        """``x * clip(x + 3, 0, 6) / 6``, where one product of integers is all that takes time."""
        assert raw.name is not None
        assert result.value.name is not None
        low, high = self.owner.ranges[raw.name]
        low, high = max(low, -3.0), max(high, 0.0)  # below -3 there are only zeros
        if max(-low, high) <= _LINEAR:
            x = affine_of_range(low, high)
            q, _ = self._pair(op, raw, x)
            half = Affine(np.asarray(x.scale / 2, np.float32), x.zero_point)
            y = op.node(
                "DequantizeLinear", q, op.constant(half.scale), op.constant(half.zero_point),
                like=raw,
            )  # fmt: skip
            self._note(raw.name, result.node, x)
            return y, half
        if max(high, 3.0) + 3.0 <= _WIDER * (high - low):
            x, real, gate = self._gate_of_clip(op, raw, max(high, 3.0))
        else:
            x, real, gate = self._gate_of_sum(op, raw, low, high)
        self._note(raw.name, result.node, x)
        product = op.node("Mul", real, gate, like=raw)
        least, most = self.owner.ranges[result.value.name]
        affine = affine_of_range(max(least, -0.375), most)
        _, y = self._pair(op, product, affine)
        return y, affine

    def _gate_of_clip(
        self, op: Builder, raw: ir.Value, high: float
    ) -> tuple[Affine, ir.Value, ir.Value]:
        """Integers of ``x`` from -3 up are those of ``x + 3`` with another zero point."""
        zero = max(1, int(3 * 255 / (high + 3)))
        x = Affine(np.asarray(3 / zero, np.float32), np.asarray(zero, np.uint8))
        q, real = self._pair(op, raw, x)
        if 2 * zero < 255:
            q = op.Clip(q, op.constant(np.uint8(0)), op.constant(np.uint8(2 * zero)))
        gate = op.node(
            "DequantizeLinear", q, op.constant(np.asarray(1 / (2 * zero), np.float32)),
            op.constant(np.uint8(0)), like=raw,
        )  # fmt: skip
        return x, real, gate

    def _gate_of_sum(
        self, op: Builder, raw: ir.Value, low: float, high: float
    ) -> tuple[Affine, ir.Value, ir.Value]:
        """Integers of ``x + 3`` from 0 to 6, for an ``x`` that needs all its integers near 0."""
        x = affine_of_range(low, high)
        _, real = self._pair(op, raw, x)
        three = op.node(
            "DequantizeLinear", op.constant(np.uint8(255)),
            op.constant(np.asarray(3 / 255, np.float32)), op.constant(np.uint8(0)),
        )  # fmt: skip
        moved = op.node("Add", real, three, like=raw)
        zero = op.constant(np.uint8(0))
        q = op.QuantizeLinear(moved, op.constant(np.asarray(6 / _HARD, np.float32)), zero)
        unit = op.constant(np.asarray(1 / _HARD, np.float32))
        gate = op.node("DequantizeLinear", q, unit, zero, like=raw)
        return x, real, gate

    def _insert(self, op: Builder, after: ir.Value, readers: list[ir.Node]) -> None:
        """New nodes as early as they can stand."""
        body = self.scope.body
        for value in op.initializers:
            self.scope.model.graph.initializers.add(value)
        made = after.producer()
        if made is not None and made.graph is body:
            body.insert_after(made, op.nodes)
            return
        first = readers[0] if len(readers) == 1 else next(iter(body))
        body.insert_before(first, op.nodes)

    # Constants

    def _parameters(self, node: ir.Node, x: Affine, means: Any) -> None:
        """Weights and bias as integers."""
        op = Builder(self.scope, self.names, [node])
        weight = node.inputs[1]
        assert weight is not None
        axis = kernel_axis(node) if self.options.per_channel else None
        bias = input_of(node, 2)
        terms = None if bias is None else constant(bias)
        offsets = None if terms is None else terms.numpy().astype(np.float32)
        tensor = constant(weight)
        assert tensor is not None
        y, affine = self._weight(op, node, weight, tensor, axis, x, offsets)
        node.replace_input_with(1, y)
        if offsets is not None and means is not None:
            offsets = offsets - _mean_error(node, tensor.numpy(), affine, means)
        if offsets is not None and bias is not None:
            node.replace_input_with(2, self._bias(op, node, bias, offsets, x, affine))
        self._place_before(op, node)

    def _weight(
        self,
        op: Builder,
        node: ir.Node,
        value: ir.Value,
        tensor: ir.TensorProtocol,
        axis: int | None,
        x: Affine,
        offsets: Any,
    ) -> tuple[ir.Value, Affine]:
        array = tensor.numpy()
        channels = _channels(node.inputs[0]) if node.op_type == "Conv" else None
        if channels is not None and attribute(node, "group", 1) == 1:
            widths = [(0, 0)] * array.ndim
            widths[1] = (0, max(0, channels - array.shape[1]))
            array = np.pad(array, widths) if widths[1][1] else array
        scales = symmetric_scales(array, axis, self.options.weight_most)
        if offsets is not None:  # a bias has to fit into 32 bits
            least = np.abs(offsets) / (float(x.scale) * _BIAS_STEPS)
            scales = np.maximum(scales, least if axis is not None else least.max(initial=0))
            scales = scales.astype(np.float32)
        affine = Affine(scales, np.zeros(scales.shape, np.int8))
        integers = quantize(array, affine, axis)
        assert value.name is not None
        self._note(value.name, node, affine, "weight")
        stored = op.constant(integers, f"{value.name}.quantized")
        options: dict[str, Any] = {"axis": axis} if axis is not None else {}
        y: ir.Value = op.node(
            "DequantizeLinear", stored, op.constant(affine.scale),
            op.constant(affine.zero_point), like=value, **options,
        )  # fmt: skip
        return y, affine

    def _bias(
        self, op: Builder, node: ir.Node, bias: ir.Value, offsets: Any, x: Affine, weight: Affine
    ) -> ir.Value:
        scales = np.asarray(x.scale * weight.scale, np.float32)
        integers = np.rint(offsets.astype(np.float64) / scales)
        integers = np.clip(integers, -(2**31), 2**31 - 1).astype(np.int32)
        assert bias.name is not None
        self._note(bias.name, node, Affine(scales, np.zeros(scales.shape, np.int32)), "bias")
        stored = op.constant(integers, f"{bias.name}.quantized")
        options: dict[str, Any] = {"axis": 0} if scales.ndim else {}
        y: ir.Value = op.node(
            "DequantizeLinear", stored, op.constant(scales),
            op.constant(np.zeros(scales.shape, np.int32)), like=bias, **options,
        )  # fmt: skip
        return y

    def _constants(self, node: ir.Node) -> None:
        """The constant operand of a sum or a product of two."""
        for index, value in enumerate(node.inputs):
            tensor = constant(value)
            if node.op_type not in ("Add", "Mul") or tensor is None or value is None:
                continue
            array = tensor.numpy()
            affine = affine_of_range(
                float(array.min(initial=0)), float(array.max(initial=0)), self.options.activation
            )
            op = Builder(self.scope, self.names, [node])
            stored = op.constant(quantize(array, affine), f"{value.name}.quantized")
            y = op.node(
                "DequantizeLinear", stored, op.constant(affine.scale),
                op.constant(affine.zero_point), like=value,
            )  # fmt: skip
            node.replace_input_with(index, y)
            self._place_before(op, node)

    def _place_before(self, op: Builder, node: ir.Node) -> None:
        for value in op.initializers:
            self.scope.model.graph.initializers.add(value)
        self.scope.body.insert_before(node, op.nodes)

    def _note(self, name: str, node: ir.Node, affine: Affine, kind: str = "activation") -> None:
        scale = float(np.max(affine.scale))
        zero = int(affine.zero_point) if affine.zero_point.ndim == 0 else 0
        bound = np.iinfo(affine.dtype)
        self.owner.tensors.append(
            QuantizedTensor(
                name, kind, node.name or node.op_type, affine.dtype.name, scale, zero,
                (bound.min - zero) * scale, (bound.max - zero) * scale,
            )
        )  # fmt: skip


def _mean_error(node: ir.Node, weights: Any, affine: Affine, means: Any) -> Any:
    """What rounding the weights adds to each output channel in the mean."""
    axis = kernel_axis(node)
    along = axis if affine.scale.ndim else None
    error = dequantize(quantize(weights, affine, along), affine, along) - weights
    if node.op_type in CONVOLUTIONS:
        error = error.sum(axis=tuple(range(2, error.ndim)))  # border pixels see a part of it
        groups = attribute(node, "group", 1)
        if node.op_type == "ConvTranspose" or groups != 1:
            if error.shape[1] != 1:
                return 0.0
            return error[:, 0] * means[: len(error)] if len(means) == len(error) else 0.0
        return error @ means[: error.shape[1]]
    matrix = error if axis == 1 else error.T
    return means @ matrix


def _channels(value: ir.Value | None) -> int | None:
    shape = None if value is None else value.shape
    size = shape[1] if shape is not None and len(shape) > 1 else None
    return size if isinstance(size, int) else None


def _missing_channels(value: ir.Value, readers: list[ir.Node]) -> int:
    """Channels that make the image's into a multiple of 4, which integers are packed by.

    ONNX Runtime's convolution of 3 channels (version 1.32) takes up to twice the time of one of 4.
    """
    count = _channels(value)
    if count is None or count >= _PACKED or any(n.op_type != "Conv" for n in readers):
        return 0
    if any(attribute(n, "group", 1) != 1 for n in readers):
        return 0
    return -count % _PACKED


class PoolFirstPass(NodePass):
    """``MaxPool(Relu(x))`` before QuantizeLinear becomes ``Relu(MaxPool(x))``.

    ONNX Runtime would move the quantization before the pool, whose kernel for integers in this
    layout takes fifty times as long as that for real numbers.
    """

    op_types: ClassVar[frozenset[str]] = frozenset({"MaxPool"})

    def rewrite(self, node: ir.Node, op: Builder) -> Any:
        """The activation of the pooled values."""
        relu = producer(node.inputs[0], "Relu")
        if node.domain or relu is None or len(node.outputs) > 1:
            return None
        if only_consumer(relu.outputs[0]) is None or producer(relu.inputs[0], "Conv") is None:
            return None
        uses = list(node.outputs[0].uses())
        if not uses or any(u.node.op_type != "QuantizeLinear" for u in uses):
            return None
        pooled = op.node("MaxPool", relu.inputs[0], like=node.outputs[0], attributes_of=node)
        return op.node("Relu", pooled, like=node.outputs[0])
