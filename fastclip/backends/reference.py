"""The reference backend: one block in readable torch. The truth that the kernels are tested against."""

from __future__ import annotations

import torch
from torch import Tensor

from fastclip.backends.base import Backend, Block, Problem, compute_dtype
from fastclip.objectives import EMPTY_SHIFT, Coefficients, Objective, Sums, softplus


class ReferenceBackend(Backend):
    """Every device, every floating dtype, no kernels."""

    name = "reference"

    def unavailable_reason(self) -> str | None:
        return None

    def unsupported_reason(self, device: torch.device, dtype: torch.dtype) -> str | None:
        return None

    def sums_dtype(self, dtype: torch.dtype) -> torch.dtype:
        return compute_dtype(dtype)

    def block_shape(self, m: int, n: int) -> tuple[int, int]:
        return 1024, 4096

    def positives(self, problem: Problem, dtype: torch.dtype) -> Tensor:
        m, diagonal = len(problem.x), problem.diagonal or 0
        similarity = (problem.x.data * problem.y.data[diagonal : diagonal + m]).sum(dim=1)
        return _logits(problem, similarity).to(dtype)

    def statistics(
        self, problem: Problem, block: Block, rows: Sums, cols: Sums | None, products: Tensor | None
    ) -> None:
        z = _logits(problem, self.similarities(problem.x, problem.y, block))
        positive, shared = _roles(problem, block)
        if problem.objective is Objective.MULTI_SIGMOID:
            rows.sum += softplus(torch.where(shared, -z, z)).sum(dim=1)
            return
        z = z.masked_fill(positive | shared, -torch.inf)
        if problem.objective is Objective.SIGMOID:
            rows.sum += softplus(z).sum(dim=1)
            return
        for sums, dim in ((rows, 1), (cols, 0)):
            if sums is not None:
                shift = z.amax(dim=dim).clamp_min(EMPTY_SHIFT)
                sums.merge_(shift, torch.exp(z - shift.unsqueeze(dim)).sum(dim=dim))

    def coefficients(
        self, problem: Problem, block: Block, weights: Coefficients, products: Tensor | None, out: Tensor
    ) -> tuple[Tensor | float, Tensor | float]:
        s = self.similarities(problem.x, problem.y, block)
        z = _logits(problem, s)
        positive, shared = _roles(problem, block)
        factor, shift = weights.row_factor[block.rows, None], weights.row_shift[block.rows, None]
        if problem.objective is Objective.MULTI_SIGMOID:
            g = factor * torch.where(shared, -torch.sigmoid(-z), torch.sigmoid(z))
        elif problem.objective is Objective.SIGMOID:
            g = (factor * torch.sigmoid(z)).masked_fill(shared, 0)
        else:
            g = factor * torch.exp(z - shift)
            g += weights.col_factor[block.cols] * torch.exp(z - weights.col_shift[block.cols])
            g = g.masked_fill(shared, 0)
        if weights.positive is not None:
            g = torch.where(positive, weights.positive[block.rows, None], g)
        out.copy_(g)
        return (g * s).sum(), g.sum()


def _logits(problem: Problem, similarities: Tensor) -> Tensor:
    z = problem.scale * similarities
    return z if problem.bias is None else z + problem.bias


def _roles(problem: Problem, block: Block) -> tuple[Tensor, Tensor]:
    """Return two masks of a block: the diagonal's positives, and the other pairs that share a label."""
    device = problem.x.data.device
    row = torch.arange(block.rows.start, block.rows.stop, device=device)[:, None]
    col = torch.arange(block.cols.start, block.cols.stop, device=device)
    positive = torch.zeros(block.shape, dtype=torch.bool, device=device)
    if problem.diagonal is not None:
        positive = col == row + problem.diagonal
    shared = torch.zeros_like(positive)
    if problem.row_labels is not None and problem.col_labels is not None:
        shared = problem.row_labels[block.rows, None] == problem.col_labels[block.cols]
    return positive, shared & ~positive
