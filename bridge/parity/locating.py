"""Finding the first node that goes wrong.

Every node is given inputs that are right, and its outputs are compared with those that are right:
a node is blamed for its own error only, never for one that it inherits or amplifies. What is right
comes from eager code, run again under the tracer, or from another graph; values are matched by
name, which passes and runtimes keep for what they do not fuse away. What lies between two values
that are known is a region; its inside is compared with the graph that the tracer makes today.
"""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bridge.errors import BridgeError
from bridge.feeds import to_numpy
from bridge.graph_index import GraphIndex, open_model
from bridge.parity.comparison import Comparison, compare
from bridge.parity.divergence import Divergence, Reproducer
from bridge.parity.forcing import Probe, as_type, comparable, compare_local, severity
from bridge.parity.oracles import oracle_of
from bridge.parity.outputs import misplaced_output
from bridge.parity.quantized import (
    OUTLIER,
    WrongScale,
    in_full,
    is_quantized,
    noise,
    wrong_scale,
)
from bridge.parity.regions import Suspect, suspect
from bridge.parity.relations import relation
from bridge.parity.rounding import ROUNDING_ALONE, Beyond, beyond_rounding
from bridge.parity.stepping import step_into
from bridge.parity.structure import node_differences
from bridge.parity.surgery import cut
from bridge.parity.ties import are_other_signs, are_other_ties

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import onnx_ir as ir

    from bridge.parity.checking import Tolerances
    from bridge.parity.oracles import Oracle
    from bridge.parity.sides import Side
    from bridge.session import Session

__all__ = ["NOT_THE_REFERENCES", "Divergence", "is_rounding", "locate_divergence"]

NOT_THE_REFERENCES = "is not the reference's"  # after the name of a weight

_CLEAR = 10.0  # times the local tolerance: certainly no rounding
_GROWTH_POINTS = 200  # values at which the error of the whole run is measured
_GROWTH_BATCH = 50
_NOISE = 1e-7  # of the scale: what float32 rounds off


def locate_divergence(
    reference: Side,
    session: Session,
    feed: Mapping[str, Any],
    tolerance: Tolerances = None,
    *,
    progress: Callable[[str], None] | None = None,
) -> Divergence | None:
    """The first node of a session's graph that goes wrong by itself.

    Where none does, it is the node that amplifies the rounding of others most, and its verdict
    says so; None if no value of the graph is known.

    Args:
        reference: What is right.
        session: What goes wrong.
        feed: Inputs by the session's input names.
        tolerance: For whole outputs; nodes have tolerances of their own.
        progress: Called with a line of text at the start of each phase.
    """
    tell = progress or (lambda _: None)
    feed = {n: to_numpy(x) for n, x in feed.items()}
    model = open_model(session.source)
    tell("computing what every value should be")
    oracle = oracle_of(reference, model, feed)
    if not any(str(v.name) in oracle.values for n in model.graph for v in n.outputs):
        outputs = dict(zip(session.output_names, reference.run(feed).values(), strict=False))
        oracle = dataclasses.replace(oracle, values={**oracle.values, **outputs})
    plain = session.settings_for_parts()
    tell("comparing every node on right inputs")
    found = locate_in(Probe(model, plain), oracle, feed)
    if found is None:
        tell("comparing the graph that ONNX Runtime makes of it")
        found = _locate_optimized(session, model, oracle, feed)
    if found is None:
        found = misplaced_output(reference, session, model, oracle, feed)
    return found or _amplifier(Probe(model, plain), oracle, feed)


def is_rounding(found: Divergence) -> bool:
    """Whether a node is no further off than kernels are that round in their own ways."""
    return found.comparison is None or severity(found.comparison) < _CLEAR


def _known(probe: Probe, oracle: Oracle) -> dict[str, Any]:
    """What is right, of the values that the graph has too."""
    return {
        n: oracle.values[n]
        for n in probe.names()
        if n in oracle.values and comparable(oracle.values[n], probe.types.get(n))
    }


def _amplifier(probe: Probe, oracle: Oracle, feed: Mapping[str, Any]) -> Divergence | None:
    """The node at which the error of the whole run grows most."""
    known = _known(probe, oracle)
    growth = dict(_growth(probe, feed, known))
    best: tuple[float, str] | None = None
    for node in probe.model.graph:
        inherited = max((growth.get(str(v.name), 0.0) for v in node.inputs if v), default=0.0)
        for made in node.outputs:
            ratio = growth.get(str(made.name), 0.0) / max(inherited, _NOISE)
            if best is None or ratio > best[0]:
                best = (ratio, str(made.name))
    if best is None or not any(growth.values()):
        return None
    ratio, value = best
    found = Divergence.at(GraphIndex(probe.model).producer[value], value, None)
    told = (
        "no node is wrong by itself: rounding adds up along the graph, and grows most here "
        f"({ratio:.0f} times)"
    )
    return dataclasses.replace(found, growth=tuple(growth.items()), verdicts=(told,))


