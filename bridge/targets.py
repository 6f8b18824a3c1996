"""What a model is optimised for: a version of ONNX Runtime and one of its providers.

``"cpu"`` and ``"cuda"`` mean the installed ONNX Runtime; ``"onnxruntime==1.24,cuda"`` means one that
is deployed elsewhere; ``"portable"`` means anything that reads ONNX. What each version has kernels
for is in a table, see :mod:`bridge.kernels`.
"""

from __future__ import annotations

import collections
import dataclasses
import difflib
import re
from typing import TYPE_CHECKING

import onnx

from bridge.errors import TargetError
from bridge.kernel_coverage import NoKernel, has_kernel_in, nodes_without_kernel
from bridge.kernels import KernelTable, kernel_table, known_versions
from bridge.providers import CPU, Contract, Provider, available
from optim_passes.fusion.convolution import ConvActivationPass
from optim_passes.fusion.masks import UnseenRowsPass
from optim_passes.older_opsets import LowerOpsetPass
from optim_passes.opsets import RaiseOpsetPass
from optim_passes.pipeline import Repeat, run

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx_ir as ir

    from bridge.kernels import Kernel

__all__ = ["Target", "fitted", "parse_target"]

_PROVIDERS = {"cpu": CPU, "cuda": "CUDAExecutionProvider", "portable": None}
# Results that are compared are not rounded to 10 bits, and no kernels are timed for a few runs.
_EXACT = {
    "CUDAExecutionProvider": {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"},
}
_RUNTIME = re.compile(
    r"^(?:onnxruntime|ort)(?:-gpu)?(?:\s*(?:==|~=|>=|@|-)?\s*(?P<version>\d+\.\d+[\w.*]*))?$"
)
_PREFERRED = 23  # the first opset with Attention, RMSNormalization and RotaryEmbedding
_OLDEST = 17  # the oldest that is exported
# Since then, attention to nothing is 0, and a FusedConv in the blocked layout adds its residual.
_SOUND = (1, 28)
_WRITTEN = 13  # the opset from which on passes write operators
_SHOWN = 8


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

    @property
    def table(self) -> KernelTable | None:
        """What the runtime has; None for a portable model of no version."""
        if self.kind == "portable" and self.version is None:
            return None
        return kernel_table(self.version)

    @property
    def opset(self) -> int:
        """The opset to export for: the newest that costs no kernels, 23 at most."""
        table = self.table
        if table is None:
            return _PREFERRED
        newest = min(_PREFERRED, table.opset)
        kernels = table.kernels.get(self.kind)
        if kernels is None or self.kind == "cpu":
            return newest
        return min(range(newest, _OLDEST - 1, -1), key=lambda n: _lost(kernels, n))

    def passes(self, model: ir.Model) -> list[ir.passes.PassBase | Repeat]:
        """The passes for it, in order; none goes to an opset that costs the model a kernel."""
        from bridge import passes

        newest = _PREFERRED if self.table is None else min(_PREFERRED, self.table.opset)
        if self.missing(model, opset=newest):
            newest = _WRITTEN
        chosen: Sequence[ir.passes.PassBase | Repeat] = getattr(passes, self.kind)
        made = [
            RaiseOpsetPass(newest) if isinstance(p, RaiseOpsetPass) and p.version > newest else p
            for p in chosen
        ]
        if not self.needs_guards:
            return made
        return [*fitted(made, self.version), UnseenRowsPass()]

    @property
    def needs_guards(self) -> bool:
        """Whether kernels may forget residuals, or not give 0 for a row that sees nothing."""
        if self.version is None and self.kind == "portable":
            return True
        return kernel_table(self.version).version < _SOUND

    def guarded(self, model: ir.Model) -> ir.Model:
        """The model, or a copy that gives 0 for rows of attention that see nothing there."""
        if not self.needs_guards:
            return model
        made, report = run(model.clone(), [UnseenRowsPass()])
        return made if any(s.rewrites for s in report.steps.values()) else model

    def is_here(self) -> bool:
        """Whether this machine has the provider."""
        name = _PROVIDERS[self.kind]
        return name is None or name in available()

    def contract(self) -> Contract:
        """The providers to compare results on: the target's where it is installed, or the CPU."""
        name = _PROVIDERS[self.kind]
        providers = [Provider(CPU)]
        if name is not None and name != CPU and name in available():
            providers.insert(0, Provider(name, _EXACT.get(name, {})))
        return Contract(tuple(providers), cpu_allowed=True, enforced=False)

    def adapted(self, model: ir.Model) -> ir.Model:
        """The model, or a copy of an opset and IR version that the runtime knows.

        Raises:
            TargetError: It uses what that opset lacks, or there is no kernel for some node; the
                message names the operators.
        """
        table = self.table
        if table is None:
            return model
        opset = model.graph.opset_imports.get("", 1)
        adapted = model
        refused: list[str] = []
        if opset > table.opset or model.ir_version > table.ir_version:
            adapted, refused = _lowered(model, table.opset)
            adapted.ir_version = min(model.ir_version, table.ir_version)
        if refused:
            reasons = collections.Counter(refused)
            told = "; ".join(f"{why} ({n} nodes)" for why, n in reasons.most_common(_SHOWN))
            raise TargetError(
                f"the model is of opset {opset}, {self} knows {table.opset}: {told}",
                hint=f"export it with opset={table.opset}",
            )
        missing = self.missing(adapted)
        for older in range(min(opset, table.opset) - 1, _OLDEST - 1, -1) if missing else ():
            other, refused = _lowered(adapted, older)
            if not refused and not self.missing(other):
                return other
        if missing:
            raise TargetError(
                f"{self} has no kernel for {_told(missing)}", hint=_remedy(missing, table)
            )
        return adapted

    def missing(self, model: ir.Model, *, opset: int | None = None) -> list[NoKernel]:
        """The nodes that the runtime has no kernel for, on the CPU either.

        Args:
            model: The model.
            opset: The opset that it would be of; its own unless given.
        """
        table = self.table
        if table is None:
            return []
        kinds = [k for k in ("cpu", self.kind) if k in table.kernels]
        tables = [(k, table.kernels[k]) for k in dict.fromkeys(kinds)]
        return nodes_without_kernel(model, tables, opset=opset)

    def left_to_cpu(self, model: ir.Model) -> list[NoKernel]:
        """The nodes that only the CPU has a kernel for, where the target is another provider."""
        table = self.table
        if table is None or self.kind == "cpu" or self.kind not in table.kernels:
            return []
        return nodes_without_kernel(model, [(self.kind, table.kernels[self.kind])])

    def has_kernel_in(self, node: ir.Node, opset: int, dtype: ir.DataType) -> bool:
        """Whether the provider has a kernel for a node in 16 bits; true where nothing is known."""
        table = self.table
        if table is None or self.kind not in table.kernels:
            return True
        return has_kernel_in(node, opset, dtype, (self.kind, table.kernels[self.kind]))

    def failure(self, model: ir.Model) -> str | None:
        """Why the target could not run a model; None if it can."""
        missing = self.missing(model)
        if missing:
            return f"{self} has no kernel for {_told(missing)}"
        table = self.table
        opset = model.graph.opset_imports.get("", 1)
        if table is not None and opset > table.opset:
            return f"it is of opset {opset}, {self} knows {table.opset}"
        return None

    def stamp(self, model: ir.Model) -> None:
        """Lower the IR version to one that the runtime reads."""
        if self.table is not None:
            model.ir_version = min(model.ir_version, self.table.ir_version)


def _lowered(model: ir.Model, opset: int) -> tuple[ir.Model, list[str]]:
    """A copy of an older opset, and why some nodes cannot go there."""
    copy, report = run(model.clone(), [LowerOpsetPass(opset)])
    return copy, [r.reason for r in report.refusals]


def _lost(kernels: dict[str, list[Kernel]], opset: int) -> int:
    """How many operators that there are kernels for have none at an opset."""
    lost = 0
    for name, rows in kernels.items():
        domain, _, op_type = name.partition(":")
        if domain:
            continue
        try:
            since = onnx.defs.get_schema(op_type, opset, "").since_version
        except onnx.defs.SchemaError:
            continue  # newer than the opset
        lost += not any(k.is_for(since) for k in rows)
    return lost


def _told(missing: Sequence[NoKernel]) -> str:
    """``2 Attention-23 (float64), first at 'encoder/Attention' in encoder``."""
    groups: dict[str, list[NoKernel]] = {}
    for each in missing:
        groups.setdefault(each.operator, []).append(each)
    parts = [
        f"{len(found)} {operator} (first {found[0].place})"
        for operator, found in list(groups.items())[:_SHOWN]
    ]
    more = f", and {len(groups) - _SHOWN} more operators" if len(groups) > _SHOWN else ""
    return ", ".join(parts) + more


def _remedy(missing: Sequence[NoKernel], table: KernelTable) -> str:
    if all(m.has_other_types for m in missing):
        return "there are kernels for other types: convert the model to float32"
    newest = known_versions()[-1]
    if table.version < newest:
        told = ".".join(map(str, newest))
        return f"export it with an older opset, or deploy a newer runtime ({told} is known here)"
    return "export it with an older opset, or replace the operators"


def fitted(
    passes: Sequence[ir.passes.PassBase | Repeat], version: tuple[int, int] | None = None
) -> list[ir.passes.PassBase | Repeat]:
    """Passes without what a version of ONNX Runtime computes wrong.

    Args:
        passes: The passes.
        version: The version; None for the installed one.
    """
    if kernel_table(version).version >= _SOUND:
        return list(passes)
    plain = ConvActivationPass(residual=False)
    return [plain if isinstance(p, ConvActivationPass) else p for p in passes]


def parse_target(text: str | Target) -> Target:
    """The target that a string names: ``"cpu"``, ``"onnxruntime==1.24,cuda"``, ``"portable"``.

    Raises:
        TargetError: It names none.
    """
    if isinstance(text, Target):
        return text
    if not isinstance(text, str):
        raise TargetError(
            f"a {type(text).__name__} is no target",
            hint='write "cpu", "cuda", "portable" or "onnxruntime==1.24,cuda"',
        )
    kind, version = None, None
    for part in (p.strip().lower() for p in text.split(",")):
        matched = _RUNTIME.match(part)
        if matched is not None:
            if matched["version"]:
                major, minor = re.findall(r"\d+", matched["version"])[:2]
                version = int(major), int(minor)
        elif part in _PROVIDERS and kind is None:
            kind = part
        else:
            near = difflib.get_close_matches(part, [*_PROVIDERS, "onnxruntime"], 1)
            raise TargetError(
                f"{text!r} is no target: {part!r} is none of {', '.join(_PROVIDERS)}",
                hint=f'did you mean "{near[0]}"?'
                if near and part != "gpu"
                else 'write "cpu", "cuda", "portable" or "onnxruntime==1.24,cuda"',
            )
    oldest = known_versions()[0]
    if version is not None and version < oldest:
        raise TargetError(
            f"{text!r}: nothing is known of ONNX Runtime before {'.'.join(map(str, oldest))}",
            hint=f'target {".".join(map(str, oldest))} or newer, or "portable"',
        )
    return Target(kind or "cpu", version)
