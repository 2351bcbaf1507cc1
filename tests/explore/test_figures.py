"""Figures: a space made by hand whose answers are known, and controls at chance."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fastclip.data.emoji_names import TONES, EmojiName
from fastclip.data.source import HeldOut
from fastclip.explore import emoji, figures
from fastclip.explore.emoji_figures import emoji_figures
from fastclip.explore.gallery import GalleryTest

BASES = [f"base {i}" for i in range(30)]


def perfect(noise: float = 0.02) -> emoji.EmojiGallery:
    """Return a gallery in which base, tone and style are independent directions, and texts lie on their pictures."""
    generator = torch.Generator().manual_seed(0)
    directions: dict[str, torch.Tensor] = {}

    def point(base: str, tones: tuple[int, ...], style: int | None = None) -> torch.Tensor:
        parts = [base, *(f"{TONES[tone]} skin tone" for tone in tones)]
        parts += [] if style is None else [f"style {style}"]
        for part in parts:
            directions.setdefault(part, F.normalize(torch.randn(64, generator=generator), dim=0))
        return sum(
            ((0.3 if part.startswith("style") else 1.0) * directions[part] for part in parts), torch.zeros(64)
        )

    names, styles, unseen, images = [], [], [], []
    for (i, base), tone, style in product(enumerate(BASES), (None, *range(5)), (0, 1)):
        tones = () if tone is None else (tone,)
        names.append(EmojiName(base, tones, (i,), True))
        styles.append(style)
        unseen.append(tone == i % 5 or (tone is None and style == i % 2))
        images.append(point(base, tones, style) + noise * torch.randn(64, generator=generator))
    captions = [str(name) for name in names]
    texts = {
        caption: F.normalize(point(name.base, name.tones), dim=0)
        for caption, name in zip(captions, names, strict=True)
    }
    texts |= {f"{tone} skin tone": directions[f"{tone} skin tone"] for tone in TONES}

    def encode_texts(asked: Sequence[str]) -> torch.Tensor:
        return torch.stack([texts[text] for text in asked])

    places = torch.arange(len(names))
    composed = places[[u and bool(n.tones) for u, n in zip(unseen, names, strict=True)]]
    gallery = sorted(set(captions))
    target = torch.tensor([gallery.index(captions[i]) for i in composed])
    test = HeldOut("unseen composition", torch.zeros(len(composed), 3, 4, 4, dtype=torch.uint8), gallery, target,
                   headline="R@1")  # fmt: skip
    return emoji.EmojiGallery(
        name="made by hand",
        images=F.normalize(torch.stack(images), dim=1),
        captions=captions,
        unseen=torch.tensor(unseen),
        kinds=["x"] * len(names),
        draw=lambda chosen, side: np.zeros((len(chosen), side, side, 3), np.uint8),
        encode_texts=encode_texts,
        tests=[GalleryTest(test, composed, encode_texts(gallery))],
        names=names,
        styles=torch.tensor(styles),
        compositions=composed,
        restyled=places[[u and not n.tones for u, n in zip(unseen, names, strict=True)]],
        texts=texts,
    )


@pytest.fixture(scope="module")
def measured() -> list[figures.Figure]:
    measurements = [
        figures.retrieval_figures,
        figures.geometry_figures,
        figures.middle_figures,
        emoji_figures,
    ]
    return figures.with_control(perfect(), measurements)


def test_a_space_of_independent_directions_answers_right(measured: list[figures.Figure]) -> None:
    shares = {figure.name: figure.value for figure in measured if figure.share}
    known = {"own caption": 0.99, "right base and tone": 0.95, "two texts added": 0.95, "style never seen": 0.95,
             "has that tone": 0.9, "tone of five": 0.99}  # fmt: skip
    for words, least in known.items():
        (value,) = [value for name, value in shares.items() if words in name]
        assert value >= least, words
    # Tones are five directions at right angles: the middle of two is no nearer to one third than to another.
    (middle,) = [value for name, value in shares.items() if "medium one" in name]
    assert 0.1 < middle < 0.6


def test_controls_stand_at_chance(measured: list[figures.Figure]) -> None:
    for figure in measured:
        if figure.share and figure.chance is not None:
            assert figure.control == pytest.approx(figure.chance, abs=0.15), figure.name
    # The neighbour of a composition is the same one in the other style, so that one attribute stays below chance.
    above = [
        figure for figure in measured if figure.chance is not None and figure.value > figure.control + 0.1
    ]
    assert len(above) >= sum(figure.chance is not None for figure in measured) - 3
    (alignment,) = [figure for figure in measured if figure.name.startswith("alignment")]
    assert alignment.value < 0.5 < alignment.control


def test_chance_is_what_drawing_gives(measured: list[figures.Figure]) -> None:
    chances = {figure.name: figure.chance for figure in measured}
    (both,) = [chance for name, chance in chances.items() if "right base and tone" in name]
    assert both == pytest.approx(2 / 360)
    (tone,) = [chance for name, chance in chances.items() if "right tone" in name]
    assert tone == pytest.approx(60 / 360)


def test_edits_start_from_what_was_seen_and_end_at_what_was_not() -> None:
    gallery = perfect()
    source, target = emoji.tone_edits(gallery)
    assert not gallery.unseen[source].any() and gallery.unseen[target].all()
    for a, b in zip(source.tolist(), target.tolist(), strict=True):
        assert (
            gallery.names[a].base == gallery.names[b].base
            and gallery.names[a].tones != gallery.names[b].tones
        )
    sums = emoji.emoji_sums(gallery, 4)
    assert len(sums) == 4 and all(shown.found[0].right for shown in sums)


def test_numbers_are_written_for_people() -> None:
    figure = figures.Figure("a", "b", 0.5)
    written = [figure.text(value).replace("\N{NO-BREAK SPACE}", " ") for value in (0.557, 0.00025, 1e-7, 0.0)]
    assert written == ["55.7 %", "0.025 %", "< 0.001 %", "0.0 %"]
    assert figures.Figure("a", "b", 1.5, share=False).text(1.5) == "1.500"
