"""What fastclip is compared with, in plain torch: the usual formula, and a loop that saves memory.

All take features (N, D), the multiplier and the bias (0-d or None), and return the 0-d loss.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

#: Rows of the similarity matrix that the loop holds at a time.
CHUNK = 512


def clip(x: Tensor, y: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """Compute CLIP's loss: two cross-entropies over z and its transpose."""
    z = scale * x @ y.T
    labels = torch.arange(len(x), device=x.device)
    return (F.cross_entropy(z, labels) + F.cross_entropy(z.T, labels)) / 2


def siglip(x: Tensor, y: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Compute SigLIP's loss: a binary cross-entropy for every pair of the matrix."""
    z = scale * x @ y.T + bias
    signs = 2 * torch.eye(len(x), device=x.device, dtype=x.dtype) - 1
    return -F.logsigmoid(signs * z).sum() / len(x)


def linear_cross_entropy(x: Tensor, y: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """Compute CLIP's loss with torch's own chunked linear layer + cross-entropy, once per direction."""
    options = torch.nn.LinearCrossEntropyOptions()
    labels = torch.arange(len(x), device=x.device)
    by_row = F.linear_cross_entropy(scale * x, y, labels, options=options)
    by_col = F.linear_cross_entropy(scale * y, x, labels, options=options)
    return (by_row + by_col) / 2


def clip_by_chunks(x: Tensor, y: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """Compute CLIP's loss by chunks of rows, recomputed in the backward pass: neither N x N nor kernels."""
    return _ClipByChunks.apply(x, y, scale)


def siglip_by_chunks(x: Tensor, y: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Compute SigLIP's loss by chunks of rows, recomputed in the backward pass."""
    return _SiglipByChunks.apply(x, y, scale, bias)


class _ClipByChunks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
        n = len(x)
        row = torch.empty(n, device=x.device)
        col = torch.full((n,), -torch.inf, device=x.device)
        positive = torch.empty(n, device=x.device)
        for rows in _chunks(n):
            z = (x[rows] @ y.T).float().mul_(scale)
            row[rows] = z.logsumexp(dim=1)
            col = torch.logaddexp(col, z.logsumexp(dim=0))
            positive[rows] = z.diagonal(rows.start)
        ctx.save_for_backward(x, y, scale, row, col)
        return ((row + col) / 2 - positive).mean()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        x, y, scale, row, col = ctx.saved_tensors
        weight = grads[0] / (2 * len(x))

        def coefficients(z: Tensor, rows: slice) -> Tensor:
            g = torch.exp(z - row[rows, None]).add_(torch.exp(z - col))
            g.diagonal(rows.start).sub_(2)
            return g.mul_(weight)

        return _gradients(x, y, scale, None, coefficients)[:3]


class _SiglipByChunks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        total = torch.zeros((), device=x.device)
        for rows in _chunks(len(x)):
            z = (x[rows] @ y.T).float().mul_(scale).add_(bias)
            z.diagonal(rows.start).neg_()
            total -= F.logsigmoid(z.neg_()).sum()
        ctx.save_for_backward(x, y, scale, bias)
        return total / len(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        x, y, scale, bias = ctx.saved_tensors
        weight = grads[0] / len(x)

        def coefficients(z: Tensor, rows: slice) -> Tensor:
            g = torch.sigmoid(z)
            g.diagonal(rows.start).sub_(1)
            return g.mul_(weight)

        return _gradients(x, y, scale, bias, coefficients)


def _gradients(
    x: Tensor, y: Tensor, scale: Tensor, bias: Tensor | None, coefficients: Any
) -> tuple[Tensor, ...]:
    """Return the gradients of x, y, scale and bias from ``coefficients(z, rows) = dL/dz``, chunk by chunk."""
    dx, dy = torch.empty_like(x), torch.zeros_like(y, dtype=torch.float32)
    dscale, dbias = torch.zeros_like(scale), torch.zeros_like(scale)
    for rows in _chunks(len(x)):
        s = (x[rows] @ y.T).float()
        z = s * scale if bias is None else (s * scale).add_(bias)
        g = coefficients(z, rows)
        dscale += torch.dot(g.view(-1), s.view(-1))
        dbias += g.sum()
        g = g.mul_(scale).to(x.dtype)
        dx[rows] = g @ y
        if y.dtype == torch.float32:
            dy.addmm_(g.T, x[rows])
        else:
            dy += g.T @ x[rows]
    return dx, dy.to(y.dtype), dscale, dbias


def _chunks(n: int) -> list[slice]:
    return [slice(start, min(start + CHUNK, n)) for start in range(0, n, CHUNK)]
