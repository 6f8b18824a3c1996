"""Bags of embeddings, and rows kept short; a plain embedding is one ``Gather``."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from exporters.pytorch.registry import decomposes

T = torch.Tensor


@decomposes(torch.embedding_renorm_)
def embedding_renorm_(
    input: torch.Tensor, indices: torch.Tensor, max_norm: float, norm_type: float
) -> T:
    """Shorten the rows that are used, as torch does it before it reads them."""
    used = torch.zeros([input.shape[0]], dtype=torch.bool)
    used = used.index_fill(0, indices.reshape(-1), True)[:, None]
    norms = torch.linalg.vector_norm(input, norm_type, 1, keepdim=True)
    shortened = input * (max_norm / (norms + 1e-7))
    return torch.where(used & (norms > max_norm), shortened, input)


def _reduced(rows: T, kept: T | None, mode: str) -> T:
    """Sum, mean or maximum of rows [B, N, D], of which ``kept`` [B, N] says which count."""
    if kept is None:
        if mode == "max":
            return rows.amax(1)
        return rows.mean(1) if mode == "mean" else rows.sum(1)
    if mode == "max":
        best = rows.masked_fill(~kept[..., None], -torch.inf).amax(1)
        return torch.where(kept.any(1, keepdim=True), best, torch.zeros_like(best))
    total = (rows * kept[..., None].to(rows.dtype)).sum(1)
    if mode == "sum":
        return total
    return total / kept.sum(1, keepdim=True).clamp(min=1).to(rows.dtype)


def _reduced_by_bag(rows: T, kept: T | None, bag: T, bags: Any, mode: str) -> T:
    """The same of rows [N, D], of which ``bag`` [N] says which bag each is in."""
    zeros = rows.new_zeros([bags, rows.shape[1]])
    if mode == "max":
        if kept is not None:
            rows = rows.masked_fill(~kept[:, None], -torch.inf)
        index = bag[:, None].expand_as(rows)
        best = zeros.scatter_reduce(0, index, rows, "amax", include_self=False)
        return torch.where(best == -torch.inf, zeros, best)
    if kept is not None:
        rows = rows * kept[:, None].to(rows.dtype)
    total = zeros.index_add(0, bag, rows)
    if mode == "sum":
        return total
    ones = torch.ones_like(bag, dtype=rows.dtype) if kept is None else kept.to(rows.dtype)
    counts = rows.new_zeros([bags]).index_add(0, bag, ones)
    return total / counts.clamp(min=1)[:, None]


@decomposes(F.embedding_bag)
def embedding_bag(
    input: torch.Tensor, weight: torch.Tensor, offsets: Any = None, max_norm: Any = None,
    norm_type: float = 2, scale_grad_by_freq: bool = False, mode: str = "mean",
    sparse: bool = False, per_sample_weights: Any = None, include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> T:  # fmt: skip
    if not input.is_floating_point() and weight.dtype in (torch.int32, torch.int64):
        input, weight = weight, input  # once the order of arguments, and accepted still
    if max_norm is not None:
        torch.embedding_renorm_(weight, input.contiguous(), max_norm, norm_type)
    rows = torch.embedding(weight, input)
    if per_sample_weights is not None:
        rows = rows * per_sample_weights[..., None]
    kept = None
    if padding_idx is not None:
        kept = input != (padding_idx if padding_idx >= 0 else weight.shape[0] + padding_idx)
    if input.dim() == 2:
        return _reduced(rows, kept, mode)
    starts = offsets[:-1] if include_last_offset else offsets
    places = torch.arange(input.shape[0])
    bag = (places[:, None] >= starts).sum(1) - 1
    return _reduced_by_bag(rows, kept, bag, starts.shape[0], mode)
