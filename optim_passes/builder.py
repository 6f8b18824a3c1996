"""Makes the nodes that a pass puts in place of others."""

from __future__ import annotations

import contextlib
import functools
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir

from optim_passes.values import constant, is_known

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from optim_passes.scopes import Names, Scope

__all__ = ["MICROSOFT", "Builder", "infer_types", "refine_shape"]

MICROSOFT = "com.microsoft"  # ONNX Runtime's own operators


class Builder:
    """Collects new nodes; ``op.Softmax(x, axis=1)`` returns its output value.

    Operands are values, None for an input left out, arrays, or lists of ints (a rank-1 int64).

    Args:
        scope: The body that the nodes are for.
        names: Makes their names.
        origins: The nodes that they replace, the last one first: where those came from in the
            user's code, these come from too.
    """

    def __init__(self, scope: Scope, names: Names, origins: Sequence[ir.Node]) -> None:
        self.scope = scope
        self.opset = scope.opset
        self.nodes: list[ir.Node] = []
        self.initializers: list[ir.Value] = []
        self._names = names
        self._origins = origins
        self._base = origins[0].name or origins[0].op_type
        self._metadata = merged_metadata(origins)

    def within(self, scope: Scope) -> Builder:
        """A builder for another body."""
        return Builder(scope, self._names, self._origins)

    def __getattr__(self, op_type: str) -> Any:
        if not op_type[:1].isupper():
            raise AttributeError(op_type)
        return functools.partial(self.node, op_type)

    def node(
        self,
        op_type: str,
        *inputs: Any,
        domain: str = "",
        outputs: int = 1,
        like: ir.Value | None = None,
        attributes_of: ir.Node | None = None,
        **attributes: Any,
    ) -> Any:
        """Add a node.

        Args:
            op_type: Operator of ``domain``.
            *inputs: Its operands.
            domain: Operator domain.
            outputs: How many outputs it has.
            like: A value with the first output's dtype and shape; without it, they are inferred
                where the operator has a schema.
            attributes_of: A node whose attributes it has too, where they are not given here.
            **attributes: Node attributes; None leaves one out.

        Returns:
            The output value, or the list of them when ``outputs`` is not 1.
        """
        operands = [self._operand(x) for x in inputs]
        while operands and operands[-1] is None:
            operands.pop()
        name = self._names.fresh(f"{self._base}/{op_type}")
        node = ir.Node(
            domain,
            op_type,
            operands,
            attributes=ir.convenience.convert_attributes(attributes),
            num_outputs=outputs,
            name=name,
            metadata_props=dict(self._metadata),
        )
        for key, given in attributes_of.attributes.items() if attributes_of is not None else ():
            if key not in attributes:
                node.attributes[key] = given
        for index, value in enumerate(node.outputs):
            value.name = name if index == 0 else self._names.fresh(f"{name}:{index}")
        if like is not None:
            node.outputs[0].type, node.outputs[0].shape = like.type, like.shape
        elif not domain:
            infer_types(node, self.opset)
        self.nodes.append(node)
        return node.outputs[0] if outputs == 1 else list(node.outputs)

    @contextlib.contextmanager
    def discarding(self) -> Iterator[None]:
        """Forget the nodes made in this block if it fails: they would count as users."""
        try:
            yield
        except BaseException:
            self.discard()
            raise

    def discard(self) -> None:
        """Forget all nodes made so far."""
        for node in self.nodes:
            for index in range(len(node.inputs)):
                node.replace_input_with(index, None)
        self.nodes.clear()
        self.initializers.clear()

    def ms(self, op_type: str, *inputs: Any, **options: Any) -> Any:
        """Add a node of ONNX Runtime's own domain."""
        return self.node(op_type, *inputs, domain=MICROSOFT, **options)

    def formal(self, name: str, dtype: ir.DataType, rank: int) -> ir.Value:
        """An input of a body that is being made."""
        type_ = ir.TensorType(dtype)
        return ir.Value(
            name=self._names.fresh(f"{self._base}/{name}"),
            type=type_,
            shape=ir.Shape([None] * rank),
        )

    def constant(self, x: Any, name: str | None = None) -> ir.Value:
        """A constant: an initializer, or inside a function, which cannot have one, a node."""
        known = not isinstance(x, np.ndarray | np.generic) and isinstance(x, ir.TensorProtocol)
        tensor = x if known else ir.tensor(np.asarray(x))
        if self.scope.function is not None:
            value: ir.Value = self.node("Constant", value=tensor)
        else:
            value = ir.Value(name=self._names.fresh(name or f"{self._base}/constant"))
            self.initializers.append(value)
        value.const_value = tensor
        value.type = ir.TensorType(tensor.dtype)
        value.shape = ir.Shape(tensor.shape.numpy())
        return value

    def number(self, x: complex, like: ir.Value) -> ir.Value:
        """A rank-0 constant of the same dtype as ``like``."""
        assert like.dtype is not None
        return self.constant(np.asarray(x, like.dtype.numpy()))

    def _operand(self, x: Any) -> ir.Value | None:
        if x is None or isinstance(x, ir.Value):
            return x
        if isinstance(x, list | tuple):
            return self.constant(np.asarray(x, np.int64))
        return self.constant(x)


