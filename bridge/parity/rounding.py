"""What rounding does not explain in a quantized graph: wrong integers, wrong scales, wrong nodes."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from bridge.errors import BridgeError
from bridge.graph_index import GraphIndex
from bridge.parity.comparison import Comparison, Tolerance, compare
from bridge.parity.dequantized import Dequantized, Stored, dequantized, plain_name
from bridge.parity.divergence import Divergence
from bridge.parity.forcing import Probe
from bridge.parity.integers import parameter, undone
from bridge.parity.oracles import Oracle, graph_oracle
from bridge.parity.relations import relation
from optim_passes.errors import PassError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

__all__ = ["ROUNDING_ALONE", "Beyond", "beyond_rounding"]

ROUNDING_ALONE = (
    "every weight and scale is what rounding makes of the right ones, and without rounding every "
    "node agrees: quantization itself makes the difference, the largest part of it here"
)
_STEPS = (
    1.2  # of a scale, in the mean of a row: rounding is off by 0.3, and clipping by little more
)
_CORRECTED = 0.25  # of the largest bias: what quantization adds to it to make up for rounding
_BOUNDING = ("Clip", "HardSigmoid", "HardSwish", "Relu")
_CLIPPED = 0.05  # of the numbers: more than calibration leaves out


@dataclasses.dataclass(frozen=True, slots=True)
class Beyond:
    """What rounding does not explain.

    Attributes:
        found: The first node that is off by more; None if there is none.
        certain: Whether nothing else is: there is a float graph that the quantized one was made of.
        raw: Values that have the name of a Clip's or Relu's result and are not bounded yet.
    """

    found: Divergence | None = None
    certain: bool = False
    raw: frozenset[str] = frozenset()


def beyond_rounding(
    probe: Probe,
    oracle: Oracle,
    feed: Mapping[str, Any],
    locate_in: Callable[[Probe, Oracle, Mapping[str, Any]], Divergence | None],
) -> Beyond:
    """The first node of a quantized graph that is off by more than rounding.

    Args:
        probe: The quantized graph.
        oracle: What is right.
        feed: The inputs.
        locate_in: Finds the first wrong node of a float graph.
    """
    if oracle.graph is None:
        return Beyond()
    forms = _closest(oracle.graph.model, probe.model)
    form = _oracle_of(forms, oracle, feed)
    bounding = [n for f in forms for n in f.graph if n.op_type in _BOUNDING]
    bounded = {str(n.outputs[0].name): n for n in bounding}
    twin = dequantized(probe.model, form.weights, bounded)
    if twin is None:
        return Beyond()
    clips = {n: c for n, c in bounded.items() if c.op_type in ("Clip", "Relu")}
    _forgive_corrections(twin.model, form)
    index = GraphIndex(probe.model)
    found = [_of_weight(s, index) for s in twin.stored if s.right is not None and _is_wrong(s)]
    unlike = {str(pair[0].name): _of_scale(index, *pair) for pair in _unlike_scales(probe.model)}
    if twin.exact:
        by_itself = locate_in(Probe(twin.model, probe.settings), form, feed)
        if by_itself is not None:
            wrong = _of_twin(by_itself, index)
            found.append(unlike.get(wrong.node, wrong))
    else:
        found += unlike.values()
    if not found:
        values = {**_float_inputs(probe, twin, feed), **form.values}
        found += _clipping(probe.model, index, values, bounded)
    if not found:
        made = {str(v.name): n.op_type for n in probe.model.graph for v in n.outputs}
        raw = {n for n, clip in clips.items() if made.get(n, clip.op_type) != clip.op_type}
        return Beyond(None, twin.exact, frozenset(raw))
    order = {info.name: place for place, info in enumerate(index.nodes)}
    found.sort(key=lambda d: order.get(d.node, len(order)))
    others = tuple(dict.fromkeys(d.node for d in found[1:] if d.node != found[0].node))
    return Beyond(dataclasses.replace(found[0], others=(*others, *found[0].others)), certain=True)


def _closest(right: ir.Model, model: ir.Model) -> tuple[ir.Model, ...]:
    """The right graph on its way to what was quantized: what shares most names with the result."""
    names = {str(v.name) for n in model.graph.all_nodes() for v in n.outputs}
    weights = {plain_name(n) for n in model.graph.initializers}

    def shared(forms: tuple[ir.Model, ...]) -> tuple[int, int]:
        made = {str(v.name) for n in forms[-1].graph.all_nodes() for v in n.outputs}
        held = set().union(*(f.graph.initializers for f in forms))
        return len(weights & held), len(names & made)

    return max(_forms(right), key=shared)


def _oracle_of(forms: tuple[ir.Model, ...], oracle: Oracle, feed: Mapping[str, Any]) -> Oracle:
    """The values of the last form, and the weights of all."""
    assert oracle.graph is not None
    found = graph_oracle(Probe(forms[-1], oracle.graph.settings), feed, oracle.label)
    values = {n: x for n, x in oracle.values.items() if n not in found.values}
    held = {n: v.const_value for f in forms for n, v in f.graph.initializers.items()}
    weights = {**oracle.weights, **held}
    return dataclasses.replace(
        found,
        values={**values, **found.values},
        weights={n: x for n, x in weights.items() if x is not None},
        recorded=oracle.recorded,
    )


def _forms(right: ir.Model) -> Iterator[tuple[ir.Model, ...]]:
    """The right graph as it is, and as it is before quantization, which changes some of its weights."""
    from bridge.quantizing.forms import quantizable
    from bridge.targets import fitted
    from optim_passes.pipeline import run
    from optim_passes.quantization.pipeline import BEFORE_STATIC, BEFORE_WEIGHTS, FINISH

    yield (right,)
    for passes in (BEFORE_STATIC, BEFORE_WEIGHTS):
        try:
            prepared, _ = run(quantizable(right), passes)
            yield right, prepared
            yield right, prepared, run(prepared.clone(), fitted(FINISH))[0]
        except (PassError, BridgeError):
            continue


def _forgive_corrections(model: ir.Model, form: Oracle) -> None:
    """Biases that make up for rounding become the right ones again."""
    for name, value in model.graph.initializers.items():
        right = form.weights.get(name)
        if right is None or value.const_value is None or len(value.const_value.shape) != 1:
            continue
        ours, theirs = value.const_value.numpy(), right.numpy()
        alike = ours.shape == theirs.shape and ours.dtype == theirs.dtype
        if alike and ours.dtype.kind == "f":
            near = compare(name, theirs, ours, Tolerance(0.0, _CORRECTED)).passed
            value.const_value = ir.tensor(theirs if near else ours, name=name)


# Weights


def _is_wrong(stored: Stored) -> bool:
    """Whether integers do not stand for a weight: some row of it is off by more than a step."""
    right = stored.right
    assert right is not None
    if not np.isfinite(stored.got).all():
        return bool(np.isfinite(right).all())
    with np.errstate(divide="ignore", invalid="ignore"):
        steps = np.nan_to_num((stored.got - right) / np.abs(stored.step), posinf=1e6, neginf=-1e6)
    if right.ndim < 2:  # a correction is not the same for all, a zero point is
        shifted = right.size > 1 and abs(steps.mean()) > _STEPS and float(np.ptp(steps)) <= _STEPS
        corrected = compare("", right, stored.got, Tolerance(0.0, _CORRECTED)).passed
        return shifted or not corrected
    rows = [np.sqrt((np.moveaxis(steps, a, 0).reshape(n, -1) ** 2).mean(1))
            for a, n in enumerate(right.shape[:2])]  # fmt: skip
    return any(float(r.max(initial=0.0)) > _STEPS for r in rows)


def _of_weight(stored: Stored, index: GraphIndex) -> Divergence:
    value = str(stored.node.outputs[0].name)
    assert stored.right is not None
    row = compare(stored.name, stored.right, stored.got, Tolerance(0.0, _CORRECTED))
    why = relation(stored.right, stored.got) or f"they are off by up to {row.max_abs:.3g}"
    told = f"the integers, scale or zero point of {stored.name!r} do not stand for it: {why}"
    return _at(index, stored.node, value, row, told)


# Scales


def _unlike_scales(model: ir.Model) -> Iterator[tuple[ir.Node, ir.Node, str]]:
    """QuantizeLinear and the DequantizeLinear behind it with another scale or zero point.

    Another scale may do the work of a Mul behind it: without rounding, it shows whether it does.
    """
    for node in model.graph.all_nodes():
        if node.op_type != "DequantizeLinear":
            continue
        maker = undone(node)
        if maker is None:
            continue
        for place, what in ((1, "scale"), (2, "zero point")):
            ours, theirs = (parameter(n, place) for n in (node, maker))
            if ours is not None and theirs is not None and not np.array_equal(ours, theirs):
                yield node, maker, what
                break


def _of_scale(index: GraphIndex, node: ir.Node, maker: ir.Node, what: str) -> Divergence:
    told = f"the {what} of {node.name!r} is not that of {maker.name!r}, which it undoes"
    return _at(index, node, str(node.outputs[0].name), None, told)


def _float_inputs(probe: Probe, twin: Dequantized, feed: Mapping[str, Any]) -> dict[str, Any]:
    """What is given to QuantizeLinear nodes, where no weight is rounded; nothing if some are."""
    if not twin.exact:
        return {}
    nodes = [n for n in probe.model.graph if n.op_type == "QuantizeLinear"]
    names = {str(n.inputs[0].name) for n in nodes if n.inputs[0] is not None}
    plain = Probe(twin.model, probe.settings)
    found = plain.values([n for n in plain.names() if n in names], feed)
    return {n: x for n, x in found if not isinstance(x, Exception)}


def _clipping(
    model: ir.Model, index: GraphIndex, values: Mapping[str, Any], bounded: Mapping[str, ir.Node]
) -> Iterator[Divergence]:
    """QuantizeLinear nodes whose range cuts off much of what they are given, in no Clip's place.

    Args:
        model: The quantized graph.
        index: Of it.
        values: What is right, by name.
        bounded: Nodes of the float graph that bound numbers, by output.
    """
    for node in model.graph.all_nodes():
        scale, zero = parameter(node, 1), parameter(node, 2)
        source = node.inputs[0] if node.inputs else None
        if node.op_type != "QuantizeLinear" or source is None or scale is None or scale.size != 1:
            continue
        x = values.get(str(source.name))
        bounding = bounded.get((node.name or "").rpartition("/")[0])
        if bounding is not None and bounding.op_type != "HardSwish":
            continue
        if x is None or zero is None or zero.dtype not in (np.int8, np.uint8) or not x.size:
            continue
        info = np.iinfo(zero.dtype)
        low, high = (
            (np.float32(e) - zero.astype(np.float32)) * scale for e in (info.min, info.max)
        )
        x = np.asarray(x, np.float32)
        outside = (x < low - scale) | (x > high + scale)
        # where only negative numbers are cut off, that does the work of a Relu or a HardSwish
        below_is_zero = (low == 0).all() or (bounding is not None and (low <= -3).all())
        beyond = outside & (x > 0) if below_is_zero else outside
        if float(beyond.mean()) > _CLIPPED:
            told = f"{node.name!r} cuts off {beyond.mean():.0%} of its numbers: its scale is too small"
            yield _at(index, node, str(node.outputs[0].name), None, told)


# Results


def _at(
    index: GraphIndex, node: ir.Node, value: str, row: Comparison | None, told: str
) -> Divergence:
    info = index.producer[value]
    readers = [index.by_name.get(n.name or "") for v in node.outputs for n, _ in v.uses()]
    # what quantizers insert has no origin of its own: it serves what reads it
    origin = next((i for i in (info, *readers) if i is not None and i.source is not None), info)
    found = Divergence.at(info, value, row)
    return dataclasses.replace(found, module=origin.module, source=origin.source, verdicts=(told,))


def _of_twin(found: Divergence, index: GraphIndex) -> Divergence:
    """A node of the graph without quantization, as a node of the quantized graph."""
    parts = (found.node, *(found.node.rpartition(s)[0] for s in ("/part", "/bounded")))
    info = next((index.by_name[n] for n in parts if n in index.by_name), None)
    told = "with rounding taken out, it still computes other values than it should"
    if info is None:
        return dataclasses.replace(found, verdicts=(told, *found.verdicts))
    return dataclasses.replace(
        found, node=info.name, op_type=info.node.op_type, module=info.module, source=info.source,
        verdicts=(told, *found.verdicts),
    )  # fmt: skip
