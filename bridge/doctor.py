"""What is installed here, what is missing, and the command that mends it.

Imports nothing but Python's own library, so that it can say what else is missing.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Diagnosis", "Environment", "Finding", "diagnose", "why_absent", "why_inactive"]

Level = Literal["ok", "note", "problem"]

# Builds of ONNX Runtime; each installs the same package, so that two of them overwrite each other.
_BUILDS = {
    "onnxruntime": "CPU",
    "onnxruntime-gpu": "CUDA and TensorRT",
    "onnxruntime-openvino": "OpenVINO",
    "onnxruntime-directml": "DirectML",
    "onnxruntime-qnn": "QNN",
    "onnxruntime-migraphx": "MIGraphX",
    "onnxruntime-training": "training",
}
_PACKAGE_OF = {
    "CUDA": "onnxruntime-gpu",
    "Tensorrt": "onnxruntime-gpu",
    "OpenVINO": "onnxruntime-openvino",
    "Dml": "onnxruntime-directml",
    "QNN": "onnxruntime-qnn",
    "MIGraphX": "onnxruntime-migraphx",
}
_SYSTEM_OF = {"CoreML": "Darwin", "Dml": "Windows"}
# y = Relu(x), as a model file: what is needed to try a provider with.
_SMALL_MODEL = (
    "08083a350a0e0a0178120179220452656c753a001201675a0f0a0178120a0a08080112040a020801620f"
    "0a0179120a0a08080112040a02080142040a00100d"
)
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
# What pip calls the libraries that the CUDA provider is linked to, without the CUDA version.
_NVIDIA_PACKAGES = {
    "libcudnn": "nvidia-cudnn",
    "libcublas": "nvidia-cublas",
    "libcudart": "nvidia-cuda-runtime",
    "libcufft": "nvidia-cufft",
    "libcurand": "nvidia-curand",
    "libnvrtc": "nvidia-cuda-nvrtc",
    "libnvinfer": "tensorrt",
}
_MISSING_LIBRARY = re.compile(
    r"(lib[\w.+-]+\.so[\w.]*|[\w-]+\.dll)\b[^\n]*(?:cannot open|not found|could not)", re.I
)


@dataclasses.dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        level: Whether it is as it should be.
        about: What was looked at.
        told: What was found.
        remedy: The command that mends it, None where nothing needs mending.
    """

    level: Level
    about: str
    told: str
    remedy: str | None = None

    def __str__(self) -> str:
        mark = {"ok": "ok", "note": "note", "problem": "PROBLEM"}[self.level]
        text = f"{mark:8}{self.about}: {self.told}"
        return text if self.remedy is None else f"{text}\n        mend it: {self.remedy}"


