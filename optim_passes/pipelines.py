"""The passes for each target, in order.

Each comment says why a pass stands where it stands; where there is none, the order is free.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from optim_passes.fusion.attention import AttentionFusionPass
from optim_passes.fusion.attention_layout import AttentionHeadsPass, LongAttentionPass
from optim_passes.fusion.batch_norm import BatchNormPass
from optim_passes.fusion.bias_residual import (
    AttentionBiasPass,
    BiasGeluPass,
    SkipLayerNormPass,
)
from optim_passes.fusion.convolution import ConvActivationPass, ConvPadPass
from optim_passes.fusion.cubic_resize import CubicResizePass
from optim_passes.fusion.gelu import GeluPass, HardSwishPass, QuickGeluPass
from optim_passes.fusion.group_norm import ChannelAffinePass, GroupNormPass
from optim_passes.fusion.linear import (
    GemmPass,
    GemmToMatMulPass,
    PlainProductPass,
    PostNormResidualPass,
    PreGeluBiasPass,
    ProductOrderPass,
)
from optim_passes.fusion.linear_solve import LinearSolvePass
from optim_passes.fusion.masks import FullMaskPass
from optim_passes.fusion.multi_head import MultiHeadAttentionPass, PackedAttentionPass
from optim_passes.fusion.normalization import FactoredNormPass, NormAffinePass, NormPass
from optim_passes.fusion.packed_products import UnpackProductPass
from optim_passes.fusion.pairs import ArgTransposePass, PairReductionPass
from optim_passes.fusion.parallel_convolutions import ParallelConvPass
from optim_passes.fusion.reductions import ReductionPass
from optim_passes.fusion.rotary import RotaryHeadsPass, RotaryPass, SharedHeadsPass
from optim_passes.fusion.row_gather import RowGatherPass
from optim_passes.fusion.scaling import LayerScalePass
from optim_passes.fusion.skip_norm import SkipNormPass
from optim_passes.fusion.small_products import GemmSumPass
from optim_passes.fusion.transpose_steps import TransposeStepsPass
from optim_passes.older_opsets import LowerOpsetPass
from optim_passes.opsets import RaiseOpsetPass
from optim_passes.pipeline import Repeat
from optim_passes.simplify.appends import LoopAppendPass
from optim_passes.simplify.branches import BranchThreadPass, KnownBranchPass
from optim_passes.simplify.casts import CastPass
from optim_passes.simplify.constants import DeduplicateInitializersPass, LiftConstantsPass
from optim_passes.simplify.dead_code import DeadCodePass
from optim_passes.simplify.duplicates import CommonSubexpressionPass
from optim_passes.simplify.flags import LoopFlagPass
from optim_passes.simplify.folding import ConstantFoldPass
from optim_passes.simplify.hoisting import SliceHoistPass
from optim_passes.simplify.inference import ForgetSizesPass, InferShapesPass
from optim_passes.simplify.inlining import InlineFunctionsPass
from optim_passes.simplify.loops import LoopInvariantPass, UnrollPass
from optim_passes.simplify.noops import NoOpPass
from optim_passes.simplify.products import EinsumPass
from optim_passes.simplify.rearrangements import RearrangementPass, TransposeOrderPass
from optim_passes.simplify.row_tables import RowTablePass
from optim_passes.simplify.scans import LoopToScanPass
from optim_passes.simplify.selection import FilledOperandPass, MinMaxPass, TruthPass
from optim_passes.simplify.sequences import SequenceToScanPass
from optim_passes.simplify.shapes import ShapeChainPass
from optim_passes.simplify.skewing import LoopSkewPass
from optim_passes.simplify.slices import ConcatPass, SlicePass
from optim_passes.simplify.tables import LoopTablePass
from optim_passes.simplify.unit_axes import LeadingAxisPass, UnitAxisPass
from optim_passes.simplify.writes import LoopWritePass

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["CPU", "CUDA", "PORTABLE", "SIMPLIFY"]

Passes = tuple["ir.passes.PassBase | Repeat", ...]

_TIDY = Repeat(
    NoOpPass(),
    RearrangementPass(),
    SlicePass(),
    CommonSubexpressionPass(),
    # The passes above ask whether a value has another user, and dead nodes are users.
    DeadCodePass(),
)

SIMPLIFY: Passes = (
    # Before everything: passes do not look across the call of a function.
    InlineFunctionsPass(),
    # Before everything: passes look for constants among the initializers.
    LiftConstantsPass(),
    # Before what asks for ranks and sizes.
    InferShapesPass(),
    # Before all that makes nodes: these are as they are written since opset 13.
    RaiseOpsetPass(13),
    Repeat(
        NoOpPass(),
        ConstantFoldPass(),
        ShapeChainPass(),
        # After folding, which finds out what conditions and trip counts are.
        KnownBranchPass(),
        UnrollPass(),
        BranchThreadPass(),
        LoopFlagPass(),
        LoopInvariantPass(),
        # Before the passes below, which look for loops that carry nothing that grows.
        LoopAppendPass(),
        # After LoopInvariantPass, which takes what tables are made of out of the loop. Before
        # LoopTablePass, which does so for the inner one of two loops.
        LoopSkewPass(),
        LoopTablePass(),
        # After LoopTablePass, which may leave nothing of the loop.
        LoopWritePass(),
        RowTablePass(),
        SequenceToScanPass(),
        # Before RearrangementPass, which merges the transposes.
        TransposeOrderPass(),
        RearrangementPass(),
        EinsumPass(),
        CastPass(),
        FilledOperandPass(),
        TruthPass(),
        MinMaxPass(),
        SlicePass(),
        ConcatPass(),
        UnitAxisPass(),
        LeadingAxisPass(),
        CommonSubexpressionPass(),
        # Last: see _TIDY.
        DeadCodePass(),
    ),
    # Once more, now that the targets of Reshape are constant.
    InferShapesPass(),
    # After folding, which makes equal constants.
    DeduplicateInitializersPass(),
)

_STANDARD_FUSIONS: Passes = (
    GeluPass(),
    HardSwishPass(),
    FactoredNormPass(),
    NormPass(),
    # After NormPass, whose result it completes.
    NormAffinePass(),
    AttentionFusionPass(),
    # After AttentionFusionPass: its masks.
    FullMaskPass(),
    # After AttentionFusionPass: it removes what was repeated for it.
    SharedHeadsPass(),
    RotaryPass(),
    ConvPadPass(),
    # Each leaves what another one takes: a scaled branch, a sum of branches that is normalised.
    Repeat(BatchNormPass(), LayerScalePass(), ParallelConvPass()),
    # What fusions made of constants, such as masks.
    ConstantFoldPass(),
    _TIDY,
)

PORTABLE: Passes = (
    *SIMPLIFY,
    *_STANDARD_FUSIONS,
    Repeat(SliceHoistPass(), *_TIDY.passes),
    # Transposed and scaled weights; after fusions, which know a weight by its Transpose.
    ConstantFoldPass(large=True),
    DeadCodePass(),
    DeduplicateInitializersPass(),
    ForgetSizesPass(),
)

CPU: Passes = (
    # Before SIMPLIFY: it knows an elimination as it was exported.
    LinearSolvePass(),
    *SIMPLIFY,
    # Before the fusions: Attention, RMSNormalization and RotaryEmbedding are opset 23.
    RaiseOpsetPass(23),
    GeluPass(contrib=True),
    QuickGeluPass(),
    HardSwishPass(),
    FactoredNormPass(),
    NormPass(),
    NormAffinePass(),
    AttentionFusionPass(contrib=True),
    FullMaskPass(),
    SharedHeadsPass(),
    RotaryPass(),
    CubicResizePass(),
    ConvPadPass(),
    # Each leaves what another one takes: a scaled branch, a sum of branches that is normalised.
    Repeat(BatchNormPass(), LayerScalePass(), ParallelConvPass()),
    # Masks that fusions made of constants, and sizes that follow from those of an attention.
    Repeat(InferShapesPass(), ConstantFoldPass(), ShapeChainPass(), *_TIDY.passes, limit=3),
    # Before GemmToMatMulPass, which leaves the products of loops alone.
    GemmSumPass(),
    Repeat(
        GemmToMatMulPass(),
        ProductOrderPass(),
        RotaryHeadsPass(),
        AttentionHeadsPass(),
        # Cleans up between the rearrangements that these leave and those that they look for.
        *_TIDY.passes,
    ),
    # After the attention has taken its heads from the slices of one product.
    UnpackProductPass(),
    Repeat(ProductOrderPass(), *_TIDY.passes),
    # After UnpackProductPass: a row of one part is no part of the product any more.
    Repeat(SliceHoistPass(), *_TIDY.passes),
    # After AttentionHeadsPass and SliceHoistPass, which know Attention only.
    LongAttentionPass(),
    # After _TIDY: it looks at what is left.
    RowGatherPass(),
    GroupNormPass(),
    # After BatchNormPass and LayerScalePass, which can make more of it than a node.
    ChannelAffinePass(),
    ConvActivationPass(),
    # After all that looks for MatMul and Add.
    GemmPass(),
    # After GemmPass, which takes the products of matrices.
    PlainProductPass(),
    # After the fusions of normalisations, which look for ReduceSum and Sqrt.
    ReductionPass(),
    # After ReductionPass. What it turns around may not change in a loop.
    Repeat(PairReductionPass(), ArgTransposePass(), LoopInvariantPass(), *_TIDY.passes),
    # After PlainProductPass: they change signs around a FusedMatMul.
    PostNormResidualPass(),
    PreGeluBiasPass(),
    # After RearrangementPass, which makes one of what it leaves.
    TransposeStepsPass(),
    # After all that looks for Loop, and before the names of sizes are gone.
    LoopToScanPass(),
    ConstantFoldPass(large=True),
    DeadCodePass(),
    DeduplicateInitializersPass(),
    # After DeduplicateInitializersPass: nodes of equal constants, such as tables of angles.
    CommonSubexpressionPass(),
    # Last: what looks for values of one shape knows them by these names.
    ForgetSizesPass(names=True),
)

CUDA: Passes = (
    *SIMPLIFY,
    GeluPass(contrib=True),
    QuickGeluPass(),
    FactoredNormPass(),
    NormPass(),
    NormAffinePass(),
    AttentionFusionPass(contrib=True),
    FullMaskPass(),
    SharedHeadsPass(),
    RotaryPass(),
    ConvPadPass(),
    # Each leaves what another one takes: a scaled branch, a sum of branches that is normalised.
    Repeat(BatchNormPass(), LayerScalePass(), ParallelConvPass()),
    ConstantFoldPass(),
    # Between AttentionFusionPass and MultiHeadAttentionPass: AttentionHeadsPass looks for Attention.
    Repeat(GemmToMatMulPass(), ProductOrderPass(), AttentionHeadsPass(), *_TIDY.passes),
    MultiHeadAttentionPass(),
    Repeat(SliceHoistPass(), *_TIDY.passes),
    # Slices of one product become products: what PackedAttentionPass puts together.
    UnpackProductPass(),
    Repeat(ProductOrderPass(), *_TIDY.passes),
    PackedAttentionPass(),
    GroupNormPass(),
    ChannelAffinePass(),
    # After all that looks for Add.
    SkipNormPass(),
    _TIDY,
    # After PackedAttentionPass, which takes the biases that are left on products.
    AttentionBiasPass(),
    SkipLayerNormPass(),
    BiasGeluPass(),
    # After MultiHeadAttentionPass: Attention is what needs opset 23. The provider gets kernels for
    # new opsets late, and runs what has none on the CPU.
    LowerOpsetPass(20),
    ConstantFoldPass(large=True),
    DeadCodePass(),
    DeduplicateInitializersPass(),
    ForgetSizesPass(),
)
