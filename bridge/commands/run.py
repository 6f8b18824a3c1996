"""Run a model on ONNX Runtime."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import statistics
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from bridge.commands.examples import add_export_options, example_of, export_target, feed_of
from bridge.commands.inputs import add_input_options
from bridge.commands.sessions import add_session_options, open_session
from bridge.commands.targets import add_target_options, find_target, is_eager_name
from bridge.commands.terminal import PASSED, add_report_options
from bridge.errors import ModelFileError, RunTimeoutError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from bridge.commands.terminal import Terminal
    from bridge.session import Session

_TIMEOUT = 600.0  # seconds

EXAMPLES = """  bridge run model.onnx --size batch=4
  bridge run model.onnx --inputs x.npz --outputs y.npz --providers cuda,cpu
  bridge run model.onnx --input "ids=int64[1,12]<30000" --repeat 100 --profile
"""


@dataclasses.dataclass(frozen=True, slots=True)
class RunReport:
    """What came of a run.

    Attributes:
        providers: Where it ran.
        seconds: Of each run.
        outputs: Name, dtype, shape, and least, mean and largest value of each output.
        profile: Where the time went, if that was asked for.
        placement: What ran where, if that was asked for.
    """

    providers: list[str]
    seconds: list[float]
    outputs: list[dict[str, Any]]
    profile: Any = None
    placement: Any = None

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data."""
        return {
            "providers": self.providers,
            "seconds": self.seconds,
            "outputs": self.outputs,
            "profile": None if self.profile is None else dataclasses.asdict(self.profile),
        }

    def __str__(self) -> str:
        middle = 1e3 * statistics.median(self.seconds)
        lines = [f"ran {len(self.seconds)} times on {', '.join(self.providers)}: {middle:.3f} ms"]
        for row in self.outputs:
            text = f"{row['name']}: {row['dtype']}{row['shape']}"
            if row["mean"] is not None:
                text += f" from {row['min']:.6g} to {row['max']:.6g}, mean {row['mean']:.6g}"
            lines.append(text + (f", {row['nonfinite']} not finite" if row["nonfinite"] else ""))
        lines += [str(x) for x in (self.placement, self.profile) if x is not None]
        return "\n".join(lines)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What ``bridge run`` takes."""
    parser.add_argument("model", help="a .onnx file, or package.module:factory to export first")
    parser.add_argument("--outputs", metavar="FILE.npz", help="where to write what comes out")
    parser.add_argument(
        "--size", action="append", default=[], metavar="SYMBOL=N", help="of made-up inputs"
    )
    parser.add_argument("--repeat", type=int, default=1, metavar="N", help="how often to run")
    parser.add_argument(
        "--timeout", type=float, default=_TIMEOUT, metavar="SECONDS",
        help=f"for each run; {_TIMEOUT:g} unless given",
    )  # fmt: skip
    parser.add_argument(
        "--profile", action="store_true", help="time by module, operator and provider"
    )
    parser.add_argument("--placement", action="store_true", help="which provider runs what")
    add_input_options(parser)
    add_session_options(parser)
    add_export_options(parser)
    add_target_options(parser)
    add_report_options(parser, junit=False)


def run(options: argparse.Namespace, terminal: Terminal) -> int:
    """Run, and report what came out."""
    target = find_target(options.model, options)
    terminal.progress(f"loading {options.model}")
    if is_eager_name(options.model):
        example = example_of(target, options)
        program = export_target(target, example, options, verify=False)
        session = open_session(program, options)
        leaves = session.flatten(example.args, example.kwargs)
        feed = dict(zip(session.input_names, leaves, strict=True))
    else:
        session = open_session(target.model, options)
        feed = feed_of(session, options)
    terminal.progress("running")
    results, seconds = _repeated(session, feed, max(1, options.repeat), options.timeout)
    if options.outputs is not None:
        _save(options.outputs, results)
    report = RunReport(
        session.providers,
        seconds,
        [_described(name, value) for name, value in results.items()],
        session.profile(feed) if options.profile else None,
        session.placement if options.placement else None,
    )
    terminal.report(report, options)
    return PASSED


def _repeated(
    session: Session, feed: Mapping[str, Any], runs: int, timeout: float
) -> tuple[dict[str, Any], list[float]]:
    """What the last run gives, and the seconds of each.

    They run in another thread: the main one would not see Ctrl-C before a run ends.

    Raises:
        RunTimeoutError: A run takes longer than ``timeout``; names the Loop that does not end.
    """

    def repeat() -> tuple[dict[str, Any], list[float]]:
        results, seconds = {}, []
        for _ in range(runs):
            started = time.perf_counter()
            results = session.run(feed, timeout=timeout)
            seconds.append(time.perf_counter() - started)
        return results, seconds

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        try:
            return pool.submit(repeat).result()
        except KeyboardInterrupt:
            session.cancel()
            raise
        except RunTimeoutError as error:
            from bridge.parity.endless import find_endless

            found = find_endless(session, feed)
            told = "" if found is None else f"; {found.told}"
            raise RunTimeoutError(
                error.message + told, hint="--timeout SECONDS gives it longer"
            ) from error


def _described(name: str, value: Any) -> dict[str, Any]:
    from bridge.feeds import to_numpy

    array = to_numpy(value)
    row: dict[str, Any] = {"name": name, "dtype": str(array.dtype), "shape": list(array.shape)}
    row |= {"min": None, "mean": None, "max": None, "nonfinite": 0}
    if array.dtype.kind in "OSUc" or not array.size:
        return row
    wide: np.ndarray[Any, Any] = array.astype(np.float64)
    finite = wide[np.isfinite(wide)]
    row["nonfinite"] = wide.size - finite.size
    if finite.size:
        row |= {
            "min": float(finite.min()),
            "mean": float(finite.mean()),
            "max": float(finite.max()),
        }
    return row


def _save(path: str, results: dict[str, Any]) -> None:
    from bridge.feeds import to_numpy

    try:
        np.savez(path, **{name: to_numpy(x) for name, x in results.items()})  # type: ignore[arg-type]
    except OSError as error:
        raise ModelFileError(f"cannot write {path}: {error.strerror or error}") from error
