"""What a loss over ranks costs each of them, as formulas: FLOPs, bytes sent and memory, for both modes.

R ranks hold n = N / R pairs each, of D features of b bytes. Tests compare every formula with counters: FLOPs with
torch's, bytes with fastclip's own and with those of the TCP connections, memory with the live tensors.
`docs/scaling.md` explains them.
"""

from __future__ import annotations

from dataclasses import dataclass

MODES = ("gather", "ring")

#: Bytes of the message by which ranks agree on a loss, and of a gradient's and a statistic's number.
MESSAGE, GRADIENT, STATISTIC = 1024, 4, 8


@dataclass(frozen=True)
class Setup:
    """A batch on ranks.

    Attributes:
        pairs: N, over all ranks.
        ranks: R, which divides N.
        width: D.
        itemsize: b, bytes of a feature as it travels.
        packed: bytes per feature of the copy that a backend makes to compute with; 0 where it makes none.
        normalize: whether the loss normalises the features.
        columns: whether columns have losses too (the softmax both ways; the sigmoid has none).
    """

    pairs: int
    ranks: int
    width: int
    itemsize: int = 2
    packed: int = 2
    normalize: bool = True
    columns: bool = True

    @property
    def shard(self) -> int:
        """Pairs of one rank, n."""
        return self.pairs // self.ranks

    @property
    def forward_flops(self) -> int:
        """FLOPs of a rank's strip of logits: each is computed once over all ranks."""
        return 2 * self.shard * self.pairs * self.width

    @property
    def backward_flops(self) -> int:
        """FLOPs of the strip once more, and of its part of both gradients."""
        return 3 * self.forward_flops

    @property
    def open_clip_flops(self) -> int:
        """FLOPs of a rank under open_clip's local_loss: two strips, and two gradients of each."""
        return 12 * self.shard * self.pairs * self.width

    def text_bytes(self, mode: str) -> int:
        """Bytes of text features a rank sends in a step: once to every rank, or on in either pass."""
        once = (self.ranks - 1) * self.shard * self.width * self.itemsize
        return once if mode == "gather" else 2 * once

    def gradient_bytes(self) -> int:
        """Bytes of text gradients a rank sends in a step, float32, in either mode."""
        return (self.ranks - 1) * self.shard * self.width * GRADIENT

    def column_bytes(self) -> int:
        """Bytes a rank sends to merge the columns' shifts and sums, and to spread their gradients."""
        if not self.columns:
            return 0
        merging = 2 * 2 * (self.ranks - 1) * STATISTIC * self.pairs // self.ranks
        return merging + (self.ranks - 1) * self.shard * STATISTIC

    def bytes(self, mode: str) -> int:
        """Bytes a rank sends in a step, forward and backward, but for messages of fixed size."""
        return self.text_bytes(mode) + self.gradient_bytes() + self.column_bytes()

    def open_clip_bytes(self) -> int:
        """Bytes under open_clip's local_loss and gather_with_grad: both sides there, both gradients back."""
        return 2 * 2 * (self.ranks - 1) * self.shard * self.width * self.itemsize

    def memory(self, mode: str) -> int:
        """Bytes a rank needs at its peak, in the backward pass, beyond features: without the block and the workspace.

        A ring has two shards of texts and five gradients of one: its own, the one it is making, two on their way and
        that of the images, twice while a piece is added to it. A gather has all texts, packed once more, and all
        their gradients.
        """
        shard, others = self.shard * self.width, (self.pairs - self.shard) * self.width
        projection = GRADIENT if self.normalize else 0
        images = shard * (self.packed + 2 * GRADIENT)
        vectors = (8 if mode == "ring" else 12) * STATISTIC * self.pairs if self.columns else 0
        if mode == "ring":
            texts = shard * (2 * self.itemsize + self.packed)
            return texts + images + shard * (4 * GRADIENT + projection) + vectors
        computing = others * (self.packed + GRADIENT + projection) + shard * GRADIENT
        sending = (self.pairs + shard // self.width) * self.width * GRADIENT
        return others * self.itemsize + images + max(computing, sending) + vectors
