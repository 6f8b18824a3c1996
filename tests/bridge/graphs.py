"""Small models for tests, written in ONNX's text format."""

from __future__ import annotations

import onnx
import onnx_ir as ir

__all__ = ["graph", "graph_bytes"]


def graph_bytes(text: str, *, opset: int = 17, domains: str = "") -> bytes:
    """A serialised model of ``g(...) => (...) {...}``."""
    header = f'<ir_version: 8, opset_import: ["": {opset}{domains}]>'
    return onnx.parser.parse_model(f"{header} {text}").SerializeToString()


def graph(text: str, *, opset: int = 17, domains: str = "") -> ir.Model:
    """The same as an ``onnx_ir`` model."""
    proto = onnx.ModelProto()
    proto.ParseFromString(graph_bytes(text, opset=opset, domains=domains))
    return ir.from_proto(proto)


SCALE = "g(float[N, 4] x, float[4] w) => (float[N, 4] y) { y = Mul(x, w) }"
SLOW = """g(float[N] x, int64 n) => (float[N] y) <bool c = {1}> {
    y = Loop(n, c, x) <body = b (int64 i, bool ci, float[N] a) => (bool co, float[N] ao) {
        co = Identity(ci)
        t = Sin(a)
        ao = Add(t, a)
    }>
}"""

FUNCTION = """
<ir_version: 8, opset_import: ["": 17, "test": 1]>
g (float[N] x) => (float[N] y) { a = test.f(x)
  y = test.f(a) }
<opset_import: ["": 17], domain: "test">
f (x) => (y) { t = Sin(x)
  y = Add(t, x) }
"""
FIXED_SEEDS = [
    graph_bytes(SCALE),
    graph_bytes(SLOW),
    graph_bytes(
        """g(float[1, 3, 8, 8] x) => (float[1, 4, 4, 4] y)
    <float[4, 3, 3, 3] w = {%s}, float[4] b = {0, 1, 2, 3}> {
        c = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (x, w, b)
        y = Relu(c)
    }""".replace("%s", ", ".join(["0.5"] * 108))
    ),
    graph_bytes("""g(float[N, 4] x, bool c) => (float[N, M] y) <int64[2] s = {-1, 2}, int64[1] a = {0}> {
        r = Reshape(x, s)
        t = Transpose <perm = [1, 0]> (r)
        g = Gather <axis = 0> (t, a)
        k = Constant <value = float[2, 2] {1, 2, 3, 4}> ()
        y = If (c) <then_branch = p () => (float[A, B] u) { u = Identity(g) },
                    else_branch = q () => (float[C, D] v) { v = MatMul(k, k) }>
    }"""),
    onnx.parser.parse_model(FUNCTION).SerializeToString(),
    graph_bytes(
        """g(float[2, 5, 4] x) => (float[2, 1, 5, 3] y)
    <float[1, 12, 4] w = {W}, float[1, 12, 3] r = {R}> {
        t = Transpose <perm = [1, 0, 2]> (x)
        z = LSTM <hidden_size = 3> (t, w, r)
        y = Transpose <perm = [2, 1, 0, 3]> (z)
    }""".replace("W", ", ".join(["0.1"] * 48)).replace("R", ", ".join(["0.2"] * 36))
    ),
    graph_bytes("""g(uint8[4] x) => (float[4] y) <float s = {0.5}, uint8 z = {3}> {
        y = DequantizeLinear(x, s, z)
    }"""),
]
