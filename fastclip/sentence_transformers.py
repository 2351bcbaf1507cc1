"""sentence-transformers' ranking losses on the fused kernels, under their own names.

    from fastclip.sentence_transformers import MultipleNegativesRankingLoss
    loss = MultipleNegativesRankingLoss(model)

The classes are sentence-transformers' own: constructor, embedding, mini-batches, gathering and model card
stay. Replaced is the step from embeddings to loss, which there builds a matrix of similarities for each
direction, puts them side by side and keeps them for the gradients.

With queries q, documents d (all positives first, then hard negatives) and ``z = scale * similarity``, the loss
of query i is ``log Z_i - z(q_i, d_i)``. Z_i sums the exponentials of all directions chosen ("joint"), or is the
geometric mean of each direction's sum ("per_direction"). Here it is ``softplus(rho_i - z(q_i, d_i))`` with
rho_i the log-sum-exp over all but the positive: no digits cancel when a model fits its batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastclip.backends import compute_dtype
from fastclip.functional import DEFAULT_WORKSPACE, info_nce_loss, log_sum_exp
from fastclip.objectives import softplus

try:
    from sentence_transformers import __version__, util
    from sentence_transformers.sentence_transformer import losses
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"fastclip.sentence_transformers needs sentence-transformers 6 (there is no {error.name}): "
        "pip install 'fastclip-kernels[sentence-transformers]'",
        name=error.name,
    ) from error
if int(__version__.split(".")[0]) < 6:
    raise ImportError(
        f"fastclip.sentence_transformers needs sentence-transformers 6, got {__version__}: "
        "pip install 'fastclip-kernels[sentence-transformers]'"
    )

__all__ = ["CachedMultipleNegativesRankingLoss", "MultipleNegativesRankingLoss"]

#: The similarities that are inner products, and whether of unit vectors.
NORMALIZES: dict[Callable[..., Tensor], bool] = {util.cos_sim: True, util.dot_score: False}


class MultipleNegativesRankingLoss(losses.MultipleNegativesRankingLoss):
    """sentence-transformers' MultipleNegativesRankingLoss without a matrix of similarities.

    Args:
        args, kwargs: sentence-transformers' own; similarity_fct is `util.cos_sim` or `util.dot_score`.
        workspace, backend: as for `fastclip.info_nce_loss`.

    Raises:
        ValueError: another similarity_fct; else as in sentence-transformers.
    """

    def __init__(
        self, *args: Any, workspace: float | None = None, backend: str = "auto", **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.workspace, self.backend = workspace, backend
        _normalizes(self.similarity_fct)

    def compute_loss_from_embeddings(self, embeddings: list[Tensor], labels: Tensor | None) -> Tensor:
        """Return the loss, 0-d, of queries, positives and any number of hard negatives, (B, D) each."""
        if len(embeddings) < 2:
            raise ValueError(f"Expected at least 2 embeddings, got {len(embeddings)}")
        batch, first = len(embeddings[0]), 0
        if self.gather_across_devices:  # a rank's own queries and positives meet the candidates of all ranks
            first = util.get_rank() * batch
            embeddings = [util.all_gather_with_grad(column) for column in embeddings]
        queries, *docs = embeddings
        own = slice(first, first + batch)
        joint = self.partition_mode == "joint" and len(self.directions) > 1
        penalised = self.hardness_mode is not None and self.hardness_strength > 0
        return (self._by_terms if joint or penalised else self._by_direction)(queries, docs, own)

    def _by_direction(self, queries: Tensor, docs: list[Tensor], own: slice) -> Tensor:
        """Return the loss where each direction has a softmax of its own: InfoNCE, one way or both."""
        candidates = torch.cat(docs)
        both = len(self.directions) == 2
        if both and own == slice(0, len(queries)):  # one product serves both directions
            return self._info_nce(queries, candidates, own, weights=(0.5, 0.5))
        forward = self._info_nce(queries[own], candidates, own)
        return (forward + self._info_nce(docs[0][own], queries, own)) / 2 if both else forward

    def _info_nce(self, rows: Tensor, keys: Tensor, own: slice, **options: Any) -> Tensor:
        options.update(workspace=self.workspace, backend=self.backend)
        normalize = _normalizes(self.similarity_fct)
        return info_nce_loss(rows, keys, self.scale, diagonal=own.start, normalize=normalize, **options)

    def _by_terms(self, queries: Tensor, docs: list[Tensor], own: slice) -> Tensor:
        """Return the loss under any options, from the log-sum-exps that make up rho."""
        # The terms' gradients cancel: they have to meet before they are rounded to 16 bits.
        wide = compute_dtype(queries.dtype)
        queries, docs = queries.to(wide), [column.to(wide) for column in docs]
        query, doc = queries[own], docs[0][own]
        positive = self.scale * self._similarity(query, doc)
        strength = 0.0 if self.hardness_mode is None else self.hardness_strength
        on_others = 0.0 if self.hardness_mode == "hard_negatives" else strength
        on_own = 0.0 if self.hardness_mode == "in_batch_negatives" else strength

        terms = {"query_to_doc": [self._log_sum_exp(query, docs, own, on_others)]}
        for negatives in docs[1:]:
            similarity = self._similarity(query, negatives[own])
            terms["query_to_doc"].append(self.scale * similarity + on_own * similarity.detach())
        if "query_to_query" in self.directions:
            terms["query_to_query"] = [self._log_sum_exp(query, [queries], own)]
        if "doc_to_query" in self.directions:
            terms["doc_to_query"] = [self._log_sum_exp(doc, [queries], own)]
        if "doc_to_doc" in self.directions:
            terms["doc_to_doc"] = [self._log_sum_exp(doc, docs, own)]

        if self.partition_mode == "joint":
            again = [positive] if "doc_to_query" in terms else []  # the positive is in that direction, too
            groups = [sum(terms.values(), again)]
        else:
            groups = list(terms.values())
        losses = [softplus(torch.stack(group).logsumexp(dim=0) - positive).mean() for group in groups]
        return torch.stack(losses).mean()

    def _similarity(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the similarity of each row of `a` with the same row of `b`, (B,)."""
        if _normalizes(self.similarity_fct):
            a, b = F.normalize(a, dim=1), F.normalize(b, dim=1)
        return (a * b).sum(dim=1)

    def _log_sum_exp(self, rows: Tensor, columns: list[Tensor], own: slice, penalty: float = 0.0) -> Tensor:
        """Return each row's log-sum-exp (B,) of ``scale * s + penalty * stop_gradient(s)``, s its similarities.

        Args:
            rows: (B, D), of samples `own`.
            columns: (W, D) each, of samples 0 to W - 1. Those of a row's own sample are left out.
        """
        ids = torch.arange(len(columns[0]), device=rows.device)
        kept = DEFAULT_WORKSPACE.get(rows.device.type, 0.0) if self.workspace is None else self.workspace
        value = log_sum_exp(
            rows,
            torch.cat(columns),
            self.scale + penalty,
            labels=(ids[own], ids.repeat(len(columns))),
            normalize=_normalizes(self.similarity_fct),
            workspace=kept / len(self.directions),
            backend=self.backend,
        )
        if not penalty:
            return value
        share = self.scale / (self.scale + penalty)  # the penalty moves the value, not the gradient
        return share * value + (1 - share) * value.detach()


