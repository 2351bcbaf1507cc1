"""Packed features: what the tile kernels multiply.

    16-bit features   the numbers themselves, exactly, times a power of two
    float32           hi | lo, two halves side by side: x = hi + lo to 2^-22 of the row (hi alone where torch is
                      allowed TensorFloat32, which has as many bits)

Everything is fp16: products of fp16 are exact in the tensor cores' fp32 accumulators, and with the power of two chosen
so that rows (or the largest entry) reach 2^13…2^14, an entry is kept to 2^-38 of that. bfloat16's 8 bits fit fp16's 11
down to 2^-30 of it, exactly. Normalised 16-bit rows stay raw too, their inverse norm is applied to the products
instead: rounding a unit row to fp16 would move logits by 1e-3 at a scale of 100.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastclip.backends.base import Packed
from fastclip.backends.triton.plan import INTERPRETED

#: Rows are padded with zeros to whole tiles, so that no load needs a mask.
ROW_MULTIPLE, WIDTH_MULTIPLE = 256, 64

#: Rows of a program, and features at a time, of kernels over rows. Interpreted, what counts is the number of steps.
ROWS, CHUNK = (256, 512) if INTERPRETED else (16, 128)

#: The exponent that a row's norm (or the largest entry, where rows are taken as given) stays below.
TOP = 14


@dataclass(frozen=True)
class PackedHalves(Packed):
    """``row = unit * factor * (hi + lo)``, data (rows padded to 256, halves * padded width) fp16.

    Attributes:
        measure: (3,) float32: the unit, a power of two; the reach, which no row's norm of ``factor * (hi + lo)``
            exceeds; and 1 where an infinite entry was taken as given, else 0.
        factor: (M,) float32 in (1/2, 1] where 16-bit rows are normalised, else None.
        rows, features: M and D before padding.
        halves: 1, or 2 with lo.
    """

    measure: Tensor
    factor: Tensor | None
    rows: int
    features: int
    halves: int

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, rows: slice) -> PackedHalves:
        start, stop, _ = rows.indices(self.rows)
        inverse_norm, factor = (
            None if t is None else t[start:stop] for t in (self.inverse_norm, self.factor)
        )
        data = self.data[start:stop]
        return replace(self, data=data, inverse_norm=inverse_norm, factor=factor, rows=stop - start)

    @property
    def width(self) -> int:
        """Return D padded to whole tiles."""
        return self.data.shape[1] // self.halves

    def half(self, index: int, part: slice) -> Tensor:
        """Return rows `part` of hi (0) or lo (1), (rows, padded width)."""
        return self.data[part, index * self.width : (index + 1) * self.width]


def pack(features: Tensor, normalize: bool) -> PackedHalves:
    """Pack features (M, D) of float32, bfloat16 or float16, any strides, normalised if asked; no host sync."""
    (m, d), device = features.shape, features.device
    # What torch.set_float32_matmul_precision sets; the one form of it that can be read however it was set.
    tf32 = torch.backends.cuda.matmul.fp32_precision == "tf32"
    halves = 2 if features.dtype == torch.float32 and not tf32 else 1
    width = -(-d // WIDTH_MULTIPLE) * WIDTH_MULTIPLE
    padded = -(-m // ROW_MULTIPLE) * ROW_MULTIPLE
    data = torch.empty(padded, halves * width, dtype=torch.float16, device=device)
    measure = torch.empty(3, dtype=torch.float32, device=device)
    inverse_norm = torch.empty(m, dtype=torch.float32, device=device) if normalize else None
    factor = torch.empty_like(inverse_norm) if normalize and features.dtype != torch.float32 else None
    count = triton.cdiv(m, ROWS)
    peaks = None if normalize else torch.empty(3, count, dtype=torch.float32, device=device)
    if peaks is not None:
        measure_rows[(count,)](features, peaks, m, d, features.stride(), count, ROWS, CHUNK)
    pack_rows[(triton.cdiv(padded, ROWS),)](
        *(features, peaks, data, measure, inverse_norm, factor, (padded, m, d), features.stride(), count),
        *(width, halves, TOP, ROWS, CHUNK),
    )
    return PackedHalves(data, inverse_norm, measure, factor, m, d, halves)


@triton.jit
def exponent_of(size):
    """Return e with 2^e <= size < 2^(e + 1), int32, for float32."""
    return ((size.to(tl.int32, bitcast=True) >> 23) & 255) - 127


@triton.jit
def power_of_two(exponent):
    """Return 2^exponent, float32, for a whole number from -126 to 127 in int32: bits, for exp2 may round."""
    return ((exponent + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def chunk_of(features, rows, start, m, d, stride, CHUNK: tl.constexpr):
    """Return columns start… of rows, float32, 0 outside the matrix."""
    k = start + tl.arange(0, CHUNK)
    at = rows.to(tl.int64)[:, None] * stride[0] + k.to(tl.int64)[None, :] * stride[1]
    return tl.load(features + at, mask=(rows < m)[:, None] & (k < d)[None, :], other=0.0).to(tl.float32)


@triton.jit
def peak_and_norm(features, rows, m, d, stride, ROWS: tl.constexpr, CHUNK: tl.constexpr):
    """Return every row's largest finite entry and L2 norm, float32; squares neither overflow nor vanish."""
    peak = tl.zeros([ROWS], tl.float32)
    for start in range(0, d, CHUNK):
        x = tl.abs(chunk_of(features, rows, start, m, d, stride, CHUNK))
        peak = tl.maximum(peak, tl.max(tl.where(x < float("inf"), x, 0.0), 1))
    # A power of two near the peak, so that dividing by it is exact.
    down = power_of_two(tl.minimum(tl.maximum(-exponent_of(peak), -126), 126))
    squares = tl.zeros([ROWS], tl.float32)
    for start in range(0, d, CHUNK):
        x = chunk_of(features, rows, start, m, d, stride, CHUNK) * down[:, None]
        squares += tl.sum(x * x, 1)
    return peak, tl.sqrt(squares) / down


