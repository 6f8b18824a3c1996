"""Calibration: which numbers the values inside a model take, from batches that come one at a time.

Nothing of a batch is kept but counts: memory does not grow with the number of batches. All methods
to choose a range read the same counts, so one sweep serves them all.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bridge.errors import BridgeError
from bridge.feeds import is_torch, to_numpy
from bridge.files import require_folder
from bridge.providers import resolve
from bridge.quantizing.histograms import METHODS, Histogram
from bridge.quantizing.memory import give_back
from bridge.runtime import Settings
from bridge.session import Session

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import onnx_ir as ir

    from bridge.program import Program

__all__ = ["METHODS", "Calibration", "CalibrationError", "Calibrator", "Histogram", "batches_of"]

Array = np.ndarray[Any, Any]
Feed = dict[str, Array]

_SAVED_EVERY = 32  # batches


class CalibrationError(BridgeError, ValueError):
    """Batches from which no ranges can be taken."""


@dataclasses.dataclass(slots=True)
class Channels:
    """What calibration saw of each channel of a value.

    Attributes:
        largest: The largest magnitude.
        sums: The sum.
        count: Numbers in each sum.
    """

    largest: Array
    sums: Array
    count: int

    @property
    def means(self) -> Array:
        """The mean of each channel."""
        return self.sums / max(1, self.count)

    def add(self, x: Array, axis: int) -> None:
        """Look at a batch's value."""
        flat = np.moveaxis(x, axis, -1).reshape(-1, x.shape[axis])
        self.largest = np.maximum(self.largest, np.abs(flat).max(0))
        self.sums = self.sums + flat.sum(0, dtype=np.float64)
        self.count += len(flat)


@dataclasses.dataclass(slots=True)
class Moments:
    """Sums of products of a value's columns.

    Attributes:
        products: ``sum(x x^T)`` over all rows, ``[K, K]``.
        rows: How many there were.
    """

    products: Array
    rows: int

    @property
    def mean(self) -> Array:
        """The mean of ``x x^T``."""
        return self.products / max(1, self.rows)

    def add(self, x: Array) -> None:
        """Look at a batch's value."""
        rows = x.reshape(-1, x.shape[-1])
        self.products += rows.T @ rows
        self.rows += len(rows)


