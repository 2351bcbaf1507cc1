"""The losses as functions: validate, run the blockwise op, reduce.

The op answers with one value per row and per column; what becomes of those is plain torch on O(M + N) numbers, so
autograd carries reductions, weights and smoothing back into the op's two upstream gradients. A loss of this kind needs
no kernel of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastclip import linear_terms, validation
from fastclip.backends import compute_dtype, resolve_backend
from fastclip.objectives import Objective
from fastclip.ops import contrastive
from fastclip.validation import Labels

#: MiB that may keep similarities between forward and backward pass, by device type.
DEFAULT_WORKSPACE = {"cpu": 256.0, "cuda": 512.0}

IMAGE_TEXT = ("image_features", "text_features")
QUERY_KEY = ("query_features", "key_features")


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
    multi_positive: bool = False,
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
        multi_positive: pairs that share a label are all positives instead: a row's loss is the cross-entropy against
            the uniform distribution over them (Khosla et al., "Supervised Contrastive Learning", 2020, L_out). N may
            then be anything; rows and columns without a positive count for nothing.
        label_smoothing: as in `torch.nn.functional.cross_entropy`, over the entries that labels do not exclude.
        workspace: MiB that may keep similarities between the passes, for speed; the result is the same. None: 256 on
            CPU, 512 on CUDA; 0 keeps none.
        backend: "auto", or one of `fastclip.available_backends()`.

    Returns:
        0-d, or (M,) for reduction="none"; nats; float32 (float64 for float64 features).

    Raises:
        ValueError, TypeError: see fastclip/validation.py; each names the argument, what came and the remedy.
        RuntimeError: the backend asked for cannot run here.
    """
    call = _Call.of(IMAGE_TEXT, image_features, text_features, logit_scale, logit_bias, labels, normalize)
    call.resources(workspace, backend)
    return _softmax_loss(call, (0.5, 0.5), reduction, diagonal, multi_positive, label_smoothing)


def info_nce_loss(
    query_features: Tensor,
    key_features: Tensor,
    logit_scale: float | Tensor | None = None,
    *,
    temperature: float | Tensor | None = None,
    weights: tuple[float, float] = (1.0, 0.0),
    normalize: bool = False,
    reduction: str = "mean",
    diagonal: int = 0,
    labels: Labels | None = None,
    multi_positive: bool = False,
    label_smoothing: float = 0.0,
    workspace: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """Compute InfoNCE: each query must find its key among all keys, and the other way round if weighted so.

    ``weights[0] * cross_entropy(z[i, :], i + diagonal) + weights[1] * cross_entropy(z[:, i + diagonal], i)``, averaged
    over pairs, with ``z = logit_scale * x yᵀ``. (van den Oord et al., "Representation Learning with Contrastive
    Predictive Coding", 2018, equation 4.)

    Args:
        query_features: (M, D).
        key_features: (N, D), N >= M; rows beyond the queries' own are hard negatives.
        logit_scale: the multiplier, or
        temperature: its inverse; exactly one of the two. A float or a one-element tensor; gets a gradient.
        weights: of the query → key and the key → query direction. (1, 0) costs less than both: no column sums.

    Other arguments, result and errors are those of `clip_loss`. A side that needs no gradient (a locked tower, as in
    LiT) costs no gradient product.
    """
    if (logit_scale is None) == (temperature is None):
        raise ValueError("give exactly one of logit_scale and temperature (logit_scale = 1 / temperature)")
    if temperature is not None:
        logit_scale = 1 / temperature
    call = _Call.of(QUERY_KEY, query_features, key_features, logit_scale, None, labels, normalize)
    call.resources(workspace, backend)
    return _softmax_loss(call, weights, reduction, diagonal, multi_positive, label_smoothing)


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
    multi_positive: bool = False,
    workspace: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """Compute SigLIP's pairwise sigmoid loss without the similarity matrix.

    With ``z = logit_scale * x yᵀ + logit_bias``, of image i: ``softplus(-z[i, i + diagonal])`` plus the sum of
    ``softplus(z[i, j])`` over all other texts j, averaged over images.
    (Zhai et al., "Sigmoid Loss for Language Image Pre-Training", 2023, equation 1.)

    Arguments, result and errors are those of `clip_loss`; with multi_positive every entry that shares a label is a
    positive, ``softplus(-z)``.
    """
    call = _Call.of(IMAGE_TEXT, image_features, text_features, logit_scale, logit_bias, labels, normalize)
    call.resources(workspace, backend)
    validation.check_reduction(reduction)
    if multi_positive:
        validation.check_multi_positive(call.labels, diagonal)
        row, _ = call.run(Objective.MULTI_SIGMOID, columns=False, diagonal=None)
    else:
        validation.check_diagonal(diagonal, *call.shape)
        row, _ = call.run(Objective.SIGMOID, columns=False, diagonal=diagonal)
    return _reduce(row, reduction)


@dataclass
class _Call:
    """Validated inputs of one loss, and how to run the op on them."""

    x: Tensor
    y: Tensor
    scale: Tensor
    bias: Tensor | None
    labels: tuple[Tensor, Tensor] | None
    normalize: bool
    backend: str = ""
    workspace: int = 0

    @classmethod
    def of(
        cls,
        names: tuple[str, str],
        x: Tensor,
        y: Tensor,
        scale: Any,
        bias: Any,
        labels: Labels | None,
        normalize: bool,
    ) -> _Call:
        x, y = validation.check_features(names, x, y)
        like = x.new_empty(0, dtype=compute_dtype(x.dtype))
        return cls(
            x,
            y,
            validation.check_scalar("logit_scale", scale, like),
            None if bias is None else validation.check_scalar("logit_bias", bias, like),
            validation.check_labels(labels, x.shape[0], y.shape[0], x.device),
            normalize,
        )

    @property
    def shape(self) -> tuple[int, int]:
        return self.x.shape[0], self.y.shape[0]

    def resources(self, workspace: float | None, backend: str) -> None:
        """Settle the backend, and the workspace: none if there will be no backward pass."""
        validation.check_workspace(workspace)
        if workspace is None:
            workspace = DEFAULT_WORKSPACE.get(self.x.device.type, 0.0)
        inputs = (self.x, self.y, self.scale, self.bias)
        differentiable = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs)
        self.workspace = int(workspace * 2**20) if differentiable else 0
        self.backend = resolve_backend(backend, self.x.device, self.x.dtype)

    def run(self, objective: Objective, *, columns: bool, diagonal: int | None) -> tuple[Tensor, Tensor]:
        """Return the rows' and the columns' values."""
        # A softmax without a diagonal is a log-sum-exp over all entries: labels then decide elsewhere.
        labels = None if objective is Objective.SOFTMAX and diagonal is None else self.labels
        return contrastive(
            self.x,
            self.y,
            self.scale,
            self.bias,
            labels,
            objective=objective,
            columns=columns,
            normalize=self.normalize,
            diagonal=diagonal,
            workspace=self.workspace,
            backend=self.backend,
        )


