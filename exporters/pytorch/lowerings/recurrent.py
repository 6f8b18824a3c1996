"""Recurrent layers and cells, and packed sequences."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import torch
import torch.nn.functional as F

from exporters.pytorch.lowerings.dims import static_size
from exporters.pytorch.lowerings.scanning import scan
from exporters.pytorch.lowerings.sequences import Padded, pack, unpack
from exporters.pytorch.registry import decomposes, lowers

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from exporters.tracing.graph import GraphBuilder as Op

T = torch.Tensor


@dataclasses.dataclass(frozen=True)
class Kind:
    """A recurrent layer as torch and as ONNX have it.

    Attributes:
        op_type: ONNX operator.
        gates: Which of torch's gates is ONNX's first, second, ...
        attributes: Of the ONNX operator, for one direction.
        step: The formula of one step, for what the operator cannot do.
    """

    op_type: str
    gates: tuple[int, ...]
    attributes: dict[str, Any]
    step: Callable[..., list[ir.Value]]


@dataclasses.dataclass(frozen=True)
class Weights:
    """Of one direction of one layer, as torch has them."""

    input: ir.Value
    hidden: ir.Value
    input_bias: ir.Value | None
    hidden_bias: ir.Value | None
    projection: ir.Value | None


def _pieces(op: Op, x: ir.Value, count: int) -> list[ir.Value]:
    size = static_size(x, -1)
    assert size is not None
    return op.Split(x, [size // count] * count, axis=-1, outputs=count)


def _lstm_step(
    op: Op, x: ir.Value, product: ir.Value, states: Sequence[ir.Value]
) -> list[ir.Value]:
    i, f, g, o = _pieces(op, op.Add(x, product), 4)
    cell = op.Add(op.Mul(op.Sigmoid(f), states[1]), op.Mul(op.Sigmoid(i), op.Tanh(g)))
    return [op.Mul(op.Sigmoid(o), op.Tanh(cell)), cell]


def _gru_step(
    op: Op, x: ir.Value, product: ir.Value, states: Sequence[ir.Value]
) -> list[ir.Value]:
    (xr, xz, xn), (hr, hz, hn) = _pieces(op, x, 3), _pieces(op, product, 3)
    update = op.Sigmoid(op.Add(xz, hz))
    new = op.Tanh(op.Add(xn, op.Mul(op.Sigmoid(op.Add(xr, hr)), hn)))
    return [op.Add(op.Mul(op.Sub(states[0], new), update), new)]


def _rnn_step(activation: str) -> Callable[..., list[ir.Value]]:
    def step(op: Op, x: ir.Value, product: ir.Value, states: Sequence[ir.Value]) -> list[ir.Value]:
        return [op.emit(activation, op.Add(x, product))]

    return step


LSTM = Kind("LSTM", (0, 3, 1, 2), {}, _lstm_step)
GRU = Kind("GRU", (1, 0, 2), {"linear_before_reset": 1}, _gru_step)
RNN_TANH = Kind("RNN", (0,), {"activations": ["Tanh"]}, _rnn_step("Tanh"))
RNN_RELU = Kind("RNN", (0,), {"activations": ["Relu"]}, _rnn_step("Relu"))


@dataclasses.dataclass(frozen=True)
class Layers:
    """What a call of ``torch.lstm`` and its like says beside the sequence and its states."""

    kind: Kind
    weights: list[list[Weights]]  # by layer, then by direction
    dropout: float

    @property
    def directions(self) -> int:
        """1, or 2 of a bidirectional layer."""
        return len(self.weights[0])


def _layers(
    kind: Kind, params: Sequence[ir.Value], has_biases: bool, num_layers: int, dropout: float,
    train: bool, bidirectional: bool,
) -> Layers:  # fmt: skip
    directions = 2 if bidirectional else 1
    each = len(params) // (num_layers * directions)
    projected = each == (5 if has_biases else 3)
    groups: list[Weights] = []
    for start in range(0, len(params), each):
        part = list(params[start : start + each])
        projection = part.pop() if projected else None
        biases = part[2:] if has_biases else [None, None]
        groups.append(Weights(part[0], part[1], biases[0], biases[1], projection))
    weights = [groups[i * directions : (i + 1) * directions] for i in range(num_layers)]
    return Layers(kind, weights, dropout if train and num_layers > 1 else 0.0)


def _run(
    op: Op, layers: Layers, x: ir.Value, lengths: ir.Value | None, states: Sequence[ir.Value]
) -> tuple[ir.Value, list[ir.Value]]:
    """Run all layers over [T, B, I]; the last one's outputs, and every layer's final states."""
    count = len(layers.weights)
    begins = [_states_of_layers(op, s, count, layers.directions) for s in states]
    finals: list[list[ir.Value]] = [[] for _ in states]
    for index, weights in enumerate(layers.weights):
        if index and layers.dropout:
            x = op.Dropout(x, np.float32(layers.dropout), True)
        begin = [b[index] for b in begins]
        whole = weights[0].projection is None and x.dtype != ir.DataType.DOUBLE
        layer = _operator if whole else _scanned  # ORT 1.32 CPU has no float64 kernels
        x, ends = layer(op, layers.kind, x, lengths, begin, weights)
        for final, end in zip(finals, ends, strict=True):
            final.append(end)
    joined = [op.Concat(*f, axis=0) if len(f) > 1 else f[0] for f in finals]
    return x, joined


def _states_of_layers(
    op: Op, state: ir.Value, layers: int, directions: int
) -> list[ir.Value | None]:
    if _is_zero(state):  # what the operators start with
        return [None] * layers
    if layers == 1:
        return [state]
    parts: list[ir.Value | None] = op.Split(state, [directions] * layers, axis=0, outputs=layers)
    for part in parts:
        part.shape = ir.Shape([directions, *state.shape.dims[1:]])
    return parts


def _is_zero(x: ir.Value) -> bool:
    if x.const_value is not None:
        return not np.any(x.const_value.numpy())
    node = x.producer()
    if node is None or node.op_type != "ConstantOfShape":
        return False
    fill = node.attributes.get("value")
    return fill is None or not np.any(fill.as_tensor().numpy())


# By the operator


def _operator(
    op: Op, kind: Kind, x: ir.Value, lengths: ir.Value | None,
    states: Sequence[ir.Value | None], weights: Sequence[Weights],
) -> tuple[ir.Value, list[ir.Value]]:  # fmt: skip
    """One layer as one node.

    ORT 1.32 ends the process if the batch is empty: there is no way to say so in the graph.
    """
    directions = len(weights)
    hidden = static_size(weights[0].hidden, -1)
    assert hidden is not None
    attributes = dict(kind.attributes)
    if "activations" in attributes:
        attributes["activations"] = attributes["activations"] * directions
    sequence_lens = None if lengths is None else op.cast(lengths, ir.DataType.INT32)
    y, *ends = op.emit(
        kind.op_type, x, *_joined(op, kind, weights), sequence_lens, *states,
        outputs=1 + len(states), hidden_size=hidden,
        direction="bidirectional" if directions == 2 else None, **attributes,
    )  # fmt: skip
    for value in (y, *ends):
        value.type = ir.TensorType(x.dtype)
    y.shape = ir.Shape([x.shape.dims[0], directions, x.shape.dims[1], hidden])
    if directions == 1:
        return op.Squeeze(y, [1]), ends
    y = op.Reshape(op.Transpose(y, perm=[0, 2, 1, 3]), [0, 0, 2 * hidden])
    return y, ends


def _joined(op: Op, kind: Kind, weights: Sequence[Weights]) -> list[ir.Value | None]:
    """W, R and B of an ONNX operator: directions stacked, gates in ONNX's order."""
    made: list[ir.Value | None] = [
        _stacked(op, kind, [[w.input] for w in weights]),
        _stacked(op, kind, [[w.hidden] for w in weights]),
    ]
    biases = [[w.input_bias, w.hidden_bias] for w in weights]
    if biases[0][0] is not None:
        made.append(_stacked(op, kind, biases))
    else:
        made.append(None)
    return made


