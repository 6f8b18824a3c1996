"""``bridge.export``: trace, verify on ONNX Runtime, save."""

from __future__ import annotations

import time
import warnings
from typing import TYPE_CHECKING, Any

from bridge.files import require_folder
from bridge.optimizing import optimize as optimized
from bridge.program import ExportReport, Program, count_ops
from bridge.signature import Signature
from bridge.targets import parse_target
from bridge.verification import UnseenInputsError, verify
from exporters.errors import ExportError
from exporters.pytorch import frontend
from exporters.pytorch.eager import EagerRuns
from exporters.pytorch.inputs import modules_of
from exporters.script import Target

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping, Sequence

    from bridge.targets import Target as RuntimeTarget
    from exporters.pytorch.frontend import TracedModel

__all__ = ["FrozenRandomWarning", "TrainModeWarning", "export"]


_MORE_WORLDS = 3  # worlds that verification may add


class TrainModeWarning(UserWarning):
    """The exported model is in train mode."""


class FrozenRandomWarning(UserWarning):
    """The exported model draws random numbers outside of torch, once and for all."""


def export(
    model: Callable[..., Any],
    args: Any = (),
    path: str | os.PathLike[str] | None = None,
    *,
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    examples: Sequence[Any] | None = None,
    opset: int | None = None,
    target: str | RuntimeTarget | None = None,
    optimize: bool | str = False,
    output_names: Sequence[str] | None = None,
    script: str = "auto",
    state: str = "fold",
    unroll_limit: int = 128,
    external_data: bool | None = None,
    verify: bool = True,
    progress: Callable[[str], None] | None = None,
) -> Program:
    """Turn eager code into an ONNX model, check that it computes the same, and save it.

    Args:
        model: ``nn.Module`` or function over tensors. It runs once for each world, unmodified, and
            is left as it was found.
        args: Positional arguments of the example; a lone tensor stands for ``(tensor,)``.
        path: Where to save the model; nowhere unless given.
        kwargs: Keyword arguments of the example.
        dynamic_shapes: Which dims vary, as ``torch.onnx.export`` takes it:
            ``{"x": {0: "batch"}}``.
        examples: Further examples, each a tuple of positional or a dict of keyword arguments. The
            dims in which they differ are dynamic.
        opset: ONNX opset, 17 or later; 23, or what the target runs best, unless given.
        target: Where the model is to run, such as ``"onnxruntime==1.24,cuda"``: chooses the opset
            and the IR version, and makes operators that it lacks an error.
        optimize: Whether to optimise the verified model for the target, as :func:`bridge.optimize`
            does; a string is the target too: ``optimize="cpu"``.
        output_names: Names for the graph outputs, in order.
        script: ``"auto"`` compiles every function in which Python branches on what only run time
            knows; ``"explicit"`` only those marked with ``@bridge.script``.
        state: ``"fold"`` keeps the buffers that forward writes to as they are at the export;
            ``"io"`` makes them extra inputs, and outputs named ``buffer.out``.
        unroll_limit: Loops of more iterations, known when tracing, become ``Loop`` nodes in
            compiled functions.
        external_data: Whether weights go to a file of their own; None does so above 2 GB.
        verify: Whether to run the model on ONNX Runtime, on the example, on other sizes and other
            values, and compare with eager; without it nobody looks for sizes that Python froze
            (``1.0 / n``, ``bytearray(n)``).
        progress: Called with a line of text at the start of each phase.

    Returns:
        The program; call it with the eager arguments, or read its ``report``.

    Raises:
        ExportError: The model cannot become a graph; see :mod:`exporters.errors`.
        ParityError: The graph does not compute what eager computes.
        ModelFileError: ``path`` cannot be written.
        TargetError: There is no such target, or it lacks kernels for operators of the model.

    Example:
        >>> program = export(torch.nn.Linear(4, 2).eval(), torch.ones(3, 4))
        >>> program(torch.ones(3, 4)).shape
        torch.Size([3, 2])
    """
    tell = progress or (lambda _: None)
    if path is not None:
        require_folder(path)
    place = optimize if isinstance(optimize, str) and target is None else target
    runtime = None if place is None and not optimize else parse_target(place or "cpu")
    if runtime is not None and opset is None:
        opset = runtime.opset
    targets: list[Target] = []
    runs = EagerRuns()
    more_sizes: list[dict[str, int]] = []
    while True:
        tell("tracing")
        traced = frontend.trace(
            model,
            args,
            kwargs,
            dynamic_shapes=dynamic_shapes,
            examples=examples,
            opset=opset,
            output_names=output_names,
            script=script,
            state=state,
            unroll_limit=unroll_limit,
            targets=targets,
            more_sizes=more_sizes,
            check=verify,
            runs=runs,
        )
        program = Program(
            traced.model,
            _signature(traced),
            _report(traced),
            state=traced.state,
            probes=_probes(traced),
        )
        if runtime is not None:
            program.model = runtime.adapted(program.model)
        if not optimize:  # else by the passes
            program.model = (runtime or parse_target("cpu")).guarded(program.model)
        if not verify:
            break
        tell("verifying on ONNX Runtime")
        started = time.perf_counter()
        try:
            program.report.verified = verify_traced(traced, program)
        except UnseenInputsError as unseen:
            targets = [*traced.targets, *_mending(unseen, traced, more_sizes, script)]
            if unseen.sizes:
                more_sizes = [*more_sizes, unseen.sizes]
            continue
        program.report.seconds["verify"] = time.perf_counter() - started
        break
    del traced, runs  # and the calls that they remember, before the passes need memory
    if optimize and runtime is not None:
        program = optimized(program, target=runtime, verify=verify, progress=progress)
    if path is not None:
        tell(f"saving {path}")
        started = time.perf_counter()
        program.save(path, external_data=external_data)
        program.report.seconds["save"] = time.perf_counter() - started
    return program