def _softmax_loss(
    call: _Call,
    weights: tuple[float, float],
    reduction: str,
    diagonal: int,
    multi_positive: bool,
    label_smoothing: float,
) -> Tensor:
    validation.check_reduction(reduction)
    validation.check_fraction("label_smoothing", label_smoothing)
    if multi_positive:
        pair = validation.check_multi_positive(call.labels, diagonal, label_smoothing)
        return _multi_positive_loss(call, pair, weights, reduction)
    validation.check_diagonal(diagonal, *call.shape)
    columns = weights[1] != 0
    row, col = call.run(Objective.SOFTMAX, columns=columns, diagonal=diagonal)
    if columns:
        col = col[diagonal : diagonal + len(row)]
    if label_smoothing:
        by_row, by_col = linear_terms.smoothing(
            call.x, call.y, call.scale, call.labels, normalize=call.normalize, diagonal=diagonal
        )
        row = row + label_smoothing * by_row
        col = col + label_smoothing * by_col if columns else col
    return _reduce(weights[0] * row + weights[1] * col if columns else weights[0] * row, reduction)


def _multi_positive_loss(
    call: _Call, labels: tuple[Tensor, Tensor], weights: tuple[float, float], reduction: str
) -> Tensor:
    """Return the mean over rows (and over columns) of ``log-sum-exp - mean logit of the positives``."""
    columns = weights[1] != 0
    row, col = call.run(Objective.SOFTMAX, columns=columns, diagonal=None)
    row_mean, col_mean, row_count, col_count = linear_terms.positive_means(
        call.x, call.y, call.scale, call.bias, labels, normalize=call.normalize
    )
    row = torch.where(row_count > 0, row - row_mean, 0)
    if not columns:
        total, count = weights[0] * row, row_count
        return total.sum() / (count > 0).sum() if reduction == "mean" else _reduce(total, reduction)
    col = torch.where(col_count > 0, col - col_mean, 0)
    if reduction == "none":
        validation.check_square("reduction='none' with multi_positive", *call.shape)
        return weights[0] * row + weights[1] * col
    if reduction == "sum":
        return weights[0] * row.sum() + weights[1] * col.sum()
    return weights[0] * row.sum() / (row_count > 0).sum() + weights[1] * col.sum() / (col_count > 0).sum()


def _reduce(values: Tensor, reduction: str) -> Tensor:
    if reduction == "mean":
        return values.mean()
    return values.sum() if reduction == "sum" else values
