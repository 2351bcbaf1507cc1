"""A loss over the images and texts of several ranks: every rank computes the strip of its images, each logit once.

With this rank's rows x (m, D) and all ranks' columns y (N, D), seen in pieces (fastclip/distributed/exchange.py):

    forward    for each piece: statistics of the strip's negatives; the rows' are complete after the last piece,
               the columns' are merged over ranks (shifts by their maximum, then rescaled sums)
    backward   for each piece: coefficients, dx += G y, dy = G' x; dy goes home to the piece's owner

The positives of a rank's rows are among its own columns. In every other piece all entries are negatives, and there
``a_i e^(z - R_i)`` is written as ``a_i s(rho_i - z_ii) e^(z - rho_i)``: a row without a positive, whose upstream
gradient is the share that its negatives have in it. So a piece is an ordinary problem of the blockwise driver.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastclip import blockwise
from fastclip.backends import Backend, Packed, Problem, compute_dtype, get_backend
from fastclip.blockwise import Gradients, Statistics
from fastclip.distributed.collectives import all_gather_columns, all_reduce_
from fastclip.distributed.exchange import Exchange, Piece
from fastclip.distributed.ranks import Ranks
from fastclip.objectives import Objective, Sums


@dataclass(frozen=True)
class Spec:
    """What is the same for all pieces. ``diagonal``: the positive of this rank's row i is its own column
    i + diagonal; None: rows have no positive."""

    objective: Objective
    columns: bool
    normalize: bool
    diagonal: int | None
    workspace: int
    backend: str


class StripDriver:
    """Runs the blockwise driver on one piece of the strip after the other, in either pass."""

    def __init__(
        self,
        ranks: Ranks,
        x: Tensor,
        y: Tensor,
        scale: Tensor,
        bias: Tensor | None,
        row_labels: Tensor | None,
        all_labels: Tensor | None,
        spec: Spec,
    ) -> None:
        self.ranks, self.spec = ranks, spec
        self.x, self.y, self.scale, self.bias = x, y, scale, bias
        self.row_labels, self.all_labels = row_labels, all_labels
        self.backend: Backend = get_backend(spec.backend)
        self.dtype = compute_dtype(x.dtype)
        self.sums: dict[str, Any] = {"dtype": self.backend.sums_dtype(x.dtype), "device": x.device}
        # A backend need not know of empty matrices: none reaches it.
        self.packed_x = self.backend.pack(x, spec.normalize) if len(x) else Packed(x, None)

    def statistics(self, around: Exchange) -> tuple[Statistics, list[Tensor]]:
        """Run the forward pass; return the rows' statistics, all columns' (N,), and the products kept by piece."""
        rows, positive = Sums.empty(len(self.x), **self.sums), None
        cols: list[Sums] = [Sums.empty(n, **self.sums) for n in self.ranks.cols] if self.spec.columns else []
        products, room = [], self.spec.workspace // self.dtype.itemsize if self.backend.keeps_products else 0
        for piece in around.pieces(self.y):
            keep = min(len(self.x) * len(piece.y), room)
            room -= keep
            part = self._statistics_of(piece, keep)
            rows.merge_(part.rows.shift, part.rows.sum)
            if part.cols is not None:
                self._place(cols, piece, part.cols)
            if self._is_own(piece):
                positive = part.positive
            products.append(part.products)
        merged = _merged_over_ranks(self.ranks, cols) if self.spec.columns else None
        return Statistics(rows, merged, positive, self.x.new_empty(0)), products

    def gradients(
        self,
        around: Exchange,
        statistics: Statistics,
        products: list[Tensor],
        row_grad: Tensor,
        col_grad: Tensor | None,
        *,
        need_x: bool,
        need_y: bool,
    ) -> Gradients:
        """Run the backward pass from the gradients of this rank's row values (m,) and column values (n,)."""
        own = own_columns(self.ranks, statistics)
        row_share, col_share = self._shares(own, row_grad, col_grad)
        if col_share is not None:
            col_share = all_gather_columns(self.ranks, col_share, "all-gather of column gradients")
        total = Gradients(
            x=torch.zeros_like(self.x, dtype=self.dtype) if need_x else None,
            y=None,
            scale=torch.zeros((), dtype=torch.float64, device=self.x.device),
            bias=torch.zeros((), dtype=torch.float64, device=self.x.device),
        )
        for piece, kept in zip(around.pieces(self.y), products, strict=True):
            if self._is_own(piece):
                of_piece = Statistics(own.rows, own.cols, own.positive, kept)
                grads = row_grad, col_grad
            else:
                cols, share = None, None
                if statistics.cols is not None and col_share is not None:
                    cols = Sums(*(self.ranks.take(v, piece.owners) for v in _pair(statistics.cols)))
                    share = self.ranks.take(col_share, piece.owners)
                of_piece = Statistics(own.rows, cols, None, kept)
                grads = row_share, share
            part = self._gradients_of(piece, of_piece, *grads, need_x=need_x, need_y=need_y)
            if part.x is not None and total.x is not None:
                total.x += part.x
            if part.y is not None:
                around.add(piece, part.y)
            total.scale += part.scale
            total.bias += part.bias
            del part  # or its gradients would live on beside the next piece's
        total.y = around.collect() if need_y else None
        return total

    def outline(self) -> Problem:
        """Return what this rank's rows and own columns are to each other, without features to compute with."""
        x, y = Packed(self.x, None), Packed(self.y, None)
        return Problem(x, y, self.scale, self.bias, self.spec.objective, self.spec.diagonal, None, None)

    def problem(self, piece: Piece) -> Problem:
        """Return what this rank's rows and a piece's columns are to each other; neither may be empty."""
        labels: tuple[Tensor, Tensor] | tuple[None, None] = None, None
        if self.row_labels is not None and self.all_labels is not None:
            labels = self.backend.pack_labels(self.row_labels, self.ranks.take(self.all_labels, piece.owners))
        y = self.packed_x if piece.y is self.x else self.backend.pack(piece.y, self.spec.normalize)
        return Problem(
            self.packed_x, y, self.scale, self.bias, self.spec.objective, self._diagonal(piece), *labels
        )

    def _shares(
        self, own: Statistics, row_grad: Tensor, col_grad: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return what part of the values' gradients falls to the negatives, rows' (m,) and own columns' (n,)."""
        if self.spec.objective is not Objective.SOFTMAX or own.positive is None or self.spec.diagonal is None:
            return row_grad, col_grad
        row_share = row_grad * torch.sigmoid(own.rows.margin(own.positive))
        if own.cols is None or col_grad is None:
            return row_share, None
        with_positive = slice(self.spec.diagonal, self.spec.diagonal + len(self.x))
        col_share = torch.zeros_like(col_grad)
        margin = own.cols[with_positive].margin(own.positive)
        col_share[with_positive] = col_grad[with_positive] * torch.sigmoid(margin)
        return row_share, col_share

    def _statistics_of(self, piece: Piece, keep: int) -> Statistics:
        columns, diagonal = self.spec.columns, self._diagonal(piece)
        if len(self.x) and len(piece.y):
            return blockwise.statistics(
                self.backend, self.problem(piece), self.x.dtype, columns=columns, keep=keep
            )
        return Statistics(
            Sums.empty(len(self.x), **self.sums),
            Sums.empty(len(piece.y), **self.sums) if columns else None,
            None if diagonal is None else torch.empty(len(self.x), **self.sums),
            self.x.new_empty(0, dtype=self.dtype),
        )

    def _gradients_of(
        self,
        piece: Piece,
        statistics: Statistics,
        row_grad: Tensor,
        col_grad: Tensor | None,
        *,
        need_x: bool,
        need_y: bool,
    ) -> Gradients:
        if len(self.x) and len(piece.y):
            problem = self.problem(piece)
            return blockwise.gradients(
                self.backend,
                problem,
                statistics,
                row_grad,
                col_grad,
                self.dtype,
                need_x=need_x,
                need_y=need_y,
            )
        none = torch.zeros((), **self.sums)
        return Gradients(None, torch.zeros_like(piece.y, dtype=self.dtype) if need_y else None, none, none)

    def _diagonal(self, piece: Piece) -> int | None:
        return self.spec.diagonal if self._is_own(piece) else None

    def _is_own(self, piece: Piece) -> bool:
        return piece.owners == (self.ranks.rank,)

    def _place(self, cols: list[Sums], piece: Piece, part: Sums) -> None:
        start = 0
        for owner in piece.owners:
            cols[owner] = part[start : start + self.ranks.cols[owner]]
            start += self.ranks.cols[owner]


def _merged_over_ranks(ranks: Ranks, cols: list[Sums]) -> Sums:
    """Return the columns' statistics over all ranks' rows, (N,), from this rank's, by owner."""
    shift, sum = (torch.cat([getattr(part, name) for part in cols]) for name in ("shift", "sum"))
    top = all_reduce_(ranks, shift.clone(), "all-reduce of column shifts", largest=True)
    sum = all_reduce_(ranks, sum * torch.exp(shift - top), "all-reduce of column sums")
    return Sums(top, sum)


def own_columns(ranks: Ranks, statistics: Statistics) -> Statistics:
    """Return the same with the columns cut to this rank's own."""
    cols = statistics.cols
    if cols is not None:
        cols = Sums(*(ranks.take(v, (ranks.rank,)) for v in _pair(cols)))
    return Statistics(statistics.rows, cols, statistics.positive, statistics.products)


def _pair(sums: Sums) -> tuple[Tensor, Tensor]:
    return sums.shift, sums.sum
