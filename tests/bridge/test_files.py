"""Model files: written whole or not at all, of any size, read back as they were."""

from __future__ import annotations

import os
import pickle
import shutil
import stat

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

import bridge
from bridge import files
from bridge.files import load_model, save_model
from tests.bridge.zoo import MODELS, exported


def leaves(x):
    return [np.asarray(y.detach()) for y in (x if isinstance(x, tuple) else (x,))]


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("name", list(MODELS))
def test_what_is_saved_is_what_is_loaded(name, external, tmp_path):
    _, args, program = exported(name)
    path = tmp_path / "m.onnx"
    program.save(path, external_data=external)
    onnx.checker.check_model(path)
    assert {p.name for p in tmp_path.iterdir()} <= {"m.onnx", "m.onnx.data"}
    for a, b in zip(leaves(program(*args)), leaves(bridge.load(path)(*args)), strict=True):
        np.testing.assert_array_equal(a, b)
    again = load_model(path)
    assert [n.op_type for n in again.graph] == [n.op_type for n in program.model.graph]
    sources = [n.metadata_props.get("bridge.source") for n in program.model.graph]
    assert [n.metadata_props.get("bridge.source") for n in again.graph] == sources


class Branching(torch.nn.Module):
    """Small weights, large ones, and some that only a branch reads."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.linspace(0, 1, 100))
        self.linear = torch.nn.Linear(100, 300)

    def forward(self, x):
        x = x * self.scale
        if x.sum() > 0:
            x = (x.flip(1) + self.linear.bias[:100]).softmax(1) + self.scale
        return self.linear(x)


@pytest.fixture
def scattered(tmp_path, monkeypatch):
    """A model with even its smallest tensor in another file, as seen from another folder."""
    module, x = Branching().eval(), torch.ones(2, 100)
    proto = ir.to_proto(bridge.export(module, x).model)
    (tmp_path / "given").mkdir()
    (tmp_path / "made").mkdir()
    onnx.save_model(
        proto, tmp_path / "given" / "m.onnx", save_as_external_data=True, location="weights.bin",
        size_threshold=0, convert_attribute=True,
    )  # fmt: skip
    monkeypatch.chdir(tmp_path)
    return module, x


@pytest.mark.parametrize("external", [False, True])
def test_models_leave_their_external_data_behind(external, scattered):
    module, x = scattered
    save_model(load_model("given/m.onnx"), "made/saved.onnx", external_data=external)
    made = bridge.optimize("given/m.onnx", "made/fast.onnx", external_data=external)
    assert made.report.verified
    session = bridge.Session(load_model("given/m.onnx"))
    pickled = pickle.dumps(session)
    shutil.rmtree("given")
    for path in ("made/saved.onnx", "made/fast.onnx"):
        for inputs in (x, -x):
            torch.testing.assert_close(bridge.load(path)(inputs), module(inputs))
    torch.testing.assert_close(pickle.loads(pickled)(x), module(x))


def test_models_over_two_gigabytes_use_external_data_by_themselves(tmp_path, monkeypatch):
    _, args, program = exported("encoder")
    monkeypatch.setattr(files, "_PROTOBUF_LIMIT", 64 * 2**20 + 1000)
    program.save(tmp_path / "m.onnx")
    assert {p.name for p in tmp_path.iterdir()} == {"m.onnx", "m.onnx.data"}
    np.testing.assert_array_equal(bridge.load(tmp_path / "m.onnx")(*args), program(*args))


@pytest.mark.parametrize("external", [False, True])
def test_a_save_that_fails_leaves_the_old_file(external, tmp_path, monkeypatch):
    _, _, program = exported("resnet")
    path = tmp_path / "m.onnx"
    program.save(path, external_data=external)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def broken(self, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    for kind in {type(v.const_value) for v in program.model.graph.initializers.values()}:
        monkeypatch.setattr(kind, "tofile", broken, raising=False)
    with pytest.raises(bridge.ModelFileError, match="No space left on device"):
        program.save(path, external_data=external)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_saving_over_external_data_replaces_it(tmp_path):
    path = tmp_path / "m.onnx"
    for name in ("encoder", "resnet", "encoder"):
        _, args, program = exported(name)
        program.save(path, external_data=True)
        assert len(list(tmp_path.iterdir())) == 2
        np.testing.assert_array_equal(bridge.load(path)(*args), program(*args))
    program.save(path, external_data=False)
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


def test_a_session_goes_on_when_its_file_is_replaced(tmp_path):
    path = tmp_path / "m.onnx"
    _, args, program = exported("encoder")
    program.save(path, external_data=True)
    session = bridge.load(path)
    expected = program(*args)
    exported("resnet")[2].save(path, external_data=True)
    np.testing.assert_array_equal(session(*args), expected)


@pytest.mark.parametrize("place", ["no/m.onnx", "", "file/m.onnx"])
def test_places_that_cannot_be_written_are_told(tmp_path, place):
    (tmp_path / "file").write_text("")
    with pytest.raises(bridge.ModelFileError, match="cannot write") as caught:
        exported("resnet")[2].save(tmp_path / place)
    assert "give a path in an existing folder" in caught.value.hint


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_is_read_only_is_told(tmp_path):
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(bridge.ModelFileError, match="Permission denied"):
        exported("resnet")[2].save(tmp_path / "m.onnx")


def test_saving_copies_no_weights(tmp_path):
    """Weights are written from where they lie: the model is as large as before, and untouched."""
    weight = torch.nn.Parameter(torch.randn(64, 64))
    program = bridge.export(lambda x: x @ weight, torch.randn(2, 64))
    names = list(program.model.graph.initializers)
    held = {n: v.const_value for n, v in program.model.graph.initializers.items()}
    save_model(program.model, tmp_path / "m.onnx")
    assert list(program.model.graph.initializers) == names
    assert all(program.model.graph.initializers[n].const_value is x for n, x in held.items())


@pytest.mark.slow
def test_three_gigabytes_are_exported_loaded_and_checked(tmp_path):
    class Large(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = torch.nn.ModuleList(
                torch.nn.Linear(8192, 8192, bias=False) for _ in range(12)
            )

        def forward(self, x):
            for layer in self.layers:
                x = torch.tanh(layer(x))
            return x

    model = Large().eval()
    assert sum(p.nbytes for p in model.parameters()) > 3e9
    path = tmp_path / "large.onnx"
    x = torch.randn(2, 8192)
    bridge.export(model, x, path, dynamic_shapes=({0: "batch"},))
    assert (tmp_path / "large.onnx.data").stat().st_size > 3e9
    assert bridge.check(model, bridge.load(path), x, judge=False).passed
