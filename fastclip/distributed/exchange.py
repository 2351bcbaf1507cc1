"""How the texts get around: two ways of showing all texts to every rank, and of bringing their gradients home.

=======  ==============================================  ============================  ===========================
mode     texts                                           their gradients               memory
=======  ==============================================  ============================  ===========================
gather   one all-gather, kept until the backward pass    one reduce-scatter            O(N D)
ring     passed on from rank to rank, in either pass     passed on behind the texts    O(N D / R): two shards, two
                                                                                       gradients
=======  ==============================================  ============================  ===========================

Either way a rank starts with its own texts, while the first transfer is under way. In a ring every later transfer
runs beside the computation of a shard too: shard r - s is with rank r at step s and goes on to rank r + 1; its
gradient, to which every rank adds its part, follows one step behind and ends at home.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fastclip.distributed.collectives import (
    Transfer,
    reduce_scatter,
    start_all_gather_rows,
    start_shift,
)
from fastclip.distributed.ranks import Ranks

TEXTS, GRADIENTS = "of text features", "of text gradients"


@dataclass(frozen=True)
class Piece:
    """Some ranks' texts: ``y`` (rows of all owners, D), in the owners' order."""

    owners: tuple[int, ...]
    y: Tensor


class Exchange(ABC):
    """One mode, for one pass of one loss.

    Args:
        kept: in the backward pass, what the forward pass's exchange had as `kept`.
    """

    def __init__(self, ranks: Ranks, kept: Tensor | None = None) -> None:
        self.ranks, self.kept = ranks, kept

    @abstractmethod
    def pieces(self, y: Tensor) -> Iterator[Piece]:
        """Yield all texts in pieces, this rank's own (n, D) first."""

    @abstractmethod
    def add(self, piece: Piece, gradient: Tensor) -> None:
        """Take this rank's part of a piece's gradient, to keep; every piece once, in the order of `pieces`."""

    @abstractmethod
    def collect(self) -> Tensor:
        """Return the whole gradient of this rank's own texts, (n, D)."""


class Gather(Exchange):
    """All other ranks' texts in one piece, kept for the backward pass."""

    def __init__(self, ranks: Ranks, kept: Tensor | None = None) -> None:
        super().__init__(ranks, kept)
        self._gradients: list[tuple[Piece, Tensor]] = []

    def pieces(self, y: Tensor) -> Iterator[Piece]:
        own = self.ranks.rank
        if self.kept is None:
            gathering = start_all_gather_rows(self.ranks, y, f"all-gather {TEXTS}")
        yield Piece((own,), y)
        others = tuple(rank for rank in range(self.ranks.size) if rank != own)
        if self.kept is None:
            parts = gathering.wait()
            self.kept = torch.cat([parts[rank] for rank in others])
        yield Piece(others, self.kept)

    def add(self, piece: Piece, gradient: Tensor) -> None:
        self._gradients.append((piece, gradient))

    def collect(self) -> Tensor:
        ranks, like = self.ranks, self._gradients[0][1]
        everyones = like.new_zeros(ranks.size, max(ranks.cols), like.shape[1])
        while self._gradients:
            piece, gradient = self._gradients.pop()
            sizes = [ranks.cols[owner] for owner in piece.owners]
            for owner, part in zip(piece.owners, gradient.split(sizes), strict=True):
                everyones[owner, : len(part)] = part
        del like, gradient, part  # their memory is needed
        return reduce_scatter(ranks, everyones, f"reduce-scatter {GRADIENTS}")[: ranks.cols[ranks.rank]]


class Ring(Exchange):
    """The other ranks' texts one rank at a time; nothing is kept."""

    def __init__(self, ranks: Ranks, kept: Tensor | None = None) -> None:
        super().__init__(ranks, kept)
        self._own: Tensor | None = None
        self._following: Transfer | None = None

    def pieces(self, y: Tensor) -> Iterator[Piece]:
        size = self.ranks.size
        for step in range(size):
            owner = (self.ranks.rank - step) % size
            # The last to see a shard need not hand it on.
            passing = self._pass_on(y, owner, f"ring {TEXTS}", tag=0) if step < size - 1 else None
            yield Piece((owner,), y)
            if passing is not None:
                y = passing.wait()

    def add(self, piece: Piece, gradient: Tensor) -> None:
        (owner,) = piece.owners
        if owner == self.ranks.rank:
            self._own = gradient
            return
        following, self._following = self._following, None
        if following is not None:
            gradient.add_(following.wait())
            del following  # its memory is needed
        self._following = self._pass_on(gradient, owner, f"ring {GRADIENTS}", tag=1)

    def collect(self) -> Tensor:
        return self._own.add_(self._following.wait())  # type: ignore[union-attr]

    def _pass_on(self, tensor: Tensor, owner: int, what: str, tag: int) -> Transfer:
        """Hand on what belongs to `owner`; what comes in return belongs to the rank before it."""
        rows = self.ranks.cols[(owner - 1) % self.ranks.size]
        return start_shift(self.ranks, tensor, rows, what, tag)


def exchange(ranks: Ranks, kept: Tensor | None = None) -> Exchange:
    """Return a fresh exchange of the ranks' mode."""
    return Gather(ranks, kept) if ranks.mode == "gather" else Ring(ranks, kept)
