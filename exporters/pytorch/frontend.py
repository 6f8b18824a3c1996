"""From an eager PyTorch callable to an ONNX model and what is needed to check it."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from typing import TYPE_CHECKING, Any

import onnx
import torch

from exporters.errors import (
    ExportError,
    InputError,
    ScriptError,
    SpecialisationError,
    UntraceableError,
    WorldError,
)
from exporters.pytorch import isolation
from exporters.pytorch.attempt import Attempt, TracedModel, World
from exporters.pytorch.dtypes import from_torch_dtype
from exporters.pytorch.eager import EagerRuns, explained
from exporters.pytorch.handlers import DerivativesAsked
from exporters.pytorch.inputs import (
    Arguments,
    bind,
    clone,
    modules_of,
    named_tensors,
    unwrapped,
    world_leaves,
)
from exporters.pytorch.resizing import accepted_sizes, every_dim
from exporters.pytorch.scripting import Scripting, raise_uncompiled
from exporters.pytorch.specialisation import (
    KEEP_IN_TORCH,
    differs,
    first_difference,
    is_at,
    written_globals,
)
from exporters.pytorch.torchscript import torchscript_traces
from exporters.script import compiled, nested_codes, target_behind, target_of
from exporters.tracing.trace import Assumption
from exporters.tracing.worlds import (
    Symbol,
    first_sizes,
    oblong,
    parse_dynamic_shapes,
    smaller_sizes,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    import onnx_ir as ir

    from exporters.script import Target

__all__ = ["DEFAULT_OPSET", "TracedModel", "World", "explain", "retrace", "trace"]

# The first opset with Attention, RMSNormalization and RotaryEmbedding, so that these stay whole.
DEFAULT_OPSET = 23
_OLDEST_OPSET = 17


def trace(
    model: Callable[..., Any],
    args: Any = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
    examples: Sequence[Any] | None = None,
    opset: int | None = None,
    output_names: Sequence[str] | None = None,
    script: str = "auto",
    state: str = "fold",
    unroll_limit: int = 128,
    targets: Iterable[Target] = (),
    more_sizes: Sequence[Mapping[str, int]] = (),
    check: bool = True,
    runs: EagerRuns | None = None,
    keep: Callable[[ir.Value, dict[int, torch.Tensor]], None] | None = None,
) -> TracedModel:
    """Trace an eager callable into an ONNX model.

    Args:
        model: ``nn.Module`` or function over tensors.
        args: Positional arguments of the example; a lone tensor stands for ``(tensor,)``.
        kwargs: Keyword arguments of the example.
        dynamic_shapes: Which dims vary, as ``torch.onnx.export`` takes it; ``"auto"`` for every dim
            that eager code accepts other sizes of.
        examples: Further examples, each a tuple of positional or a dict of keyword arguments, from
            which the dynamic dims are inferred.
        opset: ONNX opset, 17 or later; 23 unless given.
        output_names: Names for the graph outputs, in order.
        script: ``"auto"`` compiles every function in which Python branches on what only run time
            knows; ``"explicit"`` only those marked with ``@bridge.script``.
        state: ``"fold"`` keeps the buffers that forward writes to as they are at the export;
            ``"io"`` makes them extra inputs, and outputs named ``buffer.out``.
        unroll_limit: Loops of more iterations, known when tracing, become ``Loop`` nodes in
            compiled functions.
        targets: Functions to compile from the start.
        more_sizes: Sizes of the dynamic dims for further worlds.
        check: Whether to run eager code in the other worlds too, to see that the trace froze
            nothing that varies.
        runs: Eager runs of the model that earlier traces needed.
        keep: Called with every value of the graph and the tensor that it is in each world.

    Raises:
        ExportError: See :mod:`exporters.errors`.
    """
    if script not in ("auto", "explicit"):
        raise InputError(f"script is {script!r}; it is 'auto' or 'explicit'")
    if state not in ("fold", "io"):
        raise InputError(f"state is {state!r}; it is 'fold' or 'io'")
    opset = DEFAULT_OPSET if opset is None else opset
    if not isinstance(opset, int):
        raise InputError(f"opset is {opset!r} ({type(opset).__name__}); it is a number such as 20")
    if opset < _OLDEST_OPSET:
        raise InputError(f"opset {opset} is older than {_OLDEST_OPSET}, the oldest supported")
    newest = onnx.defs.onnx_opset_version()
    if opset > newest:
        raise InputError(
            f"opset {opset} is newer than {newest}, the newest that onnx {onnx.__version__} defines"
        )
    if not callable(model):
        raise InputError(
            f"the model is {model!r} ({type(model).__name__}); it is an nn.Module or a function"
        )
    started = time.perf_counter()
    if not isinstance(examples, list | tuple | None):
        raise InputError(
            f"examples is a {type(examples).__name__}; it is a list of examples",
            hint="write examples=[(x,), (longer_x,)]",
        )
    given = list(examples or ())
    if given and not kwargs and isinstance(args, tuple) and not args:
        args, kwargs = split_example(given.pop(0))
    model = unwrapped(model)
    arguments = bind(model, args, kwargs)
    _check_leaves(model, arguments)
    if given and dynamic_shapes is not None:
        raise InputError(
            "examples= and dynamic_shapes= both say which dims vary",
            hint="leave dynamic_shapes out: the dims that differ between examples are dynamic",
        )
    others = [bind(model, *split_example(e)) for e in given]
    targets = list(targets)
    options: dict[str, Any] = {
        "opset": opset,
        "output_names": output_names,
        "unroll_limit": unroll_limit,
        "keep": keep,
        "runs": EagerRuns() if runs is None else runs,
    }

    def once() -> TracedModel:
        scripting: Scripting = options["scripting"]
        options["runs"].memo.remembers |= bool(scripting.chosen)  # it is not the first trace
        if others:
            symbols, worlds = _infer_symbols(arguments, others)
            attempt = Attempt(model, arguments, symbols, worlds, **options)
            try:
                traced = attempt.run()
            except WorldError as failure:
                raise _why_frozen(attempt, failure) from failure
        else:
            symbols = _declared_symbols(arguments, dynamic_shapes)
            attempt, traced = _trace_resized(model, arguments, symbols, options, more_sizes)
        traced.seconds["total"] = time.perf_counter() - started
        refused = _check_worlds(attempt, traced, scripted=bool(scripting.targets)) if check else []
        if refused and others:
            raise _refused_example(attempt, *refused[0])
        if refused:  # the trace took sizes that eager code does not take
            attempt, traced = _trace_accepted(attempt, symbols, more_sizes)
            _check_worlds(attempt, traced, scripted=bool(scripting.targets))
        return traced

    def followed() -> TracedModel:
        try:
            return once()
        except ExportError:
            raise
        except Exception as error:
            raise_uncompiled(error, options["scripting"])
            raise

    def scripted() -> TracedModel:
        try:
            return in_script()
        except DerivativesAsked:
            options["derives"] = True
            return in_script()
        except ExportError:
            raise
        except Exception as error:
            found = explained(error, model, arguments)
            if found is error:
                raise
            raise found from error

    def in_script() -> TracedModel:
        scripting = Scripting(automatic=script == "auto", targets=targets)
        options.update(scripting=scripting, state=[])
        traced = scripting.run(followed)
        if state == "io" and traced.mutated:
            options["state"] = traced.mutated
            traced = scripting.run(followed)
        traced.scripted.extend(scripting.chosen)
        traced.targets.extend(scripting.targets.values())
        return traced

    return _told_of_compiling_if_need_be(scripted)


def _told_of_compiling_if_need_be(trace: Callable[[], TracedModel]) -> TracedModel:
    """The trace of a model that thinks itself eager, or else compiled.

    What libraries do for a compiler avoids branches on data, and makes larger graphs: transformers
    5.23 then writes the masks of packed sequences that no input has.
    """
    isolation.asked_of_compiling()
    try:
        return trace()
    except ExportError:
        if not isolation.asked_of_compiling():
            raise
        with isolation.compiling(), contextlib.suppress(ExportError):
            traced = dataclasses.replace(trace(), compiling=True)
            traced.assumptions.append(Assumption("torch.compiler.is_compiling()", True, None))
            return traced
        raise


def _declared_symbols(arguments: Arguments, dynamic_shapes: Any) -> list[Symbol]:
    shapes = [tuple(x.shape) if hasattr(x, "shape") else None for x in arguments.leaves]
    if isinstance(dynamic_shapes, str) and dynamic_shapes == "auto":
        return every_dim(arguments.names, shapes)
    paths = list(arguments.tree.paths())
    return parse_dynamic_shapes(dynamic_shapes, arguments.names, paths, shapes)


def _check_worlds(
    attempt: Attempt, traced: TracedModel, *, scripted: bool
) -> list[tuple[int, Exception]]:
    """Compare every world's traced results with eager code of its own.

    Returns:
        The worlds that eager code refuses, with what it raises.
    """
    first = 0 if scripted else 1  # what is compiled has to prove itself on the example, too
    refused: list[tuple[int, Exception]] = []
    if len(traced.worlds) <= first:
        return refused
    started = time.perf_counter()
    for index in range(first, len(traced.worlds)):
        try:
            error = _specialisation(attempt, traced, index)
        except ExportError:
            raise
        except Exception as refusal:
            if not index:
                raise
            refused.append((index, refusal))
            continue
        if error is not None:
            raise error
    traced.seconds["check"] = time.perf_counter() - started
    return refused


def _specialisation(attempt: Attempt, traced: TracedModel, index: int) -> ExportError | None:
    """Why the traced results of a world are not eager's, None if they are."""
    world = traced.worlds[index]
    if traced.random:
        return None
    eager = traced.eager(world.leaves)
    chosen = [eager[i] for i in traced.outputs if i < len(eager)]
    frozen = [i for i, x in traced.constants.items() if i < len(eager) and differs(x, eager[i])]
    alike = len(chosen) == len(world.outputs) and not any(map(differs, world.outputs, chosen))
    if alike and not frozen:
        return None
    attempt.run(log_world=index)
    found = first_difference(attempt.log, attempt.eager_calls(world.leaves))
    if found is None and frozen:
        error = SpecialisationError(
            f"the model returns {traced.constants[frozen[0]]!r} for every input, eager code "
            f"{eager[frozen[0]]!r} for other inputs than the example",
            hint="compute it from tensors, or leave it out of what the model returns",
        )
        error.target = target_behind(traced.callable)  # no call of torch tells where it was frozen
        return error
    return _with_target(found, attempt)


