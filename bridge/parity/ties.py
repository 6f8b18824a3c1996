"""Choices that nothing determines: which of several equal values comes first, signs of vectors.

ONNX takes the first of equal values, torch any of them: its sort is not a stable one. Eigenvectors
and singular vectors have either sign.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bridge.parity.comparison import is_floating
from bridge.parity.forcing import compare_local
from bridge.parity.surgery import reads

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import onnx_ir as ir

    from bridge.parity.forcing import Probe

__all__ = ["are_other_signs", "are_other_ties"]

_ALONG = {"vectors in columns": -2, "vectors in rows": -1}
_CHOOSING = {"TopK": 1, "ArgMax": 0, "ArgMin": 0}  # the output that holds indices


def are_other_ties(
    probe: Probe,
    name: str,
    expected: Any,
    got: Any,
    feed: Mapping[str, Any],
    known: Mapping[str, Any],
) -> bool:
    """Whether the graph chose other places than eager code, and found the same values there.

    Args:
        probe: The graph.
        name: A value of it.
        expected: The places that eager code chose.
        got: The places that the graph chooses from right inputs.
        feed: The model's inputs by name.
        known: Values that are right.
    """
    if isinstance(got, Exception) or np.asarray(expected).dtype.kind != "i":
        return False
    wanted, chosen = np.asarray(expected), np.asarray(got).astype(np.int64)
    region = probe.region(name, {n: x for n, x in known.items() if n != name})
    if wanted.shape != chosen.shape or not region:
        return False
    node = region[-1]
    if _holds_indices(node, name):
        source = str(node.inputs[0].name) if node.inputs[0] is not None else ""
        x = feed.get(source, known.get(source))
        found = dict(probe.values([source], feed, known))[source] if x is None else x
        return not isinstance(found, Exception) and _same_values(node, found, wanted, chosen)
    if wanted.ndim != 1 or not np.array_equal(np.sort(wanted), np.sort(chosen)):
        return False
    limit = int(wanted.max(initial=-1))
    scores = (x for x in _read(region, feed, known) if x.ndim == 1 and is_floating(x.dtype))
    return wanted.min(initial=0) >= 0 and any(
        len(x) > limit and np.array_equal(x[wanted], x[chosen]) for x in scores
    )


def are_other_signs(probe: Probe, name: str, expected: Any, got: Any) -> bool:
    """Whether eigenvectors or singular vectors differ from those of eager code by their signs.

    Args:
        probe: The graph.
        name: A value of it.
        expected: The vectors of eager code.
        got: Those that the graph computes from right inputs.
    """
    axis = _ALONG.get(probe.region(name, {})[-1].metadata_props.get("bridge.computes", ""))
    if axis is None or isinstance(got, Exception) or np.shape(got) != np.shape(expected):
        return False
    wanted, found = (np.asarray(x, np.float64) for x in (expected, got))
    signs = np.where((wanted * found).sum(axis, keepdims=True) < 0, -1.0, 1.0)
    row = compare_local(
        name, expected, (signs * found).astype(np.asarray(got).dtype), probe.types[name]
    )
    return row.passed


def _holds_indices(node: ir.Node, name: str) -> bool:
    place = _CHOOSING.get(node.op_type)
    return place is not None and place < len(node.outputs) and node.outputs[place].name == name


def _same_values(
    node: ir.Node, x: Any, wanted: np.ndarray[Any, Any], chosen: np.ndarray[Any, Any]
) -> bool:
    """Whether a TopK, ArgMax or ArgMin finds the same values of ``x`` at both places."""
    x, axis = np.asarray(x), node.attributes.get_int("axis", -1 if node.op_type == "TopK" else 0)
    places = [wanted, chosen]
    if node.op_type != "TopK" and not node.attributes.get_int("keepdims", 1):
        places = [np.expand_dims(p, axis) for p in places]
    first, second = (np.take_along_axis(x, p, axis) for p in places)
    return bool(np.array_equal(first, second))  # a NaN ties with nothing


def _read(
    region: list[ir.Node], feed: Mapping[str, Any], known: Mapping[str, Any]
) -> Iterator[np.ndarray[Any, Any]]:
    """What a region is given."""
    names = dict.fromkeys(str(v.name) for node in region for v in reads(node))
    for name in names:
        x = known.get(name, feed.get(name))
        if x is not None:
            yield np.asarray(x)