def locate_in(probe: Probe, oracle: Oracle, feed: Mapping[str, Any]) -> Divergence | None:
    """The first node of a graph that goes wrong by itself."""
    quantized = is_quantized(probe.model)
    beyond = beyond_rounding(probe, oracle, feed, locate_in) if quantized else Beyond()
    certain = beyond.certain
    if beyond.found is not None:
        growth = beyond.found.growth or _growth(probe, feed, _known(probe, oracle))
        return dataclasses.replace(beyond.found, growth=growth)
    known = {n: x for n, x in _known(probe, oracle).items() if n not in beyond.raw}
    rows = {
        name: compare_local(name, known[name], got, probe.types[name], probe.coarse(name, known))
        for name, got in probe.values(list(known), feed, known)
    }
    for name, row in rows.items():
        if not row.passed and row.problem is None:
            got = dict(probe.values([name], feed, known))[name]
            tied = are_other_ties(probe, name, known[name], got, feed, known)
            if tied or are_other_signs(probe, name, known[name], got):
                rows[name] = dataclasses.replace(row, passed=True)
    guilty, scale = _guilty(rows, quantized=quantized), None
    if quantized:  # what is computed in float has no business to be off
        exact = _guilty({n: r for n, r in rows.items() if in_full(probe, n, known)})
        guilty = [*exact, *(n for n in guilty if n not in exact)]
        scale = None if exact or certain else wrong_scale(probe, oracle, feed, known)
    if scale is not None:
        found = _wrong_scale(probe, scale)
    elif guilty:
        found = _divergence(probe, oracle, feed, known, rows[guilty[0]])
    else:
        return None
    if certain:
        guilty = guilty[:1]
        found = dataclasses.replace(found, verdicts=(ROUNDING_ALONE,))
    return dataclasses.replace(
        found,
        others=_others(probe, known, found, guilty[scale is None :]),
        growth=_growth(probe, feed, known),
    )


def _wrong_scale(probe: Probe, scale: WrongScale) -> Divergence:
    value = str(scale.node.outputs[0].name)
    index = GraphIndex(probe.model)
    info = index.producer[value]
    readers = [index.by_name.get(n.name or "") for n, _ in scale.node.outputs[0].uses()]
    # what quantizers insert has no origin of its own: it serves what reads it
    origin = next((i for i in (info, *readers) if i is not None and i.source is not None), info)
    found = Divergence.at(info, value, scale.row)
    return dataclasses.replace(
        found, module=origin.module, source=origin.source, verdicts=(scale.told,)
    )


def _others(
    probe: Probe, known: Mapping[str, Any], found: Divergence, guilty: list[str]
) -> tuple[str, ...]:
    """The nodes that make further values wrong, but for values that the found node has part in."""
    names: dict[str, None] = {}
    for value in guilty:
        region = probe.region(value, known)
        if all(n.name != found.node for n in region):
            names[str(region[-1].name or value)] = None
    return tuple(names)


def _guilty(rows: Mapping[str, Comparison], *, quantized: bool = False) -> list[str]:
    """The values that are clearly wrong, in graph order; rounding beside errors is left out."""
    severities = {n: severity(r) for n, r in rows.items()}
    worst = max(severities.values(), default=0.0)
    threshold = min(max(worst / 10, 1.0), _CLEAR)
    if quantized and worst > _CLEAR:
        severities = {n: noise(r) for n, r in rows.items()}
        worst = max(severities.values())
        finite = [s for s in severities.values() if np.isfinite(s)]
        threshold = worst * OUTLIER if np.isfinite(worst) else max(finite, default=0.0) * 2
    return [n for n, s in severities.items() if s >= threshold]


