"""More than sixty faults planted in ten models: what a converter, a pass or a runtime may get wrong."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from bridge.graph_index import GraphIndex, subgraphs

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["FAULTS", "Fault", "with_readers"]


@dataclasses.dataclass(frozen=True)
class Fault:
    """One mistake.

    Attributes:
        model: The model it is planted in.
        name: What it is.
        plant: Changes the graph; returns the names of the guilty nodes.
        iteration: The loop iteration that it shows in.
    """

    model: str
    name: str
    plant: Callable[[ir.Model], list[str]]
    iteration: int | None = None

    def __str__(self) -> str:
        return f"{self.model}-{self.name.replace(' ', '-')}"


def find(model: ir.Model, op_type: str, nth: int = 0, module: str | None = None) -> ir.Node:
    """The nth node of an operator, subgraphs included."""
    nodes = [
        i.node
        for i in GraphIndex(model).nodes
        if i.node.op_type == op_type and (module is None or i.module == module)
    ]
    return nodes[nth]


def attribute(op_type: str, name: str, value: Any, nth: int = 0, module: str | None = None):
    """Set an attribute of a node."""

    def plant(model: ir.Model) -> list[str]:
        node = find(model, op_type, nth, module)
        before = node.attributes.get(name)
        assert before is None or before.value != value, "the fault changes nothing"
        node.attributes.add(ir.convenience.convert_attribute(name, value))
        return [node.name]

    return plant


def operator(op_type: str, other: str, nth: int = 0, module: str | None = None):
    """Turn a node into another operator."""

    def plant(model: ir.Model) -> list[str]:
        node = find(model, op_type, nth, module)
        node.op_type = other
        node.attributes.pop("approximate", None)
        return [node.name]

    return plant


def swapped(op_type: str, nth: int = 0, a: int = 0, b: int = 1, module: str | None = None):
    """Swap two inputs of a node."""

    def plant(model: ir.Model) -> list[str]:
        node = find(model, op_type, nth, module)
        first, second = node.inputs[a], node.inputs[b]
        node.replace_input_with(a, second)
        node.replace_input_with(b, first)
        return [node.name]

    return plant


def duplicated(op_type: str, nth: int = 0):
    """A node reads its first input twice."""

    def plant(model: ir.Model) -> list[str]:
        node = find(model, op_type, nth)
        node.replace_input_with(1, node.inputs[0])
        return [node.name]

    return plant


def rewired(op_type: str, index: int, pick: Callable[[ir.Model, ir.Node], ir.Value], nth: int = 0):
    """Let a node read another value."""

    def plant(model: ir.Model) -> list[str]:
        node = find(model, op_type, nth)
        node.replace_input_with(index, pick(model, node))
        return [node.name]

    return plant


def weight(name: str, change: Callable[[np.ndarray], np.ndarray]):
    """Change an initializer; whoever reads it is guilty."""

    def plant(model: ir.Model) -> list[str]:
        value = model.graph.initializers[name]
        array = change(value.const_value.numpy().copy())
        value.const_value = ir.tensor(np.ascontiguousarray(array), name=name)
        return readers(value)

    return plant


def swapped_weights(first: str, second: str):
    """Two initializers change places."""

    def plant(model: ir.Model) -> list[str]:
        values = [model.graph.initializers[n] for n in (first, second)]
        arrays = [v.const_value.numpy().copy() for v in values]
        for value, array in zip(values, reversed(arrays), strict=True):
            value.const_value = ir.tensor(array, name=value.name)
        return [n for v in values for n in readers(v)]

    return plant


def constant(op_type: str, index: int, change: Callable[[np.ndarray], Any], nth: int = 0):
    """Give one node another constant than it has."""

    def plant(model: ir.Model) -> list[str]:
        node = find(model, op_type, nth)
        before = node.inputs[index].const_value.numpy()
        after = np.asarray(change(before.copy()), before.dtype)
        assert not np.array_equal(before, after), "the fault changes nothing"
        value = ir.Value(
            name=f"{node.name}/planted{index}",
            shape=ir.Shape(after.shape),
            type=ir.TensorType(ir.DataType.from_numpy(after.dtype)),
            const_value=ir.tensor(after, name=f"{node.name}/planted{index}"),
        )
        model.graph.initializers.add(value)
        node.replace_input_with(index, value)
        return [node.name]

    return plant


def after(
    op_type: str, emit: Callable[..., list[ir.Node]], nth: int = 0, module: str | None = None
):
    """Put nodes behind a node, whose readers then read what these make."""

    def plant(model: ir.Model) -> list[str]:
        node = find(model, op_type, nth, module)
        value = node.outputs[0]
        graph = node.graph
        raw = ir.Value(name=f"{value.name}/raw", type=value.type, shape=value.shape)
        nodes = emit(model, raw, node)
        last = nodes[-1].outputs[0]
        value.replace_all_uses_with(last, replace_graph_outputs=True)
        name = value.name
        value.name, last.name = raw.name, name
        last.type, last.shape = value.type, value.shape
        for made in nodes:
            for index, read in enumerate(made.inputs):
                if read is raw:
                    made.replace_input_with(index, value)
        graph.insert_after(node, nodes)
        return [node.name, *(n.name for n in nodes)]

    return plant


def readers(value: ir.Value) -> list[str]:
    """The nodes that read a value."""
    return [n.name for n, _ in value.uses()]


def with_readers(model: ir.Model, names: set[str]) -> set[str]:
    """Nodes, and the nodes that read what they make."""
    index = GraphIndex(model)
    values = [v for n in names if n in index.by_name for v in index.by_name[n].node.outputs]
    return names | {node.name for v in values for node in v.consumers()}


def tensor_node(array: Any, name: str) -> ir.Node:
    node = ir.node("Constant", [], {"value": ir.tensor(np.asarray(array), name=name)}, name=name)
    node.outputs[0].name = name
    return node


def add_constant(amount: float):
    """Something is added that should not be."""

    def emit(model, raw, node):
        made = tensor_node(np.float32(amount), f"{node.name}/amount")
        added = ir.node("Add", [raw, made.outputs[0]], name=f"{node.name}/fault")
        return [made, added]

    return emit


def truncated(model, raw, node):
    """Numbers that go through integers."""
    whole = ir.node("Cast", [raw], {"to": 7}, name=f"{node.name}/whole")
    return [whole, ir.node("Cast", [whole.outputs[0]], {"to": 1}, name=f"{node.name}/float")]


def rolled(model, raw, node):
    """A row of padding at the wrong end."""
    axes = tensor_node(np.asarray([2]), f"{node.name}/axes")
    ends = [tensor_node(np.asarray([n]), f"{node.name}/{n}") for n in (0, -1, 2**62)]
    zero, minus, most = (e.outputs[0] for e in ends)
    parts = [
        ir.node("Slice", [raw, *span, axes.outputs[0]], name=f"{node.name}/part{n}")
        for n, span in enumerate(((minus, most), (zero, minus)))
    ]
    joined = ir.node(
        "Concat", [p.outputs[0] for p in parts], {"axis": 2}, name=f"{node.name}/joined"
    )
    return [axes, *ends, *parts, joined]


def bad_iteration(number: int):
    """A loop's body that goes wrong in one iteration only."""

    def plant(model: ir.Model) -> list[str]:
        loop = find(model, "Loop")
        body = dict(subgraphs(loop))["body"]
        counter = body.inputs[0]

        def emit(_, raw, node):
            which = tensor_node(np.int64(number), "which")
            equal = ir.node("Equal", [counter, which.outputs[0]], name="equal")
            same = ir.node("Cast", [equal.outputs[0]], {"to": 1}, name="as_float")
            added = ir.node("Add", [raw, same.outputs[0]], name="fault")
            return [which, equal, same, added]

        return after("Tanh", emit)(model)

    return plant


