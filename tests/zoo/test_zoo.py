"""The zoo exports with every size dynamic that eager lets vary, and agrees at sizes it never saw."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import bridge
from tests.zoo.models import ZOO

NAMES_OF_X = {"x": "input", "pixel_values": "pixel_values"}


def leaves(x: Any) -> list[torch.Tensor]:
    """The tensors of a result, whatever containers they are in."""
    from exporters.pytorch.inputs import is_leaf
    from exporters.tracing.pytree import flatten

    return [t for t in flatten(x, is_leaf)[0] if isinstance(t, torch.Tensor)]


@pytest.mark.parametrize("name", list(ZOO))
def test_agrees_at_every_size(name):
    entry = ZOO[name]
    model = entry.make().eval()
    args, kwargs = entry.inputs(**entry.example)
    dynamic = entry.dynamic
    if dynamic is not None and args and set(dynamic) == {"x"}:
        dynamic = (dynamic["x"],)  # whatever forward calls its input
    examples = None if entry.second is None else [entry.inputs(**entry.second)]
    program = bridge.export(model, args, kwargs=kwargs, dynamic_shapes=dynamic, examples=examples)
    for sizes in (entry.example, *entry.others):
        args, kwargs = entry.inputs(**sizes)
        with torch.no_grad():
            expected = leaves(model(*copy.deepcopy(args), **copy.deepcopy(kwargs)))
        got = leaves(program(*args, **kwargs))
        assert len(got) == len(expected)
        for a, b in zip(got, expected, strict=True):
            assert a.shape == b.shape, f"{name} at {sizes}"
            assert a.dtype == b.dtype, f"{name} at {sizes}"
            if b.is_floating_point():
                scale = max(1.0, float(b[b.isfinite()].abs().max())) if b.numel() else 1.0
                torch.testing.assert_close(
                    a,
                    b,
                    rtol=1e-3,
                    atol=entry.rtol * scale,
                    msg=lambda m, at=sizes: f"{name} at {at}: {m}",
                )
            else:
                assert torch.equal(a, b), f"{name} at {sizes}"
