"""Sums over ranks that autograd can go through: of numbers, and of the similarities that share a label.

The second serves the terms of a loss that are linear in the logits (fastclip/linear_terms.py): a sum of similarities is
the similarity of a sum, so no matrix is needed, only the texts of the other ranks once more.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastclip import linear_terms
from fastclip.distributed.collectives import all_gather_columns, all_reduce_, eager
from fastclip.distributed.exchange import exchange
from fastclip.distributed.ranks import Ranks
from fastclip.ops import refuse_double_backward


@eager
def total(ranks: Ranks, value: Tensor) -> Tensor:
    """Return the sum of a tensor over ranks, the same on every rank; its gradient is summed over ranks likewise."""
    return _Total.apply(value, ranks)


@eager
def shared(ranks: Ranks, scale: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return scale and bias, whose gradients shall be the mean over ranks, the same on every rank."""
    scale, also = _Shared.apply(scale, torch.zeros_like(scale) if bias is None else bias, ranks)
    return scale, None if bias is None else also


def reduce(ranks: Ranks, values: Tensor, reduction: str) -> Tensor:
    """Reduce this rank's row values (m,): to the mean or sum over all ranks' rows, or not at all."""
    if reduction == "none":
        return values
    summed = total(ranks, values.sum())
    return summed / sum(ranks.rows) if reduction == "mean" else summed


def smoothing(
    ranks: Ranks,
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    labels: tuple[Tensor, Tensor] | None,
    *,
    normalize: bool,
    diagonal: int,
) -> tuple[Tensor, Tensor]:
    """Return what label smoothing adds to this rank's row and column losses: `linear_terms.smoothing`, over ranks."""
    x, y = linear_terms.unit(x, normalize), linear_terms.unit(y, normalize)
    positives = y[diagonal : diagonal + len(x)]
    own = (x * positives).sum(dim=1)
    all_x, all_y = total(ranks, torch.stack([x.sum(dim=0), y.sum(dim=0)]))
    by_row, by_col = (
        (x * all_y).sum(dim=1),
        (positives * all_x).sum(dim=1),
    )  # autocast would round a product's
    row_count, col_count = torch.full_like(by_row, sum(ranks.cols)), torch.full_like(by_col, sum(ranks.rows))
    if labels is not None:
        row_same, col_same, row_others, col_others = same_label(ranks, x, y, labels)
        with_positive = slice(diagonal, diagonal + len(x))
        # The positive shares the label, as a rule, and goes out with its group; it is to stay in.
        shared = (labels[0] == labels[1][with_positive]).to(x.dtype)
        by_row, row_count = by_row - row_same + shared * own, row_count - row_others + shared
        by_col = by_col - col_same[with_positive] + shared * own
        col_count = col_count - col_others[with_positive] + shared
    return scale * (own - by_row / row_count), scale * (own - by_col / col_count)


