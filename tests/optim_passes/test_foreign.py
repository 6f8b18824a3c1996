"""Fusions fire on graphs that other exporters wrote, in the forms in which they write them."""

import warnings

import numpy as np
import onnx_ir as ir
import pytest
import torch

from bridge.targets import fitted
from optim_passes.pipeline import run
from optim_passes.pipelines import CPU as NEWEST
from tests.optim_passes.running import check_same, ops, optimise, parse
from tests.optim_passes.test_node_counts import filled
from tests.zoo.models import ZOO
from tests.zoo.test_zoo import leaves

RNG = np.random.default_rng(0)
DECOMPOSED = {"Softmax", "Erf", "Tanh", "Pow", "Sqrt", "BatchNormalization", "IsNaN"}


class First(torch.nn.Module):
    """The model with positional tensors in and its first tensor out."""

    def __init__(self, model, names):
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *args):
        result = (
            self.model(**dict(zip(self.names, args, strict=True)))
            if self.names
            else self.model(*args)
        )
        return leaves(result)[0]


def export(name, path, *, dynamo):
    """What ``torch.onnx`` writes for a model of the zoo, with its dynamic dims."""
    entry = ZOO[name]
    args, kwargs = entry.inputs(**entry.example)
    names = list(kwargs)
    model = First(filled(entry.make()), names).eval()
    tensors = tuple(kwargs.values()) if kwargs else args
    dims = [entry.dynamic.get(n, {}) for n in names] if names else list(entry.dynamic.values())
    inputs = [f"in{i}" for i in range(len(tensors))]
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        if dynamo:
            shapes = (tuple(dict.fromkeys(d, torch.export.Dim.DYNAMIC) for d in dims),)
            torch.onnx.export(
                model, tensors, path, dynamo=True, dynamic_shapes=shapes, verbose=False, external_data=False
            )  # fmt: skip
        else:
            axes = {n: {a: f"{n}_{a}" for a in d} for n, d in zip(inputs, dims, strict=True)}
            torch.onnx.export(
                model, tensors, path, dynamo=False, input_names=inputs, dynamic_axes=axes, opset_version=17
            )  # fmt: skip


# The operators that must be there; how many depends on the model's layers only.
EXPECTED = {
    "resnet50": {"microsoft.FusedConv": 49, "Conv": 4},
    "mobilenet_v3_large": {"microsoft.FusedConv": 27, "HardSwish": 21},
    "convnext_tiny": {"LayerNormalization": 23, "Gelu": 18},
    "bert": {"Attention": 2, "LayerNormalization": 5, "Gelu": 2},
    "gpt2": {"Attention": 2, "LayerNormalization": 5, "Gelu": 2},
    "llama": {"Attention": 2, "RMSNormalization": 5, "RotaryEmbedding": 4},
    "whisper": {"Attention": 6, "LayerNormalization": 12, "Gelu": 6},
    "t5": {"Attention": 6, "RMSNormalization": 12},
}
TRIALS = [
    *[(name, dynamo) for name in ("bert", "gpt2", "llama") for dynamo in (True, False)],
    ("resnet50", False),
    ("whisper", True),
    ("t5", False),
    *[
        pytest.param(name, dynamo, marks=pytest.mark.slow)
        for name, dynamo in (
            ("resnet50", True), ("mobilenet_v3_large", True), ("mobilenet_v3_large", False),
            ("convnext_tiny", True), ("convnext_tiny", False),
        )
    ],
]  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "dynamo"), TRIALS)
def test_exports_of_torch_are_fused(name, dynamo, tmp_path):
    path = tmp_path / "model.onnx"
    export(name, path, dynamo=dynamo)
    before = ir.load(path)
    after, _ = run(ir.load(path), fitted(NEWEST))
    counts = ops(after)
    assert {k: counts.get(k) for k in EXPECTED[name]} == EXPECTED[name]
    assert not counts.keys() & (DECOMPOSED - ({"Pow"} if name == "t5" else set()))
    entry = ZOO[name]
    feeds = []
    for sizes in (entry.example, *entry.others):
        args, kwargs = entry.inputs(**sizes)
        values = [x.numpy() for x in (kwargs.values() if kwargs else args)]
        feeds.append(dict(zip([v.name for v in before.graph.inputs], values, strict=False)))
    check_same(before, after, feeds, rtol=1e-3, atol=1e-3)


