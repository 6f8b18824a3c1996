"""Stepping into If and Loop nodes: which branch, which iteration, which node inside is wrong."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from bridge.errors import BridgeError
from bridge.graph_index import subgraphs
from bridge.parity.comparison import compare
from bridge.parity.forcing import Probe, local_tolerance, severity
from bridge.parity.oracles import graph_oracle
from bridge.parity.surgery import body_model

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from bridge.parity.divergence import Divergence

__all__ = ["step_into"]

_ITERATIONS = 10_000  # that are looked at


@dataclasses.dataclass(slots=True)
class _Body:
    """A subgraph that can be run on its own."""

    probe: Probe
    own: list[str]
    further: list[str]
    outputs: list[str]

    def run(self, own: Sequence[Any], outer: Callable[[str], Any]) -> dict[str, Any]:
        """Its outputs for its own inputs and for what it takes from around it."""
        session, names = self.probe.session(self.outputs)
        feed = self.feed(own, outer)
        return session.run({names[n]: feed[n] for n in names})

    def feed(self, own: Sequence[Any], outer: Callable[[str], Any]) -> dict[str, Any]:
        """Its inputs by name."""
        values = dict(zip(self.own, own, strict=True))
        return {**values, **{n: outer(n) for n in self.further}}


def step_into(
    node: ir.Node,
    right: ir.Node,
    probe: Probe,
    oracle_probe: Probe,
    outer: Callable[[str], Any],
    locate_in: Callable[..., Divergence | None],
) -> Divergence | None:
    """The first node inside of an If or a Loop that goes wrong; None if that cannot be told.

    Args:
        node: The If or Loop node that goes wrong.
        right: Its counterpart in the graph that is right.
        probe: The graph of ``node``.
        oracle_probe: The graph of ``right``.
        outer: Gives the right value of a name around the node.
        locate_in: Finds the first wrong node of a probe.
    """
    if node.op_type != right.op_type or node.op_type not in ("If", "Loop"):
        return None
    step = _step_if if node.op_type == "If" else _step_loop
    try:
        return step(node, right, probe, oracle_probe, outer, locate_in)
    except (BridgeError, KeyError):
        return None


def _body(node: ir.Node, attribute: str, probe: Probe, outer: Callable[[str], Any]) -> _Body:
    graph = dict(subgraphs(node))[attribute]
    types = dict(probe.types)
    model, own, further = body_model(probe.model, graph, types)
    for value in model.graph.inputs:
        if value.type is None and value.name in further:
            array = np.asarray(outer(value.name))
            value.type = ir.TensorType(ir.DataType.from_numpy(array.dtype))
    outputs = [str(v.name) for v in model.graph.outputs]
    return _Body(Probe(model, probe.settings), own, further, outputs)


def _step_if(
    node: ir.Node,
    right: ir.Node,
    probe: Probe,
    oracle_probe: Probe,
    outer: Callable[[str], Any],
    locate_in: Callable[..., Divergence | None],
) -> Divergence | None:
    condition = node.inputs[0]
    assert condition is not None
    taken = bool(np.asarray(outer(str(condition.name))).all())
    attribute = "then_branch" if taken else "else_branch"
    bodies = _body(node, attribute, probe, outer), _body(right, attribute, oracle_probe, outer)
    found = _locate_body(bodies, [], outer, locate_in)
    if found is None:
        return None
    place = f"the {attribute.replace('_', ' ')} of If {node.name or ''!r}"
    return dataclasses.replace(found, around=(place, *found.around))


def _step_loop(
    node: ir.Node,
    right: ir.Node,
    probe: Probe,
    oracle_probe: Probe,
    outer: Callable[[str], Any],
    locate_in: Callable[..., Divergence | None],
) -> Divergence | None:
    ours, theirs = _body(node, "body", probe, outer), _body(right, "body", oracle_probe, outer)
    if len(ours.own) != len(theirs.own) or len(ours.outputs) != len(theirs.outputs):
        return None  # a pass took carried values out of one of them
    values = [None if v is None else outer(str(v.name)) for v in right.inputs]
    count = _ITERATIONS if values[0] is None else int(np.asarray(values[0]).item())
    condition: Any = True if len(values) < 2 or values[1] is None else values[1]
    carried = values[2:]
    for iteration in range(min(count, _ITERATIONS)):
        if not np.asarray(condition).all():
            break
        own = [np.asarray(iteration, np.int64), np.asarray(condition), *carried]
        expected = theirs.run(own, outer)
        if _differs(expected, _try(ours, own, outer)):
            found = _locate_body((ours, theirs), own, outer, locate_in)
            if found is None:
                return None
            place = f"iteration {iteration} of Loop {node.name!r}"
            inner = iteration if found.iteration is None else found.iteration
            return dataclasses.replace(found, around=(place, *found.around), iteration=inner)
        results = list(expected.values())
        condition, carried = results[0], results[1 : 1 + len(carried)]
    return None


def _try(body: _Body, own: Sequence[Any], outer: Callable[[str], Any]) -> dict[str, Any] | None:
    try:
        return body.run(own, outer)
    except BridgeError:
        return None


def _differs(expected: Mapping[str, Any], got: Mapping[str, Any] | None) -> bool:
    if got is None or len(got) != len(expected):
        return True
    for (name, want), have in zip(expected.items(), got.values(), strict=True):
        wants = want if isinstance(want, list) else [want]
        haves = have if isinstance(have, list) else [have]
        if len(wants) != len(haves):
            return True
        for a, b in zip(wants, haves, strict=True):
            row = compare(name, a, b, local_tolerance(np.asarray(a).dtype))
            if severity(row) >= 1:
                return True
    return False


def _locate_body(
    bodies: tuple[_Body, _Body],
    own: Sequence[Any],
    outer: Callable[[str], Any],
    locate_in: Callable[..., Divergence | None],
) -> Divergence | None:
    """The first node of a body that goes wrong on the inputs of one iteration."""
    ours, theirs = bodies
    oracle = graph_oracle(theirs.probe, theirs.feed(own, outer), "the right graph")
    known = dict(oracle.values)  # outputs go by their places where they have other names
    for name, right in zip(ours.outputs, theirs.outputs, strict=False):
        if right in known and name not in theirs.probe.types:
            known[name] = known[right]
    oracle = dataclasses.replace(oracle, values=known)
    return locate_in(ours.probe, oracle, ours.feed(own, outer))
