"""Where integers flow: which nodes compute in 8 bits, and which values they hand on in 8 bits.

Convolutions and products with constant weights are the *kernels*: they gain from integers. What
lies between them (sums, pools, rearrangements, activations) follows where all it reads is in
integers already and a kernel waits behind it. A convolution's result is always in integers, or ONNX
Runtime could not run the convolution so; a product's result is floating-point, which costs nothing
and loses nothing.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Literal

import onnx_ir as ir

from optim_passes.values import attribute, constant, input_of, is_op, only_consumer, rank, scalar

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from optim_passes.scopes import Scope

__all__ = [
    "KERNELS",
    "Placement",
    "Result",
    "is_kernel",
    "kernel_axis",
    "place",
    "thin_stem",
]

FLOAT = ir.DataType.FLOAT
CONVOLUTIONS = ("Conv", "ConvTranspose")
PRODUCTS = ("MatMul", "Gemm")
RECURRENT = ("LSTM", "GRU")
KERNELS = (*CONVOLUTIONS, *PRODUCTS)

_THIN = 24  # channels

Activation = Literal["", "Relu", "Clip", "HardSigmoid", "HardSwish"]

# What computes on integers with a result of another scale.
_RESCALING = frozenset({
    "Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool", "LeakyRelu", "Sigmoid",
})  # fmt: skip
# What only moves integers, or picks some of them: the result has the scale of what it reads.
_MOVING = frozenset({
    "MaxPool", "GlobalMaxPool", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze",
    "Slice", "Split", "Gather", "Expand", "Tile", "DepthToSpace", "SpaceToDepth", "Identity",
    "Resize",
})  # fmt: skip


@dataclasses.dataclass(slots=True)
class Result:
    """A value that is made in integers.

    Attributes:
        value: What the nodes behind read; after an activation, what that returns.
        node: The node that computes it.
        activation: The activation that the rounding to integers does too.
        absorbed: The activation's node.
        low: Lower bound that the activation sets.
        high: Upper bound that the activation sets.
        scale_of: The value whose scale it has, None for one of its own.
    """

    value: ir.Value
    node: ir.Node
    activation: Activation = ""
    absorbed: ir.Node | None = None
    low: float | None = None
    high: float | None = None
    scale_of: ir.Value | None = None


@dataclasses.dataclass(slots=True)
class Placement:
    """What becomes integers in one body.

    Attributes:
        scope: The body.
        kernels: Convolutions and products, in order.
        followers: Other nodes that read and return integers.
        results: Values made in integers, in order.
        fed: Values made in floating point that kernels read in integers, in order.
    """

    scope: Scope
    kernels: list[ir.Node] = dataclasses.field(default_factory=list)
    followers: list[ir.Node] = dataclasses.field(default_factory=list)
    results: dict[ir.Value, Result] = dataclasses.field(default_factory=dict)
    fed: list[ir.Value] = dataclasses.field(default_factory=list)

    def observed(self) -> Iterator[ir.Value]:
        """The values whose ranges the pass has to know."""
        for value, result in self.results.items():
            if result.scale_of is None and result.activation != "HardSigmoid":
                yield value
                if result.activation == "HardSwish":
                    assert result.absorbed is not None
                    yield result.absorbed.inputs[0]  # type: ignore[misc]
        yield from self.fed


def is_kernel(node: ir.Node) -> bool:
    """Whether the node is a float32 convolution or product with constant weights."""
    if not is_op(node, *KERNELS) or len(node.inputs) < 2:
        return False
    weight = constant(node.inputs[1])
    if weight is None or weight.dtype != FLOAT or not weight.size:
        return False
    if node.op_type in CONVOLUTIONS:
        bias = input_of(node, 2)
        return bias is None or constant(bias) is not None
    if len(weight.shape) != 2:
        return False
    if node.op_type == "MatMul":
        return True
    plain = attribute(node, "alpha", 1.0) == 1 and attribute(node, "beta", 1.0) == 1
    bias = input_of(node, 2)
    return (
        plain
        and not attribute(node, "transA", 0)
        and (bias is None or (constant(bias) is not None and rank(bias) == 1))
    )


def kernel_axis(node: ir.Node) -> int | None:
    """The axis of the weights that output channels go along; None if there is no such axis."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        return 1 if attribute(node, "group", 1) == 1 else None
    if node.op_type == "Gemm":
        return 0 if attribute(node, "transB", 0) else 1
    return 1


def place(scope: Scope, wanted: Callable[[ir.Node], bool], *, moving: bool = True) -> Placement:
    """Decide what becomes integers in one body.

    Args:
        scope: The body.
        wanted: Whether a node may compute in integers.
        moving: Whether anything but kernels does.
    """
    placement = Placement(scope)
    placement.kernels = [n for n in scope.body if is_kernel(n) and wanted(n)]
    kernels = set(placement.kernels)
    made = _made(scope, kernels, wanted if moving else lambda _: False)
    followers = _followers(scope, kernels, made)
    placement.followers = [n for n in scope.body if n in followers]
    for value, result in made.items():
        if result.node in kernels or result.node in followers:
            placement.results[value] = result
    fed: dict[ir.Value, None] = {}
    for node in placement.kernels:
        x = node.inputs[0]
        if x is not None and x not in placement.results:
            fed[x] = None
    placement.fed = list(fed)
    return placement