@dataclasses.dataclass(slots=True)
class Calibration:
    """What calibration saw.

    Attributes:
        histograms: By value name.
        batches: How many batches were counted.
        skipped: How many were empty.
        channels: What is known of each channel, by value name.
        moments: The mean of ``x x^T`` over the last axis, by value name.
    """

    histograms: dict[str, Histogram]
    batches: int = 0
    skipped: int = 0
    channels: dict[str, Channels] = dataclasses.field(default_factory=dict)
    moments: dict[str, Moments] = dataclasses.field(default_factory=dict)

    def ranges(self, method: str = "mse") -> dict[str, tuple[float, float]]:
        """The range of each value.

        Args:
            method: ``minmax``, ``moving-average``, ``percentile``, ``entropy`` or ``mse``.

        Raises:
            CalibrationError: There is no such method.
        """
        if method not in METHODS:
            raise CalibrationError(
                f"no calibration method is called {method!r}",
                hint=f"there are {', '.join(METHODS)}",
            )
        return {name: h.range(method) for name, h in self.histograms.items() if h.batches}

    def save(self, path: str | os.PathLike[str], key: str = "") -> None:
        """Write it to an ``.npz`` file, to go on from there."""
        arrays = {
            f"{part}/{name}": array
            for name, histogram in self.histograms.items()
            for part, array in histogram.state().items()
        }
        for name, channels in self.channels.items():
            arrays[f"largest/{name}"], arrays[f"sums/{name}"] = channels.largest, channels.sums
            arrays[f"count/{name}"] = np.asarray(channels.count)
        for name, moments in self.moments.items():
            arrays[f"products/{name}"] = moments.products
            arrays[f"rows/{name}"] = np.asarray(moments.rows)
        target = Path(path)
        temporary = target.with_name(f".{target.name}.tmp")
        with temporary.open("wb") as file:
            numbers = {"batches": self.batches, "skipped": self.skipped}
            arrays |= {n: np.asarray(x) for n, x in numbers.items()} | {"key": np.asarray(key)}
            np.savez(file, **arrays)  # type: ignore[arg-type]
        temporary.replace(target)

    @classmethod
    def load(cls, path: str | os.PathLike[str], key: str | None = None) -> Calibration:
        """Read what :meth:`save` wrote.

        Raises:
            CalibrationError: The file is of another model, or is no calibration.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                _require_key(path, str(file["key"]), key)
                names = [n.partition("/")[2] for n in file.files if n.startswith("counts/")]
                histograms = {
                    n: Histogram.from_state(file[f"counts/{n}"], file[f"numbers/{n}"])
                    for n in names
                }
                found = cls(histograms, int(file["batches"]), int(file["skipped"]))
                for kind, _, n in (key.partition("/") for key in file.files):
                    if kind == "largest":
                        count = int(file[f"count/{n}"])
                        found.channels[n] = Channels(
                            file[f"largest/{n}"], file[f"sums/{n}"], count
                        )
                    elif kind == "products":
                        found.moments[n] = Moments(file[f"products/{n}"], int(file[f"rows/{n}"]))
                return found
        except CalibrationError:
            raise
        except (OSError, KeyError, EOFError, ValueError) as error:
            raise CalibrationError(f"{os.fspath(path)} is no calibration: {error}") from error


class Calibrator:
    """Runs a float model on batches and counts what its inner values are.

    Args:
        model: The model, whose weights ONNX Runtime reads where they are.
        names: The values to look at, inside subgraphs too.
        channels: Those of them whose channels are looked at too, with the channels' axis.
        moments: Those of them of which second moments are taken: ``[K, K]`` numbers each.
        resume: An ``.npz`` file where the state is kept: a calibration that was interrupted goes on
            where it stopped, if the batches come in the same order.
        progress: Called with the number of batches done.
        providers: Where to run.

    Raises:
        CalibrationError: ``resume`` is the file of another model.
    """

    def __init__(
        self,
        model: ir.Model,
        names: Iterable[str],
        *,
        channels: Mapping[str, int] | None = None,
        moments: Iterable[str] = (),
        resume: str | os.PathLike[str] | None = None,
        progress: Callable[[int], None] | None = None,
        providers: Any = "cpu",
    ) -> None:
        self.names = list(dict.fromkeys(names))
        self.channels = dict(channels or {})
        self.moments = frozenset(moments)
        self.resume = None if resume is None else Path(resume)
        if self.resume is not None:
            require_folder(self.resume)
        self.progress = progress or (lambda _: None)
        give_back(model)
        with observing(model, self.names) as renamed:
            self.outputs = renamed
            settings = Settings(resolve(providers), optimization="none", share_weights=True)
            self.session = Session(model, settings=settings)
        give_back(model)
        self.key = _fingerprint(model, self.names)
        self.found = Calibration({name: Histogram() for name in self.names})
        if self.resume is not None and self.resume.exists():
            self.found = Calibration.load(self.resume, self.key)

    def run(self, batches: Iterable[Any]) -> Calibration:
        """Count all batches.

        Args:
            batches: What :func:`batches_of` takes.

        Raises:
            CalibrationError: There is no batch, all are empty, or one holds NaN or infinity.
        """
        done = self.found.batches + self.found.skipped
        feeds = batches_of(batches, self.session)
        try:
            for number, feed in enumerate(itertools.islice(feeds, done, None), done):
                self._batch(number, feed)
                self.progress(number + 1)
                if self.resume is not None and (number + 1) % _SAVED_EVERY == 0:
                    self.found.save(self.resume, self.key)
        finally:
            if self.resume is not None:
                self.found.save(self.resume, self.key)
        if not self.found.batches:
            told = f"all {self.found.skipped} batches are empty" * bool(self.found.skipped)
            raise CalibrationError(
                told or "there is no calibration batch",
                hint="give an iterable of a few dozen typical inputs; a generator that was read "
                "before gives none",
            )
        return self.found

    def _batch(self, number: int, feed: Feed) -> None:
        if any(not x.size for x in feed.values()):
            self.found.skipped += 1
            return
        for name, x in feed.items():
            _require_finite(number, name, x)
        wanted = list(self.outputs.values())
        results = self.session.run(feed, outputs=wanted) if wanted else {}
        for name, output in self.outputs.items():
            x = results.pop(output)
            self.found.histograms[name].add(x)
            if x.size and x.ndim:
                self._details(name, x)
        self.found.batches += 1

    def _details(self, name: str, x: Array) -> None:
        if name in self.channels:
            axis = self.channels[name] % x.ndim
            nothing = np.zeros(x.shape[axis])
            known = self.found.channels.setdefault(name, Channels(nothing, nothing, 0))
            known.add(x, axis)
        if name in self.moments:
            size = x.shape[-1]
            if name not in self.found.moments:
                self.found.moments[name] = Moments(np.zeros((size, size), np.float32), 0)
            self.found.moments[name].add(x)


def _require_key(path: str | os.PathLike[str], found: str, key: str | None) -> None:
    if key is not None and found != key:
        raise CalibrationError(
            f"{os.fspath(path)} is the calibration of another model",
            hint="give another file, or remove this one to start again",
        )


def _require_finite(number: int, name: str, x: Array) -> None:
    if x.dtype.kind != "f" or np.isfinite(x).all():
        return
    place = tuple(int(i) for i in np.argwhere(~np.isfinite(x))[0])
    raise CalibrationError(
        f"calibration batch {number} holds {x[place]} in {name!r} at {list(place)}",
        hint="leave such batches out: no scale can stand for it",
    )


@contextlib.contextmanager
def observing(model: ir.Model, names: Sequence[str]) -> Iterator[dict[str, str]]:
    """The model while the named values are outputs too; yields each value's output name."""
    graph = model.graph
    before = len(graph.outputs)
    known = {v.name: v for v in graph.inputs}
    for node in graph:
        known.update((v.name, v) for v in node.outputs)
    taken = {v.name for v in graph.outputs}
    added = []
    for name in names:
        value = known.get(name)
        if value is None:
            raise CalibrationError(f"the model has no value {name!r} outside of subgraphs")
        if name not in taken:
            added.append(value)
            taken.add(name)
    graph.outputs.extend(added)
    try:
        yield {name: name for name in names}
    finally:
        while len(graph.outputs) > before:  # a slice that is deleted stays marked as outputs
            graph.outputs.pop()


