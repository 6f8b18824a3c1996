"""Large channels of activations become large weights, which have a scale for each output (SmoothQuant)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from optim_passes.builder import Builder
from optim_passes.quantization.placement import FLOAT, is_kernel
from optim_passes.rewriting import Outcome, Pass
from optim_passes.scopes import Names
from optim_passes.tensors import derived
from optim_passes.values import attribute, constant, input_of, is_op, only_consumer

if TYPE_CHECKING:
    from collections.abc import Mapping

    import onnx_ir as ir

    from optim_passes.scopes import Scope

__all__ = ["SmoothingPass", "smoothed_inputs"]

Array = np.ndarray[Any, Any]

# f(x / s) = f(x) / s for a positive s, channel by channel.
_HOMOGENEOUS = frozenset({"Relu", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool"})
_STRONGEST = 1e4  # by so much a channel is scaled at most


class SmoothingPass(Pass):
    """``f(x) @ W`` becomes ``(f(x) / s) @ (s * W)`` with ``s = max|x|^a / max|W|^(1 - a)``.

    ``1 / s`` goes into the scale of the normalisation, or the weights of the convolution or product,
    that makes the activations; so the graph stays as it is. Nothing is moved where another node reads
    the activations too.

    Args:
        magnitudes: The largest magnitude in each channel by name of what kernels read.
        strength: ``a``: 0 moves nothing of the activations' differences, 1 moves all.
    """

    def __init__(self, magnitudes: Mapping[str, Array], strength: float = 0.5) -> None:
        super().__init__()
        self.magnitudes = magnitudes
        self.strength = strength

    def run(self, scope: Scope, outcome: Outcome) -> None:
        """Smooth what the kernels of one body read."""
        names = Names(scope.model)
        for x in smoothed_inputs(scope):
            if x.name is None or x.name not in self.magnitudes:
                continue
            readers = list(x.consumers())
            maker = _maker(x)
            assert maker is not None
            s = self._factors(self.magnitudes[x.name], readers)
            if s is None or not _divide(maker, s, scope, names):
                continue
            for reader in readers:
                _scale_inputs(reader, s, scope, names)
            outcome.rewrites += 1

    def _factors(self, largest: Array, readers: list[ir.Node]) -> Array | None:
        weights = [_input_magnitudes(n, len(largest)) for n in readers]
        if any(w is None for w in weights):
            return None
        of_weights = np.maximum.reduce([w for w in weights if w is not None])
        alive = (largest > 0) & (of_weights > 0)
        if not alive.any():
            return None
        s = np.ones(len(largest))
        s[alive] = largest[alive] ** self.strength / of_weights[alive] ** (1 - self.strength)
        s[alive] /= np.exp(np.log(s[alive]).mean())  # what all channels share helps nobody
        return np.clip(s, 1 / _STRONGEST, _STRONGEST).astype(np.float32)


def smoothed_inputs(scope: Scope) -> list[ir.Value]:
    """The values whose channels can be scaled: those that kernels alone read."""
    found = []
    values = dict.fromkeys(n.inputs[0] for n in scope.body if is_kernel(n))
    for x in values:
        if x is None or x.is_graph_output() or _maker(x) is None:
            continue
        uses = list(x.uses())
        if all(u.idx == 0 and is_kernel(u.node) and u.node.graph is scope.body for u in uses):
            found.append(x)
    return found


def channel_axis(x: ir.Value) -> int:
    """The axis of the channels that kernels sum over."""
    return 1 if any(n.op_type in ("Conv", "ConvTranspose") for n in x.consumers()) else -1


def _maker(x: ir.Value) -> ir.Node | None:
    """The node whose constants can take a factor for each channel of ``x``."""
    node = x.producer()
    image = channel_axis(x) == 1
    while node is not None and is_op(node, *_HOMOGENEOUS) and len(node.outputs) == 1:
        if node.op_type in ("MaxPool", "AveragePool", "GlobalAveragePool") and not image:
            return None
        source = node.inputs[0]
        if source is None or only_consumer(source) is not node:
            return None
        node = source.producer()
    if node is None:
        return None
    if image:
        return node if is_op(node, "Conv") and is_kernel(node) else None
    if is_op(node, "LayerNormalization"):
        scale = constant(input_of(node, 1))
        bias = input_of(node, 2)
        fine = scale is not None and len(scale.shape) == 1 and len(node.outputs) == 1
        return node if fine and (bias is None or constant(bias) is not None) else None
    return node if is_op(node, "Gemm") and is_kernel(node) else None


def _input_magnitudes(node: ir.Node, count: int) -> Array | None:
    """The largest weight that each input channel meets."""
    weight = constant(node.inputs[1])
    assert weight is not None
    array = np.abs(weight.numpy())
    if node.op_type == "Conv":
        if attribute(node, "group", 1) == 1:
            axes = (0, *range(2, array.ndim))
        elif array.shape[1] == 1 and array.shape[0] == count:
            axes = tuple(range(1, array.ndim))
        else:
            return None
    elif node.op_type == "ConvTranspose":
        return None
    else:
        axes = (0,) if attribute(node, "transB", 0) else (1,)
    found: Array = array.max(axis=axes)
    return found if len(found) == count else None


def _divide(maker: ir.Node, s: Array, scope: Scope, names: Names) -> bool:
    """Let a node make what it makes, divided by ``s``."""
    if maker.op_type == "LayerNormalization":
        targets = [(i, s) for i in (1, 2) if input_of(maker, i) is not None]
    else:
        weight = constant(maker.inputs[1])
        assert weight is not None
        rows = maker.op_type == "Conv" or attribute(maker, "transB", 0)
        if weight.shape.numpy()[0 if rows else 1] != len(s):
            return False
        shape = [-1] + [1] * (len(weight.shape) - 1) if rows else [1, -1]
        targets = [(1, s.reshape(shape))]
        if input_of(maker, 2) is not None:
            targets.append((2, s))
    for index, factors in targets:
        _replace(maker, index, lambda x, f=factors: x / f, scope, names)
    return True


def _scale_inputs(node: ir.Node, s: Array, scope: Scope, names: Names) -> None:
    weight = constant(node.inputs[1])
    assert weight is not None
    rank = len(weight.shape)
    if node.op_type == "Conv":
        depthwise = attribute(node, "group", 1) != 1
        shape = [-1 if i == (0 if depthwise else 1) else 1 for i in range(rank)]
    else:
        shape = [1, -1] if attribute(node, "transB", 0) else [-1, 1]
    factors = s.reshape(shape)
    _replace(node, 1, lambda x: x * factors, scope, names)


def _replace(node: ir.Node, index: int, compute: Any, scope: Scope, names: Names) -> None:
    value = node.inputs[index]
    tensor = constant(value)
    assert tensor is not None
    assert value is not None
    assert tensor.dtype == FLOAT
    op = Builder(scope, names, [node])
    made = op.constant(derived(compute, tensor), f"{value.name}.smoothed")
    for initializer in op.initializers:
        scope.model.graph.initializers.add(initializer)
    scope.body.insert_before(node, op.nodes)
    node.replace_input_with(index, made)
