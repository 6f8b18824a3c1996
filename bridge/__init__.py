"""Eager models become production backends: export to ONNX, run on ONNX Runtime, prove parity.

Names are imported when first used: running a model needs no torch, and ``bridge doctor`` needs
neither torch nor ONNX Runtime.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bridge import passes
    from bridge.bisection import BisectReport, bisect
    from bridge.calibration import CalibrationError
    from bridge.errors import (
        BridgeError,
        FeedError,
        ModelFileError,
        ParityError,
        ProviderError,
        RunCancelledError,
        RunError,
        RunTimeoutError,
        TargetError,
    )
    from bridge.exporting import FrozenRandomWarning, TrainModeWarning, export
    from bridge.loading import load
    from bridge.optimization_report import OptimizationReport
    from bridge.optimizing import OptimizationWarning, optimize
    from bridge.parity.checking import check
    from bridge.parity.comparison import Tolerance
    from bridge.parity.divergence import Divergence
    from bridge.parity.matrix import MatrixReport, check_matrix
    from bridge.parity.report import ParityReport
    from bridge.program import ExportReport, Program
    from bridge.quantization import QuantizedProgram, quantize
    from bridge.quantizing.gate import QuantizationRejected
    from bridge.quantizing.recipes import Recipe, RecipeError
    from bridge.quantizing.report import QuantizationReport
    from bridge.session import Session
    from bridge.tracing import TracedModule, trace
    from exporters.errors import (
        BranchMismatchError,
        DataDependentError,
        DisagreeingBranchError,
        DynamicShapeError,
        ExportError,
        InputError,
        ScriptError,
        ScriptSyntaxError,
        SpecialisationError,
        UnboundNameError,
        UnsupportedOpError,
        UntraceableError,
        WorldError,
    )
    from exporters.script import script

_HOMES = {
    "BisectReport": "bridge.bisection",
    "BranchMismatchError": "exporters.errors",
    "BridgeError": "bridge.errors",
    "CalibrationError": "bridge.calibration",
    "DataDependentError": "exporters.errors",
    "DisagreeingBranchError": "exporters.errors",
    "Divergence": "bridge.parity.divergence",
    "DynamicShapeError": "exporters.errors",
    "ExportError": "exporters.errors",
    "ExportReport": "bridge.program",
    "FeedError": "bridge.errors",
    "FrozenRandomWarning": "bridge.exporting",
    "InputError": "exporters.errors",
    "MatrixReport": "bridge.parity.matrix",
    "ModelFileError": "bridge.errors",
    "OptimizationReport": "bridge.optimization_report",
    "OptimizationWarning": "bridge.optimizing",
    "ParityError": "bridge.errors",
    "ParityReport": "bridge.parity.report",
    "Program": "bridge.program",
    "ProviderError": "bridge.errors",
    "QuantizationRejected": "bridge.quantizing.gate",
    "QuantizationReport": "bridge.quantizing.report",
    "QuantizedProgram": "bridge.quantization",
    "Recipe": "bridge.quantizing.recipes",
    "RecipeError": "bridge.quantizing.recipes",
    "RunCancelledError": "bridge.errors",
    "RunError": "bridge.errors",
    "RunTimeoutError": "bridge.errors",
    "ScriptError": "exporters.errors",
    "ScriptSyntaxError": "exporters.errors",
    "Session": "bridge.session",
    "SpecialisationError": "exporters.errors",
    "TargetError": "bridge.errors",
    "Tolerance": "bridge.parity.comparison",
    "TracedModule": "bridge.tracing",
    "TrainModeWarning": "bridge.exporting",
    "UnboundNameError": "exporters.errors",
    "UnsupportedOpError": "exporters.errors",
    "UntraceableError": "exporters.errors",
    "WorldError": "exporters.errors",
    "bisect": "bridge.bisection",
    "check": "bridge.parity.checking",
    "check_matrix": "bridge.parity.matrix",
    "export": "bridge.exporting",
    "load": "bridge.loading",
    "optimize": "bridge.optimizing",
    "passes": "bridge",
    "quantize": "bridge.quantization",
    "script": "exporters.script",
    "trace": "bridge.tracing",
}

__all__ = [
    "BisectReport",
    "BranchMismatchError",
    "BridgeError",
    "CalibrationError",
    "DataDependentError",
    "DisagreeingBranchError",
    "Divergence",
    "DynamicShapeError",
    "ExportError",
    "ExportReport",
    "FeedError",
    "FrozenRandomWarning",
    "InputError",
    "MatrixReport",
    "ModelFileError",
    "OptimizationReport",
    "OptimizationWarning",
    "ParityError",
    "ParityReport",
    "Program",
    "ProviderError",
    "QuantizationRejected",
    "QuantizationReport",
    "QuantizedProgram",
    "Recipe",
    "RecipeError",
    "RunCancelledError",
    "RunError",
    "RunTimeoutError",
    "ScriptError",
    "ScriptSyntaxError",
    "Session",
    "SpecialisationError",
    "TargetError",
    "Tolerance",
    "TracedModule",
    "TrainModeWarning",
    "UnboundNameError",
    "UnsupportedOpError",
    "UntraceableError",
    "WorldError",
    "bisect",
    "check",
    "check_matrix",
    "export",
    "load",
    "optimize",
    "passes",
    "quantize",
    "script",
    "trace",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'bridge' has no attribute {name!r}")
    home = _HOMES[name]
    if home == "bridge":
        return importlib.import_module(f"bridge.{name}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
