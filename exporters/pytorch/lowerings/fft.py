"""Fourier transforms as products with matrices of cosines and sines.

ONNX has DFT and STFT. ORT 1.32 CPU computes them of sizes that are no powers of two with an error of
1e-3, and slower than it multiplies by a matrix; from 2048 places on DFT is the faster one.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import torch
import torch.nn.functional as F

from exporters.pytorch.lowerings.arithmetic import number
from exporters.pytorch.lowerings.dims import static_size
from exporters.pytorch.lowerings.shaping import rank
from exporters.pytorch.registry import Unlowerable, decomposes, lowers

if TYPE_CHECKING:
    from exporters.tracing.graph import GraphBuilder as Op

T = torch.Tensor
aten = torch.ops.aten
_raw: Any = torch._C._VariableFunctions

_SMALLEST_DFT = 2048
_LARGEST_MATRIX = 8192  # 2 * 256 MiB of float32


def _scale(normalization: int, count: Any, root: Any) -> Any:
    """What torch's 0, 1 and 2 multiply the sums by."""
    return {0: 1.0, 1: root, 2: count}[normalization]


def _waves(rows: Any, columns: Any, period: Any, dtype: torch.dtype) -> tuple[T, T]:
    """Cosine and sine of ``2 pi row column / period``."""
    if not hasattr(period, "record") and max(rows, columns) > _LARGEST_MATRIX:
        raise Unlowerable(f"a transform of {period} places, which is no power of two")
    turns = torch.arange(rows)[:, None] * torch.arange(columns) % period
    angle = turns.to(torch.float64) * (2 * math.pi) / period
    sine = torch.where(turns * 2 % period == 0, 0.0, angle.sin())  # 0 decides what angles have
    return angle.cos().to(dtype), sine.to(dtype)


def _last(x: T, dim: int) -> T:
    return x.transpose(dim, -1) if dim % x.dim() != x.dim() - 1 else x


# The three transforms that torch makes all others of


def _dft(
    op: Op, pair: ir.Value, axis: int, *, inverse: bool = False, onesided: bool = False
) -> ir.Value:
    """``DFT`` along an axis of [..., 1 or 2], of a large power of two."""
    size = static_size(pair, axis)
    if size is None or size < _SMALLEST_DFT or size & (size - 1):
        raise Unlowerable("a matrix is better")
    options = {"inverse": int(inverse), "onesided": int(onesided)}
    if op.opset >= 20:
        y: ir.Value = op.DFT(pair, None, np.asarray(axis), **options)
    else:
        y = op.DFT(pair, None, axis=axis, **options)
    y.shape = ir.Shape([None] * (rank(pair) - 1) + [2])
    return y


@lowers(aten._fft_r2c, pairs=True)
def _fft_r2c(op: Op, /, self: ir.Value, dim: Any, normalization: int, onesided: bool) -> ir.Value:
    """Lower to ``DFT-17`` for one long dim."""
    if len(dim) != 1:
        raise Unlowerable("one dim after the other")
    axis = dim[0] % rank(self)
    y = _dft(op, op.Unsqueeze(self, [-1]), axis, onesided=onesided)
    count = static_size(self, axis)
    assert count is not None
    factor = _scale(normalization, 1 / count, count**-0.5)
    return y if factor == 1 else op.Mul(y, factor)


@decomposes(aten._fft_r2c)
def fft_r2c_by_product(self: torch.Tensor, dim: Any, normalization: int, onesided: bool) -> T:
    *others, last = dim
    x = _last(self, last)
    size = x.shape[-1]
    columns = size // 2 + 1 if onesided else size
    cosine, sine = _waves(size, columns, size, x.dtype)
    factor = _scale(normalization, 1 / size, size**-0.5)
    y = torch.complex(_last(x @ (cosine * factor), last), _last(x @ (sine * -factor), last))
    return aten._fft_c2c(y, others, normalization, True) if others else y


@lowers(aten._fft_c2c, pairs=True)
def _fft_c2c(op: Op, /, self: ir.Value, dim: Any, normalization: int, forward: bool) -> ir.Value:
    """Lower to ``DFT-17`` along long dims; the inverse divides by the size, which torch does not."""
    y = self
    for d in dim:
        axis = d % (rank(self) - 1)
        count = static_size(self, axis)
        y = _dft(op, y, axis, inverse=not forward)
        assert count is not None
        factor = _scale(normalization, 1 / count, count**-0.5) * (1 if forward else count)
        y = y if factor == 1 else op.Mul(y, float(factor))
    return y


