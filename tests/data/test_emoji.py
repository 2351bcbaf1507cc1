"""The emoji pairs: nothing leaks from the tests into training, and a fetch depends on its key alone."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from fastclip.data.emoji import EmojiSource
from fastclip.data.emoji_art import EmojiArt, load_art
from fastclip.data.emoji_names import TONES
from fastclip.data.emoji_split import split

from .conftest import SIZE


@pytest.fixture(scope="module")
def art(emoji_cache: Path) -> EmojiArt:
    return load_art(SIZE, emoji_cache)


def test_there_are_thousands_of_pictures_and_captions(emoji_source: EmojiSource, art: EmojiArt) -> None:
    assert len(art.names) > 7800
    assert len(emoji_source) > 6000
    composition, style, concept = emoji_source.held_out()
    assert composition.name == "unseen composition" and len(composition) > 500
    assert 1500 <= len(composition.gallery) <= 1650
    assert style.name == "unseen style" and len(style) > 280 and len(style.gallery) == 300
    assert concept.name == "unseen concept" and len(concept) > 150
    assert (composition.headline, style.headline, concept.headline) == ("R@1", "R@10", None)


def test_a_held_out_composition_was_trained_in_no_style_and_no_gender(
    emoji_source: EmojiSource, art: EmojiArt
) -> None:
    seen = {(name.concept, tone) for name in emoji_source.names for tone in name.tones}
    tested = {(art.names[i].concept, art.names[i].tones[0]) for i in emoji_source.split.queries[0]}
    assert not seen & tested
    # But the concept itself was, in its other tones; else the test would be one of unseen concepts.
    for concept, tone in tested:
        assert any((concept, other) in seen for other in range(len(TONES)) if other != tone)


def test_each_tone_is_held_out_about_equally_often(emoji_source: EmojiSource, art: EmojiArt) -> None:
    counts = Counter(art.names[i].tones[0] for i in emoji_source.split.queries[0])
    assert set(counts) == set(range(len(TONES)))
    assert max(counts.values()) < 2 * min(counts.values())


def test_a_held_out_style_was_trained_in_the_other_art_only(emoji_source: EmojiSource, art: EmojiArt) -> None:
    seen: dict[tuple[int, ...], set[int]] = {}
    for name, style in zip(emoji_source.names, emoji_source.styles.tolist(), strict=True):
        seen.setdefault(name.concept, set()).add(style)
    styles = Counter()
    for i in emoji_source.split.queries[1].tolist():
        assert seen[art.names[i].concept] == {1 - int(art.styles[i])}
        styles[int(art.styles[i])] += 1
    assert min(styles.values()) > 100


def test_a_held_out_concept_was_not_trained_at_all(emoji_source: EmojiSource, art: EmojiArt) -> None:
    seen = {name.concept for name in emoji_source.names}
    assert not seen & {art.names[i].concept for i in emoji_source.split.queries[2]}


def test_no_test_picture_has_the_pixels_of_a_training_picture(emoji_source: EmojiSource) -> None:
    mirrored = [i for i, name in enumerate(emoji_source.names) if name.may_flip]
    pixels = {image.numpy().tobytes() for image in emoji_source.images}
    pixels |= {image.numpy().tobytes() for image in emoji_source.images[mirrored].flip(-1).contiguous()}
    for test in emoji_source.held_out():
        assert not any(image.numpy().tobytes() in pixels for image in test.images), test.name


def test_no_test_picture_fits_two_captions(emoji_source: EmojiSource) -> None:
    for test in emoji_source.held_out():
        owner: dict[bytes, int] = {}
        for image, target in zip(test.images, test.target.tolist(), strict=True):
            assert owner.setdefault(image.numpy().tobytes(), target) == target


def test_dropped_pictures_are_counted(emoji_source: EmojiSource) -> None:
    dropped = emoji_source.split.dropped
    assert sum(count for reason, count in dropped.items() if "training" in reason) > 0
    assert sum(count for reason, count in dropped.items() if "two captions" in reason) > 0


def test_the_leak_checks_catch_a_leak(art: EmojiArt) -> None:
    # A picture given the pixels of a training picture must fall out of its test.
    honest = split(art, 0)
    query, model = int(honest.queries[1][0]), int(honest.train[0])
    images = art.images.clone()
    images[query] = images[model].flip(-1) if art.names[model].may_flip else images[model]
    leaky = split(EmojiArt(art.names, art.styles, images, 0.0), 0)
    assert query not in leaky.queries[1]
    key = "unseen style: same pixels in training"
    assert leaky.dropped[key] == honest.dropped[key] + 1


def test_targets_name_the_pictures(emoji_source: EmojiSource, art: EmojiArt) -> None:
    for test, queries in zip(emoji_source.held_out(), emoji_source.split.queries, strict=True):
        assert len(set(test.gallery)) == len(test.gallery)
        assert torch.equal(test.images, art.images[queries])
        assert [test.gallery[t] for t in test.target] == [str(art.names[i]) for i in queries]


def test_the_gallery_holds_all_five_tones_of_every_base(emoji_source: EmojiSource, art: EmojiArt) -> None:
    test = emoji_source.held_out()[0]
    bases = {art.names[i].base for i in emoji_source.split.queries[0]}
    for base in bases:
        joint = ", " if ":" in base else ": "
        assert {f"{base}{joint}{tone} skin tone" for tone in TONES} <= set(test.gallery)
    assert test.groups is not None and test.groups.shape == (len(test), 5)
    assert (test.groups == test.target[:, None]).sum(1).eq(1).all()
    for i, group in zip(emoji_source.split.queries[0].tolist(), test.groups.tolist(), strict=True):
        assert all(test.gallery[g].startswith(art.names[i].base) for g in group)
        assert [test.gallery[g].split(" skin")[0].split()[-1] for g in group] == list(TONES)


def test_the_split_is_the_seed_s(emoji_source: EmojiSource, art: EmojiArt) -> None:
    assert torch.equal(split(art, 0).train, emoji_source.split.train)
    other = split(art, 1)
    assert set(other.queries[0].tolist()) != set(emoji_source.split.queries[0].tolist())


def test_the_control_has_the_same_captions_on_other_pictures(
    emoji_source: EmojiSource, emoji_cache: Path
) -> None:
    control = EmojiSource(SIZE, cache_dir=emoji_cache, shuffled_captions=True)
    assert torch.equal(control.images, emoji_source.images)
    assert Counter(map(str, control.names)) == Counter(map(str, emoji_source.names))
    same = sum(a == b for a, b in zip(control.names, emoji_source.names, strict=True))
    assert same < 20
    for mine, theirs in zip(control.held_out(), emoji_source.held_out(), strict=True):
        assert mine.gallery == theirs.gallery and torch.equal(mine.target, theirs.target)
        assert torch.equal(mine.images, theirs.images)
    # Whether a picture may be mirrored goes with the picture, not with the caption it was given.
    assert np.array_equal(control._flip, emoji_source._flip)


def test_a_pair_does_not_depend_on_its_batch(emoji_source: EmojiSource) -> None:
    together = emoji_source.fetch(range(100, 400), seed=5, epoch=2)
    backwards = emoji_source.fetch(torch.arange(399, 99, -1), seed=5, epoch=2)
    assert torch.equal(together.images.flip(0), backwards.images)
    assert together.captions[::-1] == backwards.captions
    assert torch.equal(together.labels.flip(0), backwards.labels)
    assert together.indices.tolist() == list(range(100, 400))
    alone = emoji_source.fetch([217], seed=5, epoch=2)
    assert torch.equal(alone.images[0], together.images[117]) and alone.captions[0] == together.captions[117]


def test_every_epoch_shows_a_pair_anew(emoji_source: EmojiSource) -> None:
    first = emoji_source.fetch(range(64), seed=0, epoch=0)
    second = emoji_source.fetch(range(64), seed=0, epoch=1)
    other = emoji_source.fetch(range(64), seed=1, epoch=0)
    assert not torch.equal(first.images, second.images) and not torch.equal(first.images, other.images)
    assert first.captions != second.captions and first.captions != other.captions
    assert torch.equal(first.labels, second.labels)


def test_plain_pairs_are_the_picture_and_its_name(emoji_source: EmojiSource) -> None:
    pairs = emoji_source.fetch([3, 1], seed=0, epoch=0, augment=False)
    assert torch.equal(pairs.images, emoji_source.images[[3, 1]])
    assert pairs.captions == [str(emoji_source.names[3]), str(emoji_source.names[1])]


def test_captions_come_from_all_templates_and_hold_the_name(emoji_source: EmojiSource) -> None:
    pairs = emoji_source.fetch(range(2000), seed=0, epoch=0)
    for index, caption in enumerate(pairs.captions):
        name = emoji_source.names[index]
        assert name.base in caption
        assert all(f"{TONES[tone]} skin tone" in caption for tone in name.tones)
    starts = Counter(caption.split(" of ")[0] for caption in pairs.captions)
    assert starts["an emoji"] > 200 and starts["a drawing"] > 200
    assert (
        sum(
            caption == str(name)
            for caption, name in zip(pairs.captions, emoji_source.names[:2000], strict=True)
        )
        > 500
    )


def test_equal_captions_share_a_label_and_so_do_both_styles(emoji_source: EmojiSource) -> None:
    pairs = emoji_source.fetch(range(1000), seed=0, epoch=0)
    label_of: dict[str, int] = {}
    for caption, label in zip(pairs.captions, pairs.labels.tolist(), strict=True):
        assert label_of.setdefault(caption, label) == label
    pairs = emoji_source.fetch(range(len(emoji_source)), seed=0, epoch=0, augment=False)
    names: dict[int, set[str]] = {}
    for name, label in zip(emoji_source.names, pairs.labels.tolist(), strict=True):
        names.setdefault(label, set()).add(str(name))
    assert all(len(one) == 1 for one in names.values())
    assert Counter(pairs.labels.tolist()).most_common(1)[0][1] == 2


def test_an_empty_batch_is_empty(emoji_source: EmojiSource) -> None:
    pairs = emoji_source.fetch([], seed=0, epoch=0)
    assert len(pairs) == 0 and pairs.images.shape == (0, 3, SIZE, SIZE)


def test_nothing_is_skipped(emoji_source: EmojiSource) -> None:
    assert not emoji_source.skipped


def test_portraits_are_the_queries_drawn_large_on_white(emoji_source: EmojiSource) -> None:
    test = emoji_source.held_out()[0]
    assert test.portraits is not None
    drawn = test.portraits([5, 2], 48)
    assert drawn.shape == (2, 3, 48, 48) and drawn.dtype == torch.uint8
    corners = drawn[:, :, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert (corners == 255).float().mean() > 0.5
    # The same drawings in the same order: each is nearest to its own query.
    small = torch.nn.functional.adaptive_avg_pool2d(drawn.float(), test.images.shape[-1])
    apart = (small[:, None] - test.images[[5, 2]].float()).abs().mean((2, 3, 4))
    assert apart.argmin(1).tolist() == [0, 1]
