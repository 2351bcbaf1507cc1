"""Distillation: a student's similarities against a teacher's, neither of which is ever held.

With the student's logits ``z = s x yᵀ``, its softmax ``p`` and the teacher's ``q`` along rows (and columns), the loss
is the cross-entropy of ``p`` under ``q``: ``mean_i (R_i - sum_j q_ij z_ij)``, ``R`` the student's log-sum-exp, averaged
over the two directions. (Yang et al., "CLIP-KD", 2024; open_clip's DistillClipLoss.)

The loss is one number with fixed weights, so its gradient ``G = w (p - q)`` can be made in the forward pass: one walk
over the blocks for both log-sum-exps, a second for the loss and the gradients. The backward pass only multiplies.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastclip import blockwise, validation
from fastclip.backends import Backend, Problem, compute_dtype, get_backend, resolve_backend
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
) -> Tensor:
    """Compute the cross-entropy of the student's softmax under the teacher's, over rows and columns.

    Args:
        image_features, text_features: the student's, (M, D) and (N, D).
        logit_scale: the student's multiplier; gets a gradient.
        teacher_image_features, teacher_text_features: (M, E) and (N, E), E may differ from D; no gradient.
        teacher_logit_scale: the teacher's multiplier; no gradient.
        normalize: divide all features by their L2 norms first.
        reduction: "mean" over rows and over columns, or "sum" (M times the mean).
        backend: "auto", or one of `fastclip.available_backends()`.

    Returns:
        0-d, nats.

    Raises:
        ValueError, TypeError, RuntimeError: as `fastclip.clip_loss`; the teacher must have as many rows
            as the student.
    """
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction must be 'mean' or 'sum' for distillation, got {reduction!r}")
    x, y = validation.check_features(("image_features", "text_features"), image_features, text_features)
    names = ("teacher_image_features", "teacher_text_features")
    tx, ty = validation.check_features(names, teacher_image_features, teacher_text_features)
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
    need_grad = torch.is_grad_enabled() and any(t.requires_grad for t in (x, y, scale))
    name = _resolve(backend, x)
    teacher = (tx.detach().to(x.dtype), ty.detach().to(x.dtype), teacher_scale)
    loss = torch.ops.fastclip.distill(x, y, scale, *teacher, normalize, need_grad, name)[0]
    return loss if reduction == "mean" else loss * x.shape[0]


def _resolve(name: str, x: Tensor) -> str:
    """Return the backend to use: one whose coefficients are plain numbers, for p and q are subtracted from another."""
    resolved = resolve_backend(name, x.device, x.dtype)
    if get_backend(resolved).plain_coefficients:
        return resolved
    if name == "auto":
        return "reference"
    raise RuntimeError(
        f"backend={name!r} cannot run distillation: its coefficients are in units of their own. Use backend='auto'"
    )


def _distill(
    backend: Backend, student: Problem, teacher: Problem, dtype: torch.dtype, need_grad: bool
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor]:
    """Walk the blocks twice; return the loss, dx, dy and dscale."""
    m, n, device = len(student.x), len(student.y), student.x.data.device
    sums_dtype = backend.sums_dtype(dtype)
    row_weight = torch.full((m,), 0.5 / m, dtype=sums_dtype, device=device)
    col_weight = torch.full((n,), 0.5 / n, dtype=sums_dtype, device=device)
    weights, loss = [], torch.zeros((), dtype=sums_dtype, device=device)
    for problem in (student, teacher):
        statistics = blockwise.statistics(backend, problem, dtype, columns=True, keep=0)
        weights.append(backend.weigh(problem, statistics.rows, statistics.cols, None, row_weight, col_weight))
        if problem is student:
            row, col = blockwise.values(problem, statistics)
            loss += (row * row_weight).sum() + (col * col_weight).sum()  # type: ignore[operator]
    wide = compute_dtype(dtype)
    dx = torch.zeros(m, student.x.width, dtype=wide, device=device) if need_grad else None
    dy = torch.zeros(n, student.y.width, dtype=wide, device=device) if need_grad else None
    dscale = torch.zeros((), dtype=sums_dtype, device=device)
    for block in blockwise.blocks(backend, m, n):
        similarities = backend.similarities(student.x, student.y, block)
        q = torch.empty_like(similarities)
        backend.coefficients(teacher, block, weights[1], None, q)
        loss -= student.scale * (q * similarities).sum(dtype=sums_dtype)
        if dx is not None and dy is not None:
            g = torch.empty_like(similarities)
            backend.coefficients(student, block, weights[0], similarities, g)
            g -= q
            dscale += (g * similarities).sum(dtype=sums_dtype)
            backend.add_product(dx[block.rows], g, student.y, block.cols)
            backend.add_product(dy[block.cols], g.mT, student.x, block.rows)
    if dx is not None and dy is not None:
        # Wide until the upstream gradient is known: times 1 / M, a loss scaler's float16 would underflow.
        dx = backend.finish(dx, student.x, student.y, weights[0], student.scale, wide)
        dy = backend.finish(dy, student.y, student.x, weights[0], student.scale, wide)
    return loss.to(compute_dtype(dtype)), dx, dy, dscale.to(student.scale.dtype)


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
    with torch.autocast(x.device.type, enabled=False):
        student = blockwise.pose(runner, x, y, scale, *how)
        teacher = blockwise.pose(runner, teacher_x, teacher_y, teacher_scale, *how)
        loss, dx, dy, dscale = _distill(runner, student, teacher, x.dtype, need_grad)
    none = loss.new_empty(0)
    return loss, none if dx is None else dx, none.clone() if dy is None else dy, dscale


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
    return torch.empty_like(x), torch.empty_like(y), torch.empty_like(scale)


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
