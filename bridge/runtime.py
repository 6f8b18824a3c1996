"""ONNX Runtime sessions made of files, bytes and models in memory, with settings that fit here."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import onnx_ir as ir
import onnxruntime

from bridge.cache import WEIGHTS, ModelCache
from bridge.errors import BridgeError, FeedError, ModelFileError, ProviderError, RunError
from bridge.files import load_model, proto_without, save_model
from bridge.providers import CPU, CUDA_PROVIDERS, is_plugin
from bridge.threads import default_threads, quota_is_tight
from bridge.untrusted import check_bytes, check_path
from optim_passes.precision.wide import is_bfloat16, widened

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bridge.providers import Contract

__all__ = ["Optimization", "Runtime", "Settings"]

Optimization = Literal["none", "basic", "extended", "all"]
_LEVELS = {
    "none": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
_DEVICE_FAILURE = re.compile(r"(?:CUDA|CUDNN) failure \d+: [^;]*|cuda_call\.cc|cudaSetDevice")
_HANDED_OVER = 1024  # bytes from which a weight is handed over in memory instead of serialised
_MOST_THREADS = 4096
_PROTOBUF_LIMIT = 2**31 - 1
# A rewritten graph's weights go to a file of their own: protobuf ends at 2 GB.
_APART = {
    "session.optimized_model_external_initializers_file_name": WEIGHTS,
    "session.optimized_model_external_initializers_min_size_in_bytes": "1024",
}
# Merges a Transpose that is no swap of the last two axes into a float16 product on the CPU, and the
# next optimizer then crashes the process (version 1.32).
_UNSAFE_FOR_HALVES = "MatmulTransposeFusion"
# What ONNX Runtime says of files that no version of it could run, and of those of newer versions.
_UNREADABLE = ("UnicodeDecodeError",)
_UNSOUND = (
    "nvalid model",
    "Duplicate definition",
    "IR version",
    "Missing opset in the model",
    "onnx opset version",
    "TypeInferenceError",
    "ShapeInferenceError",
)
_FATAL_ONLY = 4  # ONNX Runtime's log level: what is an error is raised as one

if hasattr(onnxruntime, "disable_telemetry_events"):
    onnxruntime.disable_telemetry_events()


@dataclasses.dataclass(frozen=True, slots=True)
class Settings:
    """What a session is made with, apart from its model.

    Attributes:
        contract: The providers.
        threads: Threads within an operator; None for the cores this process may use.
        optimization: How much ONNX Runtime rewrites the graph.
        config: Session config entries, as ONNX Runtime documents them.
        disabled_optimizers: ONNX Runtime's graph transformers to leave out, by name.
        share_weights: Whether weights of a model in memory stay where they are, instead of being
            packed for the kernels. Only with ``optimization="none"``: ONNX Runtime's transposing
            optimizers would rewrite weights that are not its own.
        cuda_graphs: Whether the CUDA provider captures graphs.
        profile_prefix: Where to write a profile, None for no profiling.
        optimized_path: Where to write the graph that ONNX Runtime really runs.
        log_level: 0 (everything) to 4 (fatal errors).
        cache: Where rewritten graphs are kept, see :mod:`bridge.cache`; None for nowhere.
    """

    contract: Contract
    threads: int | None = None
    optimization: Optimization = "all"
    config: Mapping[str, str] = dataclasses.field(default_factory=dict)
    disabled_optimizers: tuple[str, ...] = ()
    share_weights: bool = False
    cuda_graphs: bool = False
    profile_prefix: str | None = None
    optimized_path: str | None = None
    log_level: int = _FATAL_ONLY
    cache: Path | None = None

    def __post_init__(self) -> None:
        if self.optimization not in _LEVELS:
            raise FeedError(
                f"optimization is {self.optimization!r}; it is one of {', '.join(_LEVELS)}"
            )
        threads = 0 if self.threads is None else self.threads
        if not isinstance(threads, int) or threads is True or not 0 <= threads <= _MOST_THREADS:
            raise FeedError(
                f"threads is {self.threads!r}; it is a number of threads, or None for the cores that "
                "this process may use"
            )
        known = self.config if isinstance(self.config, Mapping) else {self.config: None}
        for key, value in known.items():
            if not isinstance(key, str) or not isinstance(value, str | int | float):
                raise FeedError(
                    f"config has {key!r}: {value!r}; it is a mapping of names to values",
                    hint='write config={"session.set_denormal_as_zero": "1"}',
                )

    @property
    def cached(self) -> bool:
        """Whether a rewritten graph may take the place of the model."""
        special = self.profile_prefix or self.optimized_path or self.share_weights
        return self.cache is not None and self.optimization != "none" and not special

    def options(self) -> onnxruntime.SessionOptions:
        """As ONNX Runtime takes them."""
        options = onnxruntime.SessionOptions()
        # Given a number, ONNX Runtime pins no thread to a core, which containers often forbid.
        options.intra_op_num_threads = self.threads or default_threads()
        options.log_severity_level = self.log_level
        options.graph_optimization_level = _LEVELS[self.optimization]
        entries = {"session.record_ep_graph_assignment_info": "1"}
        if quota_is_tight():
            entries["session.intra_op.allow_spinning"] = "0"  # it would eat the quota
        if self.share_weights:
            entries["session.disable_prepacking"] = "1"
        if self.optimized_path is not None:
            entries |= _APART  # or weights stay in files that nobody finds from there
        for key, value in {**entries, **self.config}.items():
            told = str(int(value)) if isinstance(value, bool) else str(value)
            options.add_session_config_entry(key, told)
        if self.profile_prefix is not None:
            options.enable_profiling = True
            options.profile_file_prefix = self.profile_prefix
        if self.optimized_path is not None:
            options.optimized_model_filepath = self.optimized_path
        return options


class Runtime:
    """An ``onnxruntime.InferenceSession`` and what must live as long as it.

    Args:
        model: A model in memory, its bytes, or the path of a file.
        settings: How to run it.
        options: ONNX Runtime session options that take the place of those in ``settings``.

    Raises:
        ModelFileError: A file is missing, broken or hostile.
        ProviderError: A provider is absent, failed to start, or refused to share with the CPU.
        RunError: ONNX Runtime refuses the model.
    """

    def __init__(
        self,
        model: ir.Model | bytes | str | os.PathLike[str],
        settings: Settings,
        options: onnxruntime.SessionOptions | None = None,
    ) -> None:
        if isinstance(model, ir.Model) and _multiplies_halves(model):
            without = (*settings.disabled_optimizers, _UNSAFE_FOR_HALVES)
            settings = dataclasses.replace(settings, disabled_optimizers=without)
        self.settings = settings
        contract = settings.contract
        contract.require_available()
        self._held: list[Any] = []
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        _preload_libraries(contract)
        self.graph_refusal: str | None = None
        self._own_options = options is None
        with contextlib.ExitStack() as self._until_started:
            if options is None and settings.cached:
                self.session = self._start_cached(model)
            else:
                self.session = self._start(model, options or settings.options())
        if not settings.share_weights:
            self._held.clear()  # ONNX Runtime keeps copies of its own, laid out for its kernels
        contract.require_active(self.session.get_providers())

    def _start(
        self, model: Any, options: onnxruntime.SessionOptions
    ) -> onnxruntime.InferenceSession:
        source = self._source(model, options)
        try:
            return self._open(source, options)
        except Exception as error:
            wide = self._widened(model, error)
            if wide is not None:
                # Options that hold a model's weights take no other's.
                return self._start(wide, self.settings.options() if self._own_options else options)
            if not self.settings.cuda_graphs or "graph" not in str(error).lower():
                raise _refusal(error, self.settings.contract) from error
            self.graph_refusal = str(error)
            self.settings = dataclasses.replace(self.settings, cuda_graphs=False)
            return self._open(source, options)

    def _widened(self, model: Any, error: Exception) -> ir.Model | None:
        """The model in float32, if it failed because the CPU has no kernels for bfloat16."""
        cpu_alone = all(p.name == CPU for p in self.settings.contract.providers)
        if type(error).__name__ != "NotImplemented" or not cpu_alone or isinstance(model, bytes):
            return None
        graph = model if isinstance(model, ir.Model) else load_model(model)
        return widened(graph) if is_bfloat16(graph) else None

    def _start_cached(self, model: Any) -> onnxruntime.InferenceSession:
        """A session of the graph that the cache has; of the model, whose graph is then kept."""
        assert self.settings.cache is not None
        cache = ModelCache(self.settings.cache)
        key = cache.key(model, self.settings)
        found = cache.find(key)
        if found is not None:
            rewritten = dataclasses.replace(self.settings, optimization="none")
            try:
                return self._start(found, rewritten.options())
            except BridgeError as error:
                cache.drop(key, str(error))
        with cache.place(key) as path:
            if path is None:
                return self._start(model, self.settings.options())
            kept = dataclasses.replace(self.settings, optimized_path=str(path))
            try:
                return self._start(model, kept.options())
            except BridgeError as error:
                path.unlink(missing_ok=True)
                session = self._start(model, self.settings.options())
                cache.refuse(error.message)  # the disk is full, or the provider compiles
                return session

    def _open(
        self, source: str | bytes, options: onnxruntime.SessionOptions
    ) -> onnxruntime.InferenceSession:
        contract = self.settings.contract
        if self.settings.cuda_graphs:
            contract = contract.with_option(CUDA_PROVIDERS, "enable_cuda_graph", "1")
        providers: Any = [(p.name, dict(p.options)) for p in contract.providers]
        if any(is_plugin(p.name) for p in contract.providers):
            _add_by_devices(options, contract)
            providers = None
        return onnxruntime.InferenceSession(
            source,
            options,
            providers=providers,
            enable_fallback=0,  # or ONNX Runtime prints a line and runs on the CPU
            disabled_optimizers=set(self.settings.disabled_optimizers),
        )

    def _source(self, model: Any, options: onnxruntime.SessionOptions) -> str | bytes:
        if isinstance(model, bytes):
            check_bytes(model)
            return model
        if isinstance(model, ir.Model):
            return self._hand_over(model, options)
        check_path(model)
        return os.fspath(model)

    def _hand_over(self, model: ir.Model, options: onnxruntime.SessionOptions) -> str | bytes:
        """The model's bytes; its large weights go to ONNX Runtime from where they are."""
        names: list[str] = []
        values: list[onnxruntime.OrtValue] = []
        unused: list[str] = []
        rest = 0
        for name, value in model.graph.initializers.items():
            tensor = value.const_value
            if tensor is None:
                continue
            if not value.uses() and not value.is_graph_output():
                unused.append(name)  # ONNX Runtime drops these before it looks for their data
                continue
            if tensor.nbytes < _HANDED_OVER or not _has_plain_bytes(tensor.dtype):
                rest += tensor.nbytes
                continue
            names.append(name)
            values.append(_ort_value(tensor, self._held))
        if rest > _PROTOBUF_LIMIT // 2:
            return self._write_down(model)
        if names and self.settings.share_weights:
            return self._share(model, options, dict(zip(names, values, strict=True)), unused)
        if names:
            options.add_external_initializers(names, values)
        return proto_without(model, names, unused)

    def _share(
        self,
        model: ir.Model,
        options: onnxruntime.SessionOptions,
        values: dict[str, onnxruntime.OrtValue],
        unused: Sequence[str],
    ) -> str:
        """The path of a model that reads its weights where they are; ONNX Runtime copies none.

        It wants to know of a file that they could be read from. That is one full of holes: nobody
        reads it, and it takes no place on a disk.
        """
        for name, value in values.items():
            options.add_initializer(name, value)
        # What is made of weights is made when it is needed, and not all at once.
        options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
        self._held += values.values()
        made = tempfile.TemporaryDirectory(prefix="bridge-")
        folder = Path(self._until_started.enter_context(made))
        with (folder / "weights").open("wb") as file:
            file.truncate(max(array.nbytes for array in self._held[: len(values)]))
        proto = proto_without(model, list(values), unused, location="weights")
        (folder / "model.onnx").write_bytes(proto)
        return str(folder / "model.onnx")

    def _write_down(self, model: ir.Model) -> str:
        """The path of a temporary file, for what neither memory nor one message can carry."""
        self._folder = tempfile.TemporaryDirectory(prefix="bridge-")
        path = Path(self._folder.name) / "model.onnx"
        save_model(model, path, external_data=True)
        return str(path)


