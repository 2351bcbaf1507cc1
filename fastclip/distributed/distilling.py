"""Distillation over the shards of several ranks: the student's strip against the teacher's, each logit once.

With this rank's rows and all ranks' columns, of the student and of the teacher, seen in pieces:

    first walk     log-sum-exps of both; rows' are complete after the last piece, columns' are merged over ranks
    second walk    for each piece: this rank's part of the loss, dx += G y, dy = Gᵀ x, which goes home to its owner

The gradient is made in the forward pass, as on one device (fastclip/distillation.py). It is that of the sum of all
ranks' parts, so what is back-propagated must be the same on every rank; `total`, which sums the parts, sees to that.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastclip import blockwise
from fastclip.backends import compute_dtype, kernels_on
from fastclip.distributed.collectives import eager
from fastclip.distributed.driver import Spec, StripDriver, own_columns
from fastclip.distributed.exchange import exchange
from fastclip.distributed.ranks import Ranks
from fastclip.distributed.sums import total
from fastclip.objectives import Objective, Sums
from fastclip.ops import refuse_double_backward


@eager
def distill(
    ranks: Ranks,
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    teacher_x: Tensor,
    teacher_y: Tensor,
    teacher_scale: Tensor,
    normalize: bool,
    need_grad: bool,
    backend: str,
) -> Tensor:
    """Return `fastclip.distill_loss` of all ranks' pairs, 0-d, the same on every rank; ranks may have none."""
    spec = Spec(Objective.SOFTMAX, True, normalize, None, 0, backend)
    teacher = (teacher_x, teacher_y, teacher_scale)
    return total(ranks, _Strip.apply(x, y, scale, teacher, spec, need_grad, ranks)).clamp_min(0)


class _Strip(torch.autograd.Function):
    """This rank's part of the loss."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        y: Tensor,
        scale: Tensor,
        teacher: tuple[Tensor, Tensor, Tensor],
        spec: Spec,
        need_grad: bool,
        ranks: Ranks,
    ) -> Tensor:
        with kernels_on(x):
            loss, *gradients = _walk_twice(ranks, (x, y, scale), teacher, spec, need_grad)
        # The features go along so that a second derivative finds a function that refuses, instead of a constant.
        ctx.save_for_backward(*gradients, x, y, scale)
        return loss.to(compute_dtype(x.dtype))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return *_StripBackward.apply(grad, *ctx.saved_tensors), None, None, None, None


class _StripBackward(torch.autograd.Function):
    """The gradients times the upstream one; without a derivative."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, *saved: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        dx, dy, dscale, x, y, scale = saved
        return (dx * grad).to(x.dtype), (dy * grad).to(y.dtype), (dscale * grad).to(scale.dtype)

    backward = staticmethod(refuse_double_backward)


def _walk_twice(
    ranks: Ranks,
    student: tuple[Tensor, Tensor, Tensor],
    teacher: tuple[Tensor, Tensor, Tensor],
    spec: Spec,
    need_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return this rank's part of the loss, dx, dy and this rank's part of dscale."""
    strips, statistics, seen = [], [], []
    for x, y, scale in (student, teacher):
        around = exchange(ranks)
        strip = StripDriver(ranks, x, y, scale, None, None, None, spec)
        statistics.append(strip.statistics(around)[0])
        strips.append(strip)
        seen.append(around.kept)
    x, y, _ = student
    row_weight = torch.full((len(x),), 0.5 / sum(ranks.rows), **strips[0].sums)
    col_weight = torch.full((sum(ranks.cols),), 0.5 / sum(ranks.cols), **strips[0].sums)
    row, col = blockwise.values(strips[0].outline(), own_columns(ranks, statistics[0]))
    loss = (row * row_weight).sum() + (col * col_weight[: len(y)]).sum()  # type: ignore[operator]

    wide = compute_dtype(x.dtype)
    dx, dscale = torch.zeros_like(x, dtype=wide), torch.zeros((), **strips[0].sums)
    texts, taught_texts = (exchange(ranks, kept) for kept in seen)
    for piece, taught_piece in zip(texts.pieces(y), taught_texts.pieces(teacher[1]), strict=True):
        dy = torch.zeros_like(piece.y, dtype=wide)
        if len(x) and len(piece.y):
            problems = strips[0].problem(piece), strips[1].problem(taught_piece)
            weights = []
            for problem, whole in zip(problems, statistics, strict=True):
                cols = Sums(*(ranks.take(v, piece.owners) for v in (whole.cols.shift, whole.cols.sum)))  # type: ignore[union-attr]
                weight = ranks.take(col_weight, piece.owners)
                weights.append(strips[0].backend.weigh(problem, whole.rows, cols, None, row_weight, weight))
            taught, part = blockwise.differences(
                strips[0].backend, *problems, (weights[0], weights[1]), x.dtype, need_grad=need_grad
            )
            loss = loss - taught
            if part.x is not None and part.y is not None:
                dx, dy = dx + part.x, part.y
            dscale = dscale + part.scale
        if need_grad:
            texts.add(piece, dy)
    return loss, dx, texts.collect() if need_grad else torch.zeros_like(y, dtype=wide), dscale
