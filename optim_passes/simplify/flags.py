"""Flags that end a loop."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from optim_passes.builder import Builder
from optim_passes.rewriting import Outcome, Pass, commit
from optim_passes.scopes import Names
from optim_passes.values import producer, rank, same_shape, scalar

if TYPE_CHECKING:
    import onnx_ir as ir

    from optim_passes.scopes import Scope

__all__ = ["LoopFlagPass"]


class LoopFlagPass(Pass):
    """A flag without which a ``Loop`` goes on is false at the start of every iteration.

    Where the condition for another iteration is ``Not(flag)``, or holds only if ``flag`` is false,
    the body need not read the carried flag. Nor need it choose, by such a flag, a value that only
    another iteration would read.
    """

    def run(self, scope: Scope, outcome: Outcome) -> None:
        """Let the loops of one body know their flags."""
        names: Names | None = None
        for node in scope.body:
            if node.op_type != "Loop" or node.domain:
                continue
            for formal in _false_at_start(node):
                names = names or Names(scope.model)
                op = Builder(scope, names, [node])
                formal.replace_all_uses_with(op.constant(np.asarray(False)))
                commit(op, node, [], [], [])
                outcome.rewrites += 1
            outcome.rewrites += _decide(node)


def _false_at_start(node: ir.Node) -> list[ir.Value]:
    """The carried values of a Loop that its body never sees true, and reads."""
    body: ir.Graph = node.attributes["body"].as_graph()
    refused = _false_if(body.outputs[0])
    first = set() if node.inputs[1] is None else _false_if(node.inputs[1])
    found = []
    for index in range(2, len(node.inputs)):
        formal, initial = body.inputs[index], node.inputs[index]
        starts_false = initial in first or scalar(initial) is False
        if starts_false and body.outputs[index - 1] in refused and formal.uses():
            found.append(formal)
    return found


def _decide(node: ir.Node) -> int:
    """Take what is chosen if there is another iteration, where nothing reads the last choice."""
    body: ir.Graph = node.attributes["body"].as_graph()
    refused = _false_if(body.outputs[0])
    decided = 0
    for index, final in enumerate(node.outputs[: len(node.inputs) - 2], start=1):
        choice = producer(body.outputs[index], "Where")
        if choice is None or final.uses() or final.is_graph_output():
            continue
        _, then, orelse = choice.inputs
        certain = choice.inputs[0] in refused and rank(choice.inputs[0]) == 0
        if orelse is None or not certain or orelse.graph is not body or orelse in body.inputs:
            continue
        if same_shape(then, orelse) or rank(then) == rank(orelse) == 0:
            body.outputs[index] = orelse
            decided += 1
    return decided


def _false_if(condition: ir.Value | None, *, true: bool = True) -> set[ir.Value | None]:
    """The values that are false wherever ``condition`` is true (or false)."""
    if condition is None:
        return set()
    found: set[ir.Value | None] = set() if true else {condition}
    node = producer(condition, "Not", "And", "Or", "Identity")
    if node is None:
        return found
    if node.op_type in ("Not", "Identity"):
        return found | _false_if(node.inputs[0], true=true is (node.op_type == "Identity"))
    if (node.op_type == "And") is true:
        for operand in node.inputs:
            found |= _false_if(operand, true=true)
    return found
