"""Blockwise retrieval: the nearest neighbours of many queries, and exact ranks, without the similarity matrix.

Every tile is used while it is there and then forgotten: memory is O(M + N) plus one tile, so 100,000 x 100,000 needs no
more than 1,000 x 1,000 beside its results.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fastclip import validation
from fastclip.backends import Block, compute_dtype, get_backend, kernels_on, resolve_backend
from fastclip.blockwise import blocks
from fastclip.validation import Labels


@dataclass(frozen=True)
class RetrievalRanks:
    """Where the best right answer stands, 1 = first: of every image among the texts (M,), of every text (N,).

    0 where there is no right answer; such rows count for nothing in the metrics.
    """

    image_to_text: Tensor
    text_to_image: Tensor

    def metrics(self, ks: tuple[int, ...] = (1, 5, 10)) -> dict[str, float]:
        """Return ``image_to_text_R@1``, ``…_mean_rank``, ``…_median_rank`` and so on: recalls as fractions."""
        result: dict[str, float] = {}
        for name, ranks in (("image_to_text", self.image_to_text), ("text_to_image", self.text_to_image)):
            answered = ranks[ranks > 0].double()
            result |= {f"{name}_R@{k}": (answered <= k).double().mean().item() for k in ks}
            result[f"{name}_mean_rank"] = answered.mean().item()
            result[f"{name}_median_rank"] = answered.quantile(0.5).item()
        return result


@torch.no_grad()
def similarity_topk(
    query_features: Tensor, key_features: Tensor, k: int, *, normalize: bool = False, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """Return the k most similar keys of every query: ``topk(query_features @ key_features.T, k)``.

    Args:
        query_features: (M, D).
        key_features: (N, D).
        k: at most N.
        normalize: compare by cosine.
        backend: "auto", or one of `fastclip.available_backends()`.

    Returns:
        similarities (M, k), in descending order, and the keys' indices (M, k).

    Raises:
        ValueError: k outside 1…N; otherwise as `fastclip.clip_loss`.
    """
    x, y = validation.check_features(("query_features", "key_features"), query_features, key_features)
    m, n = x.shape[0], y.shape[0]
    validation.check_count("k", k, n, "the number of keys")
    with kernels_on(x):
        scan = _Scan(x, y, normalize, backend)
        best = torch.full((m, k), -torch.inf, dtype=compute_dtype(x.dtype), device=x.device)
        index = torch.zeros((m, k), dtype=torch.int64, device=x.device)
        for block, similarities in scan.tiles():
            rows, cols = block
            value, at = similarities.topk(min(k, similarities.shape[1]), dim=1)
            pool, pool_index = (
                torch.cat([best[rows], value], dim=1),
                torch.cat([index[rows], at + cols.start], dim=1),
            )
            best[rows], chosen = pool.topk(k, dim=1)
            index[rows] = pool_index.gather(1, chosen)
    return best, index


@torch.no_grad()
def retrieval_ranks(
    image_features: Tensor,
    text_features: Tensor,
    labels: Labels | None = None,
    *,
    normalize: bool = False,
    backend: str = "auto",
) -> RetrievalRanks:
    """Return the exact rank of the best right answer, in both directions.

    A rank is 1 + the number of wrong answers that are at least as similar. Ties count against the model (one whose
    features are all equal retrieves nothing), and so does NaN.

    Args:
        image_features: (M, D).
        text_features: (N, D).
        labels: ((M,), (N,)) integers: the right answers are those with the same label (several captions an image), or
            one (N,) tensor where M = N. None: text i belongs to image i.
        normalize: compare by cosine.
        backend: "auto", or one of `fastclip.available_backends()`.

    Raises:
        ValueError, TypeError: as `fastclip.clip_loss`.
    """
    x, y = validation.check_features(("image_features", "text_features"), image_features, text_features)
    m, n = x.shape[0], y.shape[0]
    if labels is None:
        validation.check_square("retrieval_ranks without labels", m, n)
        labels = torch.arange(n, device=x.device)
    pair = validation.check_labels(labels, m, n, x.device)
    # In label order, right answers lie near the diagonal: only few tiles hold any, and the others need no mask.
    (row_labels, row_order), (col_labels, col_order) = (side.sort(stable=True) for side in pair or ())
    with kernels_on(x):
        scan = _Scan(x[row_order], y[col_order], normalize, backend)
        row_best, col_best = _best_right_answers(scan, row_labels, col_labels)
        row_count, col_count = torch.zeros_like(row_labels), torch.zeros_like(col_labels)
        for (rows, cols), similarities in scan.tiles():
            wrong = _wrong(row_labels[rows], col_labels[cols])
            if wrong is not None:  # right answers are no competitors
                similarities.masked_fill_(~wrong, -torch.inf)
            scan.backend.count_ahead(
                similarities, row_best[rows], col_best[cols], row_count[rows], col_count[cols]
            )
    return RetrievalRanks(
        image_to_text=_ranks(row_count, row_labels, col_labels, row_order),
        text_to_image=_ranks(col_count, col_labels, row_labels, col_order),
    )


class _Scan:
    """A walk over the tiles of one similarity matrix, all in the same memory."""

    def __init__(self, x: Tensor, y: Tensor, normalize: bool, backend: str) -> None:
        self.backend = get_backend(resolve_backend(backend, x.device, x.dtype))
        self._x, self._y = self.backend.pack(x, normalize), self.backend.pack(y, normalize)
        height, width = self.backend.block_shape(x.shape[0], y.shape[0])
        size = min(height, x.shape[0]) * min(width, y.shape[0])
        self._memory = x.new_empty(size, dtype=compute_dtype(x.dtype))

    def blocks(self) -> Iterator[Block]:
        return blocks(self.backend, len(self._x), len(self._y))

    def tile(self, block: Block) -> Tensor:
        """Return the similarities of a block, valid until the next call."""
        rows, cols = block.shape
        return self.backend.similarities(
            self._x, self._y, block, self._memory[: rows * cols].view(rows, cols)
        )

    def tiles(self) -> Iterator[tuple[Block, Tensor]]:
        for block in self.blocks():
            yield block, self.tile(block)


def _best_right_answers(scan: _Scan, row_labels: Tensor, col_labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return every row's and every column's greatest similarity to a right answer; -inf where there is none."""
    row_best = col_best = None
    for block in scan.blocks():
        rows, cols = block
        wrong = _wrong(row_labels[rows], col_labels[cols])
        if wrong is None:
            continue
        right = scan.tile(block).masked_fill_(wrong, -torch.inf)
        if row_best is None or col_best is None:
            row_best = right.new_full((len(row_labels),), -torch.inf)
            col_best = right.new_full((len(col_labels),), -torch.inf)
        row_best[rows] = torch.maximum(row_best[rows], right.amax(dim=1))
        col_best[cols] = torch.maximum(col_best[cols], right.amax(dim=0))
    if row_best is None or col_best is None:
        raise ValueError(
            "labels of image_features and text_features have none in common; no right answer to rank"
        )
    # A NaN stands behind every wrong answer, but ahead of the right ones, which are -inf when ranks are counted.
    last = torch.finfo(row_best.dtype).min
    return row_best.nan_to_num(last, torch.inf, -torch.inf), col_best.nan_to_num(last, torch.inf, -torch.inf)


def _wrong(row_labels: Tensor, col_labels: Tensor) -> Tensor | None:
    """Return the mask of a tile's wrong answers, or None if all are wrong. Labels are sorted."""
    if row_labels[-1] < col_labels[0] or col_labels[-1] < row_labels[0]:
        return None
    return row_labels[:, None] != col_labels


def _ranks(ahead: Tensor, labels: Tensor, other_labels: Tensor, order: Tensor) -> Tensor:
    """Return ranks in the caller's order from the counts of wrong answers ahead."""
    answered = torch.isin(labels, other_labels)
    ranks = torch.empty_like(ahead)
    ranks[order] = torch.where(answered, ahead + 1, 0)
    return ranks
