"""Quantized graphs as the float graphs that they stand for.

What is rounded is not: QuantizeLinear and DequantizeLinear pass their numbers on, and products of
integers are products of real numbers again. Nodes and values keep their names, so that what goes
wrong in the float graph is what goes wrong in the quantized one, beside what rounding explains.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from bridge.parity.integers import (
    constant,
    filled,
    fits,
    parameter,
    rows_scale,
    spread,
    undone,
    unlike,
    unpacked,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Dequantized", "Stored", "dequantized", "plain_name"]

Array = np.ndarray[Any, Any]

_SUFFIXES = (".quantized", "_quantized", "_DQ_Q4", "_Q4", "_Q8")  # of what quantizers make
_BYTES = 8  # bits
_UNKNOWN = ("QLinear", "QAttention", "QGemm", "DynamicQuantizeLSTM", "GatherBlockQuantized")
_NEARLY_LINEAR = 0.5  # times a small number: its HardSwish
_ALIKE = 0.5  # of the mean magnitude: that far off, integers stand for no other weight
_REAL = "/real"  # after the name of what takes integers' place


@dataclasses.dataclass(frozen=True, slots=True)
class Stored:
    """A weight that a graph holds in integers.

    Attributes:
        node: The node that reads it.
        name: Of the float weight, if the graph's names tell.
        got: The real numbers that the integers stand for.
        step: How far these are apart, for each of them.
        right: The float weight; None if it is not known.
    """

    node: ir.Node
    name: str
    got: Array
    step: Array
    right: Array | None


@dataclasses.dataclass(slots=True)
class Dequantized:
    """A quantized graph without its quantization.

    Attributes:
        model: The float graph.
        stored: The weights that it held in integers, by the nodes of the given graph.
        exact: Whether every weight was known, so that nothing in it is rounded.
    """

    model: ir.Model
    stored: list[Stored] = dataclasses.field(default_factory=list)
    exact: bool = True


def plain_name(name: str) -> str:
    """A float weight's name, of the name that a quantizer gave its integers."""
    return next((name.removesuffix(s) for s in _SUFFIXES if name.endswith(s)), name)


def dequantized(
    model: ir.Model,
    weights: Mapping[str, ir.TensorProtocol],
    clips: Mapping[str, ir.Node] | None = None,
) -> Dequantized | None:
    """The float graph that a quantized one stands for; None if it holds what has no such form.

    Args:
        model: The quantized graph; not changed.
        weights: The float weights by name, that take the place of rounded ones.
        clips: Nodes of the float graph that bound numbers, by output: saturation may stand for
            them.
    """
    twin = model.clone()
    rewriter = _Rewriter(Dequantized(twin), weights, clips or {})
    originals = list(model.graph.all_nodes())
    for node, original in zip(list(twin.graph.all_nodes()), originals, strict=True):
        try:
            rewriter.rewrite(node, original)
        except _UnknownFormError:
            return None
    return rewriter.made


class _UnknownFormError(Exception):
    """A node computes with integers in a way that is not known here."""