@decomposes(aten._fft_c2c)
def fft_c2c_by_product(self: torch.Tensor, dim: Any, normalization: int, forward: bool) -> T:
    real, imag = self.real, self.imag
    for d in dim:
        a, b = _last(real, d), _last(imag, d)
        size = a.shape[-1]
        cosine, sine = _waves(size, size, size, a.dtype)
        factor = _scale(normalization, 1 / size, size**-0.5)
        cosine, sine = cosine * factor, sine * (factor if forward else -factor)
        real, imag = _last(a @ cosine + b @ sine, d), _last(b @ cosine - a @ sine, d)
    return torch.complex(real, imag)


@decomposes(aten._fft_c2r)
def fft_c2r_by_product(self: torch.Tensor, dim: Any, normalization: int, last_dim_size: int) -> T:
    *others, last = dim
    x = aten._fft_c2c(self, others, normalization, False) if others else self
    a, b = _last(x.real, last), _last(x.imag, last)
    bins, size = last_dim_size // 2 + 1, last_dim_size
    a, b = a[..., :bins], b[..., :bins]
    cosine, sine = _waves(bins, size, size, a.dtype)
    places = torch.arange(bins)[:, None]
    alone = (places == 0) | (2 * places == size)  # the others stand for their mirror images too
    weights = torch.where(alone, 1.0, 2.0).to(a.dtype) * _scale(
        normalization, 1 / size, size**-0.5
    )
    return _last(a @ (cosine * weights) - b @ (sine * weights), last)


# torch.fft


def _normalization(norm: str | None, forward: bool) -> int:
    """Which of torch's scalings an option asks for."""
    if norm == "ortho":
        return 1
    return 2 if (norm == "forward") == forward else 0


def _fitted(x: T, dims: list[int], sizes: Any) -> T:
    """Cut, or padded with zeros, to the sizes that were asked for."""
    for d, size in zip(dims, sizes or [None] * len(dims), strict=True):
        if size is None or (not hasattr(size, "record") and size == -1):
            continue
        before = x.shape[d]
        if before is size or (number(before) is not None and before == number(size)):
            continue
        after = [0, 0] * (x.dim() - 1 - d % x.dim())
        x = F.pad(x, [*after, 0, size - before])
    return x


def _dims(x: T, sizes: Any, dims: Any) -> list[int]:
    if dims is None:
        dims = range(-len(sizes), 0) if sizes is not None else range(-x.dim(), 0)
    elif isinstance(dims, int):
        dims = [dims]
    return [d % x.dim() for d in dims]


def _forward(x: T, sizes: Any, dims: Any, norm: str | None, *, inverse: bool) -> T:
    places = _dims(x, sizes, dims)
    x = _fitted(x, places, sizes)
    kind = _normalization(norm, not inverse)
    if not x.is_floating_point() and not x.is_complex():
        x = x.to(torch.get_default_dtype())
    if x.is_complex():
        y: T = aten._fft_c2c(x, places, kind, not inverse)
        return y
    if inverse:
        zero = torch.zeros_like(x)
        return aten._fft_c2c(torch.complex(x, zero), places, kind, False)
    y = aten._fft_r2c(x, places[-1:], kind, False)
    return aten._fft_c2c(y, places[:-1], kind, True) if len(places) > 1 else y


def _real_forward(x: T, sizes: Any, dims: Any, norm: str | None, *, inverse: bool = False) -> T:
    places = _dims(x, sizes, dims)
    x = _fitted(x, places, sizes)
    if not x.is_floating_point():
        x = x.to(torch.get_default_dtype())
    y: T = aten._fft_r2c(x, places, _normalization(norm, not inverse), True)
    return y.conj() if inverse else y


