"""Python numbers that know where they came from.

A traced number is a subclass of ``int`` or ``float``, so that argument parsers, ``isinstance`` and
``torch.Size`` take it for one. Its value is the first active world's; arithmetic on it is recorded
in the graph (INT64, DOUBLE, BOOL) and done once per world. When Python needs the bare value, to
branch or to count, the trace is asked. After the trace it is a plain number.
"""

from __future__ import annotations

import math
import operator
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import onnx_ir as ir

if TYPE_CHECKING:
    from collections.abc import Callable

    from exporters.tracing.graph import GraphBuilder
    from exporters.tracing.trace import Trace

__all__ = ["ScalarRecord", "TracedBool", "TracedFloat", "TracedInt", "TracedScalar", "plain"]

_DTYPES = {int: ir.DataType.INT64, float: ir.DataType.DOUBLE, bool: ir.DataType.BOOL}


class ScalarRecord:
    """What the tracer knows of a traced number.

    Attributes:
        worlds: The number in each world.
        data: Whether it depends on input values, not only on input sizes.
        origin: ``(value, axis)`` if it is a size of a graph value.
        base: The number that this one is a constant more than, and how much more.
    """

    __slots__ = ("_scalar", "_vector", "base", "data", "nonnegative", "origin", "trace", "worlds")

    def __init__(
        self,
        trace: Trace,
        worlds: dict[int, Any],
        *,
        data: bool,
        scalar: ir.Value | None = None,
        vector: ir.Value | None = None,
        origin: tuple[ir.Value, int] | None = None,
        nonnegative: bool = False,
    ) -> None:
        self.trace = trace
        self.worlds = worlds
        self.data = data
        self.origin = origin
        self.nonnegative = nonnegative
        self.base: tuple[ScalarRecord, int] | None = None
        self._scalar = scalar
        self._vector = vector

    def scalar(self) -> ir.Value:
        """The graph value of rank 0."""
        if self._scalar is None:
            build, vector = self.trace.builder, self.vector()

            def make(block: Any) -> ir.Value:
                value: ir.Value = build.emit("Squeeze", vector, [0], block=block)
                return value

            return build.once(("squeeze", vector), make, vector)
        return self._scalar

    def vector(self) -> ir.Value:
        """The graph value of shape [1]."""
        if self._vector is not None:
            return self._vector
        build = self.trace.builder
        if self._scalar is not None:
            scalar = self._scalar

            def make(block: Any) -> ir.Value:
                value: ir.Value = build.emit("Unsqueeze", scalar, [0], block=block)
                return value

            return build.once(("unsqueeze", scalar), make, scalar)
        assert self.origin is not None, "a traced number without a value"
        return build.dim_vector(*self.origin)

    @property
    def prefers_vector(self) -> bool:
        """Whether shape [1] costs no node and rank 0 does."""
        return self._scalar is None


def plain(x: Any) -> Any:
    """The bare Python number in ``x``, without asking anyone; anything else as it is."""
    if isinstance(x, TracedBool):
        return int.__index__(x) != 0
    if isinstance(x, TracedInt):
        return int.__index__(x)
    if isinstance(x, TracedFloat):
        return float.__float__(x)
    return x


class TracedScalar:
    """What the three kinds of traced number have in common."""

    __slots__ = ()
    __array_priority__ = -1.0  # above NumPy's numbers, which ask here then, and below its arrays
    kind: ClassVar[type]
    record: ScalarRecord

    def scalar(self) -> ir.Value:
        """The number as a rank-0 value."""
        return self.record.scalar()

    def vector(self) -> ir.Value:
        """The number as a value of shape [1]."""
        return self.record.vector()

    def __bool__(self) -> bool:
        record = self.record
        if not record.trace.live:
            return bool(plain(self))
        answers = {w: bool(x) for w, x in record.worlds.items()}
        return bool(record.trace.decide(answers, data=record.data, asked="the truth of"))

    def __hash__(self) -> int:
        record = self.record
        trace = record.trace
        if record.data and trace.live and trace.recording:  # a set or dict asks
            hint = (
                "use torch.unique, a list, or a tensor indexed by the number, in place of a set, a dict "
                "or a cache"
            )
            asked = "the hash of a number in"
            return hash(trace.decide(record.worlds, data=True, asked=asked, hint=hint))
        return hash(plain(self))

    def __int__(self) -> int:
        return int(_settle(self, int))

    def __float__(self) -> float:
        return float(_settle(self, float))

    def __reduce__(self) -> Any:
        return type(plain(self)), (plain(self),)

    def __copy__(self) -> Any:
        return self

    def __deepcopy__(self, memo: Any) -> Any:
        return self

    def __repr__(self) -> str:
        return repr(plain(self))

    def __str__(self) -> str:
        return format(self, "")

    def __format__(self, spec: str) -> str:
        trace = self.record.trace
        if not (self.record.data and trace.live and trace.recording):
            return format(plain(self), spec)
        from exporters.tracing.texts import text_of  # it knows of traces, which know of numbers

        trace.number_taken()
        return text_of(trace, self, spec)

    # What Python's own methods would take for the example's number.

    @property
    def real(self) -> Any:
        """The number itself."""
        return self

    numerator = real

    @property
    def imag(self) -> Any:
        """Nothing."""
        return self.kind(0)

    def conjugate(self) -> Any:
        """The number itself."""
        return self

    def as_integer_ratio(self) -> Any:
        """Asks every world."""
        return _asked(self, "as_integer_ratio")

    def bit_length(self) -> Any:
        """Asks every world."""
        return _asked(self, "bit_length")

    def bit_count(self) -> Any:
        """Asks every world."""
        return _asked(self, "bit_count")

    def to_bytes(self, *args: Any, **kwargs: Any) -> Any:
        """Asks every world."""
        return _asked(self, "to_bytes", *args, **kwargs)

    def hex(self) -> Any:
        """Asks every world."""
        return _asked(self, "hex")


