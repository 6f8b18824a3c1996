"""One tracing run over fixed worlds: inputs become handles, the model runs, results become outputs."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import time
import types
from typing import TYPE_CHECKING, Any

import onnx_ir as ir
import torch

from exporters.errors import InputError, UnboundNameError
from exporters.pytorch import handlers, isolation, lowerings  # noqa: F401  (registration)
from exporters.pytorch.dtypes import is_complex
from exporters.pytorch.eager import LIBRARY, EagerRuns, run_eager
from exporters.pytorch.inputs import (
    Arguments,
    clone,
    is_leaf,
    module_paths,
    modules_of,
    named_tensors,
    world_leaves,
)
from exporters.pytorch.results import require_outputs
from exporters.pytorch.specialisation import Call, EagerLog, differs
from exporters.pytorch.tracer import TorchTracer
from exporters.pytorch.transforms import written_down
from exporters.pytorch.unsupported import require_supported
from exporters.script import target_behind, target_of
from exporters.tracing.finish import build_model
from exporters.tracing.none_tests import NoneTests
from exporters.tracing.pytree import Tree, flatten
from exporters.tracing.scalars import ScalarRecord, TracedScalar, plain
from exporters.tracing.source import SourceFinder
from exporters.tracing.trace import Assumption, Interrupt, Trace

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from exporters.pytorch.scripting import Scripting
    from exporters.script import Target
    from exporters.tracing.worlds import Symbol

__all__ = ["Attempt", "TracedModel", "World"]

_PLUMBING = tuple(
    os.path.join(LIBRARY, name)
    for name in (
        "overrides.py",
        "_tensor.py",
        "_ops.py",
        "_jit_internal.py",
        "utils/_contextlib.py",
    )
)
_NUMBERS = {bool: ir.DataType.BOOL, int: ir.DataType.INT64, float: ir.DataType.DOUBLE}


@dataclasses.dataclass(frozen=True, slots=True)
class World:
    """One concrete run.

    Attributes:
        leaves: The arguments' tensors and numbers; never modified.
        outputs: What the traced code computed from them: the graph outputs, in order.
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
        constants: What stands at the other positions of the result.
        complex_outputs: Which graph outputs, by number, are pairs of real numbers.
        worlds: The runs that were traced, the example first.
        symbols: The dynamic dims.
        assumptions: What Python asked and the trace took for granted.
        mutated: Parameters and buffers that forward writes to, by ``state_dict`` name.
        state: The buffers that are extra inputs, with their values; output ``name.out`` has the
            next ones.
        random: Whether the graph draws random numbers.
        drawn: Random number generators outside of torch that forward draws from.
        compiling: Whether the model saw ``torch.compiler.is_compiling()``.
        attempt: What was traced, and how.
        training: Paths of modules that are in train mode.
        scripted: Functions that were compiled without being marked.
        targets: All functions that were compiled.
        seconds: Time spent, by phase.
    """

    model: ir.Model
    callable: Callable[..., Any]
    arguments: Arguments
    inputs: list[int]
    output_tree: Tree
    outputs: list[int]
    constants: dict[int, Any]
    complex_outputs: list[int]
    worlds: list[World]
    symbols: list[Symbol]
    assumptions: list[Assumption]
    mutated: list[str]
    state: dict[str, torch.Tensor]
    random: bool
    training: list[str]
    scripted: list[str]
    targets: list[Target]
    seconds: dict[str, float]
    attempt: Attempt
    drawn: list[str] = dataclasses.field(default_factory=list)
    compiling: bool = False

    def eager(self, leaves: Sequence[Any]) -> list[Any]:
        """Every leaf of the eager result; the model and the arguments stay as they were."""
        with isolation.compiling(told=self.compiling):
            return self.attempt.runs(self.callable, self.arguments, leaves)

    def eager_outputs(self, leaves: Sequence[Any]) -> list[Any]:
        """The leaves of the eager result that are graph outputs."""
        result = self.eager(leaves)
        return [result[i] for i in self.outputs]

    def other_when_exported(self) -> list[str]:
        """The outputs that the example has other values for outside of an export, by path."""
        world = self.worlds[0]
        plain = run_eager(
            self.callable,
            self.arguments,
            world.leaves,
            exporting=False,
            memo=self.attempt.runs.memo,
        )
        leaves, tree = flatten(plain, is_leaf)
        by_path = dict(zip(tree.paths(), leaves, strict=True))
        paths = list(self.output_tree.paths())
        found = []
        for index, ours in zip(self.outputs, world.outputs, strict=False):
            theirs = by_path.get(paths[index])
            if is_like(ours, theirs) and differs(ours, theirs):
                found.append(".".join(map(str, paths[index])) or "output")
        return found


def is_like(a: Any, b: Any) -> bool:
    """Whether two tensors have one shape and dtype."""
    if not (isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor)):
        return False
    return a.shape == b.shape and a.dtype == b.dtype


class Attempt:
    """One tracing run.

    Args:
        model: The eager callable.
        arguments: The example.
        symbols: The dynamic dims.
        worlds: The runs to trace at once, the example first.
        opset: ONNX opset of the graph.
        output_names: Names for the graph outputs.
        unroll_limit: Trip counts up to this are unrolled.
        scripting: Which functions are compiled.
        state: Buffers that become extra inputs and outputs, by ``state_dict`` name.
        keep: Called with every graph value and its tensors, see :class:`TorchTracer`.
        derives: Whether the model asks autograd for derivatives.
        runs: Eager runs that were needed before.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        arguments: Arguments,
        symbols: Sequence[Symbol],
        worlds: Sequence[World],
        *,
        opset: int,
        output_names: Sequence[str] | None = None,
        unroll_limit: int = 128,
        scripting: Scripting | None = None,
        state: Sequence[str] = (),
        keep: Callable[[ir.Value, dict[int, torch.Tensor]], None] | None = None,
        derives: bool = False,
        runs: EagerRuns | None = None,
    ) -> None:
        self.model = model
        self.derives = derives
        self.runs = EagerRuns() if runs is None else runs
        self.arguments = arguments
        self.symbols = list(symbols)
        self.worlds = list(worlds)
        self.opset = opset
        self.output_names = output_names
        self.unroll_limit = unroll_limit
        self.scripting = scripting
        self.state = list(state)
        self.keep = keep
        self.modules = modules_of(model)
        self.named = named_tensors(self.modules)
        self.log: list[Call] = []

    def with_worlds(self, symbols: Sequence[Symbol], worlds: Sequence[World]) -> Attempt:
        """The same attempt in other worlds."""
        other = copy.copy(self)
        other.symbols, other.worlds, other.log = list(symbols), list(worlds), []
        return other

    def eager_error(self, symbols: Sequence[Symbol], sizes: Mapping[str, int]) -> Exception | None:
        """What eager raises for other sizes of some dims, None if it accepts them."""
        try:
            leaves = world_leaves(self.arguments.leaves, symbols, sizes)
            self.runs(self.model, self.arguments, leaves)
        except Exception as error:
            return error
        return None

    def finder(self) -> SourceFinder:
        """Finds the user's position below :func:`_run_model`."""
        paths = module_paths(self.modules)
        return SourceFinder(
            library=(LIBRARY,),
            module_call=torch.nn.Module._call_impl.__code__,
            module_path=lambda module: paths.get(id(module)),
            entry=_run_model.__code__,
            plumbing=_PLUMBING,
        )

    def eager_calls(self, leaves: Sequence[Any]) -> list[Call]:
        """The torch calls that eager code makes on some arguments."""
        log = EagerLog(self.finder())
        modules = self.modules.values()
        with isolation.isolated(modules), isolation.untouched(), isolation.exporting():
            _run_model(log, self.arguments, self.model, [clone(x) for x in leaves])
        return log.calls

    def run(self, *, log_world: int | None = None) -> TracedModel:
        """Trace; with ``log_world``, note every call's results in that world in :attr:`log`.

        Raises:
            ExportError: The model cannot be traced.
        """
        started = time.perf_counter()
        trace = Trace(len(self.worlds), opset=self.opset, finder=self.finder())
        trace.unroll_limit = self.unroll_limit
        trace.none_tests = NoneTests(trace)
        if self.scripting is not None:
            trace.compiled = self.scripting.compiled
            if self.scripting.automatic:
                trace.settled = self.scripting.settled
        tracer = TorchTracer(trace, self.named)
        tracer.keep = self.keep
        tracer.memo = self.runs.memo
        if log_world is not None:
            tracer.log_calls(log_world)
        handles, graph_inputs, positions = self._enter(tracer)
        try:
            with isolation.isolated(self.modules.values()) as drawn, isolation.exporting():
                try:
                    with trace:
                        model = written_down(tracer, self.model) if self.derives else self.model
                        result = _run_model(tracer, self.arguments, model, handles)
                        traced = self._leave(tracer, result, graph_inputs, positions)
                finally:
                    self.log = tracer.log
                    tracer.constants.restore()
            traced.drawn.extend(drawn)
            traced.state.update({n: self.named[n].detach().clone() for n in self.state})
        except Interrupt as interrupt:
            error = interrupt.error
            if interrupt.frame is not None:
                error.target = target_of(interrupt.frame)
                asks = interrupt.frame
                code = asks if isinstance(asks, types.CodeType) else asks.f_code
                error.optional = code if interrupt.optional else None
            raise error from interrupt.__cause__
        except NameError as error:
            name = (
                error.name or str(error).partition("'")[2].partition("'")[0]
            )  # locals have no .name
            way, source = trace.unbound.get(name, (None, None))
            if way is None:
                raise
            raise UnboundNameError(
                f"`{name}` is read, but only {way} binds it",
                source=source,
                hint=f"bind {name} before the statement, or on both ways",
            ) from error
        traced.seconds["trace"] = time.perf_counter() - started
        return traced

    def _enter(self, tracer: TorchTracer) -> tuple[list[Any], list[ir.Value], list[int]]:
        """Make a handle of every leaf; tell which of them became graph inputs."""
        trace = tracer.trace
        names_of_dims = {place: s.name for s in self.symbols for place in s.places}
        for symbol in self.symbols:
            sizes = tuple(w.sizes.get(symbol.name, symbol.size) for w in self.worlds)
            trace.name_size(sizes, symbol.name)
        handles: list[Any] = []
        graph_inputs: list[ir.Value] = []
        positions: list[int] = []
        for index, name in enumerate(self.arguments.names):
            leaves = {i: w.leaves[index] for i, w in enumerate(self.worlds)}
            first = leaves[0]
            if isinstance(first, torch.Tensor):
                value = ir.Value(name=trace.builder.unique_name(name))
                tensors = {w: clone(x) for w, x in leaves.items()}
                tracer.track(tensors, value)
                value.shape = ir.Shape(
                    [names_of_dims.get((index, axis), n) for axis, n in enumerate(first.shape)]
                    + [2] * first.is_complex()
                )
                handles.append(tensors[0])
            elif len({repr(x) for x in leaves.values()}) == 1:
                handles.append(first)  # a number that never varies is part of the program
                continue
            else:
                kind = type(first)
                value = ir.Value(
                    name=trace.builder.unique_name(name),
                    shape=ir.Shape([]),
                    type=ir.TensorType(_NUMBERS[kind]),
                )
                record = ScalarRecord(trace, leaves, data=True, scalar=value)
                handles.append(trace.number(record, kind))
            positions.append(index)
            graph_inputs.append(value)
        for name in self.state:
            value = ir.Value(name=trace.builder.unique_name(name))
            tracer.promote(self.named[name], value)
            graph_inputs.append(value)
        return handles, graph_inputs, positions

    def _leave(
        self, tracer: TorchTracer, result: Any, graph_inputs: list[ir.Value], inputs: list[int]
    ) -> TracedModel:
        """Turn the result into graph outputs, and everything into a model."""
        require_outputs(tracer.trace, result)
        leaves, tree = flatten(result, is_leaf)
        positions: list[int] = []
        values: list[ir.Value] = []
        concrete: list[list[Any]] = [[] for _ in self.worlds]
        constants: dict[int, Any] = {}
        for index, leaf in enumerate(leaves):
            if isinstance(leaf, torch.Tensor):
                value = tracer.graph(leaf)
                runs = {w: tracer.constants.kept(t) for w, t in tracer.worlds(leaf).items()}
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
            error = InputError(
                f"the model returns no tensor but {_described(result)}, so there is nothing to export",
                hint="return a tensor, or a nest of tensors",
            )
            if constants and not all(isinstance(x, str | None) for x in constants.values()):
                error.target = target_behind(self.model)  # numbers may be frozen sizes
            raise error
        name = getattr(self.model, "__name__", type(self.model).__name__)
        names = self._output_names(tree, positions)
        for buffer in self.state:
            values.append(tracer.graph(self.named[buffer]))
            names.append(f"{buffer}.out")
        complex_outputs = [i for i, x in enumerate(concrete[0]) if is_complex(x)]
        model = build_model(tracer.trace, graph_inputs, values, names, name=name)
        require_supported(model, tracer.unsupported)
        model.metadata_props["bridge.signature"] = json.dumps(
            {
                "inputs": self.arguments.tree.describe(),
                "input_leaves": inputs,
                "frozen": {
                    str(i): x
                    for i, x in enumerate(self.arguments.leaves)
                    if i not in inputs and isinstance(x, bool | int | float)
                },
                "outputs": tree.describe(),
                "output_leaves": positions,
                "constants": {str(k): v for k, v in constants.items()},
                "complex_outputs": complex_outputs,
                "gathering": self.arguments.gathering,
            }
        )
        return TracedModel(
            model=model,
            callable=self.model,
            arguments=self.arguments,
            inputs=inputs,
            output_tree=tree,
            outputs=positions,
            constants=constants,
            complex_outputs=complex_outputs,
            worlds=[
                dataclasses.replace(w, outputs=o)
                for w, o in zip(self.worlds, concrete, strict=True)
            ],
            symbols=self.symbols,
            assumptions=tracer.trace.assumptions,
            mutated=tracer.mutated(self.named),
            state={},
            random=bool(tracer.random),
            training=[
                name or type(child).__name__
                for module in self.modules.values()
                for name, child in module.named_modules()
                if child.training
            ],
            scripted=[],
            targets=[],
            seconds={},
            attempt=self,
        )

    def _output_names(self, tree: Tree, positions: Sequence[int]) -> list[str]:
        if isinstance(self.output_names, str):
            raise InputError(
                f"output_names is {self.output_names!r}; it is a list of names",
                hint=f"write output_names=[{self.output_names!r}]",
            )
        if self.output_names is not None:
            if len(self.output_names) != len(positions):
                raise InputError(
                    f"output_names has {len(self.output_names)} names; the model has "
                    f"{len(positions)} outputs"
                )
            names = list(self.output_names)
            taken = [n for n in names if names.count(n) > 1 or n in self.arguments.names]
            if taken:
                raise InputError(
                    f"output_names has {taken[0]!r}, which another output or an input is called",
                    hint="give every output a name of its own",
                )
            return names
        paths = list(tree.paths())
        names = []
        for index in positions:
            path = [str(p) for p in paths[index]]
            if not path or path[0].isdigit():
                path.insert(0, "output")
            names.append(".".join(path))
        return names


def _described(result: Any) -> str:
    name = type(result).__name__
    return "None" if result is None else f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _run_model(
    mode: Any, arguments: Arguments, model: Callable[..., Any], handles: Sequence[Any]
) -> Any:
    with mode:
        return arguments.call(model, handles)
