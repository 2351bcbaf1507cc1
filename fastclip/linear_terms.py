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

# With m_ij = 1 where labels agree: m @ keys, whose gradient is mᵀ @ grad, the same with sides exchanged. Left to
# autograd, both passes would add in whatever order threads come, and bits would differ from run to run.
torch.library.define("fastclip::group_sums", "(Tensor keys, Tensor key_labels, Tensor labels) -> Tensor")


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


def spreads(x: Tensor, y: Tensor, scale: Tensor, labels: Tensor, *, normalize: bool) -> tuple[Tensor, Tensor]:
    """Return how far every pair's logit lies above the mean of its row's positives, and of its column's, (N,) each.

    Row i and column i have label i. Vectors are subtracted, not logits: exactly 0 for a pair without another positive.
    """
    x, y = unit(x, normalize), unit(y, normalize)
    result = []
    for own, others, partners in ((x, y, y), (y, x, x)):
        total, count = group_sums(others, labels, labels)
        result.append(scale * (own * (partners - total / count)).sum(dim=1))
    return result[0], result[1]


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
    ones = torch.ones_like(keys[:, :1])
    return tuple(torch.ops.fastclip.group_sums(each, key_labels, labels) for each in (keys, ones))


@torch.library.impl("fastclip::group_sums", "CompositeExplicitAutograd")
def _group_sums_op(keys: Tensor, key_labels: Tensor, labels: Tensor) -> Tensor:
    ordered = key_labels.sort().values
    group = torch.searchsorted(ordered, key_labels)  # a group is known by the place of its first member
    wanted = torch.searchsorted(ordered, labels).clamp(max=len(ordered) - 1)
    total = torch.zeros_like(keys, memory_format=torch.contiguous_format)
    if keys.is_cuda:
        total.index_put_((group,), keys, accumulate=True)  # sorts; index_add_ would add atomically
    else:
        total.index_add_(0, group, keys)  # one row after the other
    return total[wanted] * (ordered[wanted] == labels)[:, None]


@torch.library.register_fake("fastclip::group_sums")
def _group_sums_fake(keys: Tensor, key_labels: Tensor, labels: Tensor) -> Tensor:
    return keys.new_empty(labels.shape[0], keys.shape[1])


def _keep_labels(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    ctx.save_for_backward(*inputs[1:])


def _differentiate(ctx, grad):  # type: ignore[no-untyped-def]
    key_labels, labels = ctx.saved_tensors
    return torch.ops.fastclip.group_sums(grad, labels, key_labels), None, None


torch.library.register_autograd("fastclip::group_sums", _differentiate, setup_context=_keep_labels)