def _multiplies_halves(model: ir.Model) -> bool:
    """Whether there are products of float16."""
    half = ir.DataType.FLOAT16
    return any(
        n.op_type == "MatMul" and any(v is not None and v.dtype == half for v in n.inputs)
        for n in model.graph.all_nodes()
    )


def _add_by_devices(options: onnxruntime.SessionOptions, contract: Contract) -> None:
    """Ask for providers of which some are plugins, which ONNX Runtime knows by their devices."""
    for provider in contract.providers:
        if is_plugin(provider.name):
            devices = [d for d in onnxruntime.get_ep_devices() if d.ep_name == provider.name]
            options.add_provider_for_devices(devices, dict(provider.options))
        elif provider.name != CPU:  # which ONNX Runtime adds by itself
            options.add_provider(provider.name, dict(provider.options))


def _has_plain_bytes(dtype: ir.DataType) -> bool:
    return dtype != ir.DataType.STRING and dtype.itemsize >= 1


def _ort_value(tensor: ir.TensorProtocol, held: list[Any]) -> onnxruntime.OrtValue:
    try:
        array = np.ascontiguousarray(tensor.numpy())
    except (ValueError, TypeError, OSError) as error:
        raise ModelFileError(f"weight {tensor.name!r} cannot be read: {error}") from error
    if array.dtype.isbuiltin != 1:  # bfloat16, float8: NumPy needs another name for the same bits
        array = array.view(f"u{array.dtype.itemsize}")
    held.append(array)
    return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(array, int(tensor.dtype))