def weights(**shapes):
    return {k: (RNG.standard_normal(s) * 0.2).astype(np.float32) for k, s in shapes.items()}


def fused(text, *, opset, feeds=None, **arrays):
    model = parse(text, opset=opset, **arrays)
    counts, _ = optimise(model, *fitted(NEWEST), rtol=1e-3, atol=1e-4, feeds=feeds)
    return counts


HEADS = (
    # optimum, by TorchScript: shapes taken apart and put together around every view.
    "shape{x} = Shape({x}p) e{x} = Gather<axis=0>(shape{x}, i0) s{x} = Gather<axis=0>(shape{x}, i1) "
    "ub{x} = Unsqueeze(e{x}, a0) us{x} = Unsqueeze(s{x}, a0) t{x} = Concat<axis=0>(ub{x}, us{x}, n2, n4) "
    "r{x} = Reshape({x}p, t{x}) {x}h = Transpose<perm={perm}>(r{x}) "
)


def test_attention_as_optimum_writes_it():
    text = (
        "g (float[B,S,8] x, int64[B,S] mask, float[8,8] wq, float[8,8] wk, float[8,8] wv, float[8] bq, "
        "float[8] bk, float[8] bv, float[8,8] wo, float[8] bo, float[8] g1, float[8] g2) => (y) "
        "<int64 i0 = {0}, int64 i1 = {1}, int64[1] a0 = {0}, int64[1] n2 = {2}, int64[1] n4 = {4}, "
        "float root = {2}, float one = {1}, float low = {-3.4028235e38}, int64[1] a1 = {1}, "
        "int64[1] a2 = {2}, int64[1] n8 = {8}, float two = {2}, float eps = {1e-12}> { "
        "qm = MatMul(x, wq) qp = Add(bq, qm) km = MatMul(x, wk) kp = Add(bk, km) vm = MatMul(x, wv) "
        "vp = Add(bv, vm) "
        + HEADS.format(x="q", perm="[0,2,1,3]")
        + HEADS.format(x="k", perm="[0,2,3,1]")
        + HEADS.format(x="v", perm="[0,2,1,3]")
        + "scores = MatMul(qh, kh) scaled = Div(scores, root) m1 = Unsqueeze(mask, a1) "
        "m2 = Unsqueeze(m1, a2) m3 = Cast<to=1>(m2) m4 = Sub(one, m3) m5 = Mul(m4, low) "
        "masked = Add(scaled, m5) p = Softmax<axis=-1>(masked) c = MatMul(p, vh) "
        "ct = Transpose<perm=[0,2,1,3]>(c) cs = Shape(ct) cb = Gather<axis=0>(cs, i0) "
        "cl = Gather<axis=0>(cs, i1) ucb = Unsqueeze(cb, a0) ucl = Unsqueeze(cl, a0) "
        "cshape = Concat<axis=0>(ucb, ucl, n8) cr = Reshape(ct, cshape) om = MatMul(cr, wo) "
        "o = Add(bo, om) sum = Add(o, x) mean = ReduceMean<axes=[-1]>(sum) d = Sub(sum, mean) "
        "dd = Pow(d, two) var = ReduceMean<axes=[-1]>(dd) ve = Add(var, eps) sd = Sqrt(ve) "
        "n = Div(d, sd) ng = Mul(n, g1) y = Add(ng, g2) }"
    )
    shapes = dict.fromkeys(("wq", "wk", "wv", "wo"), (8, 8))
    shapes |= dict.fromkeys(("bq", "bk", "bv", "bo", "g1", "g2"), (8,))
    feeds = []
    for batch, length in ((2, 5), (1, 1), (3, 4)):
        mask = np.ones((batch, length), np.int64)
        mask[0, 1:] = 0
        x = RNG.standard_normal((batch, length, 8)).astype(np.float32)
        feeds.append({"x": x, "mask": mask})
    counts = fused(text, opset=13, feeds=feeds, **weights(**shapes))
    assert counts["Attention"] == counts["LayerNormalization"] == 1
    assert not counts.keys() & {"Softmax", "Pow", "Transpose", "ReduceMean", "Reshape"}


