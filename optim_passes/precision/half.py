"""Models in 16 bits, except where that would go wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import onnx_ir as ir

from optim_passes.precision.sensitivity import (
    Limits,
    half_operands,
    is_float,
    sensitive_nodes,
)
from optim_passes.rewriting import Outcome, Refusal
from optim_passes.scopes import Names, nested
from optim_passes.tensors import derived
from optim_passes.values import constant

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

__all__ = ["HalfPrecisionPass"]

_TYPED = {"RandomNormal": "dtype", "RandomUniform": "dtype", "EyeLike": "dtype", "Cast": "to",
          "RandomNormalLike": "dtype", "RandomUniformLike": "dtype", "Bernoulli": "dtype"}  # fmt: skip


class HalfPrecisionPass(ir.passes.InPlacePass):
    """Values of float32 become float16 or bfloat16, in the bodies of If, Loop and Scan too.

    A node stays in float32 if what it reads or makes was measured to leave the range of 16 bits,
    if its schema has no 16-bit type, if angles or places are computed in it, or if it is named.
    Casts stand only where the two meet; a value that goes round a loop has one type all the way.

    Args:
        dtype: FLOAT16 or BFLOAT16.
        ranges: The largest magnitude that each value has been seen to have, by name.
        keep: Names or op types of further nodes that stay in float32.
        keep_io: Whether the model's inputs and outputs stay float32.
        has_kernel: Whether there is a kernel for a node of a graph of some opset in ``dtype``; where
            there is none it stays in float32.
    """

    name: ClassVar[str] = "HalfPrecision"

    def __init__(
        self,
        dtype: ir.DataType = ir.DataType.FLOAT16,
        *,
        ranges: Mapping[str, float] | None = None,
        keep: Collection[str] = (),
        keep_io: bool = True,
        has_kernel: Callable[[ir.Node, int, ir.DataType], bool] | None = None,
    ) -> None:
        super().__init__()
        self.has_kernel = has_kernel
        self.dtype = dtype
        self.ranges = dict(ranges or {})
        self.keep = frozenset(keep)
        self.keep_io = keep_io

    def call(self, model: ir.Model) -> Outcome:
        """Convert the main graph and the bodies in it; functions have to be inlined before."""
        outcome = Outcome(model, modified=False)
        limits = Limits(self.dtype, self.ranges)
        reasons = dict(sensitive_nodes(model, limits))
        for node in model.graph.all_nodes():
            if node.name in self.keep or node.op_type in self.keep:
                reasons[node] = "asked for"
            elif self.has_kernel is not None and node not in reasons:
                opset = model.graph.opset_imports.get("", 1)
                if _has_floats(node) and not self.has_kernel(node, opset, self.dtype):
                    reasons[node] = f"there is no kernel of {node.op_type} in 16 bits"
        work = _Conversion(model, limits, reasons)
        for value in model.graph.inputs:
            if is_float(value) and not self.keep_io:
                work.set_home(value)
        work.body(model.graph)
        work.outputs(model.graph, half=not self.keep_io)
        work.drop_unused()
        outcome.rewrites = work.converted
        outcome.modified = work.converted > 0
        outcome.refusals = [
            Refusal(self.name, reason, n.name or n.op_type,
                    n.metadata_props.get("bridge.module", ""))
            for n, reason in reasons.items()
        ]  # fmt: skip
        return outcome


class _Conversion:
    """One conversion under way.

    A value that was float32 has a home, the type in which it is made, and a twin of the other type
    that is made where somebody wants it.
    """

    def __init__(self, model: ir.Model, limits: Limits, reasons: Mapping[ir.Node, str]) -> None:
        self.model = model
        self.limits = limits
        self.reasons = reasons
        self.converted = 0
        self._names = Names(model)
        self._half: set[ir.Value] = set()
        self._twins: dict[ir.Value, ir.Value] = {}
        self._touched: dict[ir.Value, None] = {}

    def set_home(self, value: ir.Value) -> None:
        """Make a value in 16 bits from now on."""
        self._half.add(value)
        value.type = ir.TensorType(self.limits.dtype)
        value.const_value = None

    def body(self, graph: ir.Graph) -> None:
        """Convert the nodes of a graph, in order."""
        for node in list(graph):
            if node.op_type in ("If", "Loop", "Scan") and not node.domain:
                self._control(node)
            else:
                self._node(node)

    def _node(self, node: ir.Node) -> None:
        wanted = None
        if node not in self.reasons and _is_plain(node) and node.op_type != "Constant":
            opset = self.model.graph.opset_imports.get("", 1)
            wanted = half_operands(node, opset, self.limits.dtype)
        inputs, outputs = wanted or (set(), set())
        for index, value in enumerate(node.inputs):
            if value is not None and self._was_float(value):
                if node.op_type == "Cast":
                    continue  # takes any type
                self._use(node, index, half=index in inputs)
        for index, value in enumerate(node.outputs):
            if index in outputs and is_float(value):
                self.set_home(value)
        if wanted is not None:
            self.converted += 1
            self._retype(node)

    def _retype(self, node: ir.Node) -> None:
        """Change the type that an attribute names."""
        if node.outputs[0] not in self._half:
            return
        name = _TYPED.get(node.op_type)
        if name is not None and (name in node.attributes or node.op_type != "Bernoulli"):
            node.attributes[name] = ir.AttrInt64(name, int(self.limits.dtype))
        if node.op_type == "ConstantOfShape":
            given = node.attributes.get("value")
            zero = ir.tensor([0.0], dtype=ir.DataType.FLOAT)
            tensor = zero if given is None else given.as_tensor()
            array = self.limits.convert(tensor.numpy())
            node.attributes["value"] = ir.AttrTensor(
                "value", ir.tensor(array, dtype=self.limits.dtype)
            )

    def _was_float(self, value: ir.Value) -> bool:
        return value in self._half or is_float(value)

    # Twins

    def _use(self, node: ir.Node, index: int, *, half: bool) -> None:
        value = node.inputs[index]
        assert value is not None
        wanted = self._as(value, half=half)
        if wanted is not value:
            node.replace_input_with(index, wanted)

    def _as(self, value: ir.Value, *, half: bool) -> ir.Value:
        """The value in 16 bits or in float32."""
        if (value in self._half) == half:
            return value
        if value not in self._twins:
            self._twins[value] = self._constant_twin(value) if half else self._cast(value)
        return self._twins[value]

    def _constant_twin(self, value: ir.Value) -> ir.Value:
        tensor = constant(value)
        if tensor is None:
            return self._cast(value)
        dtype = self.limits.dtype
        twin = ir.Value(
            name=self._names.fresh(f"{value.name}.{dtype.name.lower()}"),
            const_value=derived(self.limits.convert, tensor, dtype=dtype),
            type=ir.TensorType(dtype),
            shape=ir.Shape(tensor.shape.numpy()),
        )
        graph = value.graph if value.is_initializer() else self.model.graph
        assert graph is not None
        graph.initializers.add(twin)
        self._touched[value] = None
        return twin

    def _cast(self, value: ir.Value) -> ir.Value:
        dtype = ir.DataType.FLOAT if value in self._half else self.limits.dtype
        name = self._names.fresh(f"{value.name}.{dtype.name.lower()}")
        node = ir.Node("", "Cast", [value], [ir.AttrInt64("to", int(dtype))], name=name)
        made = node.outputs[0]
        made.name, made.shape, made.type = name, value.shape, ir.TensorType(dtype)
        before = value.producer()
        if before is not None:
            node.metadata_props.update(before.metadata_props)
            assert before.graph is not None
            before.graph.insert_after(before, node)
        else:
            graph = value.graph
            assert isinstance(graph, ir.Graph)
            first = next(iter(graph), None)
            graph.append(node) if first is None else graph.insert_before(first, node)
        return made

    # Bodies

    def _control(self, node: ir.Node) -> None:
        if node.op_type == "If":
            for graph in nested(node):
                self.body(graph)
            self._settle(node, [g.outputs for g in nested(node)], 0)
            return
        graph = next(iter(nested(node)))
        scans = node.attributes["num_scan_inputs"].as_int() if node.op_type == "Scan" else 0
        skipped = 2 if node.op_type == "Loop" else 0  # trip count and condition
        states = len(node.inputs) - skipped - scans
        groups: list[bool] = []
        for index in range(skipped, len(node.inputs)):
            position = index - skipped
            given, inner = node.inputs[index], graph.inputs[index]
            members = [given, inner]
            if position < states:
                shift = 1 if node.op_type == "Loop" else 0
                members += [graph.outputs[position + shift], node.outputs[position]]
            half = given is not None and self._was_float(given) and not any(
                v is not None and self.limits.is_wide(v) for v in members
            )  # fmt: skip
            groups.append(half)
            if given is not None and self._was_float(given):
                inner.type = inner.type or ir.TensorType(ir.DataType.FLOAT)
                self._use(node, index, half=half)
                if half:
                    self.set_home(inner)
        self.body(graph)
        outputs = list(graph.outputs)[1 if node.op_type == "Loop" else 0 :]
        self._settle(node, [graph.outputs], len(graph.outputs) - len(outputs), groups[:states])

    def _settle(
        self, node: ir.Node, bodies: Sequence[Sequence[ir.Value]], shift: int,
        groups: Sequence[bool] = (),
    ) -> None:  # fmt: skip
        """Let the results of bodies and of the node around them have one type."""
        for index, made in enumerate(node.outputs):
            inner = [b[index + shift] for b in bodies]
            if not all(self._was_float(v) for v in inner):
                continue
            if index < len(groups):
                half = groups[index]
            else:
                half = not any(self.limits.is_wide(v) for v in (made, *inner)) and any(
                    v in self._half for v in inner
                )
            for body, value in zip(bodies, inner, strict=True):
                body[index + shift] = self._as(value, half=half)  # type: ignore[index]
            if half:
                self.set_home(made)
                self.converted += 1

    def outputs(self, graph: ir.Graph, *, half: bool) -> None:
        """Give the model's outputs their types, under their names."""
        for index, value in enumerate(list(graph.outputs)):
            if not self._was_float(value):
                continue
            twin = self._as(value, half=half)
            if twin is not value:
                graph.outputs[index] = twin
                name = value.name
                value.name = self._names.fresh(f"{name}.inner")
                twin.name = name

    def drop_unused(self) -> None:
        """Remove the float32 constants that nobody reads any more."""
        for value in self._touched:
            if not value.uses() and not value.is_graph_output():
                if value.is_initializer() and value.graph is not None:
                    del value.graph.initializers[str(value.name)]
                elif (node := value.producer()) is not None and node.graph is not None:
                    node.graph.remove(node, safe=True)


def _has_floats(node: ir.Node) -> bool:
    return any(is_float(v) for v in (*node.inputs, *node.outputs))


def _is_plain(node: ir.Node) -> bool:
    """Whether everything that it reads, and that is read of it, is a tensor of known type."""
    read = [v for v in node.outputs if v.uses() or v.is_graph_output()]
    return all(v is None or isinstance(v.type, ir.TensorType) for v in (*node.inputs, *read))
