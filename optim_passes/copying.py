"""Copies of nodes, for bodies that become part of what is around them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

from optim_passes.rewriting import commit

if TYPE_CHECKING:
    from collections.abc import Iterable

    from optim_passes.builder import Builder
    from optim_passes.scopes import Names, Scope

__all__ = ["copy_nodes", "move_nodes", "put_beside", "stands_beside"]


_BESIDE = "bridge.beside"  # on loops that stay for what a faster form of them does not take


def copy_nodes(
    nodes: Iterable[ir.Node], mapping: dict[ir.Value, ir.Value | None], names: Names
) -> list[ir.Node]:
    """Copies of ``nodes``, in order, with names of their own.

    Args:
        nodes: What to copy, subgraphs included.
        mapping: What stands for the values that the copies shall not share; the copies' own
            outputs are added to it.
        names: Makes the names.
    """
    copies = []
    for node in nodes:
        attributes = []
        for name, given in node.attributes.items():
            if not given.is_ref() and given.type == ir.AttributeType.GRAPH:
                inner = _copy_graph(given.as_graph(), mapping, names)
                attributes.append(ir.AttrGraph(name, inner))
            else:
                attributes.append(given)
        copy = ir.Node(
            node.domain,
            node.op_type,
            [None if v is None else mapping.get(v, v) for v in node.inputs],
            attributes,
            overload=node.overload,
            num_outputs=len(node.outputs),
            name=names.fresh(node.name or node.op_type),
            metadata_props=dict(node.metadata_props),
        )
        for old, new in zip(node.outputs, copy.outputs, strict=True):
            _describe(new, old, names)
            mapping[old] = new
        copies.append(copy)
    return copies


def _describe(new: ir.Value, old: ir.Value, names: Names) -> None:
    new.name = names.fresh(old.name) if old.name else old.name
    new.type = old.type
    new.shape = None if old.shape is None else old.shape.copy()
    new.meta.update(old.meta)


def _copy_graph(
    graph: ir.Graph, mapping: dict[ir.Value, ir.Value | None], names: Names
) -> ir.Graph:
    inputs = []
    for old in graph.inputs:
        new = ir.Value()
        _describe(new, old, names)
        mapping[old] = new
        inputs.append(new)
    initializers = []
    for old in graph.initializers.values():
        if old in mapping:
            continue
        new = ir.Value(const_value=old.const_value)
        _describe(new, old, names)
        mapping[old] = new
        initializers.append(new)
    nodes = copy_nodes(graph, mapping, names)
    outputs = [mapping.get(v, v) for v in graph.outputs]
    return ir.Graph(
        inputs, [v for v in outputs if v is not None], nodes=nodes, initializers=initializers,
        opset_imports=dict(graph.opset_imports), name=graph.name,
    )  # fmt: skip


def move_nodes(source: ir.Graph, scope: Scope, before: ir.Node, names: Names) -> list[ir.Value]:
    """Take all nodes out of a body and put them before a node of the body around it.

    Bodies that exclude each other may use a name twice, so every value gets a fresh one.

    Returns:
        What the emptied body returned.
    """
    results = list(source.outputs)
    source.outputs.clear()
    for value in list(source.initializers.values()):
        assert value.name is not None
        del source.initializers[value.name]
        lift(value, scope, before, names)
    for node in list(source):
        source.remove(node)
        scope.body.insert_before(before, node)
        for value in node.outputs:
            if value.name:
                value.name = names.fresh(value.name)
    return results


def lift(value: ir.Value, scope: Scope, before: ir.Node, names: Names) -> None:
    """Make a constant of an inner body one of ``scope``'s."""
    name = names.fresh(value.name or "constant")
    if scope.function is None:
        value.name = name
        scope.model.graph.initializers.add(value)
        return
    assert value.const_value is not None
    node = ir.node("Constant", [], {"value": value.const_value}, name=name)
    node.outputs[0].name, node.outputs[0].const_value = name, value.const_value
    node.outputs[0].type, node.outputs[0].shape = value.type, value.shape
    scope.body.insert_before(before, node)
    value.replace_all_uses_with(node.outputs[0])


def put_beside(node: ir.Node, condition: ir.Value, fast: ir.Graph, op: Builder) -> None:
    """Let another form of a node run where a condition holds; elsewhere the node runs as it is.

    Args:
        node: The node, with one output or more.
        condition: When the other form runs.
        fast: It: a body that gives the same values.
        op: Makes the choice; its nodes go before ``node``.
    """
    slow = ir.Graph([], [], nodes=[], name="otherwise")
    made = op.node("If", condition, outputs=len(node.outputs), then_branch=fast, else_branch=slow)
    made = [made] if isinstance(made, ir.Value) else made
    for new, old in zip(made, node.outputs, strict=True):
        new.type, new.shape = old.type, old.shape
    node.metadata_props[_BESIDE] = ""
    body = op.scope.body
    commit(op, node, node.outputs, made, [])
    body.remove(node)
    slow.append(node)
    slow.outputs.extend(node.outputs)


def stands_beside(node: ir.Node, scope: Scope) -> bool:
    """Whether a node, or one that holds it, stands beside another form of it."""
    inside: Scope | None = scope
    holder: ir.Node | None = node
    while holder is not None and inside is not None:
        if _BESIDE in holder.metadata_props:
            return True
        holder, inside = inside.holder, inside.outer
    return False
