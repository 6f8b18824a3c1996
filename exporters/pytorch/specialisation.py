"""Finding where a trace froze a size or a value that varies between inputs.

User code runs once in a trace, so a bare number that Python took from a size (``range(n)``,
``[0] * n``, ``math.sqrt(n)``) is the example's number in every world. Eager code run on another
world's inputs then makes other calls, or the same calls with other results. The first difference
names the line.
"""

from __future__ import annotations

import ast
import dataclasses
import dis
import linecache
import math
from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode

from exporters.errors import SpecialisationError
from exporters.script import nested_codes

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from types import CodeType

    from exporters.tracing.source import Source, SourceFinder

__all__ = ["KEEP_IN_TORCH", "Call", "EagerLog", "differs", "first_difference", "is_at",
           "written_globals"]  # fmt: skip

KEEP_IN_TORCH = (
    "keep the number in torch: x.shape[i], its arithmetic and math.* of it are followed; strings, "
    "bytes and NumPy arrays that are made with it are not"
)


_UNINITIALISED = frozenset({
    "empty", "empty_like", "empty_permuted", "empty_strided", "new_empty", "new_empty_strided",
})  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True)
class Call:
    """One torch call of user code, and what came of it in one world."""

    function: str
    source: Source | None
    results: tuple[torch.Tensor, ...]
    callers: tuple[CodeType, ...] = ()


def tensors_of(x: Any) -> tuple[torch.Tensor, ...]:
    """The tensors in a call's result."""
    if isinstance(x, torch.Tensor):
        return (x,)
    if isinstance(x, tuple | list) and not isinstance(x, torch.Size):
        return tuple(t for i in x for t in tensors_of(i))
    return ()


def name_of(func: Any) -> str:
    """A torch callable's name."""
    name = getattr(func, "__name__", str(func))
    return (
        getattr(getattr(func, "__self__", None), "__name__", name) if name == "__get__" else name
    )


class EagerLog(TorchFunctionMode):
    """Logs the torch calls of plain eager code."""

    def __init__(self, finder: SourceFinder) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self._finder = finder

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        found = tensors_of(result)
        if found:
            source, _ = self._finder.find()
            copies = tuple(t.detach().clone() for t in found)
            self.calls.append(Call(name_of(func), source, copies, self._finder.callers()))
        return result


def differs(a: Any, b: Any) -> bool:
    """Whether a traced result and an eager one are not the same, up to rounding."""
    if not (isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor)):
        if isinstance(a, float) and isinstance(b, float):
            return not (math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-9) or (a != a and b != b))
        return bool(a != b)
    if a.shape != b.shape or a.dtype != b.dtype:
        return True
    a, b = a.detach(), b.detach()
    if a.dtype.is_floating_point or a.dtype.is_complex:
        wide = torch.complex128 if a.dtype.is_complex else torch.float64
        # What a call is decomposed into rounds more often than the call, in half precision too.
        unit = torch.finfo(a.dtype).eps
        rtol, atol = max(1e-3, 32 * unit), max(1e-4, 16 * unit) * _scale(b)
        return not torch.allclose(a.to(wide), b.to(wide), rtol=rtol, atol=atol, equal_nan=True)
    return not torch.equal(a, b)


def _scale(x: torch.Tensor) -> float:
    finite = x[torch.isfinite(x)]
    return max(1.0, float(finite.abs().max())) if finite.numel() else 1.0


def first_difference(traced: Sequence[Call], eager: Sequence[Call]) -> SpecialisationError | None:
    """The error that names the first call in which eager code departs from the trace."""
    for ours, theirs in zip(traced, eager, strict=False):
        if _rounds_otherwise(ours, theirs):
            return None  # all that is made of it may differ, too
        error = _difference(ours, theirs)
        if error is not None:
            error.callers = theirs.callers
            return error
    if len(traced) != len(eager):
        longer = traced if len(traced) > len(eager) else eager
        here = longer[min(len(traced), len(eager))]
        sides = (here.source, None) if longer is traced else (None, here.source)
        error = _control_flow(*sides)
        error.callers = here.callers
        return error
    return None


