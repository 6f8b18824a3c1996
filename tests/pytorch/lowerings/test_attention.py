from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.pytorch.lowerings.cases import (
    FLOATS,
    OPSETS,
    check_case,
    check_module,
    check_opset,
    f16,
    f32,
    f64,
    op_types,
    opset_rows,
    rows,
)
from tests.pytorch.opinfo import OpCase, check_call

if TYPE_CHECKING:
    from collections.abc import Callable

R = torch.randn
sdpa = F.scaled_dot_product_attention


def _drops(sample: Any) -> str | None:
    return "draws random numbers" if sample.kwargs.get("dropout_p") else None


LARGE_SCORES = "scores of some 300: what they lack in the last place, softmax shows before it"
CASES = (
    OpCase(
        "nn.functional.scaled_dot_product_attention",
        skip=_drops,
        dtypes=FLOATS,
        rtol=1e-4,
        atol=1e-4,
        why=LARGE_SCORES,
    ),
    OpCase(
        "nn.functional.scaled_dot_product_attention",
        skip=_drops,
        dtypes=(f16,),
        rtol=6e-2,
        atol=6e-2,
        why="ORT's CPU kernel holds scores of up to 300 as halves, torch's as floats",
    ),
    OpCase(
        "nn.functional.multi_head_attention_forward",
        dtypes=FLOATS,
        rtol=1e-4,
        atol=1e-4,
        every=2,
        why=LARGE_SCORES,
    ),
    OpCase("torch.ops.aten._safe_softmax.default"),
)
MODULES = (
    "nn.MultiheadAttention",
    "nn.TransformerEncoderLayer",
    "nn.TransformerDecoderLayer",
    "nn.TransformerEncoder",
    "nn.Transformer",
)


@pytest.mark.parametrize(("case", "dtype"), rows(CASES))
def test_matches_eager(case: OpCase, dtype: torch.dtype) -> None:
    check_case(case, dtype)


@pytest.mark.parametrize(("case", "opset"), opset_rows(CASES[:1] + CASES[2:]))
def test_matches_eager_in_other_opsets(case: OpCase, opset: int) -> None:
    check_opset(case, opset)


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_modules_match_eager(name: str, dtype: torch.dtype) -> None:
    check_module(name, dtype, every=2 if dtype == f32 else 5)


def _masks() -> list[Any]:
    shapes = [
        (5, 7), (1, 7), (5, 1), (1, 1), (3, 1, 7), (1, 5, 7), (1, 1, 5, 7), (2, 1, 1, 7),
        (2, 3, 1, 7), (2, 3, 5, 7), (2, 1, 5, 1),
    ]  # fmt: skip
    return [pytest.param(s, k, id=f"{k}-{list(s)}") for s in shapes for k in ("bool", "float")]


@pytest.mark.parametrize(("shape", "kind"), _masks())
@pytest.mark.parametrize("opset", [17, 23])
def test_masks_of_every_shape(shape: tuple[int, ...], kind: str, opset: int) -> None:
    mask = torch.rand(shape) > 0.4 if kind == "bool" else R(shape)
    inputs = R(2, 3, 5, 8), R(2, 3, 7, 8), R(2, 3, 7, 6)
    traced = check_call(lambda q, k, v, m: sdpa(q, k, v, m), (*inputs, mask), opset=opset)
    assert op_types(traced).count("Attention") == (opset == 23)


@pytest.mark.parametrize("fill", [-torch.inf, torch.finfo(f32).min, -1e9], ids=str)
@pytest.mark.parametrize("opset", [17, 23])
@pytest.mark.parametrize("constant", [True, False])
def test_fully_masked_rows(fill: float, opset: int, constant: bool) -> None:
    inputs = R(1, 2, 3, 8), R(1, 2, 4, 8), R(1, 2, 4, 8)
    mask = torch.zeros(3, 4)
    mask[1] = fill
    if constant:
        check_call(lambda q, k, v: sdpa(q, k, v, mask), inputs, opset=opset)
    else:
        check_call(lambda q, k, v, m: sdpa(q, k, v, m), (*inputs, mask), opset=opset)