def test_layers_as_tf2onnx_writes_them():
    """Images come channel last and are turned round every convolution; norms by reciprocal roots."""
    text = (
        "g (float[N,8,8,3] x, float[4,3,3,3] w, float[4] scale, float[4] bias, float[4] mean, "
        "float[4] var, float[4,4] d, float[4] b) => (y) <int64[2] axes = {1,2}, float half = {0.5}, "
        "float one = {1}, float root = {0.70710678}> { "
        "t = Transpose<perm=[0,3,1,2]>(x) c = Conv<pads=[1,1,1,1]>(t, w) "
        "u = Transpose<perm=[0,2,3,1]>(c) t2 = Transpose<perm=[0,3,1,2]>(u) "
        "n = BatchNormalization(t2, scale, bias, mean, var) u2 = Transpose<perm=[0,2,3,1]>(n) "
        "r = Relu(u2) t3 = Transpose<perm=[0,3,1,2]>(r) m = MaxPool<kernel_shape=[2,2], strides=[2,2]>(t3) "
        "u3 = Transpose<perm=[0,2,3,1]>(m) p = ReduceMean(u3, axes) z = MatMul(p, d) zb = Add(z, b) "
        "e0 = Mul(zb, root) e = Erf(e0) e1 = Add(e, one) h = Mul(half, zb) y = Mul(h, e1) }"
    )
    arrays = weights(w=(4, 3, 3, 3), scale=(4,), bias=(4,), mean=(4,), d=(4, 4), b=(4,))
    counts = fused(text, opset=18, var=np.ones(4, np.float32), **arrays)
    assert counts["microsoft.FusedConv"] == 1
    assert counts["Gelu"] == 1
    assert counts["Transpose"] == 2  # of the image, and behind the pool
    assert not counts.keys() & {"BatchNormalization", "Relu", "Erf"}


TF_NORM = (
    # keras: x * (rsqrt(var + eps) * gamma) + (beta - mean * (rsqrt(var + eps) * gamma))
    "m = ReduceMean(x, last) d = Sub(x, m) sq = Mul(d, d) v = ReduceMean(sq, last) ve = Add(v, eps) "
    "s = Sqrt(ve) r = Reciprocal(s) k = Mul(r, g1) xk = Mul(x, k) mk = Mul(m, k) c = Sub(g2, mk) "
    "y = Add(xk, c)"
)


def test_norm_as_tf2onnx_writes_it():
    text = (
        "g (float[N,S,8] x, float[8] g1, float[8] g2) => (y) <int64[1] last = {-1}, float eps = {1e-3}> "
        f"{{ {TF_NORM} }}"
    )
    counts = fused(text, opset=18, feeds=None, **weights(g1=(8,), g2=(8,)))
    assert counts == {"LayerNormalization": 1}


def test_attention_as_tf2onnx_writes_it():
    """Einsum equations of keras' MultiHeadAttention: one product for all heads."""
    text = (
        "g (float[B,S,8] x, float[8,2,4] wq, float[8,2,4] wk, float[8,2,4] wv, float[2,4] bq, "
        "float[2,4] bk, float[2,4] bv, float[2,4,8] wo) => (y) <float scale = {0.5}> { "
        'q0 = Einsum<equation="abc,cde->abde">(x, wq) q1 = Add(q0, bq) q = Mul(q1, scale) '
        'k0 = Einsum<equation="abc,cde->abde">(x, wk) k = Add(k0, bk) '
        'v0 = Einsum<equation="abc,cde->abde">(x, wv) v = Add(v0, bv) '
        's = Einsum<equation="aecd,abcd->acbe">(k, q) p = Softmax<axis=-1>(s) '
        'o = Einsum<equation="acbe,aecd->abcd">(p, v) y = Einsum<equation="abcd,cde->abe">(o, wo) }'
    )
    shapes = dict.fromkeys(("wq", "wk", "wv"), (8, 2, 4)) | dict.fromkeys(
        ("bq", "bk", "bv"), (2, 4)
    )
    counts = fused(text, opset=18, **weights(wo=(2, 4, 8), **shapes))
    assert counts["Attention"] == 1
    assert not counts.keys() & {"Einsum", "Softmax"}
