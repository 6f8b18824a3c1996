"""Model files from strangers: what is wrong with them is told before anything is allocated or read."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

import bridge
from bridge.files import load_model
from bridge.untrusted import check_bytes, check_path
from tests.bridge.fuzz_loading import CORPUS, Worker
from tests.bridge.graphs import SCALE, graph_bytes


def with_weight(**fields):
    """``y = x + w`` with a weight of given fields."""
    model = onnx.ModelProto()
    model.ParseFromString(graph_bytes("g(float[N] x) => (float[N] y) { y = Add(x, w) }"))
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4])
    for key, value in fields.items():
        if isinstance(value, list):
            del getattr(tensor, key)[:]
            getattr(tensor, key).extend(value)
        else:
            setattr(tensor, key, value)
    model.graph.initializer.append(tensor)
    return model


def with_external(location, offset=None, length=None):
    model = with_weight(data_location=TensorProto.EXTERNAL)
    entries = {"location": location, "offset": offset, "length": length}
    for key, value in entries.items():
        if value is not None:
            model.graph.initializer[0].external_data.add(key=key, value=str(value))
    return model


ONES = np.ones(4, np.float32).tobytes()


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"raw_data": ONES[:-1]}, "claims 16 bytes and has 15"),
        ({"raw_data": ONES, "dims": [2**40]}, "claims 4398046511104 bytes and has 16"),
        ({"raw_data": ONES, "dims": [2**62, 2**62]}, "claims 21267647932558653966460912964485513216"),
        ({"raw_data": ONES, "dims": [-4]}, "a negative size"),
        ({"raw_data": ONES, "dims": [1] * 300}, "too many dims"),
        ({"raw_data": ONES, "data_type": 99}, "unknown element type 99"),
        ({"float_data": [1.0] * 3}, "claims 4 elements and has 3 entries"),
        ({"float_data": [1.0] * 5}, "claims 4 elements and has 5 entries"),
        ({"int64_data": [1] * 4}, "claims 4 elements and has 0 entries"),
        ({"data_type": TensorProto.UINT4, "int32_data": [1]}, "has 1 entries"),
        ({"data_type": TensorProto.STRING, "string_data": [b"a"]}, "claims 4 strings and has 1"),
    ],
)  # fmt: skip
def test_declared_sizes_are_checked_before_allocation(tmp_path, fields, told):
    data = with_weight(**fields).SerializeToString()
    with pytest.raises(bridge.ModelFileError) as caught:
        check_bytes(data)
    assert told in str(caught.value)
    path = tmp_path / "m.onnx"
    path.write_bytes(data)
    for load in (bridge.load, load_model):
        with pytest.raises(bridge.ModelFileError):
            load(path)


@pytest.mark.parametrize(
    ("fields", "dtype"),
    [
        ({"raw_data": ONES}, "float"),
        ({"float_data": [1.0] * 4}, "float"),
        ({"int64_data": [1, -1, 2**62, 0], "data_type": TensorProto.INT64}, "int64"),
        ({"int32_data": [1, -1, 300, 0], "data_type": TensorProto.INT32}, "int32"),
        ({"int32_data": [0x3C00] * 4, "data_type": TensorProto.FLOAT16}, "float16"),
        ({"uint64_data": [1] * 4, "data_type": TensorProto.UINT32}, "uint32"),
        ({"double_data": [1.0] * 4, "data_type": TensorProto.DOUBLE}, "double"),
        ({"int32_data": [0x21, 0x43], "data_type": TensorProto.UINT4}, "uint4"),
        ({"float_data": [], "dims": [0]}, "float"),
    ],
)
def test_every_way_to_store_a_sound_tensor_is_accepted(fields, dtype):
    check_bytes(with_weight(**fields).SerializeToString())


# External data


@pytest.fixture
def folder(tmp_path):
    inside = tmp_path / "models"
    inside.mkdir()
    (tmp_path / "secret.bin").write_bytes(ONES)
    (inside / "w.bin").write_bytes(ONES)
    return inside


@pytest.mark.parametrize(
    ("location", "told"),
    [
        ("../secret.bin", "outside of the model's folder"),
        ("sub/../../secret.bin", "outside of the model's folder"),
        ("..\\secret.bin", "outside of the model's folder"),
        ("{top}/secret.bin", "an absolute path"),
        ("C:\\secret.bin", "an absolute path"),
        ("link.bin", "outside of the model's folder"),
        ("sub/secret.bin", "outside of the model's folder"),
        ("", "which"), (".", "has its data in '.'"), ("sub", "no regular file"),
        ("pipe", "no regular file"), ("missing.bin", "cannot be read"), ("loop.bin", "cannot be read"),
    ],
)  # fmt: skip
def test_external_data_stays_in_its_folder(folder, location, told):
    top = folder.parent
    (folder / "link.bin").symlink_to(top / "secret.bin")
    (folder / "loop.bin").symlink_to(folder / "loop.bin")
    if location == "sub":
        (folder / "sub").mkdir()
    else:
        (folder / "sub").symlink_to(top)
    os.mkfifo(folder / "pipe")
    path = folder / "m.onnx"
    path.write_bytes(with_external(location.format(top=top)).SerializeToString())
    for load in (bridge.load, load_model):
        with pytest.raises(bridge.ModelFileError) as caught:
            load(path)
        assert told in str(caught.value) or location == ""


@pytest.mark.parametrize(
    ("offset", "length", "told"),
    [
        (4, None, "ends at 20 of 'w.bin', which has 16 bytes"),
        (0, 2**40, "claims 16 bytes, and 1099511627776"),
        (-4, None, "the offset of tensor 'w' is '-4'"),
        ("0x10", None, "is '0x10'"),
        (2**63, None, "ends at"),
    ],
)
def test_external_sizes_are_checked(folder, offset, length, told):
    path = folder / "m.onnx"
    path.write_bytes(with_external("w.bin", offset, length).SerializeToString())
    with pytest.raises(bridge.ModelFileError) as caught:
        bridge.load(path)
    assert told in str(caught.value)


def test_external_data_beside_the_model_is_read(folder):
    path = folder / "m.onnx"
    path.write_bytes(with_external("w.bin", 0, 16).SerializeToString())
    y = bridge.load(path).run({"x": np.ones(4, np.float32)})["y"]
    np.testing.assert_array_equal(y, 2)


def test_a_download_cache_links_both_files_into_one_folder(folder):
    (folder / "m.onnx").write_bytes(with_external("w.bin", 0, 16).SerializeToString())
    snapshot = folder.parent / "snapshot"
    snapshot.mkdir()
    for name in ("m.onnx", "w.bin"):
        (snapshot / name).symlink_to(folder / name)
    check_path(snapshot / "m.onnx")


def test_bytes_have_no_folder():
    with pytest.raises(bridge.ModelFileError, match="has its data in another file"):
        bridge.Session(with_external("w.bin").SerializeToString())


# Structure


def nested(depth):
    graph = onnx.parser.parse_graph("g(float[N] x) => (float[N] y) { y = Neg(x) }")
    for _ in range(depth):
        node = onnx.NodeProto(op_type="If", input=["c"], output=["y"])
        for name in ("then_branch", "else_branch"):
            attribute = node.attribute.add(name=name, type=onnx.AttributeProto.GRAPH)
            if name == "then_branch":
                attribute.g.CopyFrom(graph)
        outer = onnx.GraphProto(name="g")
        outer.node.append(node)
        graph = outer
    model = onnx.ModelProto(ir_version=8)
    model.opset_import.add(domain="", version=17)
    model.graph.CopyFrom(graph)
    return model.SerializeToString()


def test_nesting_is_bounded():
    check_bytes(nested(20))
    with pytest.raises(bridge.ModelFileError, match="nested more than 30 deep"):
        check_bytes(nested(31))


def test_functions_that_never_end_are_refused():
    text = """<ir_version: 8, opset_import: ["": 17, "t": 1]>
    g (float[N] x) => (float[N] y) { y = t.f(x) }
    <opset_import: ["": 17, "t": 1], domain: "t"> f (x) => (y) { y = t.%s(x) }
    <opset_import: ["": 17, "t": 1], domain: "t"> h (x) => (y) { y = t.f(x) }"""
    for callee in ("f", "h"):
        data = onnx.parser.parse_model(text % callee).SerializeToString()
        with pytest.raises(bridge.ModelFileError, match="calls itself"):
            bridge.Session(data)


def test_functions_that_explode_are_refused():
    body = "; ".join(["a = t.f%d(x)"] * 10)
    functions = "".join(
        f'<opset_import: ["": 17, "t": 1], domain: "t"> f{i} (x) => (a) {{ '
        + (body % ((i + 1,) * 10) if i < 9 else "a = Neg(x)").replace("; ", "\n")
        + " }\n"
        for i in range(10)
    )
    header = '<ir_version: 8, opset_import: ["": 17, "t": 1]>'
    text = f"{header} g (float[N] x) => (float[N] y) {{ y = t.f0(x) }}\n{functions}"
    data = onnx.parser.parse_model(text).SerializeToString()
    with pytest.raises(bridge.ModelFileError, match="write out to 1000000000 nodes"):
        bridge.Session(data)


@pytest.mark.parametrize("content", [b"", b"\0", b"not a model", b"\xff" * 100, b"<html>" * 50])
def test_what_is_no_model_is_told(tmp_path, content):
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    for load in (bridge.load, load_model, lambda p: bridge.Session(p.read_bytes())):
        with pytest.raises(bridge.ModelFileError):
            load(path)


def test_every_truncation_is_an_error():
    data = graph_bytes(SCALE)
    for end in range(len(data)):
        with pytest.raises(bridge.BridgeError):
            bridge.Session(data[:end], threads=1)


@pytest.mark.parametrize("kind", ["folder", "pipe", "missing"])
def test_what_is_no_file_is_told(tmp_path, kind):
    path = tmp_path / "m.onnx"
    {"folder": path.mkdir, "pipe": lambda: os.mkfifo(path), "missing": lambda: None}[kind]()
    with pytest.raises(bridge.ModelFileError):
        bridge.load(path)


def test_hostile_metadata_is_no_signature():
    for text in ("{", "[" * 100_000, '{"inputs": 3}', '"x"'):
        model = onnx.ModelProto()
        model.ParseFromString(graph_bytes(SCALE))
        model.metadata_props.add(key="bridge.signature", value=text)
        session = bridge.Session(model.SerializeToString())
        assert session.signature is None
        assert session.run({"x": np.ones((2, 4), np.float32), "w": np.ones(4, np.float32)})


def test_nothing_is_unpickled(tmp_path):
    class Evil:
        def __reduce__(self):
            return (os._exit, (1,))

    path = tmp_path / "x.npz"
    np.savez(path, x=np.array([Evil()], object))
    session = bridge.Session(graph_bytes(SCALE))
    with pytest.raises((bridge.BridgeError, ValueError)):
        bridge.check(session, session, str(path))


# What fuzzing has found


def test_the_corpus_of_fuzzing_is_harmless():
    """In a process of its own: what is in it has ended processes before."""
    files = sorted(CORPUS.glob("*.model"))
    assert len(files) >= 4
    worker = Worker()
    try:
        outcomes = {Path(f).name: worker.load(f.read_bytes()) for f in files}
    finally:
        worker.stop()
    assert not {n: o for n, o in outcomes.items() if o.startswith("!")}


@pytest.mark.slow
def test_ten_minutes_of_fuzzing_find_nothing():
    from tests.bridge.fuzz_loading import fuzz

    counts = fuzz(600, seed=0)
    assert not [o for o in counts if o.startswith("!")]
