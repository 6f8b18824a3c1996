"""Models that other tools wrote: old opsets, float16, weights among the inputs, integers already."""

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import numpy_helper

import bridge

RNG = np.random.default_rng(0)


def model(opset=11, dtype="float"):
    text = f"""<ir_version: 6, opset_import: ["" : {opset}]>
        g ({dtype}[N, 8, 8, 8] x) => ({dtype}[N, 5] y) {{
            c = Conv<pads = [1, 1, 1, 1]>(x, w, b)
            r = Relu(c)
            p = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(r)
            d = Conv(p, v)
            f = Flatten(d)
            y = Gemm<transB = 1>(f, g, h)
        }}"""
    made = onnx.parser.parse_model(text)
    sizes = {"w": (32, 8, 3, 3), "b": (32,), "v": (16, 32, 1, 1), "g": (5, 256), "h": (5,)}
    kind = np.float16 if dtype == "float16" else np.float32
    for name, shape in sizes.items():
        array = (0.1 * RNG.standard_normal(shape)).astype(kind)
        made.graph.initializer.append(numpy_helper.from_array(array, name))
    return made


def weights_as_inputs():
    made = model()
    made.ir_version = 3
    for w in made.graph.initializer:
        info = onnx.helper.make_tensor_value_info(w.name, w.data_type, list(w.dims))
        made.graph.input.append(info)
    return made


def weights_as_nodes():
    made = model()
    for w in made.graph.initializer:
        made.graph.node.insert(0, onnx.helper.make_node("Constant", [], [w.name], value=w))
    del made.graph.initializer[:]
    return made


FORMS = {
    "opset 7": lambda: model(7),
    "opset 11": model,
    "opset 13 in float16": lambda: model(13, "float16"),
    "weights as inputs": weights_as_inputs,
    "weights as nodes": weights_as_nodes,
}


def batches_for(proto):
    half = proto.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT16
    kind = np.float16 if half else np.float32
    return [{"x": RNG.standard_normal((2, 8, 8, 8)).astype(kind)} for _ in range(3)]


@pytest.mark.parametrize("recipe", ["int8-static", "int8-dynamic"])
@pytest.mark.parametrize("form", FORMS)
def test_models_of_every_age_are_quantized(form, recipe, tmp_path):
    proto = FORMS[form]()
    path, target = tmp_path / "model.onnx", tmp_path / "int8.onnx"
    onnx.save(proto, path)
    batches = batches_for(proto)
    made = bridge.quantize(path, recipe, calibration=batches, gate=False)
    made.save(target)
    assert made.quantization.quantized
    providers = ["CPUExecutionProvider"]
    [want] = onnxruntime.InferenceSession(path, providers=providers).run(None, batches[0])
    [got] = onnxruntime.InferenceSession(target, providers=providers).run(None, batches[0])
    assert got.dtype == want.dtype
    error = np.abs(got.astype(np.float32) - want).max()
    assert error < 0.05 * np.abs(want).max()


def test_integers_that_were_there_before_are_not_ours():
    proto = model(13)
    batches = batches_for(proto)

    once = bridge.quantize(
        ir.from_proto(proto), "int8-static", calibration=batches, keep_float=[], gate=False
    )
    again = bridge.quantize(once.model, "int8-dynamic", gate=False)
    assert not again.quantization.quantized
    assert again.quantization.warnings == ["nothing was quantized"]


def test_texts_beside_numbers_are_no_obstacle():
    proto = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["" : 20]>
        g (float[N, 64] x, string[1] s) => (float[N, 64] y, string[1] t, seq(float[N, 64]) u) {
            y = MatMul(x, w)
            t = Identity(s)
            u = SequenceConstruct(y, x)
        }"""
    )
    weight = RNG.standard_normal((64, 64)).astype(np.float32)
    proto.graph.initializer.append(numpy_helper.from_array(weight, "w"))

    batches = [
        {"x": RNG.standard_normal((3, 64)).astype(np.float32), "s": np.asarray(["a"])}
        for _ in range(2)
    ]
    made = bridge.quantize(
        ir.from_proto(proto), "int8-dynamic", calibration=batches, max_drop=0.5, gate=False
    )
    assert 25 < made.quantization.accuracy.snr < 60


def test_an_operator_that_no_newer_opset_has_is_an_error():
    proto = model(11)
    proto.graph.node[1].op_type = "Upsampling"

    with pytest.raises(bridge.RecipeError, match="opset 11 cannot be converted to opset 13"):
        bridge.quantize(ir.from_proto(proto), "int8-dynamic", gate=False)
