"""Hand out batches: a fresh shuffle every epoch, prepared ahead of time, always full, startable at any position.

The order is a pure function of (seed, epoch), so a position is all there is to remember of the data. Positions are
those of the global batch: with R ranks of B pairs each, rank r takes the r-th B of B·R consecutive ones, so the
same global batch is the same pairs however many ranks share it.

A pair that cannot be read is replaced by a spare, drawn by (seed, epoch, position, attempt) from the whole source.
No rank needs to know what another one could not read, so none waits for it, and a rank's batch is always full.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastclip.data.source import DataError, Pairs, PairSource, permutation, uniforms

MAX_BAD_SHARE = 0.1  # of the different pairs that were tried

_ATTEMPTS = 64  # spares tried for one place; at a bad share of one half, all fail once in 10¹⁹ places
_ENOUGH = 1000  # reads before the share of bad pairs is judged
_SPARES = 1_000_000  # the stream of random numbers that spares come from, apart from those of augmentation
_AHEAD = 2  # batches in preparation while one is trained on
_LEAST = 32  # pairs that are worth a thread's while
_UNTRIED, _READ, _BAD = range(3)  # what is known of a pair


@dataclass(frozen=True)
class Cursor:
    """A place in the data: `position` pairs of epoch `epoch` have been handed out, over all ranks."""

    epoch: int = 0
    position: int = 0


@dataclass(frozen=True)
class Batch:
    """This rank's pairs, where the global batch was taken from, and where the next one is."""

    pairs: Pairs
    at: Cursor
    next: Cursor


