"""Eager models become production backends: export to ONNX, run on ONNX Runtime, prove parity."""

from bridge.errors import (
    BridgeError,
    FeedError,
    ModelFileError,
    ParityError,
    ProviderError,
    RunError,
)
from bridge.exporting import TrainModeWarning, export
from bridge.program import ExportReport, Program
from bridge.session import Session, load
from bridge.tracing import TracedModule, trace
from exporters.errors import ExportError

__all__ = [
    "BridgeError",
    "ExportError",
    "ExportReport",
    "FeedError",
    "ModelFileError",
    "ParityError",
    "Program",
    "ProviderError",
    "RunError",
    "Session",
    "TracedModule",
    "TrainModeWarning",
    "export",
    "load",
    "trace",
]
