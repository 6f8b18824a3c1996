"""The ONNX graph under construction: blocks, nodes, constants, names.

Operators are emitted through :class:`GraphBuilder` by calling it with an op type. Python numbers,
lists and traced scalars may stand among the inputs: the operator's schema says what dtype each of
them takes.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import onnx
import onnx_ir as ir

from exporters.tracing.inference import infer_shape, infer_shapes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from exporters.tracing.source import Source

__all__ = ["INT64_MAX", "Block", "GraphBuilder", "Operand", "static_shape"]

INT64_MAX = 2**63 - 1  # ONNX slices "to the end"
INT64_MIN = -(2**63)

_SMALL_CONSTANT = 64  # elements; constants up to this size are stored once per value

# Operators whose result dtype is an attribute, and what it is when the attribute is absent.
_DTYPE_ATTRIBUTES = {
    "Bernoulli": "dtype",
    "BitCast": "to",
    "Cast": "to",
    "EyeLike": "dtype",
    "Multinomial": "dtype",
    "QuantizeLinear": "output_dtype",
    "RandomNormal": "dtype",
    "RandomNormalLike": "dtype",
    "RandomUniform": "dtype",
    "RandomUniformLike": "dtype",
    "SequenceEmpty": "dtype",
}


class GraphScalar(Protocol):
    """A traced Python number: it can be written into the graph as a rank-0 or a [1] tensor."""

    def scalar(self) -> ir.Value: ...
    def vector(self) -> ir.Value: ...


Operand = Any  # ir.Value | GraphScalar | np.ndarray | int | float | bool | list of ints | None


@dataclasses.dataclass(frozen=True, slots=True)
class _Formal:
    type_name: str
    dtype: ir.DataType | None  # when the schema leaves no choice
    allowed: frozenset[str]
    variadic: bool
    homogeneous: bool


@dataclasses.dataclass(frozen=True, slots=True)
class _Schema:
    inputs: tuple[_Formal, ...]
    outputs: tuple[_Formal, ...]
    attributes: dict[str, Any]

    def formal(self, index: int) -> _Formal:
        return self.inputs[min(index, len(self.inputs) - 1)]


def _only_dtype(allowed: frozenset[str]) -> ir.DataType | None:
    """The one element type in ``{"tensor(int64)"}``; None where there is a choice."""
    if len(allowed) != 1:
        return None
    (name,) = allowed
    return ir.DataType[name[7:-1].upper()] if name.startswith("tensor(") else None


@functools.cache
def schema_of(op_type: str, opset: int, domain: str) -> _Schema:
    """The operator's formal inputs, outputs and attribute types.

    Raises:
        onnx.defs.SchemaError: The opset has no such operator: a bug in a lowering.
    """
    schema = onnx.defs.get_schema(op_type, opset, domain)
    allowed = {c.type_param_str: frozenset(c.allowed_type_strs) for c in schema.type_constraints}

    def formals(parameters: Sequence[Any]) -> tuple[_Formal, ...]:
        return tuple(
            _Formal(
                type_name=p.type_str,
                dtype=_only_dtype(allowed.get(p.type_str, frozenset({p.type_str}))),
                allowed=allowed.get(p.type_str, frozenset({p.type_str})),
                variadic=p.option == onnx.defs.OpSchema.FormalParameterOption.Variadic,
                homogeneous=p.is_homogeneous,
            )
            for p in parameters
        )

    return _Schema(
        inputs=formals(schema.inputs),
        outputs=formals(schema.outputs),
        attributes={name: a.type for name, a in schema.attributes.items()},
    )


class Block:
    """A graph or subgraph being filled.

    Attributes:
        kind: ``"main"``, ``"if"`` or ``"loop"``.
        memo: Values already emitted here, by what they compute (a dim of a value, a cast).
        undo: Actions that give back to records what this block changed in them.
        written: Records of storage that this block wrote to, by identity.
    """

    __slots__ = ("inputs", "kind", "memo", "nodes", "parent", "undo", "written")

    def __init__(self, kind: str, parent: Block | None) -> None:
        self.kind = kind
        self.parent = parent
        self.nodes: list[ir.Node] = []
        self.inputs: list[ir.Value] = []
        self.memo: dict[Any, ir.Value] = {}
        self.undo: list[Any] = []
        self.written: dict[int, Any] = {}

    def ancestry(self) -> Iterator[Block]:
        """This block and the blocks around it, innermost first."""
        block: Block | None = self
        while block is not None:
            yield block
            block = block.parent


def static_shape(value: ir.Value) -> tuple[int, ...] | None:
    """The shape when every dim of it is known, else None."""
    shape = value.shape
    if shape is None or any(not isinstance(d, int) for d in shape.dims):
        return None
    return tuple(int(d) for d in shape.dims)  # type: ignore[arg-type]


class GraphBuilder:
    """Emits nodes into the innermost block; ``builder.Softmax(x, axis=1)`` returns an output value.

    Args:
        opset: Version of the default domain that every node conforms to.
    """

    def __init__(self, opset: int) -> None:
        self.opset = opset
        self.main = Block("main", None)
        self.block = self.main
        self.initializers: dict[str, ir.Value] = {}
        self.names: set[str] = set()
        self._counts: dict[str, int] = {}
        self._constants: dict[Any, ir.Value] = {}
        self.position: Any = lambda: (None, "")  # () -> (Source | None, module path)
        self.same_size: Any = lambda size, x, axis: False  # what the trace knows of sizes

    # Names

    def unique_name(self, wanted: str) -> str:
        """``wanted``, or ``wanted_1`` and so on when it is taken."""
        name = wanted
        while name in self.names:
            self._counts[wanted] = count = self._counts.get(wanted, 0) + 1
            name = f"{wanted}_{count}"
        self.names.add(name)
        return name

    # Nodes

    def __getattr__(self, op_type: str) -> Any:
        if not op_type[:1].isupper():
            raise AttributeError(op_type)
        method = functools.partial(self.emit, op_type)
        self.__dict__[op_type] = method
        return method

    def emit(
        self,
        op_type: str,
        *inputs: Operand,
        outputs: int | Sequence[ir.Value] = 1,
        domain: str = "",
        block: Block | None = None,
        **attributes: Any,
    ) -> Any:
        """Append a node.

        Args:
            op_type: Operator of ``domain``.
            *inputs: Values, or Python numbers and lists, which become constants of the dtype that
                the schema wants beside the other inputs. None skips an optional input.
            outputs: How many outputs the node has, or the values themselves.
            domain: Operator domain; the schema's checks apply to the default domain only.
            block: Where to append it; the innermost block unless given.
            **attributes: Node attributes; None leaves one out.

        Returns:
            The output value, or a list of them when ``outputs`` is not 1.
        """
        schema = schema_of(op_type, self.opset, domain) if domain == "" else None
        operands = self._operands(inputs, schema)
        node_attributes = self._attributes(attributes, schema)
        source, module = self.position()
        name = self.unique_name(f"{module}/{op_type}" if module else op_type)
        count = outputs if isinstance(outputs, int) else None
        node = ir.Node(
            domain,
            op_type,
            operands,
            attributes=node_attributes,
            num_outputs=count,
            outputs=None if isinstance(outputs, int) else outputs,
            name=name,
            metadata_props=_metadata(source, module),
        )
        home = block or self.block
        home.nodes.append(node)
        for index, value in enumerate(node.outputs):
            value.name = name if index == 0 else self.unique_name(f"{name}:{index}")
            value.meta["block"] = home
        if schema is not None:
            self._annotate(node, schema, operands, attributes)
        return node.outputs[0] if count == 1 else list(node.outputs)

    def _operands(
        self, inputs: Sequence[Operand], schema: _Schema | None
    ) -> list[ir.Value | None]:
        bound: dict[str, ir.DataType] = {}
        if schema is not None:
            for index, x in enumerate(inputs):
                if isinstance(x, ir.Value) and x.dtype is not None:
                    formal = schema.formal(index)
                    if formal.homogeneous:
                        bound.setdefault(formal.type_name, x.dtype)
        operands: list[ir.Value | None] = []
        for index, x in enumerate(inputs):
            if x is None or isinstance(x, ir.Value):
                operands.append(x)
                continue
            dtype = None
            if schema is not None:
                formal = schema.formal(index)
                dtype = formal.dtype or bound.get(formal.type_name) or _default_dtype(x, formal)
            operands.append(self.operand(x, dtype))
        while operands and operands[-1] is None:
            operands.pop()
        return operands

    def _attributes(self, given: dict[str, Any], schema: _Schema | None) -> list[ir.Attr]:
        attributes: list[ir.Attr] = []
        for name, x in given.items():
            if x is None:
                continue
            if isinstance(x, ir.Attr):
                attributes.append(x)
            elif isinstance(x, ir.Graph):
                attributes.append(ir.AttrGraph(name, x))
            elif isinstance(x, str):
                attributes.append(ir.AttrString(name, x))
            elif isinstance(x, np.ndarray):
                attributes.append(ir.AttrTensor(name, ir.tensor(x)))
            elif isinstance(x, list | tuple):
                floats = (
                    schema is not None and schema.attributes.get(name) == _AttributeType.FLOATS
                )
                if floats or any(isinstance(i, float) for i in x):
                    attributes.append(ir.AttrFloat32s(name, [float(i) for i in x]))
                elif x and isinstance(x[0], str):
                    attributes.append(ir.AttrStrings(name, list(x)))
                else:
                    attributes.append(ir.AttrInt64s(name, [int(i) for i in x]))
            elif isinstance(x, float) or (
                schema is not None and schema.attributes.get(name) == _AttributeType.FLOAT
            ):
                attributes.append(ir.AttrFloat32(name, float(x)))
            else:
                attributes.append(ir.AttrInt64(name, int(x)))
        return attributes

    def _annotate(
        self,
        node: ir.Node,
        schema: _Schema,
        operands: Sequence[ir.Value | None],
        attributes: dict[str, Any],
    ) -> None:
        """Set each output's dtype from the schema, and its shape where that takes no effort."""
        op_type = node.op_type
        for index, value in enumerate(node.outputs):
            if value.type is not None:
                continue
            formal = schema.outputs[min(index, len(schema.outputs) - 1)]
            dtype = formal.dtype
            if dtype is None and op_type in _DTYPE_ATTRIBUTES:
                given = attributes.get(_DTYPE_ATTRIBUTES[op_type])
                dtype = None if given is None else ir.DataType(int(given))
            if dtype is None and op_type == "ConstantOfShape":
                given = attributes.get("value")
                dtype = ir.DataType.FLOAT if given is None else ir.DataType.from_numpy(given.dtype)
            if dtype is None:
                for position, operand in enumerate(operands):
                    if operand is not None and operand.dtype is not None:
                        source = schema.formal(position)
                        if source.type_name == formal.type_name and source.homogeneous:
                            dtype = operand.dtype
                            break
            if dtype is not None:
                value.type = ir.TensorType(dtype)
        if len(node.outputs) == 1:
            shape = infer_shape(op_type, operands, attributes)
            if shape is not None:
                node.outputs[0].shape = ir.Shape(shape)
        else:
            shapes = infer_shapes(op_type, operands, attributes, len(node.outputs))
            for value, dims in zip(node.outputs, shapes, strict=True):
                if dims is not None:
                    value.shape = ir.Shape(dims)

    # Constants and scalars

    def operand(self, x: Operand, dtype: ir.DataType | None = None) -> ir.Value:
        """``x`` as a graph value, of ``dtype`` if that is given.

        Args:
            x: A value, a traced scalar, an array, a Python number, or a list of ints that may hold
                traced ints (it becomes a rank-1 tensor).
            dtype: What to cast numbers to. Arrays and values keep their own.
        """
        if isinstance(x, ir.Value):
            return x
        if hasattr(x, "scalar"):
            value = x.scalar()
            return value if dtype is None else self.cast(value, dtype)
        if isinstance(x, list | tuple):
            if any(hasattr(i, "vector") or isinstance(i, ir.Value) for i in x):
                return self.concat_dims(x)
            array = np.asarray(x, dtype=np.int64 if dtype is None else dtype.numpy())
            return self.constant(array)
        if isinstance(x, np.generic) and dtype is not None:
            x = x.item()  # beside a tensor a number of NumPy's is a number like Python's
        if isinstance(x, np.ndarray | np.generic):
            return self.constant(np.asarray(x))
        if isinstance(x, bool | int | float | complex):
            return self.constant(_number(x, dtype))
        raise TypeError(f"{type(x).__name__} cannot be an operand")

    def constant(self, array: np.ndarray[Any, Any]) -> ir.Value:
        """A constant of the graph; small equal ones are stored once."""
        key = None
        if array.size <= _SMALL_CONSTANT:
            key = (array.dtype.str, array.dtype.name, array.shape, array.tobytes())
            if key in self._constants:
                return self._constants[key]
        value = self.initializer(ir.tensor(array), "constant")
        if key is not None:
            self._constants[key] = value
        return value

    def initializer(self, tensor: ir.TensorProtocol, name: str) -> ir.Value:
        """Register ``tensor`` under ``name``, or under a name near it when that is taken."""
        name = self.unique_name(name)
        tensor.name = name
        value = ir.Value(
            name=name,
            shape=tensor.shape,  # type: ignore[arg-type]
            type=ir.TensorType(tensor.dtype),
            const_value=tensor,
        )
        value.meta["block"] = self.main
        self.initializers[name] = value
        return value

    def cast(self, x: ir.Value, dtype: ir.DataType) -> ir.Value:
        """``x`` as ``dtype``; nothing is emitted when it is that already."""
        if x.dtype == dtype:
            return x
        constant = x.const_value
        if constant is not None and constant.size <= _SMALL_CONSTANT:
            return self.constant(constant.numpy().astype(dtype.numpy()))
        return self.once(
            ("cast", x, dtype), lambda block: self.emit("Cast", x, to=dtype, block=block), x
        )

    def once(self, key: Any, make: Any, *operands: ir.Value) -> ir.Value:
        """``make(block)``, or what it made before where that is still in scope.

        The node is put into the outermost block in which all ``operands`` exist and that the
        innermost block reaches through loops alone, so that loop-invariant values stay outside;
        what ``make`` emits goes there.
        """
        for block in self.block.ancestry():
            if key in block.memo:
                return block.memo[key]
        block = self.block
        needed = {operand.meta.get("block", self.main) for operand in operands}
        while block.parent is not None and block not in needed and block.kind == "loop":
            block = block.parent
        before, self.block = self.block, block
        try:
            value: ir.Value = make(block)
        finally:
            self.block = before
        block.memo[key] = value
        return value

    def dim(self, x: ir.Value, axis: int) -> int | ir.Value:
        """One size of ``x``: an int when it is static, else an INT64 value of shape [1]."""
        if x.shape is not None:
            size = x.shape.dims[axis]
            if isinstance(size, int):
                return size
            axis %= len(x.shape.dims)
        return self.dim_vector(x, axis)

    def dim_vector(self, x: ir.Value, axis: int) -> ir.Value:
        """One size of ``x`` at run time, as an INT64 value of shape [1]."""
        end = None if axis == -1 else axis + 1

        def make(block: Block) -> ir.Value:
            value: ir.Value = self.emit("Shape", x, start=axis, end=end, block=block)
            value.shape = ir.Shape([1])
            return value

        return self.once(("dim", x, axis), make, x)

    def shape(self, x: ir.Value) -> ir.Value:
        """The whole shape of ``x``; a constant when it is static."""
        static = static_shape(x)
        if static is not None:
            return self.constant(np.asarray(static, np.int64))
        return self.once(("shape", x), lambda block: self.emit("Shape", x, block=block), x)

    def concat_dims(self, sizes: Sequence[Any]) -> ir.Value:
        """A rank-1 INT64 tensor of ints, traced ints and values of shape [1] or []."""
        parts: list[ir.Value] = []
        run: list[int] = []

        def flush() -> None:
            if run:
                parts.append(self.constant(np.asarray(run, np.int64)))
                run.clear()

        for size in sizes:
            if hasattr(size, "vector"):
                flush()
                parts.append(size.vector())
            elif isinstance(size, ir.Value):
                flush()
                scalar = size.shape is not None and len(size.shape.dims) == 0
                parts.append(self.emit("Unsqueeze", size, [0]) if scalar else size)
            else:
                run.append(int(size))
        flush()
        if not parts:
            return self.constant(np.zeros([0], np.int64))
        if len(parts) == 1:
            return parts[0]
        value: ir.Value = self.emit("Concat", *parts, axis=0)
        value.shape = ir.Shape([len(sizes)])
        return value

    def reshape(
        self, x: ir.Value, sizes: Sequence[Any], *, copied: Sequence[bool] = ()
    ) -> ir.Value:
        """``Reshape`` with 0 ("as in ``x``") and -1 ("the rest") wherever they say the same.

        Args:
            x: The value to reshape.
            sizes: Ints (at most one is -1), traced ints or values of shape [1].
            copied: For each leading axis, whether ``sizes`` repeats the size of ``x`` there.
        """
        target: list[Any] = [
            0 if axis < len(copied) and copied[axis] and not isinstance_static(size) else size
            for axis, size in enumerate(sizes)
        ]
        unknown = [i for i, size in enumerate(target) if not isinstance_static(size)]
        nonzero = all(size != 0 for size in sizes if isinstance_static(size))
        # Beside a 0 that turns out to copy an empty dim, -1 would be ambiguous at run time.
        if len(unknown) == 1 and not any(isinstance_static(s) and s in (0, -1) for s in target):
            target[unknown[0]] = -1
            unknown = []
        exact = not any(isinstance_static(s) and s == -1 for s in target)
        # A size that is computed may be 0: then 0 must mean zero, as where an empty tensor is made.
        # (ORT 1.32 would also make -1 of a computed size beside a 0 that copies.)
        allow_zero = exact and (bool(unknown) or not nonzero)
        if allow_zero:
            target = list(sizes)
        return self.emit(
            "Reshape",
            x,
            [*target] if target else np.zeros([0], np.int64),
            allowzero=1 if allow_zero else None,
        )


