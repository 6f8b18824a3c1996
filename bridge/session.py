"""A model on ONNX Runtime, taking and returning what eager code takes and returns."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from bridge.cache import cache_folder
from bridge.contracts import require_nodes
from bridge.control import Closed, RunControl
from bridge.decoding import BoundSession
from bridge.empty_batches import guarded, is_recurrent, may_become_empty
from bridge.errors import FeedError, ProviderError
from bridge.feeds import (
    OrtValue,
    TensorSpec,
    check_shapes,
    declared_values,
    host_array,
    host_value,
    is_torch,
    object_value,
    run_values,
    specs_of,
    to_numpy,
    to_torch,
    value_to_numpy,
)
from bridge.files import model_bytes
from bridge.graph_index import open_model
from bridge.parity.inputs import generate_runnable
from bridge.profiling import Placement, Profile, profile, unmeasured_placement
from bridge.providers import CUDA_PROVIDERS, resolve
from bridge.runtime import Optimization, Runtime, Settings
from bridge.signature import Signature, flatten_unsigned
from exporters.tracing.pytree import flatten

if TYPE_CHECKING:
    import onnxruntime

    from bridge.cuda_graphs import GraphBuckets
    from bridge.device import DeviceRuns
    from bridge.in_place import InPlaceSession
    from bridge.program import Program
    from bridge.providers import Contract

__all__ = ["Session", "Signature", "to_numpy"]


class Session:
    """Runs a model; call it with the eager arguments, or :meth:`run` with values by input name.

    Threads may share a session. Torch tensors and NumPy arrays are read where they lie, and
    results lie where ONNX Runtime wrote them; torch tensors come back if any were given.

    Args:
        model: A program, a model, its bytes, or the path of a file.
        providers: Execution providers in order of preference; see :mod:`bridge.providers`.
        threads: Threads within an operator; None for the cores that this process may use.
        optimization: How much ONNX Runtime rewrites the graph: ``none``, ``basic``, ``extended``
            or ``all``.
        config: Session config entries, as ONNX Runtime documents them.
        cuda_graphs: Whether to capture and replay CUDA graphs, one for each set of input shapes;
            a mapping of symbols to sizes rounds shapes up to these, see
            :class:`~bridge.cuda_graphs.GraphBuckets`.
        cache: Where ONNX Runtime's rewritten graphs are kept, so that the next session of the same
            model starts sooner: a folder, True for the user's cache folder, None for what
            ``BRIDGE_CACHE`` says; see :mod:`bridge.cache`.
        options: ONNX Runtime session options in place of ``threads``, ``optimization`` and
            ``config``.

    Attributes:
        inputs: The declared inputs.
        outputs: The declared outputs.
        signature: How inputs and outputs nest in eager code; None if the model does not say.
        settings: What the session was made with.
        measured: Seconds per run by provider, where the fastest was chosen.
        control: The runs that are under way.
        graph_refusal: Why ONNX Runtime would not capture CUDA graphs of this model, None if it
            would or was not asked to.

    Raises:
        ModelFileError: The file is missing, broken or hostile.
        ProviderError: A provider cannot be had as asked for.
        RunError: ONNX Runtime refuses the model.
    """

    def __init__(
        self,
        model: Program | ir.Model | bytes | str | os.PathLike[str],
        *,
        providers: Any = "cpu",
        threads: int | None = None,
        optimization: Optimization = "all",
        config: Mapping[str, str] | None = None,
        cuda_graphs: bool | Mapping[str, Sequence[int]] = False,
        cache: bool | str | os.PathLike[str] | None = None,
        options: onnxruntime.SessionOptions | None = None,
        settings: Settings | None = None,
    ) -> None:
        _require_buckets(cuda_graphs)
        self.settings = settings or Settings(
            _definite(resolve(providers)),
            threads=threads,
            optimization=optimization,
            config=config or {},
            cuda_graphs=bool(cuda_graphs),
            cache=cache_folder(cache),
        )
        self.source: ir.Model | bytes | str | os.PathLike[str] = _graph_of(model)
        self._made: Any = Runtime(self.source, self.settings, options)
        self._guards = is_recurrent(self._made.session) and may_become_empty(
            open_model(self.source)
        )
        if self._guards:
            self._made = Runtime(self.running_model(), self.settings, options)
        self.graph_refusal = self._made.graph_refusal
        self.runtime: Any = self._made.session
        self.inputs, self._overridable, self.outputs = declared_values(self.runtime)
        self.input_names = [i.name for i in self.inputs]
        self.output_names = [o.name for o in self.outputs]
        self._output_types = {o.name: o.dtype for o in self.outputs}
        self._names = frozenset(self.input_names)
        # Sequences, maps and strings have no values that could be made of memory.
        self._plain = all(s.dtype is not None for s in (*self.inputs, *self.outputs))
        replaced = self._overridable.values()
        self._odd_types = any(s.native is None for s in (*self.inputs, *replaced, *self.outputs))
        # An output that is an input comes back in the caller's memory, which the caller may free.
        self._passed_on = frozenset(self.input_names) & frozenset(self.output_names)
        self._on_device = any(n in CUDA_PROVIDERS for n in self.runtime.get_providers())
        self.captures_graphs = self._on_device and self._made.settings.cuda_graphs
        # what is not captured on purpose must not be captured in passing
        self.control = RunControl({"gpu_graph_id": "-1"} if self.captures_graphs else None)
        self._bucket_sizes = cuda_graphs if isinstance(cuda_graphs, Mapping) else None
        self._buckets: GraphBuckets | None = None
        self._device_runs: DeviceRuns | None = None
        self.measured: dict[str, float] = {}
        self._placement: Placement | None = None
        self._when_empty: Any = None
        # Shapes of a run before, which were right, and none of them empty.
        self._full: list[tuple[int, ...]] | None = None
        self._pool: concurrent.futures.ThreadPoolExecutor | None = None
        self._lock = threading.Lock()
        self.signature = _signature_of(model, self.runtime)
        require_nodes(self)

    @property
    def providers(self) -> list[str]:
        """The providers that the session runs on, by ONNX Runtime's names."""
        return list(self.runtime.get_providers())

    def with_settings(self, **changes: Any) -> Session:
        """A session of the same model with other :class:`~bridge.runtime.Settings`."""
        settings = dataclasses.replace(self.settings, **changes)
        other = Session(self.source, settings=settings)
        other.signature = self.signature
        return other

    def settings_for_parts(self) -> Settings:
        """Settings for running parts of the model as they are written, on the same providers."""
        return dataclasses.replace(
            self.settings,
            contract=dataclasses.replace(self.settings.contract, enforced=False),
            optimization="none",
            profile_prefix=None,
            optimized_path=None,
            cuda_graphs=False,
        )

    # Runs

    def run(
        self,
        feed: Mapping[str, Any],
        *,
        outputs: Sequence[str] | None = None,
        timeout: float | None = None,
        run_config: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        """Run on values by input name.

        Args:
            feed: A value for each input: torch tensor, NumPy array, number or list of numbers.
            outputs: Names of the outputs to compute; all unless given.
            timeout: Seconds after which the run is stopped.
            run_config: Run config entries, as ONNX Runtime documents them.

        Returns:
            Torch tensors if any were given, else NumPy arrays, by output name.

        Raises:
            FeedError: An input is missing, unknown, or of another dtype or shape than declared.
            RunTimeoutError: The run took longer than ``timeout``.
            RunCancelledError: :meth:`cancel` was called.
            RunError: ONNX Runtime failed.
        """
        names = self.output_names if outputs is None else self._chosen(outputs)
        results = self._results(feed, names, run_config, timeout)
        return dict(zip(names, results, strict=True))

    def _results(
        self,
        feed: Mapping[str, Any],
        names: list[str],
        run_config: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> list[Any]:
        """The outputs of a run, in the order of ``names``."""
        inputs = self.inputs
        if feed.__class__ is not dict or feed.keys() != self._names:
            inputs = specs_of(feed, inputs, self._overridable)
        with self.control.controlled(run_config, timeout) as options:
            if self._on_device and any(is_torch(x) and x.is_cuda for x in feed.values()):
                return self._run_tensors(inputs, feed, names, options)
            if self._plain:
                results = self._run_values(inputs, feed, names, options)
            else:
                objects = {s.name: object_value(s, feed[s.name]) for s in inputs}
                results = list(self.runtime.run(names, objects, options))
        if not any(map(is_torch, feed.values() if self._plain else flatten(feed, is_torch)[0])):
            return results
        if self._odd_types:
            return [to_torch(x) for x in results]
        import torch

        return list(map(torch.from_numpy, results))

    def _chosen(self, outputs: Any) -> list[str]:
        """Names of outputs.

        Raises:
            FeedError: There are none, or one that the model lacks.
        """
        names: list[Any] = [outputs] if isinstance(outputs, str | int) else list(outputs)
        unknown = [str(n) for n in names if n not in self._output_types]
        if unknown or not names:
            told = f"there is no output {unknown[0]!r}" if unknown else "no output is asked for"
            raise FeedError(f"{told}; the model's outputs are {', '.join(self.output_names)}")
        return names

    def _run_values(
        self,
        inputs: Sequence[TensorSpec],
        feed: Mapping[str, Any],
        names: list[str],
        options: onnxruntime.RunOptions,
    ) -> list[Any]:
        if self._odd_types:
            return self._run_odd(inputs, feed, names, options)
        arrays = {spec.name: host_array(spec, feed[spec.name]) for spec in inputs}
        runtime = self._runtime_for(inputs, arrays)
        # Given arrays, ONNX Runtime computes on their memory, and lends that of its results.
        results: list[Any] = runtime._sess.run(names, arrays, options)
        return self._owned(results, names)

    def _run_odd(
        self,
        inputs: Sequence[TensorSpec],
        feed: Mapping[str, Any],
        names: list[str],
        options: onnxruntime.RunOptions,
    ) -> list[Any]:
        """Run a model that takes or gives element types that NumPy lacks."""
        values: dict[str, OrtValue] = {}
        arrays: dict[str, Any] = {}  # keeps the memory that the values point to
        for spec in inputs:
            values[spec.name], arrays[spec.name] = host_value(spec, feed[spec.name])
        found = run_values(self._runtime_for(inputs, arrays), values, names, options)
        types = self._output_types
        return self._owned(
            [value_to_numpy(found[i], types[n]) for i, n in enumerate(names)], names
        )

    def _owned(self, results: list[Any], names: Sequence[str]) -> list[Any]:
        if self._passed_on:
            return [
                x.copy() if n in self._passed_on else x
                for n, x in zip(names, results, strict=True)
            ]
        return results

    def _runtime_for(
        self, inputs: Sequence[TensorSpec], arrays: Mapping[str, Any]
    ) -> onnxruntime.InferenceSession:
        """What runs on inputs of these shapes, which are checked."""
        shapes = [x.shape for x in arrays.values()]
        if shapes == self._full and inputs is self.inputs:
            return self.runtime
        check_shapes(inputs, arrays)
        if any(0 in shape for shape in shapes):
            return self._runtime_when_empty()
        if inputs is self.inputs:
            self._full = shapes
        return self.runtime

    def running_model(self) -> ir.Model:
        """The model that ONNX Runtime was given."""
        model = open_model(self.source)
        return (guarded(model) or model) if self._guards else model

    def _runtime_when_empty(self) -> onnxruntime.InferenceSession:
        """What runs on inputs of which some are empty; see :mod:`bridge.empty_batches`."""
        if self._when_empty is None:
            twin = guarded(open_model(self.source), refusing=True)
            settings = dataclasses.replace(self.settings, cache=None, optimized_path=None)
            self._when_empty = self._made if twin is None else Runtime(twin, settings)
        return self._when_empty.session

    def _run_tensors(
        self,
        inputs: list[TensorSpec],
        feed: Mapping[str, Any],
        names: list[str],
        options: onnxruntime.RunOptions,
    ) -> list[Any]:
        """Run on tensors on the device; results stay there."""
        from bridge import cuda_graphs, device

        found: list[Any]
        if inputs is not self.inputs:  # some are weights that the caller replaces
            runs = device.DeviceRuns(self.runtime, inputs, self.outputs, self.device)
            found = runs.run(feed, names, options)
            return found
        if self.captures_graphs and self._plain:
            if self._buckets is None:
                with self._lock:
                    sizes = self._bucket_sizes
                    self._buckets = cuda_graphs.GraphBuckets(self, self.device, sizes)
            specs = {s.name: s for s in self.outputs}
            found = self._buckets.run(feed, [specs[n] for n in names])
            return found
        if self._device_runs is None:
            runs = device.DeviceRuns(self.runtime, self.inputs, self.outputs, self.device)
            self._device_runs = runs
        found = self._device_runs.run(feed, names, options)
        return found

    @property
    def device(self) -> Any:
        """The torch device whose tensors the session takes and gives without host copies."""
        import torch

        if not self._on_device:
            return torch.device("cpu")
        provider = next(p for p in self.settings.contract.providers if p.name in CUDA_PROVIDERS)
        return torch.device("cuda", int(provider.options.get("device_id", 0)))

    def bind(
        self,
        state: Mapping[str, str],
        *,
        initial: Mapping[str, Any] | None = None,
        in_place: bool = False,
    ) -> BoundSession | InPlaceSession:
        """A decode loop: outputs that become inputs of the next run stay where they are.

        Args:
            state: The output that each state input takes its next value from:
                ``{"past.0.key": "present.0.key"}``.
            initial: The state before the first run, by input name.
            in_place: Whether outputs are written over the inputs: for state of fixed size.

        Raises:
            FeedError: There is no such input or output, or they do not fit each other.
        """
        if in_place:
            from bridge.in_place import InPlaceSession

            return InPlaceSession(self, state, initial)
        return BoundSession(self, state, initial)

    def cancel(self) -> int:
        """Stop every run that is under way, in whatever thread; returns how many there were."""
        return self.control.cancel()

    def run_async(
        self, feed: Mapping[str, Any], **options: Any
    ) -> concurrent.futures.Future[dict[str, Any]]:
        """:meth:`run` in another thread; ``asyncio.wrap_future`` makes the result awaitable."""
        with self._lock:
            if self._pool is None:
                self._pool = concurrent.futures.ThreadPoolExecutor(thread_name_prefix="bridge")
        return self._pool.submit(self.run, feed, **options)

    # Measuring

    def warmup(self, feed: Mapping[str, Any] | None = None, *, runs: int = 2) -> None:
        """Run a few times, so that later runs find memory allocated and kernels tuned.

        Args:
            feed: Inputs; made up from their declarations unless given.
            runs: How often.
        """
        feed = generate_runnable(self) if feed is None else feed
        for _ in range(runs):
            self.run(feed)

    def profile(self, feed: Mapping[str, Any] | None = None, *, runs: int = 10) -> Profile:
        """The time of each node, module, operator and provider, measured on a twin of the session.

        Args:
            feed: Inputs; made up from their declarations unless given.
            runs: How often the model is run.
        """
        feed = generate_runnable(self) if feed is None else feed
        found, self._placement = profile(self, feed, runs)
        return found

    @property
    def placement(self) -> Placement:
        """Nodes and time by provider, and copies between devices.

        Time is that of the latest :meth:`profile`, or of a run on made-up inputs if the model takes
        such.
        """
        if self._placement is None:
            try:
                self.profile(runs=1)
            except FeedError:
                self._placement = unmeasured_placement(self)
        assert self._placement is not None
        return self._placement

    def require_placement(self, *, copies_in_loops: int | None = None, **shares: float) -> None:
        """See that providers have their promised share of the nodes, as in ``cuda=0.99``.

        Raises:
            ProviderError: One has less, or a loop copies more often than allowed.
        """
        self.placement.require(copies_in_loops=copies_in_loops, **shares)

    def close(self) -> None:
        """Stop what runs and give the memory back; the session runs no more."""
        self.cancel()
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None
        self._device_runs = self._buckets = self._when_empty = None
        self._made = self.runtime = Closed()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Eager calls

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call with the eager arguments; returns the eager structure, of tensors if any came."""
        leaves = self.flatten(args, kwargs)
        feed = dict(zip(self.input_names, leaves, strict=True))
        results = self._results(feed, self.output_names)
        if self.signature is None:
            return results[0] if len(results) == 1 else tuple(results)
        return self.signature.restore(results)

    def flatten(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
        """The graph's inputs among eager arguments.

        Raises:
            FeedError: The arguments do not have the exported structure.
        """
        if self.signature is not None:
            return self.signature.flatten(args, kwargs)
        return flatten_unsigned(self.inputs, args, kwargs)

    def __reduce__(self) -> Any:
        """Pickled and copied as what it was made from; it starts anew where it is unpickled."""
        source = self.source
        if isinstance(source, ir.Model):
            source = model_bytes(source)
        return _started, (source, self.settings, self.signature)

    def __repr__(self) -> str:
        inputs = ", ".join(f"{s.name}: {s}" for s in self.inputs)
        outputs = ", ".join(f"{s.name}: {s}" for s in self.outputs)
        return f"Session({inputs} -> {outputs}, on {self.settings.contract})"


def _require_buckets(cuda_graphs: Any) -> None:
    """See that sizes of CUDA graphs can be read.

    Raises:
        FeedError: They cannot.
    """
    sizes = cuda_graphs.values() if isinstance(cuda_graphs, Mapping) else ()
    counted = all(
        isinstance(x, list | tuple) and all(isinstance(n, int) for n in x) for x in sizes
    )
    if not isinstance(cuda_graphs, bool | Mapping) or not counted:
        raise FeedError(
            f"cuda_graphs is {cuda_graphs!r}; it is True, False or sizes by symbol",
            hint='write cuda_graphs={"batch": [1, 8, 32]}',
        )


def _started(source: Any, settings: Settings, signature: Signature | None) -> Session:
    session = Session(source, settings=settings)
    session.signature = signature
    return session


def _graph_of(model: Any) -> ir.Model | bytes | str | os.PathLike[str]:
    """What ONNX Runtime is to run.

    Raises:
        FeedError: It is nothing that could be run.
    """
    graph = getattr(model, "model", model)
    if isinstance(graph, ir.Model | bytes | str | os.PathLike):
        return graph
    if hasattr(model, "SerializeToString"):
        data: bytes = model.SerializeToString()
        return data
    raise FeedError(
        f"a session needs an ONNX model, a program or a path, and was given a "
        f"{type(model).__name__}",
        hint="eager code is exported first: bridge.export(model, args).session()"
        if callable(model)
        else None,
    )


def _signature_of(model: Any, runtime: onnxruntime.InferenceSession) -> Signature | None:
    if hasattr(model, "signature"):
        signature: Signature = model.signature
        return signature
    text = runtime.get_modelmeta().custom_metadata_map.get("bridge.signature")
    if text is None:
        return None
    try:
        return Signature.from_metadata(text)
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):
        return None  # metadata is the file author's; a model without a signature runs as well


def _definite(contract: Contract) -> Contract:
    if contract.fastest:
        raise ProviderError(
            "only bridge.load chooses the fastest provider",
            hint='bridge.load(..., providers="fastest")',
        )
    return contract
