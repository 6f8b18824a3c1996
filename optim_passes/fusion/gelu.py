"""Activations written out become the operator of that name."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

import onnx_ir as ir

from optim_passes.rewriting import NodePass, require
from optim_passes.values import attribute, input_of, is_scalar, only_consumer, producer, scalar

if TYPE_CHECKING:
    from optim_passes.builder import Builder

__all__ = ["GeluPass", "HardSwishPass", "QuickGeluPass"]

_QUICK = 1.702  # x * sigmoid(1.702 x) is close to GELU
_CLOSE = 1e-3  # exporters round the constants to float16 or to a few digits


class Product:
    """A product of any association: ``number * factors[0] * factors[1] * ...``."""

    def __init__(self, value: ir.Value) -> None:
        self.number = 1.0
        self.factors: list[ir.Value] = []
        self._add(value, top=True)

    def _add(self, value: ir.Value, *, top: bool = False) -> None:
        node = producer(value, "Mul", "Div")
        if node is None or (not top and only_consumer(value) is None):
            self.factors.append(value)
            return
        left, right = node.inputs
        assert left is not None
        assert right is not None
        if node.op_type == "Div":
            number = scalar(right)
            if not number or not is_scalar(right):
                self.factors.append(value)
                return
            self.number /= number
            self._add(left)
            return
        for side in (left, right):
            number = scalar(side)
            if number is not None and is_scalar(side):
                self.number *= number
            else:
                self._add(side)

    def without(self, value: ir.Value) -> list[ir.Value] | None:
        """The other factors where ``value`` is one of them."""
        if not any(f is value for f in self.factors):
            return None
        index = next(i for i, f in enumerate(self.factors) if f is value)
        return self.factors[:index] + self.factors[index + 1 :]


def _sum_with(value: ir.Value | None, number: float) -> ir.Value | None:
    """``x`` of ``x + number``."""
    node = producer(value, "Add")
    if node is None:
        return None
    for x, c in (list(node.inputs), list(node.inputs)[::-1]):
        found = scalar(c)
        if found is not None and is_scalar(c) and _near(found, number):
            return x
    return None


def _near(number: float, wanted: float) -> bool:
    return abs(number - wanted) <= _CLOSE * abs(wanted)


class GeluPass(NodePass):
    """The two formulas of GELU become ``Gelu`` (opset 20 and later).

    ``x / 2 * (1 + erf(x / sqrt(2)))``, and its approximation ``x / 2 * (1 + tanh(sqrt(2 / pi) *
    (x + 0.044715 x^3)))``. With an older opset, ONNX Runtime's own operators are used if allowed.

    Args:
        contrib: Whether operators of ONNX Runtime's own domain may be used.
    """

    op_types: ClassVar[frozenset[str]] = frozenset({"Mul", "Div"})

    def __init__(self, *, contrib: bool = False) -> None:
        super().__init__()
        self.contrib = contrib

    def rewrite(self, node: ir.Node, op: Builder) -> Any:
        """The one operator."""
        if node.domain:
            return None
        product = Product(node.outputs[0])
        for factor in product.factors:
            gate = _sum_with(factor, 1.0)
            made = producer(gate, "Erf", "Tanh")
            if made is None or len(product.factors) != 2:
                continue
            (x,) = product.without(factor) or (None,)
            if x is None or not _near(product.number, 0.5):
                continue
            exact = made.op_type == "Erf"
            argument = made.inputs[0]
            if argument is None or not (_is_erf if exact else _is_tanh)(argument, x):
                continue
            for inner in (factor, gate):
                alone = inner is not None and only_consumer(inner) is not None
                require(alone, "an intermediate result has another use", inner)
            return self._gelu(x, node.outputs[0], op, exact=exact)
        return None

    def _gelu(self, x: ir.Value, like: ir.Value, op: Builder, *, exact: bool) -> ir.Value:
        if op.opset >= 20:
            y: ir.Value = op.Gelu(x, approximate=None if exact else "tanh")
            return y
        require(self.contrib, f"opset {op.opset} has no Gelu", x)
        require(x.dtype == ir.DataType.FLOAT, "the dtype has no kernel", x)
        return op.ms("Gelu" if exact else "FastGelu", x, like=like)


def _is_erf(argument: ir.Value, x: ir.Value) -> bool:
    """Whether the argument is ``x / sqrt(2)``."""
    inner = Product(argument)
    return inner.without(x) == [] and _near(inner.number, 1 / math.sqrt(2))


def _is_tanh(argument: ir.Value, x: ir.Value) -> bool:
    """Whether the argument is ``sqrt(2 / pi) * (x + 0.044715 * x ** 3)``, factored in any way."""
    outer = Product(argument)
    k = math.sqrt(2 / math.pi)
    if outer.without(x) is not None:  # x * k * (1 + 0.044715 * x * x)
        rest = outer.without(x)
        square = _sum_with(rest[0], 1.0) if rest and len(rest) == 1 else None
        if square is not None and _near(outer.number, k):
            return _is_power(square, x, 2, 0.044715)
        total = producer(rest[0], "Add") if rest and len(rest) == 1 else None
        if total is None:
            return False
        return any(
            (number := scalar(c)) is not None
            and _near(number * outer.number, k)
            and s is not None
            and _is_power(s, x, 2, k * 0.044715 / outer.number)
            for s, c in (list(total.inputs), list(total.inputs)[::-1])
        )
    if len(outer.factors) != 1 or not _near(outer.number, k):
        return False
    total = producer(outer.factors[0], "Add")
    if total is None:
        return False
    return any(
        a is x and b is not None and _is_power(b, x, 3, 0.044715)
        for a, b in (list(total.inputs), list(total.inputs)[::-1])
    )


def _is_power(value: ir.Value, x: ir.Value, exponent: int, number: float) -> bool:
    """Whether ``value`` is ``number * x ** exponent``."""
    product = Product(value)
    degree = 0
    for factor in product.factors:
        power = producer(factor, "Pow")
        if factor is x:
            degree += 1
        elif power is not None and power.inputs[0] is x and scalar(power.inputs[1]) is not None:
            degree += int(scalar(power.inputs[1]) or 0)
        else:
            return False
    return degree == exponent and _near(product.number, number)


class QuickGeluPass(NodePass):
    """``x * sigmoid(a * x)`` becomes ``com.microsoft.QuickGelu``; ``a`` is 1 for SiLU.

    Args:
        silu: Whether to take any ``a``, and not that of the approximation of GELU only. ONNX Runtime
            does so by itself, where it does not rather join the Sigmoid with a Conv.
    """

    op_types: ClassVar[frozenset[str]] = frozenset({"Mul"})

    def __init__(self, *, silu: bool = False) -> None:
        super().__init__()
        self.silu = silu

    def rewrite(self, node: ir.Node, op: Builder) -> Any:
        """The one operator."""
        if node.domain or node.outputs[0].dtype != ir.DataType.FLOAT:
            return None
        for x, gate in (list(node.inputs), list(node.inputs)[::-1]):
            sigmoid = producer(gate, "Sigmoid")
            if sigmoid is None or x is None or gate is None:
                continue
            argument = sigmoid.inputs[0]
            if argument is None:
                continue
            alpha = 1.0
            if argument is not x:
                inner = Product(argument)
                if inner.without(x) != []:
                    continue
                alpha = inner.number
            if not self.silu and not _near(alpha, _QUICK):
                continue
            require(only_consumer(gate) is not None, "the gate has another use", gate)
            return op.ms("QuickGelu", x, alpha=float(alpha), like=node.outputs[0])
        return None


class HardSwishPass(NodePass):
    """``x * HardSigmoid(x)`` and ``x * clip(x + 3, 0, 6) / 6`` become ``HardSwish``."""

    op_types: ClassVar[frozenset[str]] = frozenset({"Mul", "Div"})

    def rewrite(self, node: ir.Node, op: Builder) -> Any:
        """The one operator."""
        if node.domain or op.opset < 14:
            return None
        product = Product(node.outputs[0])
        if len(product.factors) != 2:
            return None
        for gate in product.factors:
            (x,) = product.without(gate) or (None,)
            made = producer(gate, "HardSigmoid", "Clip")
            if x is None or made is None:
                continue
            if made.op_type == "HardSigmoid":
                fits = made.inputs[0] is x and _near(product.number, 1.0)
                fits = fits and _near(attribute(made, "alpha", 0.2), 1 / 6)
                fits = fits and _near(attribute(made, "beta", 0.5), 0.5)
            else:
                fits = _sum_with(made.inputs[0], 3.0) is x and _near(product.number, 1 / 6)
                fits = fits and scalar(input_of(made, 1)) == 0 and scalar(input_of(made, 2)) == 6
            if not fits:
                continue
            require(only_consumer(gate) is not None, "the gate has another use", gate)
            return op.HardSwish(x)
        return None
