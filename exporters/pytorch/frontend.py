"""From an eager PyTorch callable to an ONNX model and what is needed to check it."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import time
import warnings
from typing import TYPE_CHECKING, Any

import onnx_ir as ir
import torch

from exporters.errors import DynamicShapeError, ExportError, InputError, WorldError
from exporters.pytorch import handlers, isolation, lowerings  # noqa: F401  (registration)
from exporters.pytorch.dtypes import from_torch_dtype
from exporters.pytorch.inputs import (
    Arguments,
    bind,
    clone,
    is_leaf,
    module_paths,
    modules_of,
    named_tensors,
    world_leaves,
)
from exporters.pytorch.tracer import TorchTracer, unsupported_error
from exporters.tracing.finish import build_model
from exporters.tracing.pytree import Tree, flatten
from exporters.tracing.scalars import ScalarRecord, TracedScalar, plain
from exporters.tracing.source import SourceFinder
from exporters.tracing.trace import Assumption, Interrupt, Trace
from exporters.tracing.worlds import Symbol, candidate_sizes, first_sizes, parse_dynamic_shapes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

__all__ = ["DEFAULT_OPSET", "TracedModel", "World", "trace"]

DEFAULT_OPSET = 23
_TORCH = os.path.dirname(torch.__file__) + os.sep


@dataclasses.dataclass(frozen=True, slots=True)
class World:
    """One concrete run.

    Attributes:
        leaves: The arguments' tensors and numbers; never modified.
        outputs: What the traced code computed from them, flat.
        sizes: The size of each dynamic dim.
    """

    leaves: list[Any]
    outputs: list[Any]
    sizes: dict[str, int]


@dataclasses.dataclass(frozen=True, slots=True)
class TracedModel:
    """An ONNX model with the eager code that it came from.

    Attributes:
        model: The graph.
        callable: The eager model.
        arguments: The example: structure, names, leaves.
        inputs: Positions among the leaves that became graph inputs.
        output_tree: The structure of the result.
        outputs: Positions among the result's leaves that became graph outputs.
        worlds: The runs that were traced, the example first.
        symbols: The dynamic dims.
        assumptions: What Python asked and the trace took for granted.
        mutated: State that forward wrote to, by ``state_dict`` name.
        random: Whether the graph draws random numbers.
        seconds: Time spent, by phase.
    """

    model: ir.Model
    callable: Callable[..., Any]
    arguments: Arguments
    inputs: list[int]
    output_tree: Tree
    outputs: list[int]
    constants: dict[int, Any]
    worlds: list[World]
    symbols: list[Symbol]
    assumptions: list[Assumption]
    mutated: list[str]
    random: bool
    training: list[str]
    seconds: dict[str, float]

    def eager(self, leaves: Sequence[Any]) -> list[Any]:
        """The eager result's leaves; the model and the arguments stay as they were."""
        modules = modules_of(self.callable)
        tensors = named_tensors(modules)
        before = {k: (t, t._version, t.detach().clone()) for k, t in tensors.items() if _small(t)}
        try:
            with isolation.isolated(modules.values()), isolation.exporting():
                result = self.arguments.call(self.callable, [clone(x) for x in leaves])
            return flatten(result, is_leaf)[0]
        finally:
            with torch.no_grad():
                for tensor, version, copy in before.values():
                    if tensor._version != version:
                        tensor.copy_(copy)


def _small(tensor: torch.Tensor) -> bool:
    return not isinstance(tensor, torch.nn.Parameter)  # buffers: forward may write to them


def trace(
    model: Callable[..., Any],
    args: Any = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
    examples: Sequence[Any] | None = None,
    opset: int | None = None,
    output_names: Sequence[str] | None = None,
    state: str = "fold",
) -> TracedModel:
    """Trace an eager callable into an ONNX model.

    Args:
        model: ``nn.Module`` or function over tensors.
        args: Positional arguments of the example; a lone tensor stands for ``(tensor,)``.
        kwargs: Keyword arguments of the example.
        dynamic_shapes: Which dims vary, as ``torch.onnx.export`` takes it.
        examples: Further examples, each a tuple of positional or a dict of keyword arguments, from
            which the dynamic dims are inferred.
        opset: ONNX opset, 17 or later; 23 unless given.
        output_names: Names for the flat outputs, in order.
        state: ``"fold"`` keeps state that forward writes to as constants; ``"io"`` makes it extra
            inputs and outputs.

    Raises:
        ExportError: See :mod:`exporters.errors`.
    """
    started = time.perf_counter()
    given = list(examples or ())
    if args == () and not kwargs and given:
        args, kwargs = _split_example(given.pop(0))
    arguments = bind(model, args, kwargs)
    _check_leaves(arguments)
    if given:
        others = [bind(model, *_split_example(e)) for e in given]
        symbols, worlds = _infer_symbols(arguments, others)
        if dynamic_shapes is not None:
            raise InputError(
                "examples= and dynamic_shapes= both say which dims vary",
                hint="leave dynamic_shapes out: the dims that differ between examples are dynamic",
            )
        attempt = _Attempt(model, arguments, symbols, worlds, opset or DEFAULT_OPSET, output_names)
        traced = attempt.run()
    else:
        shapes = [tuple(x.shape) if hasattr(x, "shape") else None for x in arguments.leaves]
        symbols = parse_dynamic_shapes(
            dynamic_shapes, arguments.names, list(arguments.tree.paths()), shapes
        )
        traced = _trace_resized(model, arguments, symbols, opset or DEFAULT_OPSET, output_names)
    traced.seconds["total"] = time.perf_counter() - started
    return traced


