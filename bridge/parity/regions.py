"""Which node of a region is wrong, when passes have left no value inside of it its name.

What a pass fuses or moves to another layout still computes the same numbers: an inner value that
holds the numbers of a right value, in whatever order, is right, and so is all that it comes from.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from bridge.parity.comparison import compare, is_floating
from bridge.parity.forcing import comparable, local_tolerance
from bridge.parity.surgery import reads

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bridge.parity.forcing import Probe
    from bridge.parity.oracles import Oracle

__all__ = ["suspect"]


def suspect(
    probe: Probe, oracle: Oracle, feed: Mapping[str, Any], known: Mapping[str, Any], value: str
) -> ir.Node | None:
    """The first node of the region of a wrong value that nothing vouches for.

    None if the region is a single node, or nothing is known of what it should compute.
    """
    region = probe.region(value, known)
    if oracle.graph is None or len(region) < 2:
        return None
    given = {n: x for n, x in known.items() if comparable(x, oracle.graph.types.get(n))}
    given.pop(value, None)
    between = oracle.graph.region(value, given)
    if value not in oracle.graph.types:  # a graph by somebody else, with names of its own
        between = list(oracle.graph.model.graph)
    names = [str(v.name) for n in between for v in n.outputs if v.name != value]
    right = [np.asarray(oracle.values[n]) for n in names if n in oracle.values]
    within = [n for n in names if n not in oracle.values and n in oracle.graph.types]
    found = oracle.graph.values(within, feed, given)
    right += [np.asarray(x) for _, x in found if not isinstance(x, Exception | list)]
    # a node that only moves what the region is given makes right numbers, too
    entering = {str(v.name) for n in region for v in reads(n)}
    right += [np.asarray(known[n]) for n in entering if n in known and n != value]
    if not right:
        return None
    inner = [str(v.name) for n in region[:-1] for v in n.outputs if v.name in probe.types]
    sound = {
        name
        for name, got in probe.values(inner, feed, known)
        if not isinstance(got, Exception) and any(_same_numbers(x, got) for x in right)
    }
    vouched = {n for name in sound for n in probe.region(name, known)}
    vouched |= _of_weights_alone(probe, region)
    left = [n for n in region if n not in vouched and _is_approximate(probe, n)]
    origin = _origin(left[0], names) if left else ""
    if origin:
        return [n for n in left if _origin(n, names) == origin][-1]
    sources = _sources(probe, region, set(inner) - sound)
    sources = [n for n in sources if n not in vouched] or sources
    return next((n for n in sources if _reads_other_weights(n, oracle)), None) or next(
        iter(sources), None
    )


def _sources(probe: Probe, region: Sequence[ir.Node], unsound: set[str]) -> list[ir.Node]:
    """Where wrong numbers begin that stay wrong up to the last node of a region.

    What vouches for all that it comes from need not: normalisation makes numbers right again that
    are scaled, and weights that are 0 lose what they are given.
    """
    within = set(region) - _of_weights_alone(probe, region)

    def before(node: ir.Node) -> list[ir.Node]:
        made = [v.producer() for v in reads(node) if v.name in unsound]
        return [n for n in made if n in within and _is_approximate(probe, n)]

    chain: set[ir.Node] = set()
    pending = [region[-1]]
    while pending:
        node = pending.pop()
        if node not in chain:
            chain.add(node)
            pending += before(node)
    return [n for n in region if n in chain and not before(n)]


def _is_approximate(probe: Probe, node: ir.Node) -> bool:
    """Whether a node makes anything but shapes, indices and masks."""
    kinds = [probe.types.get(str(v.name)) for v in node.outputs if v.name]
    return any(not isinstance(k, ir.TensorType) or k.dtype.is_floating_point() for k in kinds)


def _of_weights_alone(probe: Probe, region: Sequence[ir.Node]) -> set[ir.Node]:
    """Nodes that only weights and shapes reach: eager code computes these elsewhere, or not at all."""
    inputs = {v for v in probe.model.graph.inputs if not v.is_initializer()}
    found: set[ir.Node] = set()
    for node in region:
        makers = [v.producer() for v in reads(node)]
        if not inputs.intersection(reads(node)) and all(m is None or m in found for m in makers):
            found.add(node)
    return found


def _same_numbers(expected: np.ndarray[Any, Any], got: Any) -> bool:
    """Whether two arrays hold the same numbers, in another order if they have other dims.

    Numbers that are all the same say nothing: many a mask and many a bias is 0.
    """
    got = np.asarray(got)
    if expected.size != got.size or not got.size or not is_floating(got.dtype):
        return False
    expected = expected.astype(got.dtype)
    tolerance = local_tolerance(got.dtype)
    a, b = (np.asarray([x.min(), x.max()]) for x in (expected, got))
    if b[0] == b[1] or not compare("ends", a, b, tolerance).passed:
        return False
    if expected.shape == got.shape:
        return compare("all", expected, got, tolerance).passed
    return compare("all", np.sort(expected, None), np.sort(got, None), tolerance).passed


def _reads_other_weights(node: ir.Node, oracle: Oracle) -> bool:
    """Whether an initializer of a node is not what the right graph has under its name."""
    for value in node.inputs:
        right = None if value is None else oracle.weights.get(str(value.name))
        if value is None or value.const_value is None or right is None:
            continue
        ours, theirs = value.const_value.numpy(), right.numpy()
        if ours.shape != theirs.shape or not compare("weight", theirs, ours).passed:
            return True
    return False


def _origin(node: ir.Node, names: Sequence[str]) -> str:
    """The right value that a node helps to compute, by the name that a pass gave it."""
    text = f"{node.name}/"
    return max((n for n in names if text.startswith(f"{n}/")), key=len, default="")