def _divergence(
    probe: Probe,
    oracle: Oracle,
    feed: Mapping[str, Any],
    known: Mapping[str, Any],
    row: Comparison,
) -> Divergence:
    """The node that makes a value wrong, sought inside of the region that computes the value."""
    verdicts: list[str] = []
    inner = _inner_values(probe, oracle, feed, known, row.name)
    value, worst = row.name, row
    expected = known[value]
    if inner:
        whole = {**known, **inner}
        names = [n for n in probe.names() if n in inner]
        rows = {
            n: compare_local(n, inner[n], got, probe.types[n], probe.coarse(n, whole))
            for n, got in probe.values(names, feed, whole)
        }
        guilty = _guilty(rows, quantized=is_quantized(probe.model))
        if guilty:
            value, worst = guilty[0], rows[guilty[0]]
            expected = inner[value]
            known = {**known, **{n: x for n, x in inner.items() if n != value or n not in known}}
        else:
            verdicts.append(_why_region(probe, oracle, feed, known, row))
    index = GraphIndex(probe.model)
    info = index.producer[value]
    blamed = None
    if not is_quantized(probe.model):
        blamed = suspect(probe, oracle, feed, known, value)
    if blamed is not None and blamed.node is not info.node:
        found = _suspected(blamed, probe, oracle, worst)
        return dataclasses.replace(
            found,
            verdicts=(*verdicts, *found.verdicts),
            reproducer=_reproducer(probe, feed, known, value, expected),
        )
    found = Divergence.at(info, value, worst)
    if not verdicts and _kernel_is_wrong(probe, feed, known, value, expected):
        verdicts.append(
            f"the provider's kernel is wrong: ONNX's reference implementation of "
            f"{info.node.op_type} agrees"
        )
    verdicts += _value_verdicts(expected, probe, feed, known, value)
    verdicts += _weight_verdicts(info.node, probe.model, oracle)
    if oracle.graph is not None:
        right = oracle.graph.model.graph
        verdicts += node_differences(info.node, right, oracle.weights, oracle.label)
    if not verdicts:
        verdicts.append(
            f"{info.node.op_type} {info.name!r} computes other values than {oracle.label} from "
            "inputs that are right"
        )
    found = dataclasses.replace(
        found,
        verdicts=tuple(verdicts),
        reproducer=_reproducer(probe, feed, known, value, expected),
    )
    return _inside(found, info.node, probe, oracle, feed, known) or found


def _suspected(blamed: Suspect, probe: Probe, oracle: Oracle, row: Comparison) -> Divergence:
    """A node that spoils a value further on.

    Args:
        blamed: The node.
        probe: Its graph.
        oracle: What is right.
        row: How wrong the value is.
    """
    info = GraphIndex(probe.model).producer[str(blamed.node.outputs[0].name)]
    weights = _weight_verdicts(blamed.node, probe.model, oracle)
    if blamed.repaired is None:
        told = (
            f"{row.name!r} is wrong; before it, this is the first node that makes numbers which "
            f"{oracle.label} does not have"
        )
        found = Divergence.at(info, row.name, row)
        return dataclasses.replace(found, verdicts=(told, *weights))
    value, right = blamed.repaired.value, blamed.repaired.right
    why = relation(right, blamed.got)
    told = f"{row.name!r} is right if {value!r} is what {oracle.label} has in its place"
    found = Divergence.at(info, value, compare_local(value, right, blamed.got, probe.types[value]))
    return dataclasses.replace(
        found, verdicts=(told, *([f"{value!r}: {why}"] if why else []), *weights)
    )


def _inner_values(
    probe: Probe, oracle: Oracle, feed: Mapping[str, Any], known: Mapping[str, Any], value: str
) -> dict[str, Any]:
    """What the right graph has for the values inside of a region, the region's result included."""
    region = probe.region(value, known)
    if oracle.graph is None or len(region) < 2:
        return {}
    names = [str(v.name) for n in region for v in n.outputs if v.name in oracle.graph.types]
    given = {n: x for n, x in known.items() if comparable(x, oracle.graph.types.get(n))}
    given.pop(value, None)
    return {
        n: x
        for n, x in oracle.graph.values(names, feed, given)
        if not isinstance(x, Exception) and comparable(x, probe.types.get(n))
    }


def _why_region(
    probe: Probe,
    oracle: Oracle,
    feed: Mapping[str, Any],
    known: Mapping[str, Any],
    row: Comparison,
) -> str:
    """Why a region is wrong that the tracer makes the same way: its nodes, or their kernels."""
    nodes = ", ".join(n.op_type for n in probe.region(row.name, known))
    if _kernel_is_wrong(probe, feed, known, row.name, known[row.name]):
        return f"the provider's kernel is wrong: ONNX's reference implementation of {nodes} agrees"
    return f"the exported nodes ({nodes}) do not compute what {oracle.label} computes here"


def _kernel_is_wrong(
    probe: Probe, feed: Mapping[str, Any], known: Mapping[str, Any], value: str, expected: Any
) -> bool:
    """Whether ONNX's reference evaluator computes a value right from the same nodes."""
    import onnx_ir as ir
    from onnx.reference import ReferenceEvaluator

    part, names = cut(probe.model, [value], {n: probe.types[n] for n in known})
    feeds = {
        own: as_type(known[n], probe.types[n]) if n in known else feed[n]
        for n, own in names.items()
    }
    try:
        got = ReferenceEvaluator(ir.to_proto(part)).run([value], feeds)[0]
    except Exception:  # the evaluator lacks many operators, and some of its functions fail
        return False
    coarse = probe.coarse(value, known)
    return compare_local(value, expected, got, probe.types[value], coarse).passed


