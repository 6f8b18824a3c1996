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
