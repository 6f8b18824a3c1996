"""Eager models become production backends: export to ONNX, run on ONNX Runtime, prove parity.

Names are imported when first used: running a model needs no torch, and ``bridge doctor`` needs
neither torch nor ONNX Runtime.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bridge.errors import (
        BridgeError,
        FeedError,
        ModelFileError,
        ParityError,
        ProviderError,
        RunCancelledError,
        RunError,
        RunTimeoutError,
    )
    from bridge.exporting import TrainModeWarning, export
    from bridge.program import ExportReport, Program
    from bridge.session import Session, load
    from bridge.tracing import TracedModule, trace
    from exporters.errors import ExportError
from exporters.script import script

_HOMES = {
    "BridgeError": "bridge.errors",
    "ExportError": "exporters.errors",
    "ExportReport": "bridge.program",
    "FeedError": "bridge.errors",
    "ModelFileError": "bridge.errors",
    "ParityError": "bridge.errors",
    "Program": "bridge.program",
    "ProviderError": "bridge.errors",
    "RunCancelledError": "bridge.errors",
    "RunError": "bridge.errors",
    "RunTimeoutError": "bridge.errors",
    "Session": "bridge.session",
    "TracedModule": "bridge.tracing",
    "TrainModeWarning": "bridge.exporting",
    "export": "bridge.exporting",
    "load": "bridge.session",
    "trace": "bridge.tracing",
}

__all__ = [
    "BridgeError",
    "ExportError",
    "ExportReport",
    "FeedError",
    "ModelFileError",
    "ParityError",
    "Program",
    "ProviderError",
    "RunCancelledError",
    "RunError",
    "RunTimeoutError",
    "Session",
    "TracedModule",
    "TrainModeWarning",
    "export",
    "load",
    "script",
    "trace",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'bridge' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