def positive_means(
    ranks: Ranks,
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    labels: tuple[Tensor, Tensor],
    *,
    normalize: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the positives' mean logit of this rank's rows and columns: `linear_terms.positive_means`, over ranks."""
    x, y = linear_terms.unit(x, normalize), linear_terms.unit(y, normalize)
    row_sum, col_sum, row_count, col_count = same_label(ranks, x, y, labels)
    means = []
    for sums, count in ((row_sum, row_count), (col_sum, col_count)):
        z = scale * sums / count.clamp_min(1)
        z = z if bias is None else z + bias
        means.append(torch.where(count > 0, z, 0))
    return means[0], means[1], row_count, col_count


def spreads(
    ranks: Ranks, x: Tensor, y: Tensor, scale: Tensor, labels: Tensor, *, normalize: bool
) -> tuple[Tensor, Tensor]:
    """Return how far this rank's pairs lie above their positives' means: `linear_terms.spreads`, over ranks."""
    x, y = linear_terms.unit(x, normalize), linear_terms.unit(y, normalize)
    row_sum, col_sum, row_count, col_count = same_label(ranks, x, y, (labels, labels))
    own = (x * y).sum(dim=1)
    return scale * (own - row_sum / row_count), scale * (own - col_sum / col_count)


@eager
def same_label(
    ranks: Ranks, x: Tensor, y: Tensor, labels: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return each row's sum of similarities with the columns of its label, each column's, and their numbers.

    Args:
        x, y: this rank's features (m, D), (n, D); differentiable.
        labels: their labels (m,), (n,).

    Returns:
        (m,), (n,) over all ranks' columns and rows; counts (m,), (n,) in the features' dtype.
    """
    return _SameLabel.apply(x, y, *labels, ranks)


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        return all_reduce_(ranks, value.clone(), "all-reduce of a sum over pairs")

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return all_reduce_(ctx.ranks, grad.clone(), "all-reduce of a sum's gradient"), None


class _Shared(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scale: Tensor, bias: Tensor, ranks: Ranks) -> tuple[Tensor, Tensor]:
        ctx.ranks = ranks
        return scale.view_as(scale), bias.view_as(bias)

    @staticmethod
    def backward(ctx: Any, scale_grad: Tensor, bias_grad: Tensor) -> tuple[Tensor, Tensor, None]:
        grads = torch.stack([scale_grad, bias_grad])
        scale_grad, bias_grad = (
            all_reduce_(ctx.ranks, grads, "all-reduce of the scale's gradient") / ctx.ranks.size
        )
        return scale_grad, bias_grad, None


class _SameLabel(torch.autograd.Function):
    """With m_ij = 1 where labels agree: row sums of m ∘ (x yᵀ), column sums, and the sums of m."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor, row_labels: Tensor, col_labels: Tensor, ranks: Ranks
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        all_labels = all_gather_columns(ranks, col_labels, "all-gather of text labels")
        row_sum, row_count = x.new_zeros(2, len(x))
        cols = [x.new_zeros(2, n) for n in ranks.cols]
        around = exchange(ranks)
        for piece in around.pieces(y):
            piece_labels = ranks.take(all_labels, piece.owners)
            vectors, count = linear_terms.group_sums(piece.y, piece_labels, row_labels)
            row_sum += (x * vectors).sum(dim=1)
            row_count += count[:, 0]
            vectors, count = linear_terms.group_sums(x, row_labels, piece_labels)
            part = torch.stack([(piece.y * vectors).sum(dim=1), count[:, 0]])
            for owner, columns in zip(
                piece.owners, part.split([ranks.cols[o] for o in piece.owners], dim=1), strict=True
            ):
                cols[owner] += columns
        merged = all_reduce_(ranks, torch.cat(cols, dim=1), "all-reduce of column sums")
        col_sum, col_count = merged.split(ranks.cols, dim=1)[ranks.rank].clone()
        ctx.mark_non_differentiable(row_count, col_count)
        ctx.save_for_backward(x, y, row_labels, all_labels, around.kept)
        ctx.ranks = ranks
        return row_sum, col_sum, row_count, col_count

    @staticmethod
    def backward(ctx: Any, row_grad: Tensor, col_grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        dx, dy = _SameLabelBackward.apply(
            row_grad, col_grad, ctx.needs_input_grad[:2], ctx.ranks, *ctx.saved_tensors
        )
        return dx, dy, None, None, None


class _SameLabelBackward(torch.autograd.Function):
    """With u, v the gradients of row and column sums: G_ij = m_ij (u_i + v_j), dx = G y, dy = Gᵀ x."""

    @staticmethod
    def forward(
        ctx: Any, u: Tensor, v: Tensor, need: tuple[bool, bool], ranks: Ranks, *saved: Any
    ) -> tuple[Tensor | None, Tensor | None]:
        x, y, row_labels, all_labels, kept = saved
        all_v = all_gather_columns(ranks, v, "all-gather of column gradients")
        dx = torch.zeros_like(x)
        around = exchange(ranks, kept)
        for piece in around.pieces(y):
            labels, weights = (ranks.take(t, piece.owners) for t in (all_labels, all_v))
            dx += u[:, None] * linear_terms.group_sums(piece.y, labels, row_labels)[0]
            dx += linear_terms.group_sums(piece.y * weights[:, None], labels, row_labels)[0]
            if need[1]:
                dy = weights[:, None] * linear_terms.group_sums(x, row_labels, labels)[0]
                dy += linear_terms.group_sums(x * u[:, None], row_labels, labels)[0]
                around.add(piece, dy)
        return dx if need[0] else None, around.collect() if need[1] else None

    backward = staticmethod(refuse_double_backward)
