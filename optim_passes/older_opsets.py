"""Older versions of the standard operators, for runtimes that know no newer ones.

Most new versions of an operator only take more types. A node that uses nothing else of what is new
in its operator means the same under an older opset.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import onnx
import onnx_ir as ir

from optim_passes.rewriting import Outcome, Pass
from optim_passes.scopes import scopes
from optim_passes.values import attribute

if TYPE_CHECKING:
    from optim_passes.scopes import Scope

__all__ = ["LowerOpsetPass"]

_OLDEST = 13

# Versions of operators that mean something else than those before, though they are written alike.
_CHANGED = {
    ("BatchNormalization", 14), ("BatchNormalization", 15), ("RoiAlign", 16), ("Resize", 18),
    ("Resize", 19), ("AveragePool", 19), ("GroupNormalization", 21), ("DFT", 20),
    ("GridSample", 20), ("Split", 18), ("LpPool", 18), ("ScatterElements", 16), ("Attention", 24),
    ("Pad", 18), ("QuantizeLinear", 21), ("DequantizeLinear", 21), ("QuantizeLinear", 23),
    ("DequantizeLinear", 23), ("QuantizeLinear", 19), ("DequantizeLinear", 19),
}  # fmt: skip


class LowerOpsetPass(Pass):
    """Converts the model to an older opset of the default domain, all of it or nothing.

    Refused for every node whose operator, types, attributes or operands the older opset lacks.

    Args:
        version: The opset to reach.
    """

    def __init__(self, version: int) -> None:
        super().__init__()
        self.version = version

    def call(self, model: ir.Model) -> Outcome:
        """Convert all bodies or none."""
        outcome = Outcome(model, modified=False)
        bodies = [s for s in scopes(model) if s.opset > self.version]
        for scope in bodies:
            for node in scope.body:
                reason = _obstacle(node, scope, self.version)
                if reason is not None:
                    self.refuse(outcome, node, reason, node)
        if outcome.refusals or not bodies:
            return outcome
        for imports in [model.graph.opset_imports, *(s.opsets for s in bodies)]:
            if imports.get("", 0) > self.version:
                imports[""] = self.version
        for node in model.graph.all_nodes():
            node.version = None
        outcome.rewrites, outcome.modified = 1, True
        return outcome

    def run(self, scope: Scope, outcome: Outcome) -> None:
        """Not used: bodies are converted together."""
        raise NotImplementedError


@functools.cache
def _schema(op_type: str, opset: int) -> onnx.defs.OpSchema | None:
    try:
        return onnx.defs.get_schema(op_type, opset, "")
    except onnx.defs.SchemaError:
        return None


def _obstacle(node: ir.Node, scope: Scope, version: int) -> str | None:
    """Why a node means nothing, or something else, in the older opset; None if it means the same."""
    if node.domain:
        return None
    if version < _OLDEST:
        return f"opset {version} is older than {_OLDEST}"
    now, old = _schema(node.op_type, scope.opset), _schema(node.op_type, version)
    if old is None or now is None:
        return f"opset {version} has no {node.op_type}"
    if old.since_version == now.since_version:
        return None
    between = range(old.since_version + 1, now.since_version + 1)
    if any((node.op_type, v) in _CHANGED for v in between):
        return f"{node.op_type} means something else in opset {version}"
    unknown = set(node.attributes) - set(old.attributes)
    if unknown:
        return f"{node.op_type} of opset {version} has no {', '.join(sorted(unknown))}"
    for name, given in old.attributes.items():
        if given.required and name not in node.attributes:
            return f"{node.op_type} of opset {version} needs {name}"
    for values, formals, most in (
        (node.inputs, old.inputs, old.max_input),
        (node.outputs, old.outputs, old.max_output),
    ):
        if len(values) > most:
            return f"{node.op_type} of opset {version} takes no {len(values)} operands"
        told = _foreign_type(values, formals, old)
        if told is not None:
            return f"{node.op_type} of opset {version} has no {told}"
    if attribute(node, "axes") is None and _axes_moved(node, old):
        return f"{node.op_type} of opset {version} has its axes elsewhere"
    return None


def _foreign_type(values: object, formals: object, schema: onnx.defs.OpSchema) -> str | None:
    """A type that the schema does not allow for one of the operands; None if all are allowed."""
    allowed = {c.type_param_str: set(c.allowed_type_strs) for c in schema.type_constraints}
    for index, value in enumerate(values):  # type: ignore[arg-type, var-annotated]
        if value is None or value.dtype is None or not isinstance(value.type, ir.TensorType):
            continue
        formal = formals[min(index, len(formals) - 1)]  # type: ignore[index, arg-type]
        name = f"tensor({value.dtype.name.lower()})"
        if name not in allowed.get(formal.type_str, {formal.type_str}):
            return name
    return None


def _axes_moved(node: ir.Node, old: onnx.defs.OpSchema) -> bool:
    return "axes" in old.attributes and len(node.inputs) > old.max_input
