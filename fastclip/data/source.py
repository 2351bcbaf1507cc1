"""Define what a source of image-text pairs is, and the stateless randomness every source draws from.

Order and augmentation are pure functions of ``(seed, epoch, index)``. Nothing is carried from batch to batch,
so a run resumed at any position sees exactly the pairs, captions and crops that the undisturbed run would
have seen.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor


class DataError(ValueError):
    """Data that cannot be trained on; the message says what is wrong with it and what to do."""


@dataclass
class Pairs:
    """Hold a batch of B pairs."""

    images: Tensor  #: uint8 (B, 3, S, S), RGB; of precomputed features float (B, F)
    captions: list[str]  #: B captions
    labels: Tensor  #: int64 (B,); pairs of one label show the same thing and are not each other's negatives
    indices: Tensor  #: int64 (B,), position of each pair in its source
    text_features: Tensor | None = None  #: float (B, G), where the captions come precomputed too

    def __len__(self) -> int:
        return len(self.captions)

    @classmethod
    def join(cls, parts: Sequence[Pairs]) -> Pairs:
        """Return the pairs of all parts, one part after the other."""
        if len(parts) == 1:
            return parts[0]
        texts = [part.text_features for part in parts if part.text_features is not None]
        return cls(
            torch.cat([part.images for part in parts]),
            [caption for part in parts for caption in part.captions],
            torch.cat([part.labels for part in parts]),
            torch.cat([part.indices for part in parts]),
            torch.cat(texts) if texts else None,
        )

    def take(self, rows: Tensor) -> Pairs:
        """Return the pairs at ``rows``, int64 (R,), in that order."""
        captions = [self.captions[row] for row in rows.tolist()]
        texts = None if self.text_features is None else self.text_features[rows]
        return Pairs(self.images[rows], captions, self.labels[rows], self.indices[rows], texts)


@dataclass
class HeldOut:
    """Hold a retrieval test: Q pictures, each to be matched with its captions in a gallery."""

    name: str
    images: Tensor  #: uint8 (Q, 3, S, S); of precomputed features float (Q, F)
    gallery: list[str]  #: G distinct captions
    target: Tensor  #: int64 (Q,), index of each picture's first caption in the gallery
    groups: Tensor | None = None  #: int64 (Q, C), a forced choice: C gallery captions, the right one included
    group_name: str = ""  #: what the forced choice asks, e.g. "tone of five"
    headline: str | None = None  #: the figure to report first, e.g. "R@1"; None: a diagnostic, not a headline
    #: draws queries for people to look at: (indices, side) -> uint8 (n, 3, side, side); None: ``images`` serve
    portraits: Callable[[Sequence[int], int], Tensor] | None = None
    #: int64 (Q,) and (G,), where pictures have several captions: equal labels belong together (as in
    #: ``fastclip.retrieval_ranks``); None: ``target`` alone is right
    image_labels: Tensor | None = None
    text_labels: Tensor | None = None
    gallery_features: Tensor | None = None  #: float (G, F), where the captions come precomputed

    def __len__(self) -> int:
        return len(self.target)


@dataclass
class PairSource(ABC):
    """Give image-text pairs by index, and the held-out tests that belong to them."""

    name: str
    image_size: int
    skipped: Counter[str] = field(default_factory=Counter, init=False)  #: unreadable pairs, by reason
    #: reason by file, row or member
    skipped_files: dict[str, str] = field(default_factory=dict, init=False, repr=False)
    lost: int = field(
        default=0, init=False
    )  #: pairs that no name is left of, an estimate; not in ``skipped``

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of training pairs."""

    @abstractmethod
    def fetch(self, indices: Sequence[int] | Tensor, *, seed: int, epoch: int, augment: bool = True) -> Pairs:
        """Return the pairs at ``indices``.

        Caption and augmentation of a pair depend on ``(seed, epoch, index)`` alone, not on its neighbours in
        the batch. An unreadable pair is left out of the result, counted in ``skipped`` once and named in
        ``skipped_files``. ``augment=False`` gives the picture as it is, with its plainest caption.
        """

    @abstractmethod
    def held_out(self) -> list[HeldOut]:
        """Return the tests over pairs that ``fetch`` never gives."""


def permutation(n: int, seed: int, epoch: int) -> Tensor:
    """Return the order of an epoch: int64 ``(n,)``, a fresh shuffle for every ``(seed, epoch)``.

    The order is the argsort of a hash, so it is the same on every machine and under every library version.
    """
    keys = _hash(seed, epoch, _PERMUTATION_STREAM, np.arange(n, dtype=np.uint64))
    return torch.from_numpy(np.argsort(keys, kind="stable"))


def first_of(n: int, count: int, seed: int, epoch: int) -> np.ndarray:
    """Return ``permutation(n, seed, epoch)[:count]``, int64, without making all of it."""
    if count >= n:
        return permutation(n, seed, epoch).numpy()[:count]
    best, keys = np.empty(0, np.int64), np.empty(0, np.uint64)
    for start in range(0, n, _CHUNK):
        index = np.arange(start, min(start + _CHUNK, n), dtype=np.uint64)
        keys = np.concatenate([keys, _hash(seed, epoch, _PERMUTATION_STREAM, index)])
        best = np.concatenate([best, index.astype(np.int64)])
        smallest = np.argsort(keys, kind="stable")[:count]
        best, keys = best[smallest], keys[smallest]
    return best


def uniforms(
    indices: Sequence[int] | Tensor | np.ndarray, draws: int, *, seed: int, epoch: int, stream: int = 0
) -> np.ndarray:
    """Return float64 ``(len(indices), draws)`` in [0, 1).

    Row i is a function of ``(seed, epoch, stream, indices[i])`` only; every ``stream`` (0, 1, …) is
    independent.
    """
    index = np.asarray(indices, dtype=np.int64).astype(np.uint64)
    counter = np.arange(1, draws + 1, dtype=np.uint64)
    bits = _mix(_hash(seed, epoch, _UNIFORM_STREAM + stream, index)[:, None] + counter * _GOLDEN)
    return (bits >> np.uint64(11)) * 2.0**-53


def as_indices(indices: Sequence[int] | Tensor, length: int) -> np.ndarray:
    """Return ``indices`` as int64 ``(B,)`` after checking that all lie in [0, length)."""
    index = np.asarray(indices, dtype=np.int64).reshape(-1)
    if ((index < 0) | (index >= length)).any():
        raise IndexError(f"indices must lie in [0, {length}), got {index.min()} to {index.max()}")
    return index


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_PERMUTATION_STREAM, _UNIFORM_STREAM = 1, 2
_CHUNK = 1 << 20  # hashes made at a time


def _mix(x: np.ndarray) -> np.ndarray:
    """Scramble uint64 values bijectively: the finaliser of SplitMix64 (Steele, Lea and Flood, 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _hash(seed: int, epoch: int, stream: int, index: np.ndarray) -> np.ndarray:
    """Return a 64-bit hash of (seed, epoch, stream, index) for every index, uint64 as ``index``."""
    state = np.zeros(1, np.uint64)
    for part in (seed, epoch, stream):
        state = _mix(state + np.array([part % 2**64], np.uint64) + _GOLDEN)
    return _mix(state + index * _GOLDEN + _GOLDEN)