def _real_inverse(x: T, sizes: Any, dims: Any, norm: str | None, *, inverse: bool = True) -> T:
    places = _dims(x, sizes, dims)
    last = 2 * (x.shape[places[-1]] - 1) if sizes is None or sizes[-1] is None else sizes[-1]
    if not x.is_complex():
        x = x if x.is_floating_point() else x.to(torch.get_default_dtype())
        x = torch.complex(x, torch.zeros_like(x))
    bins = [*(sizes[:-1] if sizes is not None else [None] * (len(places) - 1)), last // 2 + 1]
    x = _fitted(x, places, bins)
    y: T = aten._fft_c2r(
        x if inverse else x.conj(), places, _normalization(norm, not inverse), last
    )
    return y


@decomposes(torch.fft.fft)
def fft(input: torch.Tensor, n: Any = None, dim: int = -1, norm: Any = None) -> T:
    return _forward(input, None if n is None else [n], dim, norm, inverse=False)


@decomposes(torch.fft.ifft)
def ifft(input: torch.Tensor, n: Any = None, dim: int = -1, norm: Any = None) -> T:
    return _forward(input, None if n is None else [n], dim, norm, inverse=True)


@decomposes(torch.fft.rfft)
def rfft(input: torch.Tensor, n: Any = None, dim: int = -1, norm: Any = None) -> T:
    return _real_forward(input, None if n is None else [n], dim, norm)


@decomposes(torch.fft.irfft)
def irfft(input: torch.Tensor, n: Any = None, dim: int = -1, norm: Any = None) -> T:
    return _real_inverse(input, None if n is None else [n], dim, norm)


@decomposes(torch.fft.hfft)
def hfft(input: torch.Tensor, n: Any = None, dim: int = -1, norm: Any = None) -> T:
    return _real_inverse(input, None if n is None else [n], dim, norm, inverse=False)


@decomposes(torch.fft.hfft2)
def hfft2(input: torch.Tensor, s: Any = None, dim: Any = (-2, -1), norm: Any = None) -> T:
    return _real_inverse(input, s, dim, norm, inverse=False)


@decomposes(torch.fft.hfftn)
def hfftn(input: torch.Tensor, s: Any = None, dim: Any = None, norm: Any = None) -> T:
    return _real_inverse(input, s, dim, norm, inverse=False)


@decomposes(torch.fft.ihfft)
def ihfft(input: torch.Tensor, n: Any = None, dim: int = -1, norm: Any = None) -> T:
    return _real_forward(input, None if n is None else [n], dim, norm, inverse=True)


@decomposes(torch.fft.ihfft2)
def ihfft2(input: torch.Tensor, s: Any = None, dim: Any = (-2, -1), norm: Any = None) -> T:
    return _real_forward(input, s, dim, norm, inverse=True)


@decomposes(torch.fft.ihfftn)
def ihfftn(input: torch.Tensor, s: Any = None, dim: Any = None, norm: Any = None) -> T:
    return _real_forward(input, s, dim, norm, inverse=True)


@decomposes(torch.fft.fft2)
def fft2(input: torch.Tensor, s: Any = None, dim: Any = (-2, -1), norm: Any = None) -> T:
    return _forward(input, s, dim, norm, inverse=False)


@decomposes(torch.fft.ifft2)
def ifft2(input: torch.Tensor, s: Any = None, dim: Any = (-2, -1), norm: Any = None) -> T:
    return _forward(input, s, dim, norm, inverse=True)


@decomposes(torch.fft.rfft2)
def rfft2(input: torch.Tensor, s: Any = None, dim: Any = (-2, -1), norm: Any = None) -> T:
    return _real_forward(input, s, dim, norm)


@decomposes(torch.fft.irfft2)
def irfft2(input: torch.Tensor, s: Any = None, dim: Any = (-2, -1), norm: Any = None) -> T:
    return _real_inverse(input, s, dim, norm)


@decomposes(torch.fft.fftn)
def fftn(input: torch.Tensor, s: Any = None, dim: Any = None, norm: Any = None) -> T:
    return _forward(input, s, dim, norm, inverse=False)


@decomposes(torch.fft.ifftn)
def ifftn(input: torch.Tensor, s: Any = None, dim: Any = None, norm: Any = None) -> T:
    return _forward(input, s, dim, norm, inverse=True)


@decomposes(torch.fft.rfftn)
def rfftn(input: torch.Tensor, s: Any = None, dim: Any = None, norm: Any = None) -> T:
    return _real_forward(input, s, dim, norm)


@decomposes(torch.fft.irfftn)
def irfftn(input: torch.Tensor, s: Any = None, dim: Any = None, norm: Any = None) -> T:
    return _real_inverse(input, s, dim, norm)


# Over short stretches of a signal


def _basis(window: T, n_fft: int, onesided: bool) -> T:
    """Rows of cosines, then of negative sines, under a window: [2 * bins, 1, n_fft]."""
    bins = n_fft // 2 + 1 if onesided else n_fft
    cosine, sine = _waves(bins, n_fft, n_fft, window.dtype)
    return (torch.cat([cosine, 0.0 - sine]) * window)[:, None]


def _padded_window(window: T | None, win_length: int | None, n_fft: int, like: T) -> T:
    length = n_fft if win_length is None else win_length
    if window is None:
        window = torch.ones(length, dtype=like.dtype)
    before = (n_fft - length) // 2
    return F.pad(window, [before, n_fft - length - before]) if length < n_fft else window


@decomposes(_raw.stft)
def stft(
    input: torch.Tensor, n_fft: int, hop_length: Any = None, win_length: Any = None,
    window: Any = None, normalized: bool = False, onesided: Any = None,
    return_complex: Any = None, align_to_window: Any = None,
) -> T:  # fmt: skip
    """One convolution with all waves."""
    if align_to_window:
        raise Unlowerable("stft with align_to_window")
    x = input if input.dim() == 2 else input[None]
    hop = n_fft // 4 if hop_length is None else hop_length
    is_complex = x.is_complex() or (window is not None and window.is_complex())
    onesided = not is_complex if onesided is None else onesided
    taper = _padded_window(window, win_length, n_fft, x.real)
    basis = _basis(taper.real, n_fft, onesided)
    if taper.is_complex():
        cosine, sine = _basis(taper.imag, n_fft, onesided).chunk(2)
        basis = basis + torch.cat([0.0 - sine, cosine])
    basis = basis * n_fft**-0.5 if normalized else basis
    real, imag = torch.conv1d(x.real[:, None], basis, stride=hop).chunk(2, -2)
    if x.is_complex():
        more = torch.conv1d(x.imag[:, None], basis, stride=hop).chunk(2, -2)
        real, imag = real - more[1], imag + more[0]
    whole = torch.complex(real, imag)
    whole = whole if input.dim() == 2 else whole.squeeze(0)
    if return_complex is None:  # which eager takes from complex signals only
        return_complex = is_complex
    return whole if return_complex else torch.view_as_real(whole)


@decomposes(torch.istft)
def istft(
    input: torch.Tensor, n_fft: int, hop_length: Any = None, win_length: Any = None,
    window: Any = None, center: bool = True, normalized: bool = False, onesided: Any = None,
    length: Any = None, return_complex: bool = False,
) -> T:  # fmt: skip
    """One transposed convolution with all waves, over what the windows add up to."""
    if window is not None and window.is_complex():
        raise Unlowerable("istft with a complex window")
    x = input if input.dim() == 3 else input[None]
    if not return_complex:  # torch takes the other half for the mirror image, whatever is there
        x = x[:, : n_fft // 2 + 1]
    hop = n_fft // 4 if hop_length is None else hop_length
    real, imag = x.real, x.imag
    taper = _padded_window(window, win_length, n_fft, real)
    scale = n_fft**-0.5 if normalized else 1 / n_fft
    basis = _basis(taper, n_fft, not return_complex) * scale
    if not return_complex:
        places = torch.arange(n_fft // 2 + 1)[:, None, None]
        alone = (places == 0) | (2 * places == n_fft)
        basis = basis * torch.where(alone, 1.0, 2.0).to(real.dtype).repeat(2, 1, 1)
    y = torch.conv_transpose1d(torch.cat([real, imag], 1), basis, stride=hop)
    if return_complex:
        turned = torch.conv_transpose1d(torch.cat([imag, -real], 1), basis, stride=hop)
        y = torch.complex(y, turned)
    ones = torch.ones_like(real[:1, :1])
    total = torch.conv_transpose1d(ones, taper.square()[None, None], stride=hop)
    start = n_fft // 2 if center else 0
    whole = y.shape[-1]
    end = start + length if length is not None else whole - start
    y, total = y[:, 0, start:end], total[0, 0, start:end]
    y = y / total
    if length is not None:
        y = F.pad(y, [0, length - y.shape[-1]])
    return y if input.dim() == 3 else y.squeeze(0)
