"""Explore a space with emoji: their names say which pictures differ in one attribute, so answers can be checked."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from fastclip.data.emoji_art import CREDITS, load_art
from fastclip.data.emoji_names import TONES, EmojiName
from fastclip.data.emoji_split import split
from fastclip.data.rasterise import rasterise_all
from fastclip.explore.gallery import Gallery, GalleryTest
from fastclip.explore.scenes import Strip, Sum, Term, evaluate_sum, strip
from fastclip.space import Encoder

#: Ways shown on the page, of those whose ends are there.
WAYS = (
    ("waving hand: light skin tone", "waving hand: dark skin tone"),
    ("red heart", "blue heart"),
    ("sun", "crescent moon"),
    ("cat face", "dog face"),
    ("crying face", "grinning face"),
    ("bicycle", "racing car"),
)


@dataclass
class EmojiGallery(Gallery):
    """A gallery of all emoji in both styles, those trained on and those held out."""

    names: list[EmojiName] = field(default_factory=list)  #: N
    styles: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))  #: (N,)
    compositions: Tensor = field(
        default_factory=lambda: torch.empty(0, dtype=torch.int64)
    )  #: unseen ones' places
    restyled: Tensor = field(
        default_factory=lambda: torch.empty(0, dtype=torch.int64)
    )  #: unseen styles' places
    texts: dict[str, Tensor] = field(default_factory=dict)  #: (D,) of every caption


def emoji_gallery(image_size: int, encoder: Encoder, *, seed: int = 0) -> EmojiGallery:
    """Return every emoji as a gallery, divided as `EmojiSource(image_size, seed)` divides them."""
    art = load_art(image_size)
    parts = split(art, seed)
    unseen = torch.ones(len(art.names), dtype=torch.bool)
    unseen[parts.train] = False
    tests = {test.name: (test, queries) for test, queries in zip(parts.tests, parts.queries, strict=True)}
    captions = [str(name) for name in art.names]

    def draw(places: Sequence[int], side: int) -> np.ndarray:
        return rasterise_all([art.paths[place] for place in places], side)

    # One pass over every text there will be a need of: gallery, test captions, names alone, tones alone.
    tones = [f"{tone} skin tone" for tone in TONES]
    wanted = sorted(
        {*captions, *(name.base for name in art.names), *tones, *(c for t in parts.tests for c in t.gallery)}
    )
    texts = dict(zip(wanted, encoder.texts(wanted), strict=True))

    def encode_texts(asked: Sequence[str]) -> Tensor:
        new = [text for text in asked if text not in texts]
        if new:
            texts.update(zip(new, encoder.texts(new), strict=True))
        return torch.stack([texts[text] for text in asked])

    return EmojiGallery(
        name="emoji",
        images=encoder.images(art.images),
        captions=captions,
        unseen=unseen,
        kinds=[_kind(name) for name in art.names],
        draw=draw,
        encode_texts=encode_texts,
        credits=CREDITS,
        tests=[GalleryTest(test, q, encode_texts(test.gallery)) for test, q in tests.values() if len(test)],
        names=art.names,
        styles=art.styles,
        compositions=tests["unseen composition"][1],
        restyled=tests["unseen style"][1],
        texts=texts,
    )


def _kind(name: EmojiName) -> str:
    if name.tones:
        return "with a skin tone"
    return "flag" if name.base.startswith("flag: ") else "other"


def tone_edits(gallery: EmojiGallery) -> tuple[Tensor, Tensor]:
    """Return every (training picture, unseen composition) of one base: places (E,), and places of a target (E,)."""
    by_base = defaultdict(list)
    for place in (~gallery.unseen).nonzero()[:, 0].tolist():
        if len(gallery.names[place].tones) < 2:
            by_base[gallery.names[place].base].append(place)
    targets: dict[tuple[str, tuple[int, ...]], int] = {}
    for place in gallery.compositions.tolist():
        targets.setdefault((gallery.names[place].base, gallery.names[place].tones), place)
    pairs = [(source, target) for (base, _), target in targets.items() for source in by_base[base]]
    return torch.tensor([s for s, _ in pairs]), torch.tensor([t for _, t in pairs])


def emoji_strips(gallery: EmojiGallery) -> list[Strip]:
    """Walk the ways of WAYS whose ends there are."""
    known = set(gallery.captions)
    return [strip(gallery, first, last) for first, last in WAYS if {first, last} <= known]


def emoji_sums(gallery: EmojiGallery, count: int = 6, *, seed: int = 0) -> list[Sum]:
    """Edit training pictures, drawn at random, into compositions never seen."""
    source, target = tone_edits(gallery)
    answers = defaultdict(set)
    for place, caption in enumerate(gallery.captions):
        answers[caption].add(place)
    sums: list[Sum] = []
    bases: set[str] = set()
    for row in torch.randperm(len(source), generator=torch.Generator().manual_seed(seed)).tolist():
        start, end = int(source[row]), int(target[row])
        base = gallery.names[start].base
        if len(sums) < count and base not in bases:
            bases.add(base)
            caption = gallery.captions[end]
            terms = (Term(1, place=start), Term(-1, gallery.captions[start]), Term(1, caption))
            sums.append(evaluate_sum(gallery, terms, wanted=answers[caption]))
    return sums
