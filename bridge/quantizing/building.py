"""Makes quantized models of a float one: prepared once, then once for each choice of nodes."""

from __future__ import annotations

import collections
import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from bridge.calibration import Calibration, Calibrator, batches_of
from bridge.quantizing.forms import quantizable
from bridge.quantizing.processor import this_processor
from bridge.session import Session
from bridge.targets import fitted
from optim_passes.pipeline import run
from optim_passes.precision.ranges import RANGES, ranges_of, with_ranges
from optim_passes.quantization.dynamic import DynamicQuantizationPass
from optim_passes.quantization.pipeline import BEFORE, BEFORE_STATIC, BEFORE_WEIGHTS, FINISH
from optim_passes.quantization.placement import CONVOLUTIONS, RECURRENT, is_kernel, thin_stem
from optim_passes.quantization.simulation import SimulationPass
from optim_passes.quantization.smoothing import SmoothingPass, channel_axis, smoothed_inputs
from optim_passes.quantization.static import (
    QuantizedTensor,
    StaticOptions,
    StaticQuantizationPass,
    observed_values,
)
from optim_passes.quantization.weight_only import WeightOptions, WeightQuantizationPass
from optim_passes.scopes import scopes
from optim_passes.values import constant

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

    from bridge.quantizing.recipes import Recipe

__all__ = ["Builder", "Built"]

Feed = dict[str, Any]
_STEM = "a convolution of few channels at the input is faster in floating point"
_MEASURED_INSIDE = 16  # batches
_ASKED = "asked to stay in float"


@dataclasses.dataclass(slots=True)
class Built:
    """A quantized model.

    Attributes:
        model: The graph.
        tensors: Its quantized tensors.
        quantized: Nodes in integers, by operator.
        kept_float: Nodes that stayed in floating point, and why.
    """

    model: ir.Model
    tensors: list[QuantizedTensor]
    quantized: dict[str, int]
    kept_float: dict[str, str]


