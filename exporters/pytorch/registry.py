"""Which code turns a torch call into graph: lowerings, decompositions, handlers.

A builtin and the tensor method of the same name are one ATen operator, so a lowering registered
for ``torch.softmax`` serves ``Tensor.softmax`` and ``torch.ops.aten.softmax`` too. In-place and
``out=`` variants are derived, never registered. Python functions (``F.softmax``) are their own keys.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import re
import types
from typing import TYPE_CHECKING, Any, TypeVar

import onnx_ir as ir
import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = [
    "Decomposition",
    "Handler",
    "Lowering",
    "UnknownCountError",
    "Unlowerable",
    "aten_name",
    "closest",
    "decomposes",
    "find",
    "handles",
    "lowers",
    "query",
    "respelled",
]

_F = TypeVar("_F", bound="Callable[..., Any]")

_BUILTIN_TYPES = (
    types.BuiltinFunctionType,
    types.MethodDescriptorType,
    types.WrapperDescriptorType,
    types.MethodWrapperType,
)


class Unlowerable(Exception):  # noqa: N818 - a signal, not a failure
    """A lowering cannot express this call; the reason is told if nothing else can either."""


class UnknownCountError(Unlowerable):
    """How many tensors a call gives is known at run time only."""


@dataclasses.dataclass(frozen=True, slots=True)
class Lowering:
    """Emits nodes for a call.

    Attributes:
        emit: ``emit(op, *arguments)`` with graph values in place of tensors.
        put_back: ``put_back(op, base, view, *rest)``: the base's new value after a write to this
            view of it, ``put_back(op, base, view, piece, *rest)`` if it is one of several results;
            None if the view can only be written through by position.
        random: The call draws random numbers.
        pairs: It knows complex tensors, which the graph holds as pairs of real numbers.
        when: Asked with the example's arguments whether it is for them; None if it always is.
    """

    emit: Callable[..., Any]
    accepts: Callable[[Sequence[Any], dict[str, Any]], bool]
    put_back: Callable[..., Any] | None = None
    random: bool = False
    pairs: bool = False
    when: Callable[..., bool] | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Decomposition:
    """Plain torch code that is traced through in place of a call."""

    body: Callable[..., Any]
    accepts: Callable[[Sequence[Any], dict[str, Any]], bool]
    when: Callable[..., bool] | None = None
    pairs: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Handler:
    """Takes the call over entirely: ``handle(tracer, func, args, kwargs)``."""

    handle: Callable[..., Any]


Entry = Lowering | Decomposition | Handler

_by_key: dict[Any, list[Entry]] = {}
_by_aten: dict[str, list[Entry]] = {}
_queries: set[Any] = set()
_query_names: set[str] = set()

_DUNDERS = {
    "truediv": "div",
    "floordiv": "floor_divide",
    "mod": "remainder",
    "and": "bitwise_and",
    "or": "bitwise_or",
    "xor": "bitwise_xor",
    "invert": "bitwise_not",
    "lshift": "bitwise_left_shift",
    "rshift": "bitwise_right_shift",
    **{
        name: name
        for name in [
            "abs",
            "add",
            "div",
            "eq",
            "ge",
            "getitem",
            "gt",
            "le",
            "lt",
            "matmul",
            "mul",
            "ne",
            "neg",
            "pow",
            "setitem",
            "sub",
        ]
    },
}


def aten_name(func: Any) -> str | None:
    """The ATen operator that a builtin calls, None for Python functions.

    In-place variants keep their underscore: ``Tensor.add_`` is ``add_``.
    """
    if isinstance(func, torch._ops.OpOverload):
        func = func.overloadpacket
    if isinstance(func, torch._ops.OpOverloadPacket):
        namespace, _, name = func._qualified_op_name.partition("::")
        return name if namespace == "aten" else None
    if not isinstance(func, _BUILTIN_TYPES):
        return None
    name = func.__name__
    if name in ("__get__", "__set__"):
        attribute: Any = getattr(func, "__self__")  # noqa: B009 - only some of these types have it
        attribute = getattr(attribute, "fget", attribute)  # a Python property
        return f"{attribute.__name__}.{name[2:5]}"
    if name.startswith("__") and name.endswith("__"):
        plain = name[2:-2]
        if plain in _DUNDERS:
            return _DUNDERS[plain]
        if plain[:1] == "i" and plain[1:] in _DUNDERS:
            return f"{_DUNDERS[plain[1:]]}_"
    return name


def _annotation(parameter: inspect.Parameter) -> str:
    """A parameter's annotation as it is written in the lowerings here; ``Any`` where there is none."""
    annotation: Any = parameter.annotation
    if annotation is parameter.empty:
        return "Any"
    known = {ir.Value: "ir.Value", torch.Tensor: "torch.Tensor", torch.dtype: "torch.dtype"}
    if isinstance(annotation, type):  # a module without `from __future__ import annotations`
        return known.get(annotation, annotation.__name__)
    return str(annotation).replace("onnx_ir.", "ir.").replace("collections.abc.", "")


