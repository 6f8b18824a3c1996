"""Which kernels each ONNX Runtime has: a table, and the script that asks a runtime for its own.

``python -m bridge.kernels`` adds the installed version to ``kernels.json``; with the path of a file
that :func:`installed_kernels` was written to elsewhere (on a machine with another provider), it
adds that. The table is made by running it once for each version that is deployed.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from bridge.errors import RunError

__all__ = ["Kernel", "KernelTable", "installed_kernels", "kernel_table"]

_TABLE = Path(__file__).with_name("kernels.json")
_NO_END = 2**31 - 1  # ONNX Runtime's "still valid"
_SUFFIX = "ExecutionProvider"

Version = tuple[int, int]


@dataclasses.dataclass(frozen=True, slots=True)
class Kernel:
    """One kernel of an operator.

    Attributes:
        first: The operator's version that it is for.
        last: The last version that it is for too; None if later ones will need one of their own.
        types: Element types by type parameter: ``{"T": {"float", "float16"}}``.
    """

    first: int
    last: int | None
    types: dict[str, frozenset[str]]

    def is_for(self, since: int) -> bool:
        """Whether ONNX Runtime takes it for an operator that came out with opset ``since``."""
        return self.first == since or (self.last is not None and self.first <= since <= self.last)


@dataclasses.dataclass(frozen=True, slots=True)
class KernelTable:
    """What one version of ONNX Runtime has.

    Attributes:
        version: The version.
        opset: The newest opset of the standard domain that it knows.
        ir_version: The newest IR version that it reads.
        kernels: By provider, and by ``domain:operator``.
    """

    version: Version
    opset: int
    ir_version: int
    kernels: dict[str, dict[str, list[Kernel]]]


def installed_kernels() -> dict[str, Any]:
    """The kernels of the installed runtime, as plain data; asked for in a process of its own.

    Raises:
        RunError: It cannot tell: builds with TensorRT end the process where its library is missing.

    Returns:
        ``version``, ``opset``, ``ir_version``, and ``kernels``: by provider and ``domain:operator``
        rows of first version, last version (0 for none) and the types of each type parameter.
    """
    command = [sys.executable, "-m", "bridge.kernels", "--list"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip() or f"exit code {done.returncode}").split("\n")[-1]
        raise RunError(f"the installed ONNX Runtime cannot tell which kernels it has: {last}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _own_kernels() -> dict[str, Any]:
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    found: dict[str, dict[str, list[Any]]] = {}
    for kernel in state.get_all_opkernel_def():
        provider = kernel.provider.removesuffix(_SUFFIX).lower()
        first, last = kernel.version_range
        types = {
            name: sorted(_short(t) for t in allowed)
            for name, allowed in sorted(kernel.type_constraints.items())
        }
        row = [first, 0 if last == _NO_END else last, types]
        rows = found.setdefault(provider, {}).setdefault(f"{kernel.domain}:{kernel.op_name}", [])
        if row not in rows:
            rows.append(row)
    return {
        "version": ".".join(onnxruntime.__version__.split(".")[:2]),
        "opset": max(n for n in range(15, 40) if _loads(opset=n, ir_version=8)),
        "ir_version": max(n for n in range(8, 30) if _loads(opset=15, ir_version=n)),
        "kernels": found,
    }


def _short(type_name: str) -> str:
    return type_name.removeprefix("tensor(").removesuffix(")")


def _loads(*, opset: int, ir_version: int) -> bool:
    """Whether the installed runtime reads a model of these versions without reservations."""
    import onnx.parser
    import onnxruntime

    model = onnx.parser.parse_model(
        f'<ir_version: {ir_version}, opset_import: ["": {opset}]>'
        "g (float[1] x) => (float[1] y) { y = Identity(x) }"
    )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception:  # that is the answer
        return False
    return True


@functools.cache
def _data() -> dict[str, Any]:
    data: dict[str, Any] = json.loads(_TABLE.read_text())
    return data


def known_versions() -> list[Version]:
    """The versions in the table, oldest first."""
    return sorted(_version(text) for text in _data()["runtimes"])


def _version(text: str) -> Version:
    major, minor = text.split(".")[:2]
    return int(major), int(minor)


@functools.cache
def kernel_table(version: Version | None = None) -> KernelTable:
    """What a version has: the nearest that is known and not newer, or the oldest known.

    Args:
        version: The version; the installed one unless given.
    """
    if version is None:
        import onnxruntime

        version = _version(onnxruntime.__version__)
    known = known_versions()
    chosen = max((v for v in known if v <= version), default=known[0])
    data = _data()
    text = ".".join(map(str, chosen))
    place = data["order"].index(text)
    kernels: dict[str, dict[str, list[Kernel]]] = {}
    for provider, operators in data["kernels"].items():
        for name, rows in operators.items():
            for first, last, types, since, until in rows:
                if since <= place <= until:
                    allowed = {k: frozenset(data["types"][i]) for k, i in types.items()}
                    kernel = Kernel(first, last or None, allowed)
                    kernels.setdefault(provider, {}).setdefault(name, []).append(kernel)
    runtime = data["runtimes"][text]
    return KernelTable(chosen, runtime["opset"], runtime["ir_version"], kernels)


# Making the table


def _merged(known: list[dict[str, Any]]) -> dict[str, Any]:
    """One table of what several runtimes have; rows say from which version to which."""
    by_version: dict[str, dict[str, Any]] = {}
    for each in known:
        by_version.setdefault(each["version"], {**each, "kernels": {}})["kernels"].update(
            each["kernels"]
        )
    order = sorted(by_version, key=_version)
    types: list[list[str]] = []
    kernels: dict[str, dict[str, list[Any]]] = {}
    for place, text in enumerate(order):
        for provider, operators in by_version[text]["kernels"].items():
            for name, rows in operators.items():
                merged = kernels.setdefault(provider, {}).setdefault(name, [])
                for first, last, given in rows:
                    _add_row(merged, [first, last, _indexed(given, types)], place)
    return {
        "order": order,
        "runtimes": {
            t: {"opset": by_version[t]["opset"], "ir_version": by_version[t]["ir_version"]}
            for t in order
        },
        "types": types,
        "kernels": {p: dict(sorted(k.items())) for p, k in sorted(kernels.items())},
    }


def _indexed(given: dict[str, list[str]], types: list[list[str]]) -> dict[str, int]:
    found = {}
    for name, allowed in given.items():
        if allowed not in types:
            types.append(allowed)
        found[name] = types.index(allowed)
    return found


def _add_row(rows: list[Any], row: list[Any], place: int) -> None:
    for known in rows:
        if known[:3] == row and known[4] >= place - 1:
            known[4] = max(known[4], place)
            return
    rows.append([*row, place, place])


def _unmerged(data: dict[str, Any]) -> list[dict[str, Any]]:
    """What each runtime in a table has, as :func:`installed_kernels` tells it."""
    found = []
    for place, text in enumerate(data["order"]):
        kernels: dict[str, dict[str, list[Any]]] = {}
        for provider, operators in data["kernels"].items():
            for name, rows in operators.items():
                held = [
                    [first, last, {k: data["types"][i] for k, i in types.items()}]
                    for first, last, types, since, until in rows
                    if since <= place <= until
                ]
                if held:
                    kernels.setdefault(provider, {})[name] = held
        found.append({"version": text, **data["runtimes"][text], "kernels": kernels})
    return found


def _text(data: dict[str, Any]) -> str:
    """JSON with a line for each operator, so that changes can be read."""
    head = json.dumps({k: v for k, v in data.items() if k != "kernels"})[:-1]
    providers = []
    for provider, operators in data["kernels"].items():
        lines = ",\n".join(f" {json.dumps(k)}: {json.dumps(v)}" for k, v in operators.items())
        providers.append(f"{json.dumps(provider)}: {{\n{lines}\n}}")
    body = ",\n".join(providers)
    return f'{head}, "kernels": {{\n{body}\n}}}}\n'


def main(arguments: list[str]) -> None:
    """Add what a file tells, or what the installed runtime has, to the table; or only list it."""
    if arguments == ["--list"]:
        print(json.dumps(_own_kernels()))
        return
    added = [json.loads(Path(a).read_text()) for a in arguments] or [installed_kernels()]
    known = _unmerged(json.loads(_TABLE.read_text())) if _TABLE.exists() else []
    _TABLE.write_text(_text(_merged([*known, *added])))


if __name__ == "__main__":
    main(sys.argv[1:])