def _asked(x: TracedScalar, method: str, *args: Any, **kwargs: Any) -> Any:
    """What a method answers in every world."""
    record = x.record
    if not record.trace.live:
        return getattr(plain(x), method)(*args, **kwargs)
    answers = {w: getattr(v, method)(*args, **kwargs) for w, v in record.worlds.items()}
    hint = "compute it with torch functions or Python arithmetic"
    return record.trace.decide(answers, data=record.data, asked=f"{method}() of", hint=hint)


def _settle(x: TracedScalar, kind: Callable[[Any], Any]) -> Any:
    record = x.record
    if not record.trace.live:
        return kind(plain(x))
    answers = {w: kind(v) for w, v in record.worlds.items()}
    return record.trace.decide(answers, data=record.data, asked=f"{kind.__name__}() of")


class TracedInt(TracedScalar, int):
    """An ``int`` of the graph: INT64, one value per world."""

    kind = int
    record: ScalarRecord

    def __new__(cls, record: ScalarRecord) -> TracedInt:  # noqa: D102 - see the class
        self = int.__new__(cls, next(iter(record.worlds.values())))
        self.record = record
        return self

    __hash__ = TracedScalar.__hash__

    def __index__(self) -> int:
        return int(_settle(self, int))

    def __round__(self, ndigits: Any = None) -> Any:
        return self

    def __floor__(self) -> Any:
        return self

    __ceil__ = __trunc__ = __floor__

    def is_integer(self) -> bool:
        """True, as of every ``int``."""
        return True


class TracedBool(TracedScalar, int):
    """A truth value of the graph: BOOL, one value per world. ``bool`` itself cannot be subclassed."""

    kind = bool
    record: ScalarRecord

    def __new__(cls, record: ScalarRecord) -> TracedBool:  # noqa: D102 - see the class
        self = int.__new__(cls, next(iter(record.worlds.values())))
        self.record = record
        return self

    __hash__ = TracedScalar.__hash__

    def __index__(self) -> int:
        return int(_settle(self, int))


class TracedFloat(TracedScalar, float):
    """A ``float`` of the graph: DOUBLE, one value per world."""

    kind = float
    record: ScalarRecord

    def __new__(cls, record: ScalarRecord) -> TracedFloat:  # noqa: D102 - see the class
        self = float.__new__(cls, next(iter(record.worlds.values())))
        self.record = record
        return self

    __hash__ = TracedScalar.__hash__

    def __round__(self, ndigits: Any = None) -> Any:
        if ndigits is not None:
            return self.record.trace.arithmetic("round_to", self, ndigits)
        return self.record.trace.arithmetic("round", self)

    def is_integer(self) -> Any:
        """Whether nothing is behind the point, as a traced truth value."""
        trace = self.record.trace
        return trace.arithmetic("eq", trace.arithmetic("mod", self, 1.0), 0.0)

    def __floor__(self) -> Any:
        return self.record.trace.arithmetic("floor", self)

    def __ceil__(self) -> Any:
        return self.record.trace.arithmetic("ceil", self)

    def __trunc__(self) -> Any:
        return self.record.trace.arithmetic("trunc", self)


# --- arithmetic: name -> what Python computes, and what the graph computes ------------------------

Emit = Any  # (builder, values, kinds, facts) -> value


