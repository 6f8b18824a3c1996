"""Which node of a region is wrong, when passes have left no value inside of it its name.

What a pass fuses or moves to another layout still computes the same numbers: an inner value that
holds the numbers of a right value, in whatever order, is right, and so is all that it comes from.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from bridge.parity.comparison import compare, is_floating
from bridge.parity.forcing import comparable
from bridge.parity.repairing import MOVING, Repair, Repaired
from bridge.parity.right_numbers import RightNumbers
from bridge.parity.surgery import reads

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from bridge.parity.forcing import Probe
    from bridge.parity.oracles import Oracle

__all__ = ["Suspect", "suspect"]

_SAME = 1e-5  # of the largest magnitude
_TINY = 1e-30


@dataclasses.dataclass(frozen=True, slots=True)
class Suspect:
    """A node of a region that nothing vouches for.

    Attributes:
        node: The node.
        repaired: What its output should be, if the region's result is right then.
        got: What its output is.
    """

    node: ir.Node
    repaired: Repaired | None = None
    got: Any = None


def suspect(
    probe: Probe, oracle: Oracle, feed: Mapping[str, Any], known: Mapping[str, Any], value: str
) -> Suspect | None:
    """The first node of the region of a wrong value that nothing vouches for.

    None if the region is a single node, or nothing is known of what it should compute.
    """
    region = probe.region(value, known)
    if len(region) < 2:
        return None
    names = _right_names(oracle, known, value)
    coarse = probe.coarse(value, known)
    foreign = oracle.graph is None or value not in oracle.graph.types
    right = RightNumbers(_right_arrays(oracle, feed, known, names), coarse, whole=foreign)
    arrays = () if oracle.recorded is None else oracle.recorded()
    recorded = RightNumbers(arrays, coarse, whole=foreign)
    made = recorded if foreign else RightNumbers(())
    # a node that only moves what the region is given makes right numbers, too
    entering = {str(v.name) for n in region for v in reads(n)}
    # nor is one that makes what the region should: what comes after it spoils that
    read = [n for n in (*entering, value) if n in known]
    given = RightNumbers((np.asarray(known[n]) for n in read), coarse, whole=foreign)
    if not right.arrays and not made.arrays and not given.arrays:
        return None
    inner = [str(v.name) for n in region[:-1] for v in n.outputs if v.name in probe.types]
    got = {
        n: x for n, x in probe.values(inner, feed, known) if not isinstance(x, Exception | list)
    }
    sound = _sound(region, got, made, (right, given))
    vouched = _vouched(region, sound)
    fixed = _of_weights_alone(probe, region, sizes=True)
    changing = [n for n in region if n not in fixed]
    repair = Repair(probe, feed, known, value, got, (recorded, right), sound, region)
    found = repair.first(changing, vouched) if changing else None
    if found is not None:
        broken = found.node
        reaching = {n for v in broken.outputs for n in probe.region(str(v.name), known)}
        region = [n for n in region if n in reaching]
        wrong = [v for v in reads(broken) if v.name in got and v.name not in sound]
        if not any(v.producer() in reaching for v in wrong) or _has_wrong_constant(found, got):
            return Suspect(broken, found, got[found.value])
    node = _unvouched(probe, oracle, known, region, got, sound, made, names)
    if node is None:
        return None
    alone = _of_weights_alone(probe, region)
    before = {str(v.name) for v in reads(node) if v.producer() in alone}
    within = [n for name in before for n in probe.region(name, {})]
    return Suspect(next((n for n in within if _reads_other_weights(n, oracle)), node))


def _has_wrong_constant(found: Repaired, got: Mapping[str, Any]) -> bool:
    """Whether other constants would put a sum or product right: then what comes before it is."""
    read = [np.asarray(got.get(str(v.name), v.const_value or 0)) for v in reads(found.node)]
    for x in read:
        if x.shape != found.right.shape or not is_floating(x.dtype):
            continue
        right, x = found.right.astype(np.float64), x.astype(np.float64)
        limit = _SAME * max(float(np.abs(x).max()), float(np.abs(right).max()))
        if found.node.op_type in ("Add", "Sub"):
            sizes = enumerate(x.shape)
            rows = (np.moveaxis(right - x, a, 0).reshape(n, -1) for a, n in sizes if x.size > n)
            if any(float(np.ptp(r, axis=1).max()) <= limit for r in rows):
                return True
        elif found.node.op_type in ("Mul", "Div") and any(y.size == 1 for y in read):
            factor = (right * x).sum() / max(float((x * x).sum()), _TINY)
            if float(np.abs(right - factor * x).max()) <= limit:
                return True
    return False


def _unvouched(
    probe: Probe,
    oracle: Oracle,
    known: Mapping[str, Any],
    region: Sequence[ir.Node],
    got: Mapping[str, Any],
    sound: Mapping[str, int],
    made: RightNumbers,
    names: Sequence[str],
) -> ir.Node | None:
    """The first node of a region whose numbers, and whose results' numbers, are not right."""
    inner = [str(v.name) for n in region[:-1] for v in n.outputs if v.name in probe.types]
    vouched = _vouched(region, sound)
    vouched |= _of_weights_alone(probe, region)
    left = [n for n in region if n not in vouched and _is_approximate(probe, n)]
    origin = _origin(left[0], names) if left else ""
    if origin:
        return [n for n in left if _origin(n, names) == origin][-1]
    wrong = {n for n in inner if n not in sound and not _says_nothing(n, got, made)}
    wrong -= _of_sizes(region, got)
    elsewhere = {n for n in _of_weights_alone(probe, region) if not _is_made(n, got, made)}
    sources = _sources(region, wrong, elsewhere)
    sources = [n for n in sources if n not in vouched] or sources
    return next((n for n in sources if _reads_other_weights(n, oracle)), None) or next(
        iter(sources), None
    )


