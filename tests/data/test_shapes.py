from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fastclip.data.shapes import (
    HELD_OUT_SHAPE,
    ShapesSource,
    _draw_scenes,
    _identity,
    _kept_for_tests,
    _training_scenes,
    captions_of,
)
from fastclip.data.shapes_drawing import COLOURS, SHAPES, SIZES, TEXTURES, Scenes, draw

STILL = np.full((1, 12), 0.5)


def scene(first: tuple[int, int, int, int], second: tuple[int, int, int, int], relation: int = 0) -> Scenes:
    """Return one scene of two objects given as (size, texture, colour, shape)."""
    size, texture, colour, shape = (np.array([[a, b]]) for a, b in zip(first, second, strict=True))
    return Scenes(size, texture, colour, shape, np.array([relation]))


def test_captions_read_as_english() -> None:
    star, square = (0, 1, 0, list(SHAPES).index("star")), (1, 0, 4, list(SHAPES).index("square"))
    one = scene(star, square)
    assert captions_of(one) == ["a small striped red star left of a large blue square"]
    assert captions_of(one, np.array([True])) == ["a large blue square right of a small striped red star"]
    one.relation[:] = 1
    assert captions_of(one) == ["a small striped red star above a large blue square"]
    assert captions_of(one, np.array([True])) == ["a large blue square below a small striped red star"]


@pytest.mark.parametrize("shape", range(len(SHAPES)))
def test_every_shape_has_its_colour_size_and_place(shape: int) -> None:
    blank = 2  # a yellow circle, far away
    for colour, rgb in enumerate(COLOURS.values()):
        areas = []
        for size in range(len(SIZES)):
            one = scene((size, 0, colour, shape), (0, 0, blank, 0))
            picture = draw(one, STILL, 96)[0].astype(int)
            left = picture[:, :, :48]
            mask = np.abs(left - np.array(rgb).reshape(3, 1, 1)).max(0) < 3
            areas.append(mask.sum())
            rows, columns = np.nonzero(mask)
            assert abs(rows.mean() - 47.5) < 4 and abs(columns.mean() - 0.26 * 96) < 4
        assert 60 < 2 * areas[0] < areas[1]


def test_relations_place_the_first_object_left_or_above() -> None:
    red, blue = 0, 4
    for relation, axis in ((0, 1), (1, 0)):
        picture = draw(scene((1, 0, red, 0), (1, 0, blue, 0), relation), STILL, 64)[0].astype(int)
        where = [
            np.argwhere(
                np.abs(picture - np.array(list(COLOURS.values())[c]).reshape(3, 1, 1)).max(0) < 3
            ).mean(0)
            for c in (red, blue)
        ]
        assert where[0][axis] < where[1][axis] - 20
        assert abs(where[0][1 - axis] - where[1][1 - axis]) < 2


def test_edges_are_antialiased() -> None:
    # The share of ink must follow the area of the disc to far less than a pixel's edge.
    rgb = np.array(list(COLOURS.values())[7], float).reshape(3, 1, 1)
    picture = draw(scene((1, 0, 7, 0), (0, 0, 2, 0)), STILL, 64)[0].astype(float)
    ground = picture[:, :1, :1]
    ink = ((picture[:, :, :32] - ground) / (rgb - ground)).mean(0)
    radius = 0.95 * 0.19 * 64
    assert ink.sum() == pytest.approx(np.pi * radius**2, rel=0.02)
    assert ((ink > 0.1) & (ink < 0.9)).sum() > 20


@pytest.mark.parametrize("side", [32, 64])
def test_patterns_show(side: int) -> None:
    pictures = [
        draw(scene((1, t, 0, 1), (0, 0, 2, 0)), STILL, side)[0].astype(int) for t in range(len(TEXTURES))
    ]
    for i, first in enumerate(pictures):
        for second in pictures[:i]:
            assert (np.abs(first - second).max(0) > 60).mean() > 0.015


def test_scenes_are_never_of_two_equal_colours_or_shapes() -> None:
    scenes = _draw_scenes(np.arange(5000), 0, 0)
    assert (scenes.colour[:, 0] != scenes.colour[:, 1]).all()
    assert (scenes.shape[:, 0] != scenes.shape[:, 1]).all()
    for part, choices in ((scenes.size, SIZES), (scenes.texture, TEXTURES), (scenes.colour, COLOURS)):
        counts = np.bincount(part.ravel(), minlength=len(choices)) * len(choices) / 10000
        assert np.abs(counts - 1).max() < 0.15


def test_training_shows_no_held_out_combination_and_no_test_scene() -> None:
    scenes = _training_scenes(np.arange(20000), 0, 0)
    assert not (HELD_OUT_SHAPE[scenes.colour] == scenes.shape).any()
    assert not _kept_for_tests(scenes).any()
    seen = {
        (c, s) for c, s in zip(scenes.colour.ravel().tolist(), scenes.shape.ravel().tolist(), strict=True)
    }
    assert len(seen) == len(COLOURS) * len(SHAPES) - len(COLOURS)