@triton.jit(do_not_specialize=["m", "count"])
def measure_rows(features, peaks, m, d, stride, count, ROWS: tl.constexpr, CHUNK: tl.constexpr):
    """Write the largest finite entry and norm of a program's rows, and whether any is infinite, to peaks (3, count)."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    peak, norm = peak_and_norm(features, rows, m, d, stride, ROWS, CHUNK)
    tl.store(peaks + tl.program_id(0), tl.max(peak, 0))
    tl.store(peaks + count + tl.program_id(0), tl.max(tl.where(norm < float("inf"), norm, 0.0), 0))
    tl.store(peaks + 2 * count + tl.program_id(0), tl.max(tl.where(norm == float("inf"), 1.0, 0.0), 0))


@triton.jit(do_not_specialize=["size", "count"])
def pack_rows(
    features,
    peaks,
    data,
    measure,
    inverse_norm,
    factor,
    size,
    stride,
    count,
    WIDTH: tl.constexpr,
    HALVES: tl.constexpr,
    TOP: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Write packed rows, and zeros behind them up to size = (padded rows, M, D).

    peaks: (3, count) from measure_rows where rows are taken as given, None where they are normalised; inverse_norm:
    (M,) where they are; factor: (M,) where 16-bit rows are.
    """
    padded, m, d = size
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = rows < m
    if inverse_norm is not None:
        peak, norm = peak_and_norm(features, rows, m, d, stride, ROWS, CHUNK)
        inverse = 1.0 / tl.where(norm > 1e-12, norm, tl.where(norm == norm, 1e-12, norm))
        tl.store(inverse_norm + rows, inverse, mask=inside)
        if factor is not None:
            power = power_of_two(tl.minimum(tl.maximum(exponent_of(inverse) + TOP, -126), 126))
            unit = 2.0 ** (1 - TOP)
            tl.store(factor + rows, inverse / power / unit, mask=inside)
        else:
            unit = 2.0**-TOP
            power = inverse / unit
        reach = 1.001 / unit
        infinite = 0.0
    else:
        peak = 0.0
        norm = 0.0
        infinite = 0.0
        for start in range(0, count, 1024):
            at = start + tl.arange(0, 1024)
            peak = tl.maximum(peak, tl.max(tl.load(peaks + at, mask=at < count, other=0.0), 0))
            norm = tl.maximum(norm, tl.max(tl.load(peaks + count + at, mask=at < count, other=0.0), 0))
            infinite = tl.maximum(
                infinite, tl.max(tl.load(peaks + 2 * count + at, mask=at < count, other=0.0), 0)
            )
        exponent = tl.minimum(tl.maximum(TOP - 1 - exponent_of(peak), -126), 126)
        power = tl.full([ROWS], 1.0, tl.float32) * power_of_two(exponent)
        unit = power_of_two(-exponent)
        reach = norm * power_of_two(exponent) * 1.001
    if tl.program_id(0) == 0:
        tl.store(measure, unit)
        tl.store(measure + 1, reach)
        tl.store(measure + 2, infinite)
    for start in range(0, WIDTH, CHUNK):
        k = start + tl.arange(0, CHUNK)
        x = chunk_of(features, rows, start, m, d, stride, CHUNK) * power[:, None]
        hi = x.to(tl.float16)
        at = rows.to(tl.int64)[:, None] * (WIDTH * HALVES) + k[None, :]
        mask = (rows < padded)[:, None] & (k < WIDTH)[None, :]
        tl.store(data + at, hi, mask=mask)
        if HALVES == 2:
            lo = tl.where(tl.abs(x) < float("inf"), x - hi.to(tl.float32), 0.0)  # an infinity is all hi
            tl.store(data + at + WIDTH, lo.to(tl.float16), mask=mask)
