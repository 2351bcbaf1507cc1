from __future__ import annotations

import numpy as np
import pytest
import torch

from fastclip.data.augment import Augmentation, jitter, recolour

FILL = (10, 200, 90)
STILL = np.full((1, 5), 0.5)


def pictures(count: int, side: int = 24) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)


def test_the_middle_draw_changes_nothing() -> None:
    images = pictures(1)
    torch.testing.assert_close(jitter(images, STILL, np.array([False]), fill=FILL), images, rtol=0, atol=0)


def test_only_pictures_that_may_be_mirrored_are() -> None:
    images, draws = pictures(2).expand(2, -1, -1, -1), np.repeat(STILL, 2, 0)
    draws[:, 4] = 0.2
    out = jitter(images, draws, np.array([False, True]), fill=FILL)
    torch.testing.assert_close(out[0], images[0], rtol=0, atol=0)
    torch.testing.assert_close(out[1], images[1].flip(-1), rtol=0, atol=0)
    draws[:, 4] = 0.8
    torch.testing.assert_close(
        jitter(images, draws, np.array([True, True]), fill=FILL), images, rtol=0, atol=0
    )


def test_a_picture_does_not_depend_on_its_batch() -> None:
    images, draws = pictures(300), np.random.default_rng(0).random((300, 5))
    flip = np.arange(300) % 2 == 0
    together = jitter(images, draws, flip, fill=FILL)
    for row in (0, 7, 127, 128, 299):
        alone = jitter(images[row : row + 1], draws[row : row + 1], flip[row : row + 1], fill=FILL)
        assert torch.equal(alone[0], together[row])


def test_what_comes_in_from_outside_is_the_fill_colour() -> None:
    draws = STILL.copy()
    draws[:, 1] = 0.999  # the largest shift in x reads 6 % of the side farther right
    out = jitter(pictures(1, 50), draws, np.array([False]), fill=FILL)
    assert out[0, :, :, -1].unique(dim=1).squeeze(1).tolist() == list(FILL)


def test_a_plain_picture_of_the_fill_colour_stays_one() -> None:
    plain = torch.tensor(FILL, dtype=torch.uint8).view(1, 3, 1, 1).expand(64, 3, 20, 20)
    out = jitter(plain, np.random.default_rng(1).random((64, 5)), np.ones(64, bool), fill=FILL)
    assert torch.equal(out, plain)


def test_an_empty_batch_stays_empty() -> None:
    assert jitter(pictures(0), np.zeros((0, 5)), np.zeros(0, bool), fill=FILL).shape == (0, 3, 24, 24)


def test_the_input_is_left_alone() -> None:
    images = pictures(3)
    before = images.clone()
    jitter(images, np.random.default_rng(1).random((3, 5)), np.ones(3, bool), fill=FILL)
    assert torch.equal(images, before)


def recoloured(images: torch.Tensor, **settings: float) -> torch.Tensor:
    draws = np.random.default_rng(0).random((len(images), 5))
    return recolour(images, draws, Augmentation(**settings))


def test_nothing_asked_for_leaves_the_pictures_alone() -> None:
    images = pictures(200, 6)
    assert recoloured(images) is images


def test_a_share_is_mirrored() -> None:
    images = pictures(200, 6)
    out = recoloured(images, flip=0.3)
    mirrored = (out == images.flip(3)).flatten(1).all(1)
    assert (mirrored | (out == images).flatten(1).all(1)).all()
    assert 40 < mirrored.sum() < 80


def test_a_share_is_grey() -> None:
    images = pictures(200, 6)
    out = recoloured(images, grayscale=0.3)
    grey = (out == out[:, :1]).flatten(1).all(1)
    assert 40 < grey.sum() < 80
    assert torch.equal(out[~grey], images[~grey])
    weights = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    expected = (images[grey].float() * weights).sum(1)
    assert (out[grey][:, 0].float() - expected).abs().max() <= 1


def test_colours_move_within_bounds_and_by_their_own_row() -> None:
    images = pictures(200, 6)
    plain = torch.full((50, 3, 4, 4), 100, dtype=torch.uint8)
    levels = recoloured(plain, color_jitter=0.2)[:, 0, 0, 0]  # only brightness shows on a plain picture
    assert 80 <= levels.min() < 88 and 112 < levels.max() <= 120
    out = recoloured(images, color_jitter=0.4)
    draws = np.random.default_rng(0).random((200, 5))
    rows = [3, 150, 151]
    alone = recolour(images[rows], draws[rows], Augmentation(color_jitter=0.4))
    assert torch.equal(alone, out[rows])


@pytest.mark.parametrize("wrong", [{"scale": 0.0}, {"flip": 1.5}, {"grayscale": -0.1}, {"color_jitter": 2.0}])
def test_augmentation_that_makes_no_sense_is_an_error(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must lie in"):
        Augmentation(**wrong)