def test_every_held_out_colour_and_shape_is_trained_elsewhere() -> None:
    assert sorted(HELD_OUT_SHAPE) == list(range(len(SHAPES)))


def test_the_tests_hold_what_they_say() -> None:
    source = ShapesSource(32, length=3000)
    trained = set()
    for epoch in range(3):
        trained |= set(source.fetch(range(3000), seed=0, epoch=epoch).captions)
    for test in source.held_out():
        assert len(test) == 400 and test.images.shape == (400, 3, 32, 32) and test.images.dtype == torch.uint8
        assert len(set(test.gallery)) == len(test.gallery)
        assert test.groups is not None and (test.groups == test.target[:, None]).sum(1).eq(1).all()
        assert not trained & {test.gallery[t] for t in test.target}, test.name
    combination, colours, sides = source.held_out()
    assert (combination.headline, colours.headline, sides.headline) == ("R@1", "choice", "choice")
    assert combination.groups is not None and combination.groups.shape == (400, len(COLOURS))
    for target, group in zip(combination.target.tolist(), combination.groups.tolist(), strict=True):
        words = {word for g in group for word in combination.gallery[g].split()}
        assert set(COLOURS) <= words
        held = [
            s
            for c, s in enumerate(HELD_OUT_SHAPE)
            if f"{list(COLOURS)[c]} {list(SHAPES)[s]}" in combination.gallery[target]
        ]
        assert held
    for test in (colours, sides):
        for right, wrong in test.groups.tolist():
            # Hard negatives: the very same words, in another order.
            assert sorted(test.gallery[right].split()) == sorted(test.gallery[wrong].split())
    for right, wrong in sides.groups.tolist():
        for relation in ("left of", "above"):
            first, found, second = sides.gallery[right].partition(f" {relation} ")
            if found:
                assert sides.gallery[wrong] == f"{second} {relation} {first}"


def test_exchanged_colours_all_occur_in_training() -> None:
    colours = ShapesSource(32).held_out()[1]
    held = {f"{c} {list(SHAPES)[s]}" for c, s in zip(COLOURS, HELD_OUT_SHAPE, strict=True)}
    assert not any(pair in caption for pair in held for caption in colours.gallery)


def test_a_pair_does_not_depend_on_its_batch() -> None:
    source = ShapesSource(32, length=500)
    together = source.fetch(range(100), seed=1, epoch=4)
    backwards = source.fetch(list(range(99, -1, -1)), seed=1, epoch=4)
    assert torch.equal(together.images, backwards.images.flip(0))
    assert together.captions == backwards.captions[::-1]
    assert torch.equal(together.labels, backwards.labels.flip(0))


def test_an_epoch_repeats_scenes_newly_placed_and_an_endless_one_does_not() -> None:
    fixed, endless = ShapesSource(32, length=300), ShapesSource(32, length=300, endless=True)
    first, second = (fixed.fetch(range(300), seed=0, epoch=epoch) for epoch in (0, 1))
    assert torch.equal(first.labels, second.labels) and not torch.equal(first.images, second.images)
    first, second = (endless.fetch(range(300), seed=0, epoch=epoch) for epoch in (0, 1))
    assert (first.labels == second.labels).sum() < 5


def test_labels_follow_scenes() -> None:
    source = ShapesSource(16, length=4000)
    pairs = source.fetch(range(4000), seed=0, epoch=0)
    plain = source.fetch(range(4000), seed=0, epoch=0, augment=False)
    label_of: dict[str, int] = {}
    for caption, label in zip(pairs.captions + plain.captions, pairs.labels.tolist() * 2, strict=True):
        assert label_of.setdefault(caption, label) == label
    scenes = _draw_scenes(np.arange(4000), 0, 0)
    exchanged = replace(scenes, relation=1 - scenes.relation)
    assert not (_identity(scenes) == _identity(exchanged)).any()


def test_the_control_has_other_captions() -> None:
    real, control = ShapesSource(16, length=500), ShapesSource(16, length=500, shuffled_captions=True)
    a, b = (s.fetch(range(500), seed=0, epoch=0, augment=False) for s in (real, control))
    assert torch.equal(a.images, b.images)
    assert sorted(a.captions) == sorted(b.captions)
    assert sum(x == y for x, y in zip(a.captions, b.captions, strict=True)) < 10
    assert sorted(a.labels.tolist()) == sorted(b.labels.tolist())


@pytest.mark.parametrize(
    ("kwargs", "message"), [({"image_size": 8}, "image_size"), ({"length": 0}, "length")]
)
def test_settings_that_make_no_sense_are_errors(kwargs: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ShapesSource(**kwargs)  # type: ignore[arg-type]
