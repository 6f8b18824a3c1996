"""Torch code that can be traced in place of a call that has no lowering.

In this order: the body of the Python function itself, the decomposition that torch ships for the
ATen operator, torch's reference implementation.
"""

from __future__ import annotations

import functools
import inspect
import types
from typing import TYPE_CHECKING, Any

import torch
from torch._decomp import decomposition_table
from torch._library.custom_ops import OPDEFS

from exporters.pytorch.registry import aten_name

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["fallback", "inlined", "named_result"]


def _no(*_: object) -> bool:
    return False


# The names under which torch's Python code asks whether a mode wants the call.
_QUESTIONS = {
    "has_torch_function": _no,
    "has_torch_function_unary": _no,
    "has_torch_function_variadic": _no,
}


def inlined(func: Callable[..., Any]) -> Callable[..., Any] | None:
    """``func`` with its own check for torch function modes answering no; None for builtins.

    Called under the mode, its body runs and every torch call in it is seen.
    """
    body = inspect.unwrap(func)
    return _inlined(body, body.__code__) if isinstance(body, types.FunctionType) else None


@functools.cache
def _inlined(body: types.FunctionType, code: types.CodeType) -> Callable[..., Any]:
    copy = types.FunctionType(
        code,
        {**body.__globals__, **_QUESTIONS},
        body.__name__,
        body.__defaults__,
        None if body.__closure__ is None else tuple(map(_inlined_cell, body.__closure__)),
    )
    copy.__kwdefaults__ = body.__kwdefaults__
    return copy


def _inlined_cell(cell: types.CellType) -> types.CellType:
    """A closure's torch function inlined too: ``boolean_dispatch`` keeps its two cases there."""
    function = cell.cell_contents
    if isinstance(function, types.FunctionType) and "has_torch_function" in function.__globals__:
        return types.CellType(inlined(function))
    return cell


def _overload(name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """The ATen overload that a call resolves to, None if none fits."""
    packet = getattr(torch.ops.aten, name, None)
    if packet is None:
        return None
    try:
        with torch._C.DisableTorchFunction():
            chosen = torch._C._jit_resolve_packet(f"aten::{name}", *args, **kwargs)
    except RuntimeError:
        return None
    return getattr(packet, chosen or "default", None)


def _custom_operator(func: Any) -> Callable[..., Any] | None:
    """The Python function behind an operator made with ``torch.library.custom_op``."""
    packet = getattr(func, "overloadpacket", func)
    name = getattr(packet, "_qualified_op_name", None)
    definition = OPDEFS.get(name)
    return None if definition is None else definition._init_fn


def fallback(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Callable[..., Any] | None:
    """Python code to trace instead of calling ``func`` with these arguments; None if there is none."""
    custom = _custom_operator(func)
    if custom is not None:
        return custom
    body = (
        inlined(func) if callable(func) and not isinstance(func, torch._ops.OpOverload) else None
    )
    if body is not None:
        return body
    if isinstance(func, torch._ops.OpOverload):
        overload: Any = func
        name: str | None = func.overloadpacket.__name__
    else:
        name = aten_name(func)
        overload = None if name is None else _overload(name, args, kwargs)
    if overload is not None and overload in decomposition_table:
        found: Callable[..., Any] = decomposition_table[overload]
        return found
    if name == "view" and any(isinstance(x, torch.dtype) for x in (*args, *kwargs.values())):
        return None  # the reference implementation knows sizes only
    reference = None if name is None else getattr(torch._refs, name, None)
    return reference if isinstance(reference, types.FunctionType) else None


def named_result(func: Any, result: Any) -> Any:
    """What code traced in place of ``func`` gave, under the names that torch's results have."""
    kind = (
        getattr(torch.return_types, aten_name(func) or "", None) if type(result) is tuple else None
    )
    return result if kind is None or len(result) != kind.n_fields else kind(result)
