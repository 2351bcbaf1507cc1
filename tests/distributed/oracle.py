"""Losses over shards, in dense float64 torch on the whole batch: the truth for every mode and world.

A batch is a list of shards; the positive of a shard's row i is its own column i + diagonal.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import fastclip

D = 6


@dataclass(frozen=True)
class Layout:
    """How a batch lies on ranks: rows and columns of each, and where their positives are."""

    rows: tuple[int, ...]
    cols: tuple[int, ...]
    diagonal: int = 0

    @classmethod
    def named(cls, name: str, world: int) -> Layout:
        """Return one of the layouts of the tests for a world of some size."""
        if name == "even":
            sizes = (4,) * world
        elif name == "uneven":
            sizes = (3, 6, 1, 4)[:world]
        elif name == "empty shard":
            sizes = (5, 0, 2, 3)[:world] if world > 1 else (5,)
        elif name == "first shards empty":
            sizes = (0,) * (world - 1) + (5,)
        elif name == "extra texts":
            return cls((3, 2, 0, 4)[:world], (5, 4, 3, 6)[:world], diagonal=1)
        else:
            raise ValueError(name)
        return cls(sizes, sizes)


LAYOUTS = ("even", "uneven", "empty shard", "first shards empty", "extra texts")


@dataclass(frozen=True)
class Loss:
    """A function of fastclip with options; `labels` says whether it is given labels."""

    function: str
    labels: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    bias: bool = False

    def __str__(self) -> str:
        parts = [self.function, "labels" * self.labels, "bias" * self.bias, *map(str, self.options.items())]
        return " ".join(part for part in parts if part)


LOSSES = (
    Loss("clip_loss"),
    Loss("clip_loss", options={"normalize": True}),
    Loss("clip_loss", labels=True, bias=True),
    Loss("clip_loss", options={"reduction": "sum", "workspace": 0}),
    Loss("clip_loss", labels=True, options={"reduction": "none"}),
    Loss("clip_loss", options={"label_smoothing": 0.2, "normalize": True}),
    Loss("clip_loss", labels=True, options={"label_smoothing": 0.2}),
    Loss("clip_loss", labels=True, options={"multi_positive": True, "normalize": True}),
    Loss("clip_loss", labels=True, bias=True, options={"multi_positive": True, "reduction": "sum"}),
    Loss("info_nce_loss"),
    Loss("info_nce_loss", labels=True, options={"label_smoothing": 0.1}),
    Loss("info_nce_loss", options={"weights": (0.3, 0.9)}),
    Loss("info_nce_loss", labels=True, options={"multi_positive": True}),
    Loss("siglip_loss", bias=True),
    Loss("siglip_loss", labels=True, options={"normalize": True, "reduction": "none"}),
    Loss("siglip_loss", labels=True, bias=True, options={"multi_positive": True}),
)


@dataclass(frozen=True)
class Batch:
    """A whole batch, float64: features (M, D), (N, D), scale, bias, labels, and upstream gradients per row (M,)."""

    layout: Layout
    x: Tensor
    y: Tensor
    scale: float
    bias: float
    labels: tuple[Tensor, Tensor]
    upstream: Tensor

    @classmethod
    def random(cls, layout: Layout, seed: int = 0) -> Batch:
        """Draw a batch; some pairs share a label with others, and texts without an image have labels too."""
        generator = torch.Generator().manual_seed(seed)
        m, n = sum(layout.rows), sum(layout.cols)
        x, y = (torch.randn(rows, D, generator=generator, dtype=torch.float64) for rows in (m, n))
        cols = torch.randint(0, max(2, n // 2), (n,), generator=generator)
        upstream = torch.rand(m, generator=generator, dtype=torch.float64)
        batch = cls(layout, x, y, 1.7, -0.4, (cols[:m], cols), upstream)
        rows = cols[batch.positives()].clone()
        if m > 1:
            rows[-1] = 10_000  # a label of its own, not its text's
        return cls(layout, x, y, 1.7, -0.4, (rows, cols), upstream)

    def positives(self) -> Tensor:
        """Return the column of each row's positive, (M,)."""
        found, start = [], 0
        for rows, cols in zip(self.layout.rows, self.layout.cols, strict=True):
            found.append(torch.arange(rows) + self.layout.diagonal + start)
            start += cols
        return torch.cat(found)

    def shard(self, rank: int) -> Batch:
        """Return what one rank holds."""
        rows, cols = (
            slice(sum(sizes[:rank]), sum(sizes[: rank + 1])) for sizes in (self.layout.rows, self.layout.cols)
        )
        layout = Layout((self.layout.rows[rank],), (self.layout.cols[rank],), self.layout.diagonal)
        labels = self.labels[0][rows], self.labels[1][cols]
        return Batch(layout, self.x[rows], self.y[cols], self.scale, self.bias, labels, self.upstream[rows])

    def rounded(self, dtype: torch.dtype) -> Batch:
        """Return the batch with features that a dtype can hold, in float64 still."""
        return replace(self, x=self.x.to(dtype).double(), y=self.y.to(dtype).double())

    def applies(self, loss: Loss) -> bool:
        """Say whether a loss makes sense of this layout."""
        multi = loss.options.get("multi_positive")
        return not (multi and self.layout.diagonal)


