"""Runs that other threads can stop, and the errors that tell why one ended."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, NoReturn

import onnxruntime

from bridge.errors import BridgeError, RunCancelledError, RunError, RunTimeoutError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["Closed", "RunControl"]


class _Run:
    """One run that can be stopped."""

    __slots__ = ("options", "reason")

    def __init__(self) -> None:
        self.options = onnxruntime.RunOptions()
        self.reason: str | None = None

    def stop(self, reason: str) -> None:
        self.reason = reason
        self.options.terminate = True


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

    @contextlib.contextmanager
    def controlled(
        self, run_config: Mapping[str, str] | None = None, timeout: float | None = None
    ) -> Iterator[onnxruntime.RunOptions]:
        """Options for a run that :meth:`cancel` and a timer can stop.

        Raises:
            RunTimeoutError: The run took longer than ``timeout``.
            RunCancelledError: :meth:`cancel` was called.
            RunError: The run failed.
        """
        run = _Run()
        timer = None
        if timeout is not None:
            timer = threading.Timer(float(timeout), run.stop, ("timeout",))
            timer.daemon = True
            timer.start()
        self._running.add(run)
        try:
            for key, value in {**self._config, **(run_config or {})}.items():
                run.options.add_run_config_entry(key, str(value))
            yield run.options
        except BridgeError:
            raise
        except Exception as error:
            if run.reason == "timeout":
                raise RunTimeoutError(f"the run took longer than {timeout:g} s") from error
            if run.reason is not None:
                raise RunCancelledError("the run was cancelled") from error
            text = str(error).removeprefix("[ONNXRuntimeError] : ")
            raise RunError(f"ONNX Runtime failed: {text}") from error
        finally:
            self._running.discard(run)
            if timer is not None:
                timer.cancel()

    def cancel(self) -> int:
        """Stop every run that is under way, in whatever thread; returns how many there were."""
        running = list(self._running)
        for run in running:
            run.stop("cancelled")
        return len(running)
