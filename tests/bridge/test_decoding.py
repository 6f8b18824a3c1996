"""Decode loops: state that is handed on from run to run."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import bridge
from bridge.cuda_graphs import FixedRun, padded
from bridge.feeds import TensorSpec
from tests.bridge.graphs import graph_bytes

GROWING = """g(float[B, 1, 4] x, float[B, P, 4] past) => (float[B, 4] y, float[B, Q, 4] present)
<int64[1] axes = {1}> {
    present = Concat <axis = 1> (past, x)
    y = ReduceSum <keepdims = 0> (present, axes)
}"""
FIXED = """g(float[1, 4] x, int64[1] at, float[8, 4] cache) => (float[4] y, float[8, 4] new)
<int64[1] axes = {0}, int64[2] shape = {1, 1}> {
    index = Reshape(at, shape)
    new = ScatterND(cache, index, x)
    y = ReduceSum <keepdims = 0> (new, axes)
}"""
READS_AFTER_WRITING = FIXED.replace(
    "ReduceSum <keepdims = 0> (new", "ReduceSum <keepdims = 0> (d"
).replace("y =", "d = Sub(new, cache)\n y =")


@pytest.fixture
def growing():
    return bridge.load(graph_bytes(GROWING)).bind({"past": "present"})


def test_state_grows_from_empty(growing):
    total = np.zeros((2, 4), np.float32)
    for _ in range(20):
        x = np.random.rand(2, 1, 4).astype(np.float32)
        total += x[:, 0]
        np.testing.assert_allclose(growing.run({"x": x})["y"], total, rtol=1e-5)
    assert growing.state["past"].shape == (2, 20, 4)


def test_state_is_not_copied(growing):
    growing.run({"x": np.ones((1, 1, 4), np.float32)})
    address = growing.state["past"].__array_interface__["data"][0]
    assert growing._values["past"].data_ptr() == address


def test_state_starts_where_told(growing):
    past = torch.ones(1, 3, 4)
    growing.reset({"past": past})
    del past
    np.testing.assert_allclose(growing.run({"x": np.ones((1, 1, 4), np.float32)})["y"], 4)


def test_state_survives_a_refused_step(growing):
    growing.run({"x": np.ones((1, 1, 4), np.float32)})
    for bad in ({"x": np.ones((1, 2, 4), np.float32)}, {"y": 1}, {"x": np.ones((1, 1, 4))}):
        with pytest.raises(bridge.FeedError):
            growing.run(bad)
    with pytest.raises(bridge.RunError):  # another batch than the state's
        growing.run({"x": np.ones((3, 1, 4), np.float32)})
    np.testing.assert_allclose(growing.run({"x": np.ones((1, 1, 4), np.float32)})["y"], 2)


@pytest.mark.parametrize("links", [{"pas": "present"}, {"past": "presen"}])
def test_unknown_names_are_refused(links):
    with pytest.raises(bridge.FeedError, match="the model has no"):
        bridge.load(graph_bytes(GROWING)).bind(links)


def test_fixed_state_is_written_in_place():
    loop = bridge.load(graph_bytes(FIXED)).bind({"cache": "new"}, in_place=True)
    address = loop._buffers["cache"].data_ptr()
    total = torch.zeros(4)
    for step in range(8):
        x = torch.randn(1, 4)
        total += x[0]
        torch.testing.assert_close(loop.run({"x": x, "at": torch.tensor([step])})["y"], total)
    assert loop._buffers["cache"].data_ptr() == address
    assert np.count_nonzero(loop.state["cache"]) == 32
    loop.reset()
    assert not loop.state["cache"].any()


def test_a_model_that_cannot_work_in_place_is_refused_and_its_state_kept():
    session = bridge.load(graph_bytes(READS_AFTER_WRITING))
    loop = session.bind({"cache": "new"}, in_place=True)
    with pytest.raises(bridge.RunError, match="written in place"):
        loop.run({"x": torch.ones(1, 4), "at": torch.tensor([0])})
    assert not loop.state["cache"].any()
    chained = session.bind({"cache": "new"}, initial={"cache": np.zeros((8, 4), np.float32)})
    np.testing.assert_allclose(chained.run({"x": np.ones((1, 4), np.float32), "at": [0]})["y"], 1)


# What CUDA graphs are made of


def test_fixed_runs_keep_their_addresses():
    session = bridge.load(graph_bytes("g(float[N] x) => (float[N] y) { y = Neg(x) }"))
    fixed = FixedRun(session, {"x": torch.zeros(3)}, {"y": torch.empty(3)})
    address = fixed.outputs["y"].data_ptr()
    for value in (1.0, 2.0):
        y = fixed.run({"x": torch.full((3,), value)})["y"]
        assert y.data_ptr() == address
        assert (y == -value).all()


def test_shapes_are_rounded_up_to_buckets():
    spec = TensorSpec("x", None, ("batch", 2), "tensor(float)")
    x = torch.arange(6.0).view(3, 2)
    found, cut = padded([spec], {"x": x}, {"batch": (1, 4, 8)})
    assert found["x"].shape == (4, 2)
    assert (found["x"][3] == x[2]).all()
    assert cut == {"batch": 3}
    found, cut = padded([spec], {"x": x}, {"batch": (1, 2)})
    assert found["x"] is x
    assert cut == {}