def merged_metadata(origins: Sequence[ir.Node]) -> dict[str, str]:
    """The metadata of the first node, filled up from the others; all modules that took part."""
    merged: dict[str, str] = {}
    for node in origins:
        for key, text in node.metadata_props.items():
            merged.setdefault(key, text)
    modules = [n.metadata_props.get("bridge.fused", "").split(", ") for n in origins]
    modules += [[n.metadata_props.get("bridge.module", "")] for n in origins]
    distinct = dict.fromkeys(m for names in modules for m in names if m)
    if len(distinct) > 1:
        merged["bridge.fused"] = ", ".join(distinct)
    return merged


@functools.cache
def _schema(op_type: str, opset: int) -> onnx.defs.OpSchema | None:
    try:
        return onnx.defs.get_schema(op_type, opset, "")
    except onnx.defs.SchemaError:
        return None


def infer_types(node: ir.Node, opset: int) -> None:
    """Fill in the dtypes and shapes of a node's outputs that follow from its inputs."""
    schema = _schema(node.op_type, opset) if not node.domain else None
    operands = [v for v in node.inputs if v is not None]
    if schema is None or any(v.type is None or v.dtype is None for v in operands):
        return
    known = {v.name: constant(v) for v in operands}
    try:
        inferred = onnx.shape_inference.infer_node_outputs(
            schema,
            ir.serde.serialize_node(node),  # to_proto() looks for what it was given
            {v.name: _type_proto(v) for v in operands},
            {
                n: ir.serde.serialize_tensor(t)
                for n, t in known.items()
                if t is not None and t.size <= 64
            },
            opset_imports=[onnx.OperatorSetIdProto(domain="", version=opset)],
            ir_version=10,
        )
    except (
        onnx.shape_inference.InferenceError,
        onnx.checker.ValidationError,
        ValueError,
        RuntimeError,
    ):
        return  # the node is as good without
    for value in node.outputs:
        if value.name in inferred:
            found = ir.from_proto(onnx.ValueInfoProto(name=value.name, type=inferred[value.name]))
            if value.type is None:
                value.type = found.type
            # A loop may put other sizes into a sequence than it starts with, which ONNX does not see.
            if found.shape is not None and not isinstance(found.type, ir.SequenceType):
                refine_shape(value, found.shape.dims)


def refine_shape(value: ir.Value, dims: Sequence[int | ir.SymbolicDim | str | None]) -> bool:
    """Fill in what is known of a value's dims; say whether that was new."""
    if value.shape is None:
        value.shape = ir.Shape(dims)
        return True
    if value.is_graph_input() or value.is_graph_output() or len(value.shape.dims) != len(dims):
        return False  # what the model says of its interface is the user's
    merged: list[int | ir.SymbolicDim | str | None] = list(value.shape.dims)
    for axis, (old, new) in enumerate(zip(value.shape.dims, dims, strict=True)):
        name = new.value if isinstance(new, ir.SymbolicDim) else new
        unnamed = not isinstance(old, int) and old.value is None
        if name is not None and (unnamed or (not is_known(old) and is_known(_as_dim(new)))):
            merged[axis] = new
    if merged == list(value.shape.dims):
        return False
    value.shape = ir.Shape(merged)
    return True


def _as_dim(dim: int | ir.SymbolicDim | str | None) -> int | ir.SymbolicDim:
    return dim if isinstance(dim, int | ir.SymbolicDim) else ir.SymbolicDim(dim)


def _type_proto(value: ir.Value) -> onnx.TypeProto:
    return ir.serde.serialize_value(value).type