@dataclasses.dataclass(frozen=True, slots=True)
class Diagnosis:
    """Everything that was looked at.

    Attributes:
        findings: In the order in which things depend on each other.
    """

    findings: list[Finding]

    @property
    def healthy(self) -> bool:
        """Whether nothing needs mending."""
        return all(f.level != "problem" for f in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """The diagnosis as plain data."""
        return {
            "healthy": self.healthy,
            "findings": [dataclasses.asdict(f) for f in self.findings],
        }

    def to_junit(self) -> str:
        """The diagnosis as JUnit's XML, one test case for each finding."""
        from bridge.parity.report import junit

        cases = [(f.about, str(f) if f.level == "problem" else None) for f in self.findings]
        return junit("bridge doctor", cases)

    def __str__(self) -> str:
        return "\n".join(map(str, self.findings))


class Environment:
    """What can be asked of this machine."""

    def version(self, distribution: str) -> str | None:
        """The installed version of a distribution, None if it is not installed."""
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            return None

    def location(self, distribution: str) -> str:
        """The folder that a distribution is installed in."""
        return str(importlib.metadata.distribution(distribution).locate_file(""))

    def rank(self, distribution: str) -> int:
        """At which place of the module path a distribution is."""
        folder = Path(self.location(distribution)).resolve()
        places = [Path(p).resolve() for p in sys.path]
        return places.index(folder) if folder in places else len(places)

    def import_error(self, module: str) -> str | None:
        """Why a module cannot be imported, None if it can; in a process of its own."""
        done = self.run(f"import {module}")
        return None if done.returncode == 0 else done.stderr.strip().split("\n")[-1]

    def run(self, code: str) -> subprocess.CompletedProcess[str]:
        """Run Python code in a process of its own: what crashes there does not crash here."""
        return subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120
        )

    def providers(self) -> list[str]:
        """The providers that the installed ONNX Runtime was built with."""
        done = self.run("import onnxruntime as o; print(*o.get_available_providers())")
        return done.stdout.split() if done.returncode == 0 else []

    def cuda_of_runtime(self) -> str | None:
        """The CUDA version that ONNX Runtime was built for."""
        done = self.run("import onnxruntime as o; print(getattr(o, 'cuda_version', '') or '')")
        return done.stdout.strip() or None if done.returncode == 0 else None

    def cuda_of_torch(self) -> str | None:
        """The CUDA version that torch was built for."""
        done = self.run("import torch; print(torch.version.cuda or '')")
        return done.stdout.strip() or None if done.returncode == 0 else None

    def provider_error(self, provider: str) -> str | None:
        """Why a provider's library cannot be loaded, None if it can or has none of its own."""
        found = importlib.util.find_spec("onnxruntime")
        if found is None or found.origin is None:
            return None
        label = provider.removesuffix("ExecutionProvider").lower()
        folder = Path(found.origin).parent / "capi"
        libraries = [*folder.glob(f"*onnxruntime_providers_{label}.*")]
        if not libraries:
            return None
        shared = next(iter(folder.glob("*onnxruntime_providers_shared.*")), None)
        code = "import ctypes, onnxruntime as o\n"
        code += "getattr(o, 'preload_dlls', lambda: None)()\n"
        if shared is not None:
            code += f"ctypes.CDLL({str(shared)!r}, mode=ctypes.RTLD_GLOBAL)\n"
        code += f"ctypes.CDLL({str(libraries[0])!r})"
        done = self.run(code)
        if done.returncode and self.version("torch"):  # which brings CUDA's libraries along
            done = self.run(f"import torch\n{code}")
        return None if done.returncode == 0 else done.stderr.strip().split("\n")[-1]

    def start_error(self, provider: str, options: Mapping[str, str]) -> str | None:
        """What ONNX Runtime logs when it fails to start a provider."""
        done = self.run(
            "import onnxruntime as o\n"
            f"o.InferenceSession(bytes.fromhex({_SMALL_MODEL!r}), "
            f"providers=[({provider!r}, {dict(options)!r})], enable_fallback=0)"
        )
        lines = [_COLOURS.sub("", line) for line in done.stderr.splitlines()]
        errors = [line for line in lines if "[E:" in line] or [x for x in lines if "Error" in x]
        if not errors:
            return None
        return errors[-1].rpartition("[ERROR]")[2].rpartition("] ")[2].strip() or errors[-1]

    def system(self) -> str:
        """``Linux``, ``Darwin`` or ``Windows``."""
        return platform.system()

    def has_nvidia_driver(self) -> bool:
        """Whether NVIDIA's driver is there."""
        if shutil.which("nvidia-smi") is not None or Path("/proc/driver/nvidia").exists():
            return True
        return self.run("import ctypes; ctypes.CDLL('libcuda.so.1')").returncode == 0


def why_absent(provider: str, environment: Environment | None = None) -> tuple[str, str]:
    """Why the installed runtime lacks a provider, and what mends it."""
    environment = environment or Environment()
    kind = provider.removesuffix("ExecutionProvider")
    installed = [d for d in _BUILDS if environment.version(d) is not None]
    told = ", ".join(f"{d} {environment.version(d)}" for d in installed) or "no ONNX Runtime"
    wanted = _SYSTEM_OF.get(kind)
    if wanted is not None and environment.system() != wanted:
        return (
            f"{kind} exists on {wanted} only, this is {environment.system()}",
            'ask for another provider, for instance providers="cpu"',
        )
    package = _PACKAGE_OF.get(kind)
    if package is None:
        return (
            f"{told} is a build without {kind}",
            f"build ONNX Runtime with {kind}, or register the provider's plugin library",
        )
    if package in installed:
        others = [d for d in installed if d != package]
        return (
            f"{package} is installed, and so is {' and '.join(others)}, whose files lie over it"
            if others
            else f"{package} is installed, but lacks {kind}",
            _reinstall(package, installed),
        )
    return f"{told} is a build without {kind}", _reinstall(package, installed)


def _reinstall(package: str, installed: list[str]) -> str:
    install = f"pip install --force-reinstall {package}"
    return f"pip uninstall -y {' '.join(installed)} && {install}" if installed else install


def why_inactive(
    provider: str,
    environment: Environment | None = None,
    options: Mapping[str, str] | None = None,
) -> tuple[str, str]:
    """Why a provider that the runtime has did not start, and what mends it."""
    environment = environment or Environment()
    kind = provider.removesuffix("ExecutionProvider")
    error = environment.provider_error(provider)
    if error is not None:
        found = _MISSING_LIBRARY.search(error)
        return error, _library_remedy(found[1] if found else "", environment)
    if kind in ("CUDA", "Tensorrt") and not environment.has_nvidia_driver():
        return "there is no NVIDIA driver here", "install NVIDIA's driver, and check `nvidia-smi`"
    logged = environment.start_error(provider, options or {})
    if logged is not None:
        return logged, "ask for a device that is there, or for another provider"
    return (
        "its library loads, but ONNX Runtime went on without it",
        "set ONNX Runtime's log level to 1: Settings(log_level=1)",
    )


