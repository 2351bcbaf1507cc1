"""Batches: a fresh shuffle every epoch, any position resumable, always full, the same on any number of ranks."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Sequence
from itertools import islice

import pytest
import torch
from torch import Tensor

from fastclip.data.source import DataError, HeldOut, Pairs, PairSource, permutation
from fastclip.train.feed import Batch, Cursor, batches, plan, steps_per_epoch


def take(
    source: PairSource, batch_size: int, count: int, start: Cursor, workers: int = 0, **options: float
) -> list[Batch]:
    return list(
        batches(source, batch_size, seed=3, start=start, count=count, workers=workers, **options)  # type: ignore[arg-type]
    )


def numbers(share_bad: float = 0.0, count: int = 101) -> PairSource:
    """Return a source of numbered pairs, some of which cannot be read."""
    bad, lock = set(permutation(count, 0, 0)[: round(share_bad * count)].tolist()), threading.Lock()

    class Numbers(PairSource):
        def __len__(self) -> int:
            return count

        def fetch(
            self, indices: Sequence[int] | Tensor, *, seed: int, epoch: int, augment: bool = True
        ) -> Pairs:
            wanted = torch.as_tensor(indices).tolist()
            kept = torch.tensor([i for i in wanted if i not in bad], dtype=torch.int64)
            with lock:
                self.skipped_files |= {str(i): "bad" for i in wanted if i in bad}
                self.skipped["bad"] = len(self.skipped_files)
            features = kept[:, None].float()
            return Pairs(features, [str(i) for i in kept.tolist()], kept, kept, features + epoch)

        def held_out(self) -> list[HeldOut]:
            return []

    return Numbers("numbers", 0)


def in_order(found: list[Batch]) -> list[list[str]]:
    return [batch.pairs.captions for batch in found]


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


@pytest.mark.parametrize("share_bad", [0.0, 0.4])
@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_share_the_batches_of_one(ranks: int, share_bad: float) -> None:
    whole = take(numbers(share_bad), 12, 10, Cursor(), max_bad_share=1)
    shares = [
        take(numbers(share_bad), 12 // ranks, 10, Cursor(), 1, rank=rank, world_size=ranks, max_bad_share=1)
        for rank in range(ranks)
    ]
    assert {(batch.at, batch.next) for batch in whole} == {(b.at, b.next) for share in shares for b in share}
    for batch, *parts in zip(whole, *shares, strict=True):
        assert batch.pairs.captions == [caption for part in parts for caption in part.pairs.captions]


def test_a_bad_pair_is_replaced_in_its_place() -> None:
    good, mended = (take(numbers(share), 10, 10, Cursor(), max_bad_share=1) for share in (0.0, 0.3))
    replaced = 0
    for before, after in zip(good, mended, strict=True):
        pairs = after.pairs
        assert len(pairs) == len(pairs.images) == 10
        assert pairs.captions == [str(i) for i in pairs.indices.tolist()]
        assert pairs.text_features is not None
        assert torch.equal(pairs.text_features, pairs.images + after.at.epoch)
        came = pairs.indices != before.pairs.indices
        replaced += int(came.sum())
        assert set(before.pairs.indices[came].tolist()) <= set(permutation(101, 0, 0)[:30].tolist())
    assert 20 < replaced <= 30


def test_spares_do_not_depend_on_where_a_run_began_or_on_threads() -> None:
    whole = in_order(take(numbers(0.5), 8, 30, Cursor(), max_bad_share=1))
    later = take(numbers(0.5), 8, 22, Cursor(0, 64), workers=3, max_bad_share=1)
    assert whole[8:] == in_order(later)
    assert whole[0] != whole[12]


def test_threads_share_a_large_batch() -> None:
    plain, shared = (take(numbers(0.1, 1000), 300, 5, Cursor(), workers=w, max_bad_share=1) for w in (0, 4))
    assert in_order(plain) == in_order(shared)


def test_a_source_smaller_than_the_global_batch_is_shared_evenly() -> None:
    shares = [take(numbers(count=11), 8, 3, Cursor(), rank=rank, world_size=2) for rank in (0, 1)]
    for one, other in zip(*shares, strict=True):
        assert len(one.pairs) == len(other.pairs) == 5
        assert not set(one.pairs.captions) & set(other.pairs.captions)
    with pytest.raises(DataError, match="numbers has 11 pairs for 12 ranks"):
        take(numbers(count=11), 1, 1, Cursor(), world_size=12)


def test_too_many_bad_pairs_are_an_error_that_says_why() -> None:
    assert len(take(numbers(0.09, 2000), 50, 40, Cursor())) == 40
    with pytest.raises(DataError, match=r"of the 9\d\d pairs of numbers that were tried.*0\.1 of them"):
        take(numbers(0.15, 2000), 50, 40, Cursor())
    with pytest.raises(DataError, match="64 spares in a row"):
        take(numbers(1.0, 5000), 50, 40, Cursor(), workers=2, max_bad_share=1)


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_a_pair_is_judged_once_so_that_the_numbers_agree(workers: int) -> None:
    """57 pairs are tried again and again: as spares, and in later epochs."""
    with pytest.raises(DataError) as error:
        take(numbers(0.35, 57), 8, 100, Cursor(), workers=workers, max_bad_share=0.2)
    said = re.match(r"(\d+) of the (\d+) pairs of numbers.*Reasons: bad \((\d+)\)", str(error.value))
    assert said is not None, error.value
    bad, tried, reasons = map(int, said.groups())
    assert bad == reasons <= 20 and tried <= 57
    assert len(take(numbers(0.35, 57), 8, 100, Cursor(), workers=workers, max_bad_share=0.45)) == 100


def test_a_disk_that_goes_away_in_a_later_epoch_is_noticed() -> None:
    source = numbers(count=2000)
    fetch = source.fetch

    def fail_late(indices: Tensor, *, seed: int, epoch: int) -> Pairs:
        pairs = fetch(indices, seed=seed, epoch=epoch)
        return pairs if epoch == 0 else pairs.take(torch.arange(0, len(pairs), 2))

    source.fetch = fail_late  # type: ignore[method-assign, assignment]
    with pytest.raises(DataError, match=r"that is more than --max-bad-share 0\.1 of them"):
        take(source, 50, 80, Cursor())
