"""OpenVINO for real, where ``onnxruntime-openvino`` is the runtime that is installed."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest

import bridge
from bridge.parity.checking import check
from tests.bridge.graphs import SCALE, graph_bytes
from tests.bridge.zoo import MODELS, exported

pytestmark = [
    pytest.mark.skipif(
        "OpenVINOExecutionProvider" not in onnxruntime.get_available_providers(),
        reason="onnxruntime-openvino is not the runtime here",
    ),
    pytest.mark.filterwarnings("ignore"),  # an older runtime than the default suite's
]
FEED = {"x": np.ones((2, 4), np.float32), "w": np.full(4, 3.0, np.float32)}


@pytest.mark.parametrize("name", list(MODELS))
def test_models_agree(name):
    if name == "recurrence":
        pytest.skip("onnxruntime-openvino 1.24.1 ends the process on this Loop")
    model, args, program = exported(name, 20)
    session = program.session(providers="openvino,cpu")
    assert session.placement.share("openvino") >= 0.7  # an If stays with the CPU
    check(model, session, args).raise_for_mismatch()


@pytest.mark.parametrize(
    "request_", ["openvino", "openvino:CPU", "openvino(device_type=CPU)>=1.0"]
)
def test_requests_are_kept(request_):
    session = bridge.load(graph_bytes(SCALE), providers=request_)
    session.require_placement(openvino=1.0)
    np.testing.assert_array_equal(session.run(FEED)["y"], 3.0)


def test_a_device_that_is_not_there_is_an_error():
    with pytest.raises(bridge.ProviderError, match="did not start: Device GPU is not available"):
        bridge.load(graph_bytes(SCALE), providers="openvino:GPU,cpu")


def test_nodes_that_it_does_not_take_are_told():
    text = "g(string[N] x) => (string[N] y) { y = Identity(x) }"
    with pytest.raises(bridge.ProviderError, match="openvino took none of the 1 nodes"):
        bridge.load(graph_bytes(text), providers="openvino,cpu")
    with pytest.raises(bridge.ProviderError, match="which 'openvino' alone forbids: 1 Identity"):
        bridge.load(graph_bytes(text), providers="openvino")


def test_what_it_compiles_cannot_be_kept_and_runs_all_the_same(tmp_path):
    with pytest.warns(bridge.cache.CacheWarning, match="cannot be kept"):
        session = bridge.Session(graph_bytes(SCALE), providers="openvino,cpu", cache=tmp_path)
    np.testing.assert_array_equal(session.run(FEED)["y"], 3.0)


def test_the_fastest_provider_is_one_of_both():
    session = bridge.load(graph_bytes(SCALE), providers="fastest")
    assert set(session.measured) == {"openvino", "cpu"}
