"""Kernels' arguments, from a problem, a block of it and a plan."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from fastclip.backends.base import Block, Problem
from fastclip.backends.triton.plan import GENERAL, Plan, Tile
from fastclip.backends.triton.spec import Flags, Pair, Place, Side, Spec, Stats
from fastclip.backends.triton.sums import BLOCK as _BLOCK
from fastclip.objectives import Sums

#: Rows or columns of a program of sums.py and weights.py.
BLOCK = _BLOCK.value

#: Of an SM, 32 bits each.
REGISTERS = 65536


def spec_of(problem: Problem, tile: Tile, columns: bool = False) -> Spec:
    """Return what is fixed for a problem's kernels in tiles of some shape."""
    x = problem.x
    return Spec(
        width=x.width,
        halves=x.halves,
        factors=x.factor is not None,
        objective=problem.objective.value,
        columns=columns,
        diagonal=problem.diagonal is not None,
        labels=problem.row_labels is not None,
        bias=problem.bias is not None,
        **shape_of(tile),
    )


def essence(spec: Spec) -> Spec:
    """Return what kernels over O(M + N) numbers need to know: one compilation serves every width, tile and dtype."""
    plain = replace(spec, width=0, factors=False, labels=False, bias=False, tma=False, edges=0)
    return replace(plain, **shape_of(GENERAL))


def shape_of(tile: Tile) -> dict[str, int]:
    """Return a tile's part of a spec."""
    return {"block_m": tile.block_m, "block_n": tile.block_n, "block_d": tile.block_d, "group": tile.group}


def options(tile: Tile) -> dict[str, int]:
    """Return a tile's options of a launch."""
    return {"num_warps": tile.warps, "num_stages": tile.stages}


def main_options(tile: Tile) -> dict[str, int]:
    """Return options that make room on an SM for as many programs as the tile says."""
    if tile.resident == 1:
        return options(tile)
    return {**options(tile), "maxnreg": min(255, REGISTERS // (32 * tile.warps * tile.resident) // 8 * 8)}


def operands(problem: Problem, tile: Tile, plan: Plan) -> tuple[Any, Any]:
    """Return x and y as the main kernels take them: tensor descriptors of a tile's steps, or pointers."""
    x, y = problem.x.data, problem.y.data
    if not plan.tma:
        return x, y
    shapes = [tile.block_m, tile.block_d], [tile.block_n, tile.block_d]
    return tuple(
        TensorDescriptor.from_tensor(data, shape) for data, shape in zip((x, y), shapes, strict=True)
    )


def sides(problem: Problem) -> tuple[Side, Side]:
    """Return what belongs to the rows, and to the columns."""
    return Side(problem.x.factor, problem.row_labels), Side(problem.y.factor, problem.col_labels)


def place(problem: Problem, block: Block) -> Place:
    """Return where a block lies."""
    rows, cols = block
    return Place(rows.start, cols.start, rows.stop, cols.stop, problem.diagonal or 0)


def flags_of(flags: Tensor | None) -> Flags | None:
    """Return flags with their number."""
    return None if flags is None else Flags(flags, len(flags))


def stats_of(
    rows: Sums, cols: Sums | None, positive: Tensor | None, row_grad: Tensor | None, col_grad: Tensor | None
) -> Stats:
    """Return statistics and upstream gradients as pointers."""
    pairs = [None if side is None else Pair(side.shift, side.sum) for side in (rows, cols)]
    return Stats(*pairs, positive, row_grad, col_grad)


def programs(size: tuple[int, int], columns: bool) -> int:
    """Return how many programs own the rows and, where they count, the columns of a matrix of some size."""
    return triton.cdiv(size[0], BLOCK) + (triton.cdiv(size[1], BLOCK) if columns else 0)


def count_of(spec: Spec, block: Block) -> int:
    """Return how many tiles a block has."""
    height, width = block.shape
    return triton.cdiv(height, spec.block_m) * triton.cdiv(width, spec.block_n)