def swap_branches(model: ir.Model) -> list[str]:
    """then and else change places."""
    node = find(model, "If")
    then, other = node.attributes["then_branch"].value, node.attributes["else_branch"].value
    node.attributes["then_branch"] = ir.AttrGraph("then_branch", other)
    node.attributes["else_branch"] = ir.AttrGraph("else_branch", then)
    return [node.name, *(n.name for g in (then, other) for n in g)]


def forgotten_transpose(model: ir.Model) -> list[str]:
    """Heads that are not brought back behind the positions before they are joined."""
    nodes = [n for n in model.graph if n.op_type == "Transpose"]
    node = [n for n in nodes if len(n.attributes["perm"].value) == 4][-1]
    node.attributes.add(ir.convenience.convert_attribute("perm", [0, 1, 2, 3]))
    return [node.name]


def later_slice(model: ir.Model) -> list[str]:
    """A slice of the same length, one further on."""
    constant("Slice", 1, lambda x: x + 1)(model)
    return constant("Slice", 2, lambda x: x + 1)(model)


def transposed(x):
    return x.T if x.shape[0] == x.shape[1] else x.T.reshape(x.shape)


FAULTS = [
    # A residual network
    Fault("resnet", "wrong eps", attribute("BatchNormalization", "epsilon", 1e-1)),
    Fault("resnet", "stale running mean", weight("norm1.running_mean", np.zeros_like)),
    Fault("resnet", "stale running variance", weight("norm2.running_var", np.ones_like)),
    Fault("resnet", "transposed kernel", weight("conv1.weight", lambda w: w.swapaxes(0, 1))),
    Fault("resnet", "lost bias", weight("stem.bias", np.zeros_like)),
    Fault("resnet", "max becomes average pool", operator("MaxPool", "AveragePool")),
    Fault("resnet", "maximum for mean", operator("ReduceMean", "ReduceMax")),
    Fault("resnet", "softmax over the batch", attribute("Softmax", "axis", 0)),
    Fault("resnet", "activation lost", operator("Relu", "Identity", nth=0)),
    Fault("resnet", "head rounded", weight("head.weight", lambda w: np.round(w * 8) / 8)),
    # A mobile network
    Fault("mobilenet", "wrong pads", attribute("Conv", "pads", [0, 0, 2, 2], module="depth")),
    Fault("mobilenet", "relu6 clips at 5", constant("Clip", 2, lambda x: x * 0 + 0.5)),
    Fault("mobilenet", "hard sigmoid for sigmoid", operator("Sigmoid", "HardSigmoid")),
    Fault("mobilenet", "hardswish becomes mish", operator("HardSwish", "Mish")),
    Fault("mobilenet", "channels reversed", weight("project.weight", lambda w: w[:, ::-1])),
    Fault("mobilenet", "added instead of scaled", operator("Mul", "Add", nth=-1)),
    # An encoder
    Fault("encoder", "wrong eps", attribute("LayerNormalization", "epsilon", 1e-2)),
    Fault("encoder", "wrong mask value", constant("Where", 1, lambda x: x * 0)),
    Fault("encoder", "inverted mask", swapped("Where", a=1, b=2)),
    Fault("encoder", "softmax over queries", attribute("Softmax", "axis", 2)),
    Fault("encoder", "transposed weight", weight("out.weight", transposed)),
    Fault("encoder", "wrong head order", forgotten_transpose),
    Fault("encoder", "relu for gelu", operator("Gelu", "Relu")),
    Fault("encoder", "queries and keys swapped", swapped_weights("query.weight", "key.weight")),
    Fault("encoder", "positions off by one", constant("Range", 0, lambda x: x + 1)),
    Fault("encoder", "scale of scores", constant("Div", 1, lambda x: x * 2)),
    Fault("encoder", "keys for values", weight("value.weight", lambda w: w[::-1])),
    # A decoder
    Fault("decoder", "not causal", attribute("Attention", "is_causal", 0)),
    Fault("decoder", "wrong scale", attribute("Attention", "scale", 0.9)),
    Fault("decoder", "wrong eps", attribute("RMSNormalization", "epsilon", 1e-1)),
    Fault("decoder", "keys and values swapped", swapped("Attention", a=1, b=2)),
    Fault("decoder", "queries and keys swapped", swapped("Attention", a=0, b=1)),
    Fault("decoder", "gate without sigmoid", operator("Sigmoid", "Tanh")),
    Fault("decoder", "stale embedding", weight("tokens.weight", lambda w: w * 1.02)),
    Fault("decoder", "head off by one", weight("head.weight", lambda w: np.roll(w, 1, 0))),
    # A tagger
    Fault("tagger", "directions swapped", constant("LSTM", 1, lambda w: w[::-1])),
    Fault("tagger", "one direction's gates swapped",
          constant("LSTM", 2, lambda w: np.concatenate([np.roll(w[:1], 12, 1), w[1:]]))),
    Fault("tagger", "softmax over time", attribute("LogSoftmax", "axis", 1)),
    Fault("tagger", "tanh lost", operator("Tanh", "Identity")),
    Fault("tagger", "embedding rows shifted", weight("tokens.weight", lambda w: np.roll(w, 1, 0))),
    # A loop
    Fault("recurrence", "one bad iteration", bad_iteration(3), iteration=3),
    Fault("recurrence", "the last iteration is bad", bad_iteration(5), iteration=5),
    Fault("recurrence", "wrong decay", constant("Mul", 1, lambda x: x * 1.1), iteration=1),
    Fault("recurrence", "inputs the other way", swapped("Concat", nth=1), iteration=0),
    Fault("recurrence", "wrong activation inside", operator("Sigmoid", "Tanh"), iteration=0),
    Fault("recurrence", "state starts at one",
          attribute("ConstantOfShape", "value", ir.tensor(np.ones(1, np.float32)))),
    Fault("recurrence", "transposed head", weight("head.weight", transposed)),
    # A branch
    Fault("router", "branches swapped", swap_branches),
    Fault("router", "condition negated", operator("Greater", "Less")),
    Fault("router", "wrong operator in the branch", operator("Sin", "Cos")),
    Fault("router", "stale weight in the branch", weight("warm.weight", lambda w: w * 0.9)),
    # An hourglass
    Fault("unet", "wrong slope", attribute("LeakyRelu", "alpha", 0.2)),
    Fault("unet", "resized from the corners",
          attribute("Resize", "coordinate_transformation_mode", "asymmetric")),
    Fault("unet", "nearest for linear", attribute("Resize", "mode", "nearest")),
    Fault("unet", "concatenated the other way", swapped("Concat", nth=-1)),
    Fault("unet", "off-by-one slice", later_slice),
    Fault("unet", "padded on the other side", after("Resize", rolled)),
    Fault("unet", "kernel flipped", weight("up.weight", lambda w: w[..., ::-1])),
    # Half precision
    Fault("half", "float16 overflow", weight("first.weight", lambda w: w * np.float16(30000))),
    Fault("half", "wrong eps", attribute("LayerNormalization", "epsilon", 5e-1)),
    Fault("half", "offset lost", operator("Add", "Sub", nth=-1)),
    # A detector
    Fault("detector", "boxes truncated", after("Div", truncated)),
    Fault("detector", "smallest for largest", attribute("TopK", "largest", 0)),
    Fault("detector", "boxes halved twice", constant("Div", 1, lambda x: x * 2)),
    Fault("detector", "clipped at the wrong bound", constant("Clip", 2, lambda x: x * 0.5)),
    Fault("detector", "sum without the first", attribute("CumSum", "exclusive", 1)),
    Fault("detector", "gathered along another axis", attribute("GatherElements", "axis", 0)),
]  # fmt: skip
