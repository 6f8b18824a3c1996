"""onnx-simplifier as a step of a pipeline, and what it still finds after ours."""

from __future__ import annotations

import collections
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from optim_passes.rewriting import Outcome, Refusal
from optim_passes.values import constant

if TYPE_CHECKING:
    import onnx

__all__ = ["OnnxSimplifierPass"]

_LARGE = 1 << 16  # bytes; larger weights are kept from it, so models of any size fit


class OnnxSimplifierPass(ir.passes.InPlacePass):
    """What onnx-simplifier makes of the model, where that has fewer nodes.

    It is in no pipeline: over nine architectures of the tests, what it found after the CPU pipeline
    was 8 products of T5 that it joins, which is no faster, and a ``Not`` before a ``Where``.
    ``bridge.optimize(model, passes=[*bridge.passes.cpu, OnnxSimplifierPass()])`` shows what it
    finds in yours. Large weights are kept from it, so it folds none and copies none.

    Attributes:
        found: Nodes that it removed in its last run, by op type.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, int] = {}

    @property
    def name(self) -> str:
        """What reports call the pass."""
        return "OnnxSimplifier"

    def call(self, model: ir.Model) -> Outcome:
        """Run it on the model without its weights, and put them back."""
        import onnxsim  # slow to import, and only this pass needs it

        self.found = {}
        outcome = Outcome(model, modified=False)
        proto, held = _without_weights(model)
        try:
            simpler, _ = onnxsim.simplify(proto, check_n=0, perform_optimization=True)
            made = _with_weights(simpler, model, held)
        except Exception as error:  # whatever it cannot take stays as it is
            outcome.refusals.append(
                Refusal(self.name, f"it failed: {error}", model.graph.name or "")
            )
            return outcome
        before, after = _counts(model), _counts(made)
        self.found = {k: n - after[k] for k, n in before.items() if n > after[k]}
        if sum(after.values()) >= sum(before.values()):
            self.found = {}
            return outcome
        model.graph, outcome.modified = made.graph, True
        outcome.rewrites = sum(self.found.values())
        return outcome


def _counts(model: ir.Model) -> collections.Counter[str]:
    return collections.Counter(
        n.op_type for n in model.graph.all_nodes() if n.op_type != "Constant"
    )


def _without_weights(model: ir.Model) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """The model with inputs in the place of large weights, and the weights by name."""
    graph = model.graph
    held = {
        str(v.name): v
        for v in graph.initializers.values()
        if (t := constant(v)) is not None and t.nbytes > _LARGE and not v.is_graph_output()
    }
    tensors = {name: value.const_value for name, value in held.items()}
    for name, value in held.items():
        del graph.initializers[name]
        value.const_value = None
        graph.inputs.append(value)
    try:
        proto: onnx.ModelProto = ir.to_proto(model)
    finally:
        for name, value in held.items():
            graph.inputs.remove(value)
            value.const_value = tensors[name]
            graph.initializers.add(value)
    return proto, tensors


def _with_weights(proto: onnx.ModelProto, model: ir.Model, held: dict[str, Any]) -> ir.Model:
    made = ir.from_proto(proto)
    for value in list(made.graph.inputs):
        if value.name in held:
            made.graph.inputs.remove(value)
            value.const_value = held[value.name]
            made.graph.initializers.add(value)
    names = [v.name for v in model.graph.inputs], [v.name for v in model.graph.outputs]
    if ([v.name for v in made.graph.inputs], [v.name for v in made.graph.outputs]) != names:
        raise ValueError("it changed the names of inputs or outputs")
    return made
