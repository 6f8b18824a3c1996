"""Attention for the CUDA provider: its own operator, packed products, no masks that hide nothing."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from optim_passes.fusion.masks import FullMaskPass
from optim_passes.fusion.multi_head import MultiHeadAttentionPass, PackedAttentionPass
from optim_passes.pipeline import run
from tests.optim_passes.running import feed_for, ops, optimise, parse, reasons, session

FLAT = """g (float[B, S, 16] q, float[B, T, 16] k, float[B, T, 16] v{more}) => (float[B, S, 16] y) {{
    y = Attention <q_num_heads = {heads}, kv_num_heads = {kv}{attributes}> (q, k, v{mask})
}}"""
SIZES = ({"B": 2, "S": 5, "T": 7}, {"B": 1, "S": 1, "T": 3})


def flat(mask="", more="", attributes="", heads=4, kv=4, text=FLAT):
    values = {"mask": mask, "more": more, "attributes": attributes, "heads": heads, "kv": kv}
    return parse(text.format(**values), opset=23)


@pytest.mark.parametrize(
    ("mask", "more"),
    [
        ("", ""),
        (", m", ", float[B, 1, S, T] m"),
        (", m", ", float[S, T] m"),
        (", m", ", bool[1, 4, S, T] m"),
    ],
)
def test_attention_becomes_multi_head_attention(mask, more):
    model = flat(mask, more)
    feeds = [feed_for(model, s) for s in SIZES]
    for feed in feeds:  # rows that are masked everywhere are a matter of their own
        if "m" in feed and feed["m"].dtype == bool:
            feed["m"][:] = True
    counts, _ = optimise(model, MultiHeadAttentionPass(), feeds=feeds, rtol=1e-4)
    assert counts["microsoft.MultiHeadAttention"] == 1
    assert "Attention" not in counts


def test_heads_in_a_dim_of_their_own_are_put_side_by_side():
    model = parse(
        """g (float[B, 2, S, 8] q, float[B, 2, T, 8] k, float[B, 2, T, 8] v) => (float[B, 2, S, 8] y)
        { y = Attention <scale = 0.5> (q, k, v) }""",
        opset=23,
    )
    counts, _ = optimise(model, MultiHeadAttentionPass(), sizes=SIZES, rtol=1e-4)
    assert counts["microsoft.MultiHeadAttention"] == 1


def test_causal_attention_of_one_length():
    text = FLAT.replace("float[B, T, 16]", "float[B, S, 16]")
    model = flat(attributes=", is_causal = 1", text=text)
    counts, _ = optimise(model, MultiHeadAttentionPass(), sizes=SIZES, rtol=1e-4)
    assert counts == {"microsoft.MultiHeadAttention": 1}


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"attributes": ", softcap = 2.0"}, "it caps the scores"),
        ({"attributes": ", is_causal = 1"}, "it is causal with a cache"),
        ({"kv": 2, "text": FLAT.replace("float[B, T, 16]", "float[B, T, 8]")}, "heads share keys"),
    ],
)
def test_what_the_operator_cannot_do_is_refused(options, why):
    counts, report = optimise(flat(**options), MultiHeadAttentionPass(), sizes=SIZES)
    assert counts == {"Attention": 1}
    assert reasons(report) == {why}


PRODUCTS = """g (float[B, S, 6] x, float[6, 8] q, float[8, 6] k, float[6, 8] v, float[8] b)
    => (float[B, S, 8] y) {
    a = MatMul(x, q)
    ab = Add(a, b)
    t = Transpose <perm = [1, 0]> (k)
    c = MatMul(x, t)
    d = MatMul(x, v)
    db = Add(b, d)
    y = com.microsoft.MultiHeadAttention <num_heads = 2> (ab, c, db)
}"""


def test_packed_products_hold_the_same_heads():
    """The CPU has no packed attention, so the packed product is taken apart again to be compared."""
    rng = np.random.default_rng(0)
    shapes = {"q": (6, 8), "k": (8, 6), "v": (6, 8), "b": (8,)}
    model = parse(
        PRODUCTS, **{n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
    )
    feed = feed_for(model, {"B": 2, "S": 3})
    expected = session(model, plain=True).run(None, feed)[0]
    packed, _ = run(model.clone(), [PackedAttentionPass()])
    assert ops(packed) == {"MatMul": 1, "Add": 1, "Reshape": 1, "microsoft.MultiHeadAttention": 1}
    attention = next(n for n in packed.graph if n.op_type == "MultiHeadAttention")
    product = attention.inputs[0]
    packed.graph.outputs[0] = product
    product.shape, product.type = ir.Shape(["B", "S", 2, 3, 4]), ir.TensorType(ir.DataType.FLOAT)
    packed.graph.remove(attention, safe=True)
    heads = session(packed, plain=True).run(None, feed)[0]
    parts = {n: heads[:, :, :, i].reshape(2, 3, 8) for i, n in enumerate("qkv")}
    alone = parse("""g (float[B, S, 8] q, float[B, S, 8] k, float[B, S, 8] v) => (float[B, S, 8] y)
        { y = com.microsoft.MultiHeadAttention <num_heads = 2> (q, k, v) }""")
    got = session(alone, plain=True).run(None, parts)[0]
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_attention_over_other_values_is_not_packed():
    text = PRODUCTS.replace("float[6, 8] v,", "float[6, 8] v, float[B, S, 6] z,").replace(
        "MatMul(x, v)", "MatMul(z, v)"
    )
    arrays = {
        n: np.ones(s, np.float32)
        for n, s in {"q": (6, 8), "k": (8, 6), "v": (6, 8), "b": (8,)}.items()
    }
    _, report = run(parse(text, **arrays), [PackedAttentionPass()])
    assert reasons(report) == {"queries, keys and values are made of different values"}


@pytest.mark.parametrize(
    ("mask", "fires"),
    [
        ("m = Constant <value = bool[1, 1] {1}> ()", True),
        ("m = Constant <value = float[1, 1] {0}> ()", True),
        ("t = Constant <value = bool[1, 1] {1}> ()\n m = Expand(t, s)", True),
        (
            "t = Constant <value = float[1, 1] {0}> ()\n l = Constant <value = float {-9}> ()\n"
            "m = Max(t, l)",
            True,
        ),
        ("m = Constant <value = float[1, 1] {1}> ()", False),
        ("t = Constant <value = bool[1, 1] {0}> ()\n m = Expand(t, s)", False),
    ],
)
def test_masks_that_hide_nothing_go(mask, fires):
    text = (
        "g (float[B, 2, 3, 8] q, float[B, 2, 3, 8] k, float[B, 2, 3, 8] v) => (float[B, 2, 3, 8] y)\n"
        f"{{ s = Constant <value = int64[2] {{3, 3}}> ()\n {mask}\n y = Attention(q, k, v, m) }}"
    )
    model = parse(text, opset=23)
    _, report = run(model, [FullMaskPass()])
    attention = next(n for n in model.graph if n.op_type == "Attention")
    assert (len(attention.inputs) == 3) == fires
    assert bool(report.steps["FullMask"].rewrites) == fires
    session(model)