def _with_target(error: ExportError | None, attempt: Attempt) -> ExportError | None:
    """Say which function's compilation would help, or that it did not."""
    if error is None or error.source is None or error.source.code is None:
        return error
    target = target_of(error.source.code)
    scripting = attempt.scripting
    if scripting is not None and error.source.code in scripting.settled:
        # What varies may have been frozen before it was handed to this function.
        for code in error.callers if scripting.automatic else ():
            if code not in scripting.settled:
                error.target, error.optional = target_of(code), code
                return error
        if isinstance(error, WorldError):
            return error
        kept = written_globals((error.source.code, *error.callers))
        if kept:
            error.hint = (
                f"`{kept[0]}` is global, and a graph keeps nothing from one call to the next: take it as an "
                'input and return it, or keep it in a buffer and export with state="io"'
            )
            return error
        if isinstance(error, SpecialisationError) and KEEP_IN_TORCH in (error.hint or ""):
            # The function is compiled already.
            error.hint = (
                f"{KEEP_IN_TORCH}, nor are rows of a list that change under a name of their own"
            )
            return error
        return ScriptError(
            f"{error.message}, although the function is compiled",
            source=error.source,
            hint="its loops, branches and math.* are followed; what changes under another name than that "
            "of the list it is in, and what other libraries keep, is not",
        )
    error.target = target
    return error


