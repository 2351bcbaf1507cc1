"""Find nearest neighbours in blocks, and measure how well they share meaning."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from fastclip.retrieval import similarity_topk
from fastclip.space.checks import check_labels, check_points, check_same_width, row_blocks, unit


def nearest(
    queries: Tensor, keys: Tensor, k: int = 10, *, exclude: Tensor | None = None, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """Return the k keys nearest to every query by cosine, nearest first, without the (M, N) similarities.

    Args:
        queries: (M, D).
        keys: (N, D).
        k: how many; at most N, and at most N − 1 with `exclude`.
        exclude: int64 (M,), for each query one key that is no answer: its own place, where queries are keys too.
        backend: as `fastclip.similarity_topk`.

    Returns:
        cosines (M, k) and indices (M, k).

    Raises:
        TypeError, ValueError: no such matrices, two widths, k out of range.
    """
    check_points("queries", queries)
    check_points("keys", keys)
    check_same_width(("queries", "keys"), queries, keys)
    most = len(keys) - (exclude is not None)
    if not 1 <= k <= most:
        raise ValueError(f"k must lie between 1 and {most}, the number of keys to choose from, got {k}")
    if queries.dtype != keys.dtype:
        wider = torch.promote_types(queries.dtype, keys.dtype)
        queries, keys = queries.to(wider), keys.to(wider)
    found = k + (exclude is not None)
    cosines, index = similarity_topk(queries, keys, found, normalize=True, backend=backend)
    if exclude is None:
        return cosines, index
    own = index == check_labels("exclude", exclude, queries)[:, None]
    own[:, -1] |= ~own.any(1)  # where it is not among the found, the last one is one too many
    return cosines[~own].view(-1, k), index[~own].view(-1, k)


@dataclass(frozen=True)
class ClusterReport:
    """How well the neighbours of a point share its label; all but the cosines have a chance level beside them."""

    k: int
    points: int
    labels: int
    purity: float  #: share of the k nearest that have the point's label, mean over points
    purity_chance: float  #: the same for neighbours drawn at random
    vote: float  #: share of points whose label has most of the k nearest (ties count against)
    vote_chance: float  #: share of the most frequent label
    silhouette: float  #: mean of (b − a) / max(a, b); 0 is chance, 1 the best
    within: float  #: mean cosine of two points of one label
    between: float  #: mean cosine of two points of different labels

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return asdict(self)


@torch.no_grad()
def cluster_report(features: Tensor, labels: Tensor, *, k: int = 10) -> ClusterReport:
    """Measure whether points with one label lie together.

    Silhouettes are Rousseeuw's (1987) under the cosine distance ``1 − cos``: a is a point's mean distance to the
    others of its label, b to those of the nearest other label. That distance is linear in unit vectors, so a label's
    mean vector gives it exactly and no (N, N) matrix is needed.

    Args:
        features: (N, D).
        labels: integers (N,), at least two different ones, at least one of them twice.
        k: neighbours looked at; at most N − 1.

    Raises:
        TypeError, ValueError: no such tensors, or labels that leave nothing to measure.
    """
    x = unit(check_points("features", features, least=3))
    distinct, label = check_labels("labels", labels, x).unique(return_inverse=True)
    count = label.bincount().to(x.dtype)
    if len(distinct) < 2 or int(count.max()) < 2:
        raise ValueError(
            f"labels must name at least two groups, one of them with two points or more, got {len(distinct)} "
            f"labels on {len(x)} points"
        )
    n = len(x)
    k = min(k, n - 1)
    index = nearest(x, x, k, exclude=torch.arange(n, device=x.device))[1]
    same = label[index] == label[:, None]
    votes = torch.zeros(n, len(distinct), device=x.device).scatter_add_(
        1, label[index], torch.ones_like(index, dtype=torch.float32)
    )
    own_votes = votes.gather(1, label[:, None])
    won = (votes < own_votes).sum(1) == len(distinct) - 1

    total = x.new_zeros(len(distinct), x.shape[1]).index_add_(0, label, x)
    within_pairs = ((total.square().sum(1) - count).sum() / (count * (count - 1)).sum()).item()
    all_pairs = (total.sum(0).square().sum() - n).item()
    pairs_within = (count * (count - 1)).sum().item()
    between = (all_pairs - within_pairs * pairs_within) / max(n * (n - 1) - pairs_within, 1)
    return ClusterReport(
        k=k,
        points=n,
        labels=len(distinct),
        purity=same.float().mean().item(),
        purity_chance=((count[label] - 1) / (n - 1)).mean().item(),
        vote=won.float().mean().item(),
        vote_chance=count.max().item() / n,
        silhouette=_silhouette(x, label, total, count),
        within=within_pairs,
        between=between,
    )


def _silhouette(x: Tensor, label: Tensor, total: Tensor, count: Tensor) -> float:
    """Return the mean silhouette; a point alone under its label has 0."""
    summed = x.new_zeros(())
    for rows in row_blocks(len(x), len(total)):
        own = label[rows][:, None]
        distance = 1 - x[rows] @ (total / count[:, None]).T
        size = count[own]
        a = distance.gather(1, own) * size / (size - 1).clamp_min(1)  # its distance to itself is 0
        b = distance.scatter(1, own, torch.inf).amin(1, keepdim=True)
        value = (b - a) / torch.maximum(a, b).clamp_min(torch.finfo(x.dtype).eps)
        summed = summed + torch.where(size > 1, value, 0).sum()
    return (summed / len(x)).item()
