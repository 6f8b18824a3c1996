from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from tests.pytorch.lowerings.cases import (
    FLOATS,
    OPSETS,
    check_module,
    f32,
    f64,
    op_types,
)
from tests.pytorch.opinfo import check_call

R = torch.randn
MODULES = ("nn.LSTM", "nn.GRU", "nn.RNN", "nn.LSTMCell", "nn.GRUCell", "nn.RNNCell")
KINDS = {"LSTM": nn.LSTM, "GRU": nn.GRU, "RNN": nn.RNN}
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
DYNAMIC = {"x": {0: "t", 1: "b"}}


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_modules_match_eager(name: str, dtype: torch.dtype) -> None:
    check_module(name, dtype, **(CLOSE if dtype == f32 else {}))


@pytest.mark.parametrize(
    ("kind", "layers", "bidirectional", "batch_first", "bias"),
    [
        (k, *rest)
        for k in KINDS
        for rest in itertools.product((1, 2), (False, True), (False, True), (False, True))
    ],
)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_dynamic_batch_and_length(
    kind: str, layers: int, bidirectional: bool, batch_first: bool, bias: bool, dtype: torch.dtype
) -> None:
    module = KINDS[kind](
        3, 4, layers, bidirectional=bidirectional, batch_first=batch_first, bias=bias
    )
    module = module.to(dtype).eval()
    traced = check_call(
        lambda x: module(x),
        (R(2, 5, 3, dtype=dtype),),
        dynamic_shapes=DYNAMIC,
        others=[(R(1, 1, 3, dtype=dtype),), (R(4, 7, 3, dtype=dtype),)],
        **(CLOSE if dtype == f32 else {}),
    )
    if dtype == f32:
        assert op_types(traced).count(kind) == layers
    # Zero initial states are what the operator starts with: none is made.
    assert "ConstantOfShape" not in op_types(traced) or dtype == f64


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("kind", KINDS)
def test_other_opsets(kind: str, opset: int) -> None:
    module = KINDS[kind](3, 4, 2, bidirectional=True).eval()
    check_call(lambda x: module(x), (R(5, 2, 3),), opset=opset, **CLOSE)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layers", [1, 2])
def test_given_states(kind: str, layers: int) -> None:
    module = KINDS[kind](3, 4, layers, bidirectional=True).eval()
    states = tuple(R(2 * layers, 2, 4) for _ in range(1 + (kind == "LSTM")))

    def call(x: Any, *states: Any) -> Any:
        return module(x, states if kind == "LSTM" else states[0])

    check_call(call, (R(5, 2, 3), *states), **CLOSE)


def test_half_precision() -> None:
    module = nn.LSTM(3, 4).half().eval()
    check_call(lambda x: module(x), (R(5, 2, 3).half(),), rtol=5e-3, atol=5e-3)


def test_one_layer_is_one_operator_and_a_squeeze() -> None:
    module = nn.GRU(3, 4).eval()
    assert op_types(check_call(lambda x: module(x)[0], (R(5, 2, 3),), **CLOSE)) == [
        "GRU",
        "Squeeze",
    ]


def test_weights_are_put_in_order_once() -> None:
    module = nn.LSTM(3, 4).eval()

    def call(x: Any, y: Any) -> Any:
        return module(x)[0] + module(y)[0]

    traced = check_call(call, (R(5, 2, 3), R(5, 2, 3)), **CLOSE)
    nodes = [n for n in traced.model.graph if n.op_type == "LSTM"]
    assert [v.name for v in nodes[0].inputs[1:4]] == [v.name for v in nodes[1].inputs[1:4]]
    assert nodes[0].inputs[1].name == "module.weight_ih_l0.LSTM"


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("opset", [17, 23])
def test_projected(bidirectional: bool, opset: int) -> None:
    module = nn.LSTM(3, 4, 2, proj_size=2, bidirectional=bidirectional).eval()
    check_call(
        lambda x: module(x),
        (R(5, 2, 3),),
        dynamic_shapes=DYNAMIC,
        others=[(R(1, 1, 3),)],
        opset=opset,
        **CLOSE,
    )


def test_weights_that_are_computed() -> None:
    w, r, b = R(16, 3), R(16, 4), R(16)

    def call(x: Any, scale: Any) -> Any:
        zeros = torch.zeros(1, x.shape[1], 4)
        weights = [w * scale, r * scale, b, b * scale]
        return torch._VF.lstm(x, (zeros, zeros), weights, True, 1, 0.0, False, False, False)

    check_call(call, (R(5, 2, 3), torch.tensor(0.5)), dynamic_shapes=DYNAMIC, **CLOSE)


# Packed sequences


def _run(module: nn.Module, x: Any, lengths: Any, ordered: bool, **options: Any) -> Any:
    change = options.pop("change", None)
    packed = pack_padded_sequence(
        x, lengths, batch_first=options.get("batch_first", False), enforce_sorted=ordered
    )
    if change is not None:
        packed = PackedSequence(change(packed.data), *packed[1:])
    y, state = module(packed)
    return *pad_packed_sequence(y, **options), state


