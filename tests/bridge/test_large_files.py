"""Files with large weights inside are read as others are, weight by weight."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from bridge.errors import ModelFileError
from bridge.files import load_model
from bridge.large_files import load_apart
from bridge.providers import resolve
from bridge.runtime import Settings
from bridge.session import Session
from tests.benchmarks.export import PeakMemory

TEXT = """
<ir_version: 10, opset_import: ["" : 21]>
g (float[N,512] x) => (float[N,600] y, float[N,512] z) <float[2] few = {1, 2}> {
  y = MatMul(x, large) w = DequantizeLinear(packed, scale) z = MatMul(x, w)
}
"""


@pytest.fixture
def path(tmp_path):
    rng = np.random.default_rng(0)
    model = ir.from_proto(onnx.parser.parse_model(TEXT))
    tensors = {
        "large": ir.tensor(rng.standard_normal((512, 600)).astype(np.float32)),
        "brain": ir.tensor(rng.standard_normal((512, 1200)).astype(ir.DataType.BFLOAT16.numpy())),
        "packed": ir.tensor(np.ones((2048, 2048), ir.DataType.INT4.numpy())),
        "scale": ir.tensor(np.float32(2)),
    }
    for name, tensor in tensors.items():
        tensor.name = name
        model.graph.initializers.add(ir.Value(name=name, const_value=tensor))
    path = tmp_path / "model.onnx"
    path.write_bytes(ir.to_proto(model).SerializeToString())
    return path


def test_what_is_read_is_what_there_is(path):
    expected, found = ir.load(path), load_apart(path)
    assert list(found.graph.initializers) == list(expected.graph.initializers)
    for name, value in expected.graph.initializers.items():
        tensor = found.graph.initializers[name].const_value
        assert tensor.dtype == value.const_value.dtype
        assert tensor.tobytes() == value.const_value.tobytes()
    assert isinstance(found.graph.initializers["large"].const_value, ir.Tensor)
    assert ir.to_proto(found).graph.node == ir.to_proto(expected).graph.node


def test_weights_of_the_wrong_size_are_refused(path, monkeypatch):
    model = onnx.load(path)
    large = next(t for t in model.graph.initializer if t.name == "large")
    large.dims[0] = 513
    path.write_bytes(model.SerializeToString())
    monkeypatch.setattr("bridge.files._LARGE_FILE", 0)
    with pytest.raises(ModelFileError, match="large"):
        load_model(path)


def test_shared_weights_are_read_where_they_are():
    """Four weights that are transposed as the model runs: none of them is copied, nor all turned."""
    size = 2048
    rng = np.random.default_rng(0)
    weights = [rng.standard_normal((size, size), dtype=np.float32) / size for _ in range(4)]
    value = ir.Value(name="x", shape=ir.Shape(["N", size]), type=ir.TensorType(ir.DataType.FLOAT))
    graph = ir.Graph([value], [], nodes=[], opset_imports={"": 21}, name="g")
    for i, array in enumerate(weights):
        weight = ir.Value(name=f"w{i}", const_value=ir.tensor(array, name=f"w{i}"))
        graph.initializers.add(weight)
        turned = ir.node("Transpose", [weight], {"perm": [1, 0]})
        product = ir.node("MatMul", [value, turned.outputs[0]])
        graph.extend([turned, product])
        value = product.outputs[0]
    value.name, value.type = "y", ir.TensorType(ir.DataType.FLOAT)
    graph.outputs.append(value)
    model = ir.Model(graph, ir_version=10)
    settings = Settings(resolve("cpu"), optimization="none", share_weights=True)
    feed = {"x": np.ones((1, size), np.float32)}
    with PeakMemory() as peak:
        session = Session(model, settings=settings)
        result = session.run(feed)["y"]
    assert peak.above < 2.5 * 4 * size**2  # one of them turned, and the buffers of its product
    expected = feed["x"]
    for array in weights:
        expected = expected @ array.T
    np.testing.assert_allclose(result, expected, rtol=1e-3, atol=1e-5)