def _emit_floordiv(op: GraphBuilder, a: ir.Value, b: ir.Value, *, nonnegative: bool) -> ir.Value:
    if a.dtype == ir.DataType.DOUBLE:  # floor(a / b) would be 10 for 1.0 // 0.1, Python says 9
        return op.Round(op.Div(op.Sub(a, _emit_mod(op, a, b)), b))
    if nonnegative:  # ONNX truncates, Python floors: the same here
        return op.Div(a, b)
    return op.Div(op.Sub(a, op.Mod(a, b)), b)


def _emit_mod(op: GraphBuilder, a: ir.Value, b: ir.Value) -> ir.Value:
    if a.dtype == ir.DataType.DOUBLE:  # fmod has the sign of a, Python's % that of b
        rest = op.Mod(a, b, fmod=1)
        return op.Where(op.Less(op.Mul(rest, b), np.asarray(0.0)), op.Add(rest, b), rest)
    return op.Mod(a, b)


def _round_to(x: float, ndigits: int) -> float:
    return round(x, ndigits)


_BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "truediv": operator.truediv,
    "floordiv": operator.floordiv,
    "mod": operator.mod,
    "pow": operator.pow,
    "lshift": operator.lshift,
    "rshift": operator.rshift,
    "and": operator.and_,
    "or": operator.or_,
    "xor": operator.xor,
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
}
# What cannot fail, and so may be computed where it is not needed.
TOTAL = frozenset({"add", "sub", "mul", "eq", "ne", "lt", "le", "gt", "ge", "neg", "abs", "not",
                   "int", "float", "bool", "min", "max"})  # fmt: skip
KEEP_SIGN = frozenset({"add", "mul", "floordiv", "mod", "abs", "pow", "max", "min"})
_COMPARISONS = {"eq", "ne", "lt", "le", "gt", "ge"}
_UNARY: dict[str, Callable[[Any], Any]] = {
    "neg": operator.neg,
    "pos": operator.pos,
    "abs": operator.abs,
    "invert": operator.invert,
    "not": operator.not_,
    "int": int,
    "float": float,
    "bool": bool,
    "round": round,
    "floor": math.floor,
    "ceil": math.ceil,
    "trunc": math.trunc,
    "sqrt": math.sqrt,
    "exp": math.exp,
    "log": math.log,
    "log2": math.log2,
    "log10": math.log10,
    "sin": math.sin,
    "cos": math.cos,
    "tan": math.tan,
    "tanh": math.tanh,
    "erf": math.erf,
    "isnan": math.isnan,
    "isinf": math.isinf,
    "isfinite": math.isfinite,
}
PYTHON: dict[str, Callable[..., Any]] = {
    **_BINARY,
    **_UNARY,
    "round_to": _round_to,
    "min": min,
    "max": max,
}
_FLOAT_UNARY = {
    "sqrt": "Sqrt",
    "exp": "Exp",
    "log": "Log",
    "sin": "Sin",
    "tan": "Tan",
    "tanh": "Tanh",
    "erf": "Erf",
}
_SIMPLE = {
    "add": "Add",
    "sub": "Sub",
    "mul": "Mul",
    "truediv": "Div",
    "pow": "Pow",
    "eq": "Equal",
    "lt": "Less",
    "le": "LessOrEqual",
    "gt": "Greater",
    "ge": "GreaterOrEqual",
    "min": "Min",
    "max": "Max",
}
_BITWISE = {"and": ("And", "BitwiseAnd"), "or": ("Or", "BitwiseOr"), "xor": ("Xor", "BitwiseXor")}


