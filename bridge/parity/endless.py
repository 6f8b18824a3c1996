"""Loops that do not end: which of a graph's, found by stopping one after the other."""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from bridge.control import time_limit
from bridge.errors import BridgeError, RunTimeoutError
from bridge.graph_index import MODULE, SOURCE, NodeInfo, open_model
from bridge.providers import CPU
from bridge.session import Session

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

__all__ = ["LONGEST", "STOPPED", "Endless", "find_endless", "time_for"]

STOPPED = "/stopped"  # in the names of what stops a Loop
LONGEST = 600.0  # seconds of a run that nothing is known of
_SHORTEST, _BUILDING = 20.0, 300.0  # seconds; other providers may build engines at the first run
_TIMES = 50.0  # what the reference takes
_ITERATIONS = (10_000, 1_000, 100, 10)  # after which Loops are stopped
_SECONDS = 5.0  # for a run of a graph whose Loops are stopped


@dataclasses.dataclass(frozen=True, slots=True)
class Endless:
    """A model with a Loop that does not end.

    Attributes:
        session: Of the same model with that Loop stopped.
        told: Which Loop it is, in words.
    """

    session: Session
    told: str


def time_for(seconds: float, session: Session) -> float:
    """How long a run may take where the reference took some seconds."""
    on_cpu = all(p.name == CPU for p in session.settings.contract.providers)
    return max(_SHORTEST if on_cpu else _BUILDING, _TIMES * seconds)


def find_endless(session: Session, feed: Mapping[str, Any]) -> Endless | None:
    """The Loops without which a run would end; None if it would not, or there are none.

    Args:
        session: A session of which a run does not end.
        feed: The inputs of that run.
    """
    model = open_model(session.source)
    loops = range(sum(1 for _ in _loops(model)))
    for most in _ITERATIONS if loops else ():
        taken = _ends(session, model, loops, most, feed, _SECONDS)
        if taken is not None:
            break
    else:
        return None
    seconds = max(1.0, 4 * taken)
    alone = [i for i in loops if _ends(session, model, [i], most, feed, seconds) is not None]
    guilty = alone[:1] or list(loops)
    infos = [info for i, info in enumerate(_loops(model)) if i in guilty]
    names = ", ".join(map(str, infos))
    verb = "does not end: it still goes" if len(infos) == 1 else "do not end: they still go"
    return Endless(
        _session(session, stopped(model, guilty, most)),
        f"{names} {verb} on after {most} iterations",
    )


def _ends(
    session: Session,
    model: ir.Model,
    loops: Collection[int],
    most: int,
    feed: Mapping[str, Any],
    seconds: float,
) -> float | None:
    """The seconds of a run with some Loops stopped; None if it does not end."""
    part = _session(session, stopped(model, loops, most))
    started = time.perf_counter()
    try:
        with time_limit(seconds):
            part.run(feed)
    except RunTimeoutError:
        return None
    except BridgeError:  # it ends, if not well
        pass
    return time.perf_counter() - started


def _session(like: Session, model: ir.Model) -> Session:
    made = Session(model, settings=like.settings_for_parts())
    made.signature = like.signature
    return made


def _loops(model: ir.Model) -> Iterator[NodeInfo]:
    graphs: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for graph in graphs:
        for node in graph.all_nodes():
            if node.op_type == "Loop" and not node.domain:
                metadata = node.metadata_props
                yield NodeInfo(node, metadata.get(MODULE, ""), metadata.get(SOURCE), ())


def stopped(model: ir.Model, loops: Collection[int], most: int) -> ir.Model:
    """A copy of a model in which some Loops stop after a number of iterations at the latest."""
    model = model.clone()
    for number, info in enumerate(list(_loops(model))):
        if number in loops:
            _stop(info.node, most)
    return model


def _stop(node: ir.Node, most: int) -> None:
    limit = ir.node("Constant", [], {"value": ir.tensor(np.asarray(most, np.int64))})
    graph = node.graph
    assert graph is not None
    made = [limit]
    count = node.inputs[0]
    if count is None:
        made.append(ir.node("Identity", [limit.outputs[0]]))
    else:  # Min takes integers from opset 12 on only
        made.append(ir.node("Less", [count, limit.outputs[0]]))
        made.append(ir.node("Where", [made[-1].outputs[0], count, limit.outputs[0]]))
    for index, new in enumerate(made):
        new.outputs[0].name = f"{node.name or node.outputs[0].name}{STOPPED}{index}"
    graph.insert_before(node, made)
    node.replace_input_with(0, made[-1].outputs[0])
