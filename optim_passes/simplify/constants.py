"""Constants to where every pass looks for them: the initializers of the main graph."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from optim_passes.rewriting import Outcome, Pass
from optim_passes.scopes import Names
from optim_passes.values import constant

if TYPE_CHECKING:
    from optim_passes.scopes import Scope

__all__ = ["DeduplicateInitializersPass", "LiftConstantsPass"]

_OVERRIDABLE = 4  # the IR version since which an input with an initializer has a default
_HASHED = 1 << 20  # bytes of one chunk, so that hashing a weight copies none of it


class LiftConstantsPass(Pass):
    """``Constant`` nodes and initializers of subgraphs become initializers of the main graph.

    Functions keep their ``Constant`` nodes: they cannot have initializers. Before IR version 4
    every initializer was listed as an input too; these are no inputs any more.
    """

    def run(self, scope: Scope, outcome: Outcome) -> None:
        """Lift those of one body."""
        if scope.function is not None:
            return
        main = scope.model.graph
        if scope.outer is None and scope.model.ir_version < _OVERRIDABLE:
            listed = [v for v in main.inputs if v.is_initializer()]
            for value in listed:
                main.inputs.remove(value)
                scope.model.ir_version = _OVERRIDABLE
            outcome.rewrites += len(listed)
        names: Names | None = None
        for node in list(scope.body):
            value = node.outputs[0]
            tensor = constant(value) if node.op_type == "Constant" else None
            if tensor is None or value.is_graph_output():
                continue
            made = ir.Value(
                name=value.name,
                shape=ir.Shape(tensor.shape.numpy()),
                type=ir.TensorType(tensor.dtype),
                const_value=tensor,
            )
            made.meta.update(value.meta)
            value.replace_all_uses_with(made)
            scope.body.remove(node, safe=True)
            if made.name in main.initializers:
                names = names or Names(scope.model)
                made.name = names.fresh(f"{made.name}")
            main.initializers.add(made)
            outcome.rewrites += 1
        if scope.outer is None:
            return
        for name, value in list(scope.body.initializers.items()):
            if value.is_graph_input() or value.is_graph_output():
                continue
            del scope.body.initializers[name]
            if name in main.initializers:
                names = names or Names(scope.model)
                value.name = names.fresh(name)
            main.initializers.add(value)
            outcome.rewrites += 1


class DeduplicateInitializersPass(Pass):
    """Initializers of equal type, shape and bytes become one."""

    def run(self, scope: Scope, outcome: Outcome) -> None:
        """Look at the main graph's; the others have been lifted there."""
        if scope.body is not scope.model.graph:
            return
        by_form: dict[Any, list[ir.Value]] = {}
        for value in scope.body.initializers.values():
            tensor = constant(value)
            if tensor is None or value.is_graph_output():
                continue
            form = (tensor.dtype, tuple(tensor.shape.numpy()))
            by_form.setdefault(form, []).append(value)
        for values in by_form.values():
            if len(values) > 1:  # a form that is there once needs no hashing
                self._merge(scope, values, outcome)

    def _merge(self, scope: Scope, values: list[ir.Value], outcome: Outcome) -> None:
        kept: dict[object, ir.Value] = {}
        by_start: dict[object, list[ir.Value]] = {}
        for value in values:
            by_start.setdefault(_start(value), []).append(value)
        for alike in by_start.values():
            if len(alike) == 1:
                continue
            for value in alike:
                first = kept.setdefault(_digest(value), value)
                if first is value:
                    continue
                value.replace_all_uses_with(first)
                assert value.name is not None
                del scope.body.initializers[value.name]
                outcome.rewrites += 1


def _start(value: ir.Value) -> object:
    """Enough of the contents to tell most different weights apart without reading them whole."""
    tensor = constant(value)
    assert tensor is not None
    if tensor.dtype == ir.DataType.STRING:
        return tuple(tensor.string_data())  # type: ignore[attr-defined]
    if isinstance(tensor, ir.LazyTensor):
        return id(tensor)  # reading it would make it
    array = tensor.numpy().reshape(-1)
    return array[:: max(1, array.size // 64)].tobytes()


def _digest(value: ir.Value) -> object:
    tensor = constant(value)
    assert tensor is not None
    if tensor.dtype == ir.DataType.STRING:
        return tuple(tensor.string_data())  # type: ignore[attr-defined]
    array = tensor.numpy().reshape(-1)
    digest = hashlib.blake2b(digest_size=16)
    step = max(1, _HASHED // max(1, array.itemsize))
    for start in range(0, array.size, step):
        digest.update(array[start : start + step].tobytes())
    return digest.digest()
