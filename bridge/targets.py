"""What a model is optimised for: a runtime's version and its provider.

``"cpu"`` and ``"cuda"`` mean the installed ONNX Runtime; ``"onnxruntime==1.24,cuda"`` means one
that is deployed elsewhere; ``"portable"`` means anything that reads ONNX.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from typing import TYPE_CHECKING

from bridge.errors import BridgeError
from bridge.providers import CPU, Contract, Provider, available

if TYPE_CHECKING:
    import onnx_ir as ir

    from optim_passes.pipeline import Repeat

__all__ = ["Target", "TargetError", "parse_target"]

_PROVIDERS = {"cpu": CPU, "cuda": "CUDAExecutionProvider", "portable": None}
_RUNTIME = re.compile(
    r"^(?:onnxruntime|ort)(?:-gpu)?(?:(?:==|~=|>=|@)?\s*(?P<version>\d+\.\d+[\w.]*))?$"
)


class TargetError(BridgeError, ValueError):
    """There is no such target, or it cannot run the model."""


@dataclasses.dataclass(frozen=True, slots=True)
class Target:
    """Where a model is to run.

    Attributes:
        kind: ``"cpu"``, ``"cuda"`` or ``"portable"``.
        version: ONNX Runtime's version there; None for the installed one.
    """

    kind: str
    version: tuple[int, int] | None = None

    def __str__(self) -> str:
        if self.version is None:
            return self.kind
        return f"onnxruntime=={'.'.join(map(str, self.version))},{self.kind}"

    def passes(self) -> list[ir.passes.PassBase | Repeat]:
        """The passes for it, in order."""
        from bridge import passes

        return list(getattr(passes, self.kind))

    def is_here(self) -> bool:
        """Whether this machine has the provider."""
        name = _PROVIDERS[self.kind]
        return name is None or name in available()

    def contract(self) -> Contract:
        """The providers to compare results on: the target's where it is installed, or the CPU."""
        name = _PROVIDERS[self.kind]
        providers = [Provider(CPU)]
        if name is not None and name != CPU and name in available():
            providers.insert(0, Provider(name))
        return Contract(tuple(providers), cpu_allowed=True, enforced=False)

    def require_runs(self, model: ir.Model) -> None:
        """See that there is a kernel for every node.

        Raises:
            TargetError: There is none for some; the message names them.
        """

    def failure(self, model: ir.Model) -> str | None:
        """Why the target could not run a model; None if it can."""
        return None


def parse_target(text: str | Target) -> Target:
    """The target that a string names.

    Raises:
        TargetError: It names none.
    """
    if isinstance(text, Target):
        return text
    kind, version = None, None
    for part in (p.strip().lower() for p in text.split(",")):
        matched = _RUNTIME.match(part)
        if matched is not None:
            if matched["version"]:
                major, minor = matched["version"].split(".")[:2]
                version = int(major), int(re.match(r"\d+", minor)[0])  # type: ignore[index]
        elif part in _PROVIDERS and kind is None:
            kind = part
        else:
            near = difflib.get_close_matches(part, _PROVIDERS, 1)
            raise TargetError(
                f"{text!r} is no target: {part!r} is none of {', '.join(_PROVIDERS)}",
                hint=f'did you mean "{near[0]}"?'
                if near
                else 'write "cpu", "cuda", "portable" or "onnxruntime==1.24,cuda"',
            )
    return Target(kind or "cpu", version)
