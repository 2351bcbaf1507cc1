"""Whole matrix products, the library's: similarities of a block, gradients from coefficients, and how those end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastclip.backends.base import Block
from fastclip.backends.triton.pack import CHUNK, ROWS, PackedHalves
from fastclip.backends.triton.plan import INTERPRETED

#: Of the second half of coefficients (tiles.LO_POWER).
LO_POWER = 2.0**11


def similarities(x: PackedHalves, y: PackedHalves, block: Block, out: Tensor | None) -> Tensor:
    """Return a block of the similarities, float32: one product, or three for hi | lo."""
    out = torch.empty(block.shape, dtype=torch.float32, device=x.data.device) if out is None else out
    hi_x, hi_y = x.half(0, block.rows), y.half(0, block.cols).mT
    add(out, hi_x, hi_y, fresh=True)
    if x.halves == 2:
        rest = torch.empty_like(out)
        add(rest, hi_x, y.half(1, block.cols).mT, fresh=True)
        add(rest, x.half(1, block.rows), hi_y)
        infinite = torch.maximum(x.measure[2], y.measure[2]) > 0  # times a lo of 0 it would be NaN
        out += rest.masked_fill_(infinite, 0)
    out *= x.measure[0] * y.measure[0]
    if x.factor is not None and y.factor is not None:
        out *= x.factor[block.rows, None]
        out *= y.factor[block.cols]
    return out


def add_gradient(
    total: Tensor, coefficients: Tensor, packed: PackedHalves, part: slice, *, fresh: bool
) -> None:
    """Add ``G @ packed[part]`` to ``total`` (rows, padded D) float32, or put it there if `fresh`.

    ``coefficients`` are (halves, rows, cols) fp16, or (1, rows, cols) float32 for few of them.
    """
    hi = packed.half(0, part)
    if coefficients.dtype == torch.float32:
        wide = hi.float() if packed.halves == 1 else hi.float() + packed.half(1, part)
        with _no_tf32():
            add(total, coefficients[0], wide, fresh=fresh)
        return
    add(total, coefficients[0], hi, fresh=fresh)
    if packed.halves == 2:
        add(total, coefficients[1], hi, alpha=1 / LO_POWER)
        add(total, coefficients[0], packed.half(1, part))


def add(total: Tensor, a: Tensor, b: Tensor, *, fresh: bool = False, alpha: float = 1.0) -> None:
    """Add ``alpha a @ b`` to ``total`` in float32, whatever a and b are; `fresh`: there is nothing in it yet."""
    if total.is_cuda and a.dtype != torch.float32:
        wide = {"out_dtype": torch.float32}
    else:  # the CPU has no such product
        wide, a, b = {}, a.float(), b.float()
    if fresh:
        torch.mm(a, b, out=total, **wide)
    elif not wide or _adds_to_float32(total.device):
        torch.addmm(total, a, b, alpha=alpha, out=total, **wide)
    else:
        total.add_(torch.mm(a, b, **wide), alpha=alpha)


@lru_cache
def _adds_to_float32(device: torch.device) -> bool:
    """Whether this torch adds a product of halves to a float32 matrix in place; the first to have it did not."""
    total = torch.zeros(16, 16, device=device)
    half = torch.zeros(16, 16, dtype=torch.float16, device=device)
    try:
        torch.addmm(total, half, half, out=total, out_dtype=torch.float32)
    except RuntimeError:
        return False
    return True


@contextmanager
def _no_tf32() -> Iterator[None]:
    """Keep torch from rounding fp32 products to TensorFloat32."""
    matmul = torch.backends.cuda.matmul
    if matmul.fp32_precision != "tf32":
        yield
        return
    matmul.fp32_precision = "ieee"
    try:
        yield
    finally:
        matmul.fp32_precision = "tf32"


def finish(
    total: Tensor,
    packed: PackedHalves,
    partner: PackedHalves,
    power: Tensor,
    scale: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    """Return the features' gradient (M, D) from ``total`` (M, padded D) and the coefficients' `power`, one row pass.

    With unit rows ``u = x r`` and ``t`` the gradient in them: ``dx = r (t - u <u, t>)``; below F.normalize's clamp,
    where it divides by a constant, ``dx = r t``; ``dx = t`` for rows taken as given. Into ``total``, if that will do.
    """
    m, d = len(packed), packed.features
    if dtype == torch.float32 and d == packed.width:
        out = total
    else:  # the interpreter truncates where it should round to bfloat16
        out = torch.empty(m, d, dtype=torch.float32 if INTERPRETED else dtype, device=total.device)
    finish_rows[(triton.cdiv(m, ROWS),)](
        *(
            total,
            packed.data,
            packed.measure,
            packed.factor,
            packed.inverse_norm,
            partner.measure,
            power,
            scale,
            out,
        ),
        *((m, d), packed.width, packed.halves, ROWS, CHUNK),
    )
    return out.to(dtype)


@triton.jit
def gradient_chunk(total, scale, factor, rows, start, inside, WIDTH: tl.constexpr, CHUNK: tl.constexpr):
    """Return columns start… of t, float32."""
    k = start + tl.arange(0, CHUNK)
    mask = inside[:, None] & (k < WIDTH)[None, :]
    t = tl.load(total + rows.to(tl.int64)[:, None] * WIDTH + k[None, :], mask=mask, other=0.0) * scale
    return t / factor[:, None]


@triton.jit
def unit_chunk(
    data, unit, rows, start, inside, WIDTH: tl.constexpr, HALVES: tl.constexpr, CHUNK: tl.constexpr
):
    """Return columns start… of u, float32."""
    k = start + tl.arange(0, CHUNK)
    at = data + rows.to(tl.int64)[:, None] * (WIDTH * HALVES) + k[None, :]
    mask = inside[:, None] & (k < WIDTH)[None, :]
    u = tl.load(at, mask=mask, other=0.0).to(tl.float32)
    if HALVES == 2:
        u += tl.load(at + WIDTH, mask=mask, other=0.0)
    return u * unit[:, None]


@triton.jit(do_not_specialize=["size"])
def finish_rows(
    total,
    data,
    measure,
    factor,
    inverse_norm,
    partner_measure,
    power,
    scale,
    out,
    size,
    WIDTH: tl.constexpr,
    HALVES: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Scale and project a program's rows. size = (M, D); total and data have padded widths."""
    m, d = size
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = rows < m
    back = (tl.load(scale).to(tl.float64) * tl.load(partner_measure) / tl.load(power)).to(tl.float32)
    own = tl.full([ROWS], 1.0, tl.float32)
    if factor is not None:
        own = tl.load(factor + rows, mask=inside, other=1.0)
    r = tl.full([ROWS], 1.0, tl.float32)
    radial = tl.zeros([ROWS], tl.float32)
    unit = own * tl.load(measure)
    if inverse_norm is not None:
        r = tl.load(inverse_norm + rows, mask=inside, other=1.0)
        for start in range(0, WIDTH, CHUNK):
            t = gradient_chunk(total, back, own, rows, start, inside, WIDTH, CHUNK)
            radial += tl.sum(t * unit_chunk(data, unit, rows, start, inside, WIDTH, HALVES, CHUNK), 1)
        radial = tl.where(r >= 1e12, 0.0, radial)
    for start in range(0, WIDTH, CHUNK):
        t = gradient_chunk(total, back, own, rows, start, inside, WIDTH, CHUNK)
        if inverse_norm is not None:
            t = (t - unit_chunk(data, unit, rows, start, inside, WIDTH, HALVES, CHUNK) * radial[:, None]) * r[
                :, None
            ]
        k = start + tl.arange(0, CHUNK)
        at = out + rows.to(tl.int64)[:, None] * d + k[None, :]
        tl.store(at, t.to(out.dtype.element_ty), mask=inside[:, None] & (k < d)[None, :])