def _fingerprint(model: ir.Model, names: Sequence[str]) -> str:
    """What tells models apart whose calibrations must not be mixed."""
    digest = hashlib.sha256()
    for node in model.graph.all_nodes():
        digest.update(f"{node.op_type} {[v.name if v else '' for v in node.inputs]}".encode())
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is not None:
            digest.update(f"{name} {tensor.dtype} {tensor.shape.numpy()}".encode())
            if tensor.nbytes <= 1 << 16:
                digest.update(tensor.tobytes())
    digest.update("\n".join(names).encode())
    return digest.hexdigest()


def batches_of(source: Any, target: Session | Program) -> Iterator[Feed]:
    """Batches as arrays by input name.

    Args:
        source: An iterable (a list, a generator, a DataLoader) of batches; a folder of ``.npz``
            or ``.npy`` files, in the order of their names; or one such file. A batch is a mapping
            by input name, a sequence of inputs in order (what follows them, such as labels, is
            left out), a single array or tensor, or what the eager model takes.
        target: Says what the inputs are.

    Raises:
        CalibrationError: A batch has too few inputs, or a folder no batches.
    """
    session = target if isinstance(target, Session) else target.session()
    for batch in _read(source):
        yield _feed(batch, session)


def stream_of(source: Any) -> Iterator[Any]:
    """The batches of an iterable as they come.

    Raises:
        CalibrationError: It is none.
    """
    # What has __getitem__ only, such as a Dataset, is iterable too.
    if not isinstance(source, Iterable) and not hasattr(source, "__getitem__"):
        raise CalibrationError(
            f"calibration is {source!r}, which holds no batches",
            hint="give a list or another iterable of them, or the path of a folder",
        )
    return iter(source)


def _read(source: Any) -> Iterator[Any]:
    if not isinstance(source, str | os.PathLike):
        yield from stream_of(source)
        return
    path = Path(source)
    files = (
        sorted(p for p in path.iterdir() if p.suffix in (".npz", ".npy"))
        if path.is_dir()
        else [path]
    )
    if not files:
        raise CalibrationError(f"the folder {path} holds no .npz or .npy file")
    for file in files:
        try:
            loaded = np.load(file, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise CalibrationError(f"cannot read arrays from {file}: {error}") from error
        if isinstance(loaded, np.ndarray):
            yield loaded
            continue
        with loaded:
            yield {name: loaded[name] for name in loaded.files}


def _feed(batch: Any, session: Session) -> Feed:
    names = session.input_names
    if isinstance(batch, Mapping):
        missing = [n for n in names if n not in batch]
        if missing:
            raise CalibrationError(
                f"a calibration batch lacks {', '.join(missing)}; it has {', '.join(map(str, batch))}",
            )
        return {n: _array(session, n, batch[n]) for n in names}
    if isinstance(batch, np.ndarray) or is_torch(batch):
        batch = [batch]
    if not isinstance(batch, Sequence):
        leaves = session.flatten([batch], {})
    elif len(batch) >= len(names):
        leaves = list(batch[: len(names)])
        if any(isinstance(x, Mapping | list | tuple) for x in leaves):
            leaves = session.flatten(list(batch), {})
    else:
        leaves = session.flatten(list(batch), {})
    return {n: _array(session, n, x) for n, x in zip(names, leaves, strict=True)}


def _array(session: Session, name: str, x: Any) -> Array:
    """The input as an array of the dtype that the model takes; float64 is Python's, not a choice."""
    array = to_numpy(x)
    spec = next(s for s in session.inputs if s.name == name)
    if spec.dtype is None:
        return array
    wanted = spec.dtype.numpy()
    if array.dtype == np.float64 and wanted == np.float32:
        return array.astype(wanted)
    return array