def _preload_libraries(contract: Contract) -> None:
    """Let CUDA's libraries be found where pip put them."""
    if any(p.name in CUDA_PROVIDERS for p in contract.providers) and hasattr(
        onnxruntime, "preload_dlls"
    ):
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find
            onnxruntime.preload_dlls()


def _refusal(error: Exception, contract: Contract) -> Exception:
    """What ONNX Runtime's complaint about a model means."""
    text = str(error).removeprefix("[ONNXRuntimeError] : ")
    kind = type(error).__name__
    if "fallback to CPU EP has been explicitly disabled" in text:
        return ProviderError(f"not every node can run on {contract}: {text}")
    if "install TensorRT libraries" in text:
        from bridge.doctor import why_inactive

        reason, remedy = why_inactive("TensorrtExecutionProvider")
        return ProviderError(f"provider 'tensorrt' did not start: {reason}", hint=remedy)
    failed = _DEVICE_FAILURE.search(text)
    if failed is not None:
        label = next((p.label for p in contract.providers if p.name in CUDA_PROVIDERS), "cuda")
        reason = failed[0] if "failure" in failed[0] else text
        return ProviderError(
            f"provider {label!r} did not start: {reason.strip()}",
            hint="check `nvidia-smi` and `bridge doctor`",
        )
    if kind in ("InvalidProtobuf", "NoSuchFile", "InvalidGraph", "NoModel", *_UNREADABLE) or any(
        sign in text for sign in _UNSOUND
    ):
        newer = "onnx opset version" in text or "IR version" in text
        return ModelFileError(
            f"ONNX Runtime cannot load the model: {text}",
            hint="export it with an older opset, or install a newer onnxruntime"
            if newer
            else None,
        )
    return RunError(f"ONNX Runtime refused the model: {text}")