@pytest.mark.parametrize("opset", [17, 23])
def test_fully_masked_rows_of_a_bool_mask_are_zero(opset: int) -> None:
    mask = torch.ones(3, 4, dtype=torch.bool)
    mask[1] = False
    inputs = R(1, 2, 3, 8), R(1, 2, 4, 8), R(1, 2, 4, 8)
    check_call(lambda q, k, v, m: sdpa(q, k, v, m), (*inputs, mask), opset=opset)


@pytest.mark.parametrize(
    "shapes",
    [
        pytest.param(((5, 8), (7, 8), (7, 8)), id="2d"),
        pytest.param(((3, 5, 8), (3, 7, 8), (3, 7, 6)), id="3d"),
        pytest.param(((2, 3, 5, 8), (2, 3, 7, 8), (2, 3, 7, 6)), id="4d"),
        pytest.param(((2, 2, 3, 5, 8), (2, 2, 3, 7, 8), (2, 2, 3, 7, 6)), id="5d"),
        pytest.param(((2, 3, 5, 8), (1, 3, 7, 8), (1, 3, 7, 8)), id="broadcast-batch"),
        pytest.param(((2, 3, 0, 8), (2, 3, 7, 8), (2, 3, 7, 8)), id="no-queries"),
        pytest.param(((2, 3, 5, 8), (2, 3, 0, 8), (2, 3, 0, 8)), id="no-keys"),
        pytest.param(((0, 3, 5, 8), (0, 3, 7, 8), (0, 3, 7, 8)), id="no-batch"),
    ],
)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("opset", [17, 23])
def test_shapes(shapes: tuple[tuple[int, ...], ...], causal: bool, opset: int) -> None:
    def call(q: Any, k: Any, v: Any) -> Any:
        return sdpa(q, k, v, is_causal=causal, scale=0.3)

    check_call(call, tuple(R(s) for s in shapes), opset=opset)


@pytest.mark.parametrize("opset", [17, 23])
@pytest.mark.parametrize("heads", [(2, 2), (1, 1), (2, 3), (6, 6)], ids=str)
def test_grouped_queries(heads: tuple[int, int], opset: int) -> None:
    inputs = R(2, 6, 5, 8), R(2, heads[0], 7, 8), R(2, heads[1], 7, 8)
    check_call(lambda q, k, v: sdpa(q, k, v, enable_gqa=True), inputs, opset=opset)


BATCH_AND_LENGTHS = {"q": {0: "b", 2: "t"}, "k": {0: "b", 2: "s"}, "v": {0: "b", 2: "s"}}


@pytest.mark.parametrize("opset", [17, 23])
@pytest.mark.parametrize("causal", [False, True])
def test_dynamic_batch_and_lengths(opset: int, causal: bool) -> None:
    def call(q: Any, k: Any, v: Any) -> Any:
        return sdpa(q, k, v, is_causal=causal)

    check_call(
        call,
        (R(2, 3, 4, 8), R(2, 3, 6, 8), R(2, 3, 6, 8)),
        dynamic_shapes=BATCH_AND_LENGTHS,
        opset=opset,
        others=[(R(1, 3, 1, 8), R(1, 3, 9, 8), R(1, 3, 9, 8))],
    )


@pytest.mark.parametrize("opset", [17, 23])
def test_dynamic_key_padding_mask(opset: int) -> None:
    def call(x: Any, keep: Any) -> Any:
        q = x.view(*x.shape[:2], 2, 8).transpose(1, 2)
        mask = keep[:, None, None, :]
        for _ in range(2):
            q = sdpa(q, q, q, mask)
        return q.transpose(1, 2).flatten(2)

    traced = check_call(
        call,
        (R(2, 5, 16), torch.rand(2, 5) > 0.3),
        dynamic_shapes={"x": {0: "b", 1: "t"}, "keep": {0: "b", 1: "t"}},
        opset=opset,
        others=[(R(1, 1, 16), torch.ones(1, 1, dtype=torch.bool))],
    )
    if opset == 23:
        assert op_types(traced).count("Attention") == 2
        assert op_types(traced).count("Expand") == 1  # the mask is spread once


