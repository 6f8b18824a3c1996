"""Providers as a contract, deployments, and what doctor says of machines that lack something."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import onnxruntime
import pytest

import bridge
from bridge import contracts, doctor
from bridge.deployment import deployment, find_config
from bridge.profiling import Placement
from bridge.providers import CPU, Contract, Provider, is_plugin, resolve
from tests.bridge.graphs import SCALE, graph_bytes

HAS_CUDA = "CUDAExecutionProvider" in onnxruntime.get_available_providers()


@pytest.fixture(autouse=True)
def no_override(monkeypatch):
    for name in ("BRIDGE_PROVIDERS", "BRIDGE_DEPLOYMENT", "BRIDGE_CONFIG"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("request_", "names", "cpu_allowed"),
    [
        ("cpu", ["cpu"], True),
        ("cuda,cpu", ["cuda", "cpu"], True),
        ("cuda", ["cuda", "cpu"], False),
        ("cuda-or-fail", ["cuda", "cpu"], False),
        ("CUDAExecutionProvider,CPUExecutionProvider", ["cuda", "cpu"], True),
        ("trt, cuda ,cpu", ["tensorrt", "cuda", "cpu"], True),
        (["openvino", ("cpu", {})], ["openvino", "cpu"], True),
        (["directml"], ["dml", "cpu"], False),
    ],
)
def test_requests_are_understood(request_, names, cpu_allowed):
    contract = resolve(request_)
    assert [p.label for p in contract.providers] == names
    assert contract.cpu_allowed == cpu_allowed


def test_options_devices_and_shares_are_understood():
    contract = resolve("cuda:1(use_tf32=0, arena_extend_strategy=kSameAsRequested)>=0.9,cpu")
    cuda = contract.providers[0]
    assert cuda.options == {
        "device_id": "1", "use_tf32": "0", "arena_extend_strategy": "kSameAsRequested",
    }  # fmt: skip
    assert cuda.share == 0.9
    assert str(resolve(str(contract))) == str(contract)
    assert resolve("openvino:GPU").providers[0].options == {"device_type": "GPU"}
    merged = resolve("cuda(use_tf32=0)", {"cuda": {"use_tf32": True, "gpu_mem_limit": 5}})
    assert merged.providers[0].options == {"use_tf32": "0", "gpu_mem_limit": "5"}


@pytest.mark.parametrize(
    ("request_", "told"),
    [
        ("cdua", 'did you mean "cuda"?'),
        ("cuda(device_id)", "has no value"),
        ("cuda(", "is no provider"),
        ("cuda>=2", "is no share"),
        ("cuda>=0.9.5", "is no share"),
        ("", "no provider was asked for"),
    ],
)
def test_requests_that_make_no_sense_are_refused(request_, told):
    with pytest.raises(bridge.ProviderError) as caught:
        resolve(request_)
    assert told in str(caught.value)


def test_the_environment_overrides_requests_but_not_contracts(monkeypatch):
    monkeypatch.setenv("BRIDGE_PROVIDERS", "cuda,cpu")
    assert [p.label for p in resolve("cpu").providers] == ["cuda", "cpu"]
    fixed = Contract((Provider(CPU),), cpu_allowed=True)
    assert resolve(fixed) is fixed


@pytest.mark.skipif(HAS_CUDA, reason="for machines without CUDA")
@pytest.mark.parametrize("request_", ["cuda", "cuda,cpu", "tensorrt,cuda,cpu", "cuda-or-fail"])
def test_an_absent_provider_is_an_error_that_mends(request_):
    with pytest.raises(bridge.ProviderError) as caught:
        bridge.load(graph_bytes(SCALE), providers=request_)
    assert "is a build without" in str(caught.value)
    assert "pip install --force-reinstall onnxruntime-gpu" in caught.value.hint


def test_a_provider_that_did_not_start_is_an_error(monkeypatch):
    """ONNX Runtime itself goes on with what is left."""
    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["XnnpackExecutionProvider", CPU]
    )
    with pytest.raises((bridge.ProviderError, bridge.RunError)):
        bridge.load(graph_bytes(SCALE), providers="xnnpack,cpu")
    contract = resolve("xnnpack,cpu")
    with pytest.raises(bridge.ProviderError, match="'xnnpack' did not start"):
        contract.require_active([CPU])


def placed(monkeypatch, nodes, shape_nodes, request_):
    """A session of the CPU that claims to be placed otherwise."""
    session = bridge.load(graph_bytes("g(float[N] x) => (float[N] y) {a = Neg(x)\n y = Relu(a)}"))
    found = Placement(nodes, shape_nodes, [], [], {})
    monkeypatch.setattr(contracts, "assigned_nodes", lambda _: nodes)
    monkeypatch.setattr(contracts, "placement", lambda *_: found)
    session.settings = type(session.settings)(resolve(request_))
    contracts.require_nodes(session)


def test_taking_fewer_nodes_than_promised_is_an_error(monkeypatch):
    nodes = {"cuda": ["a", "b", "c"], "cpu": ["d", "shape"]}
    placed(monkeypatch, nodes, ["shape"], "cuda,cpu")
    placed(monkeypatch, nodes, ["shape"], "cuda>=0.7,cpu")
    placed(monkeypatch, nodes, ["shape", "d"], "cuda")
    with pytest.raises(bridge.ProviderError, match=r"cuda has 75\.0% of the nodes, 90\.0% were"):
        placed(monkeypatch, nodes, ["shape"], "cuda>=0.9,cpu")
    with pytest.raises(bridge.ProviderError, match="1 nodes would run on the CPU"):
        placed(monkeypatch, nodes, ["shape"], "cuda")
    with pytest.raises(bridge.ProviderError, match="cuda took none of the 1 nodes"):
        placed(monkeypatch, {"cpu": ["d"]}, [], "cuda,cpu")
    placed(monkeypatch, {"cpu": ["shape"]}, ["shape"], "cuda,cpu")


def test_the_fastest_provider_is_measured():
    session = bridge.load(graph_bytes(SCALE), providers="fastest")
    assert session.measured["cpu"] > 0
    with pytest.raises(bridge.ProviderError, match=r"only bridge\.load"):
        bridge.Session(graph_bytes(SCALE), providers="fastest")


def test_plugins_are_asked_for_by_their_devices(monkeypatch):
    """ONNX Runtime knows a plugin's name only by its devices; here the CPU's plays the plugin."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", list)
    assert is_plugin(CPU)
    session = bridge.load(graph_bytes(SCALE), providers="cpu")
    assert session.providers == [CPU]
    session.require_placement(cpu=1.0)
    y = session.run({"x": np.ones((2, 4), np.float32), "w": np.ones(4, np.float32)})["y"]
    assert (y == 1).all()


