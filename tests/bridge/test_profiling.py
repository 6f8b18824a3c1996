"""Profiles and placements."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import bridge
from bridge.graph_index import GraphIndex
from bridge.profiling import Placement, _own_time, shape_nodes
from tests.bridge.graphs import SLOW, graph_bytes


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first = torch.nn.Linear(16, 16)
        self.norm = torch.nn.LayerNorm(16)

    def forward(self, x):
        return self.norm(torch.nn.functional.gelu(self.first(x)) + x)


class Stack(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = torch.nn.ModuleList([Block(), Block()])

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


def test_time_is_told_by_module_even_after_fusion():
    session = bridge.export(Stack().eval(), torch.randn(2, 3, 16)).session()
    profile = session.profile({"x": torch.randn(2, 3, 16)}, runs=3)
    assert "SkipLayerNormalization" in profile.by_operator()  # ONNX Runtime fused something
    assert set(profile.by_module(2)) == {"blocks.0", "blocks.1"}
    assert {"blocks.0.first", "blocks.1.norm"} <= set(profile.by_module())
    assert all("in Block.forward" in n.source for n in profile.nodes)
    assert sum(profile.by_provider().values()) == pytest.approx(
        sum(n.seconds for n in profile.nodes)
    )
    assert "by module:" in str(profile)


def test_a_loop_is_told_without_its_body():
    session = bridge.load(graph_bytes(SLOW), threads=1)
    profile = session.profile({"x": np.ones(100_000, np.float32), "n": np.array(50)}, runs=3)
    times = {n.op_type: n for n in profile.nodes}
    assert times["Sin"].calls == 50
    assert times["Loop"].seconds < times["Sin"].seconds


def test_own_time_leaves_out_what_is_inside():
    def event(name, ts, dur, op="Sin"):
        return {"name": name, "ts": ts, "dur": dur, "tid": 1, "args": {"op_name": op}}

    events = [event("body", 10, 30), event("loop", 5, 100, "Loop"), event("after", 200, 7)]
    assert _own_time(events) == [30, 70, 7]


def test_placement_is_measured_and_can_be_required():
    session = bridge.load(graph_bytes(SLOW))
    session.require_placement(cpu=1.0, copies_in_loops=0)
    assert session.placement.share("cpu") == 1.0
    assert session.placement.seconds["cpu"] > 0
    with pytest.raises(bridge.ProviderError, match=r"cuda has 0\.0% of the nodes, 90\.0% were"):
        session.require_placement(cuda=0.9)


def test_shape_nodes_do_not_count_and_loop_copies_do():
    placement = Placement(
        nodes={"cuda": ["a", "b", "c"], "cpu": ["shape", "slow"]},
        shape_nodes=["shape"],
        copies=["copy0", "copy1"],
        copies_in_loops=["copy1"],
        seconds={"cuda": 1e-3},
    )
    assert placement.share("cuda") == 0.75
    with pytest.raises(bridge.ProviderError, match=r"elsewhere: slow \(cpu\)"):
        placement.require(cuda=0.99)
    with pytest.raises(bridge.ProviderError, match="copy1"):
        placement.require(copies_in_loops=0)
    placement.require(cuda=0.7, copies_in_loops=1)


def test_sizes_that_guards_of_recurrent_nodes_ask_for_are_shape_nodes():
    text = """g(float[5, N, 2] x, float[1, 12, 2] w, float[1, 12, 3] r, bool[N] kept) => (float y) {
        some = Compress <axis = 1> (x, kept)
        all, last, state = LSTM <hidden_size = 3> (some, w, r)
        y = ReduceSum <keepdims = 0> (all)
    }"""
    session = bridge.load(graph_bytes(text))
    index = GraphIndex(session.running_model())
    computing = {i.node.op_type for i in index.nodes if i.name not in shape_nodes(index)}
    assert computing == {"Compress", "LSTM", "If", "Expand", "Constant", "ReduceSum"}


def test_made_up_inputs_are_of_sizes_that_the_model_accepts():
    class Patches(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a = torch.nn.Conv2d(3, 4, 16, stride=16)
            self.b = torch.nn.Conv2d(4, 4, 2)

        def forward(self, x):
            return self.b(self.a(x))

    sizes = {"x": {0: "batch", 2: "height", 3: "width"}}
    program = bridge.export(Patches().eval(), torch.randn(2, 3, 64, 64), dynamic_shapes=sizes)
    session = program.session()
    assert session.placement.seconds["cpu"] > 0
    session.warmup()
    assert bridge.check(program, session).passed


def test_placement_needs_no_inputs_that_fit():
    text = "g(float[A] x, float[B] y) => (float[C] z) { a = Concat <axis = 0> (x, x)\n z = Add(a, y) }"
    session = bridge.load(graph_bytes(text))
    with pytest.raises(bridge.FeedError, match="does not run on made-up inputs"):
        session.profile()
    assert session.placement.share("cpu") == 1.0
    assert session.placement.seconds == {}
    session.profile({"x": np.ones(2, np.float32), "y": np.ones(4, np.float32)})
    assert session.placement.seconds["cpu"] > 0


def test_models_with_weights_in_files_of_their_own_are_placed_and_profiled(tmp_path):
    torch.manual_seed(0)
    net, x = Stack().eval(), torch.randn(2, 16)
    bridge.export(net, x).save(tmp_path / "m.onnx", external_data=True)
    assert (tmp_path / "m.onnx.data").exists()
    session = bridge.load(tmp_path / "m.onnx")
    session.require_placement(cpu=1.0)
    assert {n.module for n in session.profile(runs=1).nodes} >= {"blocks.0.first", "blocks.1.norm"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx", "m.onnx.data"]
