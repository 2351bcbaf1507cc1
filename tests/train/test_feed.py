"""Batches: a fresh shuffle every epoch, any position resumable, nothing twice and nothing lost."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice

import pytest
import torch

from fastclip.data.source import PairSource
from fastclip.train.feed import Batch, Cursor, batches, plan, steps_per_epoch


def take(source: PairSource, batch_size: int, count: int, start: Cursor, workers: int = 0) -> list[Batch]:
    return list(batches(source, batch_size, seed=3, start=start, count=count, workers=workers))


def test_an_epoch_shows_every_pair_at_most_once_and_differs_from_the_next() -> None:
    steps = list(islice(plan(10, 4, 0, Cursor()), 6))
    assert [(at.epoch, at.position) for at, _, _ in steps] == [(0, 0), (0, 4), (1, 0), (1, 4), (2, 0), (2, 4)]
    assert [following for _, following, _ in steps[:-1]] == [at for at, _, _ in steps[1:]]
    epochs = [torch.cat([steps[i][2], steps[i + 1][2]]).tolist() for i in (0, 2, 4)]
    assert all(len(set(epoch)) == 8 for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_the_incomplete_last_batch_is_dropped_unless_it_is_all_there_is() -> None:
    assert steps_per_epoch(10, 4) == 2
    assert steps_per_epoch(10, 5) == 2
    assert steps_per_epoch(10, 11) == 1
    assert [len(indices) for _, _, indices in islice(plan(10, 11, 0, Cursor()), 3)] == [10, 10, 10]


def test_any_position_continues_as_the_whole_run() -> None:
    whole = list(islice(plan(23, 5, 7, Cursor()), 12))
    for number, (at, _, _) in enumerate(whole):
        rest = list(islice(plan(23, 5, 7, at), 12 - number))
        for (a, b, c), (x, y, z) in zip(rest, whole[number:], strict=True):
            assert (a, b) == (x, y) and torch.equal(c, z)


def test_a_position_that_leaves_less_than_a_batch_goes_to_the_next_epoch() -> None:
    at, following, indices = next(plan(10, 4, 0, Cursor(2, 8)))
    assert at == Cursor(3, 0) and following == Cursor(3, 4) and len(indices) == 4


@pytest.mark.parametrize("workers", [1, 3])
def test_threads_change_nothing(blocks: Callable[..., PairSource], workers: int) -> None:
    plain = take(blocks(), 16, 9, Cursor())
    ahead = take(blocks(), 16, 9, Cursor(), workers)
    assert len(plain) == len(ahead) == 9
    for a, b in zip(plain, ahead, strict=True):
        assert (a.at, a.next, a.pairs.captions) == (b.at, b.next, b.pairs.captions)
        assert torch.equal(a.pairs.images, b.pairs.images)


def test_no_batch_is_prepared_beyond_the_last(blocks: Callable[..., PairSource]) -> None:
    source, fetched = blocks(), []
    fetch = source.fetch
    source.fetch = lambda indices, **at: fetched.append(1) or fetch(indices, **at)  # type: ignore[method-assign]
    take(source, 16, 3, Cursor(), workers=2)
    assert len(fetched) == 3


def test_an_error_in_a_thread_reaches_the_loop(blocks: Callable[..., PairSource]) -> None:
    source = blocks()

    def fail(indices: object, **at: object) -> None:
        raise OSError("disk gone")

    source.fetch = fail  # type: ignore[method-assign, assignment]
    with pytest.raises(OSError, match="disk gone"):
        take(source, 16, 3, Cursor(), workers=1)