# Deployments

CONFIG = """
[deployments.edge]
providers = "cpu"
threads = 1
optimization = "basic"
require = { cpu = 1.0 }

[deployments.gpu]
providers = "cuda,cpu"
options.cuda = { use_tf32 = false }

[deployments.typo]
provider = "cpu"

[deployments.strict]
providers = "cpu"
require = { cuda = 0.5 }
"""


@pytest.fixture
def config(tmp_path, monkeypatch):
    (tmp_path / "bridge.toml").write_text(CONFIG)
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    monkeypatch.chdir(inner)
    return tmp_path


def test_deployments_are_found_from_below_and_used(config, monkeypatch):
    assert find_config() == config / "bridge.toml"
    session = bridge.load(graph_bytes(SCALE), deployment="edge")
    assert session.settings.threads == 1
    assert session.settings.optimization == "basic"
    assert bridge.load(graph_bytes(SCALE)).settings.threads is None
    monkeypatch.setenv("BRIDGE_DEPLOYMENT", "edge")
    assert bridge.load(graph_bytes(SCALE)).settings.threads == 1
    assert bridge.load(graph_bytes(SCALE), providers="cpu").settings.threads is None
    assert bridge.load(graph_bytes(SCALE), threads=2).settings.threads == 2
    assert deployment("gpu").options == {"cuda": {"use_tf32": False}}


@pytest.mark.parametrize(
    ("name", "told"),
    [("nothing", "has no deployment 'nothing'; it has edge"), ("typo", "did you mean 'providers'?"),
     ("strict", "50.0% were promised")],
)  # fmt: skip
def test_deployments_that_cannot_be_had_are_refused(config, name, told):
    with pytest.raises(bridge.ProviderError) as caught:
        bridge.load(graph_bytes(SCALE), deployment=name)
    assert told in str(caught.value)


def test_a_broken_or_absent_config_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(bridge.ProviderError, match=r"there is no bridge\.toml"):
        deployment("edge")
    (tmp_path / "broken.toml").write_text("[deployments")
    monkeypatch.setenv("BRIDGE_CONFIG", str(tmp_path / "broken.toml"))
    with pytest.raises(bridge.ProviderError, match=r"cannot read .*broken\.toml"):
        deployment("edge")


# Doctor


class Machine(doctor.Environment):
    """A machine on which some things are otherwise."""

    def __init__(
        self,
        versions,
        *,
        providers=(CPU,),
        errors=(),
        start=None,
        imports=(),
        driver=False,
        cuda="12.8",
    ):
        self.versions = {"numpy": "2", "onnx": "1", "onnx-ir": "1", "onnxscript": "1", "rich": "15",
                         **versions}  # fmt: skip
        self._providers = providers
        self._errors = dict(errors)
        self._imports = dict(imports)
        self._start = start
        self._driver = driver
        self._cuda = cuda

    def version(self, distribution):
        return self.versions.get(distribution)

    def location(self, distribution):
        return self.versions.get(f"{distribution} in", "site-packages")

    def rank(self, distribution):
        return ["target", "site-packages"].index(self.location(distribution))

    def import_error(self, module):
        return self._imports.get(module)

    def providers(self):
        return list(self._providers)

    def provider_error(self, provider):
        return self._errors.get(provider)

    def start_error(self, provider, options):
        return self._start

    def cuda_of_runtime(self):
        return self._cuda

    def cuda_of_torch(self):
        return None

    def has_nvidia_driver(self):
        return self._driver