def _layer() -> nn.Module:
    return nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()


@pytest.mark.parametrize(
    ("module", "args", "wanted"),
    [
        pytest.param(_layer(), (R(2, 5, 16),), 1, id="encoder-layer"),
        pytest.param(nn.TransformerEncoder(_layer(), 2).eval(), (R(2, 5, 16),), 2, id="encoder"),
        pytest.param(
            nn.TransformerDecoderLayer(16, 2, 32, batch_first=True).eval(),
            (R(2, 5, 16), R(2, 7, 16)),
            2,
            id="decoder-layer",
        ),
    ],
)
def test_attention_stays_whole(module: nn.Module, args: Any, wanted: int) -> None:
    traced = check_call(module, args)
    assert op_types(traced).count("Attention") == wanted
    assert "Softmax" not in op_types(traced)


def test_only_equal_lengths_are_left_to_is_causal() -> None:
    q, k = R(2, 3, 5, 8), R(2, 3, 7, 8)
    same = check_call(lambda q: sdpa(q, q, q, is_causal=True), (q,))
    other = check_call(lambda q, k: sdpa(q, k, k, is_causal=True), (q, k))
    nodes = [next(n for n in t.model.graph if n.op_type == "Attention") for t in (same, other)]
    assert nodes[0].attributes["is_causal"].value == 1
    assert "is_causal" not in nodes[1].attributes
    assert nodes[1].inputs[3] is not None


@pytest.mark.parametrize("opset", OPSETS)
def test_dynamic_encoder(opset: int) -> None:
    encoder = nn.TransformerEncoder(_layer(), 2).eval()

    def call(x: Any, padding: Any) -> Any:
        return encoder(x, src_key_padding_mask=padding)

    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    check_call(
        call,
        (R(2, 5, 16), padding),
        dynamic_shapes={"x": {0: "b", 1: "t"}, "padding": {0: "b", 1: "t"}},
        opset=opset,
        others=[(R(1, 8, 16), torch.zeros(1, 8, dtype=torch.bool))],
    )


def test_packed_projections_with_extra_keys() -> None:
    attention = nn.MultiheadAttention(
        16, 2, add_bias_kv=True, add_zero_attn=True, kdim=6, vdim=10, batch_first=True
    ).eval()

    def call(q: Any, k: Any, v: Any, padding: Any) -> Any:
        return attention(q, k, v, key_padding_mask=padding, average_attn_weights=False)

    padding = torch.zeros(2, 7, dtype=torch.bool)
    padding[0, 4:] = True
    check_call(call, (R(2, 5, 16), R(2, 7, 6), R(2, 7, 10), padding))


def _aten_flash(q: Any, k: Any, v: Any) -> Any:
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)


def _aten_math(q: Any, k: Any, v: Any) -> Any:
    return torch.ops.aten._scaled_dot_product_attention_math(q, k, v, is_causal=True)


@pytest.mark.parametrize("call", [_aten_flash, _aten_math])
@pytest.mark.parametrize("opset", [17, 23])
@pytest.mark.parametrize("dtype", [f32, f64], ids=str)
def test_operators_below_the_function(call: Callable[..., Any], opset: int, dtype: Any) -> None:
    check_call(call, (R(2, 3, 5, 8).to(dtype),) * 3, opset=opset)


def test_fused_encoder_layer_of_torch() -> None:
    layer = _layer()
    weights = [
        layer.self_attn.in_proj_weight, layer.self_attn.in_proj_bias,
        layer.self_attn.out_proj.weight, layer.self_attn.out_proj.bias, False, False, 1e-5,
        layer.norm1.weight, layer.norm1.bias, layer.norm2.weight, layer.norm2.bias,
        layer.linear1.weight, layer.linear1.bias, layer.linear2.weight, layer.linear2.bias,
    ]  # fmt: skip
    weights = [w.detach() if isinstance(w, torch.Tensor) else w for w in weights]
    traced = check_call(
        lambda x: torch._transformer_encoder_layer_fwd(x, 16, 2, *weights), (R(2, 5, 16),)
    )
    assert op_types(traced).count("Attention") == 1