class CachedMultipleNegativesRankingLoss(losses.CachedMultipleNegativesRankingLoss):
    """sentence-transformers' CachedMultipleNegativesRankingLoss without a matrix of similarities.

    Embeddings are cached by sentence-transformers' own machinery. The loss over them, which there goes through
    mini_batch_size rows at a time, is that of `MultipleNegativesRankingLoss` above, in one call.

    Args:
        args, kwargs: sentence-transformers' own; similarity_fct is `util.cos_sim` or `util.dot_score`.
        workspace, backend: as for `fastclip.info_nce_loss`.

    Raises:
        ValueError: another similarity_fct; else as in sentence-transformers.
    """

    def __init__(
        self, *args: Any, workspace: float | None = None, backend: str = "auto", **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        options = {name: getattr(self.loss, name) for name in self._delegated_to_wrapped_loss}
        self.loss: MultipleNegativesRankingLoss = MultipleNegativesRankingLoss(
            self.model, workspace=workspace, backend=backend, **options
        )

    def calculate_loss(
        self, reps: list[list[Tensor]], labels: Tensor | None = None, *, with_backward: bool = False
    ) -> Tensor:
        """Return the loss, 0-d, of the columns' embeddings in mini-batches; back-propagate it if asked to."""
        loss = self.loss.compute_loss_from_embeddings([torch.cat(column) for column in reps], labels)
        if with_backward:
            loss.backward()
            loss = loss.detach()
        return loss


def _normalizes(similarity: Callable[..., Tensor]) -> bool:
    if similarity not in NORMALIZES:
        name = getattr(similarity, "__name__", type(similarity).__name__)
        raise ValueError(
            f"similarity_fct must be sentence_transformers.util.cos_sim or dot_score, got {name}: others are no "
            "inner products. Use sentence-transformers' own loss for them"
        )
    return NORMALIZES[similarity]
