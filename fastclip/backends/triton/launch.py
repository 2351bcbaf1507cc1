"""Launches the kernels: statistics of a block forward, weights and coefficients of a block backward."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from fastclip.backends.base import Block, Problem
from fastclip.backends.triton import plan as planning
from fastclip.backends.triton import strips, tiles, vectors
from fastclip.backends.triton.plan import Plan, Tile
from fastclip.backends.triton.tiles import Flags, Place, Side, Spec, Weights
from fastclip.backends.triton.vectors import Pair, Stats
from fastclip.objectives import Coefficients, Objective, Sums

#: Rows or columns of a program of vectors.py.
BLOCK = vectors.BLOCK.value


@dataclass
class TritonWeights(Coefficients):
    """Coefficients' ingredients as tiles.Weights describes them, (M,) and (N,) float32.

    ``power``: the power of two in them, 0-d float64. ``flags``: what vectors.weigh found, where it looked.
    """

    row_shifted: Tensor | None
    col_shifted: Tensor | None
    power: Tensor
    flags: Tensor | None


def prepared(problem: Problem) -> Tensor:
    """Return the problem's logit = (c, bias, b, flush), float32 (vectors.prepare)."""
    if "logit" not in problem.cache:
        logit = torch.empty(4, dtype=torch.float32, device=problem.x.data.device)
        x, y = problem.x, problem.y
        count = max(len(x), len(y))
        spec = _spec(problem, planning.GENERAL)
        vectors.prepare[(1,)](problem.scale, problem.bias, x.measure, y.measure, logit, count, spec)
        problem.cache["logit"] = logit
    return problem.cache["logit"]


def positives(problem: Problem) -> Tensor:
    """Return the positives' logits (M,), float64."""
    x, y = problem.x, problem.y
    out = torch.empty(len(x), dtype=torch.float64, device=x.data.device)
    vectors.positives[(triton.cdiv(len(x), 16),)](
        *(x.data, y.data, x.factor, y.factor, prepared(problem), out, len(x), problem.diagonal),
        _spec(problem, planning.GENERAL),
    )
    return out


def statistics(problem: Problem, block: Block, rows: Sums, cols: Sums | None) -> None:
    """Add a block's negatives to the running statistics of its rows and columns."""
    plan = planning.plan_for(problem)
    spec = _spec(problem, plan.general, columns=cols is not None)
    row_fixed = col_fixed = flags = None
    if plan.strips:
        partial = _strips(problem, block, plan, replace(spec, **_shape(plan.statistics), tma=plan.tma))
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
    vectors.merge[(_programs(block.shape, cols is not None),)](
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
            spec,
        )
    )


