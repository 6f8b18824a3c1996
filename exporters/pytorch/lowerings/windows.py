"""Windows and frequencies of signals whose length is known at run time only."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from exporters.pytorch.registry import decomposes

if TYPE_CHECKING:
    from collections.abc import Callable

T = torch.Tensor
SYM_MAX: Any = torch.sym_max  # not annotated


def _hann(turn: T) -> T:
    return 0.5 - 0.5 * torch.cos(turn)


def _hamming(turn: T, alpha: float = 0.54, beta: float = 0.46) -> T:
    return alpha - beta * torch.cos(turn)


def _blackman(turn: T) -> T:
    return 0.42 - 0.5 * torch.cos(turn) + 0.08 * torch.cos(2 * turn)


def _bartlett(turn: T) -> T:
    return 1 - (turn / math.pi - 1).abs()


def _kaiser(turn: T, beta: float = 12.0) -> T:
    inside = 1 - (turn / math.pi - 1) ** 2
    return torch.i0(beta * inside.clamp(min=0).sqrt()) / torch.i0(torch.tensor(beta).double())


def _window(shape: Callable[..., T]) -> Callable[..., T]:
    def window(
        window_length: Any, periodic: bool = True, *parameters: float,
        dtype: torch.dtype | None = None, **named: Any,
    ) -> T:  # fmt: skip
        options = {k: v for k, v in named.items() if k in ("alpha", "beta") and v is not None}
        gaps = window_length if periodic else SYM_MAX(window_length - 1, 1)
        turn = torch.arange(window_length).double() * (2 * math.pi) / gaps
        values = shape(turn, *parameters, **options)
        values = torch.where(torch.tensor(window_length) == 1, torch.ones_like(values), values)
        return values.to(dtype or torch.get_default_dtype())

    return window


for _call, _shape in (
    (torch.hann_window, _hann),
    (torch.hamming_window, _hamming),
    (torch.blackman_window, _blackman),
    (torch.bartlett_window, _bartlett),
    (torch.kaiser_window, _kaiser),
):
    decomposes(_call)(_window(_shape))


def _frequencies(places: T, n: Any, d: float, dtype: torch.dtype | None) -> T:
    return (places.double() / (n * d)).to(dtype or torch.get_default_dtype())


@decomposes(torch.fft.fftfreq)
def fftfreq(n: Any, d: float = 1.0, *, dtype: torch.dtype | None = None, **_: object) -> T:
    places = torch.arange(n)
    return _frequencies(torch.where(places < (n + 1) // 2, places, places - n), n, d, dtype)


@decomposes(torch.fft.rfftfreq)
def rfftfreq(n: Any, d: float = 1.0, *, dtype: torch.dtype | None = None, **_: object) -> T:
    return _frequencies(torch.arange(n // 2 + 1), n, d, dtype)
