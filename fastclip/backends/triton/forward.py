"""Launches the kernels of the forward pass: statistics of a block, the positives' logits, values."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import triton
from torch import Tensor

from fastclip.backends.base import Block, Problem
from fastclip.backends.triton import arguments, strips, sums, tiles
from fastclip.backends.triton import plan as planning
from fastclip.backends.triton.labels import marks_of
from fastclip.backends.triton.plan import Plan
from fastclip.backends.triton.spec import Flags, Pair, Spec, Stats
from fastclip.objectives import Sums


def prepared(problem: Problem) -> Tensor:
    """Return the problem's logit = (c, bias, b, flush, infinite), float32 (sums.prepare)."""
    if "logit" not in problem.cache:
        logit = torch.empty(5, dtype=torch.float32, device=problem.x.data.device)
        x, y = problem.x, problem.y
        count = max(len(x), len(y))
        spec = arguments.spec_of(problem, planning.GENERAL)
        sums.prepare[(1,)](
            problem.scale, problem.bias, x.measure, y.measure, logit, count, arguments.essence(spec)
        )
        problem.cache["logit"] = logit
    return problem.cache["logit"]


def statistics(problem: Problem, block: Block, rows: Sums, cols: Sums | None) -> None:
    """Add a block's negatives to the running statistics of its rows and columns."""
    plan = planning.plan_for(problem)
    spec = arguments.spec_of(problem, plan.general, columns=cols is not None)
    row_fixed = col_fixed = flags = None
    if plan.strips:
        main = replace(spec, tma=plan.tma, fragments=plan.fragments, **arguments.shape_of(plan.statistics))
        partial = _strips(problem, block, plan, main)
        if spec.objective != "softmax":
            row_pairs, col_pairs, parts = (None, partial[0]), None, (len(partial[0]), 0)
        else:
            row_fixed, col_fixed, flags = _checked(problem, block, partial, spec)
            spec = replace(spec, guard="flagged")
            row_pairs, col_pairs, parts = _pairs(problem, block, plan, flags, spec)
    else:
        row_pairs, col_pairs, parts = _pairs(problem, block, plan, None, spec)
    stats = Stats(
        Pair(rows.shift, rows.sum), None if cols is None else Pair(cols.shift, cols.sum), None, None, None
    )
    sums.merge[(arguments.programs(block.shape, cols is not None),)](
        *(
            row_pairs,
            col_pairs,
            row_fixed,
            col_fixed,
            stats,
            flags,
            prepared(problem),
            block.shape,
            parts,
            arguments.essence(spec),
        )
    )


def positives(problem: Problem) -> Tensor:
    """Return the positives' logits (M,), float64."""
    x, y = problem.x, problem.y
    out = torch.empty(len(x), dtype=torch.float64, device=x.data.device)
    sums.positives[(triton.cdiv(len(x), 16),)](
        *(x.data, y.data, x.factor, y.factor, prepared(problem), out, len(x), problem.diagonal),
        arguments.spec_of(problem, planning.GENERAL),
    )
    return out


def values(
    problem: Problem, rows: Sums, cols: Sums | None, positive: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Return the rows' values (M,) and the columns' (N,), float32."""
    m, n = len(problem.x), len(problem.y)
    row = torch.empty(m, dtype=torch.float32, device=rows.sum.device)
    col = None if cols is None else torch.empty(n, dtype=torch.float32, device=rows.sum.device)
    spec = arguments.spec_of(problem, planning.GENERAL, columns=cols is not None)
    stats = arguments.stats_of(rows, cols, positive, None, None)
    sums.values[(arguments.programs((m, n), cols is not None),)](
        stats, row, col, (m, n), problem.diagonal or 0, arguments.essence(spec)
    )
    return row, col


def _strips(problem: Problem, block: Block, plan: Plan, spec: Spec) -> tuple[Tensor, Tensor | None]:
    """Run the main kernels; return partial sums at the shift b, (strips, rows) and (parts, columns)."""
    height, width = block.shape
    whole, count = width // spec.block_n, triton.cdiv(width, spec.block_n)
    splits, slots = plan.splits(height // spec.block_m, whole), spec.slots
    empty = {"dtype": torch.float32, "device": problem.x.data.device}
    row_part = torch.empty(count, height, **empty)
    col_part = torch.empty(splits + slots, width, **empty) if spec.columns else None
    common = (
        *(
            *arguments.operands(problem, plan.statistics, plan),
            *arguments.sides(problem),
            prepared(problem),
            marks_of(problem, plan.statistics),
            row_part,
            col_part,
        ),
        *(arguments.place(problem, block), splits, spec),
    )
    if whole and height >= spec.block_m:
        strips.strip_statistics[(whole * splits,)](*common, **arguments.main_options(plan.statistics))
    elif col_part is not None:
        col_part.zero_()
    edges = whole * slots + (splits + slots if count > whole else 0)
    strips.edge_statistics[(edges,)](*common, **arguments.options(plan.statistics))
    return row_part, col_part


def _checked(
    problem: Problem, block: Block, partial: tuple[Tensor, Tensor | None], spec: Spec
) -> tuple[Tensor, Tensor | None, Flags]:
    """Add up partial sums at the shift b; return the rows', the columns', and flags of those too small for it."""
    row_part, col_part = partial
    device, programs = row_part.device, arguments.programs(block.shape, col_part is not None)
    row_sum = torch.empty(block.shape[0], dtype=torch.float64, device=device)
    col_sum = None if col_part is None else torch.empty(block.shape[1], dtype=torch.float64, device=device)
    flags = torch.empty(programs, dtype=torch.int32, device=device)
    parts = (len(row_part), 0 if col_part is None else len(col_part))
    sums.check_sums[(programs,)](
        *(
            row_part,
            col_part,
            row_sum,
            col_sum,
            flags,
            prepared(problem),
            block.shape,
            parts,
            arguments.essence(spec),
        )
    )
    return row_sum, col_sum, Flags(flags, programs)


def _pairs(
    problem: Problem, block: Block, plan: Plan, flags: Flags | None, spec: Spec
) -> tuple[tuple[Any, ...], tuple[Any, ...] | None, tuple[int, int]]:
    """Run the general kernel; return its partial (shift, sum) of rows and of columns, and how many there are."""
    height, width = block.shape
    parts = triton.cdiv(width, spec.block_n), triton.cdiv(height, spec.block_m)
    empty = {"dtype": torch.float32, "device": problem.x.data.device}
    row_out = tuple(torch.empty(2, parts[0], height, **empty))
    col_out = tuple(torch.empty(2, parts[1], width, **empty)) if spec.columns else None
    tiles.tile_statistics[(plan.programs(arguments.count_of(spec, block), plan.general),)](
        *(
            problem.x.data,
            problem.y.data,
            *arguments.sides(problem),
            prepared(problem),
            row_out,
            col_out,
            flags,
        ),
        *(arguments.place(problem, block), spec),
        **arguments.options(plan.general),
    )
    return row_out, col_out, parts
