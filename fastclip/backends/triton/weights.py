"""Kernels over O(M + N) numbers, backward: what turns logits into coefficients, in double precision.

    bound    statistics, upstream gradients   -> bounds of |G|
    weigh    the same, and those              -> what the coefficient kernels need, and their power of two
    total    partial sums of G S and G        -> their sums

A program owns BLOCK rows and BLOCK columns.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastclip.backends.triton.spec import LN_2, LOG2_E, Spec
from fastclip.backends.triton.sums import BLOCK, LOST, LOW_EXPONENT, margin

__all__ = ["BLOCK", "Spec", "bound", "total", "weigh"]


@triton.jit
def power_of_two(exponent):
    """Return 2^exponent, float64, for a whole number in int64."""
    return ((exponent + 1023) << 52).to(tl.float64, bitcast=True)


@triton.jit
def logistic(t):
    """Return 1 / (1 + e^-t), float64."""
    u = tl.exp(-tl.abs(t))
    return tl.where(t == t, tl.where(t > 0.0, 1.0, u) / (1.0 + u), t)


@triton.jit
def share(shift, sum, z, spec: tl.constexpr):
    """Return a bound of a row's |G| over its upstream gradient.

    Softmax: a row's negatives have ``s(rho - z)`` between them, which is also its positive's. Sigmoid: no ``s(z)``
    exceeds its ``softplus(z)``, nor that the sum of all.
    """
    if spec.objective != "softmax":
        result = tl.minimum(sum, 1.0)
        if spec.diagonal:
            result = tl.maximum(result, logistic(-z))
        return result
    else:
        if spec.diagonal:
            return logistic(margin(shift, sum, z))
        else:
            return tl.full(shift.shape, 1.0, tl.float64)


@triton.jit(do_not_specialize=["size", "diagonal"])
def bound(stats, bounds, size, diagonal, spec: tl.constexpr):
    """Write bounds of |G|: (rows', columns', 2^-100 of the largest gradient), each one number a program."""
    pid = tl.program_id(0)
    at = pid * BLOCK + tl.arange(0, BLOCK)
    inside = at < size[0]
    shift = tl.load(stats.row.shift + at, mask=inside, other=0.0)
    sum = tl.load(stats.row.sum + at, mask=inside, other=1.0)
    z = tl.load(stats.positive + at, mask=inside, other=0.0) if spec.diagonal else shift
    grad = tl.abs(tl.load(stats.row_grad + at, mask=inside, other=0.0).to(tl.float64))
    tl.store(bounds[0] + pid, tl.max(grad * share(shift, sum, z, spec), 0))
    peak = tl.max(grad, 0)
    of_columns = tl.zeros([BLOCK], tl.float64)
    if spec.columns:
        inside = at < size[1]
        own = inside
        shift = tl.load(stats.col.shift + at, mask=inside, other=0.0)
        sum = tl.load(stats.col.sum + at, mask=inside, other=1.0)
        if spec.diagonal:
            own = inside & (at >= diagonal) & (at < diagonal + size[0])
            z = tl.load(stats.positive + at - diagonal, mask=own, other=0.0)
        else:
            z = shift
        grad = tl.abs(tl.load(stats.col_grad + at, mask=own, other=0.0).to(tl.float64))
        of_columns = tl.where(own, grad * share(shift, sum, z, spec), 0.0)
        peak = tl.maximum(peak, tl.max(grad, 0))
    tl.store(bounds[1] + pid, tl.max(of_columns, 0))
    tl.store(bounds[2] + pid, peak * 7.888609052210118e-31)


@triton.jit
def largest(numbers, count):
    """Return the largest of `count` numbers, float64."""
    result = tl.zeros([1024], tl.float64)
    for start in range(0, count, 1024):
        at = start + tl.arange(0, 1024)
        result = tl.maximum(result, tl.load(numbers + at, mask=at < count, other=0.0))
    return tl.max(result, 0)


@triton.jit
def moved(shift, sum, grad, z, offset, spec: tl.constexpr):
    """Return (whole shift of the kernels' t, grad / sum at that shift) of a softmax side, float64.

    offset: what is 0 for t, in nats. Where nothing was summed up all coefficients shall be 0.
    """
    top = shift
    if spec.diagonal:
        top = tl.maximum(shift, z)
        sum = sum * tl.exp(shift - top) + tl.exp(z - top)
    whole = tl.floor((top - offset + tl.log(sum)) * LOG2_E + 0.5)
    whole = tl.minimum(tl.maximum(whole, -1e30), 1e30)
    factor = grad * tl.exp(whole * LN_2 + offset - top) / sum
    # No gradient, or nothing that it is of: a shift above every logit, where exponentials are 0 and never infinite.
    idle = (grad == 0.0) | (sum == 0.0)
    return tl.where(idle, 1e30, whole), tl.where(idle, 0.0, factor)


@triton.jit
def write_weights(out, whole, factor, power, at, inside, spec: tl.constexpr):
    """Store one side's weights to out = (shift, factor, shifted).

    Return whether `shifted` is so large that its exponentials' flushing would show.
    """
    factor *= power
    tl.store(out[0] + at, whole.to(tl.float32), mask=inside)
    tl.store(out[1] + at, factor.to(tl.float32), mask=inside)
    low = tl.zeros([BLOCK], tl.int32)
    if spec.guard != "":
        shifted = factor * tl.exp(-whole * LN_2)
        tl.store(out[2] + at, shifted.to(tl.float32), mask=inside)
        highest = -LOW_EXPONENT - LOST - 11 * (spec.halves - 1)
        low = tl.where(inside & (tl.log2(tl.abs(shifted)) > highest), 1, 0)
    return low


@triton.jit(do_not_specialize=["size", "diagonal", "count"])
def weigh(stats, bounds, logit, weights, power_out, flags, size, diagonal, count, spec: tl.constexpr):
    """Write the coefficient kernels' weights, times the power of two that brings the largest |G| to 2^14…2^15.

    bounds: as `bound` left them, `count` programs' each. flags: one a program, set where one exponential for both
    sides would lose digits (spec.guard). With spec.exact the power is 1.
    """
    pid = tl.program_id(0)
    at = pid * BLOCK + tl.arange(0, BLOCK)
    offset = tl.load(logit + 1).to(tl.float64) + tl.load(logit + 2).to(tl.float64) * LN_2
    exponent = tl.zeros([], tl.int64)
    if not spec.exact:
        size_of_g = largest(bounds[0], count) + largest(bounds[1], count)
        size_of_g = tl.maximum(size_of_g, largest(bounds[2], count))
        exponent = 14 - ((size_of_g.to(tl.int64, bitcast=True) >> 52) - 1023)
        exponent = tl.minimum(tl.maximum(exponent, -900), 900)
    power = power_of_two(exponent)
    if pid == 0:
        tl.store(power_out, power)

    inside = at < size[0]
    grad = tl.load(stats.row_grad + at, mask=inside, other=0.0).to(tl.float64)
    shift = tl.load(stats.row.shift + at, mask=inside, other=0.0)
    sum = tl.load(stats.row.sum + at, mask=inside, other=1.0)
    z = tl.load(stats.positive + at, mask=inside, other=0.0) if spec.diagonal else shift
    on_positive = (
        -grad * logistic(-z) if spec.objective != "softmax" else -grad * logistic(margin(shift, sum, z))
    )
    whole = tl.zeros([BLOCK], tl.float64)
    factor = grad
    if spec.objective == "softmax":
        whole, factor = moved(shift, sum, grad, z, offset, spec)
    row_out = (weights.row_shift, weights.row_factor, weights.row_shifted)
    low = write_weights(row_out, whole, factor, power, at, inside, spec)
    if spec.columns and spec.diagonal:
        own = at + diagonal
        shift = tl.load(stats.col.shift + own, mask=inside, other=0.0)
        sum = tl.load(stats.col.sum + own, mask=inside, other=1.0)
        grad = tl.load(stats.col_grad + own, mask=inside, other=0.0).to(tl.float64)
        on_positive -= grad * logistic(margin(shift, sum, z))
    if spec.diagonal:
        tl.store(weights.positive + at, (on_positive * power).to(tl.float32), mask=inside)

    if spec.columns:
        inside = at < size[1]
        own = inside
        if spec.diagonal:
            own = inside & (at >= diagonal) & (at < diagonal + size[0])
            z = tl.load(stats.positive + at - diagonal, mask=own, other=0.0)
        shift = tl.load(stats.col.shift + at, mask=inside, other=0.0)
        if not spec.diagonal:
            z = shift
        sum = tl.load(stats.col.sum + at, mask=inside, other=1.0)
        grad = tl.load(stats.col_grad + at, mask=own, other=0.0).to(tl.float64)
        whole, factor = moved(shift, sum, grad, z, offset, spec)
        col_out = (weights.col_shift, weights.col_factor, weights.col_shifted)
        low = tl.maximum(low, write_weights(col_out, whole, factor, power, at, inside, spec))
    if spec.guard != "":
        tl.store(flags + pid, tl.max(low, 0))


@triton.jit(do_not_specialize=["count"])
def total(parts, power, x_unit, y_unit, out, count):
    """Write (sum of G S, sum of G), float64, from partial sums (2, count) of what the kernels call g and s."""
    which = tl.program_id(0)
    result = tl.zeros([1024], tl.float64)
    for start in range(0, count, 1024):
        at = start + tl.arange(0, 1024)
        result += tl.load(parts + which * count + at, mask=at < count, other=0.0).to(tl.float64)
    sum = tl.sum(result, 0) / tl.load(power)
    if which == 0:
        sum = sum * tl.load(x_unit) * tl.load(y_unit)
    tl.store(out + which, sum)