def values(
    problem: Problem, rows: Sums, cols: Sums | None, positive: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Return the rows' values (M,) and the columns' (N,), float32."""
    m, n = len(problem.x), len(problem.y)
    row = torch.empty(m, dtype=torch.float32, device=rows.sum.device)
    col = None if cols is None else torch.empty(n, dtype=torch.float32, device=rows.sum.device)
    spec = _spec(problem, planning.GENERAL, columns=cols is not None)
    stats = _stats(rows, cols, positive, None, None)
    vectors.values[(_programs((m, n), cols is not None),)](
        stats, row, col, (m, n), problem.diagonal or 0, spec
    )
    return row, col


def weigh(
    problem: Problem,
    rows: Sums,
    cols: Sums | None,
    positive: Tensor | None,
    row_grad: Tensor,
    col_grad: Tensor | None,
) -> TritonWeights:
    """Return what the coefficient kernels need, from the statistics and the values' upstream gradients."""
    plan, m, n = planning.plan_for(problem), len(problem.x), len(problem.y)
    columns = cols is not None and col_grad is not None
    softmax = problem.objective is Objective.SOFTMAX
    spec = _spec(problem, plan.general, columns=columns)
    spec = replace(spec, exact=plan.exact, guard="flagged" if plan.strips and softmax else "")
    programs = triton.cdiv(max(m, n) if columns else m, BLOCK)
    device = rows.sum.device
    stats = _stats(rows, cols if columns else None, positive, row_grad, col_grad if columns else None)
    bounds = torch.empty(3, programs, dtype=torch.float64, device=device)
    if not plan.exact:
        vectors.bound[(programs,)](stats, tuple(bounds), (m, n), problem.diagonal or 0, spec)
    row = torch.empty(4, m, dtype=torch.float32, device=device)
    col = torch.empty(3, n if columns else 0, dtype=torch.float32, device=device)
    result = TritonWeights(
        row_shift=row[0],
        row_factor=row[1],
        row_shifted=row[2],
        positive=None if positive is None else row[3],
        col_shift=col[0],
        col_factor=col[1],
        col_shifted=col[2],
        power=torch.empty((), dtype=torch.float64, device=device),
        flags=torch.empty(programs, dtype=torch.int32, device=device) if spec.guard else None,
    )
    vectors.weigh[(programs,)](
        *(stats, tuple(bounds), prepared(problem), _weights(result), result.power, result.flags),
        *((m, n), problem.diagonal or 0, programs, spec),
    )
    return result


def scratch(problem: Problem, rows: int, cols: int) -> Tensor:
    """Return memory for a block's coefficients, (halves, rows, columns padded to 16 bytes), fp16 or float32."""
    exact = planning.plan_for(problem).exact
    shape = (1 if exact else problem.x.halves, rows, -(-cols // 8) * 8)
    return torch.empty(shape, dtype=torch.float32 if exact else torch.float16, device=problem.x.data.device)


def coefficients(problem: Problem, block: Block, weights: TritonWeights, out: Tensor) -> Tensor:
    """Write a block's coefficients to ``out`` (halves, rows, cols); return partial sums (2, count) for `total`."""
    plan = planning.plan_for(problem)
    spec = _spec(problem, plan.general, columns=weights.col_shift.numel() > 0)
    spec = replace(spec, exact=plan.exact)
    device = out.device
    if not plan.strips:
        programs = plan.programs(_count(spec, block), plan.general)
        totals = torch.empty(2, programs, dtype=torch.float32, device=device)
        _tile_coefficients(problem, block, plan, weights, out, totals, spec)
        return totals
    guard = ("clear", "flagged") if weights.flags is not None else ("", "")
    tile = plan.coefficients
    sweep = replace(spec, **_shape(tile), tma=plan.tma, guard=guard[0])
    height, width = block.shape
    programs = plan.programs((height // tile.block_m) * (width // tile.block_n), tile)
    others = plan.processors * plan.general.resident
    totals = torch.zeros(2, programs * tile.block_m + 2 * others, dtype=torch.float32, device=device)
    swept, edges, redone = totals.split([programs * tile.block_m, others, others], dim=1)
    shape = [tile.block_m, tile.block_n // 2]
    halves = [
        TensorDescriptor(half, list(half.shape), list(half.stride()), shape) if plan.tma else half
        for half in out
    ]
    strips.sweep_coefficients[(programs,)](
        *(*_operands(problem, tile, plan), *_sides(problem), prepared(problem), _weights(weights)),
        *(halves[0], halves[1] if len(halves) == 2 else None, tuple(swept), _flags(weights.flags)),
        *(_place(problem, block), out.stride(1), sweep),
        **_options(tile),
    )
    edge = replace(spec, block_m=tile.block_m, edges=tile.block_n, guard=guard[0])
    _tile_coefficients(problem, block, plan, weights, out, edges, edge)
    if weights.flags is not None:
        _tile_coefficients(problem, block, plan, weights, out, redone, replace(spec, guard=guard[1]))
    return totals


def total(problem: Problem, weights: TritonWeights, parts: list[Tensor]) -> Tensor:
    """Return (sum of G S, sum of G), float64, from what `coefficients` returned for every block."""
    partial = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
    out = torch.empty(2, dtype=torch.float64, device=partial.device)
    vectors.total[(2,)](
        *(partial, weights.power, problem.x.measure, problem.y.measure, out, partial.shape[1])
    )
    return out


def _strips(problem: Problem, block: Block, plan: Plan, spec: Spec) -> tuple[Tensor, Tensor | None]:
    """Run the main kernels; return partial sums at the shift b, (strips, rows) and (parts, columns)."""
    height, width = block.shape
    whole, count = width // spec.block_n, triton.cdiv(width, spec.block_n)
    splits = plan.splits(height // spec.block_m, whole)
    slots = spec.block_n // spec.block_m + 2
    empty = {"dtype": torch.float32, "device": problem.x.data.device}
    row_part = torch.empty(count, height, **empty)
    col_part = torch.empty(splits + slots, width, **empty) if spec.columns else None
    common = (
        *(
            *_operands(problem, plan.statistics, plan),
            *_sides(problem),
            prepared(problem),
            row_part,
            col_part,
        ),
        *(_place(problem, block), splits, spec),
    )
    if whole and height >= spec.block_m:
        strips.strip_statistics[(whole * splits,)](*common, **_options(plan.statistics))
    elif col_part is not None:
        col_part.zero_()
    edges = whole * slots + (splits + slots if count > whole else 0)
    strips.edge_statistics[(edges,)](*common, **_options(plan.statistics))
    return row_part, col_part


def _checked(
    problem: Problem, block: Block, partial: tuple[Tensor, Tensor | None], spec: Spec
) -> tuple[Tensor, Tensor | None, Flags]:
    """Add up partial sums at the shift b; return the rows', the columns', and flags of those too small for it."""
    row_part, col_part = partial
    device, programs = row_part.device, _programs(block.shape, col_part is not None)
    row_sum = torch.empty(block.shape[0], dtype=torch.float64, device=device)
    col_sum = None if col_part is None else torch.empty(block.shape[1], dtype=torch.float64, device=device)
    flags = torch.empty(programs, dtype=torch.int32, device=device)
    parts = (len(row_part), 0 if col_part is None else len(col_part))
    vectors.check_sums[(programs,)](
        *(row_part, col_part, row_sum, col_sum, flags, prepared(problem), block.shape, parts, spec)
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
    tiles.tile_statistics[(plan.programs(_count(spec, block), plan.general),)](
        *(problem.x.data, problem.y.data, *_sides(problem), prepared(problem), row_out, col_out, flags),
        *(_place(problem, block), spec),
        **_options(plan.general),
    )
    return row_out, col_out, parts


def _tile_coefficients(
    problem: Problem,
    block: Block,
    plan: Plan,
    weights: TritonWeights,
    out: Tensor,
    totals: Tensor,
    spec: Spec,
) -> None:
    tiles.tile_coefficients[(totals.shape[1],)](
        *(problem.x.data, problem.y.data, *_sides(problem), prepared(problem), _weights(weights)),
        *((out[0], out[1] if len(out) == 2 else None), tuple(totals), _flags(weights.flags)),
        *(_place(problem, block), out.stride(1), spec),
        **_options(plan.general),
    )


def _operands(problem: Problem, tile: Tile, plan: Plan) -> tuple[Any, Any]:
    x, y = problem.x.data, problem.y.data
    if not plan.tma:
        return x, y
    shapes = [tile.block_m, tile.block_d], [tile.block_n, tile.block_d]
    return tuple(
        TensorDescriptor.from_tensor(data, shape) for data, shape in zip((x, y), shapes, strict=True)
    )


def _sides(problem: Problem) -> tuple[Side, Side]:
    return Side(problem.x.factor, problem.row_labels), Side(problem.y.factor, problem.col_labels)


def _place(problem: Problem, block: Block) -> Place:
    rows, cols = block
    return Place(rows.start, cols.start, rows.stop, cols.stop, problem.diagonal or 0)


def _flags(flags: Tensor | None) -> Flags | None:
    return None if flags is None else Flags(flags, len(flags))


def _weights(weights: TritonWeights) -> Weights:
    columns = weights.col_shift.numel() > 0
    return Weights(
        *(weights.row_shift, weights.row_factor, weights.row_shifted),
        *((weights.col_shift, weights.col_factor, weights.col_shifted) if columns else (None, None, None)),
        weights.positive,
    )


def _stats(
    rows: Sums, cols: Sums | None, positive: Tensor | None, row_grad: Tensor | None, col_grad: Tensor | None
) -> Stats:
    pairs = [None if side is None else Pair(side.shift, side.sum) for side in (rows, cols)]
    return Stats(*pairs, positive, row_grad, col_grad)


def _programs(size: tuple[int, int], columns: bool) -> int:
    return triton.cdiv(size[0], BLOCK) + (triton.cdiv(size[1], BLOCK) if columns else 0)


def _count(spec: Spec, block: Block) -> int:
    height, width = block.shape
    return triton.cdiv(height, spec.block_m) * triton.cdiv(width, spec.block_n)


def _shape(tile: Tile) -> dict[str, int]:
    return {"block_m": tile.block_m, "block_n": tile.block_n, "block_d": tile.block_d, "group": tile.group}


def _options(tile: Tile) -> dict[str, int]:
    return {"num_warps": tile.warps, "num_stages": tile.stages}


def _spec(problem: Problem, tile: Tile, columns: bool = False) -> Spec:
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
        **_shape(tile),
    )