CUDA = "CUDAExecutionProvider"
CUDNN = "OSError: libcudnn.so.9: cannot open shared object file: No such file or directory"


@pytest.mark.parametrize(
    ("machine", "level", "told", "remedy"),
    [
        (Machine({"torch": "2"}), "problem", "onnxruntime: is not installed", "pip install onnxruntime"),
        (Machine({"onnxruntime": "1.30"}), "note", "torch: is not installed", "pip install torch"),
        (
            Machine({"onnxruntime": "1.30", "onnxruntime-gpu": "1.29", "torch": "2"}),
            "problem",
            "2 builds are installed, whose files lie over each other",
            "pip uninstall -y onnxruntime onnxruntime-gpu && "
            "pip install --force-reinstall onnxruntime-gpu",
        ),
        (
            Machine(
                {"onnxruntime-gpu": "1.30", "torch": "2"},
                providers=[CUDA, CPU], errors={CUDA: CUDNN}, driver=True,
            ),
            "problem",
            "provider cuda: OSError: libcudnn.so.9",
            "pip install nvidia-cudnn-cu12",
        ),
        (
            Machine(
                {"onnxruntime-gpu": "1.31", "torch": "2"}, providers=[CUDA, CPU], driver=True,
                errors={CUDA: CUDNN.replace("cudnn.so.9", "cublasLt.so.13")}, cuda="13.0",
            ),
            "problem",
            "provider cuda: OSError: libcublasLt.so.13",
            "pip install nvidia-cublas",
        ),
        (
            Machine({"onnxruntime-gpu": "1.30", "torch": "2"}, providers=[CUDA, CPU]),
            "note",
            "there is no NVIDIA driver",
            "install NVIDIA's driver",
        ),
        (
            Machine({"onnxruntime": "1.30", "torch": "2"}, imports={"onnxruntime": "ImportError: GLIBC"}),
            "problem",
            "cannot be imported: ImportError: GLIBC",
            "pip install --force-reinstall onnxruntime",
        ),
    ],
)  # fmt: skip
def test_doctor_says_what_is_missing_and_what_mends_it(machine, level, told, remedy):
    diagnosis = doctor.diagnose(machine)
    text = str(diagnosis)
    assert told in text
    assert remedy in text
    assert diagnosis.healthy == (level != "problem")
    assert any(
        f.level == level and (f.remedy or "").startswith(remedy[:20]) for f in diagnosis.findings
    )


def test_builds_in_folders_of_their_own_hide_each_other():
    machine = Machine({
        "onnxruntime": "1.30", "onnxruntime-gpu": "1.31", "onnxruntime-gpu in": "target",
        "torch": "2",
    })  # fmt: skip
    diagnosis = doctor.diagnose(machine)
    assert diagnosis.healthy
    assert "onnxruntime-gpu hides onnxruntime 1.30, installed elsewhere" in str(diagnosis)
    assert "onnxruntime-gpu 1.31 (CUDA and TensorRT)" in str(diagnosis)


def test_reasons_for_a_provider_that_did_not_start():
    gone = Machine(
        {"onnxruntime-gpu": "1"}, errors={CUDA: "OSError: libcuda.so.1: cannot open shared"}
    )
    assert "NVIDIA's driver" in doctor.why_inactive(CUDA, gone)[1]
    device = Machine({"onnxruntime-openvino": "1"}, start="Device GPU is not available")
    assert (
        doctor.why_inactive("OpenVINOExecutionProvider", device)[0]
        == "Device GPU is not available"
    )
    assert "Windows only" in doctor.why_absent("DmlExecutionProvider", Machine({}))[0]


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("blocked", "told"),
    [
        ("onnxruntime,onnxruntime_gpu", "onnxruntime"),
        ("torch", "torch"),
        ("onnxruntime,torch,onnx_ir,onnx", "onnx"),
    ],
)
def test_doctor_runs_where_packages_are_missing(blocked, told):
    """In a process in which the packages cannot be found."""
    code = f"""
import importlib.metadata, sys
blocked = {blocked.split(",")!r}
for name in blocked: sys.modules[name] = None
version = importlib.metadata.version
def missing(name):
    if name.replace("-", "_") in blocked: raise importlib.metadata.PackageNotFoundError(name)
    return version(name)
importlib.metadata.version = missing
from bridge.doctor import diagnose
print(diagnose())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    line = next(x for x in done.stdout.splitlines() if f"{told}: is not installed" in x)
    assert line.startswith(("PROBLEM", "note"))


def test_this_machine_is_healthy():
    diagnosis = doctor.diagnose()
    assert diagnosis.healthy, str(diagnosis)
    assert diagnosis.to_dict()["healthy"]
    np.testing.assert_equal({f.level for f in diagnosis.findings} <= {"ok", "note"}, True)
