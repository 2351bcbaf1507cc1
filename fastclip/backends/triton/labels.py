"""Which tiles the main kernels have to leave to others, because pairs in them share a label."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fastclip.backends.base import Problem
from fastclip.backends.triton.plan import Tile
from fastclip.backends.triton.spec import Marks

#: Rows of a program.
ROWS = 128


def marks_of(problem: Problem, tile: Tile) -> Marks | None:
    """Return the marks of a problem's tiles, made once for every shape of them; None where there are no labels."""
    if problem.row_labels is None or problem.col_labels is None:
        return None
    key = f"marks {tile.block_m} {tile.block_n}"
    if key not in problem.cache:
        m, n = len(problem.x), len(problem.y)
        ordered, order = problem.col_labels.sort()
        first = torch.searchsorted(ordered, problem.row_labels)
        end = torch.searchsorted(ordered, problem.row_labels, right=True)
        shape = triton.cdiv(m, tile.block_m), triton.cdiv(n, tile.block_n)
        marks = torch.zeros(shape, dtype=torch.int8, device=first.device)
        diagonal = -n - m if problem.diagonal is None else problem.diagonal  # -n - m: no entry is on it
        mark[(triton.cdiv(m, ROWS),)](
            first, end, order, marks, (m, shape[1]), diagonal, tile.block_m, tile.block_n, ROWS
        )
        problem.cache[key] = marks
    marks = problem.cache[key]
    return Marks(marks, marks.shape[1])


@triton.jit(do_not_specialize=["size", "diagonal"])
def mark(
    first,
    end,
    order,
    marks,
    size,
    diagonal,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Mark the tiles of all entries (i, order[first_i … end_i - 1]) off the diagonal. size = (M, tiles in a row)."""
    m, stride = size
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = rows < m
    at = tl.load(first + rows, mask=inside, other=0)
    count = tl.load(end + rows, mask=inside, other=0) - at
    for index in range(0, tl.max(count, 0)):
        col = tl.load(order + at + index, mask=index < count, other=0)
        shared = (index < count) & (col != rows + diagonal)
        tl.store(marks + (rows // BLOCK_M).to(tl.int64) * stride + col // BLOCK_N, 1, mask=shared)
