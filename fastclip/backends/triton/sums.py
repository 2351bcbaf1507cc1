"""Kernels over O(M + N) numbers, forward: in double precision, where it costs nothing.

    prepare           scale, bias and the bound of all logits            -> logit = (c, bias, shift b, …)
    check_sums        partial sums at one shift                          -> sums, flags
    merge             partial sums or pairs into the running statistics
    positives         rows of packed features                            -> logits of the positives
    values            statistics, positives                              -> the loss of every row and column

A program owns BLOCK rows or BLOCK columns; the rows' programs come first.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastclip.backends.triton.spec import EMPTY, LN_2, LOG2_E, Spec
from fastclip.backends.triton.tiles import permitted

#: Rows or columns of a program, and how many partial results it takes in at a time.
BLOCK, PARTS = tl.constexpr(64), tl.constexpr(32)
#: fp32's largest exponent, and the smallest that is not flushed to 0.
TOP_EXPONENT, LOW_EXPONENT = tl.constexpr(127.0), tl.constexpr(-126.0)
#: What is flushed may be 2^-26 of a sum, and in the backward pass 2^-25 of fp16's unit.
LOST = tl.constexpr(26.0)

__all__ = ["BLOCK", "Spec", "check_sums", "merge", "positives", "prepare", "values"]


@triton.jit
def log1p_exp(t):
    """Return log(1 + e^t), float64."""
    u = tl.exp(-tl.abs(t))
    v = 1.0 + u
    small = tl.where(v == 1.0, u, tl.log(v) * (u / tl.where(v == 1.0, 1.0, v - 1.0)))
    return tl.where(t > 0.0, t, 0.0) + tl.where(t == t, small, t)


@triton.jit
def margin(shift, sum, z):
    """Return rho - z; NaN for an infinite positive, which is no perfect fit."""
    return (shift - z) + tl.log(sum) + 0.0 * z


@triton.jit(do_not_specialize=["count"])
def prepare(scale, bias, x_measure, y_measure, logit, count, spec: tl.constexpr):
    """Write logit = (c, bias, b, flush, infinite), float32: t = c s - b (softmax), z = c s + bias (sigmoid).

    ``*_measure``: (unit, reach, infinite) of packed features; no |s| exceeds the product of the two reaches, no |t|
    then ``B = |c| reach_x reach_y``. Sums of `count` terms at the shift ``b = max(0, B + log2 count - 127)`` cannot
    overflow. They lose terms only if the smallest, ``2^(-B - b)``, is flushed: only then is flush 1 (check_sums).
    """
    c = tl.load(scale).to(tl.float64) * tl.load(x_measure).to(tl.float64) * tl.load(y_measure).to(tl.float64)
    if spec.objective == "softmax":
        c *= LOG2_E
    c = c.to(tl.float32)
    tl.store(logit, c)
    tl.store(logit + 1, tl.load(bias).to(tl.float32) if bias is not None else 0.0)
    largest = tl.abs(c.to(tl.float64)) * tl.load(x_measure + 1) * tl.load(y_measure + 1)
    shift = tl.ceil(tl.maximum(0.0, largest + tl.log2(count.to(tl.float64)) - TOP_EXPONENT))
    tl.store(logit + 2, shift.to(tl.float32))
    tl.store(logit + 3, tl.where(largest + shift > -LOW_EXPONENT, 1.0, 0.0))
    tl.store(logit + 4, tl.maximum(tl.load(x_measure + 2), tl.load(y_measure + 2)))


@triton.jit
def added(parts, count, n, at, inside):
    """Return the sum over `count` partial results (count, n) at columns `at`, float64."""
    result = tl.zeros([BLOCK], tl.float64)
    for start in range(0, count, PARTS):
        part = start + tl.arange(0, PARTS)
        mask = (part < count)[:, None] & inside[None, :]
        block = tl.load(parts + part.to(tl.int64)[:, None] * n + at[None, :], mask=mask, other=0.0)
        result += tl.sum(block.to(tl.float64), 0)
    return result


@triton.jit
def joined(pairs, count, n, at, inside):
    """Return (shift in log2 units, sum) over `count` partial pairs (count, n) at columns `at`, float64."""
    shift = tl.full([BLOCK], EMPTY, tl.float32)
    for start in range(0, count, PARTS):
        part = start + tl.arange(0, PARTS)
        mask = (part < count)[:, None] & inside[None, :]
        block = tl.load(pairs[0] + part.to(tl.int64)[:, None] * n + at[None, :], mask=mask, other=EMPTY)
        shift = tl.maximum(shift, tl.max(block, 0))
    result = tl.zeros([BLOCK], tl.float64)
    for start in range(0, count, PARTS):
        part = start + tl.arange(0, PARTS)
        mask = (part < count)[:, None] & inside[None, :]
        where = part.to(tl.int64)[:, None] * n + at[None, :]
        own = tl.load(pairs[0] + where, mask=mask, other=EMPTY)
        block = tl.load(pairs[1] + where, mask=mask, other=0.0)
        result += tl.sum(block.to(tl.float64) * tl.exp((own - shift[None, :]).to(tl.float64) * LN_2), 0)
    return shift.to(tl.float64), result


@triton.jit(do_not_specialize=["size", "parts"])
def check_sums(row_part, col_part, row_sum, col_sum, flags, logit, size, parts, spec: tl.constexpr):
    """Add up partial sums at the shift b; flag those so small that flushed terms may show.

    A flushed term is below 2^-126, so `count` of them are below 2^-26 of any sum above ``count 2^(26 - 126)``.
    """
    pid = tl.program_id(0)
    of_rows = pid < tl.cdiv(size[0], BLOCK)
    lowest = tl.where(tl.load(logit + 3) > 0.0, LOST + LOW_EXPONENT, float("-inf"))
    if of_rows:
        at = pid * BLOCK + tl.arange(0, BLOCK)
        inside = at < size[0]
        sums = added(row_part, parts[0], size[0], at, inside)
        tl.store(row_sum + at, sums, mask=inside)
        # Added, not converted: a size of 1 is a compile-time constant, which has no dtype.
        low = inside & (tl.log2(sums) < lowest + tl.log2(tl.zeros([], tl.float64) + size[1]))
        tl.store(flags + pid, tl.max(tl.where(low, 1, 0), 0))
    else:
        at = (pid - tl.cdiv(size[0], BLOCK)) * BLOCK + tl.arange(0, BLOCK)
        inside = at < size[1]
        sums = added(col_part, parts[1], size[1], at, inside)
        tl.store(col_sum + at, sums, mask=inside)
        low = inside & (tl.log2(sums) < lowest + tl.log2(tl.zeros([], tl.float64) + size[0]))
        tl.store(flags + pid, tl.max(tl.where(low, 1, 0), 0))


@triton.jit
def merge_side(pairs, fixed, running, logit, flagged, count, n, first, spec: tl.constexpr):
    """Bring BLOCK partial results into the running statistics."""
    at = first + tl.arange(0, BLOCK)
    inside = at < n
    if spec.objective != "softmax":
        more = added(pairs[1], count, n, at, inside)
        tl.store(running.sum + at, tl.load(running.sum + at, mask=inside) + more, mask=inside)
    else:
        if fixed is None:
            shift, more = joined(pairs, count, n, at, inside)
        else:
            if flagged:
                shift, more = joined(pairs, count, n, at, inside)
            else:
                shift = tl.zeros([BLOCK], tl.float64)
                more = tl.load(fixed + at, mask=inside, other=0.0)
        shift = (shift + tl.load(logit + 2)) * LN_2 + tl.load(logit + 1)
        old_shift = tl.load(running.shift + at, mask=inside, other=0.0)
        old = tl.load(running.sum + at, mask=inside, other=0.0)
        top = tl.maximum(old_shift, shift)
        tl.store(running.shift + at, top, mask=inside)
        both = old * tl.exp(old_shift - top) + more * tl.exp(shift - top)
        tl.store(running.sum + at, both, mask=inside)


@triton.jit(do_not_specialize=["size", "parts"])
def merge(row_pairs, col_pairs, row_fixed, col_fixed, stats, flags, logit, size, parts, spec: tl.constexpr):
    """Bring a block's partial results into its part of the running statistics.

    ``*_pairs``: partial (shift, sum), the tile kernels'. ``*_fixed``: sums at the shift b, to be used instead where no
    flag is set; None: there are none.
    """
    pid = tl.program_id(0)
    row_programs = tl.cdiv(size[0], BLOCK)
    flagged = 1
    if spec.guard != "":
        flagged = permitted(flags, spec)
    if pid < row_programs:
        merge_side(row_pairs, row_fixed, stats.row, logit, flagged, parts[0], size[0], pid * BLOCK, spec)
    elif spec.columns:
        first = (pid - row_programs) * BLOCK
        merge_side(col_pairs, col_fixed, stats.col, logit, flagged, parts[1], size[1], first, spec)


@triton.jit(do_not_specialize=["m", "diagonal"])
def positives(x, y, row_factor, col_factor, logit, out, m, diagonal, spec: tl.constexpr):
    """Write the positives' logits in nats (m,), with the kernels' own rounding of scale."""
    D: tl.constexpr = spec.width
    STRIDE: tl.constexpr = D * spec.halves
    ROWS: tl.constexpr = 16
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = rows < m
    k = tl.arange(0, 64)
    x += rows.to(tl.int64)[:, None] * STRIDE + k[None, :]
    y += (rows + diagonal).to(tl.int64)[:, None] * STRIDE + k[None, :]
    s = tl.zeros([ROWS], tl.float64)
    for start in range(0, D, 64):
        a = tl.load(x + start, mask=inside[:, None], other=0.0).to(tl.float32)
        b = tl.load(y + start, mask=inside[:, None], other=0.0).to(tl.float32)
        if spec.halves == 2:
            a += tl.load(x + D + start, mask=inside[:, None], other=0.0)
            b += tl.load(y + D + start, mask=inside[:, None], other=0.0)
        s += tl.sum(a.to(tl.float64) * b.to(tl.float64), 1)
    if spec.factors:
        s *= tl.load(row_factor + rows, mask=inside, other=0.0)
        s *= tl.load(col_factor + rows + diagonal, mask=inside, other=0.0)
    c = tl.load(logit).to(tl.float64)
    if spec.objective == "softmax":
        c *= LN_2
    tl.store(out + rows, s * c + tl.load(logit + 1), mask=inside)


@triton.jit
def value(shift, sum, z, spec: tl.constexpr):
    """Return the loss of a row or column from its statistics and, where it has one, its positive."""
    if spec.objective != "softmax":
        if spec.diagonal:
            sum += log1p_exp(-z)
        return sum
    else:
        if spec.diagonal:
            return log1p_exp(margin(shift, sum, z))
        else:
            return shift + tl.log(sum)


@triton.jit(do_not_specialize=["size", "diagonal"])
def values(stats, row_out, col_out, size, diagonal, spec: tl.constexpr):
    """Write the rows' values (M,) and the columns' (N,), 0 for a column without a positive; float32."""
    pid = tl.program_id(0)
    row_programs = tl.cdiv(size[0], BLOCK)
    if pid < row_programs:
        at = pid * BLOCK + tl.arange(0, BLOCK)
        inside = at < size[0]
        shift = tl.load(stats.row.shift + at, mask=inside, other=0.0)
        sum = tl.load(stats.row.sum + at, mask=inside, other=1.0)
        z = tl.load(stats.positive + at, mask=inside, other=0.0) if spec.diagonal else shift
        tl.store(row_out + at, value(shift, sum, z, spec).to(tl.float32), mask=inside)
    elif spec.columns:
        at = (pid - row_programs) * BLOCK + tl.arange(0, BLOCK)
        inside = at < size[1]
        shift = tl.load(stats.col.shift + at, mask=inside, other=0.0)
        sum = tl.load(stats.col.sum + at, mask=inside, other=1.0)
        own = inside & (at >= diagonal) & (at < diagonal + size[0])
        z = tl.load(stats.positive + at - diagonal, mask=own, other=0.0) if spec.diagonal else shift
        result = value(shift, sum, z, spec)
        if spec.diagonal:
            result = tl.where(own, result, 0.0)
        tl.store(col_out + at, result.to(tl.float32), mask=inside)
