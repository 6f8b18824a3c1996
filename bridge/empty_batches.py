"""Nodes on empty inputs, which ONNX Runtime's kernels refuse, or on which they end the process.

The LSTM and GRU kernels call ``std::terminate`` when the batch has no rows (seen up to 1.32 on the
CPU); TopK before 1.31 and OneHot before 1.28 divide by a number of rows that is zero. No caller can
catch that. Eager code takes such batches, and so does parity checking. So runs on empty inputs go to
a twin of the model in which every such node stands in the branch of an If that is taken when there
is something to compute; models whose inner values may become empty run as that twin from the start.
In the twin Attention and circular Pad stand so too, whose kernels refuse what is empty.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import onnxruntime

from bridge.graph_index import GraphIndex
from bridge.parity.surgery import reads, value_types

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bridge.graph_index import NodeInfo

__all__ = ["guarded", "is_recurrent", "may_become_empty"]

_RECURRENT = ("LSTM", "GRU")
_MENDED = {"TopK": (1, 31), "OneHot": (1, 28)}  # the first versions that take empty inputs
_REFUSING = ("Attention", "Pad")
_GUARD = "/unless_empty"  # after the name of such a node: the If around it
_END = np.iinfo(np.int64).max  # ONNX "to the end"
_HIDDEN_STATES = 5  # the first input that holds one; the outputs from 1 on are their last values
# What may have no rows although everything that it was made of has.
_MAY_EMPTY = frozenset((
    "Compress", "ConstantOfShape", "Expand", "If", "Loop", "NonMaxSuppression", "NonZero", "Range",
    "Scan", "SequenceAt", "Slice", "Split", "StringSplit", "Tile", "TopK", "Unique",
))  # fmt: skip


def _ends_the_process() -> tuple[str, ...]:
    """The operators that empty inputs may end the process in, of the installed version."""
    version = tuple(int(n) for n in re.findall(r"\d+", onnxruntime.__version__)[:2])
    return *_RECURRENT, *(op for op, since in _MENDED.items() if version < since)


def is_recurrent(runtime: onnxruntime.InferenceSession) -> bool:
    """Whether a session runs a node that an empty batch may end the process in."""
    dangerous = _ends_the_process()
    try:
        parts = runtime.get_provider_graph_assignment_info()
        return any(n.op_type in dangerous for part in parts for n in part.get_nodes())
    except Exception:  # it was not asked to note them, or is too old for that
        return True


def _recurrent(model: ir.Model) -> list[NodeInfo]:
    """The nodes that end the process and are not guarded yet."""
    dangerous = _ends_the_process()
    return [i for i in _unguarded(model) if i.node.op_type in dangerous]


def _unguarded(model: ir.Model) -> list[NodeInfo]:
    nodes = GraphIndex(model).nodes
    return [i for i in nodes if not (i.around and str(i.around[-1].name).endswith(_GUARD))]


def _refuses(node: ir.Node) -> bool:
    """Whether a node's kernel refuses empty inputs, and its result's shape is known from theirs."""
    if node.op_type not in _REFUSING or node.domain:
        return False
    if node.op_type == "Pad":
        return node.attributes.get_string("mode", "constant") == "wrap"
    return not any(v.uses() or v.is_graph_output() for v in node.outputs[1:])


def may_become_empty(model: ir.Model) -> bool:
    """Whether such a node may get an empty batch though no input of the model is empty."""
    return any(info.around or _depends_on_data(info.node) for info in _recurrent(model))


def _depends_on_data(node: ir.Node) -> bool:
    first = node.inputs[0]
    pending = [None if first is None else first.producer()]
    seen: set[ir.Node] = set()
    while pending:
        maker = pending.pop()
        if maker is None or maker in seen:
            continue
        if maker.op_type in _MAY_EMPTY and not _keeps_rows(maker):
            return True
        seen.add(maker)
        pending += [v.producer() for v in reads(maker)]
    return False


def _keeps_rows(node: ir.Node) -> bool:
    """Whether a node's sizes are constants, which nobody exports as zero; a Slice's end is not."""
    sizes = [v for v in node.inputs[1:] if v is not None]
    return node.op_type != "Slice" and bool(sizes) and all(v.const_value for v in sizes)


def guarded(model: ir.Model, *, refusing: bool = False) -> ir.Model | None:
    """The model with such nodes in branches that are taken when there is any input.

    None if it has none. ``refusing``: also the nodes that only refuse empty inputs.
    """
    model = model.clone()
    nodes = [info.node for info in _recurrent(model)]
    if refusing:
        nodes += [info.node for info in _unguarded(model) if _refuses(info.node)]
    types = value_types(model) if nodes else {}
    for node in nodes:
        _guard(node, types)
    return model if nodes else None


def _elements(node: ir.Node, types: Mapping[str, ir.TypeProtocol]) -> list[ir.DataType]:
    """The element type of each output."""
    x, *further = node.inputs
    assert x is not None
    known = types.get(str(x.name))
    given = x.dtype or (None if known is None else known.dtype)
    if node.op_type == "TopK":
        return [given or ir.DataType.FLOAT, ir.DataType.INT64]
    if node.op_type in _REFUSING:
        return [given or ir.DataType.FLOAT] * len(node.outputs)
    if node.op_type == "OneHot":
        return [(further[1].dtype if further[1] is not None else None) or ir.DataType.FLOAT]
    weights = next((v.const_value for v in further[:2] if v and v.const_value), None)
    element = given or (ir.DataType.FLOAT if weights is None else weights.dtype)
    return [element] * len(node.outputs)


def _guard(node: ir.Node, types: Mapping[str, ir.TypeProtocol]) -> None:
    graph, x = node.graph, node.inputs[0]
    assert isinstance(graph, ir.Graph)
    assert x is not None
    name = node.name or str(node.outputs[0].name)
    elements = _elements(node, types)
    outputs = list(node.outputs)
    inner = ir.Node(
        node.domain, node.op_type, list(node.inputs), list(node.attributes.values()),
        num_outputs=len(outputs), name=node.name,
    )  # fmt: skip
    inner.metadata_props.update(node.metadata_props)
    for number, (value, element) in enumerate(zip(inner.outputs, elements, strict=True)):
        value.name, value.type = f"{name}/computed{number}", ir.TensorType(element)
    kept = [i for i, v in enumerate(outputs) if v.name]
    if node.op_type in _REFUSING:
        kept = [0]
    otherwise = ir.Graph(
        [], [inner.outputs[i] for i in kept], nodes=[inner], name=f"{name}/computed"
    )
    if node.op_type in _RECURRENT:
        then = _nothing(node, elements[0], name, kept)
    elif node.op_type in _REFUSING:
        make = _padded if node.op_type == "Pad" else _unattended
        then = make(node, name, elements[0])
    else:
        then = _no_rows(node, name, [(i, elements[i]) for i in kept])
    size = _node("Size", [x], f"{name}/size")
    zero = _constant(np.asarray(0, np.int64), f"{name}/zero")
    nodes = [size, zero]
    if node.op_type == "Attention":  # there may be no keys
        nodes.append(_node("Size", [node.inputs[1]], f"{name}/keys"))
        both = [size.outputs[0], nodes[-1].outputs[0]]
        nodes.append(size := _node("Mul", both, f"{name}/sizes"))
    equal = _node("Equal", [size.outputs[0], zero.outputs[0]], f"{name}/empty", ir.DataType.BOOL)
    branches = [ir.AttrGraph("then_branch", then), ir.AttrGraph("else_branch", otherwise)]
    chosen = ir.Node(
        "", "If", [equal.outputs[0]], branches, name=f"{name}{_GUARD}", num_outputs=len(kept)
    )
    graph.insert_before(node, [*nodes, equal, chosen])
    for new, i in zip(chosen.outputs, kept, strict=True):
        old = outputs[i]
        new.type, new.shape = old.type, old.shape
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        new.name, old.name = old.name, f"{name}/replaced{i}"
    graph.remove(node, safe=True)


def _no_rows(node: ir.Node, name: str, kept: list[tuple[int, ir.DataType]]) -> ir.Graph:
    """What TopK and OneHot make of nothing: as many numbers in another shape."""
    axis = node.attributes.get_int("axis", -1)
    count = _node("Cast", [node.inputs[1]], f"{name}/number", to=ir.DataType.INT64.value)
    one = _constant(np.asarray([1]), f"{name}/one")
    size = _node("Reshape", [count.outputs[0], one.outputs[0]], f"{name}/axis_size")
    shape = _node("Shape", [node.inputs[0]], f"{name}/shape")
    replaces = node.op_type == "TopK"  # OneHot's axis is a new one
    place = axis if replaces or axis >= 0 else axis + 1
    behind = place + replaces
    nodes = [count, one, size, shape]
    parts = [size.outputs[0]]
    if place != 0 or not (replaces or axis >= 0):
        before = _constant(np.asarray([place or _END]), f"{name}/before_end")
        zero = _constant(np.asarray([0]), f"{name}/first")
        cut = [shape.outputs[0], zero.outputs[0], before.outputs[0]]
        nodes += [before, zero, _node("Slice", cut, f"{name}/before")]
        parts.insert(0, nodes[-1].outputs[0])
    if behind > 0 or (behind == 0 and axis >= 0) or behind < 0:
        start = _constant(np.asarray([behind]), f"{name}/after_start")
        end = _constant(np.asarray([_END]), f"{name}/end")
        cut = [shape.outputs[0], start.outputs[0], end.outputs[0]]
        nodes += [start, end, _node("Slice", cut, f"{name}/after")]
        parts.append(nodes[-1].outputs[0])
    wanted = _node("Concat", [*parts], f"{name}/wanted", axis=0)
    made = [
        _node("ConstantOfShape", [wanted.outputs[0]], f"{name}/none{i}", element,
              value=ir.tensor(np.zeros(1, element.numpy())))
        for i, element in kept
    ]  # fmt: skip
    return ir.Graph(
        [], [n.outputs[0] for n in made], nodes=[*nodes, wanted, *made], name=f"{name}/nothing"
    )


def _padded(node: ir.Node, name: str, element: ir.DataType) -> ir.Graph:
    """What circular padding makes of nothing: as much of it as of anything else."""
    made = _node("Pad", [*node.inputs[:2], None, *node.inputs[3:]], f"{name}/none", element)
    return ir.Graph([], [made.outputs[0]], nodes=[made], name=f"{name}/nothing")


def _unattended(node: ir.Node, name: str, element: ir.DataType) -> ir.Graph:
    """What attention makes of no queries, or of no keys: zeros, of the values' width."""
    heads = [node.attributes.get_int(f"{n}_num_heads", 0) for n in ("q", "kv")]
    last = 2 if all(heads) else 3
    queries = _node("Shape", [node.inputs[0]], f"{name}/queries", end=last)
    width = _node("Shape", [node.inputs[2]], f"{name}/width", start=last)
    nodes = [queries, width]
    if all(heads):
        factors = [_constant(np.asarray([n]), f"{name}/heads{i}") for i, n in enumerate(heads)]
        one = _node("Div", [width.outputs[0], factors[1].outputs[0]], f"{name}/one_width")
        width = _node("Mul", [one.outputs[0], factors[0].outputs[0]], f"{name}/all_widths")
        nodes += [*factors, one, width]
    shape = _node("Concat", [queries.outputs[0], width.outputs[0]], f"{name}/wanted", axis=0)
    zero = ir.tensor(np.zeros(1, element.numpy()))
    made = _node("ConstantOfShape", [shape.outputs[0]], f"{name}/none", element, value=zero)
    return ir.Graph([], [made.outputs[0]], nodes=[*nodes, shape, made], name=f"{name}/nothing")


