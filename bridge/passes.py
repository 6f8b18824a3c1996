"""The passes for each target, as ordered data: put your own among them.

``bridge.optimize(model, passes=[*bridge.passes.cpu, MyFusion()])`` runs ours and then yours. A
:class:`Repeat` in a pipeline is a group that runs until none of its passes finds anything.
"""

from __future__ import annotations

from optim_passes.builder import Builder
from optim_passes.pipeline import Repeat
from optim_passes.pipelines import CPU as cpu  # noqa: N811  # bridge.passes.cpu is data named for its target
from optim_passes.pipelines import CUDA as cuda  # noqa: N811
from optim_passes.pipelines import PORTABLE as portable  # noqa: N811
from optim_passes.pipelines import SIMPLIFY as simplify  # noqa: N811
from optim_passes.rewriting import (
    Fusion,
    NodePass,
    Pass,
    RefusedError,
    require,
    require_dtype,
    require_opset,
    require_rank,
    require_scalar,
    require_static_shape,
)

__all__ = [
    "Builder",
    "Fusion",
    "NodePass",
    "Pass",
    "RefusedError",
    "Repeat",
    "cpu",
    "cuda",
    "portable",
    "require",
    "require_dtype",
    "require_opset",
    "require_rank",
    "require_scalar",
    "require_static_shape",
    "simplify",
]
