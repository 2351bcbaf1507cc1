from __future__ import annotations

import numpy as np
import torch

from fastclip.data.augment import jitter

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
