"""What the values inside of a graph should be: from eager code, or from another graph."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from bridge.feeds import to_numpy
from bridge.graph_index import open_model
from bridge.parity.forcing import Probe
from bridge.parity.sides import EagerSide, SessionSide
from bridge.parity.values import ValueStore
from bridge.providers import CPU, Contract, Provider
from bridge.runtime import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np

    from bridge.parity.sides import Side

__all__ = ["Oracle", "graph_oracle", "oracle_of"]


@dataclasses.dataclass(frozen=True, slots=True)
class Oracle:
    """What is right.

    Attributes:
        values: Values of the main graph by name.
        graph: A graph that computes what lies between them; None if there is none.
        weights: Initializers by name.
        label: Where the values come from.
        recorded: Gives every array that eager code makes, in order; None for other sides.
    """

    values: Mapping[str, np.ndarray[Any, Any]]
    graph: Probe | None
    weights: Mapping[str, Any]
    label: str
    recorded: Callable[[], list[np.ndarray[Any, Any]]] | None = None


def oracle_of(side: Side, model: ir.Model, feed: Mapping[str, Any]) -> Oracle:
    """What the values of ``model`` should be by one side."""
    if isinstance(side, EagerSide):
        return _eager_oracle(side, model, feed)
    assert isinstance(side, SessionSide)
    session = side.session
    probe = Probe(open_model(session.source), session.settings_for_parts())
    if not set(session.input_names) & set(feed):
        feed = dict(zip(session.input_names, feed.values(), strict=True))
    return graph_oracle(probe, feed, side.label)


def graph_oracle(probe: Probe, feed: Mapping[str, Any], label: str) -> Oracle:
    """The values of a graph that is right."""
    store = ValueStore()
    for name, value in probe.values(probe.names(), feed):
        if not isinstance(value, Exception):
            store.add(name, value)
    return Oracle(store, probe, _weights(probe.model), label)


def _weights(model: ir.Model) -> dict[str, Any]:
    return {n: v.const_value for n, v in model.graph.initializers.items()}


def plain_settings() -> Settings:
    """The CPU provider without rewriting: the graph as it is written."""
    return Settings(Contract((Provider(CPU),), cpu_allowed=True), optimization="none")


def _eager_oracle(side: EagerSide, model: ir.Model, feed: Mapping[str, Any]) -> Oracle:
    """The values that eager code has, and the graph that the tracer makes of it today."""
    from bridge.parity.recording import record
    from bridge.parity.retracing import retrace
    from exporters.errors import ExportError
    from exporters.pytorch.inputs import modules_of, named_tensors

    recorded = functools.cache(lambda: record(side, feed))
    weights = named_tensors(modules_of(side.model))
    held = {n: ir.tensor(to_numpy(x)) for n, x in weights.items()}
    try:
        found = retrace(side, model, feed)
    except ExportError:  # a graph that another exporter made may still be right or wrong
        return Oracle({}, None, held, side.label, recorded)
    probe = Probe(found.model, plain_settings())
    # the tracer folds some weights into others, or gives them other names
    weights_of_graph = {**held, **_weights(found.model)}
    return Oracle(found.values, probe, weights_of_graph, side.label, recorded)
