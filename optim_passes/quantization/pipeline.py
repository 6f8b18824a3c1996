"""What runs before and after quantization."""

from __future__ import annotations

from typing import TYPE_CHECKING

from optim_passes.fusion.convolution import ConvActivationPass
from optim_passes.fusion.gelu import QuickGeluPass
from optim_passes.fusion.linear import PlainProductPass, PostNormResidualPass
from optim_passes.pipelines import CPU
from optim_passes.quantization.channels import ChannelPaddingPass
from optim_passes.quantization.preparation import (
    NegatedResidualPass,
    PlainOperatorsPass,
    ProductBiasPass,
)
from optim_passes.quantization.static import PoolFirstPass
from optim_passes.simplify.constants import DeduplicateInitializersPass
from optim_passes.simplify.dead_code import DeadCodePass
from optim_passes.simplify.inference import ForgetSizesPass
from optim_passes.simplify.scans import LoopToScanPass

if TYPE_CHECKING:
    import onnx_ir as ir

    from optim_passes.pipeline import Repeat

__all__ = ["BEFORE", "BEFORE_STATIC", "BEFORE_WEIGHTS", "FINISH"]

Passes = tuple["ir.passes.PassBase | Repeat", ...]

# ONNX Runtime finds integers around Conv and MatMul, not around what these passes make of them. A
# loop is measured before there are two forms of it, of which the calibration may run one.
_AFTER = (
    ConvActivationPass, ForgetSizesPass, LoopToScanPass, PlainProductPass, PostNormResidualPass,
    QuickGeluPass,
)  # fmt: skip

BEFORE: Passes = (
    PlainOperatorsPass(),
    *(p for p in CPU if not isinstance(p, _AFTER)),
)

BEFORE_STATIC: Passes = (
    *BEFORE,
    ProductBiasPass(),
    NegatedResidualPass(),
    ChannelPaddingPass(),
    DeadCodePass(),
)

BEFORE_WEIGHTS: Passes = (*BEFORE, NegatedResidualPass(), DeadCodePass())

FINISH: Passes = (
    DeadCodePass(),
    PoolFirstPass(),
    QuickGeluPass(),
    # What stayed in floating point.
    ConvActivationPass(),
    PlainProductPass(),
    PostNormResidualPass(),
    LoopToScanPass(),
    DeadCodePass(),
    DeduplicateInitializersPass(),
    ForgetSizesPass(names=True),
)