def _stacked(op: Op, kind: Kind, parts: Sequence[Sequence[Any]]) -> ir.Value:
    """[directions, gates * hidden (twice for biases), ...]; constants are put in order at once."""
    flat = [x for group in parts for x in group]
    constants = [x.const_value for x in flat]

    def constant(_: object) -> ir.Value:
        arrays = [c.numpy() for c in constants]
        ordered = [
            np.concatenate([np.split(a, len(kind.gates))[i] for i in kind.gates]) for a in arrays
        ]
        each = len(parts[0])
        stacked = np.stack(
            [np.concatenate(ordered[i : i + each]) for i in range(0, len(ordered), each)]
        )
        return op.initializer(ir.tensor(stacked), f"{flat[0].name}.{kind.op_type}")

    def computed(_: object) -> ir.Value:
        groups = []
        for group in parts:
            ordered = []
            for x in group:
                size = static_size(x, 0)
                assert size is not None
                count = len(kind.gates)
                gates = (
                    op.Split(x, [size // count] * count, axis=0, outputs=count)
                    if count > 1
                    else [x]
                )
                ordered += [gates[i] for i in kind.gates]
            joined = op.Concat(*ordered, axis=0) if len(ordered) > 1 else ordered[0]
            groups.append(op.Unsqueeze(joined, [0]))
        return op.Concat(*groups, axis=0) if len(groups) > 1 else groups[0]

    make = computed if None in constants else constant
    value: ir.Value = op.once(("weights", kind.op_type, *flat), make, *flat)
    return value


# By the formula


def _scanned(
    op: Op, kind: Kind, x: ir.Value, lengths: ir.Value | None,
    states: Sequence[ir.Value | None], weights: Sequence[Weights],
) -> tuple[ir.Value, list[ir.Value]]:  # fmt: skip
    """One layer as a ``Scan-11`` per direction."""
    outputs, finals = [], []
    for direction, weight in enumerate(weights):
        begin = [
            _zeros(op, x, weight, index) if s is None else op.Gather(s, direction, axis=0)
            for index, s in enumerate(states)
        ]
        y, ends = _scanned_direction(op, kind, x, lengths, begin, weight, bool(direction))
        outputs.append(y)
        finals.append([op.Unsqueeze(e, [0]) for e in ends])
    y = op.Concat(*outputs, axis=-1) if len(outputs) > 1 else outputs[0]
    joined = [op.Concat(*f, axis=0) if len(f) > 1 else f[0] for f in zip(*finals, strict=True)]
    return y, joined


def _zeros(op: Op, x: ir.Value, weight: Weights, index: int) -> ir.Value:
    """An initial state: [B, hidden], or [B, projected] for the first of a projected LSTM."""
    width = static_size(weight.hidden, -1)
    if index and weight.projection is not None:
        width = static_size(weight.projection, -1)
    zero = np.zeros([1], x.dtype.numpy())
    return op.ConstantOfShape(op.operand([op.dim(x, 1), width]), value=zero)


def _scanned_direction(
    op: Op, kind: Kind, x: ir.Value, lengths: ir.Value | None, begin: Sequence[ir.Value],
    weight: Weights, backward: bool,
) -> tuple[ir.Value, list[ir.Value]]:  # fmt: skip
    turned = backward and lengths is not None  # each sequence by its own length
    if turned:
        x = _reversed(op, x, lengths)
    inputs = op.MatMul(x, op.Transpose(weight.input, perm=[1, 0]))
    if weight.input_bias is not None:
        inputs = op.Add(inputs, weight.input_bias)
    recurrent = op.Transpose(weight.hidden, perm=[1, 0])
    project = None if weight.projection is None else op.Transpose(weight.projection, perm=[1, 0])
    sequences = [inputs]
    if lengths is not None:
        steps = op.Range(0, op.Squeeze(op.dim_vector(x, 0), [0]), 1)
        sequences.append(op.Less(op.Unsqueeze(steps, [1, 2]), op.Unsqueeze(lengths, [1])))

    def step(states: list[ir.Value], items: list[ir.Value]) -> tuple[list[ir.Value], ir.Value]:
        product = op.MatMul(states[0], recurrent)
        if weight.hidden_bias is not None:
            product = op.Add(product, weight.hidden_bias)
        new = kind.step(op, items[0], product, states)
        if project is not None:
            new[0] = op.MatMul(new[0], project)
        if lengths is None:
            return new, op.Identity(new[0])
        kept = [op.Where(items[1], n, s) for n, s in zip(new, states, strict=True)]
        return kept, op.Where(items[1], new[0], 0)

    y, ends = scan(op, step, begin, sequences, backward=backward and not turned)
    y.shape = ir.Shape([x.shape.dims[0], x.shape.dims[1], begin[0].shape.dims[-1]])
    return (_reversed(op, y, lengths) if turned else y), ends


def _reversed(op: Op, x: ir.Value, lengths: ir.Value | None) -> ir.Value:
    y: ir.Value = op.ReverseSequence(x, lengths, batch_axis=1, time_axis=0)
    y.shape = x.shape.copy()
    return y


# The calls of torch


def _padded_call(
    op: Op, layers: Layers, input: ir.Value, states: Sequence[ir.Value], batch_first: bool
) -> tuple[ir.Value, ...]:
    x = op.Transpose(input, perm=[1, 0, 2]) if batch_first else input
    y, finals = _run(op, layers, x, None, states)
    return (op.Transpose(y, perm=[1, 0, 2]) if batch_first else y), *finals


def _packed_call(
    op: Op, layers: Layers, data: ir.Value, batch_sizes: ir.Value, states: Sequence[ir.Value]
) -> tuple[ir.Value, ...]:
    padded = unpack(op, data, batch_sizes)
    y, finals = _run(op, layers, padded.value, padded.lengths, states)
    for final in finals:
        final.meta["unbacked"] = False  # a state per sequence, however long it is
    return pack(op, Padded(y, padded.lengths, clean=True)), *finals


@lowers(torch.lstm)
def lstm(
    op: Op, /, input: ir.Value, hx: Sequence[ir.Value], params: Sequence[ir.Value],
    has_biases: bool, num_layers: int, dropout: float, train: bool, bidirectional: bool,
    batch_first: bool,
) -> tuple[ir.Value, ...]:  # fmt: skip
    """Lower to an ``LSTM-7`` per layer."""
    layers = _layers(LSTM, params, has_biases, num_layers, dropout, train, bidirectional)
    return _padded_call(op, layers, input, hx, batch_first)


@lowers(torch.lstm)
def lstm_packed(
    op: Op, /, data: ir.Value, batch_sizes: ir.Value, hx: Sequence[ir.Value],
    params: Sequence[ir.Value], has_biases: bool, num_layers: int, dropout: float, train: bool,
    bidirectional: bool,
) -> tuple[ir.Value, ...]:  # fmt: skip
    """Lower to an ``LSTM-7`` per layer, with ``sequence_lens``."""
    layers = _layers(LSTM, params, has_biases, num_layers, dropout, train, bidirectional)
    return _packed_call(op, layers, data, batch_sizes, hx)


def _one_state(kind: Kind) -> tuple[Callable[..., Any], Callable[..., Any]]:
    def padded(
        op: Op, /, input: ir.Value, hx: ir.Value, params: Sequence[ir.Value], has_biases: bool,
        num_layers: int, dropout: float, train: bool, bidirectional: bool, batch_first: bool,
    ) -> tuple[ir.Value, ...]:  # fmt: skip
        layers = _layers(kind, params, has_biases, num_layers, dropout, train, bidirectional)
        return _padded_call(op, layers, input, [hx], batch_first)

    def packed(
        op: Op, /, data: ir.Value, batch_sizes: ir.Value, hx: ir.Value,
        params: Sequence[ir.Value], has_biases: bool, num_layers: int, dropout: float,
        train: bool, bidirectional: bool,
    ) -> tuple[ir.Value, ...]:  # fmt: skip
        layers = _layers(kind, params, has_biases, num_layers, dropout, train, bidirectional)
        return _packed_call(op, layers, data, batch_sizes, [hx])

    return padded, packed


for _call, _kind in (
    (torch.gru, GRU),
    (torch.rnn_tanh, RNN_TANH),
    (torch.rnn_relu, RNN_RELU),
):
    for _lowering in _one_state(_kind):
        lowers(_call)(_lowering)


# Cells


@decomposes(torch.lstm_cell)
def lstm_cell(
    input: torch.Tensor, hx: Any, w_ih: torch.Tensor, w_hh: torch.Tensor, b_ih: Any = None,
    b_hh: Any = None,
) -> tuple[T, T]:  # fmt: skip
    gates = F.linear(input, w_ih, b_ih) + F.linear(hx[0], w_hh, b_hh)
    i, f, g, o = gates.chunk(4, -1)
    cell = torch.sigmoid(f) * hx[1] + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(cell), cell


@decomposes(torch.gru_cell)
def gru_cell(
    input: torch.Tensor, hx: torch.Tensor, w_ih: torch.Tensor, w_hh: torch.Tensor,
    b_ih: Any = None, b_hh: Any = None,
) -> T:  # fmt: skip
    xr, xz, xn = F.linear(input, w_ih, b_ih).chunk(3, -1)
    hr, hz, hn = F.linear(hx, w_hh, b_hh).chunk(3, -1)
    new = torch.tanh(xn + torch.sigmoid(xr + hr) * hn)
    return (hx - new) * torch.sigmoid(xz + hz) + new


@decomposes(torch.rnn_tanh_cell)
def rnn_tanh_cell(
    input: torch.Tensor, hx: torch.Tensor, w_ih: torch.Tensor, w_hh: torch.Tensor,
    b_ih: Any = None, b_hh: Any = None,
) -> T:  # fmt: skip
    return torch.tanh(F.linear(input, w_ih, b_ih) + F.linear(hx, w_hh, b_hh))


@decomposes(torch.rnn_relu_cell)
def rnn_relu_cell(
    input: torch.Tensor, hx: torch.Tensor, w_ih: torch.Tensor, w_hh: torch.Tensor,
    b_ih: Any = None, b_hh: Any = None,
) -> T:  # fmt: skip
    return torch.relu(F.linear(input, w_ih, b_ih) + F.linear(hx, w_hh, b_hh))
