"""Distillation: a student's similarities against a teacher's, neither of which is ever held.

With the student's logits ``z = s x yᵀ``, its softmax ``p`` and the teacher's ``q`` along rows (and columns), the loss
is the cross-entropy of ``p`` under ``q``: ``mean_i (R_i - sum_j q_ij z_ij)``, ``R`` the student's log-sum-exp, averaged
over the two directions. (Yang et al., "CLIP-KD", 2024; open_clip's DistillClipLoss.)

The loss is one number with fixed weights, so its gradient ``G = w (p - q)`` can be made in the forward pass: one walk
over the blocks for both log-sum-exps, a second for the loss and the gradients. The backward pass only multiplies.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastclip import blockwise, distributed, validation
from fastclip.backends import Backend, Problem, compute_dtype, get_backend, kernels_on, resolve_backend
from fastclip.blockwise import Gradients
from fastclip.objectives import Objective
from fastclip.ops import refuse_double_backward

torch.library.define(
    "fastclip::distill",
    "(Tensor x, Tensor y, Tensor scale, Tensor teacher_x, Tensor teacher_y, Tensor teacher_scale, bool normalize, "
    "bool need_grad, str backend) -> (Tensor loss, Tensor dx, Tensor dy, Tensor dscale)",
)
torch.library.define(
    "fastclip::distill_backward",
    "(Tensor grad, Tensor dx, Tensor dy, Tensor dscale, Tensor x, Tensor y, Tensor scale) -> (Tensor, Tensor, Tensor)",
)


def distill_loss(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: float | Tensor,
    teacher_image_features: Tensor,
    teacher_text_features: Tensor,
    teacher_logit_scale: float | Tensor,
    *,
    normalize: bool = False,
    reduction: str = "mean",
    backend: str = "auto",
    group: Any = None,
    mode: str = "gather",
) -> Tensor:
    """Compute the cross-entropy of the student's softmax under the teacher's, over rows and columns.

    Args:
        image_features, text_features: the student's, (M, D) and (N, D).
        logit_scale: the student's multiplier; gets a gradient.
        teacher_image_features, teacher_text_features: (M, E) and (N, E), E may differ from D, the dtype too; no
            gradient.
        teacher_logit_scale: the teacher's multiplier; no gradient.
        normalize: divide all features by their L2 norms first.
        reduction: "mean" over rows and over columns, or "sum" (M times the mean).
        backend: "auto", or one of `fastclip.available_backends()`.
        group, mode: the ranks that share the batch, as for `fastclip.clip_loss`.

    Returns:
        0-d, nats.

    Raises:
        ValueError, TypeError, RuntimeError: as `fastclip.clip_loss`; the teacher must have as many rows
            as the student.
    """
    with distributed.together(group, mode) as ranks:
        if reduction not in ("mean", "sum"):
            raise ValueError(f"reduction must be 'mean' or 'sum' for distillation, got {reduction!r}")
        shards = ranks is not None
        names = ("image_features", "text_features")
        x, y = validation.check_features(names, image_features, text_features, shards=shards)
        names = ("teacher_image_features", "teacher_text_features")
        tx, ty = validation.check_features(
            names, teacher_image_features, teacher_text_features, shards=shards
        )
        if (tx.shape[0], ty.shape[0]) != (x.shape[0], y.shape[0]):
            raise ValueError(
                f"the teacher has {tx.shape[0]} images and {ty.shape[0]} texts but the student {x.shape[0]} and "
                f"{y.shape[0]}; both must have seen the same batch"
            )
        if tx.device != x.device:
            raise ValueError(f"teacher_image_features is on {tx.device} but image_features is on {x.device}")
        like = x.new_empty(0, dtype=compute_dtype(x.dtype))
        scale = validation.check_scalar("logit_scale", logit_scale, like)
        teacher_scale = validation.check_scalar("teacher_logit_scale", teacher_logit_scale, like).detach()
        needed = [torch.is_grad_enabled() and t.requires_grad for t in (x, y, scale)]
        need_grad = any(needed)
        name = resolve_backend(backend, x.device, x.dtype)
        # The teacher's own precision, but no more than sums have: float64 only beside a student in float64.
        if tx.dtype != x.dtype:
            tx, ty = tx.to(like.dtype), ty.to(like.dtype)
        teacher = (tx.detach(), ty.detach(), teacher_scale)
        rows = x.shape[0]
        if ranks is None:
            loss = torch.ops.fastclip.distill(x, y, scale, *teacher, normalize, need_grad, name)[0]
        else:
            terms = {
                "the objective": "distillation",
                "the width D of the features": x.shape[1],
                "the width E of the teacher's features": tx.shape[1],
                "the dtype of the features": str(x.dtype),
                "the dtype of the teacher's features": str(tx.dtype),
                "the dtype of the sums": str(get_backend(name).sums_dtype(x.dtype)),
                "a gradient needed by (first features, second features, scale)": needed,
                "normalize": normalize,
                "reduction": reduction,
                "mode": mode,
            }
            ranks.agree(x.shape[0], y.shape[0], terms)
            scale, _ = distributed.shared(ranks, scale, None)
            loss = distributed.distill(ranks, x, y, scale, *teacher, normalize, need_grad, name)
            rows = sum(ranks.rows)
        return loss if reduction == "mean" else loss * rows


def walk_twice(
    backend: Backend, student: Problem, teacher: Problem, dtype: torch.dtype, *, need_grad: bool
) -> tuple[Tensor, Gradients]:
    """Walk the blocks twice; return the loss and its gradients."""
    like: dict[str, Any] = {"dtype": backend.sums_dtype(dtype), "device": student.x.data.device}
    row_weight, col_weight = (
        torch.full((len(side),), 0.5 / len(side), **like) for side in (student.x, student.y)
    )
    ours, theirs = (
        blockwise.statistics(backend, problem, dtype, columns=True, keep=0) for problem in (student, teacher)
    )
    row, col = blockwise.values(student, ours)
    loss = (row * row_weight).sum() + (col * col_weight).sum()  # type: ignore[operator]
    weights = (
        backend.weigh(student, ours.rows, ours.cols, None, row_weight, col_weight),
        backend.weigh(teacher, theirs.rows, theirs.cols, None, row_weight, col_weight),
    )
    taught, gradients = blockwise.differences(backend, student, teacher, weights, dtype, need_grad=need_grad)
    return (loss - taught).clamp_min(0), gradients  # a cross-entropy, whatever the digits of large logits say


@torch.library.impl("fastclip::distill", "CompositeExplicitAutograd")
def _distill_op(
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    teacher_x: Tensor,
    teacher_y: Tensor,
    teacher_scale: Tensor,
    normalize: bool,
    need_grad: bool,
    backend: str,
) -> tuple[Tensor, ...]:
    runner = get_backend(backend)
    how = (None, None, Objective.SOFTMAX, normalize, None)
    with kernels_on(x):
        student = blockwise.pose(runner, x, y, scale, *how)
        teacher = blockwise.pose(runner, teacher_x, teacher_y, teacher_scale, *how)
        loss, gradients = walk_twice(runner, student, teacher, x.dtype, need_grad=need_grad)
    loss = loss.to(compute_dtype(x.dtype))
    dx, dy = (loss.new_empty(0) if t is None else t for t in (gradients.x, gradients.y))
    return loss, dx, dy, gradients.scale.to(scale.dtype)


@torch.library.register_fake("fastclip::distill")
def _distill_fake(
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    teacher_x: Tensor,
    teacher_y: Tensor,
    teacher_scale: Tensor,
    normalize: bool,
    need_grad: bool,
    backend: str,
) -> tuple[Tensor, ...]:
    return (
        x.new_empty((), dtype=compute_dtype(x.dtype)),
        x.new_empty(x.shape if need_grad else 0, dtype=compute_dtype(x.dtype)),
        y.new_empty(y.shape if need_grad else 0, dtype=compute_dtype(x.dtype)),
        torch.empty_like(scale),
    )


@torch.library.impl("fastclip::distill_backward", "CompositeExplicitAutograd")
def _distill_backward_op(
    grad: Tensor, dx: Tensor, dy: Tensor, dscale: Tensor, x: Tensor, y: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return (dx * grad).to(x.dtype), (dy * grad).to(y.dtype), dscale * grad


@torch.library.register_fake("fastclip::distill_backward")
def _distill_backward_fake(
    grad: Tensor, dx: Tensor, dy: Tensor, dscale: Tensor, x: Tensor, y: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), y.new_empty(y.shape), torch.empty_like(scale)


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    _loss, *gradients = output
    ctx.mark_non_differentiable(*gradients)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*gradients, *inputs[:3])


def _differentiate(ctx, grad, *_) -> tuple[Tensor | None, ...]:  # type: ignore[no-untyped-def]
    # The features go along so that a second derivative finds an op that refuses, instead of a constant.
    gradients = torch.ops.fastclip.distill_backward(grad, *ctx.saved_tensors)
    return *gradients, *(None,) * 6


torch.library.register_autograd("fastclip::distill", _differentiate, setup_context=_setup_context)
torch.library.register_autograd("fastclip::distill_backward", refuse_double_backward)
