"""Composite operators: what a call does below the level that torch functions are seen at.

Many ATen operators are written in C++ in terms of others. Run under a dispatch mode, such a call
shows the operators that it is made of; they are then called one by one as if the user had. The
sizes that C++ computed on the way are plain ints by then: those that differ between worlds are
recognised as sizes of the call's arguments, or the call stays unsupported.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from exporters.pytorch.handlers import sizes_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from exporters.pytorch.tracer import TorchTracer

__all__ = ["composition"]


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """One operator that a composite call is made of."""

    op: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.steps: list[Step] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.steps.append(Step(func, tuple(args), dict(kwargs or {}), result))
        return result


def composition(
    tracer: TorchTracer, func: Any, args: Sequence[Any], kwargs: dict[str, Any]
) -> Callable[..., Any] | None:
    """Python code that makes the calls that ``func`` is composed of; None if it is one operator.

    Nothing is written to: the arguments are cloned before the call is looked into.
    """
    runs: list[list[Step]] = []
    results: list[Any] = []
    for world in tracer.trace.active:
        copies = _copies(tracer.concrete((tuple(args), kwargs), world))
        with _Recorder() as recorder:
            results.append(func(*copies[0], **copies[1]))
        runs.append(recorder.steps)
        if len(runs) == 1:
            inputs = _tensors(tracer.leaves(copies[0], copies[1]))
    home = runs[0]
    if len(home) <= 1 and (not home or _is_same(home[0].op, func)):
        return None
    if any([s.op for s in run] != [s.op for s in home] for run in runs):
        return None
    with torch._C.DisableTorchFunction():  # sizes of handles, not what user code would see
        sizes = _dynamic_sizes(tracer, tracer.leaves(args, kwargs))
    for column in zip(*runs, strict=True):  # refuses what it cannot follow before a node is made
        _rebuild([(s.args, s.kwargs) for s in column], {}, sizes)

    def body(*handles: Any, **named: Any) -> Any:
        known: dict[int, Any] = {}
        originals = _tensors(tracer.leaves(handles, named))
        for concrete, handle in zip(inputs, originals, strict=True):
            known[id(concrete)] = handle
        for index, step in enumerate(home):
            parts = [run[index] for run in runs]
            step_args, step_kwargs = _rebuild([(p.args, p.kwargs) for p in parts], known, sizes)
            _remember(step.result, step.op(*step_args, **step_kwargs), known)
        return _rebuild(results, known, sizes)

    return body


def _tensors(leaves: Sequence[Any]) -> list[torch.Tensor]:
    """The tensors alone: traced numbers are plain ones in a concrete call."""
    return [x for x in leaves if isinstance(x, torch.Tensor)]


def _copies(x: Any) -> Any:
    if isinstance(x, torch.Tensor):
        return x.clone()
    if isinstance(x, tuple | list):
        return type(x)(_copies(i) for i in x) if not hasattr(x, "_fields") else x
    if isinstance(x, dict):
        return {k: _copies(v) for k, v in x.items()}
    return x


def _is_same(op: Any, func: Any) -> bool:
    name = getattr(op, "overloadpacket", op)
    return getattr(name, "__name__", None) == getattr(func, "__name__", "").strip("_")


def _dynamic_sizes(tracer: TorchTracer, tensors: Sequence[Any]) -> dict[tuple[int, ...], Any]:
    """Traced sizes of the arguments, by what they are in each world."""
    found: dict[tuple[int, ...], Any] = {}
    for x in tensors:
        numbers = sizes_of(tracer, x) if isinstance(x, torch.Tensor) else [x]
        for number in numbers:
            if hasattr(number, "record"):
                found.setdefault(tuple(number.record.worlds.values()), number)
    return found


def _rebuild(
    parts: Sequence[Any], known: dict[int, Any], sizes: dict[tuple[int, ...], Any]
) -> Any:
    """One argument as the tracer's user would give it, from what it is in each world."""
    first = parts[0]
    if isinstance(first, torch.Tensor):
        return known.get(id(first), first)
    if isinstance(first, tuple | list):
        items = [_rebuild(column, known, sizes) for column in zip(*parts, strict=True)]
        if hasattr(first, "_fields") or hasattr(first, "n_fields"):
            return tuple(items)
        return type(first)(items)
    if isinstance(first, dict):
        return {k: _rebuild([p[k] for p in parts], known, sizes) for k in first}
    if isinstance(first, int | float) and any(p != first for p in parts):
        number = sizes.get(tuple(parts))
        if number is None:
            raise ComposedSizeError(parts)
        return number
    return first


class ComposedSizeError(Exception):
    """A size that C++ computed differs between worlds and is no argument's size."""

    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__(f"it computes with sizes below Python: {', '.join(map(str, sizes))}")


def _remember(concrete: Any, handle: Any, known: dict[int, Any]) -> None:
    if isinstance(concrete, torch.Tensor):
        known[id(concrete)] = handle
    elif isinstance(concrete, tuple | list):
        for c, h in zip(concrete, handle, strict=True):
            _remember(c, h, known)