def isinstance_static(size: Any) -> bool:
    """Whether ``size`` is a number that the graph can hold as a constant."""
    return not isinstance(size, ir.Value) and not hasattr(size, "vector")


_AttributeType = onnx.defs.OpSchema.AttrType


@functools.lru_cache(maxsize=4096)
def _source_text(source: Source) -> str:
    return str(source)


def _metadata(source: Source | None, module: str) -> dict[str, str]:
    metadata = {}
    if module:
        metadata["bridge.module"] = module
    if source is not None:
        metadata["bridge.source"] = _source_text(source)
    return metadata


def _default_dtype(x: Operand, formal: _Formal) -> ir.DataType | None:
    """The dtype of a number beside which stands no value that decides it."""
    if isinstance(x, bool):
        wanted = ir.DataType.BOOL
    elif isinstance(x, float):
        wanted = ir.DataType.FLOAT
    else:
        wanted = ir.DataType.INT64
    if hasattr(x, "scalar") or isinstance(x, np.ndarray | np.generic):
        return None
    if f"tensor({wanted.name.lower()})" in formal.allowed:
        return wanted
    return ir.DataType.FLOAT if "tensor(float)" in formal.allowed else wanted


def _number(x: complex, dtype: ir.DataType | None) -> np.ndarray[Any, Any]:
    if dtype is None:
        dtype = (
            ir.DataType.BOOL
            if isinstance(x, bool)
            else ir.DataType.INT64
            if isinstance(x, int)
            else ir.DataType.FLOAT
        )
    numpy_dtype = dtype.numpy()
    if isinstance(x, float) and numpy_dtype.kind in "iu":
        if math.isinf(x):  # masks are filled with -inf; the nearest integer is meant
            info = np.iinfo(numpy_dtype)
            return np.asarray(info.max if x > 0 else info.min, numpy_dtype)
        x = int(x)
    if isinstance(x, int) and not isinstance(x, bool) and numpy_dtype.kind in "iu":
        return np.asarray(x & ((1 << (8 * numpy_dtype.itemsize)) - 1), np.uint64).astype(
            numpy_dtype
        )
    return np.asarray(x).astype(numpy_dtype)
