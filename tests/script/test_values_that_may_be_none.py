"""Values that are None for some inputs: given to torch, and asked about by code of any kind."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bridge
from exporters.errors import DataDependentError
from tests.script.harness import agree

X = torch.linspace(-1, 1, 64).reshape(1, 2, 4, 8)
FULL = torch.ones(4, 4, dtype=torch.bool)
PART = torch.eye(4, dtype=torch.bool) | torch.tril(FULL).flip(0)


def attention(x, mask):
    return F.scaled_dot_product_attention(x, x, x, attn_mask=None if mask.all() else mask)


def attention_causal_without_mask(x, mask):
    seen = None if mask.all() else mask
    return F.scaled_dot_product_attention(x, x, x, attn_mask=seen, is_causal=seen is None)


def attention_by_numbers(x, mask):
    seen = None if mask.all() else torch.where(mask, 0.0, -1.0)
    causal = bool(x[0, 0, 0, 0] < 0) and seen is None
    return F.scaled_dot_product_attention(x, x, x, attn_mask=seen, is_causal=causal)


def bias(x, mask):
    b = x[0, 0, 0, :3] + 1 if mask.all() else None
    return F.linear(x, torch.ones(3, 8), b)


def weight_of_norm(x, mask):
    return F.layer_norm(x, (8,), weight=None if mask.all() else x[0, 0, 0] * 2)


def bounds(x, mask):
    low = -x.mean() if mask.all() else None
    return torch.clamp(x, min=low, max=x[0, 0, 0, 0] + 1.5)


def two_at_once(x, mask):
    w = None if mask.all() else x[0, 0, 0]
    b = None if mask[0].all() else x[0, 0, 1]
    return F.layer_norm(x, (8,), w, b)


def helper(x, m):
    return x if m is None else x * m.sum()


def walrus(x, m):
    if (n := m) is not None:
        return x + n.sum()
    return x


def choose(mask):
    if mask.all():
        return None
    return mask


def plain_helper(x, mask):
    return helper(x, choose(mask))


def plain_walrus(x, mask):
    return walrus(x, choose(mask))


def named_here(x, mask):
    found = choose(mask)
    if found is None:
        return x.exp()
    return x * found.float().mean()


def by_options(x, **options):
    m = options.get("mask")
    return x if m is None else x - m.sum()


def plain_options(x, mask):
    return by_options(x, mask=choose(mask))


def asked_at_once(x, mask):
    return x - 1 if choose(mask) is None else x + 1


class Layer(nn.Module):
    def forward(self, x, *, mask=None):
        if mask is not None:
            x = x.masked_fill(~mask[:, :1], 0.0)
        return x


class Layers(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([Layer(), Layer()])

    def forward(self, x, mask):
        found = choose(mask)
        for layer in self.layers:
            x = layer(x, mask=found) + 1
        return x


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize(
    "function",
    [attention, attention_causal_without_mask, attention_by_numbers, bias, weight_of_norm, bounds,
     two_at_once, plain_helper, plain_walrus, named_here, asked_at_once, plain_options, Layers().eval()],
    ids=lambda f: getattr(f, "__name__", type(f).__name__),
)  # fmt: skip
def test_both_ways(function, first):
    inputs = [(X, FULL), (X, PART), (-X, FULL)]
    agree(function, [inputs[first]], inputs)


def test_without_compiling_the_question_is_refused():
    @bridge.script
    def chosen(mask):
        if mask.all():
            return None
        return mask

    def outer(x, mask):
        return helper(x, chosen(mask))

    with pytest.raises(DataDependentError, match="Python asks whether `m` is None, which depends"):
        bridge.export(outer, (X, FULL), script="explicit")


def resized(x, size=None):
    if size is None:
        return F.interpolate(x, scale_factor=2.0, mode="nearest")
    return F.interpolate(x, size=size, mode="nearest")


def sizes_by_helper(x):
    odd = x.shape[2] % 2 != 0 or x.shape[3] % 2 != 0
    return resized(x[..., ::2, ::2], x.shape[2:] if odd else None)


def sizes_to_torch(x):
    size = None
    for d in x.shape[2:]:
        if d % 2 != 0:
            size = x.shape[2:]
    scale = None if size is not None else 2.0
    return F.interpolate(x[..., ::2, ::2], size=size, scale_factor=scale, mode="nearest")


@pytest.mark.parametrize("function", [sizes_by_helper, sizes_to_torch])
def test_sizes_that_may_be_none(function):
    images = [torch.rand(1, 2, h, w) for h, w in ((8, 12), (9, 11), (8, 11), (2, 2))]
    agree(function, [(images[0],)], [(x,) for x in images], dynamic_shapes=({2: "h", 3: "w"},))


def written_elsewhere(x, mask):
    low = x.min() if mask.all() else None
    held = torch.zeros_like(x)
    torch.clamp(x, low, x.new_tensor(0.5), out=held)
    return held


def test_a_result_that_is_written_elsewhere_is_written_once():
    inputs = [(X, FULL), (-X, FULL)]
    agree(written_elsewhere, [(X, FULL)], inputs)