def _nothing(node: ir.Node, element: ir.DataType, name: str, kept: list[int]) -> ir.Graph:
    """What a recurrent node makes of nothing: no steps or no rows, and the states it began with."""
    x = node.inputs[0]
    directions = 2 if node.attributes.get_string("direction", "forward") == "bidirectional" else 1
    hidden = node.attributes.get_int("hidden_size", 0)
    shape = _node("Shape", [x], f"{name}/shape")
    zero = _constant(np.zeros(1, element.numpy()), f"{name}/nothing")
    sizes = {n: _constant(np.asarray([v]), f"{name}/{n}") for n, v in
             {"first": 0, "second": 1, "directions": directions, "hidden": hidden}.items()}  # fmt: skip
    steps, rows = (
        _node("Gather", [shape.outputs[0], sizes[n].outputs[0]], f"{name}/{n}_size")
        for n in ("first", "second")
    )
    nodes = [shape, zero, *sizes.values(), steps, rows]
    results: list[ir.Value] = []
    for i in kept:
        given = node.inputs[_HIDDEN_STATES + i - 1] if i and _has_input(node, i) else None
        if given is not None:
            made = _node("Identity", [given], f"{name}/none{i}", element)
        else:
            parts = [*([] if i else [steps]), sizes["directions"], rows, sizes["hidden"]]
            wanted = _node("Concat", [n.outputs[0] for n in parts], f"{name}/wanted{i}", axis=0)
            nodes.append(wanted)
            made = _node(
                "Expand", [zero.outputs[0], wanted.outputs[0]], f"{name}/none{i}", element
            )
        nodes.append(made)
        results.append(made.outputs[0])
    return ir.Graph([], results, nodes=nodes, name=f"{name}/nothing")


def _has_input(node: ir.Node, output: int) -> bool:
    place = _HIDDEN_STATES + output - 1
    return len(node.inputs) > place and node.inputs[place] is not None


def _node(
    op_type: str,
    inputs: Sequence[ir.Value | None],
    name: str,
    dtype: ir.DataType = ir.DataType.INT64,
    **attributes: Any,
) -> ir.Node:
    """A node whose output is called as it is: names must be new in the graphs around it, too."""
    node = ir.node(op_type, inputs, attributes, name=name)
    node.outputs[0].name, node.outputs[0].type = name, ir.TensorType(dtype)
    return node


def _constant(array: np.ndarray[Any, Any], name: str) -> ir.Node:
    tensor = ir.tensor(array, name=name)
    return _node("Constant", [], name, tensor.dtype, value=tensor)
