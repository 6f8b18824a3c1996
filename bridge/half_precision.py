"""16 bits where they are enough: how large values get is measured before any is narrowed."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import onnx_ir as ir

from bridge.errors import BridgeError
from bridge.session import Session
from optim_passes.pipeline import Repeat, Report, run
from optim_passes.precision.half import HalfPrecisionPass
from optim_passes.precision.ranges import RANGES, ranges_of, with_ranges
from optim_passes.simplify.casts import CastPass
from optim_passes.simplify.dead_code import DeadCodePass
from optim_passes.simplify.inference import InferShapesPass
from optim_passes.simplify.inlining import InlineFunctionsPass
from optim_passes.simplify.noops import NoOpPass

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from bridge.runtime import Settings
    from bridge.targets import Target

__all__ = ["DTYPES", "Precision", "halved", "measured_ranges"]

Precision = Literal["fp16", "bf16"]
DTYPES = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}

# What has to be so before values are narrowed: no functions, and every type known.
_PREPARATION = (InlineFunctionsPass(), InferShapesPass())
_CLEANING = (Repeat(NoOpPass(), CastPass(), DeadCodePass()),)


def measured_ranges(
    model: ir.Model, feeds: Sequence[Mapping[str, Any]], settings: Settings
) -> dict[str, float]:
    """The largest magnitude of each float32 value over some runs, in If and Loop too.

    Args:
        model: Without functions, and with the types of all values.
        feeds: Inputs by name.
        settings: Of the session that runs it.

    Raises:
        RunError: ONNX Runtime refuses the model, or a run.
    """
    metered, names = with_ranges(model)
    plain = dataclasses.replace(settings, optimization="none")
    session = Session(metered, settings=plain)
    results = [np.asarray(session.run(feed, outputs=[RANGES])[RANGES]) for feed in feeds]
    return ranges_of(names, results)


def halved(
    model: ir.Model,
    precision: Precision,
    feeds: Sequence[Mapping[str, Any]],
    settings: Settings,
    *,
    original: ir.Model | None = None,
    target: Target | None = None,
    keep: Collection[str] = (),
    keep_io: bool = True,
) -> tuple[ir.Model, Report, str]:
    """A copy of the model in 16 bits, but for what needs float32.

    Args:
        model: The model; the copy shares what weights stay float32 with it.
        precision: ``"fp16"`` or ``"bf16"``.
        feeds: Inputs to measure ranges on; without any, only constants are looked at.
        settings: Of the session that measures.
        original: A model that has values of the same names, to measure in place of one that does
            not run here.
        target: Whose kernels there have to be for what is narrowed.
        keep: Names or op types of further nodes that stay in float32.
        keep_io: Whether the model's inputs and outputs stay float32.

    Returns:
        The model, the report of the passes, and why nothing was measured (empty if it was).
    """
    copy, _ = run(model.clone(), _PREPARATION)
    ranges, unmeasured = _ranges(copy, feeds, settings)
    if unmeasured and feeds and original is not None:
        other, _ = run(original.clone(), _PREPARATION)
        ranges, unmeasured = _ranges(other, feeds, settings)
    conversion = HalfPrecisionPass(
        DTYPES[precision],
        ranges=ranges,
        keep=keep,
        keep_io=keep_io,
        has_kernel=None if target is None else target.has_kernel_in,
    )
    result, report = run(copy, [conversion, *_CLEANING])
    return result, report, unmeasured


def _ranges(
    model: ir.Model, feeds: Sequence[Mapping[str, Any]], settings: Settings
) -> tuple[dict[str, float], str]:
    """The ranges, and why there are none."""
    if not feeds:
        return {}, "there are no inputs to measure on"
    try:
        return measured_ranges(model, feeds, settings), ""
    except BridgeError as error:
        return {}, error.message