def _difference(ours: Call, theirs: Call) -> SpecialisationError | None:
    if (ours.function, _line(ours.source)) != (theirs.function, _line(theirs.source)):
        return _control_flow(ours.source, theirs.source)
    for a, b in zip(ours.results, theirs.results, strict=False):
        if ours.function in _UNINITIALISED and a.shape == b.shape and a.dtype == b.dtype:
            continue  # whatever was in memory
        if differs(a, b):
            return _frozen_value(ours, a, b)
    return None


# By the names of functions and methods; numbers halfway between two fall on either side.
_ROUNDING = frozenset("byte ceil floor floor_divide int long round round_ to trunc type".split())
_FEW = 1e-3  # of the elements


def _rounds_otherwise(ours: Call, theirs: Call) -> bool:
    """Whether a rounded result has a few elements that rounding errors put next to eager's."""
    if ours.function not in _ROUNDING or ours.function != theirs.function:
        return False
    for a, b in zip(ours.results, theirs.results, strict=False):
        if a.shape != b.shape or a.dtype != b.dtype or not differs(a, b):
            continue
        apart = (a.detach().double() - b.detach().double()).abs()
        if bool((apart > 1).any()) or int((apart != 0).sum()) > _FEW * a.numel():
            continue
        return True
    return False


def _line(source: Source | None) -> tuple[str, int] | None:
    return None if source is None else (source.file, source.line)


def is_at(call: Call, source: Source | None) -> bool:
    """Whether a call was made in that line."""
    return _line(call.source) == _line(source)


def written_globals(codes: Iterable[CodeType]) -> list[str]:
    """The global names that functions bind."""
    steps = (i for code in codes for c in nested_codes(code) for i in dis.get_instructions(c))
    return list(dict.fromkeys(i.argval for i in steps if i.opname == "STORE_GLOBAL"))


def _describe(x: torch.Tensor) -> str:
    return f"{str(x.dtype).removeprefix('torch.')}{list(x.shape)}"


def _frozen_value(call: Call, traced: torch.Tensor, eager: torch.Tensor) -> SpecialisationError:
    if traced.shape != eager.shape or traced.dtype != eager.dtype:
        told = f"is {_describe(traced)} in the trace and {_describe(eager)} in eager"
    else:
        told = f"({_describe(eager)}) has other values in the trace than in eager"
    return SpecialisationError(
        f"for other inputs than the example, the result of {call.function} {told}: a size or a "
        "value was frozen to the example's, here or before this line",
        source=call.source,
        hint=f"{KEEP_IN_TORCH}, or mark the function with @bridge.script",
    )


def _control_flow(traced: Source | None, eager: Source | None) -> SpecialisationError:
    statement = deciding_statement(traced, eager)
    source = statement or eager or traced
    return SpecialisationError(
        "Python took another way for other inputs than the example: a loop or a branch here was "
        "frozen to the example's size",
        source=source,
        hint="mark the function with @bridge.script, or write the loop as a whole-tensor operation",
    )


def deciding_statement(traced: Source | None, eager: Source | None) -> Source | None:
    """The innermost loop or branch that one of two positions in a file is inside of.

    Where both or neither are inside of the same statements, the innermost one around the eager
    position is meant: its next iteration is what the trace lacks.
    """
    anchor = eager or traced
    if anchor is None:
        return None
    lines = linecache.getlines(anchor.file)
    try:
        tree = ast.parse("".join(lines))
    except SyntaxError:
        return None
    kinds = (
        ast.For,
        ast.While,
        ast.If,
        ast.IfExp,
        ast.ListComp,
        ast.GeneratorExp,
        ast.DictComp,
        ast.SetComp,
    )
    around = [
        n
        for n in ast.walk(tree)
        if isinstance(n, kinds) and n.lineno <= anchor.line <= (n.end_lineno or n.lineno)
    ]
    if not around:
        return None
    other = traced if anchor is eager else eager
    innermost = max(around, key=lambda n: (n.lineno, n.col_offset))
    if other is not None and other.file == anchor.file:
        split = [n for n in around if not n.lineno <= other.line <= (n.end_lineno or n.lineno)]
        if split:
            innermost = min(split, key=lambda n: (n.lineno, n.col_offset))
    where = (
        innermost.iter if isinstance(innermost, ast.For) else getattr(innermost, "test", innermost)
    )
    return dataclasses.replace(
        anchor, line=where.lineno, column=where.col_offset, end_column=where.end_col_offset
    )