def _library_remedy(library: str, environment: Environment) -> str:
    if library.startswith("libcuda.so"):
        return "install NVIDIA's driver, and check `nvidia-smi`"
    for start, package in _NVIDIA_PACKAGES.items():
        if library.startswith(start):
            if package == "tensorrt":
                return "pip install tensorrt"
            major = int((environment.cuda_of_runtime() or "12").split(".")[0])
            # from CUDA 13 on only what is not part of CUDA itself has it in its name
            suffix = f"-cu{major}" if major < 13 or package == "nvidia-cudnn" else ""
            return f"pip install {package}{suffix}"
    return "pip install 'onnxruntime-gpu[cuda,cudnn]'"


def diagnose(environment: Environment | None = None) -> Diagnosis:
    """Look at everything that exporting, running and checking models needs."""
    environment = environment or Environment()
    findings = [
        Finding("ok", "python", f"{platform.python_version()} on {platform.platform()}"),
        *_packages(environment),
        *_runtime(environment),
        *_torch(environment),
        *_machine(),
    ]
    return Diagnosis(findings)


def _packages(environment: Environment) -> list[Finding]:
    found = []
    for name in ("numpy", "onnx", "onnx-ir", "onnxscript", "rich"):
        version = environment.version(name)
        if version is None:
            found.append(Finding("problem", name, "is not installed", f"pip install {name}"))
        else:
            found.append(Finding("ok", name, version))
    return found


def _runtime(environment: Environment) -> list[Finding]:
    installed = {d: v for d in _BUILDS if (v := environment.version(d)) is not None}
    if not installed:
        return [
            Finding(
                "problem", "onnxruntime", "is not installed: models can be exported, but not run",
                "pip install onnxruntime  (onnxruntime-gpu for CUDA)",
            )
        ]  # fmt: skip
    told = ", ".join(f"{d} {v} ({_BUILDS[d]})" for d, v in installed.items())
    hidden: list[Finding] = []
    if len(installed) > 1 and len({environment.location(d) for d in installed}) > 1:
        # in folders of their own; the one whose folder comes first is imported
        first = min(installed, key=lambda d: environment.rank(d))
        others = ", ".join(f"{d} {v}" for d, v in installed.items() if d != first)
        hidden = [Finding("note", "onnxruntime", f"{first} hides {others}, installed elsewhere")]
        installed = {first: installed[first]}
        told = f"{first} {installed[first]} ({_BUILDS[first]})"
    if len(installed) > 1:
        kept = next((d for d in installed if d != "onnxruntime"), "onnxruntime")
        return [
            Finding(
                "problem", "onnxruntime",
                f"{len(installed)} builds are installed, whose files lie over each other: {told}",
                _reinstall(kept, list(installed)),
            )
        ]  # fmt: skip
    error = environment.import_error("onnxruntime")
    if error is not None:
        (name,) = installed
        remedy = f"pip install --force-reinstall {name}"
        return [Finding("problem", "onnxruntime", f"{told} cannot be imported: {error}", remedy)]
    found = [Finding("ok", "onnxruntime", told), *hidden]
    for provider in environment.providers():
        label = provider.removesuffix("ExecutionProvider").lower()
        if label in ("cpu", "azure"):
            found.append(Finding("ok", f"provider {label}", "is there"))
            continue
        if environment.provider_error(provider) is not None:
            reason, remedy = why_inactive(provider, environment)
            found.append(Finding("problem", f"provider {label}", reason, remedy))
        elif label in ("cuda", "tensorrt") and not environment.has_nvidia_driver():
            reason, remedy = why_inactive(provider, environment)
            found.append(Finding("note", f"provider {label}", reason, remedy))
        else:
            found.append(Finding("ok", f"provider {label}", "is there"))
    return found


def _torch(environment: Environment) -> list[Finding]:
    version = environment.version("torch")
    if version is None:
        return [
            Finding(
                "note", "torch", "is not installed: models can be run, not exported from eager",
                "pip install torch",
            )
        ]  # fmt: skip
    error = environment.import_error("torch")
    if error is not None:
        remedy = "pip install --force-reinstall torch"
        return [Finding("problem", "torch", f"{version} cannot be imported: {error}", remedy)]
    ours, theirs = environment.cuda_of_torch(), environment.cuda_of_runtime()
    if ours and theirs and ours.split(".")[0] != theirs.split(".")[0]:
        return [
            Finding(
                "note", "torch",
                f"{version} is built for CUDA {ours}, ONNX Runtime for CUDA {theirs}: each needs "
                "libraries of its own",
                "pip install 'onnxruntime-gpu[cuda,cudnn]'",
            )
        ]  # fmt: skip
    return [Finding("ok", "torch", version + (f", CUDA {ours}" if ours else ""))]


def _machine() -> list[Finding]:
    from bridge.threads import cgroup_cpus, default_threads

    quota = cgroup_cpus()
    told = f"{os.cpu_count()} CPUs" + ("" if quota is None else f", a quota of {quota:g}")
    found = [Finding("ok", "threads", f"{told}: {default_threads()} threads for a session")]
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    level: Level = "ok" if free > 2**30 else "note"
    found.append(Finding(level, "disk", f"{free / 2**30:.1f} GiB free in {folder}"))
    return found
