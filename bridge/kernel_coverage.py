"""Which nodes of a model a runtime has no kernel for."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING

import onnx
import onnx_ir as ir

from optim_passes.scopes import scopes

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from bridge.kernels import Kernel

__all__ = ["NoKernel", "has_kernel_in", "nodes_without_kernel"]

_KNOWN = ("", "ai.onnx.ml", "com.microsoft")  # operators of other domains are the user's
# What ONNX Runtime deals with itself: bodies, and constants, which become initializers.
_BUILT_IN = frozenset({"Constant", "If", "Loop", "Scan"})
_FLOATS = ("float", "float16", "bfloat16", "double")
_DEEPEST = 4  # functions that are made of functions


@dataclasses.dataclass(frozen=True, slots=True)
class NoKernel:
    """A node without a kernel.

    Attributes:
        operator: Its operator, version and types: ``Attention-23 (double)``.
        place: Its name, and the module of eager code that it is from.
        has_other_types: Whether there is a kernel for other types.
    """

    operator: str
    place: str
    has_other_types: bool


def nodes_without_kernel(
    model: ir.Model,
    tables: Sequence[tuple[str, dict[str, list[Kernel]]]],
    *,
    opset: int | None = None,
) -> list[NoKernel]:
    """The nodes for which none of some providers has a kernel; calls of functions are looked into.

    Args:
        model: The model; nodes whose types are unknown get the benefit of the doubt.
        tables: The kernels of each provider.
        opset: The opset that the model would be of; its own unless given.
    """
    found = []
    for scope in scopes(model):
        for node in scope.body:
            if node.op_identifier() in model.functions or node.domain not in _KNOWN:
                continue
            version = scope.opsets.get(node.domain, 1)
            if opset is not None and not node.domain:
                version = opset
            types = _types_of(node)
            if any(_runs(node.op_type, node.domain, version, types, t, node) for t in tables):
                continue
            found.append(_described(node, version, types, tables))
    return found


def has_kernel_in(
    node: ir.Node, opset: int, dtype: ir.DataType, table: tuple[str, dict[str, list[Kernel]]]
) -> bool:
    """Whether a provider has a kernel for a node whose float32 operands are of another type.

    Args:
        node: The node.
        opset: Of the default domain.
        dtype: The other type.
        table: The provider and its kernels.
    """
    types, name = _types_of(node), dtype.name.lower()
    other = _Types(
        tuple(name if t == "float" else t for t in types.inputs),
        tuple(name if t == "float" else t for t in types.outputs),
    )
    version = opset if not node.domain else 1
    return _runs(node.op_type, node.domain, version, other, table)


def _described(
    node: ir.Node,
    version: int,
    types: _Types,
    tables: Sequence[tuple[str, dict[str, list[Kernel]]]],
) -> NoKernel:
    names = sorted({t for t in (*types.inputs, *types.outputs) if t is not None})
    since = _since(node.op_type, node.domain, version)
    domain = f"{node.domain}." if node.domain else ""
    module = node.metadata_props.get("bridge.module")
    where = f" in {module}" if module else ""
    untyped = _Types((), ())
    other = any(_runs(node.op_type, node.domain, version, untyped, t, node) for t in tables)
    return NoKernel(
        f"{domain}{node.op_type}-{since} ({', '.join(names)})",
        f"{node.name or node.op_type!r}{where}",
        other,
    )


@dataclasses.dataclass(frozen=True, slots=True)
class _Types:
    """Element types of the operands of a node, as ONNX spells them; None where unknown."""

    inputs: tuple[str | None, ...]
    outputs: tuple[str | None, ...]

    def widened(self) -> _Types:
        """With float32 in place of float16, as ONNX Runtime does on the CPU."""
        return _Types(
            tuple("float" if t == "float16" else t for t in self.inputs),
            tuple("float" if t == "float16" else t for t in self.outputs),
        )


def _types_of(node: ir.Node) -> _Types:
    return _Types(tuple(map(_type, node.inputs)), tuple(map(_type, node.outputs)))


def _type(value: ir.Value | None) -> str | None:
    if value is None or value.dtype is None or not isinstance(value.type, ir.TensorType):
        return None
    return value.dtype.name.lower()


@functools.cache
def _schema(op_type: str, domain: str, version: int) -> onnx.defs.OpSchema | None:
    try:
        return onnx.defs.get_schema(op_type, version, domain)
    except onnx.defs.SchemaError:
        return None


def _since(op_type: str, domain: str, version: int) -> int:
    schema = _schema(op_type, domain, version)
    return 1 if schema is None else schema.since_version


def _runs(
    op_type: str,
    domain: str,
    version: int,
    types: _Types,
    table: tuple[str, dict[str, list[Kernel]]],
    node: ir.Node | None = None,
    depth: int = 0,
) -> bool:
    provider, kernels = table
    if op_type in _BUILT_IN and not domain:
        return True
    since = _since(op_type, domain, version)
    rows = [k for k in kernels.get(f"{domain}:{op_type}", ()) if k.is_for(since)]
    schema = _schema(op_type, domain, version)
    tried = [types, types.widened()] if provider == "cpu" else [types]
    if any(_takes(k, t, schema) for k in rows for t in tried):
        return True
    return schema is not None and depth < _DEEPEST and _runs_as_function(
        schema, version, types, table, node, depth
    )  # fmt: skip


def _takes(kernel: Kernel, types: _Types, schema: onnx.defs.OpSchema | None) -> bool:
    """Whether a kernel is for these types."""
    if schema is None:  # ONNX does not know the operator, so which parameter is whose is not known
        known = frozenset().union(*kernel.types.values())
        return not known or all(
            t in known for t in (*types.inputs, *types.outputs) if t in _FLOATS
        )
    for given, formals in ((types.inputs, schema.inputs), (types.outputs, schema.outputs)):
        for index, name in enumerate(given):
            if name is None or not formals:
                continue
            formal = formals[min(index, len(formals) - 1)]
            allowed = kernel.types.get(formal.type_str, kernel.types.get(formal.name))
            if allowed is not None and name not in allowed:
                return False
    return True


def _runs_as_function(
    schema: onnx.defs.OpSchema,
    version: int,
    types: _Types,
    table: tuple[str, dict[str, list[Kernel]]],
    node: ir.Node | None,
    depth: int,
) -> bool:
    """Whether the operators that one is made of have kernels; ONNX Runtime puts these in its place."""
    body = _body(schema, version, types, node)
    if body is None:
        return False
    versions = {o.domain: o.version for o in body.opset_import}
    untyped = _Types((), ())
    return all(
        _runs(n.op_type, n.domain, versions.get(n.domain, 1), untyped, table, None, depth + 1)
        for n in _inner(body.node)
    )


def _body(
    schema: onnx.defs.OpSchema, version: int, types: _Types, node: ir.Node | None
) -> onnx.FunctionProto | None:
    if schema.has_function:
        versions = [v for v in schema.function_opset_versions if v <= version]
        if versions:
            data = schema.get_function_with_opset_version(max(versions))
            return _parsed(data)
    if schema.has_context_dependent_function and node is not None and None not in types.inputs:
        versions = [
            v for v in schema.context_dependent_function_opset_versions if v <= version
        ] or list(schema.context_dependent_function_opset_versions)[:1]
        kinds = [
            onnx.TypeProto(
                tensor_type=onnx.TypeProto.Tensor(elem_type=int(ir.DataType[str(t).upper()]))
            ).SerializeToString()
            for t in types.inputs
        ]
        proto = ir.to_proto(node).SerializeToString()
        data = schema.get_context_dependent_function_with_opset_version(
            max(versions), proto, kinds
        )
        return _parsed(data)
    return None


def _parsed(data: bytes) -> onnx.FunctionProto:
    function = onnx.FunctionProto()
    function.ParseFromString(data)
    return function


def _inner(nodes: Iterable[onnx.NodeProto]) -> Iterable[onnx.NodeProto]:
    for node in nodes:
        yield node
        for given in node.attribute:
            if given.type == onnx.AttributeProto.GRAPH:
                yield from _inner(given.g.node)
