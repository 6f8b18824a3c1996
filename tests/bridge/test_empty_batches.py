"""Empty inputs for kernels of older runtimes, which would end the process."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import bridge
from bridge import empty_batches
from bridge.empty_batches import guarded
from tests.bridge.graphs import graph

NODES = {
    **{f"TopK of axis {a}": f"y, i = TopK<axis = {a}> (x, k)" for a in (0, 1, -1, -2, -3)},
    **{f"OneHot of axis {a}": f"j = Cast<to = 7> (x)\n y = OneHot<axis = {a}> (j, k, v)\n"
       "i = Identity(j)" for a in (0, 2, 3, -1, -2, -4)},
}  # fmt: skip
EMPTY = ((0, 2, 3), (2, 0, 3), (2, 3, 0))


@pytest.mark.parametrize("name", list(NODES))
def test_nothing_has_the_shape_and_type_that_kernels_of_today_give_it(name, monkeypatch):
    """ONNX Runtime before 1.31 divides by zero here; where it does not, the guard changes nothing."""
    body = NODES[name]
    rank = "A, B, C" if "TopK" in name else "A, B, C, D"
    model = graph(
        f"g(float[N, M, L] x, int64[1] k) => (float[{rank}] y, int64[I, J, K] i)"
        f" <float[2] v = {{0, 1}}> {{ {body} }}"
    )
    plain = bridge.Session(model)
    monkeypatch.setattr(empty_batches, "_ends_the_process", lambda: ("TopK", "OneHot"))
    twin = guarded(model)
    assert twin is not None
    session = bridge.Session(twin)
    for shape in (*EMPTY, (2, 3, 4)):
        axis = int(name.split()[-1])
        count = min(1, shape[axis]) if "TopK" in name else 2
        x = np.random.default_rng(0).integers(0, 2, shape).astype(np.float32)
        feed = {"x": x, "k": np.asarray([count])}
        got = session.run(feed)
        if x.size:
            wanted = plain.run(feed)
            assert all(np.array_equal(got[n], wanted[n]) for n in wanted)
            continue
        expected = list(shape)
        if "TopK" in name:
            expected[axis] = count
        else:
            expected.insert(axis if axis >= 0 else len(expected) + 1 + axis, count)
        assert list(got["y"].shape) == expected
        assert got["y"].dtype == np.float32
        assert got["i"].dtype == np.int64


def test_a_choice_among_what_a_mask_leaves_runs_guarded_from_the_start(monkeypatch):
    model = graph(
        """g(float[N, 4] x) => (float[M, 2] y) <int64[1] k = {2}, float zero = {0}> {
            s = ReduceSum <keepdims = 0> (x)
            top = ReduceMax <axes = [1], keepdims = 0> (x)
            kept = Greater(top, zero)
            rows = Compress <axis = 0> (x, kept)
            y, i = TopK(rows, k)
        }"""
    )
    monkeypatch.setattr(empty_batches, "_ends_the_process", lambda: ("TopK",))
    session = bridge.Session(model)
    assert session.run({"x": -np.ones((3, 4), np.float32)})["y"].shape == (0, 2)
    assert session.run({"x": np.ones((3, 4), np.float32)})["y"].shape == (3, 2)
    kinds = {
        n.op_type
        for p in session.runtime.get_provider_graph_assignment_info()
        for n in p.get_nodes()
    }
    assert "If" in kinds


ATTENDING = {
    "attention": lambda q, k: F.scaled_dot_product_attention(q, k, k),
    "heads of less": lambda q, k: F.scaled_dot_product_attention(q, k, k[..., :2]),
    "causal": lambda q, k: F.scaled_dot_product_attention(q, q, q, is_causal=True) + k.sum(),
}


@pytest.mark.parametrize("name", ATTENDING)
def test_attention_takes_no_queries_and_no_keys(name: str) -> None:
    """The kernel of ONNX Runtime 1.32 refuses both."""
    f = ATTENDING[name]
    q, k = torch.randn(2, 4, 3, 8), torch.randn(2, 4, 5, 8)
    program = bridge.export(f, (q, k), dynamic_shapes=({0: "b", 2: "l"}, {0: "b", 2: "s"}))
    for batch, queries, keys in ((0, 3, 5), (2, 0, 5), (2, 3, 0), (2, 0, 0), (1, 2, 2)):
        q, k = torch.randn(batch, 4, queries, 8), torch.randn(batch, 4, keys, 8)
        torch.testing.assert_close(program(q, k), f(q, k))


def test_transformers_and_circular_padding_take_empty_batches() -> None:
    layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    program = bridge.export(layer, torch.randn(2, 3, 8), dynamic_shapes=({0: "b", 1: "l"},))
    for sizes in ((0, 3), (2, 0)):
        assert program(torch.zeros(*sizes, 8)).shape == (*sizes, 8)
    program = bridge.export(
        lambda x: F.pad(x, (1, 2), mode="circular"),
        torch.randn(2, 3, 4),
        dynamic_shapes=({0: "b"},),
    )
    assert program(torch.zeros(0, 3, 4)).shape == (0, 3, 7)
