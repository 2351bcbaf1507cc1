"""The blockwise driver: walks the similarity matrix block by block, forward and backward, and never holds it.

    forward    for each block: statistics of its negatives            -> values of rows and columns
    backward   for each block: coefficients G, dx += G y, dy += G' x  -> gradients

Memory is the packed features, the gradients and one block, whatever M and N are. A *workspace* keeps the products of
the first blocks from the forward pass for the backward pass, which then need not be computed again: with a kept
fraction f the work is (8 - 2f) M N D FLOPs, and every number stays the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fastclip import objectives
from fastclip.backends import Backend, Block, Problem, compute_dtype
from fastclip.objectives import Coefficients, Objective, Sums


@dataclass
class Statistics:
    """What the forward pass leaves for the backward pass: O(M + N), and the kept products.

    ``cols`` is None for losses of rows alone, ``positive`` where rows have none; ``products`` is flat, maybe empty.
    """

    rows: Sums
    cols: Sums | None
    positive: Tensor | None
    products: Tensor


@dataclass
class Gradients:
    """Of the features (None where not asked for), and of scale and bias (0-d)."""

    x: Tensor | None
    y: Tensor | None
    scale: Tensor
    bias: Tensor


def pose(
    backend: Backend,
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    labels: tuple[Tensor, Tensor] | None,
    objective: Objective,
    normalize: bool,
    diagonal: int | None,
) -> Problem:
    """Pack features x (M, D), y (N, D) and labels for a backend."""
    row_labels, col_labels = (None, None) if labels is None else backend.pack_labels(*labels)
    packed_x = backend.pack(x, normalize)
    packed_y = packed_x if y is x else backend.pack(y, normalize)
    return Problem(packed_x, packed_y, scale, bias, objective, diagonal, row_labels, col_labels)


def statistics(
    backend: Backend, problem: Problem, dtype: torch.dtype, *, columns: bool, keep: int
) -> Statistics:
    """Run the forward pass.

    Args:
        dtype: of the features.
        columns: whether the columns' sums are wanted too.
        keep: how many products to keep for the backward pass, in elements; whole blocks that fit are kept.
    """
    m, n, device = len(problem.x), len(problem.y), problem.x.data.device
    sums_dtype = backend.sums_dtype(dtype)
    rows = Sums.empty(m, sums_dtype, device)
    cols = Sums.empty(n, sums_dtype, device) if columns else None
    kept = _Kept(torch.empty(keep, dtype=compute_dtype(dtype), device=device))
    shape = backend.statistics_shape(problem)
    scratch = _scratch(backend, problem, shape) if backend.keeps_products else None
    for block in _cover(m, n, shape):
        products = kept.next(block) if keep else None
        if products is None and scratch is not None:
            products = backend.scratch_of(scratch, block)
        part = None if cols is None else cols[block.cols]
        backend.statistics(problem, block, rows[block.rows], part, products)
    positive = None if problem.diagonal is None else backend.positives(problem, sums_dtype)
    return Statistics(rows, cols, positive, kept.memory)


def values(
    problem: Problem, statistics: Statistics, backend: Backend | None = None
) -> tuple[Tensor, Tensor | None]:
    """Return the rows' values (M,) and the columns' (N,), nats; 0 for a column without a positive."""
    positive, cols = statistics.positive, statistics.cols
    own_way = None if backend is None else backend.values(problem, statistics.rows, cols, positive)
    if own_way is not None:
        return own_way
    row = objectives.values(problem.objective, statistics.rows, positive)
    if cols is None:
        return row, None
    if positive is None or problem.diagonal is None:
        return row, objectives.values(problem.objective, cols, None)
    own = slice(problem.diagonal, problem.diagonal + len(row))
    col = torch.zeros_like(cols.sum)
    col[own] = objectives.values(problem.objective, cols[own], positive)
    return row, col


def gradients(
    backend: Backend,
    problem: Problem,
    statistics: Statistics,
    row_grad: Tensor,
    col_grad: Tensor | None,
    dtype: torch.dtype,
    *,
    need_x: bool,
    need_y: bool,
) -> Gradients:
    """Run the backward pass from the gradients of the rows' values (M,) and the columns' (N,).

    Of x's gradient one row of blocks at a time is summed up, so that only dy is ever there as a whole in float32.
    """
    m, n, device = len(problem.x), len(problem.y), problem.x.data.device
    weights = backend.weigh(
        problem,
        statistics.rows,
        statistics.cols,
        statistics.positive,
        row_grad.contiguous(),  # a sum's gradient is one number, expanded
        None if col_grad is None else col_grad.contiguous(),
    )
    wide = compute_dtype(dtype)
    shape = backend.coefficients_shape(problem)
    dx, row_sums = None, torch.empty(min(m, shape[0]), problem.x.width, dtype=wide, device=device)
    dy = torch.empty(n, problem.y.width, dtype=wide, device=device) if need_y else None
    parts = []
    kept = _Kept(statistics.products)
    scratch = _scratch(backend, problem, shape)
    for block in _cover(m, n, shape):
        products = kept.next(block) if kept.memory.numel() else None
        g = backend.scratch_of(scratch, block)
        parts.append(backend.coefficients(problem, block, weights, products, g))
        if need_x:
            own = row_sums[: block.shape[0]]
            backend.add_product(own, g, problem.y, block.cols, fresh=block.cols.start == 0)
            if block.cols.stop == n:
                part = backend.finish(own, problem.x[block.rows], problem.y, weights, problem.scale, dtype)
                dx = _joined(dx, part, block.rows, m)
        if dy is not None:
            backend.add_product(dy[block.cols], g.mT, problem.x, block.rows, fresh=block.rows.start == 0)
    totals = backend.totals(problem, weights, parts)
    scale, bias = (torch.as_tensor(t, dtype=problem.scale.dtype, device=device) for t in totals)
    return Gradients(
        x=dx,
        y=None if dy is None else backend.finish(dy, problem.y, problem.x, weights, problem.scale, dtype),
        scale=scale,
        bias=bias,
    )


def differences(
    backend: Backend,
    student: Problem,
    teacher: Problem,
    weights: tuple[Coefficients, Coefficients],
    dtype: torch.dtype,
    *,
    need_grad: bool,
) -> tuple[Tensor, Gradients]:
    """Walk two matrices of one shape at once, with coefficients P and Q of softmaxes without positives.

    Returns:
        ``sum of Q * z``, z the student's logits, 0-d; and the gradients that ``G = P - Q`` gives the student, of
        features in the compute dtype, of bias none.
    """
    m, n, device = len(student.x), len(student.y), student.x.data.device
    wide = compute_dtype(dtype)
    dx = torch.empty(m, student.x.width, dtype=wide, device=device) if need_grad else None
    dy = torch.empty(n, student.y.width, dtype=wide, device=device) if need_grad else None
    shape = backend.coefficients_shape(student)
    scratch = _scratch(backend, student, shape) if need_grad else None
    parts = []
    for block in _cover(m, n, shape):
        g = None if scratch is None else backend.scratch_of(scratch, block)
        parts.append(backend.difference(student, teacher, block, weights, g))
        if g is not None and dx is not None and dy is not None:
            backend.add_product(dx[block.rows], g, student.y, block.cols, fresh=block.cols.start == 0)
            backend.add_product(dy[block.cols], g.mT, student.x, block.rows, fresh=block.rows.start == 0)
    totals = backend.totals(student, weights[0], parts)
    dscale, taught = (torch.as_tensor(t, dtype=backend.sums_dtype(dtype), device=device) for t in totals)
    if dx is not None and dy is not None:
        # Wide until the upstream gradient is known: times 1 / M, a loss scaler's float16 would underflow.
        dx = backend.finish(dx, student.x, student.y, weights[0], student.scale, wide)
        dy = backend.finish(dy, student.y, student.x, weights[0], student.scale, wide)
    return taught, Gradients(dx, dy, dscale, torch.zeros_like(dscale))


def blocks(backend: Backend, m: int, n: int) -> Iterator[Block]:
    """Cover an (m, n) matrix, row of blocks by row of blocks, always in the same order."""
    return _cover(m, n, backend.block_shape(m, n))


def _cover(m: int, n: int, shape: tuple[int, int]) -> Iterator[Block]:
    height, width = shape
    for row in range(0, m, height):
        for col in range(0, n, width):
            yield Block(slice(row, min(row + height, m)), slice(col, min(col + width, n)))


def _joined(whole: Tensor | None, part: Tensor, rows: slice, m: int) -> Tensor:
    """Put a part of m rows where it belongs; the first part makes the whole, or is it."""
    if len(part) == m:
        return part
    if whole is None:
        whole = part.new_empty(m, part.shape[1])
    whole[rows] = part
    return whole


def _scratch(backend: Backend, problem: Problem, shape: tuple[int, int]) -> Tensor:
    """Return memory for one block at a time."""
    height, width = shape
    return backend.scratch(problem, min(height, len(problem.x)), min(width, len(problem.y)))


class _Kept:
    """Products kept between the passes: the first blocks, one behind the other, while they fit."""

    def __init__(self, memory: Tensor) -> None:
        self.memory = memory
        self._used = 0

    def next(self, block: Block) -> Tensor | None:
        """Return the memory of the next block in order, or None once one has not fitted."""
        rows, cols = block.shape
        start, self._used = self._used, self._used + rows * cols
        if self._used > self.memory.numel():
            return None
        return self.memory[start : self._used].view(rows, cols)