def emit(
    op: GraphBuilder, name: str, operands: list[ir.Value], result: type, *, nonnegative: bool
) -> ir.Value:
    """The nodes for one operation on scalars that already have the dtype it computes in."""
    first = operands[0]
    if name in _SIMPLE:
        return op.emit(_SIMPLE[name], *operands)
    if name == "ne":
        return op.Not(op.Equal(*operands))
    if name == "floordiv":
        return _emit_floordiv(op, *operands, nonnegative=nonnegative)
    if name == "mod":
        return _emit_mod(op, *operands)
    if name == "lshift":
        return op.Mul(first, op.Pow(op.constant(np.asarray(2, np.int64)), operands[1]))
    if name == "rshift":
        power = op.Pow(op.constant(np.asarray(2, np.int64)), operands[1])
        return _emit_floordiv(op, first, power, nonnegative=nonnegative)
    if name in _BITWISE:
        return op.emit(_BITWISE[name][result is not bool], *operands)
    if name == "cos":  # ORT 1.24's CPU provider has no float64 Cos kernel
        return op.Sin(op.Add(first, math.pi / 2))
    if name in _FLOAT_UNARY:
        return op.emit(_FLOAT_UNARY[name], first)
    if name in ("log2", "log10"):
        base = math.log(2.0 if name == "log2" else 10.0)
        return op.Div(op.Log(first), np.asarray(base))
    if name in ("floor", "ceil", "round"):
        return op.cast(op.emit(name.capitalize(), first), ir.DataType.INT64)
    if name in ("trunc", "int"):  # Cast truncates
        return op.cast(first, ir.DataType.INT64)
    if name == "round_to":
        scale = op.Pow(op.constant(np.asarray(10.0)), op.cast(operands[1], ir.DataType.DOUBLE))
        return op.Div(op.Round(op.Mul(first, scale)), scale)
    if name == "bool":
        return op.cast(first, ir.DataType.BOOL)
    if name == "float":
        return op.cast(first, ir.DataType.DOUBLE)
    if name == "not":
        return op.Not(op.cast(first, ir.DataType.BOOL))
    if name == "invert":
        return op.BitwiseNot(first)
    if name == "isnan":
        return op.IsNaN(first)
    if name == "isinf":
        return op.IsInf(first)
    if name == "isfinite":
        return op.Not(op.Or(op.IsNaN(first), op.IsInf(first)))
    return op.emit({"neg": "Neg", "abs": "Abs", "pos": "Identity"}[name], first)


def working_dtype(name: str, kinds: list[type], result: type) -> ir.DataType | None:
    """The dtype that an operation computes in; None leaves each operand its own."""
    if name in ("int", "bool", "float", "not", "round_to"):
        return None
    if name in _COMPARISONS or name in ("min", "max"):
        return _DTYPES[float if float in kinds else int]
    if name in (*_FLOAT_UNARY, "cos") or name in (
        "truediv",
        "log2",
        "log10",
        "isnan",
        "isinf",
        "isfinite",
        "floor",
        "ceil",
        "round",
        "trunc",
    ):
        return ir.DataType.DOUBLE
    return _DTYPES[result]


def _method(name: str, *, reflected: bool = False) -> Callable[[Any, Any], Any]:
    def method(self: Any, other: Any) -> Any:
        if isinstance(other, np.number | np.bool_):
            other = other.item()  # np.lcm(4, 6)
        if not isinstance(other, int | float):
            if name == "mul" and isinstance(other, list | tuple | str | bytes):
                return self.record.trace.repeat(other, self)
            return NotImplemented
        operands = (other, self) if reflected else (self, other)
        if not self.record.trace.live:
            return PYTHON[name](*map(plain, operands))
        return self.record.trace.arithmetic(name, *operands)

    return method


def _comparison(name: str) -> Callable[[Any, Any], Any]:
    """Python is told at once: whoever compares is about to branch, or wants a real ``bool``."""

    def method(self: Any, other: Any) -> Any:
        if isinstance(other, np.number | np.bool_):
            other = other.item()
        if not isinstance(other, int | float):
            return NotImplemented
        trace = self.record.trace
        if not trace.live:
            return PYTHON[name](plain(self), plain(other))
        return trace.compare(name, self, other)

    return method


def _unary_method(name: str) -> Callable[[Any], Any]:
    def method(self: Any) -> Any:
        if not self.record.trace.live:
            return PYTHON[name](plain(self))
        return self.record.trace.arithmetic(name, self)

    return method


def _pow(self: Any, other: Any, modulo: Any = None) -> Any:
    if modulo is not None:
        return pow(int(self), int(other), modulo)
    return _method("pow")(self, other)


def _divmod(self: Any, other: Any) -> Any:
    return self // other, self % other


def _rdivmod(self: Any, other: Any) -> Any:
    return other // self, other % self


for _class in (TracedInt, TracedFloat, TracedBool):
    for _name in _BINARY:
        if _class is TracedFloat and _name in ("lshift", "rshift", "and", "or", "xor"):
            continue
        if _name in _COMPARISONS:
            setattr(_class, f"__{_name}__", _comparison(_name))
        else:
            setattr(_class, f"__{_name}__", _method(_name))
            setattr(_class, f"__r{_name}__", _method(_name, reflected=True))
    for _name in ("neg", "pos", "abs"):
        setattr(_class, f"__{_name}__", _unary_method(_name))
    _class.__pow__ = _pow  # type: ignore[method-assign]
    _class.__divmod__ = _divmod  # type: ignore[method-assign]
    _class.__rdivmod__ = _rdivmod  # type: ignore[method-assign]
TracedInt.__invert__ = _unary_method("invert")  # type: ignore[method-assign]
