"""Locating in quantized graphs, where every node is off a little and one may be off by far more."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from bridge.parity.comparison import Comparison, Tolerance, compare
from bridge.parity.forcing import comparable
from bridge.parity.relations import relation
from bridge.parity.surgery import reads

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bridge.parity.forcing import Probe
    from bridge.parity.oracles import Oracle

__all__ = ["OUTLIER", "WrongScale", "in_full", "is_quantized", "noise", "wrong_scale"]

OUTLIER = 0.6  # of the largest error: beside it, what rounding to 8 or 4 bits costs is small
_QUANTIZED = {
    "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "ConvInteger",
    "QLinearConv", "QLinearMatMul", "MatMulNBits", "DynamicQuantizeMatMul", "QAttention",
    "MatMulIntegerToFloat", "QGemm", "GatherBlockQuantized",
}  # fmt: skip
_NARROW = {ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT4, ir.DataType.UINT4}
# Rounding to 4 bits is off by 1/15 of the range at most; a scale that is off by a quarter is not.
_ROUNDED = Tolerance(0.0, 0.1)
_CLIPPED = 0.05  # of the numbers: more than calibration leaves out


@dataclasses.dataclass(frozen=True, slots=True)
class WrongScale:
    """A DequantizeLinear whose values are not those that were quantized.

    Attributes:
        node: The node.
        row: What it makes of them.
        told: What is wrong, in words.
    """

    node: ir.Node
    row: Comparison
    told: str


def is_quantized(model: ir.Model) -> bool:
    """Whether any node of the main graph computes with quantized numbers."""
    return any(n.op_type in _QUANTIZED for n in model.graph)


def wrong_scale(
    probe: Probe, oracle: Oracle, feed: Mapping[str, Any], known: Mapping[str, Any]
) -> WrongScale | None:
    """The DequantizeLinear that is furthest off, None if all give back what was quantized."""
    nodes = [n for n in probe.model.graph if n.op_type == "DequantizeLinear"]
    names = [str(n.outputs[0].name) for n in nodes]
    known = {**known, **_from_graph(nodes, oracle, known, feed)}
    given = {n: x for n, x in known.items() if n in probe.types and n not in names}
    found: WrongScale | None = None
    for node, (name, got) in zip(nodes, probe.values(names, feed, given), strict=True):
        if isinstance(got, Exception):
            continue
        fitting = [x for x in _stands_for(node, oracle, known, feed) if x.shape == got.shape]
        rows = [compare(name, x.astype(got.dtype), got, _ROUNDED) for x in fitting]
        if not rows:
            continue
        row, expected = min(zip(rows, fitting, strict=True), key=lambda pair: pair[0].needed)
        if _saturates(expected, got):
            continue
        if row.passed or (found is not None and found.row.needed >= row.needed):
            continue
        why = relation(expected, got) or f"it is off by {row.max_abs:.3g}"
        found = WrongScale(node, row, f"the scale or zero point of {node.name!r} is wrong: {why}")
    return found


def _saturates(expected: np.ndarray[Any, Any], got: np.ndarray[Any, Any]) -> bool:
    """Whether all that is off are a few numbers at the ends of the range, as calibration wants it."""
    limit = _ROUNDED.atol * float(np.abs(expected).max(initial=0.0))
    off = np.abs(expected.astype(np.float64) - got) > limit
    ends = (got == got.max(initial=-np.inf)) | (got == got.min(initial=np.inf))
    return bool((off <= ends).all() and off.mean() < _CLIPPED)


def in_full(probe: Probe, value: str, known: Mapping[str, Any]) -> bool:
    """Whether a value is computed from known ones without quantized numbers."""
    return not any(map(_computes_quantized, probe.region(value, known)))


def _computes_quantized(node: ir.Node) -> bool:
    held = [v.const_value for v in node.inputs if v is not None]
    return node.op_type in _QUANTIZED or any(x is not None and x.dtype in _NARROW for x in held)


def noise(row: Comparison) -> float:
    """How large a difference is beside the values; a few numbers that are cut off do not count much."""
    if row.problem is not None:
        return float("inf")
    return 0.0 if row.passed else float(10 ** (-row.snr / 20))


def _from_graph(
    nodes: Sequence[ir.Node], oracle: Oracle, known: Mapping[str, Any], feed: Mapping[str, Any]
) -> dict[str, Any]:
    """Quantized values that eager code has no name for, as the right graph computes them."""
    if oracle.graph is None:
        return {}
    sources = [n.inputs[0] for n in nodes]
    makers = [s.producer() for s in sources if s is not None]
    wanted = [str(v.name) for m in makers if m is not None for v in m.inputs[:1] if v is not None]
    missing = [n for n in wanted if n not in known and n in oracle.graph.types]
    given = {n: x for n, x in known.items() if comparable(x, oracle.graph.types.get(n))}
    found = oracle.graph.values(missing, feed, given)
    return {n: x for n, x in found if not isinstance(x, Exception)}


def _stands_for(
    node: ir.Node, oracle: Oracle, known: Mapping[str, Any], feed: Mapping[str, Any]
) -> list[np.ndarray[Any, Any]]:
    """What may have been quantized: a value that is known, or a weight of the right graph."""
    source = node.inputs[0]
    assert source is not None
    producer = source.producer()
    if producer is not None:
        if producer.op_type != "QuantizeLinear":
            return []
        output = str(node.outputs[0].name)
        names = (str(next(iter(reads(producer))).name), output)  # outputs keep their names
        values = [np.asarray(x) for n in names if (x := known.get(n, feed.get(n))) is not None]
        if values:  # saturation may do the work of a Relu, by which the node is named then
            values += [x for n, x in oracle.values.items() if output.startswith(f"{n}/")]
        return values
    if source.const_value is None:
        return []
    shape = tuple(source.const_value.shape.numpy())
    name = str(source.name)
    weights = [n for n, w in oracle.weights.items() if w is not None and n in name]
    weights = [n for n in weights if tuple(oracle.weights[n].shape.numpy()) == shape]
    folded = [n for n, x in known.items() if n in name and x.shape == shape]
    best = max((*weights, *folded), key=len, default=None)
    if best is None:
        return []
    return [known[best] if best in folded else np.asarray(oracle.weights[best].numpy())]