def _split_example(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(example, dict):
        return (), example
    if isinstance(example, tuple):
        if len(example) == 2 and isinstance(example[0], tuple) and isinstance(example[1], dict):
            return example
        return example, {}
    return (example,), {}


def _check_leaves(arguments: Arguments) -> None:
    devices = {x.device for x in arguments.leaves if isinstance(x, torch.Tensor)}
    if len(devices) > 1:
        raise InputError(
            f"the inputs are on several devices: {', '.join(sorted(map(str, devices)))}",
            hint="move the example inputs to the model's device",
        )
    for name, x in zip(arguments.names, arguments.leaves, strict=True):
        if isinstance(x, torch.Tensor):
            try:
                from_torch_dtype(x.dtype)
            except TypeError as error:
                raise InputError(f"input {name!r} is {x.dtype}, which ONNX does not have") from error
            if x.layout is not torch.strided:
                raise InputError(f"input {name!r} is sparse ({x.layout}); ONNX inputs are dense",
                                 hint="pass x.to_dense()")


def _infer_symbols(
    arguments: Arguments, others: Sequence[Arguments]
) -> tuple[list[Symbol], list[World]]:
    """The dims in which several examples differ; dims that always agree share a symbol."""
    runs = [arguments, *others]
    for other in others:
        if other.names != arguments.names:
            raise InputError(
                f"the examples differ in structure: {arguments.names} and {other.names}"
            )
    by_sizes: dict[tuple[int, ...], Symbol] = {}
    for index, name in enumerate(arguments.names):
        leaves = [run.leaves[index] for run in runs]
        if not isinstance(leaves[0], torch.Tensor):
            continue
        if len({(x.dim(), x.dtype) for x in leaves}) > 1:
            told = ", ".join(f"{x.dtype} of rank {x.dim()}" for x in leaves)
            raise InputError(f"the examples disagree on input {name!r}: {told}")
        for axis, sizes in enumerate(zip(*(tuple(x.shape) for x in leaves), strict=True)):
            if len(set(sizes)) > 1:
                symbol = by_sizes.setdefault(sizes, Symbol(f"{name}_dim_{axis}", sizes[0], [], named=False))
                symbol.places.append((index, axis))
    symbols = list(by_sizes.values())
    worlds = [
        World([clone(x) for x in run.leaves], [], {s.name: sizes[i] for sizes, s in by_sizes.items()})
        for i, run in enumerate(runs)
    ]
    return symbols, worlds


def _trace_resized(
    model: Callable[..., Any],
    arguments: Arguments,
    symbols: list[Symbol],
    opset: int,
    output_names: Sequence[str] | None,
) -> TracedModel:
    """Trace with a second world in which every declared dim has another size."""
    example = World(
        [clone(x) for x in arguments.leaves], [], {s.name: s.size for s in symbols}
    )
    if not symbols:
        return _Attempt(model, arguments, [], [example], opset, output_names).run()
    static = {
        size for x in arguments.leaves if isinstance(x, torch.Tensor) for size in x.shape
    }
    sizes = first_sizes(symbols, static)
    other = World(world_leaves(arguments.leaves, symbols, sizes), [], sizes)
    attempt = _Attempt(model, arguments, symbols, [example, other], opset, output_names)
    try:
        return attempt.run()
    except WorldError as error:
        accepted = _sizes_that_eager_accepts(attempt, symbols, sizes, error)
    symbols = [s for s in symbols if s.name in accepted]
    if not symbols:
        return _Attempt(model, arguments, [], [example], opset, output_names).run()
    other = World(world_leaves(arguments.leaves, symbols, accepted), [], accepted)
    return _Attempt(model, arguments, symbols, [example, other], opset, output_names).run()


def _sizes_that_eager_accepts(
    attempt: _Attempt, symbols: Sequence[Symbol], tried: Mapping[str, int], failure: WorldError
) -> dict[str, int]:
    """Other sizes for the second world, found by running eager code alone.

    Raises:
        WorldError: Eager accepts the sizes that failed: the trace is at fault.
        DynamicShapeError: No other size is accepted for a dim.
    """
    if attempt.eager_error(tried) is None:
        raise failure
    accepted: dict[str, int] = {}
    for group in _groups(symbols):
        error: Exception | None = None
        for sizes in itertools.islice(zip(*map(candidate_sizes, group), strict=False), 12):
            chosen = {s.name: size for s, size in zip(group, sizes, strict=True)}
            error = attempt.eager_error(chosen)
            if error is None and not set(chosen.values()) & set(accepted.values()):
                accepted |= chosen
                break
        else:
            frozen = [s for s in group if not s.optional]
            if frozen and error is not None:
                symbol = frozen[0]
                raise DynamicShapeError(
                    f"dim {symbol.name!r} is declared dynamic, but eager accepts only "
                    f"{symbol.size}: {type(error).__name__}: {error}",
                    hint="leave it out of dynamic_shapes, give dims that must be equal one name, "
                    "or pass examples= with sizes that the model accepts",
                ) from error
    problem = attempt.eager_error(accepted)
    if problem is not None:
        raise DynamicShapeError(
            f"eager accepts other sizes for each dynamic dim alone, but not for all at once: {problem}",
            hint="pass examples=[...] with two sets of sizes that the model accepts",
        ) from problem
    return accepted


def _groups(symbols: Sequence[Symbol]) -> Iterator[list[Symbol]]:
    """Symbols that vary alone, and unnamed ones of equal size that may have to vary together."""
    for symbol in symbols:
        yield [symbol]


class _Attempt:
    """One tracing run with fixed worlds."""

    def __init__(
        self,
        model: Callable[..., Any],
        arguments: Arguments,
        symbols: list[Symbol],
        worlds: list[World],
        opset: int,
        output_names: Sequence[str] | None,
    ) -> None:
        self.model = model
        self.arguments = arguments
        self.symbols = symbols
        self.worlds = worlds
        self.opset = opset
        self.output_names = output_names
        self.modules = modules_of(model)
        self.named = named_tensors(self.modules)

    def eager_error(self, sizes: Mapping[str, int]) -> Exception | None:
        """What eager raises for other sizes, None if it accepts them."""
        leaves = world_leaves(self.arguments.leaves, self.symbols, sizes)
        try:
            with isolation.isolated(self.modules.values()), isolation.exporting():
                self.arguments.call(self.model, leaves)
        except Exception as error:
            return error
        return None

    def run(self) -> TracedModel:
        started = time.perf_counter()
        paths = module_paths(self.modules)
        finder = SourceFinder(
            library=(_TORCH,),
            module_call=torch.nn.Module._call_impl.__code__,
            module_path=lambda module: paths.get(id(module)),
            entry=_run_model.__code__,
        )
        trace = Trace(len(self.worlds), opset=self.opset, finder=finder)
        tracer = TorchTracer(trace, self.named)
        handles, graph_inputs = self._enter(tracer)
        try:
            with isolation.isolated(self.modules.values()), isolation.exporting():
                try:
                    with trace:
                        result = _run_model(tracer, self.arguments, self.model, handles)
                        traced = self._leave(tracer, result, graph_inputs)
                finally:
                    tracer.constants.restore()
        except Interrupt as interrupt:
            raise interrupt.error from interrupt.__cause__
        traced.seconds["trace"] = time.perf_counter() - started
        return traced

    def _enter(self, tracer: TorchTracer) -> tuple[list[Any], list[ir.Value]]:
        """Make a handle of every input."""
        trace = tracer.trace
        names_of_dims = {
            (leaf, axis): s.name for s in self.symbols for leaf, axis in s.places
        }
        for symbol in self.symbols:
            sizes = tuple(w.sizes.get(symbol.name, symbol.size) for w in self.worlds)
            trace.name_size(sizes, symbol.name)
        handles: list[Any] = []
        graph_inputs: list[ir.Value] = []
        for index, name in enumerate(self.arguments.names):
            leaves = {i: w.leaves[index] for i, w in enumerate(self.worlds)}
            first = leaves[0]
            if not isinstance(first, torch.Tensor):
                if len({repr(x) for x in leaves.values()}) == 1:
                    handles.append(first)
                    continue
                kind = type(first)
                dtype = {bool: ir.DataType.BOOL, int: ir.DataType.INT64, float: ir.DataType.DOUBLE}[kind]
                value = ir.Value(name=trace.builder.unique_name(name), shape=ir.Shape([]), type=ir.TensorType(dtype))
                handles.append(trace.number(ScalarRecord(trace, leaves, data=True, scalar=value), kind))
                graph_inputs.append(value)
                continue
            value = ir.Value(name=trace.builder.unique_name(name))
            tensors = {w: clone(x) for w, x in leaves.items()}
            tracer.track(tensors, value)
            dims = [
                names_of_dims.get((index, axis), size) for axis, size in enumerate(first.shape)
            ]
            value.shape = ir.Shape(dims)
            handles.append(tensors[0])
            graph_inputs.append(value)
        return handles, graph_inputs

    def _leave(self, tracer: TorchTracer, result: Any, graph_inputs: list[ir.Value]) -> TracedModel:
        """Turn the result into graph outputs, and everything into a model."""
        if tracer.unsupported:
            raise unsupported_error(tracer.unsupported)
        trace = tracer.trace
        leaves, tree = flatten(result, is_leaf)
        positions: list[int] = []
        values: list[ir.Value] = []
        concrete: list[list[Any]] = [[] for _ in self.worlds]
        constants: dict[int, Any] = {}
        for index, leaf in enumerate(leaves):
            if isinstance(leaf, torch.Tensor):
                value = tracer.graph(leaf)
                runs = tracer.worlds(leaf)
            elif isinstance(leaf, TracedScalar):
                value, runs = leaf.scalar(), leaf.record.worlds
            else:
                constants[index] = plain(leaf)
                continue
            positions.append(index)
            values.append(value)
            for w in range(len(self.worlds)):
                concrete[w].append(runs[w])
        if not positions:
            raise InputError("the model returns no tensor, so there is nothing to export")
        names = self._output_names(tree, positions)
        model = build_model(trace, graph_inputs, values, names, name=_model_name(self.model))
        inputs = [i for i, x in enumerate(self.arguments.leaves)
                  if isinstance(x, torch.Tensor) or isinstance(_nth(self.worlds, i), _Varying)]
        model.metadata_props["bridge.signature"] = json.dumps(
            {
                "inputs": self.arguments.tree.describe(),
                "input_leaves": inputs,
                "outputs": tree.describe(),
                "output_leaves": positions,
                "constants": {str(k): v for k, v in constants.items()},
            }
        )
        training = [n or type(m).__name__ for m in self.modules.values() for n, c in m.named_modules() if c.training]
        if training:
            warnings.warn(
                "the model is in train mode: dropout and batch normalisation are exported as they "
                "train; call model.eval() before the export to deploy it",
                stacklevel=2,
            )
        return TracedModel(
            model=model,
            callable=self.model,
            arguments=self.arguments,
            inputs=inputs,
            output_tree=tree,
            outputs=positions,
            constants=constants,
            worlds=[dataclasses.replace(w, outputs=o) for w, o in zip(self.worlds, concrete, strict=True)],
            symbols=self.symbols,
            assumptions=trace.assumptions,
            mutated=[
                name for name, t in self.named.items() if t.untyped_storage()._cdata in tracer.promoted
            ],
            random=bool(tracer.random),
            training=training,
            seconds={},
        )

    def _output_names(self, tree: Tree, positions: Sequence[int]) -> list[str]:
        if self.output_names is not None:
            if len(self.output_names) != len(positions):
                raise InputError(
                    f"output_names has {len(self.output_names)} names for {len(positions)} outputs"
                )
            return list(self.output_names)
        paths = list(tree.paths())
        names = []
        for index in positions:
            path = [str(p) for p in paths[index]]
            if not path:
                names.append("output")
            else:
                names.append(".".join(["output", *path]) if path[0].isdigit() else ".".join(path))
        return names


class _Varying:
    """A number that differs between the examples."""


def _nth(worlds: Sequence[World], index: int) -> Any:
    return _Varying() if len({repr(w.leaves[index]) for w in worlds}) > 1 else None


def _run_model(
    tracer: TorchTracer, arguments: Arguments, model: Callable[..., Any], handles: Sequence[Any]
) -> Any:
    with tracer:
        return arguments.call(model, handles)


def _model_name(model: Any) -> str:
    return getattr(model, "__name__", type(model).__name__)
