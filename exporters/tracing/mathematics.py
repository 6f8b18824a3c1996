"""Functions of ``math`` on numbers that only run time knows, in double precision."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any

from exporters.errors import UntraceableError
from exporters.tracing.bodies import NO_SCOPE, recorded
from exporters.tracing.branches import if_
from exporters.tracing.operators import and_, compare, or_, staged_in
from exporters.tracing.scalars import ScalarRecord, TracedFloat, TracedInt
from exporters.tracing.trace import Interrupt, Trace

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["FUNCTIONS"]

# Python's arithmetic has these already.
_ARITHMETIC = ("ceil", "exp", "floor", "isfinite", "isinf", "isnan", "log10", "log2", "sqrt", "tanh",
               "sin", "cos", "trunc")  # fmt: skip
# The frontend's arrays have these, under these names.
_ARRAYS = {
    name: name
    for name in ("acos", "acosh", "asin", "asinh", "atan", "atan2", "atanh", "copysign", "cosh", "erf",
                 "erfc", "exp2", "expm1", "fmod", "gcd", "hypot", "lcm", "lgamma", "log1p", "sinh", "tan")
}  # fmt: skip


def _same(x: Any) -> Any:
    return x


def _fabs(x: Any) -> Any:
    return abs(x) * 1.0


def _log(x: Any, base: Any = None) -> Any:
    trace = recorded()
    assert trace is not None
    natural = trace.arithmetic("log", x)
    if base is None:
        return natural
    return natural / (trace.arithmetic("log", base) if staged_in(base) else math.log(base))


def _isclose(a: Any, b: Any, *, rel_tol: float = 1e-09, abs_tol: float = 0.0) -> Any:
    trace = recorded()
    assert trace is not None
    wide = trace.arithmetic("max", abs(a), abs(b)) * rel_tol
    near = compare("le", abs(a - b), trace.arithmetic("max", wide, abs_tol))
    finite = and_(FUNCTIONS[math.isfinite](a), lambda: FUNCTIONS[math.isfinite](b))
    return or_(compare("eq", a, b), lambda: and_(near, lambda: finite))


def _cbrt(x: Any) -> Any:
    root = abs(x) ** (1.0 / 3.0)
    return if_(compare("lt", x, 0), lambda: -root, functools.partial(_same, root), NO_SCOPE)


def _isqrt(x: Any) -> Any:
    trace = recorded()
    assert trace is not None
    root = trace.arithmetic("floor", trace.arithmetic("sqrt", x))
    too_big = compare("gt", root * root, x)  # doubles do not hold every int
    return if_(too_big, lambda: root - 1, functools.partial(_same, root), NO_SCOPE)


def _remainder(x: Any, y: Any) -> Any:
    trace = recorded()
    assert trace is not None
    return x - trace.arithmetic("round", x / y) * y


def _modf(x: Any) -> Any:
    whole = FUNCTIONS[math.trunc](x) * 1.0
    return x - whole, whole


def _degrees(x: Any) -> Any:
    return x * (180.0 / math.pi)


def _radians(x: Any) -> Any:
    return x * (math.pi / 180.0)


def _pow(x: Any, y: Any) -> Any:
    return (x * 1.0) ** (y * 1.0)


_COMPOSED: dict[str, Callable[..., Any]] = {
    "cbrt": _cbrt, "degrees": _degrees, "fabs": _fabs, "isclose": _isclose, "isqrt": _isqrt,
    "log": _log, "modf": _modf, "pow": _pow, "radians": _radians, "remainder": _remainder,
}  # fmt: skip


def _function(name: str, plain: Callable[..., Any]) -> Callable[..., Any]:
    def function(*args: Any, **kwargs: Any) -> Any:
        trace = Trace.current()
        if trace is None or not trace.live:
            return plain(*args, **kwargs)
        if not trace.recording:  # C code would take a traced number for the first world's
            world = trace.active[0]
            return plain(*(trace.frontend.concrete(x, world) for x in args), **kwargs)
        if staged_in(*args) is None:
            return plain(*args, **kwargs)
        numbers = [trace.frontend.to_number(x) if trace.frontend.is_array(x) else x for x in args]
        if name in _ARITHMETIC:
            return trace.arithmetic(name, *numbers)
        if name in _COMPOSED:
            return _as_python(trace, _COMPOSED[name](*numbers, **kwargs), plain, numbers)
        if name in _ARRAYS:
            return _as_python(
                trace, trace.frontend.on_arrays(_ARRAYS[name], numbers), plain, numbers
            )
        trace.moved()
        source, _ = trace.position()
        raise Interrupt(
            UntraceableError(
                f"math.{name} of a number that only run time knows has no counterpart in the graph",
                source=source,
                hint="compute it with torch functions or Python arithmetic",
            )
        )

    return function


def _as_python(trace: Trace, x: Any, plain: Callable[..., Any], numbers: list[Any]) -> Any:
    """A traced number that has in each world, to the last bit, what Python computes."""
    if not isinstance(x, TracedFloat | TracedInt):
        return x
    worlds = {w: plain(*(trace.number_in(n, w) for n in numbers)) for w in trace.active}
    record = ScalarRecord(trace, worlds, data=x.record.data, scalar=x.scalar())
    return trace.number(record, type(worlds[trace.active[0]]))


# These take containers or loop over their arguments: they work on traced numbers as they are, or
# are refused where these are turned into plain numbers.
_LEFT = frozenset({"fsum", "prod", "dist", "sumprod"})
FUNCTIONS: dict[Any, Callable[..., Any]] = {
    value: _function(name, value)
    for name, value in vars(math).items()
    if callable(value) and not name.startswith("_") and name not in _LEFT
}
