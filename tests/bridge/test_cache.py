"""Rewritten graphs that are kept: found again, never mixed up, never read when damaged."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

import bridge
from bridge import cache as caching
from bridge.cache import CacheWarning, cache_folder
from tests.bridge.zoo import MODELS, exported


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.delenv("BRIDGE_CACHE", raising=False)
    return tmp_path / "cache"


def entries(folder):
    return sorted(p for p in folder.glob("*") if not p.name.startswith("."))


def leaves(x):
    return [np.asarray(y.detach()) for y in (x if isinstance(x, tuple) else (x,))]


@pytest.fixture
def opened(monkeypatch):
    """What sessions are made from."""
    made = []
    init = onnxruntime.InferenceSession.__init__

    def spy(self, source, *args, **kwargs):
        made.append(source)
        init(self, source, *args, **kwargs)

    monkeypatch.setattr(onnxruntime.InferenceSession, "__init__", spy)
    return made


@pytest.mark.parametrize("name", list(MODELS))
def test_a_kept_graph_computes_the_same(folder, opened, name):
    _, args, program = exported(name)
    first = bridge.Session(program, cache=folder)
    (entry,) = entries(folder)
    again = bridge.Session(program, cache=folder)
    assert opened[-1] == str(entry / "model.onnx")
    for a, b in zip(leaves(first(*args)), leaves(again(*args)), strict=True):
        np.testing.assert_array_equal(a, b)
    assert again.placement.share("cpu") == 1.0
    assert len(entries(folder)) == 1


def test_everything_that_matters_is_part_of_the_key(folder, tmp_path, monkeypatch):
    _, _, program = exported("resnet")
    path = tmp_path / "m.onnx"
    program.save(path)
    settings = [
        {}, {"optimization": "basic"}, {"config": {"session.set_denormal_as_zero": "1"}},
        {"providers": [("cpu", {"arena_extend_strategy": "kSameAsRequested"})]},
    ]  # fmt: skip
    for number, options in enumerate(settings, start=1):
        for _ in range(2):
            bridge.load(path, cache=folder, **options)
        assert len(entries(folder)) == number
    model = program.model.clone()  # other tests share the program
    model.graph.initializers["head.bias"].const_value = ir.tensor(np.ones(10, np.float32))
    bridge.Session(model, cache=folder)
    assert len(entries(folder)) == 5
    monkeypatch.setattr(onnxruntime, "__version__", "99")
    bridge.load(path, cache=folder)
    assert len(entries(folder)) == 6


def test_external_weights_are_part_of_the_key(folder, tmp_path):
    _, args, program = exported("unet")
    path = tmp_path / "m.onnx"
    program.save(path, external_data=True)
    before = bridge.load(path, cache=folder)(*args)
    data = next(tmp_path.glob("m.onnx*data"))
    data.write_bytes(bytes(data.stat().st_size))
    after = bridge.load(path, cache=folder)(*args)
    assert len(entries(folder)) == 2
    assert not np.array_equal(before, after)


DAMAGE = {
    "cut": lambda e: os.truncate(e / "model.onnx", 100),
    "flipped": lambda e: (e / "weights.bin").write_bytes(
        bytes(255 - b for b in (e / "weights.bin").read_bytes())
    ),
    "no weights": lambda e: (e / "weights.bin").unlink(),
    "no manifest": lambda e: (e / "manifest.json").unlink(),
    "odd manifest": lambda e: (e / "manifest.json").write_text("[1]"),
    "empty manifest": lambda e: (e / "manifest.json").write_text(""),
}


@pytest.mark.parametrize("damage", list(DAMAGE))
def test_what_is_damaged_is_not_read_but_made_anew(folder, damage):
    _, args, program = exported("resnet")
    expected = bridge.Session(program, cache=folder)(*args)
    (entry,) = entries(folder)
    DAMAGE[damage](entry)
    with pytest.warns(CacheWarning, match="is damaged and made anew"):
        session = bridge.Session(program, cache=folder)
    np.testing.assert_array_equal(session(*args), expected)
    assert len(entries(folder)) == 1
    bridge.Session(program, cache=folder)  # sound again: no warning


def test_a_graph_that_the_runtime_refuses_is_made_anew(folder):
    _, args, program = exported("resnet")
    bridge.Session(program, cache=folder)
    (entry,) = entries(folder)
    (entry / "model.onnx").write_bytes(b"\x08\x08")
    manifest = json.loads((entry / "manifest.json").read_text())
    manifest["files"]["model.onnx"] = caching._checksum(entry / "model.onnx")
    (entry / "manifest.json").write_text(json.dumps(manifest))
    with pytest.warns(CacheWarning, match="damaged"):
        bridge.Session(program, cache=folder)(*args)


def test_a_folder_that_cannot_be_written_is_a_warning(tmp_path):
    _, args, program = exported("resnet")
    (tmp_path / "file").write_text("")
    with pytest.warns(CacheWarning, match="graphs cannot be kept in"):
        bridge.Session(program, cache=tmp_path / "file")(*args)


def test_a_full_disk_is_a_warning(folder, monkeypatch):
    _, args, program = exported("resnet")

    def full(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(caching, "_sync", full)
    with pytest.warns(CacheWarning, match="No space left on device"):
        bridge.Session(program, cache=folder)(*args)
    assert list(folder.iterdir()) == []


@pytest.mark.e2e
def test_a_really_full_disk_is_a_warning(tmp_path):
    """A file system of 16 KiB, where one may be mounted."""
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(small)], capture_output=True, check=False
    )  # fmt: skip
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")
    try:
        _, args, program = exported("unet")
        with pytest.warns(CacheWarning):
            bridge.Session(program, cache=small)(*args)
        assert entries(small) == []
        with pytest.raises(bridge.ModelFileError, match="No space left"):
            exported("encoder")[2].save(small / "m.onnx")
        assert list(small.glob("*.onnx*")) == []
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_the_environment_and_deployments_name_a_cache(folder, tmp_path, monkeypatch):
    assert cache_folder(None) is None
    assert cache_folder(True).name == "bridge"
    _, _, program = exported("resnet")
    monkeypatch.setenv("BRIDGE_CACHE", str(folder))
    bridge.Session(program)
    assert len(entries(folder)) == 1
    bridge.Session(program, cache=False, optimization="basic")
    assert len(entries(folder)) == 1
    monkeypatch.delenv("BRIDGE_CACHE")
    (tmp_path / "bridge.toml").write_text('[deployments.edge]\ncache = "kept"\n')
    monkeypatch.setenv("BRIDGE_CONFIG", str(tmp_path / "bridge.toml"))
    bridge.load(program, deployment="edge")
    assert len(entries(tmp_path / "kept")) == 1


# Many processes

WORK = """
import sys, warnings
warnings.simplefilter("error")
import numpy as np, bridge
from tests.bridge.graphs import graph_bytes
model, folder, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
print("ready", flush=True)
sys.stdin.readline()
x = np.load(model + ".npy")
for _ in range(count):
    y = bridge.load(model, cache=folder, threads=1).run({"x": x})["y"]
    assert (y == np.load(model + ".out.npy")).all()