class Builder:
    """Quantizes one model by one recipe, as often as asked.

    Args:
        model: The float model; not changed.
        recipe: How.
        keep_float: Names of nodes, or of modules (``encoder.layer.0``), that stay in float.

    Attributes:
        prepared: The float graph in the form that is quantized.
        calibration: What calibration saw, empty before :meth:`calibrate`.
        inside: The largest magnitude of each value in a body of If, Loop or Scan.
    """

    def __init__(self, model: ir.Model, recipe: Recipe, keep_float: Collection[str] = ()) -> None:
        self.recipe = recipe
        static = recipe.kind in ("static", "mixed")
        passes = BEFORE_STATIC if static else BEFORE_WEIGHTS
        self.prepared, _ = run(quantizable(model), passes)
        if recipe.calibrated:
            _compute_constants(self.prepared)
        self.calibration = Calibration({})
        self.inside: dict[str, float] = {}
        self._kept = self._asked(keep_float)
        if static:
            for scope in scopes(self.prepared):
                if scope.function is None and scope.outer is None:
                    self._kept.update((n.name or "", _STEM) for n in thin_stem(scope))

    def _asked(self, names: Collection[str]) -> dict[str, str]:
        from bridge.quantizing.recipes import RecipeError

        found: dict[str, str] = {}
        for wanted in names:
            matched = [
                n.name or "" for n in self.prepared.graph.all_nodes() if _belongs(n, wanted)
            ]
            if not matched:
                raise RecipeError(
                    f"keep_float names {wanted!r}, which is neither a node nor a module",
                    hint="report.sensitivity and report.kept_float show the nodes' names",
                )
            found.update((name, _ASKED) for name in matched)
        return found

    # What the recipe says

    @property
    def options(self) -> StaticOptions:
        """Those of static quantization on this machine."""
        processor = this_processor()
        return StaticOptions(
            activation=processor.activation,
            symmetric=self.recipe.symmetric and self.recipe.kind != "weights",
            per_channel=self.recipe.per_channel,
            weight_most=processor.weight_most,
        )

    def wanted(self, keep: Collection[str] = ()) -> Callable[[ir.Node], bool]:
        """Whether a node may be quantized statically."""
        products = self.recipe.kind == "static"
        kept = {*self._kept, *keep}

        def decide(node: ir.Node) -> bool:
            if node.name in kept:
                return False
            return products or not is_kernel(node) or node.op_type in CONVOLUTIONS

        return decide

    def _free(
        self, keep: Collection[str], *, recurrent_only: bool = False
    ) -> Callable[[ir.Node], bool]:
        """Whether a node may be quantized as its inputs come; LSTM and GRU have no static form."""
        kept = {*self._kept, *keep}
        mixed = self.recipe.kind == "mixed"

        def decide(node: ir.Node) -> bool:
            if mixed and node.op_type in CONVOLUTIONS:
                return False  # it has a static form, or else a reason that is known
            return (node.op_type in RECURRENT or not recurrent_only) and node.name not in kept

        return decide

    # Calibration

    def observed(self) -> list[str]:
        """The values whose ranges are needed."""
        if self.recipe.kind not in ("static", "mixed"):
            return []
        names = [
            v.name or ""
            for scope in scopes(self.prepared)
            if scope.function is None
            for v in observed_values(scope, self.wanted(), self.options)
        ]
        # A kernel whose neighbours stay in float reads what they would have kept to themselves.
        for scope in scopes(self.prepared):
            if scope.function is None:
                names += [n.inputs[0].name or "" for n in scope.body if is_kernel(n)]  # type: ignore[union-attr]
        return list(dict.fromkeys(names))

    def smooth(self, feeds: Sequence[Feed]) -> int:
        """Move large channels into weights, as a few batches show them; says how many values."""
        assert self.recipe.smooth is not None
        values = [
            v
            for scope in scopes(self.prepared)
            if scope.function is None and scope.outer is None
            for v in smoothed_inputs(scope)
        ]
        axes = {v.name or "": channel_axis(v) for v in values}
        if not axes:
            return 0
        seen = Calibrator(self.prepared, axes, channels=axes).run(feeds)
        largest = {name: c.largest for name, c in seen.channels.items()}
        self.prepared, report = run(self.prepared, [SmoothingPass(largest, self.recipe.smooth)])
        return sum(step.rewrites for step in report.steps.values())

    def calibrate(
        self,
        batches: Iterable[Any],
        *,
        resume: str | os.PathLike[str] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """Look at what the model's values are."""
        outer = {v.name for n in self.prepared.graph for v in n.outputs}
        outer |= {v.name for v in self.prepared.graph.inputs}
        observed = self.observed()
        names = [n for n in observed if n in outer]
        if len(names) < len(observed):
            batches = self._also_inside(batches)
        inputs = self._kernel_inputs()
        channels = {n: a for n, a in inputs.items() if self.recipe.bias_correction}
        moments = [n for n, a in inputs.items() if a == -1 and self.recipe.correction == "gptq"]
        calibrator = Calibrator(
            self.prepared,
            [*names, *channels, *moments],
            channels=channels,
            moments=moments,
            resume=resume,
            progress=progress,
        )
        self.calibration = calibrator.run(batches)

    def _also_inside(self, batches: Iterable[Any]) -> Iterator[Feed]:
        """The batches, while the bodies of If, Loop and Scan are measured on the first of them.

        What is inside leaves no trace outside but its largest magnitude.
        """
        metered, names = with_ranges(self.prepared)
        session = Session(metered, optimization="basic")
        for number, feed in enumerate(batches_of(batches, session)):
            if number < _MEASURED_INSIDE and all(x.size for x in feed.values()):
                vector = np.asarray(session.run(feed, outputs=[RANGES])[RANGES])
                for name, magnitude in ranges_of(names, [vector]).items():
                    if np.isfinite(magnitude):
                        self.inside[name] = max(self.inside.get(name, 0.0), magnitude)
            yield feed

    def _kernel_inputs(self) -> dict[str, int]:
        """What the main graph's kernels read, with the axis of its channels."""
        return {
            n.inputs[0].name or "": 1 if n.op_type in CONVOLUTIONS else -1  # type: ignore[union-attr]
            for n in self.prepared.graph
            if is_kernel(n) and not n.inputs[0].is_graph_input()  # type: ignore[union-attr]
        }

    @property
    def ranges(self) -> dict[str, tuple[float, float]]:
        """The range of each activation, by the recipe's method."""
        inside = {n: (-m, m) for n, m in self.inside.items()}
        return inside | self.calibration.ranges(self.recipe.method)

    # Building

    def build(self, keep: Mapping[str, str] | None = None) -> Built:
        """A quantized model.

        Args:
            keep: Names of further nodes that stay in float, and why.
        """
        keep = dict(keep or {})
        model = self.prepared.clone()
        kind = self.recipe.kind
        reasons = {**self._kept, **keep}
        tensors: list[QuantizedTensor] = []
        if kind in ("static", "mixed"):
            means = {n: c.means for n, c in self.calibration.channels.items()}
            static = StaticQuantizationPass(
                self.ranges, wanted=self.wanted(keep), options=self.options, means=means
            )
            model, report = run(model, [static])
            tensors = static.tensors
            reasons |= {r.node: r.reason for r in report.refusals}
        further: list[ir.passes.PassBase] = []
        if kind in ("static", "dynamic", "mixed"):
            free = self._free(keep, recurrent_only=kind == "static")
            dynamic = DynamicQuantizationPass(
                wanted=free,
                weight_most=this_processor().weight_most,
                per_channel=self.recipe.per_channel,
            )
            further.append(dynamic)
        if kind == "weights" or self.recipe.embeddings:
            further.append(self._weight_pass(keep))
        if further:
            model, report = run(model, further)
            reasons |= {r.node: r.reason for r in report.refusals}
        counted = quantized_nodes(model)
        for op_type, count in quantized_nodes(self.prepared).items():
            counted[op_type] -= count  # the model had them before
        model, _ = run(model, fitted(FINISH))
        names = {n.name for n in self.prepared.graph.all_nodes()}
        return Built(
            model,
            tensors,
            dict((+counted).most_common()),
            {k: v for k, v in reasons.items() if k in names},
        )

    def _weight_pass(self, keep: Collection[str] = ()) -> WeightQuantizationPass:
        recipe = self.recipe
        options = WeightOptions(
            bits=recipe.bits,
            block_size=recipe.block_size,
            symmetric=recipe.symmetric,
            method=recipe.correction,
            embeddings=recipe.embeddings,
        )
        return WeightQuantizationPass(
            options,
            wanted=self._free(keep),
            moments={n: m.mean for n, m in self.calibration.moments.items()},
            products=recipe.kind == "weights",
        )

    def simulation(self) -> SimulationPass:
        """What simulates the quantization of any of the nodes that :meth:`build` quantizes."""
        kind = self.recipe.kind
        if kind == "weights":
            return SimulationPass({}, self.options, weights=self._weight_pass().rounded)
        return SimulationPass(
            self.ranges if kind != "dynamic" else {},
            self.options,
            static=self.wanted() if kind != "dynamic" else None,
            dynamic=self._free((), recurrent_only=kind == "static"),
        )


def _compute_constants(model: ir.Model) -> None:
    """Compute what is derived from the given weights, which may then be forgotten."""
    lazy = [
        v for v in model.graph.initializers.values() if isinstance(v.const_value, ir.LazyTensor)
    ]
    # The largest first, whose intermediate results are large too.
    for value in sorted(lazy, key=lambda v: -v.const_value.nbytes):  # type: ignore[union-attr]
        tensor = value.const_value
        if tensor is not None:
            value.const_value = ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=value.name)


