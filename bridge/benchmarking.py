"""``bridge bench``: how fast a model runs in its several forms, measured side by side."""

from __future__ import annotations

import copy
import dataclasses
import functools
import importlib
import math
import os
import platform
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime

from bridge.control import time_limit
from bridge.errors import BridgeError, FeedError
from bridge.feeds import to_numpy, to_torch
from bridge.optimizing import as_program, optimize
from bridge.parity.comparison import compare
from bridge.parity.inputs import generate_runnable
from bridge.providers import CUDA_PROVIDERS, resolve
from bridge.session import Session
from bridge.threads import default_threads
from exporters.errors import ExportError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = ["FORMS", "BenchmarkReport", "Row", "benchmark"]

FORMS = ("eager", "compile", "float", "optimized", "int8-dynamic")
_ROUND = 0.1  # seconds that one form runs in one round
_MOST_CALLS = 200  # in one round
_LONGEST = 600.0  # seconds of a run


@dataclasses.dataclass(slots=True)
class Row:
    """One form of a model on one provider.

    Attributes:
        form: ``eager``, ``compile`` (``torch.compile``), ``float`` (the exported graph),
            ``optimized`` (by ``bridge.optimize``), or a recipe of ``bridge.quantize``.
        provider: The providers that were asked for; the device for what runs on torch.
        load: Seconds until the first result: making the session or compiling, and one run.
        memory: Bytes that the process grew by meanwhile, on the device too.
        times: Seconds of every measured run.
        items: How many rows a run computes: the size of the first input's first dim.
        off: The largest difference from the first form's results, relative to the largest value.
        error: Why it could not be measured.
    """

    form: str
    provider: str
    load: float = math.nan
    memory: int = 0
    times: list[float] = dataclasses.field(default_factory=list)
    items: int = 1
    off: float = math.nan
    error: str | None = None

    @property
    def median(self) -> float:
        """Seconds per run, in the median."""
        return float(np.median(self.times)) if self.times else math.nan

    @property
    def p95(self) -> float:
        """Seconds that 95 % of the runs stay below."""
        return float(np.percentile(self.times, 95)) if self.times else math.nan

    @property
    def throughput(self) -> float:
        """Items per second."""
        return self.items / self.median if self.times else math.nan

    def to_dict(self) -> dict[str, Any]:
        """The row as plain data."""
        data = dataclasses.asdict(self)
        data |= {"median": self.median, "p95": self.p95, "throughput": self.throughput}
        data["runs"] = len(data.pop("times"))
        return data