def _made(
    scope: Scope, kernels: Collection[ir.Node], wanted: Callable[[ir.Node], bool]
) -> dict[ir.Value, Result]:
    """Every value that could be made in integers."""
    made: dict[ir.Value, Result] = {}
    absorbed: set[ir.Node] = set()
    for node in scope.body:
        if node in absorbed:
            continue
        if node in kernels:
            if node.op_type in CONVOLUTIONS:
                result = _with_activation(node)
                made[result.value] = result
                if result.absorbed is not None:
                    absorbed.add(result.absorbed)
            continue
        if not _follows(node, made) or not wanted(node):
            continue
        if node.op_type in _MOVING:
            x = node.inputs[0]
            assert x is not None
            for value in node.outputs:
                made[value] = Result(value, node, scale_of=made[x].scale_of or x)
        elif node.op_type in ("Add", "Mul"):
            result = _with_activation(node)
            made[result.value] = result
            if result.absorbed is not None:
                absorbed.add(result.absorbed)
        else:
            made[node.outputs[0]] = Result(node.outputs[0], node)
    return made


def _follows(node: ir.Node, made: Collection[ir.Value]) -> bool:
    """Whether a node that is no kernel could compute on integers."""
    if node.domain or any(v.dtype not in (FLOAT, None) for v in node.outputs):
        return False
    if node.op_type in _MOVING:
        if node.op_type == "MaxPool" and len(node.outputs) > 1:
            return False
        if node.op_type == "Resize" and attribute(node, "mode", "nearest") == "cubic":
            return False  # it overshoots
        return node.inputs[0] in made
    if node.op_type not in _RESCALING:
        return False
    if node.op_type == "AveragePool" and attribute(node, "count_include_pad", 0):
        return False  # ONNX Runtime's kernel for integers pads with the zero of real numbers only
    operands = [v for v in node.inputs if v is not None]
    if node.op_type in ("Add", "Mul"):
        known = [v for v in operands if constant(v) is not None]
        operands = [v for v in operands if constant(v) is None]
        if any(constant(v).dtype != FLOAT for v in known):  # type: ignore[union-attr]
            return False
    return bool(operands) and all(v in made for v in operands)


def _followers(
    scope: Scope, kernels: Collection[ir.Node], made: dict[ir.Value, Result]
) -> set[ir.Node]:
    """The nodes, kernels apart, whose results some kernel reads over nodes of the same kind."""
    kept: set[ir.Node] = set()
    by_node: dict[ir.Node, list[ir.Value]] = {}
    for value, result in made.items():
        by_node.setdefault(result.node, []).append(value)
    for node in reversed(list(scope.body)):
        if node in kernels or node not in by_node:
            continue
        for value in by_node[node]:
            if any(_takes_integers(use.node, use.idx, kernels, kept) for use in value.uses()):
                kept.add(node)
                break
    return kept


def _takes_integers(
    node: ir.Node, index: int, kernels: Collection[ir.Node], kept: Collection[ir.Node]
) -> bool:
    return (node in kernels and index == 0) or node in kept


def _with_activation(node: ir.Node) -> Result:
    """The node's result, and the activation that only sets bounds to it."""
    y = node.outputs[0]
    after = only_consumer(y)
    if after is None or after.domain or after.graph is not node.graph:
        return Result(y, node)
    z = after.outputs[0]
    if after.op_type == "Relu":
        return Result(z, node, "Relu", after, low=0.0)
    if after.op_type == "Clip":
        low = _bound(after, 1, "min")
        high = _bound(after, 2, "max")
        if low is not None and high is not None and low <= 0 <= high:
            return Result(z, node, "Clip", after, low, high)
    if after.op_type == "HardSigmoid" and attribute(after, "alpha", 0.2) > 0:
        alpha, beta = attribute(after, "alpha", 0.2), attribute(after, "beta", 0.5)
        if 0 < beta < 1:
            return Result(z, node, "HardSigmoid", after, -beta / alpha, (1 - beta) / alpha)
    if after.op_type == "HardSwish":
        return Result(z, node, "HardSwish", after)
    return Result(y, node)


def _bound(node: ir.Node, index: int, name: str) -> float | None:
    """A bound of Clip, infinite where it is left out; None if it is not constant."""
    infinite = float("-inf") if name == "min" else float("inf")
    given = input_of(node, index)
    if given is None:
        return float(attribute(node, name, infinite))
    number = scalar(given)
    return None if number is None else float(number)


def thin_stem(scope: Scope) -> set[ir.Node]:
    """The first convolutions while they have few channels.

    Integers come in groups of 16 channels and more; measured on ONNX Runtime 1.32, a convolution of
    3 images into 16 channels and a depthwise one of 16 take up to four times as long on integers.
    """
    early: dict[ir.Value, bool] = {}  # made without a convolution that is not in the stem
    stem: set[ir.Node] = set()
    for node in scope.body:
        operands = [v for v in node.inputs if v is not None and constant(v) is None]
        before = all(v.is_graph_input() or early.get(v, False) for v in operands)
        weight = constant(input_of(node, 1)) if is_op(node, "Conv") else None
        if is_op(node, *KERNELS) and before:
            before = weight is not None and weight.shape.numpy()[0] <= _THIN
            if before:
                stem.add(node)
        for value in node.outputs:
            early[value] = before
    return stem
