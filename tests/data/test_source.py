from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastclip.data.source import Pairs, as_indices, first_of, permutation, uniforms


def test_the_order_of_an_epoch_never_changes() -> None:
    # Golden: a checkpoint's position means nothing if a later version shuffles otherwise.
    assert permutation(12, seed=0, epoch=0).tolist() == [10, 3, 8, 6, 0, 11, 7, 4, 9, 2, 5, 1]
    assert permutation(12, seed=0, epoch=1).tolist() == [6, 11, 0, 8, 2, 1, 9, 5, 10, 7, 3, 4]


@given(n=st.integers(0, 300), seed=st.integers(-(2**63), 2**64), epoch=st.integers(-5, 1000))
def test_every_pair_comes_once_an_epoch(n: int, seed: int, epoch: int) -> None:
    order = permutation(n, seed, epoch)
    assert order.dtype == torch.int64
    assert sorted(order.tolist()) == list(range(n))


def test_every_epoch_and_every_seed_is_a_fresh_shuffle() -> None:
    orders = [permutation(1000, seed, epoch) for seed in range(5) for epoch in range(5)]
    for i, first in enumerate(orders):
        for second in orders[:i]:
            # Two independent shuffles agree at one place on average.
            assert (first == second).sum() < 10


def test_shuffles_are_uniform() -> None:
    where = torch.stack([permutation(10, seed, epoch) for seed in range(40) for epoch in range(100)])
    counts = torch.stack([(where == value).sum(0) for value in range(10)])
    # 4,000 shuffles: 400 a cell, standard deviation 19.
    assert (counts - 400).abs().max() < 5 * 19


@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=20, unique=True), st.integers(0, 99))
def test_draws_do_not_depend_on_the_rest_of_the_batch(indices: list[int], epoch: int) -> None:
    together = uniforms(indices, 4, seed=7, epoch=epoch)
    assert together.shape == (len(indices), 4)
    for row, index in enumerate(indices):
        np.testing.assert_array_equal(uniforms([index], 4, seed=7, epoch=epoch)[0], together[row])


def test_draws_are_uniform_and_independent() -> None:
    draws = uniforms(np.arange(20000), 6, seed=3, epoch=1)
    assert draws.min() >= 0 and draws.max() < 1
    counts = np.stack([np.histogram(column, 20, (0, 1))[0] for column in draws.T])
    assert np.abs(counts - 1000).max() < 5 * 31
    following = np.concatenate([draws, uniforms(np.arange(20000), 6, seed=3, epoch=2)], 1)
    other = np.concatenate([following, uniforms(np.arange(20000), 6, seed=3, epoch=1, stream=1)], 1)
    correlation = np.corrcoef(other.T) - np.eye(18)
    assert np.abs(correlation).max() < 5 / np.sqrt(20000)
    assert np.abs(np.corrcoef(draws[:-1, 0], draws[1:, 0])[0, 1]) < 5 / np.sqrt(20000)


@pytest.mark.parametrize("wrong", [[-1], [0, 10], torch.tensor([11])])
def test_an_index_outside_the_source_is_an_error(wrong: object) -> None:
    with pytest.raises(IndexError, match=r"\[0, 10\)"):
        as_indices(wrong, 10)  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [0, 1, 37, 99, 100])
def test_the_first_of_an_order_need_not_make_all_of_it(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastclip.data.source._CHUNK", 17)
    np.testing.assert_array_equal(first_of(100, count, 3, -1), permutation(100, 3, -1)[:count])


def test_pairs_are_joined_and_taken_whole() -> None:
    def pairs(*numbers: int, texts: bool) -> Pairs:
        index = torch.tensor(numbers)
        features = index[:, None].float() if texts else None
        return Pairs(
            index.byte().reshape(-1, 1, 1, 1), [str(n) for n in numbers], index + 10, index, features
        )

    for texts in (True, False):
        taken = Pairs.join([pairs(1, 2, texts=texts), pairs(3, texts=texts)]).take(torch.tensor([2, 0]))
        expected = pairs(3, 1, texts=texts)
        assert taken.captions == expected.captions
        for part in ("images", "labels", "indices", *["text_features"] * texts):
            assert torch.equal(getattr(taken, part), getattr(expected, part))
