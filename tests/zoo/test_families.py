"""Families of transformers export with dynamic batch and length, and agree at other sizes."""

from __future__ import annotations

import pytest

import bridge
from tests.zoo.families import FAMILIES, inputs, make

# Different in kind: experts, state space, sliding windows, convolutions, relative positions, detection.
FAST = {
    "aria_text", "clip", "convnextv2", "deberta-v2", "fnet", "gemma2", "lfm2", "mamba", "modernbert",
    "swiftformer", "wav2vec2",
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")  # of configurations that are smaller than their makers meant
@pytest.mark.parametrize(
    "family", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in FAMILIES]
)
def test_agrees_at_other_sizes(family: str) -> None:
    model = make(family)
    kwargs, dynamic = inputs(model, 2, 7)
    program = bridge.export(model, (), kwargs=kwargs, dynamic_shapes=dynamic)
    others, _ = inputs(model, 3, 11)
    assert program(**others) is not None
    assert program.report.verified