def _right_names(oracle: Oracle, known: Mapping[str, Any], value: str) -> list[str]:
    """The values of the right graph that lie before a value; all, if it has names of its own."""
    if oracle.graph is None:
        return []
    given = _given(oracle, known, value)
    between = oracle.graph.region(value, given)
    if value not in oracle.graph.types:  # a graph by somebody else
        between = list(oracle.graph.model.graph)
    return [str(v.name) for n in between for v in n.outputs if v.name != value]


def _given(oracle: Oracle, known: Mapping[str, Any], value: str) -> dict[str, Any]:
    assert oracle.graph is not None
    kinds = oracle.graph.types
    return {n: x for n, x in known.items() if n != value and comparable(x, kinds.get(n))}


def _right_arrays(
    oracle: Oracle, feed: Mapping[str, Any], known: Mapping[str, Any], names: Sequence[str]
) -> Iterator[np.ndarray[Any, Any]]:
    yield from (np.asarray(oracle.values[n]) for n in names if n in oracle.values)
    if oracle.graph is not None:
        within = [n for n in names if n not in oracle.values and n in oracle.graph.types]
        found = oracle.graph.values(within, feed, _given(oracle, known, ""))
        yield from (np.asarray(x) for _, x in found if not isinstance(x, Exception | list))


def _sound(
    region: Sequence[ir.Node],
    got: Mapping[str, Any],
    made: RightNumbers,
    unordered: tuple[RightNumbers, ...],
) -> dict[str, int]:
    """The values of a region that hold right numbers, with the place of these, -1 without order.

    What eager code makes before a node's inputs is no result of the node: a sum that lost one of
    its terms has the numbers of the other. Nor is what another node of its operator has made.

    Args:
        region: In graph order.
        got: Its values.
        made: What eager code makes, in order.
        unordered: Further right numbers.
    """
    taken: set[tuple[int, str]] = set()
    found: dict[str, int] = {}
    for node in region[:-1]:
        read = [v for v in reads(node) if v.const_value is None]
        before = max((found.get(str(v.name), -1) for v in read), default=-1)
        floats = [v for v in read if is_floating(np.asarray(got.get(str(v.name), 0)).dtype)]
        joins = len(floats) > 1
        for name in (str(v.name) for v in node.outputs if v.name in got):
            places = list(made.places(got[name]))
            later = [p for p in places if p > before or (p == before and not joins)]
            kind = node.op_type if is_floating(np.asarray(got[name]).dtype) else "mask"
            later = [p for p in later if (p, kind) not in taken]
            later.sort(key=lambda p: p == before)  # a node that changes nothing comes last
            if later:
                if node.op_type not in MOVING:
                    taken.add((later[0], kind))
                found[name] = later[0]
            elif not places and _vouched_without_order(node, name, got, found, made, unordered):
                found[name] = -1
    return found


