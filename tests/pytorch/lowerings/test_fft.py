"""Fourier transforms, which the graph holds as products with matrices or as ``DFT``."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import bridge
from tests.pytorch.lowerings.cases import check_case, f32, f64, op_cases, op_types, supported_rows
from tests.pytorch.opinfo import OpCase, check_call

c64, c128 = torch.complex64, torch.complex128
SUMS = {"rtol": 1e-4, "atol": 1e-4, "why": "sums over a whole dim, in another order"}
CASES = [
    *op_cases(
        """
        fft.fft fft.fft2 fft.fftn fft.ifft fft.ifft2 fft.ifftn fft.hfft fft.hfft2 fft.hfftn fft.irfft
        fft.irfft2 fft.irfftn fft.fftshift fft.ifftshift
        """,
        (f32, c64, c128),
        **SUMS,
    ),
    *op_cases("fft.rfft fft.rfft2 fft.rfftn fft.ihfft fft.ihfft2 fft.ihfftn", (f32, f64), **SUMS),
    *op_cases("stft", (f32, c64), **SUMS),
    *op_cases(
        "istft",
        (f32, c64),
        skip=lambda s: "windows are real" if _complex_window(s) else None,
        **SUMS,
    ),
]


def _complex_window(sample: Any) -> bool:
    window = sample.kwargs.get("window")
    return window is not None and window.is_complex()


@pytest.mark.parametrize(("case", "dtype"), supported_rows(CASES))
def test_matches_eager(case: OpCase, dtype: torch.dtype) -> None:
    check_case(case, dtype)


SIGNALS = {
    "fft of a dynamic size": lambda x: torch.fft.fft(x),
    "and back": lambda x: torch.fft.irfft(torch.fft.rfft(x), n=x.shape[-1]),
    "over all dims": lambda x: torch.fft.fftn(x, norm="ortho").real,
    "power": lambda x: torch.fft.rfft2(x).abs() ** 2,
}


@pytest.mark.parametrize("name", SIGNALS)
def test_sizes_are_dynamic(name: str) -> None:
    check_call(
        SIGNALS[name],
        (torch.randn(4, 12),),
        dynamic_shapes=({0: "n", 1: "m"},),
        others=[(torch.randn(1, 7),), (torch.randn(9, 64),)],
        rtol=1e-4,
        atol=1e-4,
    )


def test_long_transforms_are_one_operator() -> None:
    traced = check_call(lambda x: torch.fft.rfft(x), (torch.randn(1, 4096),), rtol=1e-4, atol=1e-3)
    assert op_types(traced).count("DFT") == 1


def test_spectrograms_of_dynamic_length() -> None:
    window = torch.hann_window(64)

    def spectrogram(x: torch.Tensor) -> torch.Tensor:
        return torch.stft(x, 64, 16, window=window, return_complex=True).abs().square()

    def round_trip(x: torch.Tensor) -> torch.Tensor:
        z = torch.stft(x, 64, 16, window=window, return_complex=True)
        return torch.istft(z * 0.5, 64, 16, window=window, length=x.shape[-1])

    for function in (spectrogram, round_trip):
        check_call(
            function,
            (torch.randn(2, 400),),
            dynamic_shapes=({0: "n", 1: "t"},),
            others=[(torch.randn(1, 999),)],
            rtol=1e-4,
            atol=1e-4,
        )


def test_complex_signals_have_complex_spectra() -> None:
    x = torch.randn(2, 40, dtype=c64)
    program = bridge.export(lambda x: torch.stft(x, 8, window=torch.ones(8)), (x,))
    torch.testing.assert_close(program(x), torch.stft(x, 8, window=torch.ones(8)))
