"""Biases and residual sums that go into the kernel after them."""

from __future__ import annotations

import numpy as np
import pytest

from optim_passes.fusion.bias_residual import (
    AttentionBiasPass,
    BiasGeluPass,
    SkipLayerNormPass,
)
from tests.optim_passes.running import optimise, parse, reasons

ROWS = np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)
G, B, C, D = ROWS
POST = """g (float[N, S, 8] x, float[N, S, 8] r, float[8] g, float[8] b, float[8] c) => (float[N, S, 8] y) {
    a = Add(x, c)
    s = Add(a, r)
    y = LayerNormalization <axis = -1> (s, g, b)
}"""
PRE = POST.replace("=> (float[N, S, 8] y)", "=> (float[N, S, 8] z)").replace(
    "}", "t = Relu(y)\n z = Add(s, t)\n }"
)


@pytest.mark.parametrize("text", [POST, POST.replace("Add(a, r)", "Add(r, a)")])
def test_a_norm_takes_the_sum_and_the_bias(text):
    counts, _ = optimise(parse(text, g=G, b=B, c=C), SkipLayerNormPass())
    assert counts == {"microsoft.SkipLayerNormalization": 1}


def test_a_sum_that_is_read_again_comes_out():
    counts, _ = optimise(parse(PRE, g=G, b=B, c=C), SkipLayerNormPass())
    assert counts == {"microsoft.SkipLayerNormalization": 1, "Relu": 1, "Add": 1}


def test_a_sum_that_is_an_output_keeps_its_name():
    text = POST.replace("(float[N, S, 8] y)", "(float[N, S, 8] y, float[N, S, 8] s)")
    counts, _ = optimise(parse(text, g=G, b=B, c=C), SkipLayerNormPass())
    assert counts == {"microsoft.SkipLayerNormalization": 1}


def test_norms_in_branches_are_reached():
    model = parse(
        """g (float[N, S, 8] x, bool k, float[8] g, float[8] b) => (float[N, S, 8] y) {
        y = If (k) <then_branch = p () => (float[N, S, 8] u) {
                        s = Add(x, x)
                        u = LayerNormalization <axis = -1> (s, g, b) },
                    else_branch = q () => (float[N, S, 8] v) { v = Neg(x) }>
    }""",
        g=G,
        b=B,
    )
    counts, _ = optimise(model, SkipLayerNormPass())
    assert counts["microsoft.SkipLayerNormalization"] == 1


@pytest.mark.parametrize(
    "text",
    [
        POST.replace("float[N, S, 8] r", "float[8] r"),  # broadcasts
        POST.replace("axis = -1", "axis = 1").replace(
            "float[8] g, float[8] b", "float[S, 8] g, float[S, 8] b"
        ),
        POST.replace(
            "float[N, S, 8] x, float[N, S, 8] r", "float[N, S, 2, 8] x, float[N, S, 2, 8] r"
        ),
    ],
)
def test_other_norms_stay(text):
    given = {"c": C} if "S, 8] g" in text else {"g": G, "b": B, "c": C}
    model = parse(text, **given)
    from optim_passes.pipeline import run

    _, report = run(model, [SkipLayerNormPass()])
    assert not report.steps["SkipLayerNorm"].rewrites


def test_computed_parameters_are_told():
    text = POST.replace("float[8] g,", "float[8] h,").replace("a = Add", "g = Neg(h)\n a = Add")
    _, report = optimise(parse(text, b=B, c=C), SkipLayerNormPass())
    assert reasons(report) == {"scale or bias is computed"}


GELU = "g (float[N, S, 8] x, float[8] c) => (float[N, S, 8] y) { a = Add(c, x)\n y = Gelu(a) }"


@pytest.mark.parametrize(
    ("text", "fused"),
    [
        (GELU, True),
        (GELU.replace("Gelu(a)", "com.microsoft.Gelu(a)"), True),
        (GELU.replace("Gelu(a)", 'Gelu <approximate = "tanh"> (a)'), False),
        (GELU.replace("y = Gelu(a)", "b = Gelu(a)\n y = Add(a, b)"), False),
        (GELU.replace("float[8] c", "float[1] c"), False),
    ],
)
def test_gelu_takes_its_bias(text, fused):
    c = C[:1] if "float[1] c" in text else C
    counts, _ = optimise(parse(text, c=c), BiasGeluPass(), rtol=1e-4)
    assert ("microsoft.BiasGelu" in counts) == fused


@pytest.mark.parametrize("missing", [None, "k"])
def test_attention_takes_its_biases(missing):
    text = """g (float[N, S, 8] q, float[N, S, 8] k, float[N, S, 8] v, float[8] a, float[8] b, float[8] c)
        => (float[N, S, 8] y) {
        qa = Add(q, a)
        kb = Add(b, k)
        vc = Add(v, c)
        y = com.microsoft.MultiHeadAttention <num_heads = 2> (qa, kb, vc)
    }"""
    arrays = {"a": B, "b": C, "c": D}
    if missing:
        text = text.replace("kb = Add(b, k)", "kb = Neg(k)")
    counts, _ = optimise(parse(text, **arrays), AttentionBiasPass(), rtol=1e-4)
    assert counts == {"microsoft.MultiHeadAttention": 1, **({"Neg": 1} if missing else {})}
