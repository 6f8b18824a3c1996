"""``If`` whose condition is known, or follows from that of an ``If`` before it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from optim_passes.builder import Builder
from optim_passes.copying import copy_nodes, move_nodes
from optim_passes.rewriting import Outcome, Pass, commit, erase, replace_value
from optim_passes.scopes import Names, captured
from optim_passes.values import attribute, producer, scalar

if TYPE_CHECKING:
    from optim_passes.scopes import Scope

__all__ = ["BranchThreadPass", "KnownBranchPass"]

_BRANCHES = {"then_branch": True, "else_branch": False}
_COPIED = 8  # nodes that may be there twice


class KnownBranchPass(Pass):
    """An ``If`` with a constant condition becomes the nodes of the branch that it takes."""

    def run(self, scope: Scope, outcome: Outcome) -> None:
        """Inline in one body; what was in the branch may hold such an If again."""
        names: Names | None = None
        pending = [n for n in scope.body if n.op_type == "If" and not n.domain]
        while pending:
            node = pending.pop()
            condition = scalar(node.inputs[0])
            if condition is None:
                continue
            names = names or Names(scope.model)
            branch: ir.Graph = attribute(node, "then_branch" if condition else "else_branch")
            pending += [n for n in branch if n.op_type == "If" and not n.domain]
            results = move_nodes(branch, scope, node, names)
            for old, new in zip(node.outputs, results, strict=True):
                rename = new.graph is scope.body and new.producer() is not None
                replace_value(old, new, scope.body, node, rename=rename)
            scope.body.remove(node, safe=True)
            outcome.rewrites += 1


class BranchThreadPass(Pass):
    """An ``If`` whose condition a branch of an ``If`` before it decides moves into both branches.

    That is what leaves a loop that is written out early, or returns: each step asks whether the
    one before has returned. In the branches, the condition is known too.
    """

    def run(self, scope: Scope, outcome: Outcome) -> None:
        """Rewrite one body, until there is nothing left to move."""
        names = Names(scope.model) if any(n.op_type == "If" for n in scope.body) else None
        if names is None:
            return
        outcome.rewrites += sum(_tell(n, scope, names) for n in scope.body if n.op_type == "If")
        found = _pair(scope.body)
        while found is not None:
            _thread(*found, scope, names)
            outcome.rewrites += 1
            found = _pair(scope.body)


def _tell(node: ir.Node, scope: Scope, names: Names) -> int:
    """Let the branches know the condition."""
    condition, told = node.inputs[0], 0
    if condition is None:
        return 0
    for name, known in _BRANCHES.items():
        branch: ir.Graph = attribute(node, name)
        for inner in [n for n in branch.all_nodes() if condition in n.inputs]:
            op = Builder(scope, names, [node])
            value = op.constant(np.asarray(known))
            for index in [i for i, v in enumerate(inner.inputs) if v is condition]:
                inner.replace_input_with(index, value)
            commit(op, node, [], [], [])
            told += 1
    return told


def _pair(body: ir.Graph) -> tuple[ir.Node, ir.Node] | None:
    """Two nodes of which the first one decides, in one branch or in both, about the second."""
    earlier: list[ir.Node] = []
    for node in body:
        if node.op_type != "If" or node.domain:
            continue
        for first in reversed(earlier):
            if _decides(first, node) and not _is_read_between(first, node, body):
                return first, node
        earlier.append(node)
    return None


def _decides(first: ir.Node, second: ir.Node) -> bool:
    known = [_known(first, second, name) for name in _BRANCHES]
    if None not in known:
        return True
    there = [k for k in known if k is not None]
    if not there:
        return False
    twice: ir.Graph = attribute(second, "then_branch" if there[0] else "else_branch")
    return sum(1 for _ in twice.all_nodes()) <= _COPIED


def _known(first: ir.Node, second: ir.Node, name: str) -> bool | None:
    """What the second condition is when a branch of the first was taken."""
    condition = second.inputs[0]
    if condition is first.inputs[0]:
        return _BRANCHES[name]
    if condition is None or condition.producer() is not first:
        return None
    branch: ir.Graph = attribute(first, name)
    value = branch.outputs[condition.index() or 0]
    copied = producer(value, "Identity")
    known = scalar(value if copied is None else copied.inputs[0])
    return None if known is None else bool(known)


def _is_read_between(first: ir.Node, second: ir.Node, body: ir.Graph) -> bool:
    """Whether anything before the second node reads the first one's results."""
    made, after = set(first.outputs), False
    for node in body:
        if node is second:
            return False
        if after:
            reads = [v for a in node.attributes.values() if a.type == ir.AttributeType.GRAPH
                     for v in captured(a.as_graph())]  # fmt: skip
            if made & {*node.inputs, *reads}:
                return True
        after |= node is first
    return False


def _thread(first: ir.Node, second: ir.Node, scope: Scope, names: Names) -> None:
    """Put the second node's work into the first one's branches, and both at the second's place."""
    for name in _BRANCHES:
        branch: ir.Graph = attribute(first, name)
        known = _known(first, second, name)
        mapping: dict[ir.Value, ir.Value | None] = dict(
            zip(first.outputs, branch.outputs, strict=True)
        )
        if known is None:
            copies = copy_nodes([second], mapping, names)
            results = list(second.outputs)
        else:
            taken: ir.Graph = attribute(second, "then_branch" if known else "else_branch")
            for value in taken.initializers.values():
                mapping[value] = _constant(value, branch, names)
            copies, results = copy_nodes(taken, mapping, names), list(taken.outputs)
        branch.extend(copies)
        for value in results:
            made = mapping.get(value, value)
            assert made is not None
            if made.graph is not branch or made.producer() is None or made in branch.outputs:
                copy = ir.node("Identity", [made], name=names.fresh(f"{second.name}/Identity"))
                copy.outputs[0].name = names.fresh(f"{made.name}/passed")
                copy.outputs[0].type, copy.outputs[0].shape = made.type, made.shape
                branch.append(copy)
                made = copy.outputs[0]
            branch.outputs.append(made)
    op = Builder(scope, names, [first, second])
    old = [*first.outputs, *second.outputs]
    ways = {name: attribute(first, name) for name in _BRANCHES}
    new = op.node("If", first.inputs[0], outputs=len(old), **ways)
    for value, made in zip(old, new, strict=True):
        made.type, made.shape = value.type, value.shape
    commit(op, second, old, new, [])
    erase(second)
    scope.body.remove(first, safe=True)


def _constant(value: ir.Value, branch: ir.Graph, names: Names) -> ir.Value:
    """An initializer of one branch as one of another."""
    name = names.fresh(value.name or "constant")
    made = ir.Value(name=name, type=value.type, shape=value.shape, const_value=value.const_value)
    branch.initializers[name] = made
    return made
