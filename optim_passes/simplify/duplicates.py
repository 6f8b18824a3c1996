"""Equal nodes computed once."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import onnx
import onnx_ir as ir

from optim_passes.purity import is_pure
from optim_passes.rewriting import Outcome, Pass
from optim_passes.values import attribute, constant, dims

if TYPE_CHECKING:
    from optim_passes.scopes import Scope

__all__ = ["CommonSubexpressionPass"]

_COMPARED = 64  # elements of a tensor attribute that are worth comparing


class CommonSubexpressionPass(Pass):
    """Nodes of the same operator, operands and attributes become the first of them.

    A node inside a subgraph may become one of a body around it. Nodes that draw random numbers or
    hold subgraphs are left alone. Two ``Shape`` of one body that give sizes of the same names are
    equal, whatever they are of.
    """

    def call(self, model: ir.Model) -> Outcome:
        """Run on every body, outer ones first."""
        self._seen: dict[int, dict[Any, ir.Node]] = {}
        return super().call(model)

    def run(self, scope: Scope, outcome: Outcome) -> None:
        """Merge the nodes of one body with each other and with those around it."""
        around: list[tuple[dict[Any, ir.Node], ir.Node]] = []
        inner = scope
        while inner.outer is not None and inner.holder is not None:
            around.append((self._seen[id(inner.outer.body)], inner.holder))
            inner = inner.outer
        here = self._seen.setdefault(id(scope.body), {})
        for node in list(scope.body):
            sizes = _sizes(node)
            key = _key(node, scope) if sizes is None else sizes
            if key is None:
                continue
            first = here.get(key)
            for seen, holder in around:
                other = seen.get(key)
                if first is None and other is not None and _before(other, holder):
                    first = other
            if first is None:
                here[key] = node
            elif not any(v.is_graph_output() for v in node.outputs):
                for old, new in zip(node.outputs, first.outputs, strict=True):
                    old.replace_all_uses_with(new)
                    if new.shape is None:
                        new.shape = old.shape
                scope.body.remove(node, safe=True)
                outcome.rewrites += 1


def _sizes(node: ir.Node) -> Any:
    """The names of the sizes that a Shape gives; None if some have no name."""
    shape = dims(node.inputs[0]) if node.op_type == "Shape" and not node.domain else None
    if shape is None:
        return None
    start, end = attribute(node, "start", 0), attribute(node, "end", len(shape))
    names = tuple(d if isinstance(d, int) else d.value for d in shape[start:end])
    # With the body: a name may mean another size in the bodies around it.
    return None if None in names else ("Shape", names, node.graph)


def _before(node: ir.Node, holder: ir.Node) -> bool:
    """Whether a node of the body that holds ``holder`` comes before it."""
    graph = holder.graph
    assert graph is not None
    for each in graph:
        if each is node:
            return True
        if each is holder:
            return False
    return False


@functools.cache
def _defaults(op_type: str, domain: str, version: int) -> dict[str, Any]:
    """Attributes that say nothing where they have these values."""
    try:
        schema = onnx.defs.get_schema(op_type, version, domain)
    except onnx.defs.SchemaError:
        return {}
    known = {n: a.default_value for n, a in schema.attributes.items() if not a.required}
    return {n: ir.from_proto(v).value for n, v in known.items() if v.name}


def _key(node: ir.Node, scope: Scope) -> Any:
    """What equal nodes have in common; None for nodes that must not be merged."""
    if not is_pure(node):
        return None
    attributes: list[Any] = []
    defaults = _defaults(node.op_type, node.domain, scope.opsets.get(node.domain, 1))
    for name, given in sorted(node.attributes.items()):
        if given.is_ref():
            attributes.append((name, "ref", given.ref_attr_name))
            continue
        value: Any = given.value
        if given.type == ir.AttributeType.TENSOR:
            if value.size > _COMPARED or value.dtype == ir.DataType.STRING:
                return None
            value = (value.dtype, value.shape.numpy(), value.tobytes())
        elif isinstance(value, list | tuple):
            value = tuple(value)
        elif not isinstance(value, int | float | str | bytes):
            return None
        elif name in defaults and value == defaults[name]:
            continue
        attributes.append((name, int(given.type), value))
    operands = [_operand(v) for v in node.inputs]
    if node.op_type in ("Add", "Mul", "And", "Or", "Equal") and not node.domain:
        operands.sort(key=str)
    return node.op_identifier(), tuple(operands), len(node.outputs), tuple(attributes)


def _operand(value: ir.Value | None) -> Any:
    """What equal operands have in common: small constants their contents."""
    tensor = constant(value)
    if tensor is None or tensor.size > _COMPARED or tensor.dtype == ir.DataType.STRING:
        return id(value)
    return int(tensor.dtype), tuple(tensor.shape.numpy()), tensor.tobytes()
