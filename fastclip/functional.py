"""The losses as functions: validate, run the blockwise op, reduce.

The op answers with one value per row and per column; what becomes of those is plain torch on O(M + N) numbers, so
autograd carries reductions and weights back into the op's two upstream gradients. Smoothing and means over many
positives are terms of their own, linear in the logits (fastclip/linear_terms.py). None of this needs another kernel.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fastclip import distributed, linear_terms, validation
from fastclip.backends import compute_dtype, get_backend, resolve_backend
from fastclip.objectives import Objective
from fastclip.ops import contrastive
from fastclip.validation import Labels

#: MiB that may keep similarities between forward and backward pass, by device type.
DEFAULT_WORKSPACE = {"cpu": 176.0, "cuda": 512.0}

#: What `group` may be: a torch.distributed ProcessGroup or DeviceMesh.
Group = Any

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
    group: Group | None = None,
    mode: str = "gather",
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
            the uniform distribution over them (Khosla et al., "Supervised Contrastive Learning", 2020, L_out). With a
            pair of labels N may be anything; rows and columns without a positive count for nothing.
        label_smoothing: as in `torch.nn.functional.cross_entropy`, over the entries that labels do not exclude.
        workspace: MiB that may keep similarities between the passes, for speed; the result is the same. None: 176 on
            CPU, 512 on CUDA; 0 keeps none, infinity all. (The triton backend makes them again, and keeps none.)
        backend: "auto", or one of `fastclip.available_backends()`.
        group: a ProcessGroup, or a DeviceMesh of one dimension, whose ranks each hold a part of the batch: every image
            is contrasted with all ranks' texts. Arguments describe this rank's part, `diagonal` its own pairs; parts
            may differ in size and be empty. See fastclip/distributed/ for values and gradients.
        mode: how texts get around: "gather" (less traffic) or "ring" (less memory).

    Returns:
        0-d, or (M,) for reduction="none"; nats; float32 (float64 for float64 features). With a group: the mean or sum
        over all ranks' pairs, the same on every rank.

    Raises:
        ValueError, TypeError: see fastclip/validation.py; each names the argument, what came and the remedy.
        RuntimeError: the backend asked for cannot run here.
        ValueError, on every rank: the ranks of a group disagree on what they compute.
        CollectiveError: a rank of the group died or stayed away.
    """
    with distributed.together(group, mode) as ranks:
        call = _Call.of(
            IMAGE_TEXT, image_features, text_features, logit_scale, logit_bias, labels, normalize, ranks
        )
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
    group: Group | None = None,
    mode: str = "gather",
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
    with distributed.together(group, mode) as ranks:
        if (logit_scale is None) == (temperature is None):
            raise ValueError(
                "give exactly one of logit_scale and temperature (logit_scale = 1 / temperature)"
            )
        if temperature is not None:
            logit_scale = validation.inverse(temperature)
        call = _Call.of(QUERY_KEY, query_features, key_features, logit_scale, None, labels, normalize, ranks)
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
    group: Group | None = None,
    mode: str = "gather",
) -> Tensor:
    """Compute SigLIP's pairwise sigmoid loss without the similarity matrix.

    With ``z = logit_scale * x yᵀ + logit_bias``, of image i: ``softplus(-z[i, i + diagonal])`` plus the sum of
    ``softplus(z[i, j])`` over all other texts j, averaged over images.
    (Zhai et al., "Sigmoid Loss for Language Image Pre-Training", 2023, equation 1.)

    Arguments, result and errors are those of `clip_loss`; with multi_positive every entry that shares a label is a
    positive, ``softplus(-z)``.
    """
    with distributed.together(group, mode) as ranks:
        call = _Call.of(
            IMAGE_TEXT, image_features, text_features, logit_scale, logit_bias, labels, normalize, ranks
        )
        call.resources(workspace, backend)
        return _sigmoid_loss(call, reduction, diagonal, multi_positive)


