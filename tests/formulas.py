"""A loss on one set of features: how fastclip computes it, how plain torch does, and what its gradients are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from fastclip.functional import clip_loss, info_nce_loss, siglip_loss

FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "clip": clip_loss,
    "info_nce": info_nce_loss,
    "siglip": siglip_loss,
}


@dataclass(frozen=True)
class Case:
    """One call of a loss. Features are float64 here, (M, D) and (N, D), and rounded to the dtype under test."""

    x: Tensor
    y: Tensor
    scale: float
    objective: str = (
        "clip"  # or "info_nce", "siglip", "clip_multi", "siglip_multi" (labels make many positives)
    )
    bias: float | None = None
    normalize: bool = False
    diagonal: int = 0
    labels: tuple[Tensor, Tensor] | None = None
    label_smoothing: float = 0.0

    def rounded(self, dtype: torch.dtype) -> Case:
        """Return the same case with features that `dtype` holds exactly, and scale and bias that float32 does."""
        x, y = (features.to(dtype).double() for features in (self.x, self.y))
        bias = None if self.bias is None else torch.tensor(self.bias).item()
        return replace(self, x=x, y=y, scale=torch.tensor(self.scale).item(), bias=bias)


@dataclass(frozen=True)
class Result:
    """A loss (0-d, nats) and its gradients, all float64; ``dbias`` is None where there is no bias."""

    loss: Tensor
    dx: Tensor
    dy: Tensor
    dscale: Tensor
    dbias: Tensor | None


NAMES = tuple(field.name for field in fields(Result))

#: (case, x, y, scale, bias) -> loss, 0-d. The tensors carry the case's numbers in the dtype under test.
Loss = Callable[[Case, Tensor, Tensor, Tensor, Tensor | None], Tensor]


def fused(backend: str, **options: object) -> Loss:
    """Return fastclip's loss on one backend."""

    def loss(case: Case, x: Tensor, y: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
        function = FUNCTIONS[case.objective.removesuffix("_multi")]
        more: dict = dict(options)
        if bias is not None:
            more["logit_bias"] = bias
        if case.label_smoothing:
            more["label_smoothing"] = case.label_smoothing
        if case.objective.endswith("_multi"):
            more["multi_positive"] = True
        return function(
            *(x, y, scale),
            normalize=case.normalize,
            diagonal=case.diagonal,
            labels=case.labels,
            backend=backend,
            **more,
        )

    return loss


def eager(case: Case, x: Tensor, y: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """Compute the loss as every trainer does: the whole matrix, cross-entropy or log-sigmoid over it."""
    if case.normalize:
        x, y = F.normalize(x, dim=1), F.normalize(y, dim=1)
    z = scale * x @ y.T
    return from_logits(case, z if bias is None else z + bias)


def from_logits(case: Case, z: Tensor) -> Tensor:
    """Compute a loss from logits (M, N): the second half of `eager`."""
    m, n = z.shape
    target = torch.arange(m) + case.diagonal
    positive = torch.arange(n) == target[:, None]
    shared = torch.zeros_like(positive) if case.labels is None else case.labels[0][:, None] == case.labels[1]
    if case.objective == "siglip":
        each = F.logsigmoid(torch.where(positive, z, -z))
        return -each.masked_fill(shared & ~positive, 0).sum() / m
    if case.objective == "siglip_multi":
        return -F.logsigmoid(torch.where(shared, z, -z)).sum() / m
    if case.objective == "clip_multi":
        return (_cross_entropy_over(shared, z) + _cross_entropy_over(shared.T, z.T)) / 2
    if case.labels is not None:
        z = z.masked_fill(shared & ~positive, -torch.inf)
    by_row = _cross_entropy(case, z, target)
    if case.objective == "info_nce":
        return by_row
    return (by_row + _cross_entropy(case, z.T[target], torch.arange(m))) / 2


def _cross_entropy(case: Case, z: Tensor, target: Tensor) -> Tensor:
    if case.labels is None:
        return F.cross_entropy(z, target, label_smoothing=case.label_smoothing)
    # F.cross_entropy's smoothing would add the excluded entries' infinite logits.
    log_p = F.log_softmax(z, dim=1)
    kept = z > -torch.inf
    spread = log_p.masked_fill(~kept, 0).sum(dim=1) / kept.sum(dim=1)
    own = log_p[torch.arange(len(z)), target]
    return -((1 - case.label_smoothing) * own + case.label_smoothing * spread).mean()


def _cross_entropy_over(positives: Tensor, z: Tensor) -> Tensor:
    """Average, over the rows that have positives, the cross-entropy against the uniform distribution over them."""
    return -(F.log_softmax(z, dim=1) * positive_weights(positives).to(z.dtype)).sum()


def positive_weights(positives: Tensor) -> Tensor:
    """Return the weight of every entry in that average."""
    counts = positives.sum(dim=1, keepdim=True)
    return positives.double() / counts.clamp_min(1) / (counts > 0).sum()


def run(loss: Loss, case: Case, dtype: torch.dtype, upstream: float = 1.0, device: str = "cpu") -> Result:
    """Evaluate a loss on a case's features in `dtype`, and its gradients divided by the upstream gradient again."""
    x, y = (features.to(device, dtype, copy=True).requires_grad_() for features in (case.x, case.y))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    scale = torch.tensor(case.scale, dtype=wide, device=device, requires_grad=True)
    bias = None
    if case.bias is not None:
        bias = torch.tensor(case.bias, dtype=wide, device=device, requires_grad=True)
    value = loss(case, x, y, scale, bias)
    leaves = [x, y, scale] if bias is None else [x, y, scale, bias]
    grads = torch.autograd.grad(value, leaves, torch.full_like(value, upstream))
    dx, dy, dscale, *dbias = (grad.double().cpu() / upstream for grad in grads)
    return Result(value.detach().double().cpu(), dx, dy, dscale, dbias[0] if dbias else None)
