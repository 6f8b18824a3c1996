"""Functions that ONNX, or ONNX Runtime's CPU provider in float64, lacks; to the last places.

Each is written for arguments where the textbook formula loses digits or overflows, and follows
NaN, infinities and signs as C's mathematical library does.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

if TYPE_CHECKING:
    from collections.abc import Callable

    from exporters.tracing.graph import GraphBuilder as Op


def expm1(op: Op, x: ir.Value) -> ir.Value:
    """``exp(x) - 1 = tanh(x / 2) (exp(x) + 1)``, without cancellation near 0."""
    return op.Mul(op.Tanh(op.Mul(x, 0.5)), op.Add(op.Exp(x), 1.0))


def log1p(op: Op, x: ir.Value) -> ir.Value:
    """``log(1 + x)``, plus what rounding ``1 + x`` lost where that matters."""
    u = op.Add(x, 1.0)
    y = op.Log(u)
    lost = op.Div(op.Sub(x, op.Sub(u, 1.0)), u)
    return op.Where(op.Less(op.Abs(x), 0.5), op.Add(y, lost), y)


def softplus(op: Op, x: ir.Value) -> ir.Value:
    """``log(1 + exp(x))`` without overflow."""
    return op.Add(op.Max(x, 0.0), log1p(op, op.Exp(op.Neg(op.Abs(x)))))


def is_negative(op: Op, x: ir.Value) -> ir.Value:
    """The sign bit, of zeros too; a NaN counts as positive."""
    if not x.dtype.is_floating_point():
        return op.Less(x, 0)
    return op.Less(op.Where(op.Equal(x, 0.0), op.Reciprocal(x), x), 0.0)


def with_sign(op: Op, x: ir.Value, sign: ir.Value) -> ir.Value:
    """The magnitude of ``x`` with the sign of ``sign``."""
    size = op.Abs(x)
    return op.Where(is_negative(op, sign), op.Neg(size), size)


def quadrature(count: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Gauss-Legendre nodes and weights on [0, 1]."""
    nodes, weights = np.polynomial.legendre.leggauss(count)
    return (nodes + 1) / 2, weights / 2


def _erf(op: Op, x: ir.Value) -> ir.Value:
    """``2 / sqrt(pi)`` times the integral of ``x exp(-(x t)^2)`` over [0, 1], by Gauss's rule."""
    nodes, weights = quadrature(40)
    near = op.Clip(x, -6.0, 6.0)  # erf(6) rounds to 1
    points = op.Mul(op.Unsqueeze(near, [-1]), nodes)
    curve = op.Exp(op.Neg(op.Mul(points, points)))
    return op.Mul(near, op.MatMul(curve, weights * (2 / math.sqrt(math.pi))))


def _seeded(op: Op, op_type: str, x: ir.Value) -> ir.Value:
    """The float32 kernel's result: a start from which one correction reaches float64."""
    return op.Cast(op.emit(op_type, op.Cast(x, to=ir.DataType.FLOAT)), to=ir.DataType.DOUBLE)


def _cos(op: Op, x: ir.Value) -> ir.Value:
    """ORT 1.24 has a float64 kernel of Sin, and none of Cos."""
    return op.Sin(op.Add(x, math.pi / 2))


def _atan(op: Op, x: ir.Value) -> ir.Value:
    """One step from the float32 result; beyond 1 by way of ``1 / x``."""
    beyond = op.Greater(op.Abs(x), 1.0)
    near = op.Where(beyond, op.Reciprocal(x), x)
    y = _seeded(op, "Atan", near)
    sine, cosine = op.Sin(y), _cos(op, y)
    missing = op.Div(op.Sub(op.Mul(near, cosine), sine), op.Add(cosine, op.Mul(near, sine)))
    result = op.Add(y, missing)
    quarter = with_sign(op, op.constant(np.asarray(math.pi / 2)), x)
    return op.Where(beyond, op.Sub(quarter, result), result)


def _asin(op: Op, x: ir.Value) -> ir.Value:
    """``asin(x) = atan(x / sqrt((1 - x) (1 + x)))``, exact at the ends too."""
    cosine = op.Sqrt(op.Mul(op.Sub(1.0, x), op.Add(x, 1.0)))
    return _atan(op, op.Div(x, cosine))