def explain(
    traced: TracedModel, leaves: Sequence[Any], sizes: Mapping[str, int]
) -> ExportError | None:
    """Where the trace froze something that is otherwise for the given inputs; None if nowhere."""
    worlds = [traced.worlds[0], World(list(leaves), [], dict(sizes))]
    with _anew(traced, worlds) as attempt:
        try:
            again = attempt.run()
        except ExportError as error:
            return error
        return _specialisation(attempt, again, 1)


def retrace(
    traced: TracedModel,
    leaves: Sequence[Any],
    keep: Callable[[ir.Value, torch.Tensor], None],
) -> TracedModel:
    """Trace once more, as before and in one more world.

    Args:
        traced: The trace.
        leaves: The arguments in that world.
        keep: Called with the values of the graph and the tensors that they are there.

    Raises:
        ExportError: What was frozen before is otherwise in that world.
    """
    places = {s.name: s.places[0] for s in traced.symbols}
    sizes = {name: leaves[leaf].shape[axis] for name, (leaf, axis) in places.items()}
    worlds = [*traced.worlds, World(list(leaves), [], sizes)]
    last = len(traced.worlds)
    with _anew(traced, worlds) as attempt:
        attempt.keep = lambda value, tensors: (
            keep(value, tensors[last]) if last in tensors else None
        )
        return attempt.run()