def log_sum_exp(
    query_features: Tensor,
    key_features: Tensor,
    logit_scale: float | Tensor,
    *,
    labels: Labels | None = None,
    normalize: bool = False,
    workspace: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """Compute each query's log-sum-exp over the keys: a softmax's denominator, for losses put together by hand.

    ``log sum_j e^(logit_scale * <x_i, y_j>)``, over the keys j that do not share query i's label.

    Args:
        query_features: (M, D).
        key_features: (N, D), any N.
        labels: a pair ((M,), (N,)), or (N,) where M = N; None: all keys count.

    Other arguments and errors are those of `clip_loss`.

    Returns:
        (M,), nats; -inf, with gradient 0, where no key is left.
    """
    call = _Call.of(QUERY_KEY, query_features, key_features, logit_scale, None, labels, normalize, None)
    call.resources(workspace, backend)
    return call.run(Objective.SOFTMAX, columns=False, diagonal=None)[0]


@dataclass
class _Call:
    """Validated inputs of one loss, and how to run the op on them; names are what the caller knows the features by."""

    names: tuple[str, str]
    x: Tensor
    y: Tensor
    scale: Tensor
    bias: Tensor | None
    labels: tuple[Tensor, Tensor] | None
    normalize: bool
    ranks: distributed.Ranks | None
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
        ranks: distributed.Ranks | None,
    ) -> _Call:
        x, y = validation.check_features(names, x, y, shards=ranks is not None)
        like = x.new_empty(0, dtype=compute_dtype(x.dtype))
        return cls(
            names,
            x,
            y,
            validation.check_scalar("logit_scale", scale, like),
            None if bias is None else validation.check_scalar("logit_bias", bias, like),
            validation.check_labels(labels, x.shape[0], y.shape[0], x.device),
            normalize,
            ranks,
        )

    @property
    def shape(self) -> tuple[int, int]:
        return self.x.shape[0], self.y.shape[0]

    def resources(self, workspace: float | None, backend: str) -> None:
        """Settle the backend, and the workspace: none if there will be no backward pass."""
        if workspace is None:
            workspace = DEFAULT_WORKSPACE.get(self.x.device.type, 0.0)
        size = validation.check_workspace(workspace)
        self.workspace = size if any(self.needs_grad) else 0
        self.backend = resolve_backend(backend, self.x.device, self.x.dtype)

    @property
    def needs_grad(self) -> list[bool]:
        """Say of features, scale and bias whether a gradient will be asked for."""
        inputs = (self.x, self.y, self.scale, self.bias)
        return [torch.is_grad_enabled() and t is not None and t.requires_grad for t in inputs]

    def agree(self, objective: Objective, **options: Any) -> None:
        """Make sure that all ranks of a group compute the same loss, before the first transfer."""
        if self.ranks is None:
            return
        terms = {
            "the objective": objective.value,
            "the width D of the features": self.x.shape[1],
            "the dtype of the features": str(self.x.dtype),
            "the dtype of the sums": str(get_backend(self.backend).sums_dtype(self.x.dtype)),
            "labels given": self.labels is not None,
            "logit_bias given": self.bias is not None,
            "a gradient needed by (first features, second features, scale, bias)": self.needs_grad,
            "normalize": self.normalize,
            "mode": self.ranks.mode,
        }
        self.ranks.agree(*self.shape, terms | options)
        self.scale, self.bias = distributed.shared(self.ranks, self.scale, self.bias)

    def run(
        self, objective: Objective, *, columns: bool, diagonal: int | None, excluding: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Return the rows' and the columns' values; labels are left out unless they say what is no negative."""
        labels = self.labels if excluding else None
        inputs = (self.x, self.y, self.scale, self.bias, labels)
        if self.ranks is not None:
            spec = (objective, columns, self.normalize, diagonal, self.workspace, self.backend)
            return distributed.contrastive(self.ranks, *inputs, distributed.Spec(*spec))
        return contrastive(
            *inputs,
            objective=objective,
            columns=columns,
            normalize=self.normalize,
            diagonal=diagonal,
            workspace=self.workspace,
            backend=self.backend,
        )

    def reduce(self, values: Tensor, reduction: str) -> Tensor:
        """Reduce the values of the rows (M,), over all ranks."""
        if self.ranks is not None:
            return distributed.reduce(self.ranks, values, reduction)
        if reduction == "mean":
            return values.mean()
        return values.sum() if reduction == "sum" else values

    def smoothing(self, diagonal: int) -> tuple[Tensor, Tensor]:
        """Return what label smoothing adds to the pairs' row and column losses per unit of it, (M,) each."""
        inputs = (self.x, self.y, self.scale, self.labels)
        options: dict[str, Any] = {"normalize": self.normalize, "diagonal": diagonal}
        if self.ranks is not None:
            return distributed.smoothing(self.ranks, *inputs, **options)
        return linear_terms.smoothing(*inputs, **options)

    def positive_means(self, labels: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the mean logit of the positives of rows (M,) and columns (N,), and the numbers of them."""
        inputs = (self.x, self.y, self.scale, self.bias, labels)
        if self.ranks is not None:
            return distributed.positive_means(self.ranks, *inputs, normalize=self.normalize)
        return linear_terms.positive_means(*inputs, normalize=self.normalize)

    def spreads(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return how far pairs' logits lie above the means of their rows' and their columns' positives, (M,) each."""
        inputs = (self.x, self.y, self.scale, labels)
        if self.ranks is not None:
            return distributed.spreads(self.ranks, *inputs, normalize=self.normalize)
        return linear_terms.spreads(*inputs, normalize=self.normalize)

    def total(self, value: Tensor) -> Tensor:
        """Return the sum of a number over ranks."""
        return value if self.ranks is None else distributed.total(self.ranks, value)


def _sigmoid_loss(call: _Call, reduction: str, diagonal: int, multi_positive: bool) -> Tensor:
    validation.check_reduction(reduction)
    if multi_positive:
        validation.check_multi_positive(call.labels, diagonal)
    else:
        validation.check_diagonal(call.names, diagonal, *call.shape)
    objective = Objective.MULTI_SIGMOID if multi_positive else Objective.SIGMOID
    call.agree(objective, reduction=reduction)
    row, _ = call.run(objective, columns=False, diagonal=None if multi_positive else diagonal)
    return call.reduce(row, reduction)


def _softmax_loss(
    call: _Call,
    weights: tuple[float, float],
    reduction: str,
    diagonal: int,
    multi_positive: bool,
    label_smoothing: float,
) -> Tensor:
    validation.check_reduction(reduction)
    validation.check_weights(weights)
    validation.check_fraction("label_smoothing", label_smoothing)
    if multi_positive:
        pair = validation.check_multi_positive(call.labels, diagonal, label_smoothing)
        return _multi_positive_loss(call, pair, weights, reduction)
    validation.check_diagonal(call.names, diagonal, *call.shape)
    columns = weights[1] != 0
    call.agree(Objective.SOFTMAX, reduction=reduction, weights=weights, label_smoothing=label_smoothing)
    row, col = call.run(Objective.SOFTMAX, columns=columns, diagonal=diagonal)
    if columns:
        col = col[diagonal : diagonal + len(row)]
    if label_smoothing:
        by_row, by_col = call.smoothing(diagonal)
        row = row + label_smoothing * by_row
        col = col + label_smoothing * by_col if columns else col
    return call.reduce(_weighted(weights, row, col), reduction)


def _weighted(weights: tuple[float, float], row: Tensor, col: Tensor) -> Tensor:
    """Return the pairs' losses in both directions together; columns of weight 0 have none."""
    return weights[0] * row + weights[1] * col if weights[1] != 0 else weights[0] * row


def _multi_positive_loss(
    call: _Call, labels: tuple[Tensor, Tensor], weights: tuple[float, float], reduction: str
) -> Tensor:
    """Return the mean over rows (and over columns) of ``log-sum-exp - mean logit of the positives``."""
    columns, paired = weights[1] != 0, labels[0] is labels[1]
    if columns and reduction == "none":
        validation.check_square("reduction='none' with multi_positive", *call.shape)
    call.agree(
        Objective.SOFTMAX,
        reduction=reduction,
        weights=weights,
        multi_positive=True,
        **{"one tensor of labels for both sides": paired},
    )
    # The gradients of the two terms cancel: they have to meet before they are rounded to 16-bit features.
    wide = compute_dtype(call.x.dtype)
    call = replace(call, x=call.x.to(wide), y=call.y.to(wide))
    row, col = call.run(Objective.SOFTMAX, columns=columns, diagonal=0 if paired else None, excluding=False)
    if paired:
        # Every pair is among its own positives: its loss as if it were the only one, and what others change. A
        # batch without duplicates keeps all digits then.
        by_row, by_col = call.spreads(labels[0])
        row = row + by_row
        col = col + by_col if columns else col
        return call.reduce(_weighted(weights, row, col), reduction)
    row_mean, col_mean, row_count, col_count = call.positive_means(labels)
    row = weights[0] * torch.where(row_count > 0, row - row_mean, 0)
    col = weights[1] * torch.where(col_count > 0, col - col_mean, 0) if columns else col
    if reduction == "none":
        return row + col if columns else row
    loss = call.total(row.sum())
    loss = loss / call.total((row_count > 0).sum()) if reduction == "mean" else loss
    if columns:
        by_column = call.total(col.sum())
        loss = loss + (by_column / call.total((col_count > 0).sum()) if reduction == "mean" else by_column)
    return loss
