"""A model file from a stranger."""

from pathlib import Path

import onnx

import bridge

# --8<-- [start:code]
weight = onnx.TensorProto(name="w", data_type=1, dims=[4], data_location=onnx.TensorProto.EXTERNAL)
weight.external_data.add(key="location", value="../../etc/passwd")
model = onnx.parser.parse_model(
    '<ir_version: 8, opset_import: ["": 17]> g(float[4] x) => (float[4] y) {y = Add(x, w)}'
)
model.graph.initializer.append(weight)
Path("model.onnx").write_bytes(model.SerializeToString())
try:
    bridge.load("model.onnx")
except bridge.ModelFileError as error:
    print(error)
# --8<-- [end:code]
