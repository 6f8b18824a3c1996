"""A GPT-2-like decoder whose KV cache has a fixed length, for decoding one token at a time."""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["LARGE", "SMALL", "Decoder", "Sizes", "empty_cache", "links"]


@dataclasses.dataclass(frozen=True)
class Sizes:
    layers: int
    width: int
    heads: int
    length: int
    vocabulary: int


SMALL = Sizes(2, 32, 4, 16, 99)
LARGE = Sizes(12, 768, 12, 512, 50257)  # GPT-2's


class Block(nn.Module):
    """Pre-norm attention over the cache, and a feed-forward net.

    Attributes:
        in_place: Whether the cache is written to where it lies, as eager code would; a graph writes
            to what its session binds.
    """

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.heads = sizes.heads
        self.in_place = False
        width = sizes.width
        self.norm1 = nn.LayerNorm(width)
        self.packed = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x, at, mask, keys, values):
        batch = x.shape[0]
        q, k, v = (
            t.view(batch, 1, self.heads, -1).transpose(1, 2)
            for t in self.packed(self.norm1(x)).chunk(3, -1)
        )
        if self.in_place:
            keys.index_copy_(2, at, k)
            values.index_copy_(2, at, v)
        else:
            keys, values = keys.index_copy(2, at, k), values.index_copy(2, at, v)
        y = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)
        x = x + self.out(y.transpose(1, 2).reshape(batch, 1, -1))
        return x + self.down(F.gelu(self.up(self.norm2(x)))), keys, values


class Decoder(nn.Module):
    """One step: a token and its position go in, logits and the new cache come out."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.length = sizes.length
        self.tokens = nn.Embedding(sizes.vocabulary, sizes.width)
        self.places = nn.Embedding(sizes.length, sizes.width)
        self.blocks = nn.ModuleList(Block(sizes) for _ in range(sizes.layers))
        self.norm = nn.LayerNorm(sizes.width)
        self.head = nn.Linear(sizes.width, sizes.vocabulary, bias=False)

    def forward(self, token, at, keys, values):
        x = self.tokens(token) + self.places(at)
        mask = (torch.arange(self.length, device=at.device) <= at)[None]
        new_keys, new_values = [], []
        for block, k, v in zip(self.blocks, keys, values, strict=True):
            x, k, v = block(x, at, mask, k, v)
            new_keys.append(k)
            new_values.append(v)
        return self.head(self.norm(x)), new_keys, new_values


def empty_cache(sizes: Sizes, dtype=torch.float32, device="cpu"):
    """A cache without a past, one tensor for each layer."""
    shape = (1, sizes.heads, sizes.length, sizes.width // sizes.heads)
    return [torch.zeros(shape, dtype=dtype, device=device) for _ in range(sizes.layers)]


def links(session):
    """The output that each of the cache's inputs takes its next value from."""
    return dict(zip(session.input_names[2:], session.output_names[1:], strict=True))