print("done", flush=True)
"""
MODEL = """g(float[N, 64] x) => (float[N, 64] y) {
    a = MatMul(x, w)
    b = Relu(a)
    c = MatMul(b, w)
    y = Add(c, x)
}"""


@pytest.fixture
def saved(tmp_path):
    from tests.bridge.graphs import graph

    model = graph(MODEL)
    weight = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    value = ir.Value(name="w", const_value=ir.tensor(weight, name="w"))
    value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(weight.shape)
    model.graph.initializers.add(value)
    for node in model.graph:
        for index, read in enumerate(node.inputs):
            if read is not None and read.name == "w":
                node.replace_input_with(index, value)
    path = tmp_path / "m.onnx"
    bridge.files.save_model(model, path)
    x = np.ones((3, 64), np.float32)
    np.save(f"{path}.npy", x)
    np.save(f"{path}.out.npy", bridge.load(path, threads=1).run({"x": x})["y"])
    return path


def start(saved, folder, count):
    return subprocess.Popen(
        [sys.executable, "-c", WORK, str(saved), str(folder), str(count)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.e2e
def test_ten_processes_open_one_cache_at_once(saved, folder):
    workers = [start(saved, folder, 3) for _ in range(10)]
    for worker in workers:
        assert worker.stdout.readline() == "ready\n"
    for worker in workers:  # all at the same moment
        worker.stdin.write("go\n")
        worker.stdin.flush()
    for worker in workers:
        out, err = worker.communicate(timeout=120)
        assert out == "done\n", err
    assert len(entries(folder)) == 1
    assert [p for p in folder.iterdir() if p.name.startswith(".")] == []


@pytest.mark.e2e
def test_processes_that_are_killed_leave_nothing_that_is_read(saved, folder):
    rng = np.random.default_rng(0)
    for _ in range(4):
        worker = start(saved, folder, 1000)
        worker.stdout.readline()
        worker.stdin.write("go\n")
        worker.stdin.flush()
        remover = threading.Thread(
            target=lambda: [shutil.rmtree(e, True) for e in entries(folder)]
        )
        time.sleep(float(rng.uniform(0.0, 0.15)))
        remover.start()
        worker.send_signal(signal.SIGKILL)
        worker.wait()
        worker.stdin.close()
        worker.stdout.close()
        worker.stderr.close()
        remover.join()
    for entry in entries(folder):
        assert (entry / "manifest.json").exists()
    x = np.load(f"{saved}.npy")
    y = bridge.load(saved, cache=folder, threads=1).run({"x": x})["y"]
    np.testing.assert_array_equal(y, np.load(f"{saved}.out.npy"))


def test_remains_of_the_dead_are_swept(folder):
    _, _, program = exported("resnet")
    folder.mkdir()
    for name, age in ((".old.1.x.tmp", 7200), (".new.2.y.tmp", 0)):
        (folder / name).mkdir()
        os.utime(folder / name, (time.time() - age,) * 2)
    bridge.Session(program, cache=folder)
    assert [p.name for p in folder.iterdir() if p.name.startswith(".")] == [".new.2.y.tmp"]


# Files of programs


def _save_for_ever(path):
    program = exported("encoder")[2]
    while True:
        program.save(path)
        program.save(f"{path}.ext", external_data=True)


@pytest.mark.e2e
def test_a_save_that_is_killed_leaves_a_whole_file(tmp_path):
    path = str(tmp_path / "m.onnx")
    _, args, program = exported("encoder")
    expected = program(*args)
    program.save(path)
    program.save(f"{path}.ext", external_data=True)
    context = multiprocessing.get_context("fork")
    rng = np.random.default_rng(0)
    for _ in range(10):
        worker = context.Process(target=_save_for_ever, args=(path,))
        worker.start()
        time.sleep(float(rng.uniform(0.05, 0.2)))
        worker.kill()
        worker.join()
        for name in (path, f"{path}.ext"):
            np.testing.assert_array_equal(bridge.load(name)(*args), expected)
