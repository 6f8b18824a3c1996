"""What can go wrong around a graph: its files, its sessions, its parity with eager.

::

    BridgeError                      anything that bridge itself raises
    ├── ModelFileError               a model file is missing, broken, hostile or cannot be written
    ├── RunError                     ONNX Runtime refused a model or a run
    │   ├── RunTimeoutError          a run took longer than it was given (TimeoutError)
    │   └── RunCancelledError        somebody stopped a run
    ├── FeedError                    inputs that do not fit the model (ValueError)
    ├── ProviderError                an execution provider that cannot be had
    ├── TargetError                  a target that is none or cannot run a model; a name on the
    │                                command line that leads to no model (ValueError)
    └── ParityError                  a model does not compute what eager computes (AssertionError)

What goes wrong while eager code becomes a graph is in :mod:`exporters.errors`.
"""

from __future__ import annotations

__all__ = [
    "BridgeError",
    "FeedError",
    "ModelFileError",
    "ParityError",
    "ProviderError",
    "RunCancelledError",
    "RunError",
    "RunTimeoutError",
    "TargetError",
]


class BridgeError(Exception):
    """An error with a remedy.

    Args:
        message: What happened, with the user's values.
        hint: What mends it.
    """

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        hint = "" if self.hint is None else f"\n\nhint: {self.hint}"
        return f"{self.message}{hint}\ndocs/errors#{type(self).__name__.lower()}"


class ModelFileError(BridgeError):
    """A model file is missing, broken, hostile, or cannot be written."""


class RunError(BridgeError):
    """ONNX Runtime refused to load or to run a model."""


class RunTimeoutError(RunError, TimeoutError):
    """A run took longer than it was given."""


class RunCancelledError(RunError):
    """Somebody stopped a run."""


class FeedError(BridgeError, ValueError):
    """Inputs that do not fit the model."""


class ProviderError(BridgeError):
    """An execution provider that was asked for cannot be had."""


class TargetError(BridgeError, ValueError):
    """There is no such target, or it cannot run the model; or a name leads to no model."""


class ParityError(BridgeError, AssertionError):
    """A model does not compute what eager computes."""
