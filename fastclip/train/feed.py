"""Hand out batches: a fresh shuffle every epoch, prepared ahead of time, startable at any position.

The order is a pure function of (seed, epoch), so a position is all there is to remember of the data.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from torch import Tensor

from fastclip.data.source import Pairs, PairSource, permutation


@dataclass(frozen=True)
class Cursor:
    """A place in the data: `position` pairs of epoch `epoch` have been handed out."""

    epoch: int = 0
    position: int = 0


@dataclass(frozen=True)
class Batch:
    """Pairs, where they were taken from, and where the next ones are."""

    pairs: Pairs
    at: Cursor
    next: Cursor


def steps_per_epoch(pairs: int, batch_size: int) -> int:
    """Return the batches of an epoch: the incomplete last one is dropped, unless it is all there is."""
    return max(1, pairs // batch_size)


def plan(pairs: int, batch_size: int, seed: int, start: Cursor) -> Iterator[tuple[Cursor, Cursor, Tensor]]:
    """Yield (place, next place, indices of the pairs) from `start` on, without end."""
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
    source: PairSource, batch_size: int, *, seed: int, start: Cursor, count: int, workers: int = 1
) -> Iterator[Batch]:
    """Yield `count` batches of `source` from `start` on, prepared ahead of time by `workers` threads."""
    steps = plan(len(source), batch_size, seed, start)

    def make(at: Cursor, following: Cursor, indices: Tensor) -> Batch:
        return Batch(source.fetch(indices, seed=seed, epoch=at.epoch), at, following)

    if workers == 0:
        for _ in range(count):
            yield make(*next(steps))
        return
    ahead: deque[Future[Batch]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="fastclip-feed")
    try:
        for number in range(count):
            while len(ahead) <= workers and number + len(ahead) < count:
                ahead.append(pool.submit(make, *next(steps)))
            yield ahead.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
