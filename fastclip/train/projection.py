"""Lay high-dimensional points out on a plane or in space: exact t-SNE, and a pass that keeps pictures apart."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def tsne(x: Tensor, *, dims: int = 2, perplexity: float = 30.0, steps: int = 400) -> Tensor:
    """Return the t-SNE layout (n, dims) of features x (n, D), float32, deterministic.

    Minimises KL(P ‖ Q) of neighbour probabilities, P Gaussian in D dimensions with `perplexity` neighbours
    each, Q Student-t in the layout (van der Maaten and Hinton, 2008), from a PCA start. O(n²): for a few
    thousand points.
    """
    n = len(x)
    if n < 4:
        return pca(x, dims)
    p = _neighbour_probabilities(x, min(perplexity, (n - 1) / 3))
    y = pca(x, dims)
    y = 1e-2 * y / y.std().clamp_min(1e-12)
    velocity, gain = torch.zeros_like(y), torch.ones_like(y)
    rate = max(n / 48, 50.0)
    for step in range(steps):
        early = step < steps // 4
        q = _differences(y, 0).square_()
        for axis in range(1, dims):
            q += _differences(y, axis).square_()
        q.add_(1).reciprocal_()
        q.fill_diagonal_(0)
        pull = (q * (-1 / q.sum())).add_(p, alpha=12.0 if early else 1.0).mul_(q)
        gradient = 4 * (pull.sum(1, keepdim=True) * y - pull @ y)
        gain = torch.where(gradient.sign() == velocity.sign(), gain * 0.8, gain + 0.2).clamp_min(0.01)
        velocity = (0.5 if early else 0.8) * velocity - rate * gain * gradient
        y = y + velocity
        y = y - y.mean(0)
    return y


def pca(x: Tensor, dims: int = 2) -> Tensor:
    """Return the first principal coordinates (n, dims) of x (n, D), each with a fixed sign."""
    centred = (x - x.mean(0)).float()
    _, _, axes = torch.linalg.svd(centred, full_matrices=False)
    axes = axes[:dims]
    largest = axes.abs().argmax(1, keepdim=True)
    y = centred @ (axes * axes.gather(1, largest).sign()).T
    return torch.nn.functional.pad(y, (0, dims - y.shape[1]))


@torch.no_grad()
def spread(y: Tensor, distance: float, steps: int = 200) -> Tensor:
    """Push points of y (n, 2) apart that are nearer than `distance` in both axes; others stay in place."""
    index = torch.arange(len(y))
    # Points in one place have no direction to part in; a fixed, tiny fan gives them one.
    y = y + 1e-3 * distance * torch.stack([(2.4 * index).cos(), (2.4 * index).sin()], 1)
    for _ in range(steps):
        apart = [_differences(y, 0), _differences(y, 1)]
        overlap = [(distance - d.abs()).clamp_(min=0).fill_diagonal_(0) for d in apart]
        # Squares are parted along the axis on which they overlap less.
        first = overlap[0] < overlap[1]
        overlap[0] *= first
        overlap[1] *= ~first
        push = torch.stack([torch.copysign(o, d).sum(1) for o, d in zip(overlap, apart, strict=True)], 1)
        if not push.any():
            break
        y = y + 0.35 * push.clamp_(-distance, distance)
    return y


def _differences(y: Tensor, axis: int) -> Tensor:
    """Return y[i, axis] - y[j, axis], (n, n)."""
    return y[:, axis, None] - y[None, :, axis]


def _neighbour_probabilities(x: Tensor, perplexity: float) -> Tensor:
    """Return symmetric joint probabilities (n, n) whose rows' conditionals have the given perplexity."""
    n = len(x)
    distance = torch.cdist(x.float(), x.float()).square()
    # Each point's own precision, by bisection on the logarithm; 40 halvings of a wide bracket.
    low = torch.full((n, 1), -20.0)
    high = torch.full((n, 1), 20.0)
    distance = distance / distance.mean().clamp_min(1e-12)
    target = torch.tensor(perplexity).log()
    eye = torch.eye(n, dtype=torch.bool)
    for _ in range(40):
        middle = (low + high) / 2
        logits = (-distance * middle.exp()).masked_fill(eye, -torch.inf)
        p = logits.softmax(1)
        entropy = torch.special.entr(p).sum(1, keepdim=True)
        wide = entropy > target
        low, high = torch.where(wide, middle, low), torch.where(wide, high, middle)
    return ((p + p.T) / (2 * n)).clamp_min(1e-12)