def steps_per_epoch(pairs: int, batch_size: int) -> int:
    """Return the (global) batches of an epoch: the incomplete last one is dropped, unless it is all there is."""
    return max(1, pairs // batch_size)


def plan(pairs: int, batch_size: int, seed: int, start: Cursor) -> Iterator[tuple[Cursor, Cursor, Tensor]]:
    """Yield (place, next place, indices of the pairs of the global batch) from `start` on, without end."""
    epoch, position = start.epoch, start.position
    while True:
        order = permutation(pairs, seed, epoch)
        # A resumed run may come with another batch size; then less than a batch can be left of the epoch.
        while position + batch_size <= pairs or position == 0:
            at, taken = Cursor(epoch, position), order[position : position + batch_size]
            position += batch_size
            last = position + batch_size > pairs
            yield at, Cursor(epoch + 1, 0) if last else Cursor(epoch, position), taken
        epoch, position = epoch + 1, 0


def batches(
    source: PairSource,
    batch_size: int,
    *,
    seed: int,
    start: Cursor,
    count: int,
    workers: int = 1,
    rank: int = 0,
    world_size: int = 1,
    max_bad_share: float = MAX_BAD_SHARE,
) -> Iterator[Batch]:
    """Yield this rank's share of `count` global batches from `start` on, prepared by threads ahead of time.

    Args:
        source: the pairs, the same on every rank.
        batch_size: pairs per rank; the global batch has `world_size` times as many.
        seed: of order, captions, augmentation and spares.
        start: a place in the global order.
        count: batches to give.
        workers: threads; 0 prepares every batch when it is asked for.
        rank, world_size: which share of each global batch.
        max_bad_share: share of unreadable pairs, in [0, 1], above which the data are given up.

    Raises:
        DataError: too many pairs are unreadable, or there are fewer pairs than ranks.
    """
    pairs = len(source)
    if pairs < world_size:
        raise DataError(
            f"{source.name} has {pairs} pairs for {world_size} ranks: every rank needs one at least"
        )
    steps = plan(pairs, batch_size * world_size, seed, start)
    filler = _Filler(source, seed, max_bad_share)
    try:
        yield from _filled(filler, steps, count, workers, rank, world_size)
    except _TooManyError as why:  # by now the threads have ended, and with them all counting
        raise filler.error(str(why)) from None


def _filled(
    filler: _Filler,
    steps: Iterator[tuple[Cursor, Cursor, Tensor]],
    count: int,
    workers: int,
    rank: int,
    world_size: int,
) -> Iterator[Batch]:
    """Yield this rank's share of the first `count` of `steps`."""

    def parts(at: Cursor, indices: Tensor) -> list[tuple[int, int, Tensor]]:
        """Cut this rank's share of a batch into (epoch, position, indices) for the threads."""
        each = len(indices) // world_size  # less than batch_size where the source has no full batch
        mine = indices[rank * each : (rank + 1) * each]
        size = each if workers < 2 else max(_LEAST, -(-each // (4 * workers)))
        places = range(0, each, size)
        return [(at.epoch, at.position + rank * each + i, mine[i : i + size]) for i in places]

    if workers == 0:
        for _ in range(count):
            at, following, indices = next(steps)
            yield Batch(Pairs.join([filler.fill(*part) for part in parts(at, indices)]), at, following)
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="fastclip-feed")

    def prepare(at: Cursor, indices: Tensor) -> Future[Pairs]:
        made = [pool.submit(filler.fill, *part) for part in parts(at, indices)]
        # A pool takes up its work in order: whoever joins the parts waits for some that others are at, or done with.
        return made[0] if len(made) == 1 else pool.submit(_join, made)

    ahead: deque[tuple[Cursor, Cursor, Future[Pairs]]] = deque()
    try:
        for number in range(count):
            while len(ahead) <= _AHEAD and number + len(ahead) < count:
                at, following, indices = next(steps)
                ahead.append((at, following, prepare(at, indices)))
            at, following, pairs_ahead = ahead.popleft()
            yield Batch(pairs_ahead.result(), at, following)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _join(parts: list[Future[Pairs]]) -> Pairs:
    return Pairs.join([part.result() for part in parts])


class _TooManyError(Exception):
    """Say why the data are given up."""


class _Filler:
    """Fetch pairs, put spares in the places of those that cannot be read, and judge how many those are.

    A pair is counted once, however often it comes in later epochs or as a spare, as in the source's own counts.

    Args:
        source: the pairs.
        seed: of augmentation and spares.
        max_bad_share: of the different pairs that were tried, above which they are given up.
    """

    def __init__(self, source: PairSource, seed: int, max_bad_share: float) -> None:
        self.source, self.seed, self.max_bad_share = source, seed, max_bad_share
        self.reads = self.tried = self.bad = 0  #: reads, and different pairs
        self._fates = np.full(len(source), _UNTRIED, np.uint8)  # of every pair; once bad, it stays so
        self._before = Counter(source.skipped)
        self._lock = threading.Lock()

    def fill(self, epoch: int, position: int, indices: Tensor) -> Pairs:
        """Return as many pairs as `indices`, which stand at `position` and after it in the order of `epoch`."""
        wanted = indices.numpy()
        rows = np.arange(len(wanted))  # the places that `wanted` is for
        parts, filled = [], []
        for attempt in range(_ATTEMPTS):
            pairs = self.source.fetch(torch.from_numpy(wanted), seed=self.seed, epoch=epoch)
            came = _came(wanted, pairs.indices.numpy())
            self._judge(wanted, came)
            parts.append(pairs)
            filled.append(rows[came])
            if came.all():
                break
            rows = rows[~came]
            draws = uniforms(position + rows, 1, seed=self.seed, epoch=epoch, stream=_SPARES + attempt)
            wanted = (draws[:, 0] * len(self.source)).astype(np.int64)
        else:
            raise _TooManyError(f"{_ATTEMPTS} spares in a row could not be read either")
        if len(parts) == 1:
            return parts[0]
        return Pairs.join(parts).take(torch.from_numpy(np.argsort(np.concatenate(filled))))

    def error(self, what: str) -> DataError:
        """Return what there is to say when `what` has been too much."""
        skipped = self.source.skipped - self._before or self.source.skipped
        reasons = ", ".join(f"{reason} ({n:,})" for reason, n in skipped.most_common())
        example = next(reversed(self.source.skipped_files), None)
        return DataError(
            f"{self.bad:,} of the {self.tried:,} pairs of {self.source.name} that were tried cannot be read, and "
            f"{what}. Reasons: {reasons or 'not given'}"
            + (f"; for example {example}" if example else "")
            + ". Repair the data, or allow more with --max-bad-share"
        )

    def _judge(self, wanted: np.ndarray, came: np.ndarray) -> None:
        with self._lock:
            self.reads += len(wanted)
            self.tried += len(np.unique(wanted[self._fates[wanted] == _UNTRIED]))
            self._fates[wanted] = np.maximum(self._fates[wanted], _READ)
            missing = wanted[~came]
            self.bad += len(np.unique(missing[self._fates[missing] != _BAD]))
            self._fates[missing] = _BAD
            enough = self.reads >= min(_ENOUGH, len(self.source))
            too_many = self.bad > self.max_bad_share * self.tried
        if enough and too_many:
            raise _TooManyError(f"that is more than --max-bad-share {self.max_bad_share:g} of them")


def _came(wanted: np.ndarray, got: np.ndarray) -> np.ndarray:
    """Return bool (W,): which of `wanted` are among `got`, the same sequence with some left out."""
    if len(wanted) == len(got):
        return np.ones(len(wanted), bool)
    came, at = np.zeros(len(wanted), bool), 0
    for i, index in enumerate(wanted):
        if at < len(got) and index == got[at]:
            came[i], at = True, at + 1
    return came
