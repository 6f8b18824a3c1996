"""Outputs that are another value of the graph than they should be."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from bridge.feeds import to_numpy
from bridge.graph_index import GraphIndex
from bridge.parity.comparison import compare
from bridge.parity.divergence import Divergence

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    import onnx_ir as ir

    from bridge.parity.oracles import Oracle
    from bridge.parity.sides import Side
    from bridge.session import Session

__all__ = ["misplaced_output"]


def misplaced_output(
    reference: Side, session: Session, model: ir.Model, oracle: Oracle, feed: Mapping[str, Any]
) -> Divergence | None:
    """The first output that is another value than it should be, though every node is right."""
    expected = reference.run(feed)
    got = {name: to_numpy(x) for name, x in session.run(feed).items()}
    if len(expected) != len(got):
        return None
    index = GraphIndex(model)
    for (name, want), output in zip(expected.items(), model.graph.outputs, strict=True):
        row = compare(name, want, got[str(output.name)])
        if row.passed or output.name not in index.producer:
            continue
        if output.name in oracle.values and compare(name, want, oracle.values[output.name]).passed:
            continue  # it is the right value, computed from others that rounding moved
        elsewhere = {n: x for n, x in expected.items() if n != name} | dict(got)
        instead = [n for n, x in elsewhere.items() if compare(n, x, got[str(output.name)]).passed]
        right = [n for n, x in _of_shape(oracle, want) if compare(n, want, x).passed]
        right = [n for n in right if n != output.name]
        others = [n for n in instead if n != output.name]
        told = "every node is right, but the graph returns the wrong value"
        if others:
            told += f": output {output.name!r} is what {others[0]!r} should be"
        elif right:
            told += f": output {output.name!r} should be what {right[-1]!r} is"
        found = Divergence.at(index.producer[str(output.name)], str(output.name), row)
        return dataclasses.replace(found, verdicts=(told,)) if others or right else None
    return None


def _of_shape(oracle: Oracle, like: np.ndarray[Any, Any]) -> list[tuple[str, Any]]:
    return [(n, x) for n, x in oracle.values.items() if x.shape == like.shape]