def _value_verdicts(
    expected: Any, probe: Probe, feed: Mapping[str, Any], known: Mapping[str, Any], value: str
) -> list[str]:
    if expected is None:
        return []
    got = dict(probe.values([value], feed, known))[value]
    told = None if isinstance(got, Exception) else relation(expected, got)
    return [f"{value!r}: {told}"] if told else []


def _weight_verdicts(node: ir.Node, model: ir.Model, oracle: Oracle) -> list[str]:
    """Initializers of a node that are not what the right graph has under their names."""
    found = []
    for value in node.inputs:
        if value is None or value.const_value is None:
            continue
        right = oracle.weights.get(str(value.name))
        if right is None:
            continue
        ours, theirs = value.const_value.numpy(), right.numpy()
        if ours.shape != theirs.shape:
            found.append(f"{value.name!r} has shape {list(ours.shape)}, not {list(theirs.shape)}")
        elif not compare(str(value.name), theirs, ours).passed:
            told = relation(theirs, ours)
            found.append(f"{value.name!r} {NOT_THE_REFERENCES}" + (f": {told}" if told else ""))
    return found


def _reproducer(
    probe: Probe, feed: Mapping[str, Any], known: Mapping[str, Any], value: str, expected: Any
) -> Reproducer | None:
    if expected is None:
        return None
    given = {n: probe.types[n] for n in known if n in probe.types}
    part, names = cut(probe.model, [value], given)
    inputs = {
        own: as_type(known[n], probe.types[n]) if n in known else feed[n]
        for n, own in names.items()
    }
    return Reproducer(part, inputs, {value: as_type(np.asarray(expected), probe.types[value])})


def _inside(
    found: Divergence,
    node: ir.Node,
    probe: Probe,
    oracle: Oracle,
    feed: Mapping[str, Any],
    known: Mapping[str, Any],
) -> Divergence | None:
    """The node inside of an If or a Loop that goes wrong."""
    right_graph = oracle.graph
    if right_graph is None or node.op_type not in ("If", "Loop"):
        return None
    makers = {v.name: n for n in right_graph.model.graph for v in n.outputs}
    right = makers.get(found.value)
    if right is None:
        return None

    def outer(name: str) -> Any:
        """The right value of a name around the node."""
        if name in known:
            return known[name]
        if name in feed:
            return feed[name]
        held = oracle.weights.get(name) or probe.model.graph.initializers[name].const_value
        if held is not None:
            return held.numpy()
        value = dict(right_graph.values([name], feed))[name]
        if isinstance(value, Exception):
            raise value
        return value

    return step_into(node, right, probe, right_graph, outer, locate_in)


def _growth(
    probe: Probe, feed: Mapping[str, Any], known: Mapping[str, Any]
) -> tuple[tuple[str, float], ...]:
    """How far values are off in the whole run, where a tolerance could say so."""
    names = list(known)
    step = max(1, len(names) // _GROWTH_POINTS)
    chosen = names[::step]
    found = []
    for start in range(0, len(chosen), _GROWTH_BATCH):
        for name, got in probe.values(chosen[start : start + _GROWTH_BATCH], feed):
            if isinstance(got, Exception):
                continue
            row = compare_local(name, known[name], got, probe.types[name])
            found.append((name, float("inf") if row.problem else row.needed))
    return tuple(found)


def _locate_optimized(
    session: Session, model: ir.Model, oracle: Oracle, feed: Mapping[str, Any]
) -> Divergence | None:
    """The first wrong node of the graph that ONNX Runtime rewrites the model to."""
    if session.settings.optimization == "none":
        return None
    with tempfile.TemporaryDirectory(prefix="bridge-") as folder:
        path = Path(folder) / "optimized.onnx"
        try:
            session.with_settings(optimized_path=str(path), cuda_graphs=False)
            rewritten = open_model(path)
            made = {v.name: node for node in model.graph for v in node.outputs}
            for node in rewritten.graph:  # the runtime writes no metadata
                if node.outputs[0].name in made:
                    node.metadata_props.update(made[node.outputs[0].name].metadata_props)
            found = locate_in(Probe(rewritten, session.settings_for_parts()), oracle, feed)
        except BridgeError:  # nodes that only their provider can compile are not written down
            return None
    if found is None:
        return None
    origin = GraphIndex(model).origin(GraphIndex(rewritten).by_name[found.node].node)
    told = "the graph as written is right: ONNX Runtime's optimizer made this node"
    if origin is not None:
        found = dataclasses.replace(found, module=origin.module, source=origin.source)
    return dataclasses.replace(found, verdicts=(told, *found.verdicts))