def _acos(op: Op, x: ir.Value) -> ir.Value:
    """``acos(x) = 2 atan(sqrt((1 - x) / (1 + x)))``, exact near 1 too."""
    return op.Mul(_atan(op, op.Sqrt(op.Div(op.Sub(1.0, x), op.Add(x, 1.0)))), 2.0)


def _cosh(op: Op, x: ir.Value) -> ir.Value:
    return op.Mul(op.Add(op.Exp(x), op.Exp(op.Neg(x))), 0.5)


def _sinh(op: Op, x: ir.Value) -> ir.Value:
    return op.Mul(op.Tanh(x), _cosh(op, x))


def _asinh(op: Op, x: ir.Value) -> ir.Value:
    """``log1p(a + a / (1/a + sqrt(1 + 1/a^2)))`` with the sign of ``x``, where ``a = |x|``."""
    size = op.Abs(x)
    inverse = op.Reciprocal(size)
    root = op.Sqrt(op.Add(op.Mul(inverse, inverse), 1.0))
    return with_sign(op, log1p(op, op.Add(size, op.Div(size, op.Add(inverse, root)))), x)


def _acosh(op: Op, x: ir.Value) -> ir.Value:
    """``log1p(t + sqrt(t) sqrt(t + 2))`` with ``t = x - 1``."""
    t = op.Sub(x, 1.0)
    return log1p(op, op.Add(t, op.Mul(op.Sqrt(t), op.Sqrt(op.Add(t, 2.0)))))


def _atanh(op: Op, x: ir.Value) -> ir.Value:
    return op.Mul(log1p(op, op.Div(op.Mul(x, 2.0), op.Sub(1.0, x))), 0.5)


def _elu(op: Op, x: ir.Value, *, alpha: float = 1.0) -> ir.Value:
    return op.Where(op.Greater(x, 0.0), x, op.Mul(expm1(op, x), alpha))


def _selu(op: Op, x: ir.Value, *, alpha: float, gamma: float) -> ir.Value:
    return op.Mul(_elu(op, x, alpha=alpha), gamma)


def _hard_sigmoid(op: Op, x: ir.Value, *, alpha: float = 0.2, beta: float = 0.5) -> ir.Value:
    return op.Clip(op.Add(op.Mul(x, alpha), beta), 0.0, 1.0)


def _gelu(op: Op, x: ir.Value, *, approximate: str = "none") -> ir.Value:
    half = op.Mul(x, 0.5)
    if approximate == "tanh":
        cubed = op.Mul(op.Mul(x, x), x)
        inner = op.Mul(op.Add(x, op.Mul(cubed, 0.044715)), math.sqrt(2 / math.pi))
        return op.Mul(half, op.Add(op.Tanh(inner), 1.0))
    scaled = op.Mul(x, math.sqrt(0.5))
    cumulated = _erf(op, scaled) if x.dtype == ir.DataType.DOUBLE else op.Erf(scaled)
    return op.Mul(half, op.Add(cumulated, 1.0))


gelu_formula = _gelu

# ONNX Runtime 1.32 CPU has no float64 kernel of these.
DOUBLE_FORMULAS: dict[str, Callable[..., ir.Value]] = {
    "Acos": _acos,
    "Acosh": _acosh,
    "Asin": _asin,
    "Asinh": _asinh,
    "Atan": _atan,
    "Atanh": _atanh,
    "Cos": _cos,
    "Cosh": _cosh,
    "Elu": _elu,
    "Erf": _erf,
    "Gelu": _gelu,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": lambda op, x: op.Mul(x, _hard_sigmoid(op, x, alpha=1 / 6, beta=0.5)),
    "LeakyRelu": lambda op, x, *, alpha=0.01: op.Where(op.Less(x, 0.0), op.Mul(x, alpha), x),
    "Mish": lambda op, x: op.Mul(x, op.Tanh(softplus(op, x))),
    "PRelu": lambda op, x, slope: op.Where(op.Less(x, 0.0), op.Mul(x, slope), x),
    "Selu": _selu,
    "Sinh": _sinh,
    "Softplus": softplus,
    "Softsign": lambda op, x: op.Div(x, op.Add(op.Abs(x), 1.0)),
    "Tan": lambda op, x: op.Div(op.Sin(x), _cos(op, x)),
    "ThresholdedRelu": lambda op, x, *, alpha: op.Where(op.Greater(x, alpha), x, 0.0),
}