class _Rewriter:
    def __init__(
        self,
        made: Dequantized,
        weights: Mapping[str, ir.TensorProtocol],
        clips: Mapping[str, ir.Node],
    ) -> None:
        self.made = made
        self.weights = weights
        self.clips = {n: c for n, c in clips.items() if c.op_type in ("Clip", "Relu")}
        self.curves = {n: c for n, c in clips.items() if n not in self.clips}
        self.real: set[ir.Value] = set()  # values that were integers
        self.rows: set[ir.Value] = set()  # what is gathered from tables that were integers

    def rewrite(self, node: ir.Node, original: ir.Node) -> None:
        forms = {
            "QuantizeLinear": self._quantize,
            "DequantizeLinear": self._dequantize,
            "DynamicQuantizeLinear": self._quantize_dynamically,
            "MatMulInteger": self._integer_product,
            "ConvInteger": self._integer_product,
            "MatMulIntegerToFloat": self._scaled_product,
            "DynamicQuantizeMatMul": self._dynamic_product,
            "MatMulNBits": self._blocked_product,
        }
        form = forms.get(node.op_type)
        if form is not None:
            form(node, original)
        elif node.op_type.startswith(_UNKNOWN):
            raise _UnknownFormError
        elif node.op_type == "Gather" and _is_integers(node.inputs[0]):
            self._gather(node, original)
        elif self.real.intersection(v for v in node.inputs if v is not None):
            self._pass_on(node, original)

    def _pass_on(self, node: ir.Node, original: ir.Node) -> None:
        """A node that moved or bounded integers moves or bounds real numbers."""
        if node.op_type == "Pad" and len(node.inputs) > 2:
            node.replace_input_with(2, None)  # the zero point
        if node.op_type == "Cast":
            return
        maker = undone(original)
        affine = [None if maker is None else parameter(maker, place) for place in (1, 2)]
        if node.op_type == "Clip" and affine[0] is not None and affine[1] is not None:
            for place in range(1, len(node.inputs)):
                bound = parameter(node, place)
                if bound is not None:
                    real = (bound.astype(np.float32) - affine[1]).reshape(()) * affine[0][0]
                    made = self._initializer(f"{node.name}/bound{place}", real)
                    node.replace_input_with(place, made)
        for value in node.outputs:
            if value.dtype in _NARROW or value.type is None:
                self._mark(value)

    def _mark(self, value: ir.Value) -> None:
        value.type = ir.TensorType(ir.DataType.FLOAT)
        self.real.add(value)

    # Forms

    def _quantize(self, node: ir.Node, _: ir.Node) -> None:
        zero = constant(node.inputs[2]) if len(node.inputs) > 2 else None
        if zero is None:
            zero = np.zeros((), np.uint8)
        # with nothing below zero, saturation may do the work of a Relu
        lowest = zero.dtype.kind in "iu" and bool((zero == np.iinfo(zero.dtype).min).all())
        name = (node.name or "").removesuffix("/QuantizeLinear")
        if name in self.clips:
            self._bound(node, self.clips[name], node.inputs[0])
        else:
            _become(node, "Relu" if lowest else "Identity", node.inputs[:1])
        self._mark(node.outputs[0])
        self._bound_before(node.inputs[0])

    def _bound(self, node: ir.Node, clip: ir.Node, x: ir.Value | None) -> None:
        """Let a node do what a Clip or Relu of the float graph does."""
        bounds = [constant(v) for v in clip.inputs[1:]]
        made = [
            None if b is None else self._initializer(f"{node.name}/bound{i}", b)
            for i, b in enumerate(bounds)
        ]
        _become(node, clip.op_type, [x, *made])

    def _bound_before(self, value: ir.Value | None) -> None:
        """Bound a value that has the name of one that is bounded: saturation was to see to it."""
        clip = self.clips.get(str(value.name)) if value is not None else None
        producer = value.producer() if value is not None else None
        if value is None or clip is None or producer is None:
            return
        if producer.op_type in ("Clip", "Relu", "Identity", "FusedConv"):
            return
        graph = producer.graph
        assert graph is not None
        new = ir.node("Identity", [value], name=f"{producer.name}/bounded")
        bounded = new.outputs[0]
        bounded.type, bounded.shape = value.type, value.shape
        for user, index in list(value.uses()):
            if user is not new:
                user.replace_input_with(index, bounded)
        for index, output in enumerate(graph.outputs):
            if output is value:
                graph.outputs[index] = bounded
        value.name, bounded.name = f"{value.name}/raw", value.name
        graph.insert_after(producer, new)
        self._bound(new, clip, value)

    def _dequantize(self, node: ir.Node, original: ir.Node) -> None:
        source, scale = node.inputs[0], node.inputs[1]
        assert source is not None
        assert scale is not None
        integers = constant(source)
        if integers is not None:
            zero = constant(node.inputs[2]) if len(node.inputs) > 2 else None
            scales = constant(scale)
            if scales is None:
                raise _UnknownFormError
            axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 1
            block = (
                node.attributes["block_size"].as_int() if "block_size" in node.attributes else 0
            )
            step, zeros = (spread(x, integers.shape, axis, block) for x in (scales, zero))
            real = self._weight(original, source, integers, step, zeros)
            _become(node, "Identity", [real])
            node.outputs[0].shape = real.shape
        elif source in self.rows or constant(scale) is not None:
            self._undo(node, original)
        else:
            _become(node, "Mul", [source, scale])
        node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)

    def _undo(self, node: ir.Node, original: ir.Node) -> None:
        """Pass numbers on; a pair with unlike scales or zero points bounds, scales and shifts them."""
        maker = undone(original)
        curve = self.curves.get((node.name or "").rpartition("/")[0])
        pair = None if maker is None else unlike(maker, original)
        if pair is None:
            _become(node, "Identity", node.inputs[:1])
        elif curve is not None and pair.factor == _NEARLY_LINEAR and pair.offset == 0:
            _become(node, curve.op_type, node.inputs[:1])
        else:
            low, high, factor, offset = (
                self._initializer(f"{node.name}/{f.name}", getattr(pair, f.name))
                for f in dataclasses.fields(pair)
            )
            steps = [("Clip", [node.inputs[0], low, high]), ("Mul", [None, factor])]
            self._chain(node, [*steps, ("Add", [None, offset])])

    def _quantize_dynamically(self, node: ir.Node, _: ir.Node) -> None:
        graph = node.graph
        assert graph is not None
        for value, number in zip(node.outputs[1:], (np.float32(1), np.uint8(0)), strict=False):
            made = ir.node("Constant", [], {"value": ir.tensor(np.asarray(number))})
            graph.insert_before(node, made)
            made.outputs[0].name = f"{value.name}{_REAL}"
            for user, index in list(value.uses()):
                user.replace_input_with(index, made.outputs[0])
        kept = node.outputs[0]
        new = ir.node("Identity", [node.inputs[0]], name=node.name)
        new.metadata_props.update(node.metadata_props)
        graph.insert_before(node, new)
        for user, index in list(kept.uses()):
            user.replace_input_with(index, new.outputs[0])
        name = kept.name
        graph.remove(node, safe=True)
        new.outputs[0].name = name
        self._mark(new.outputs[0])

    def _integer_product(self, node: ir.Node, original: ir.Node) -> None:
        weight = node.inputs[1]
        assert weight is not None
        integers = constant(weight)
        zero = constant(node.inputs[3]) if len(node.inputs) > 3 else None
        if integers is None:
            raise _UnknownFormError
        axis = 0 if node.op_type == "ConvInteger" else integers.ndim - 1
        step = np.ones(integers.shape, np.float32)  # a Mul comes behind it
        scale = self._scale_beside(weight)
        if scale is not None:
            step = spread(scale, integers.shape, axis, 0)
        real = self._weight(
            original, weight, integers, step, spread(zero, integers.shape, axis, 0), unit=step
        )
        kept = dict(node.attributes)
        _become(node, node.op_type.removesuffix("Integer"), [node.inputs[0], real])
        node.attributes.update(kept)  # a convolution's geometry
        node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)

    def _scale_beside(self, weight: ir.Value) -> Array | None:
        """The scale of integers, by its name."""
        graph = self.made.model.graph
        base = plain_name(str(weight.name))
        for suffix in ("_scale", ".scales", ".scale"):
            if base + suffix in graph.initializers:
                return constant(graph.initializers[base + suffix])
        return None

    def _scaled_product(self, node: ir.Node, original: ir.Node) -> None:
        a, b, a_scale, b_scale, *rest = node.inputs
        rest += [None] * (3 - len(rest))
        weight = self._product_weight(original, b, b_scale, rest[1])
        if a_scale is None or (constant(a_scale) is not None and not _is_one(a_scale)):
            raise _UnknownFormError
        self._product(node, a, weight, a_scale, rest[2])

    def _dynamic_product(self, node: ir.Node, original: ir.Node) -> None:
        a, b, b_scale, *rest = node.inputs
        rest += [None] * (2 - len(rest))
        weight = self._product_weight(original, b, b_scale, rest[0])
        self._product(node, a, weight, None, rest[1])

    def _product_weight(
        self,
        original: ir.Node,
        value: ir.Value | None,
        scale: ir.Value | None,
        zero: ir.Value | None,
    ) -> ir.Value:
        integers, scales = constant(value), constant(scale)
        if value is None or integers is None or scales is None:
            raise _UnknownFormError
        step = spread(scales, integers.shape, integers.ndim - 1, 0)
        zeros = spread(constant(zero), integers.shape, integers.ndim - 1, 0)
        return self._weight(original, value, integers, step, zeros)

    def _blocked_product(self, node: ir.Node, original: ir.Node) -> None:
        a, b, scales, *rest = node.inputs
        rest += [None] * (3 - len(rest))
        zeros, _, bias = rest
        packed, scale = constant(b), constant(scales)
        if b is None or packed is None or scale is None:
            raise _UnknownFormError
        if zeros is not None and (constant(zeros) is None or zeros.dtype != ir.DataType.UINT8):
            raise _UnknownFormError
        columns, rows, bits, block = (
            node.attributes[k].as_int() for k in ("K", "N", "bits", "block_size")
        )
        if bits not in (4, _BYTES):
            raise _UnknownFormError
        integers, step, middle = unpacked(
            packed, scale, constant(zeros), rows, columns, bits, block
        )
        weight = self._weight(original, b, integers.T, step.T, middle.T)
        self._product(node, a, weight, None, bias)

    def _gather(self, node: ir.Node, original: ir.Node) -> None:
        """A table of integers, of which rows are made real behind the Gather."""
        table = node.inputs[0]
        assert table is not None
        integers = constant(table)
        assert integers is not None
        reader = next((n for n, _ in node.outputs[0].uses()), None)
        if reader is not None and reader.op_type == "DequantizeLinear":
            scale = rows_scale(reader.inputs[1])
            zero = constant(reader.inputs[2]) if len(reader.inputs) > 2 else None
        else:
            scale, zero = self._scale_beside(table), None  # a Mul comes behind it
        if scale is None or reader is None:
            self.made.exact = False
            return
        step = spread(scale.reshape(-1), integers.shape, 0, 0)
        zeros = spread(zero, integers.shape, 0, 0)
        unit = None if reader.op_type == "DequantizeLinear" else step
        if unit is None:  # which has the scale
            original = next(n for n, _ in original.outputs[0].uses())
        node.replace_input_with(0, self._weight(original, table, integers, step, zeros, unit))
        self._mark(node.outputs[0])
        self.rows.add(node.outputs[0])

    # Parts

    def _product(
        self,
        node: ir.Node,
        a: ir.Value | None,
        weight: ir.Value,
        scale: ir.Value | None,
        bias: ir.Value | None,
    ) -> None:
        """A product, scaled and biased; the last of its nodes takes the node's place."""
        steps: list[tuple[str, list[ir.Value | None]]] = [("MatMul", [a, weight])]
        steps += [("Mul", [None, scale])] if scale is not None else []
        steps += [("Add", [None, bias])] if bias is not None else []
        self._chain(node, steps)

    def _chain(self, node: ir.Node, steps: list[tuple[str, list[ir.Value | None]]]) -> None:
        """Nodes of which each takes the last one's result first; the last takes a node's place."""
        graph = node.graph
        assert graph is not None
        last: ir.Value | None = None
        for number, (op_type, inputs) in enumerate(steps):
            inputs = [last if number and i == 0 else v for i, v in enumerate(inputs)]
            if number == len(steps) - 1:
                _become(node, op_type, inputs)
                return
            made = ir.node(op_type, inputs, name=f"{node.name}/part{number}")
            made.outputs[0].name = f"{node.name}/part{number}"
            graph.insert_before(node, made)
            last = made.outputs[0]

    def _weight(
        self,
        node: ir.Node,
        value: ir.Value,
        integers: Array,
        step: Array,
        zeros: Array,
        unit: Array | None = None,
    ) -> ir.Value:
        """An initializer that takes a stored weight's place, in float: the right one if it is known.

        Args:
            node: The node that reads it, in the graph as it was.
            value: The integers.
            integers: Their numbers.
            step: The scale of each.
            zeros: The zero point of each.
            unit: What the graph multiplies by later; nothing unless given.
        """
        name = plain_name(str(value.name))
        got = (integers.astype(np.float32) - zeros) * step
        right = self._right(name, got)
        self.made.stored.append(Stored(node, name, got, step, right))
        self.made.exact = self.made.exact and (right is not None or integers.size == 1)
        numbers = got if right is None else right.astype(np.float32)
        numbers = np.ascontiguousarray(numbers / unit if unit is not None else numbers, np.float32)
        return self._initializer(f"{node.name}/{value.name}{_REAL}", numbers)

    def _initializer(self, name: str, numbers: Any) -> ir.Value:
        made = ir.Value(
            name=name,
            shape=ir.Shape(numbers.shape),
            type=ir.TensorType(ir.DataType.FLOAT),
            const_value=ir.tensor(numbers, name=name),
        )
        self.made.model.graph.initializers[name] = made
        return made

    def _right(self, name: str, got: Array) -> Array | None:
        """The float weight that integers stand for, by its name, or else by its numbers."""
        tensor = self.weights.get(name)
        if tensor is not None:
            forms = _forms(tensor, got.shape)
            return min(forms, key=lambda x: float(np.abs(x - got).sum()), default=None)
        if got.ndim < 2:
            return None
        near = [x for w in self.weights.values() for x in _parts(w, got.shape)]
        best = min(near, key=lambda x: float(np.abs(x - got).sum()), default=None)
        if best is None or np.abs(best - got).mean() > _ALIKE * np.abs(best).mean():
            return None
        return best