def optimized_float(model: ir.Model) -> ir.Model:
    """The float model in its fastest form, which quantized ones are measured against."""
    made, _ = run(model.clone(), fitted((*BEFORE, *FINISH)))
    return made


def quantized_nodes(model: ir.Model) -> collections.Counter[str]:
    """Nodes that compute in integers, by operator; those between DequantizeLinear count by name."""
    counts: collections.Counter[str] = collections.Counter()
    for node in model.graph.all_nodes():
        if node.domain == "com.microsoft" and any(
            part in node.op_type for part in ("Quantize", "Integer", "NBits")
        ):
            counts[node.op_type] += 1
        elif node.op_type in ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"):
            continue
        elif node.op_type == "Gather" and _is_table_of_integers(node):
            counts["Gather"] += 1
        elif node.inputs and _dequantized(node.inputs[0]) and not _is_float_reader(node):
            counts[node.op_type] += 1
    return counts


def _is_table_of_integers(node: ir.Node) -> bool:
    table = constant(node.inputs[0])
    return table is not None and table.dtype == ir.DataType.INT8


def _dequantized(value: ir.Value | None) -> bool:
    node = None if value is None else value.producer()
    return node is not None and node.op_type == "DequantizeLinear"


def _is_float_reader(node: ir.Node) -> bool:
    """Whether a node reads integers' real values only because they are there."""
    if node.op_type in ("Conv", "ConvTranspose", "MatMul", "Gemm"):
        return not _dequantized(node.inputs[1])
    return not any(u.node.op_type == "QuantizeLinear" for v in node.outputs for u in v.uses())


def _belongs(node: ir.Node, wanted: str) -> bool:
    module = node.metadata_props.get("bridge.module", "")
    return node.name == wanted or module == wanted or module.startswith(f"{wanted}.")