@contextlib.contextmanager
def _anew(traced: TracedModel, worlds: Sequence[World]) -> Iterator[Attempt]:
    """What makes the same trace in other worlds; nothing is compiled besides."""
    with isolation.compiling(told=traced.compiling), compiled(traced.targets) as made:
        scripting = Scripting(automatic=False)
        scripting.settled |= {c for code in made.values() for c in nested_codes(code)}
        attempt = traced.attempt.with_worlds(traced.symbols, worlds)
        attempt.scripting, attempt.keep = scripting, None
        yield attempt


def split_example(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of an example."""
    if isinstance(example, dict):
        return (), example
    if isinstance(example, tuple):
        if len(example) == 2 and isinstance(example[0], tuple) and isinstance(example[1], dict):
            return example
        return example, {}
    return (example,), {}


def _devices(values: Iterable[Any]) -> list[str]:
    """The devices that hold ``values``; a rank-0 tensor on the CPU goes with any."""
    tensors = [x for x in values if isinstance(x, torch.Tensor)]
    return sorted({str(x.device) for x in tensors if x.dim() or x.device.type != "cpu"})


def _check_leaves(model: Callable[..., Any], arguments: Arguments) -> None:
    devices = _devices(arguments.leaves)
    beside_cpu = [d for d in devices if d != "cpu"]  # lengths of packed sequences are on the CPU
    if len(beside_cpu) > 1 or (len(devices) > 1 and "meta" in devices):
        raise InputError(
            f"the inputs are on several devices: {', '.join(devices)}",
            hint="move the example inputs to the model's device",
        )
    traced = next(torchscript_traces(model), None)
    if traced is not None:
        raise UntraceableError(
            f"the module {traced} was made by torch.jit.trace: there is no Python code left to run",
            hint="export the module that it was traced from",
        )
    state = named_tensors(modules_of(model))
    lazy = [n for n, x in state.items() if torch.nn.parameter.is_lazy(x)]
    if lazy:
        raise InputError(
            f"{len(lazy)} parameters of the model have no shape yet (first: {lazy[0]!r})",
            hint="call the model once, so that its lazy modules learn their sizes",
        )
    empty = [name for name, x in state.items() if x.is_meta]
    if empty:
        raise InputError(
            f"{len(empty)} tensors of the model are on the meta device (first: {empty[0]!r}); "
            "they have no values",
            hint="load the weights first, or model.to_empty(device='cpu') and fill them",
        )
    homes = _devices(state.values())
    if len(homes) == 1 and devices and homes[0] not in devices:
        raise InputError(
            f"the model is on {homes[0]}, the inputs are on {devices[0]}",
            hint=f"move one of them: model.to({devices[0]!r})",
        )
    for name, x in zip(arguments.names, arguments.leaves, strict=True):
        if not isinstance(x, torch.Tensor):
            continue
        try:
            from_torch_dtype(x.dtype)
        except (TypeError, KeyError) as error:
            raise InputError(
                f"input {name!r} is {x.dtype}, which ONNX does not have",
                hint=f"pass it as another dtype, and convert it in the model: {name}.to({x.dtype})",
            ) from error
        if x.layout is not torch.strided:
            raise InputError(
                f"input {name!r} is sparse ({x.layout}); ONNX inputs are dense",
                hint=f"pass {name}.to_dense()",
            )


def _infer_symbols(
    arguments: Arguments, others: Sequence[Arguments]
) -> tuple[list[Symbol], list[World]]:
    """The dims in which several examples differ; dims that always agree share a symbol."""
    runs = [arguments, *others]
    for other in others:
        if other.names != arguments.names:
            raise InputError(
                f"the examples differ in structure: {', '.join(arguments.names)} and "
                f"{', '.join(other.names)}",
                hint="give examples of one structure, or export the model once for each",
            )
    by_sizes: dict[tuple[int, ...], Symbol] = {}
    for index, name in enumerate(arguments.names):
        leaves = [run.leaves[index] for run in runs]
        if not isinstance(leaves[0], torch.Tensor):
            continue
        if len({(x.dim(), x.dtype) for x in leaves}) > 1:
            told = ", ".join(f"{x.dtype} of rank {x.dim()}" for x in leaves)
            raise InputError(f"the examples disagree on input {name!r}: {told}")
        shapes = [tuple(x.shape) for x in leaves]
        for axis, sizes in enumerate(zip(*shapes, strict=True)):
            if len(set(sizes)) > 1:
                symbol = by_sizes.get(sizes)
                if symbol is None:
                    symbol = Symbol(f"{name}_dim_{axis}", sizes[0], [], named=False)
                    by_sizes[sizes] = symbol
                symbol.places.append((index, axis))
    worlds = [
        World([clone(x) for x in run.leaves], [], {s.name: z[i] for z, s in by_sizes.items()})
        for i, run in enumerate(runs)
    ]
    return list(by_sizes.values()), worlds


def _trace_resized(
    model: Callable[..., Any],
    arguments: Arguments,
    symbols: list[Symbol],
    options: dict[str, Any],
    more_sizes: Sequence[Mapping[str, int]],
) -> tuple[Attempt, TracedModel]:
    """Trace with a second world in which every declared dim has another size."""
    sizes = first_sizes(symbols, _sizes_in(arguments))
    attempt = Attempt(model, arguments, symbols, (), **options)
    if options["scripting"].chosen and not more_sizes:
        more_sizes = _square_images(attempt, sizes)
    attempt.worlds = _resized_worlds(arguments, symbols, [sizes, *more_sizes])
    try:
        return attempt, attempt.run()
    except WorldError as failure:
        if attempt.eager_error(symbols, sizes) is None:
            raise _why_frozen(attempt, failure) from failure
    except ExportError:
        raise
    except Exception:  # of Python code in torch that compares sizes
        if not symbols or attempt.eager_error(symbols, sizes) is None:
            raise
    return _trace_accepted(attempt, symbols, more_sizes)


def _square_images(attempt: Attempt, second: Mapping[str, int]) -> list[dict[str, int]]:
    """The sizes of a world whose images are as high as wide, if eager code accepts them.

    Code that asks for sizes often asks which side is the longer one, or pads to a multiple.
    """
    symbols = attempt.symbols
    sides = {s.name for pair in oblong(symbols) for s in pair if s.size > 1}
    seen = {s.name: {s.size, second[s.name]} for s in symbols}
    sizes = {n: z for n, z in smaller_sizes(symbols, seen).items() if n in sides}
    return [sizes] if sizes and attempt.eager_error(symbols, sizes) is None else []


def _trace_accepted(
    attempt: Attempt, symbols: list[Symbol], more_sizes: Sequence[Mapping[str, int]]
) -> tuple[Attempt, TracedModel]:
    """Trace with a second world of sizes that eager code accepts."""
    arguments = attempt.arguments
    kept, accepted = accepted_sizes(symbols, _sizes_in(arguments), attempt.eager_error)
    worlds = _resized_worlds(arguments, kept, [accepted, *more_sizes])
    attempt = attempt.with_worlds(kept, worlds)
    try:
        return attempt, attempt.run()
    except WorldError as failure:
        raise _why_frozen(attempt, failure) from failure


def _sizes_in(arguments: Arguments) -> set[int]:
    return {n for x in arguments.leaves if isinstance(x, torch.Tensor) for n in x.shape}


def _resized_worlds(
    arguments: Arguments, symbols: Sequence[Symbol], sizes: Sequence[Mapping[str, int]]
) -> list[World]:
    """The example, and what becomes of it with other sizes."""
    worlds = [World([clone(x) for x in arguments.leaves], [], {s.name: s.size for s in symbols})]
    chosen = sizes if symbols else sizes[1:]
    worlds += [World(world_leaves(arguments.leaves, symbols, s), [], dict(s)) for s in chosen]
    return worlds


def _refused_example(attempt: Attempt, index: int, error: Exception) -> InputError:
    shapes = ", ".join(
        f"{n} {list(x.shape)}"
        for n, x in zip(attempt.arguments.names, attempt.worlds[index].leaves, strict=True)
        if isinstance(x, torch.Tensor)
    )
    return InputError(
        f"eager code refuses example {index + 1} ({shapes}): {type(error).__name__}: {error}",
        hint="give examples that the model accepts",
    )


def _why_frozen(attempt: Attempt, failure: WorldError) -> ExportError:
    """Eager accepts sizes that the trace fails on: name what was frozen before the failure."""
    for index, world in enumerate(attempt.worlds[1:], 1):
        with contextlib.suppress(WorldError):
            attempt.run(log_world=index)
        try:
            eager = attempt.eager_calls(world.leaves)
        except Exception as error:
            raise _refused_example(attempt, index, error) from error
        done = len(attempt.log)
        # Eager code got past the call that failed: it is one more, unless it is another one.
        same = [c for c in eager[done : done + 1] if is_at(c, failure.source)]
        difference = first_difference(attempt.log, eager[: done + (not same)])
        if difference is not None:
            return _with_target(difference, attempt) or failure
    return _with_target(failure, attempt) or failure
