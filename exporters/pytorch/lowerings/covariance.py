"""Covariance and correlation of rows."""

from __future__ import annotations

from typing import Any

import torch

from exporters.pytorch.registry import decomposes

T = torch.Tensor
SYM_MAX: Any = torch.sym_max  # not annotated


def _covariance(x: T, correction: int, counts: T | None, weights: T | None) -> T:
    if not (x.is_floating_point() or x.is_complex()):
        x = x.to(torch.get_default_dtype())
    dtype = x.dtype if weights is None else torch.promote_types(x.dtype, weights.dtype)
    wide = torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype  # of squares
    x = x.to(wide)
    share = counts
    if weights is not None:
        share = weights if counts is None else weights * counts
    degrees: Any
    total: Any
    if share is None:
        total, mean = x.shape[1], x.mean(1, keepdim=True)
        degrees = SYM_MAX(total - correction, 0)
    else:
        share = share.to(x.real.dtype)
        total = share.sum()
        mean = (x * share).sum(1, keepdim=True) / total
        lost = correction if weights is None else correction * (share * weights).sum() / total
        degrees = (total - lost).clamp(min=0)
    centred = x - mean
    y = (centred if share is None else centred * share) @ centred.mH / degrees
    return y.to(dtype)


@decomposes(torch.cov)
def cov(
    input: torch.Tensor, *, correction: int = 1, fweights: Any = None, aweights: Any = None
) -> T:
    x = input if input.dim() == 2 else input.reshape(1, -1)
    return _covariance(x, correction, fweights, aweights).squeeze()


@decomposes(torch.corrcoef)
def corrcoef(input: torch.Tensor) -> T:
    c = cov(input)
    if c.dim() == 0:
        return c / c
    deviation = c.diagonal().real.sqrt()
    y = c / deviation.unsqueeze(-1) / deviation
    if y.is_complex():
        return torch.complex(y.real.clamp(-1, 1), y.imag.clamp(-1, 1))
    return y.clamp(-1, 1)
