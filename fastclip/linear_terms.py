"""Terms of a loss that are linear in the logits, in plain torch: label smoothing and the mean over many positives.

A mean of logits is the logit of a mean, ``mean_j (scale <x_i, y_j>) = scale <x_i, mean_j y_j>``, so such terms cost
O((M + N) D) and need no kernel. Sums over the members of a label go through sorted labels, with shapes that do not
depend on the data (torch.compile can trace them, a GPU need not be asked).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastclip.backends import compute_dtype


def smoothing(
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    labels: tuple[Tensor, Tensor] | None,
    *,
    normalize: bool,
    diagonal: int,
) -> tuple[Tensor, Tensor]:
    """Return what label smoothing adds to the pairs' row and column losses per unit of smoothing, (M,) each.

    Over the J entries that a row is compared with, a smoothed cross-entropy is
    ``R - (1 - eps) z_ii - eps mean_j z_ij = (R - z_ii) + eps (z_ii - mean_j z_ij)``: this is the last bracket.

    Args:
        x, y: features (M, D), (N, D).
        scale: 0-d.
        labels: (M,) and (N,): entries that share one are not compared with, the positive excepted.
        normalize: whether the loss normalises the features.
        diagonal: the positive of row i is column i + diagonal.
    """
    x, y = unit(x, normalize), unit(y, normalize)
    positives = y[diagonal : diagonal + x.shape[0]]
    if labels is None:
        row_mean, col_mean = y.mean(dim=0), x.mean(dim=0)
    else:
        row_labels, col_labels = labels[0], labels[1][diagonal : diagonal + x.shape[0]]
        shared = row_labels == col_labels
        row_mean = _mean_of_others(y, labels[1], row_labels, positives, shared)
        col_mean = _mean_of_others(x, row_labels, col_labels, x, shared)
    return scale * (x * (positives - row_mean)).sum(dim=1), scale * (positives * (x - col_mean)).sum(dim=1)


def positive_means(
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    labels: tuple[Tensor, Tensor],
    *,
    normalize: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the mean logit of every row's positives (M,), of every column's (N,), and how many each has.

    The positives of a row are the columns that share its label; 0 where there is none.
    """
    x, y = unit(x, normalize), unit(y, normalize)
    row_labels, col_labels = labels
    means = []
    for own, own_labels, others, other_labels in (
        (x, row_labels, y, col_labels),
        (y, col_labels, x, row_labels),
    ):
        total, count = group_sums(others, other_labels, own_labels)
        z = scale * (own * total / count.clamp_min(1)).sum(dim=1)
        z = z if bias is None else z + bias
        means.append((torch.where(count[:, 0] > 0, z, 0), count[:, 0]))
    (row, row_count), (col, col_count) = means
    return row, col, row_count, col_count


def unit(features: Tensor, normalize: bool) -> Tensor:
    """Return features in the compute dtype, normalised if the loss does so."""
    features = features.to(compute_dtype(features.dtype))
    return F.normalize(features, dim=1) if normalize else features


def _mean_of_others(
    keys: Tensor, key_labels: Tensor, labels: Tensor, positives: Tensor, shared: Tensor
) -> Tensor:
    """Return, per label, the mean of the keys with another label and of the positive, (len(labels), D)."""
    total, count = group_sums(keys, key_labels, labels)
    # The positive shares the label, as a rule, and was taken out with its group; where it does not, it is in already.
    back = shared[:, None]
    return (keys.sum(dim=0) - total + positives * back) / (len(keys) - count + back)


def group_sums(keys: Tensor, key_labels: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return, per label, the sum of the keys that have it (len(labels), D) and their number (len(labels), 1)."""
    if len(keys) == 0:
        return keys.new_zeros(len(labels), keys.shape[1]), keys.new_zeros(len(labels), 1)
    ordered = key_labels.sort().values
    group = torch.searchsorted(ordered, key_labels)  # a group is known by the place of its first member
    wanted = torch.searchsorted(ordered, labels).clamp(max=len(ordered) - 1)
    present = (ordered[wanted] == labels)[:, None]
    ones = torch.ones_like(keys[:, :1])
    total = torch.zeros_like(keys).index_add(0, group, keys)
    count = torch.zeros_like(ones).index_add(0, group, ones)
    return total[wanted] * present, count[wanted] * present
