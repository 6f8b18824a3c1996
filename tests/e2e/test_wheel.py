"""A wheel of this tree, installed into an environment of its own, exports and runs models there."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
pytestmark = pytest.mark.e2e

EARLY = """
import torch


class Early(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Linear(4, 3), torch.nn.Linear(3, 3)

    def forward(self, x):
        y = self.first(x).softmax(-1)
        if y.max() > 0.5:
            return y
        return self.second(y).softmax(-1)


def make():
    torch.manual_seed(0)
    return Early().eval(), (torch.randn(2, 4),)
"""

SCRIPT = """
import sys

import torch
from nets import make

import bridge

assert "site-packages" in bridge.__file__, bridge.__file__
model, args = make()
bridge.export(model, args, "api.onnx", dynamic_shapes={"x": {0: "rows"}})
session = bridge.load("api.onnx")
cases = [(args[0] * scale,) for scale in (0.0, 1.0, 9.0)]
assert len({bool(model.first(*c).softmax(-1).max() > 0.5) for c in cases}) == 2  # both branches
bridge.check(model, session, cases).raise_for_mismatch()
"""

WITHOUT_TORCH = """
import sys

sys.modules["torch"] = None  # as if it were not installed
import numpy as np

import bridge

session = bridge.load("api.onnx")
result = session.run({"x": np.zeros((5, 4), np.float32)})
assert result["output"].shape == (5, 3)
optimized = bridge.optimize("api.onnx", "fast.onnx", target="cpu")
assert bridge.load("fast.onnx").run({"x": np.zeros((1, 4), np.float32)})["output"].shape == (1, 3)
"""


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """Standard output of a command that must succeed."""
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        [str(c) for c in command],
        cwd=cwd,
        env={**kept, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    build = ("-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", folder)
    run(sys.executable, *build, ROOT, cwd=ROOT)
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
    """Runs things in an environment with the wheel in it, which borrows its dependencies from ours."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder / "venv", with_pip=False)
    binaries = folder / "venv" / ("Scripts" if os.name == "nt" else "bin")
    python = binaries / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", wheel,
        cwd=folder)  # fmt: skip
    (folder / "nets.py").write_text(EARLY)
    (folder / "api.py").write_text(SCRIPT)
    # .pth files there are not read, so the editable install of this tree stays out.
    borrowed = sysconfig.get_paths()["purelib"]

    def call(program, *arguments):
        command = (python,) if program == "python" else (binaries / program,)
        return run(*command, *arguments, cwd=folder, PYTHONPATH=borrowed, OMP_NUM_THREADS="1")

    call("python", "api.py")
    return call


def test_the_wheel_holds_the_packages_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (entry_points,) = [n for n in names if n.endswith("entry_points.txt")]
        assert "bridge = bridge.cli:main" in archive.read(entry_points).decode()
    tops = {n.split("/")[0] for n in names if ".dist-info" not in n}
    assert tops == {"bridge", "exporters", "optim_passes"}
    assert {"bridge/py.typed", "exporters/py.typed", "optim_passes/py.typed"} <= set(names)
    assert any(n.endswith("licenses/LICENSE") for n in names)
    assert not [n for n in names if n.endswith((".onnx", ".pyc"))]


def test_a_model_exports_by_the_api(environment):
    environment("python", "api.py")


def test_a_model_exports_by_the_command(environment):
    report = environment("bridge", "export", "nets.py:make", "cli.onnx", "--dynamic", "x=0:rows")
    assert "If" in report
    assert "compiled: Early.forward" in report
    checked = environment("bridge", "check", "nets.py:make", "cli.onnx", "--vary")
    assert "parity passed" in checked
    assert "output" in environment("bridge", "run", "cli.onnx", "--size", "rows=3")


def test_a_model_runs_and_is_optimised_without_torch(environment):
    environment("python", "-c", WITHOUT_TORCH)


def test_doctor_finds_what_is_installed(environment):
    told = environment("bridge", "doctor")
    assert "onnxruntime" in told


@pytest.mark.slow
def test_pip_finds_every_dependency(wheel, tmp_path):
    """In a truly empty environment: the wheel's own metadata must be enough."""
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    constraints = ROOT / "constraints.txt"
    run(python, "-m", "pip", "install", "--quiet", "-c", constraints, f"{wheel}[torch,cpu]",
        cwd=tmp_path)  # fmt: skip
    (tmp_path / "nets.py").write_text(EARLY)
    (tmp_path / "api.py").write_text(SCRIPT)
    run(python, "api.py", cwd=tmp_path)
    command = tmp_path / "venv" / "bin" / "bridge"
    run(command, "export", "nets.py:make", "cli.onnx", cwd=tmp_path)
    run(command, "check", "nets.py:make", "cli.onnx", cwd=tmp_path)
