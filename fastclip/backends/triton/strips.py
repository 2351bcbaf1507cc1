"""The kernels that large problems spend their time in: whole tiles, no masks, one exponential an element.

    strip_statistics      forward: a program walks down a strip of columns and keeps its column sums in registers
    edge_statistics       forward: what that leaves out, with masks: tiles on the diagonal, those with equal labels (as
                          labels.py marked them), and ragged ones
    sweep_coefficients    backward: all whole tiles; tile_coefficients then redoes the others

One exponential: every sum has the same shift, the b that is in all logits t already (made from a bound of them, see
sums.py), and the coefficient is ``2^t (R_i + C_j)`` with the sums' own shifts moved into R and C. Where b lies so
far above a row's own logits that digits would be lost, a flag says so and tiles.py's kernels do the work again.

Why no masks: a mask in these loops costs 40 registers and spills. Why the reshape: the rows of a warp's registers are
added where they are, and cross-lane reductions happen once a strip instead of once a tile.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastclip.backends.triton.spec import LO_POWER, Spec
from fastclip.backends.triton.tiles import (
    grouped,
    logits,
    marked,
    permitted,
    product,
    roles,
    sigmoid,
    softplus,
    with_factors,
)

__all__ = ["Spec", "edge_statistics", "strip_statistics", "sweep_coefficients"]


@triton.jit
def diagonal_tiles(strip, tiles, place, spec: tl.constexpr):
    """Return the range [first, last) of a strip's rows of tiles that hold positives, cut to [0, tiles)."""
    if not spec.diagonal:
        return 0, 0
    else:
        row = strip * spec.block_n + place.col - place.diagonal - place.row  # of the first column's positive
        first = tl.minimum(tl.maximum(row, 0) // spec.block_m, tiles)
        last = tl.minimum((tl.maximum(row + spec.block_n, 0) + spec.block_m - 1) // spec.block_m, tiles)
        return first, tl.maximum(last, first)


@triton.jit
def exponential(acc, rows, cols, logit, place, row_side, col_side, spec: tl.constexpr):
    """Return what a tile's sums add up: 2^t, or softplus(z)."""
    s = with_factors(acc, rows, cols, place, row_side, col_side, spec)
    t = logits(s, logit, spec)
    if spec.objective == "softmax":
        return tl.exp2(t)
    else:
        return softplus(t)


@triton.jit(do_not_specialize=["place", "splits", "marks"])
def strip_statistics(
    x, y, row_side, col_side, logit, marks, row_out, col_out, place, splits, spec: tl.constexpr
):
    """Sum a part of a strip's whole tiles: program (strip, split), those of `group` strips side by side.

    row_out: (strips, rows of the block); col_out: (splits + …, columns of the block).
    """
    BLOCK_M: tl.constexpr = spec.block_m
    BLOCK_N: tl.constexpr = spec.block_n
    height, width = place.row_end - place.row, place.col_end - place.col
    tiles, strips = height // BLOCK_M, width // BLOCK_N
    pid = tl.program_id(0)
    first = pid // (spec.group * splits) * spec.group
    side_by_side = tl.minimum(strips - first, spec.group)
    inside = pid % (spec.group * splits)
    strip, split = first + inside % side_by_side, inside // side_by_side
    skip, resume = diagonal_tiles(strip, tiles, place, spec)
    tiles -= resume - skip
    each = tl.cdiv(tiles, splits)
    col = place.col + strip * BLOCK_N
    cols = col + tl.arange(0, BLOCK_N)
    row_at = row_out + strip.to(tl.int64) * height
    if spec.fragments:
        sums = tl.zeros([BLOCK_M // 16, 8, BLOCK_N], tl.float32)
    else:
        sums = tl.zeros([BLOCK_N], tl.float32)
    for index in tl.range(split * each, tl.minimum(split * each + each, tiles), flatten=True):
        tile = index + tl.where(index >= skip, resume - skip, 0)
        row = place.row + tile * BLOCK_M
        acc = product(x, y, logit, row, col, spec)
        rows = row + tl.arange(0, BLOCK_M)
        e = exponential(acc, rows, cols, logit, place, row_side, col_side, spec)
        tl.store(row_at + tile * BLOCK_M + tl.arange(0, BLOCK_M), tl.sum(e, 1))
        if spec.columns:
            if spec.fragments:
                part = tl.sum(tl.reshape(e, [BLOCK_M // 16, 2, 8, BLOCK_N]), 1)
            else:
                part = tl.sum(e, 0)
            if spec.labels:  # (the tile's row sums are written again)
                part = tl.where(marked(marks, tile, strip, place, spec), 0.0, part)
            sums += part
    if spec.columns:
        if spec.fragments:
            sums = tl.sum(tl.sum(sums, 0), 0)
        col_at = col_out + split.to(tl.int64) * width + strip * BLOCK_N
        tl.store(col_at + tl.arange(0, BLOCK_N), sums)


@triton.jit(do_not_specialize=["place", "splits", "marks"])
def edge_statistics(
    x, y, row_side, col_side, logit, marks, row_out, col_out, place, splits, spec: tl.constexpr
):
    """Sum the other tiles: of every whole strip those on the diagonal, the ragged last one and those marked, and the
    ragged strip.

    A strip has `slots` programs, each with a row of column sums of its own behind the `splits` of strip_statistics. The
    ragged strip, which has no others, is shared by splits + slots programs.
    """
    BLOCK_M: tl.constexpr = spec.block_m
    BLOCK_N: tl.constexpr = spec.block_n
    RAGGED: tl.constexpr = BLOCK_N // BLOCK_M + 1
    SLOTS: tl.constexpr = spec.slots
    height, width = place.row_end - place.row, place.col_end - place.col
    tiles, strips = height // BLOCK_M, width // BLOCK_N
    pid = tl.program_id(0)
    if pid < strips * SLOTS:
        strip = pid // SLOTS
        kind = pid % SLOTS
        skip, resume = diagonal_tiles(strip, tiles, place, spec)
        begin = tl.where(kind == RAGGED, tiles, skip + kind)
        end = tl.where(kind == RAGGED, tl.cdiv(height, BLOCK_M), tl.minimum(begin + 1, resume))
        if spec.labels:
            begin, end = tl.where(kind > RAGGED, 0, begin), tl.where(kind > RAGGED, tiles, end)
        slot = splits + kind
    else:
        strip = strips
        kind = 0
        skip, resume = 0, 0
        slot = pid - strips * SLOTS
        each = tl.cdiv(tl.cdiv(height, BLOCK_M), splits + SLOTS)
        begin = slot * each
        end = tl.minimum(begin + each, tl.cdiv(height, BLOCK_M))
    col = place.col + strip * BLOCK_N
    cols = col + tl.arange(0, BLOCK_N)
    sums = tl.zeros([BLOCK_N], tl.float32)
    for tile in range(begin, end):
        wanted = True
        if spec.labels:  # marked, and not on the diagonal, whose tiles have slots of their own
            alone = marked(marks, tile, strip, place, spec) & ((tile < skip) | (tile >= resume))
            wanted = (kind <= RAGGED) | alone
        if wanted:
            row = place.row + tile * BLOCK_M
            rows = row + tl.arange(0, BLOCK_M)
            acc = product(x, y, logit, row, col, spec)
            e = exponential(acc, rows, cols, logit, place, row_side, col_side, spec)
            summed, _positive, _shared = roles(rows, cols, place, row_side, col_side, spec)
            e = tl.where(summed, e, 0.0)
            row_at = row_out + strip.to(tl.int64) * height + (rows - place.row)
            tl.store(row_at, tl.sum(e, 1), mask=rows < place.row_end)
            sums += tl.sum(e, 0)
    if spec.columns:
        col_at = col_out + slot.to(tl.int64) * width + (cols - place.col)
        tl.store(col_at, sums, mask=cols < place.col_end)


@triton.jit
def halved(tile):
    """Return the left and the right half of a tile's columns; its registers stay where they are."""
    M: tl.constexpr = tile.shape[0]
    N: tl.constexpr = tile.shape[1]
    return tl.split(tl.permute(tl.reshape(tile, (M, 2, N // 2)), (0, 2, 1)))


@triton.jit
def pieces(tile, spec: tl.constexpr):
    """Return a tile's columns in spec.pieces, 2 or 4."""
    left, right = halved(tile)
    if spec.pieces == 2:
        return left, right
    else:
        first, second = halved(left)
        third, fourth = halved(right)
        return first, second, third, fourth


@triton.jit
def write_coefficients(
    acc,
    row_weight,
    row,
    col,
    row_side,
    col_side,
    logit,
    weights,
    hi_out,
    lo_out,
    place,
    stride,
    spec: tl.constexpr,
):
    """Write the coefficients of a piece of a tile from its products; return its rows' sums of (G·s, G).

    With factors f: ``s = acc f_i f_j`` and ``h = g f_i f_j`` is written, so that ``g s = h acc``.
    """
    rows, cols = row + tl.arange(0, acc.shape[0]), col + tl.arange(0, acc.shape[1])
    t = logits(with_factors(acc, rows, cols, place, row_side, col_side, spec), logit, spec)
    if spec.objective == "softmax":
        p = tl.exp2(t)
    else:
        p = sigmoid(t)
    g_sum = row_weight
    if spec.bias and spec.factors:
        g_sum *= tl.sum(p, 1)
        if spec.columns:
            g_sum += tl.sum(p * tl.load(weights.col_shifted + cols)[None, :], 1)
    if spec.factors:
        row_factor = tl.load(row_side.factor + rows)
        col_factor = tl.load(col_side.factor + cols)
        weight = (row_weight * row_factor)[:, None] * col_factor[None, :]
        if spec.columns:
            col_weight = tl.load(weights.col_shifted + cols) * col_factor
            weight = tl.fma(row_factor[:, None], col_weight[None, :], weight)
    else:
        weight = row_weight[:, None]
        if spec.columns:
            weight = weight + tl.load(weights.col_shifted + cols)[None, :]
    h = p * weight
    gs_sum = tl.sum(h * acc, 1)
    if spec.bias and not spec.factors:
        g_sum = tl.sum(h, 1)
    hi = h.to(tl.float16)
    row_at, col_at = row - place.row, tl.multiple_of(col - place.col, acc.shape[1])
    at = (rows - place.row).to(tl.int64)[:, None] * tl.multiple_of(stride, 8)
    at += (col_at + tl.arange(0, acc.shape[1]))[None, :]
    if spec.tma:
        hi_out.store([row_at, col_at], hi)
    else:
        tl.store(hi_out + at, hi)
    if spec.halves == 2:
        lo = ((h - hi.to(tl.float32)) * LO_POWER).to(tl.float16)
        if spec.tma:
            lo_out.store([row_at, col_at], lo)
        else:
            tl.store(lo_out + at, lo)
    return gs_sum, g_sum


@triton.jit(do_not_specialize=["place", "stride", "marks"])
def sweep_coefficients(
    x,
    y,
    row_side,
    col_side,
    logit,
    weights,
    marks,
    hi_out,
    lo_out,
    totals,
    flags,
    place,
    stride,
    spec: tl.constexpr,
):
    """Write the coefficients of all whole tiles of a block, as many programs as there are sharing them.

    Tiles on the diagonal, and marked ones, are written as if they had nothing but negatives, to be written again, and
    left out of the totals.

    hi_out, lo_out: fp16 (rows of the block, stride), lo_out None for one half. With spec.tma, descriptors of `pieces`:
        a tile leaves piece by piece, which needs fewer registers and less staging memory.
    totals: (sum of G·s, sum of G), each (programs, BLOCK_M): to add them up here would spill registers.
    """
    BLOCK_M: tl.constexpr = spec.block_m
    BLOCK_N: tl.constexpr = spec.block_n
    PIECES: tl.constexpr = spec.pieces
    tiles_m, tiles_n = (place.row_end - place.row) // BLOCK_M, (place.col_end - place.col) // BLOCK_N
    gs_total = tl.zeros([BLOCK_M], tl.float32)
    g_total = tl.zeros([BLOCK_M], tl.float32)
    tiles = tiles_m * tiles_n
    if spec.guard != "":
        tiles *= permitted(flags, spec)
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=True):
        pm, strip = grouped(tile, tiles_m, tiles_n, spec)
        row, col = place.row + pm * BLOCK_M, place.col + strip * BLOCK_N
        if spec.labels:  # asked for here, where registers are free
            again = marked(marks, pm, strip, place, spec)
        parts = pieces(product(x, y, logit, row, col, spec), spec)
        rows = row + tl.arange(0, BLOCK_M)
        row_weight = tl.load(
            (weights.row_shifted if spec.objective == "softmax" else weights.row_factor) + rows
        )
        gs = tl.zeros([BLOCK_M], tl.float32)
        g = tl.zeros([BLOCK_M], tl.float32)
        for index in tl.static_range(PIECES):
            gs_part, g_part = write_coefficients(
                *(
                    parts[index],
                    row_weight,
                    row,
                    col + index * (BLOCK_N // PIECES),
                    row_side,
                    col_side,
                    logit,
                ),
                *(weights, hi_out, lo_out, place, stride, spec),
            )
            gs += gs_part
            g += g_part
        if spec.diagonal:
            first_positive = row + place.diagonal
            on_diagonal = (first_positive < col + BLOCK_N) & (first_positive + BLOCK_M > col)
            gs, g = tl.where(on_diagonal, 0.0, gs), tl.where(on_diagonal, 0.0, g)
        if spec.labels:
            gs, g = tl.where(again, 0.0, gs), tl.where(again, 0.0, g)
        gs_total += gs
        if spec.bias:
            g_total += g
    at = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    tl.store(totals[0] + at, gs_total)
    tl.store(totals[1] + at, g_total)
