"""Launches the kernels of the backward pass: weights, coefficients of a block, totals."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from fastclip.backends.base import Block, Problem
from fastclip.backends.triton import arguments, strips, tiles
from fastclip.backends.triton import plan as planning
from fastclip.backends.triton import weights as kernels
from fastclip.backends.triton.forward import prepared
from fastclip.backends.triton.labels import marks_of
from fastclip.backends.triton.plan import Plan
from fastclip.backends.triton.spec import Spec, Teacher, Weights
from fastclip.objectives import Coefficients, Objective, Sums


@dataclass
class TritonWeights(Coefficients):
    """Coefficients' ingredients as tiles.Weights describes them, (M,) and (N,) float32.

    ``power``: the power of two in them, 0-d float64. ``flags``: what kernels.weigh found, where it looked.
    """

    row_shifted: Tensor | None
    col_shifted: Tensor | None
    power: Tensor
    flags: Tensor | None


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
    spec = arguments.spec_of(problem, plan.general, columns=columns)
    spec = arguments.essence(
        replace(spec, exact=plan.exact, guard="flagged" if plan.strips and softmax else "")
    )
    programs = triton.cdiv(max(m, n) if columns else m, arguments.BLOCK)
    device = rows.sum.device
    stats = arguments.stats_of(
        rows, cols if columns else None, positive, row_grad, col_grad if columns else None
    )
    bounds = torch.empty(3, programs, dtype=torch.float64, device=device)
    if not plan.exact:
        kernels.bound[(programs,)](stats, tuple(bounds), (m, n), problem.diagonal or 0, spec)
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
    kernels.weigh[(programs,)](
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
    spec = arguments.spec_of(problem, plan.general, columns=weights.col_shift.numel() > 0)
    spec = replace(spec, exact=plan.exact)
    device = out.device
    if not plan.strips:
        programs = plan.programs(arguments.count_of(spec, block), plan.general)
        totals = torch.empty(2, programs, dtype=torch.float32, device=device)
        _tile_coefficients(problem, block, plan, weights, out, totals, spec)
        return totals
    guard = ("clear", "flagged") if weights.flags is not None else ("", "")
    tile = plan.coefficients
    sweep = replace(spec, **arguments.shape_of(tile), tma=plan.tma, guard=guard[0])
    height, width = block.shape
    programs = plan.programs((height // tile.block_m) * (width // tile.block_n), tile)
    others = plan.processors * plan.general.resident
    totals = torch.zeros(2, programs * tile.block_m + 2 * others, dtype=torch.float32, device=device)
    swept, edges, redone = totals.split([programs * tile.block_m, others, others], dim=1)
    shape = [tile.block_m, tile.block_n // sweep.pieces]
    halves = [
        TensorDescriptor(half, list(half.shape), list(half.stride()), shape) if plan.tma else half
        for half in out
    ]
    strips.sweep_coefficients[(programs,)](
        *(
            *arguments.operands(problem, tile, plan),
            *arguments.sides(problem),
            prepared(problem),
            _weights(weights),
            marks_of(problem, tile),
        ),
        *(
            halves[0],
            halves[1] if len(halves) == 2 else None,
            tuple(swept),
            arguments.flags_of(weights.flags),
        ),
        *(arguments.place(problem, block), out.stride(1), sweep),
        **arguments.main_options(tile),
    )
    edge = replace(spec, block_m=tile.block_m, edges=tile.block_n, guard=guard[0])
    _tile_coefficients(problem, block, plan, weights, out, edges, edge)
    if weights.flags is not None:
        _tile_coefficients(problem, block, plan, weights, out, redone, replace(spec, guard=guard[1]))
    return totals.sum(dim=1, keepdim=True, dtype=torch.float64)  # a million pairs have thousands of blocks


def difference(
    student: Problem,
    teacher: Problem,
    block: Block,
    weights: tuple[TritonWeights, TritonWeights],
    out: Tensor | None,
) -> Tensor:
    """Write a block's coefficients, the student's less the teacher's, to ``out`` (halves, rows, cols), or nowhere.

    Both have the same power: without positives it depends on the upstream gradients alone, which they share. Returns
    partial sums (2, count) for `total`: of G S, and of the teacher's coefficients times the student's logits.
    """
    plan = planning.plan_for(student)
    spec, taught = (
        replace(
            arguments.spec_of(problem, plan.general, columns=weights[0].col_shift.numel() > 0),
            exact=plan.exact,
        )
        for problem in (student, teacher)
    )
    spec = replace(spec, teacher=taught)
    programs = plan.programs(arguments.count_of(spec, block), plan.general)
    totals = torch.empty(2, programs, dtype=torch.float32, device=student.x.data.device)
    reads = Teacher(
        *(teacher.x.data, teacher.y.data, *arguments.sides(teacher), prepared(teacher), _weights(weights[1]))
    )
    _tile_coefficients(student, block, plan, weights[0], out, totals, spec, reads)
    return totals


def total(problem: Problem, weights: TritonWeights, parts: list[Tensor]) -> Tensor:
    """Return (sum of G S, sum of G), float64, from what `coefficients` (or `difference`) returned for every block."""
    partial = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
    out = torch.empty(2, dtype=torch.float64, device=partial.device)
    kernels.total[(2,)](
        *(partial, weights.power, problem.x.measure, problem.y.measure, out, partial.shape[1])
    )
    return out


def _tile_coefficients(
    problem: Problem,
    block: Block,
    plan: Plan,
    weights: TritonWeights,
    out: Tensor | None,
    totals: Tensor,
    spec: Spec,
    teacher: Teacher | None = None,
) -> None:
    halves = (None, None) if out is None else (out[0], out[1] if len(out) == 2 else None)
    marks = marks_of(problem, plan.coefficients) if spec.edges else None
    tiles.tile_coefficients[(totals.shape[1],)](
        *(problem.x.data, problem.y.data, *arguments.sides(problem), prepared(problem), _weights(weights)),
        *(teacher, marks, halves, tuple(totals), arguments.flags_of(weights.flags)),
        *(arguments.place(problem, block), 0 if out is None else out.stride(1), spec),
        **arguments.options(plan.general),
    )


def _weights(weights: TritonWeights) -> Weights:
    columns = weights.col_shift.numel() > 0
    return Weights(
        *(weights.row_shift, weights.row_factor, weights.row_shifted),
        *((weights.col_shift, weights.col_factor, weights.col_shifted) if columns else (None, None, None)),
        weights.positive,
    )