MAKERS = {
    "lstm": lambda: nn.LSTM(3, 4, 2, bidirectional=True).eval(),
    "gru": lambda: nn.GRU(3, 4, 2, bidirectional=True).eval(),
    "rnn": lambda: nn.RNN(3, 4).eval(),
    "projected": lambda: nn.LSTM(3, 4, proj_size=2, bidirectional=True).eval(),
    "double": lambda: nn.GRU(3, 4, bidirectional=True).double().eval(),
}


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("longest", [5, 4])  # 4: shorter than what is padded
def test_packed(maker: str, ordered: bool, longest: int) -> None:
    module = MAKERS[maker]()
    dtype = next(module.parameters()).dtype
    lengths = torch.tensor([longest, 3, 2] if ordered else [2, longest, 3])
    traced = check_call(
        lambda x, n: _run(module, x, n, ordered),
        (R(5, 3, 3, dtype=dtype), lengths),
        **(CLOSE if dtype == f32 else {}),
    )
    # The recurrent layer reads the padded tensor: nothing is packed or unpacked.
    assert "Compress" not in op_types(traced)


@pytest.mark.parametrize("maker", MAKERS)
def test_packed_with_known_lengths(maker: str) -> None:
    module = MAKERS[maker]()
    x = R(5, 3, 3, dtype=next(module.parameters()).dtype)
    check_call(lambda x: _run(module, x, [2, 5, 3], False), (x,), **CLOSE)
    check_call(lambda x: _run(module, x, [5, 3, 1], True), (x,), **CLOSE)


@pytest.mark.parametrize("maker", ["lstm", "gru"])
def test_packed_of_dynamic_sizes(maker: str) -> None:
    module = MAKERS[maker]()
    check_call(
        lambda x, n: _run(module, x, n, False),
        (R(6, 3, 3), torch.tensor([2, 6, 3])),
        dynamic_shapes={"x": {0: "t", 1: "b"}, "n": {0: "b"}},
        others=[(R(9, 2, 3), torch.tensor([1, 7])), (R(3, 1, 3), torch.tensor([3]))],
        **CLOSE,
    )


@pytest.mark.parametrize(
    "options",
    [
        {"change": lambda d: torch.relu(d) + 1},
        {"padding_value": -1.0},
        {"total_length": 8},
        {"total_length": 5},
        {"total_length": 4, "padding_value": 2.0},
    ],
    ids=["change", "padding", "longer", "as-long", "shorter"],
)
def test_packed_options(options: dict[str, Any]) -> None:
    module = MAKERS["lstm"]()
    check_call(
        lambda x, n: _run(module, x, n, False, **options),
        (R(5, 3, 3), torch.tensor([2, 4, 3])),
        **CLOSE,
    )


def test_packed_batch_first() -> None:
    module = nn.LSTM(3, 4, batch_first=True).eval()
    check_call(
        lambda x, n: _run(module, x, n, False, batch_first=True),
        (R(3, 5, 3), torch.tensor([2, 5, 3])),
        **CLOSE,
    )


def test_packed_data_itself() -> None:
    def call(x: Any, n: Any) -> Any:
        packed = pack_padded_sequence(x, n)
        return packed.data, packed.batch_sizes

    traced = check_call(call, (R(5, 3, 2), torch.tensor([4, 3, 1])))
    assert op_types(traced).count("Compress") == 1


def test_packing_and_padding_again() -> None:
    def call(x: Any, n: Any) -> Any:
        return pad_packed_sequence(pack_padded_sequence(x, n, enforce_sorted=False))

    check_call(call, (R(5, 3, 2), torch.tensor([2, 4, 1])))


def test_states_of_a_packed_sequence_start_another_layer() -> None:
    encoder, decoder = nn.LSTM(3, 4, batch_first=True), nn.LSTM(3, 4, batch_first=True)

    def call(x: Any, n: Any, y: Any) -> Any:
        packed = pack_padded_sequence(x, n, batch_first=True, enforce_sorted=False)
        return decoder(y, encoder(packed)[1])[0]

    check_call(
        call,
        (R(3, 5, 3), torch.tensor([2, 5, 3]), R(3, 4, 3)),
        dynamic_shapes={"x": {0: "b", 1: "t"}, "n": {0: "b"}, "y": {0: "b", 1: "s"}},
        others=[(R(1, 7, 3), torch.tensor([6]), R(1, 2, 3))],
        **CLOSE,
    )


# Training


def test_dropout_between_layers_is_off_in_eval() -> None:
    module = nn.GRU(3, 4, 2, dropout=0.5).eval()
    assert "Dropout" not in op_types(check_call(lambda x: module(x), (R(5, 2, 3),), **CLOSE))