def _accepts(
    function: Callable[..., Any], skip: int
) -> Callable[[Sequence[Any], dict[str, Any]], bool]:
    """Whether a call's arguments fit a function's parameters, by number, name and kind."""
    parameters = list(inspect.signature(function).parameters.values())[skip:]
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters)
    parameters = [p for p in parameters if p.kind is not p.VAR_KEYWORD]
    positional = [
        p for p in parameters if p.kind is not p.VAR_POSITIONAL and p.kind is not p.KEYWORD_ONLY
    ]
    variadic = {p.name for p in parameters if p.kind is p.VAR_POSITIONAL}
    names = {p.name: p for p in parameters if p.kind is not p.VAR_POSITIONAL}
    required = {p.name for p in names.values() if p.default is p.empty}

    def fits(x: Any, parameter: inspect.Parameter) -> bool:
        annotation = _annotation(parameter)
        is_tensor = isinstance(x, torch.Tensor | ir.Value)
        if annotation in ("ir.Value", "torch.Tensor"):
            return is_tensor
        if annotation in ("int", "bool", "float", "torch.dtype"):
            wanted: Any = {
                "int": int,
                "bool": bool,
                "float": (int, float),
                "torch.dtype": torch.dtype,
            }[annotation]
            return isinstance(x, wanted)
        if annotation.startswith("Sequence["):
            return isinstance(x, list | tuple)
        if not any(word in annotation for word in ("ir.Value", "Tensor", "Any", "object")):
            return not is_tensor
        return True

    def accepts(args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
        if len(args) > len(positional) and not variadic:
            return False
        given = {p.name for p, _ in zip(positional, args, strict=False)} | variadic
        if any(k in given or (k not in names and not open_ended) for k in kwargs):
            return False
        if not required <= given | kwargs.keys():
            return False
        return all(fits(x, p) for p, x in zip(positional, args, strict=False)) and all(
            fits(x, names[k]) for k, x in kwargs.items() if k in names
        )

    return accepts


# Keywords that torch takes besides a parameter's own name, as NumPy spells it.
_SPELLINGS = {
    "axis": "dim",
    "keepdims": "keepdim",
    "x": "input",
    "a": "input",
    "x1": "input",
    "x2": "other",
}
# Composed functions that must be called as they are: `dims` has a parameter before it.
_NAMES_ITS_SIZES = frozenset(["rot90", "flip", "roll"])
_SIZES = ("size", "sizes", "shape", "dims", "repeats", "sections", "indices")


def respelled(
    func: Any, args: Sequence[Any], kwargs: dict[str, Any]
) -> tuple[Sequence[Any], dict[str, Any]] | None:
    """A call in other words, for want of an entry that takes it; None if there are none.

    ``x.sum(axis=0)`` is ``x.sum(dim=0)``, and ``x.view(size=(2, 3))`` is ``x.view((2, 3))``.
    """
    if aten_name(func) is None or not kwargs:
        return None
    spelled = {_SPELLINGS.get(k, k): v for k, v in kwargs.items()}
    sizes = next((k for k in _SIZES if k in spelled), None)
    if sizes is not None and "input" not in spelled and aten_name(func) not in _NAMES_ITS_SIZES:
        return [*args, spelled.pop(sizes)], spelled
    return (args, spelled) if spelled.keys() != kwargs.keys() else None


def _register(keys: Sequence[Any], entry: Entry) -> None:
    for key in keys:
        _insert(_by_key.setdefault(key, []), entry)
        name = aten_name(key)
        if name is not None:
            _insert(_by_aten.setdefault(name, []), entry)
    find.cache_clear()


def _insert(entries: list[Entry], entry: Entry) -> None:
    """Add an entry; those for certain calls only come before those for all."""
    place = len(entries)
    if _is_conditional(entry):
        place = next((i for i, e in enumerate(entries) if not _is_conditional(e)), place)
    entries.insert(place, entry)


def _is_conditional(entry: Entry) -> bool:
    return not isinstance(entry, Handler) and entry.when is not None


def lowers(
    *keys: Any,
    put_back: Callable[..., Any] | None = None,
    random: bool = False,
    pairs: bool = False,
    when: Callable[..., bool] | None = None,
) -> Callable[[_F], _F]:
    """Register ``function(op, *torch's parameters)`` as the lowering of torch callables.

    Several lowerings may share a key when torch overloads it (``torch.max``): the first one whose
    parameters and annotations fit the call is taken.

    Args:
        *keys: Callables as a ``TorchFunctionMode`` sees them, or names of operators that a library
            registers with torch when it is imported: ``"torchvision::nms"``.
        put_back: How a write to this view changes the base: ``(op, base, view, *rest) -> base``.
        random: The call draws random numbers, so it is traced even when its arguments are constants.
        pairs: This one is for calls with complex tensors among their arguments or results, and no
            other; each is a value of real numbers with one more dim, of size 2.
        when: Called with the call's arguments, tensors of the example: whether this one is for them.
    """

    def register(function: _F) -> _F:
        entry = Lowering(function, _accepts(function, 1), put_back, random, pairs, when)
        _register(keys, entry)
        return function

    return register


def decomposes(
    *keys: Any, when: Callable[..., bool] | None = None, pairs: bool = False
) -> Callable[[_F], _F]:
    """Register plain torch code that is traced in place of torch callables.

    Args:
        *keys: Callables as a ``TorchFunctionMode`` sees them.
        when: Called with the call's arguments, tensors of the example: whether to decompose,
            rather than look further.
        pairs: This one is for calls with a complex argument, and no other.
    """

    def register(function: _F) -> _F:
        _register(keys, Decomposition(function, _accepts(function, 0), when, pairs))
        return function

    return register


def handles(*keys: Any) -> Callable[[_F], _F]:
    """Register ``function(tracer, func, args, kwargs)``, which takes calls over entirely."""

    def register(function: _F) -> _F:
        _register(keys, Handler(function))
        return function

    return register


def query(*keys: Any) -> None:
    """Declare callables that only ask for metadata, the same in every world."""
    for key in keys:
        _queries.add(key)
        name = aten_name(key)
        if name is not None:
            _query_names.add(name)


def is_query(func: Any) -> bool:
    """Whether ``func`` was declared with :func:`query`."""
    return func in _queries or aten_name(func) in _query_names


@functools.cache
def find(func: Any) -> tuple[Entry, ...]:
    """Everything registered for ``func``, its own entries first."""
    entries = list(_by_key.get(func, ()))
    packet = func.overloadpacket if isinstance(func, torch._ops.OpOverload) else func
    if packet is not func:
        entries += [e for e in _by_key.get(packet, ()) if e not in entries]
    if isinstance(packet, torch._ops.OpOverloadPacket):
        entries += _by_key.get(packet._qualified_op_name, ())
    name = aten_name(func) or aten_name(inspect.unwrap(func))  # Tensor.__pow__ wraps Tensor.pow
    if name is not None:
        entries += [e for e in _by_aten.get(name, ()) if e not in entries]
    return tuple(entries)


def registered() -> dict[Any, list[Entry]]:
    """Every key with its entries."""
    return dict(_by_key)


def closest(name: str) -> str | None:
    """The supported callable whose name is most like ``name``."""
    plain = re.sub(r"^(torch\.ops\.\w+\.\w+)\.\w+$", r"\1", name)  # without the overload
    wanted = plain.rpartition(".")[2].strip("_")
    known = {
        str(k if isinstance(k, str) else getattr(k, "__name__", "")): torch.overrides.resolve_name(
            k
        )
        for k in _by_key
    }
    found = difflib.get_close_matches(wanted, [k for k in known if k], n=1, cutoff=0.6)
    return known[found[0]] if found else None
