"""``torch.sym_*``: Python arithmetic that torch's own code does on sizes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from exporters.pytorch.registry import handles
from exporters.tracing.scalars import TracedScalar

if TYPE_CHECKING:
    from exporters.pytorch.tracer import TorchTracer


def _sym_int(x: Any) -> Any:
    return math.trunc(x)


def _sym_float(x: Any) -> Any:
    return x.record.trace.arithmetic("float", x)


def _sym_sqrt(x: Any) -> Any:
    return x.record.trace.arithmetic("sqrt", x)


@handles(torch.sym_int, torch.sym_float, torch._sym_sqrt)  # type: ignore[attr-defined]
def sym_unary(tracer: TorchTracer, func: Any, args: Any, kwargs: Any) -> Any:
    (x,) = args
    if not isinstance(x, TracedScalar):
        return func(x)
    return {torch.sym_int: _sym_int, torch.sym_float: _sym_float}.get(func, _sym_sqrt)(x)


@handles(torch.sym_max, torch.sym_min)
def sym_extreme(tracer: TorchTracer, func: Any, args: Any, kwargs: Any) -> Any:
    if not any(isinstance(x, TracedScalar) for x in args):
        return func(*args)
    return tracer.trace.arithmetic("max" if func is torch.sym_max else "min", *args)


@handles(torch.sym_sum)
def sym_sum(tracer: TorchTracer, func: Any, args: Any, kwargs: Any) -> Any:
    total: Any = 0
    for x in args[0]:
        total = total + x
    return total