@dataclasses.dataclass(slots=True)
class BenchmarkReport:
    """What was measured.

    Attributes:
        rows: One for each form on each provider.
        inputs: What the model was run on.
        setting: Versions and the machine.
    """

    rows: list[Row]
    inputs: dict[str, str]
    setting: dict[str, str]

    @property
    def failed(self) -> list[Row]:
        """The forms that could not be measured."""
        return [r for r in self.rows if r.error is not None]

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data."""
        return {
            "inputs": self.inputs,
            "setting": self.setting,
            "rows": [r.to_dict() for r in self.rows],
        }

    def to_junit(self) -> str:
        """The report as JUnit's XML: a form that could not be measured has failed."""
        from bridge.parity.report import junit

        return junit("bridge bench", [(f"{r.form} on {r.provider}", r.error) for r in self.rows])

    def __str__(self) -> str:
        """A Markdown table."""
        base = next((r.median for r in self.rows if r.times), math.nan)
        lines = [", ".join(f"{k} {v}" for k, v in self.setting.items())]
        lines.append("inputs: " + ", ".join(f"{k} {v}" for k, v in self.inputs.items()) + "\n")
        lines.append(
            "| form | on | median ms | p95 ms | items/s | times faster | first result s | MiB | off |"
        )
        lines.append("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
        for row in self.rows:
            if row.error is not None:
                first = row.error.split("\n")[0]
                lines.append(f"| {row.form} | {row.provider} | {first} | | | | | | |")
                continue
            lines.append(
                f"| {row.form} | {row.provider} | {1e3 * row.median:.3f} | {1e3 * row.p95:.3f} | "
                f"{row.throughput:.1f} | {base / row.median:.2f} | {row.load:.2f} | "
                f"{row.memory / 2**20:.0f} | {row.off:.1g} |"
            )
        return "\n".join(lines)


def benchmark(
    model: Any,
    args: Any = (),
    *,
    kwargs: Mapping[str, Any] | None = None,
    feed: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    forms: Sequence[str] = FORMS,
    providers: Sequence[str] = ("cpu",),
    rounds: int = 10,
    threads: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> BenchmarkReport:
    """Run the forms of a model in turn, round by round, so that a slow moment hits all alike.

    Args:
        model: An eager model; or a program, a model or the path of a file, of which there are no
            forms ``eager`` and ``compile``.
        args: Positional arguments of an eager model.
        kwargs: Its keyword arguments.
        feed: A value for each input by name, for what is not eager; made up unless given.
        dynamic_shapes: As for :func:`bridge.export`.
        forms: What to measure; see :class:`Row`.
        providers: Requests for providers, as for :func:`bridge.load`.
        rounds: How many rounds; a form runs about 0.1 s in each.
        threads: Threads within an operator, of torch and of ONNX Runtime.
        progress: Called with a line of text at the start of each phase.

    Returns:
        The report. A form that cannot be had is a row with an error, not raised.
    """
    tell = progress or (lambda _: None)
    subject = _Subject(model, args, kwargs or {}, feed, dynamic_shapes, threads, tell)
    calls: list[tuple[Row, Callable[[], Any]]] = []
    report = BenchmarkReport([], subject.described(), _setting(threads))
    expected: list[Any] | None = None
    for provider in providers:
        for form in forms:
            row = Row(form, provider, items=subject.items)
            report.rows.append(row)
            tell(f"making {form} on {provider}")
            try:
                call, results = _started(row, functools.partial(subject.make, form, provider))
            except (BridgeError, ExportError) as error:
                row.error = error.message
            except Exception as error:  # torch.compile fails in its own ways
                row.error = f"{type(error).__name__}: {error}"
            else:
                calls.append((row, call))
                expected = expected or results
                row.off = _off(expected, results)
    for number in range(rounds):
        tell(f"round {number + 1} of {rounds}")
        for row, call in calls:
            _measure(row, call)
    subject.restore_threads()
    return report


class _Subject:
    """A model that its forms are made of."""

    def __init__(
        self,
        model: Any,
        args: Any,
        kwargs: Mapping[str, Any],
        feed: Mapping[str, Any] | None,
        dynamic_shapes: Any,
        threads: int | None,
        tell: Callable[[str], None],
    ) -> None:
        from bridge.parity.sides import is_eager

        self.eager = model if is_eager(model) else None
        self.args = args if isinstance(args, tuple | list) else (args,)
        self.kwargs = dict(kwargs)
        self.threads = threads
        if self.eager is not None:
            from bridge.exporting import export

            tell("exporting")
            self.program = export(
                model, args, kwargs=kwargs, dynamic_shapes=dynamic_shapes, verify=False
            )
        else:
            self.program = as_program(model)
        session = self.program.session()
        if self.eager is not None:
            leaves = session.flatten(self.args, self.kwargs)
            feed = dict(zip(session.input_names, leaves, strict=True))
        self.feed = dict(generate_runnable(session) if feed is None else feed)
        shapes = [np.shape(to_numpy(x)) for x in self.feed.values()]
        self.items = next((s[0] for s in shapes if s), 1)
        self._models: dict[str, Any] = {"float": self.program}
        self._torch_threads: int | None = None

    def described(self) -> dict[str, str]:
        """The inputs as ``float32[2, 3]``."""
        found = {}
        for name, x in self.feed.items():
            array = to_numpy(x)
            found[name] = f"{array.dtype}{list(array.shape)}"
        return found

    def restore_threads(self) -> None:
        """Give torch the threads back that it had."""
        if self._torch_threads is not None:
            sys.modules["torch"].set_num_threads(self._torch_threads)

    def make(self, form: str, provider: str) -> Callable[[], Any]:
        """A call that runs a form on a provider.

        Raises:
            FeedError: There is no such form of this model.
        """
        on_cuda = any(p.name in CUDA_PROVIDERS for p in resolve(provider).providers)
        if form in ("eager", "compile"):
            if self.eager is None:
                raise FeedError(f"an ONNX model has no form {form!r}")
            return self._torch(form, "cuda" if on_cuda else "cpu")
        session = Session(self._model(form, provider), providers=provider, threads=self.threads)
        feed = self.feed
        if on_cuda:
            feed = {n: to_torch(to_numpy(x)).cuda() for n, x in feed.items()}
        return lambda: session.run(feed)

    def _model(self, form: str, provider: str) -> Any:
        if form == "float":
            return self.program
        if form == "optimized":
            target = "cuda" if "cuda" in provider else "cpu"
            if (form + target) not in self._models:
                self._models[form + target] = optimize(self.program, target=target, verify=False)
            return self._models[form + target]
        if form not in self._models:
            quantize = getattr(importlib.import_module("bridge"), "quantize", None)
            if quantize is None:
                raise FeedError(f"this build of bridge cannot make the form {form!r}")
            calibration = [{n: to_numpy(x) for n, x in self.feed.items()}]
            needs = {"calibration": calibration} if "static" in form else {}
            self._models[form] = quantize(self.program, form, **needs)
        return self._models[form]

    def _torch(self, form: str, device: str) -> Callable[[], Any]:
        import torch
        from torch.utils._pytree import tree_map_only

        model: Any = self.eager
        if isinstance(model, torch.nn.Module) and device != "cpu":
            model = copy.deepcopy(model).to(device)
        args, kwargs = tree_map_only(
            torch.Tensor, lambda x: x.to(device), (tuple(self.args), self.kwargs)
        )
        if form == "compile":
            model = torch.compile(model)
        if self.threads is not None and self._torch_threads is None:
            self._torch_threads = torch.get_num_threads()
            torch.set_num_threads(self.threads)

        def call() -> Any:
            with torch.inference_mode():
                result = model(*args, **kwargs)
            if device != "cpu":
                torch.cuda.synchronize()
            return result

        return call


def _started(
    row: Row, make: Callable[[], Callable[[], Any]]
) -> tuple[Callable[[], Any], list[Any]]:
    """Make a form and run it once; note what that takes."""
    before, started = _memory(), time.perf_counter()
    call = make()
    with time_limit(_LONGEST):
        results = _leaves(call())
    row.load = time.perf_counter() - started
    row.memory = max(0, _memory() - before)
    call()
    return call, results


def _measure(row: Row, call: Callable[[], Any]) -> None:
    stop = time.perf_counter() + _ROUND
    call()
    for _ in range(_MOST_CALLS):
        started = time.perf_counter()
        call()
        now = time.perf_counter()
        row.times.append(now - started)
        if now > stop:
            break


def _memory() -> int:
    """Bytes that this process holds, on the device too."""
    try:
        held = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):
        return 0
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        held += total - free
    return held


def _leaves(result: Any) -> list[Any]:
    from exporters.pytorch.inputs import is_leaf
    from exporters.tracing.pytree import flatten

    values = list(result.values()) if type(result) is dict else result
    return [to_numpy(x) for x in flatten(values, is_leaf)[0] if hasattr(x, "shape")]


def _off(expected: Sequence[Any], got: Sequence[Any]) -> float:
    """The largest difference, relative to the largest value; NaN where shapes differ."""
    worst = 0.0
    for a, b in zip(expected, got, strict=False):
        row = compare("", a, b)
        if row.problem is not None:
            return math.nan
        finite = np.abs(a[np.isfinite(a)].astype(np.float64)) if a.dtype.kind == "f" else ()
        worst = max(worst, row.max_abs / max(float(np.max(finite, initial=0.0)), 1e-30))
    return worst


def _setting(threads: int | None) -> dict[str, str]:
    torch = sys.modules.get("torch")
    return {
        "torch": "is not used" if torch is None else torch.__version__,
        "onnxruntime": onnxruntime.__version__,
        "processor": _processor() or platform.machine(),
        "threads": str(threads or default_threads()),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), "")
