"""Runs that other threads can stop, and the errors that tell why one ended."""

from __future__ import annotations

import contextlib
import contextvars
import threading
from typing import TYPE_CHECKING, Any, NoReturn

import onnxruntime

from bridge.errors import BridgeError, FeedError, RunCancelledError, RunError, RunTimeoutError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["Closed", "RunControl", "time_limit"]

_LIMIT: contextvars.ContextVar[float | None] = contextvars.ContextVar("limit", default=None)


@contextlib.contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Stop runs of this thread that take longer, of whatever session, unless they say otherwise.

    Args:
        seconds: For each run; None for no limit.
    """
    token = _LIMIT.set(None if seconds is None else _seconds(seconds))
    try:
        yield
    finally:
        _LIMIT.reset(token)


class _Run:
    """One run that can be stopped: a context in which errors tell why it ended."""

    __slots__ = ("config", "options", "reason", "running", "timeout", "timer")

    def __init__(
        self, running: set[_Run], config: Mapping[str, str] | None, timeout: float | None
    ) -> None:
        self.options = onnxruntime.RunOptions()
        self.reason: str | None = None
        self.running = running
        self.config = config
        self.timeout = timeout
        self.timer: threading.Timer | None = None

    def stop(self, reason: str) -> None:
        self.reason = reason
        self.options.terminate = True

    def __enter__(self) -> onnxruntime.RunOptions:
        if self.config:
            for key, value in self.config.items():
                try:
                    self.options.add_run_config_entry(str(key), str(value))
                except RuntimeError as error:
                    raise RunError(f"run config entry {key!r}: {error}") from error
        if self.timeout is not None:
            self.timer = threading.Timer(self.timeout, self.stop, ("timeout",))
            self.timer.daemon = True
            self.timer.start()
        self.running.add(self)
        return self.options

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.running.discard(self)
        if self.timer is not None:
            self.timer.cancel()
        if error is None or isinstance(error, BridgeError) or not isinstance(error, Exception):
            return
        if self.reason == "timeout":
            raise RunTimeoutError(f"the run took longer than {self.timeout:g} s") from error
        if self.reason is not None:
            raise RunCancelledError("the run was cancelled") from error
        text = str(error).removeprefix("[ONNXRuntimeError] : ")
        raise RunError(f"ONNX Runtime failed: {text}") from error


class Closed:
    """Stands where a closed session's runtime was."""

    def __getattr__(self, name: str) -> NoReturn:
        raise RunError("the session is closed", hint="open another one with bridge.load")


class RunControl:
    """The runs of a session that are under way.

    Args:
        config: Run config entries of every run that does not say otherwise.
    """

    def __init__(self, config: Mapping[str, str] | None = None) -> None:
        self._config = dict(config or {})
        self._running: set[_Run] = set()

    def controlled(
        self, run_config: Mapping[str, str] | None = None, timeout: float | None = None
    ) -> contextlib.AbstractContextManager[onnxruntime.RunOptions]:
        """Options for a run that :meth:`cancel` and a timer can stop.

        The context raises :class:`~bridge.errors.RunTimeoutError` if the run took longer than
        ``timeout``, :class:`~bridge.errors.RunCancelledError` if :meth:`cancel` was called, and
        :class:`~bridge.errors.RunError` if it failed.
        """
        # a context made of a generator would take a microsecond more
        if run_config and not hasattr(run_config, "keys"):
            raise FeedError(f"run_config is {run_config!r}; it is a mapping of names to values")
        config = {**self._config, **run_config} if run_config else self._config
        timeout = _LIMIT.get() if timeout is None else _seconds(timeout)
        return _Run(self._running, config, timeout)

    def cancel(self) -> int:
        """Stop every run that is under way, in whatever thread; returns how many there were."""
        running = list(self._running)
        for run in running:
            run.stop("cancelled")
        return len(running)


def _seconds(timeout: Any) -> float:
    if not isinstance(timeout, int | float) or not timeout > 0:
        raise FeedError(f"timeout is {timeout!r}; it is a number of seconds above 0")
    return min(float(timeout), threading.TIMEOUT_MAX)