@dataclass(frozen=True)
class Answer:
    """A loss, 0-d or (M,), and the gradients of its mean, sum or weighted sum."""

    value: Tensor
    dx: Tensor | None
    dy: Tensor | None
    dscale: Tensor
    dbias: Tensor | None


def differentiate(batch: Batch, loss: Loss, dtype: torch.dtype = torch.float64, **more: Any) -> Answer:
    """Run one of fastclip's losses on a batch (or on one rank's shard of it)."""
    x, y = (features.to(dtype, copy=True).requires_grad_() for features in (batch.x, batch.y))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    scale = torch.tensor(batch.scale, dtype=wide, requires_grad=True)
    bias = torch.tensor(batch.bias, dtype=wide, requires_grad=True) if loss.bias else None
    options = loss.options | more
    if bias is not None:
        options["logit_bias"] = bias
    if loss.labels:
        options["labels"] = batch.labels
    if not loss.options.get("multi_positive"):
        options["diagonal"] = batch.layout.diagonal
    value = getattr(fastclip.functional, loss.function)(x, y, scale, **options)
    _backward(value, batch.upstream.to(value.dtype))
    return Answer(value.detach(), x.grad, y.grad, scale.grad, None if bias is None else bias.grad)


def _backward(value: Tensor, upstream: Tensor) -> None:
    value.backward(upstream if value.dim() else None)


def truth(batch: Batch, loss: Loss) -> Answer:
    """Compute a loss from the whole matrix."""
    x, y = batch.x.clone().requires_grad_(), batch.y.clone().requires_grad_()
    scale = torch.tensor(batch.scale, dtype=torch.float64, requires_grad=True)
    bias = torch.tensor(batch.bias, dtype=torch.float64, requires_grad=True)
    u, v = (F.normalize(t, dim=1) if loss.options.get("normalize") else t for t in (x, y))
    z = scale * u @ v.T + (bias if loss.bias else 0)
    value = _from_logits(batch, loss, z)
    _backward(value, batch.upstream)
    return Answer(value.detach(), x.grad, y.grad, scale.grad, bias.grad if loss.bias else None)


def _from_logits(batch: Batch, loss: Loss, z: Tensor) -> Tensor:
    m, n = z.shape
    positives = batch.positives()
    positive = torch.arange(n) == positives[:, None]
    shared = batch.labels[0][:, None] == batch.labels[1]
    reduction = loss.options.get("reduction", "mean")
    if loss.function == "siglip_loss":
        if loss.options.get("multi_positive"):
            each = F.softplus(torch.where(shared, -z, z))
        else:
            each = F.softplus(torch.where(positive, -z, z))
            if loss.labels:
                each = each.masked_fill(shared & ~positive, 0)
        return _reduced(each.sum(dim=1), reduction)
    weights = loss.options.get("weights", (0.5, 0.5) if loss.function == "clip_loss" else (1.0, 0.0))
    if loss.options.get("multi_positive"):
        parts = []
        for logits, mask in ((z, shared), (z.T, shared.T)):
            mean = (logits * mask).sum(dim=1) / mask.sum(dim=1).clamp_min(1)
            values = (logits.logsumexp(dim=1) - mean).masked_fill(~mask.any(dim=1), 0)
            parts.append((values.sum(), mask.any(dim=1).sum()))
        return sum(
            w * (total / count if reduction == "mean" else total)
            for w, (total, count) in zip(weights, parts, strict=True)
            if w
        )
    excluded = shared & ~positive if loss.labels else torch.zeros_like(positive)
    smoothing = loss.options.get("label_smoothing", 0.0)
    row = _cross_entropy(z, excluded, positives, smoothing)
    col = _cross_entropy(z.T[positives], excluded.T[positives], torch.arange(m), smoothing)
    return _reduced(weights[0] * row + weights[1] * col, reduction)


def _cross_entropy(z: Tensor, excluded: Tensor, target: Tensor, smoothing: float) -> Tensor:
    log_p = F.log_softmax(z.masked_fill(excluded, -torch.inf), dim=1)
    spread = log_p.masked_fill(excluded, 0).sum(dim=1) / (~excluded).sum(dim=1)
    return -((1 - smoothing) * log_p[torch.arange(len(z)), target] + smoothing * spread)


def _reduced(values: Tensor, reduction: str) -> Tensor:
    return {"mean": values.mean, "sum": values.sum, "none": lambda: values}[reduction]()
