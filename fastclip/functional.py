"""The losses as functions: validate, run the blockwise op, reduce.

Everything here works on O(M + N) numbers in plain torch, so autograd carries reductions, weights and smoothing into the
op's two upstream gradients; a new loss of this kind needs no kernel.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastclip import validation
from fastclip.backends import compute_dtype, resolve_backend
from fastclip.objectives import Objective
from fastclip.ops import contrastive
from fastclip.validation import Labels

#: MiB that may keep similarities between forward and backward pass, by device type.
DEFAULT_WORKSPACE = {"cpu": 256.0, "cuda": 512.0}


def clip_loss(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: float | Tensor,
    *,
    logit_bias: float | Tensor | None = None,
    normalize: bool = False,
    reduction: str = "mean",
    diagonal: int = 0,
    labels: Labels | None = None,
    label_smoothing: float = 0.0,
    workspace: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """Compute CLIP's symmetric cross-entropy without the similarity matrix.

    With ``z = logit_scale * x yᵀ + logit_bias``, of pair i:
    ``(cross_entropy(z[i, :], i + diagonal) + cross_entropy(z[:, i + diagonal], i)) / 2``, averaged over pairs.
    (Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021, figure 3.)

    Args:
        image_features: (M, D), float32, bfloat16, float16 or float64, any strides.
        text_features: (N, D), N >= M. Rows without an image are extra negatives for the images.
        logit_scale: the multiplier itself (already exponentiated), a float or a one-element tensor; gets a gradient.
        logit_bias: added to every logit; gets a gradient. (The softmax does not notice it.)
        normalize: divide the features by their L2 norms first (fused; False: they are taken as given).
        reduction: "mean" over pairs, "sum", or "none" for (M,).
        diagonal: the text of image i is row i + diagonal of text_features.
        labels: (N,) integers where M = N, or a pair ((M,), (N,)): pairs that share a label are no negatives of each
            other (duplicate captions, several captions of an image).
        label_smoothing: as in `torch.nn.functional.cross_entropy`, over the entries that are not excluded by labels.
        workspace: MiB that may keep similarities between the passes, for speed; the result is the same. None: 256 on
            CPU, 512 on CUDA; 0 keeps none.
        backend: "auto", or one of `fastclip.available_backends()`.

    Returns:
        0-d, or (M,) for reduction="none"; nats; float32 (float64 for float64 features).

    Raises:
        ValueError, TypeError: see fastclip/validation.py; each names the argument, what came and the remedy.
        RuntimeError: the backend asked for cannot run here.
    """
    validation.check_reduction(reduction)
    validation.check_fraction("label_smoothing", label_smoothing)
    x, y = validation.check_features(image_features, text_features)
    m, n = x.shape[0], y.shape[0]
    validation.check_diagonal(diagonal, m, n)
    pair = validation.check_labels(labels, m, n, x.device)
    scale, bias = _scalars(logit_scale, logit_bias, x)
    row, col = contrastive(
        x,
        y,
        scale,
        bias,
        pair,
        objective=Objective.SOFTMAX,
        columns=True,
        normalize=normalize,
        diagonal=diagonal,
        **_resources(workspace, backend, x, y, scale, bias),
    )
    if label_smoothing:
        extra_row, extra_col = _smoothing(x, y, scale, pair, normalize=normalize, diagonal=diagonal)
        row = row + label_smoothing * extra_row
        return _reduce((row + col[diagonal : diagonal + m] + label_smoothing * extra_col) / 2, reduction)
    return _reduce((row + col[diagonal : diagonal + m]) / 2, reduction)


def siglip_loss(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: float | Tensor,
    *,
    logit_bias: float | Tensor | None = None,
    normalize: bool = False,
    reduction: str = "mean",
    diagonal: int = 0,
    labels: Labels | None = None,
    workspace: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """Compute SigLIP's pairwise sigmoid loss without the similarity matrix.

    With ``z = logit_scale * x yᵀ + logit_bias``, of image i: ``softplus(-z[i, i + diagonal])`` plus the sum of
    ``softplus(z[i, j])`` over all other texts j, averaged over images.
    (Zhai et al., "Sigmoid Loss for Language Image Pre-Training", 2023, equation 1.)

    Arguments, result and errors are those of `clip_loss`.
    """
    validation.check_reduction(reduction)
    x, y = validation.check_features(image_features, text_features)
    m, n = x.shape[0], y.shape[0]
    validation.check_diagonal(diagonal, m, n)
    pair = validation.check_labels(labels, m, n, x.device)
    scale, bias = _scalars(logit_scale, logit_bias, x)
    row, _ = contrastive(
        x,
        y,
        scale,
        bias,
        pair,
        objective=Objective.SIGMOID,
        columns=False,
        normalize=normalize,
        diagonal=diagonal,
        **_resources(workspace, backend, x, y, scale, bias),
    )
    return _reduce(row, reduction)


def _scalars(scale: float | Tensor, bias: float | Tensor | None, x: Tensor) -> tuple[Tensor, Tensor | None]:
    like = x.new_empty(0, dtype=compute_dtype(x.dtype))
    return (
        validation.check_scalar("logit_scale", scale, like),
        None if bias is None else validation.check_scalar("logit_bias", bias, like),
    )


def _resources(workspace: float | None, backend: str, x: Tensor, *others: Tensor | None) -> dict:
    """Return the op's workspace in bytes (none if there will be no backward pass) and the backend's name."""
    validation.check_workspace(workspace)
    if workspace is None:
        workspace = DEFAULT_WORKSPACE.get(x.device.type, 0.0)
    differentiable = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, *others))
    return {
        "workspace": int(workspace * 2**20) if differentiable else 0,
        "backend": resolve_backend(backend, x.device, x.dtype),
    }


def _smoothing(
    x: Tensor, y: Tensor, scale: Tensor, labels: tuple[Tensor, Tensor] | None, *, normalize: bool, diagonal: int
) -> tuple[Tensor, Tensor]:
    """Return what label smoothing adds to the pairs' row and column losses, per unit of smoothing, (M,) each.

    A smoothed row is ``R - z_ii + eps (z_ii - mean_j z_ij)``, and the mean of logits is the logit of a mean: no N x N.
    """
    dtype = compute_dtype(x.dtype)
    x, y = x.to(dtype), y.to(dtype)
    if normalize:
        x, y = F.normalize(x, dim=1), F.normalize(y, dim=1)
    own = slice(diagonal, diagonal + x.shape[0])
    if labels is None:
        row_mean, col_mean = y.mean(dim=0), x.mean(dim=0)
    else:
        row_labels, col_labels = labels
        row_mean = _mean_of_others(y, col_labels, row_labels, y[own], row_labels == col_labels[own])
        col_mean = _mean_of_others(x, row_labels, col_labels[own], x, row_labels == col_labels[own])
    by_row = scale * (x * (y[own] - row_mean)).sum(dim=1)
    by_col = scale * (y[own] * (x - col_mean)).sum(dim=1)
    return by_row, by_col


def _mean_of_others(keys: Tensor, key_labels: Tensor, labels: Tensor, positives: Tensor, shared: Tensor) -> Tensor:
    """Return, per label, the mean of the keys with another label and of the positive, (len(labels), D)."""
    ordered = key_labels.sort().values
    last = len(ordered) - 1
    group = torch.searchsorted(ordered, key_labels)  # a group is known by the place of its first member
    wanted = torch.searchsorted(ordered, labels).clamp(max=last)
    present = (ordered[wanted] == labels)[:, None]
    sums = torch.zeros_like(keys).index_add(0, group, keys)[wanted] * present
    counts = torch.zeros_like(keys[:, :1]).index_add(0, group, torch.ones_like(keys[:, :1]))[wanted] * present
    # The positive shares the label, as a rule, and was taken out with its group; where it does not, it is in already.
    back = shared[:, None]
    return (keys.sum(dim=0) - sums + positives * back) / (len(keys) - counts + back)


def _reduce(values: Tensor, reduction: str) -> Tensor:
    if reduction == "mean":
        return values.mean()
    return values.sum() if reduction == "sum" else values