def _vouched_without_order(
    node: ir.Node,
    name: str,
    got: Mapping[str, Any],
    found: Mapping[str, int],
    made: RightNumbers,
    unordered: tuple[RightNumbers, ...],
) -> bool:
    read = "" if node.op_type != "Cast" or node.inputs[0] is None else str(node.inputs[0].name)
    if read in got and not is_floating(np.asarray(got[read]).dtype):
        return read in found or _says_nothing(read, got, made)  # numbers made of a mask
    return any(next(right.places(got[name]), None) is not None for right in unordered)


def _says_nothing(name: str, got: Mapping[str, Any], made: RightNumbers) -> bool:
    """Whether nobody can say that indices or a mask are wrong: eager code makes none of their shape."""
    if name not in got:
        return False
    x = np.asarray(got[name])
    if is_floating(x.dtype):
        return False
    return not x.size or bool((x == x.flat[0]).all()) or not made.has_like(x)


def _of_sizes(region: Sequence[ir.Node], got: Mapping[str, Any]) -> set[str]:
    """Single numbers that are made of single numbers and sizes alone: of many, eager code has none."""
    found: set[str] = set()
    for node in region:
        single = all(np.size(got.get(str(v.name), 0)) == 1 for v in node.outputs)
        read = [v for v in reads(node) if v.const_value is None and str(v.name) not in found]
        exact = [
            v.name in got and not is_floating(np.asarray(got[str(v.name)]).dtype) for v in read
        ]
        if single and all(exact):
            found.update(str(v.name) for v in node.outputs)
    return found


def _is_made(node: ir.Node, got: Mapping[str, Any], made: RightNumbers) -> bool:
    """Whether eager code makes something like what a node makes."""
    names = [str(v.name) for v in node.outputs if v.name in got]
    return node.op_type not in {"Constant", *MOVING} and any(made.has_like(got[n]) for n in names)


def _sources(
    region: Sequence[ir.Node], unsound: set[str], elsewhere: set[ir.Node]
) -> list[ir.Node]:
    """Where wrong numbers begin that stay wrong up to the last node of a region.

    What vouches for all that it comes from need not: normalisation makes numbers right again that
    are scaled, and weights that are 0 lose what they are given.
    """
    within = set(region) - elsewhere

    def before(node: ir.Node) -> list[ir.Node]:
        made = [v.producer() for v in reads(node) if v.name in unsound]
        return [n for n in made if n is not None and n in within]

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


def _vouched(region: Sequence[ir.Node], sound: Mapping[str, int]) -> set[ir.Node]:
    """The nodes of a region that right numbers come from."""
    found: set[ir.Node] = set()
    for node in reversed(region):
        if node in found or any(v.name in sound for v in node.outputs):
            found.add(node)
            found.update(n for v in reads(node) if (n := v.producer()) is not None)
    return found


def _of_weights_alone(
    probe: Probe, region: Sequence[ir.Node], *, sizes: bool = False
) -> set[ir.Node]:
    """Nodes that only weights reach: eager code computes these elsewhere, or not at all.

    Args:
        probe: The graph.
        region: Its nodes.
        sizes: Whether to count those that only sizes reach, too.
    """
    inputs = {v for v in probe.model.graph.inputs if not v.is_initializer()}
    found: set[ir.Node] = set()
    for node in region:
        makers = [v.producer() for v in reads(node)]
        of_input = inputs.intersection(reads(node)) or any(m and m not in found for m in makers)
        if not of_input or (sizes and node.op_type in ("Shape", "Size")):
            found.add(node)
    return found


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