def _forms(tensor: ir.TensorProtocol, shape: tuple[int, ...]) -> list[Array]:
    """A weight as it is and transposed, where it has a shape then."""
    if not tensor.dtype.is_floating_point() or len(tensor.shape) != len(shape):
        return []
    right = tensor.numpy().astype(np.float32)
    turned = [right, right.T] if right.ndim == 2 else [right]
    return [filled(x, shape) for x in turned if fits(x.shape, shape)]


def _parts(tensor: ir.TensorProtocol, shape: tuple[int, ...]) -> list[Array]:
    """A weight, or blocks of its rows where it is longer: attention has several in one."""
    if len(tensor.shape) != 2 or len(shape) != 2 or tensor.size <= np.prod(shape):
        return _forms(tensor, shape)
    if not tensor.dtype.is_floating_point():
        return []
    rows, columns = tensor.shape.numpy()
    height = next((n for n, m in (shape, shape[::-1]) if m == columns), rows)
    starts = {*range(0, rows - height, height), rows - height}
    blocks = (tensor.numpy()[s : s + height].astype(np.float32) for s in sorted(starts))
    return [x for b in blocks for x in (b, b.T) if x.shape == shape]


_NARROW = {ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT4, ir.DataType.UINT4,
           ir.DataType.INT16, ir.DataType.UINT16, ir.DataType.INT32}  # fmt: skip


def _become(node: ir.Node, op_type: str, inputs: Any) -> None:
    """Make another node of one, in its place; its name, outputs and metadata stay."""
    node.op_type, node.domain = op_type, ""
    node.attributes.clear()
    inputs = list(inputs)
    node.resize_inputs(len(inputs))
    for index, value in enumerate(inputs):
        node.replace_input_with(index, value)


def _is_one(value: ir.Value) -> bool:
    return str(value.name).endswith(_REAL)


def _is_integers(value: ir.Value | None) -> bool:
    return constant(value) is not None and value is not None and value.dtype in _NARROW