verify_traced = verify


def _mending(
    unseen: UnseenInputsError,
    traced: TracedModel,
    more_sizes: Sequence[Mapping[str, int]],
    script: str,
) -> list[Target]:
    """What to compile besides, before another trace in a world of the unseen sizes.

    Raises:
        ExportError: Another trace would freeze the same.
        ParityError: There were enough of them.
    """
    finding = unseen.finding
    if not isinstance(finding, ExportError):
        if len(more_sizes) == _MORE_WORLDS:
            raise finding
        return []
    found = finding.target
    known = {t.code for t in traced.targets}
    if script != "auto" or not isinstance(found, Target) or found.code in known:
        raise finding from unseen.__cause__
    return [found]


def _signature(traced: TracedModel) -> Signature:
    return Signature(
        traced.arguments.tree,
        traced.inputs,
        traced.output_tree,
        traced.outputs,
        traced.constants,
        {i: x for i, x in enumerate(traced.arguments.leaves) if i not in traced.inputs},
        traced.complex_outputs,
        traced.arguments.gathering,
    )


def _probes(traced: TracedModel) -> list[dict[str, Any]]:
    """What the graph's inputs were in each world."""
    names = [str(v.name) for v in traced.model.graph.inputs]
    return [
        dict(zip(names, (w.leaves[i] for i in traced.inputs), strict=False)) | traced.state
        for w in traced.worlds
    ]


def _modules(traced: TracedModel) -> dict[str, str]:
    """The classes of the modules that nodes came from, and of those around them."""
    used: set[str] = set()
    for node in traced.model.graph.all_nodes():
        parts = node.metadata_props.get("bridge.module", "").split(".")
        used.update(".".join(parts[: i + 1]) for i in range(len(parts)))
    return {
        ".".join(p for p in (prefix, path) if p): type(child).__name__
        for prefix, module in modules_of(traced.callable).items()
        for path, child in module.named_modules()
        if ".".join(p for p in (prefix, path) if p) in used - {""}
    }


def _report(traced: TracedModel) -> ExportReport:
    report = ExportReport(
        assumptions=[str(a) for a in traced.assumptions],
        scripted=list(traced.scripted),
        dynamic={
            s.name: [w.sizes.get(s.name, s.size) for w in traced.worlds] for s in traced.symbols
        },
        mutated=traced.mutated,
        seconds=dict(traced.seconds),
        op_counts=count_ops(traced.model),
        modules=_modules(traced),
    )
    if traced.training:
        text = (
            f"{len(traced.training)} modules are in train mode (first: {traced.training[0]!r}): "
            "dropout and batch normalisation are exported as they train; call model.eval() first"
        )
        report.warnings.append(text)
        warnings.warn(text, TrainModeWarning, stacklevel=3)
    if traced.mutated and not traced.state:
        report.warnings.append(
            "forward writes to its state; the graph starts from the exported values every time"
        )
    if traced.drawn:
        text = (
            f"forward draws from {' and '.join(traced.drawn)}: the numbers drawn at the export are part "
            "of the program; draw them with torch, or make them inputs"
        )
        report.warnings.append(text)
        warnings.warn(text, FrozenRandomWarning, stacklevel=3)
    if traced.random:
        report.warnings.append(
            "the graph draws random numbers, so its results are not compared with eager's"
        )
    return report
