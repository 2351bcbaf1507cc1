"""Choose what to show of a space: ways between meanings, sums of meanings, similarities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastclip.explore.gallery import Gallery
from fastclip.space import compose, interpolate, nearest

STEPS = 9  #: of a strip, ends included


@dataclass(frozen=True)
class Found:
    """A picture of the gallery that was found."""

    place: int
    cosine: float
    right: bool | None = None  #: None: there is no right or wrong


@dataclass(frozen=True)
class Strip:
    """The pictures nearest to the points of a way between two captions."""

    first: str
    last: str
    found: tuple[Found, ...]


@dataclass(frozen=True)
class Term:
    """A picture of the gallery or a text, added (+1) or taken away (−1)."""

    sign: int
    text: str | None = None
    place: int | None = None


@dataclass(frozen=True)
class Sum:
    """A sum of meanings and the pictures nearest to it."""

    terms: tuple[Term, ...]
    found: tuple[Found, ...]


@dataclass(frozen=True)
class Heatmap:
    """Cosines of some pictures with the captions of the same pictures."""

    places: tuple[int, ...]
    captions: tuple[str, ...]
    cosines: Tensor  #: (n, n)


def strip(gallery: Gallery, first: str, last: str) -> Strip:
    """Walk from one text to another and find the nearest picture at every step."""
    ends = gallery.encode_texts([first, last])
    way = interpolate(ends[0], ends[1], torch.linspace(0, 1, STEPS))
    cosines, places = nearest(way, gallery.images, 1)
    steps = zip(places[:, 0].tolist(), cosines[:, 0].tolist(), strict=True)
    return Strip(first, last, tuple(Found(place, cosine) for place, cosine in steps))


def random_strips(gallery: Gallery, count: int, *, seed: int = 0) -> list[Strip]:
    """Walk between captions of unseen pictures drawn at random."""
    captions = sorted({gallery.captions[i] for i in gallery.unseen.nonzero()[:, 0].tolist()})
    order = torch.randperm(len(captions), generator=torch.Generator().manual_seed(seed)).tolist()
    pairs = zip(order[0::2], order[1::2], strict=False)
    return [strip(gallery, captions[a], captions[b]) for a, b in list(pairs)[:count]]


def evaluate_sum(
    gallery: Gallery, terms: Sequence[Term], *, wanted: set[int] | None = None, k: int = 5
) -> Sum:
    """Add meanings up and find the nearest pictures; the terms' own pictures are no answers.

    Args:
        gallery: the pictures.
        terms: what is added and taken away.
        wanted: the places of the right answers, where there is a right and a wrong.
        k: pictures found.
    """
    texts = [term.text for term in terms if term.text is not None]
    encoded = dict(zip(texts, gallery.encode_texts(texts), strict=True)) if texts else {}

    def point(term: Term) -> Tensor:
        return encoded[term.text] if term.text is not None else gallery.images[term.place]

    plus, minus = ([point(term) for term in terms if term.sign == sign] for sign in (1, -1))
    own = {term.place for term in terms if term.place is not None}
    query = compose(plus, minus)[None]
    cosines, places = nearest(query, gallery.images, min(k + len(own), len(gallery)))
    found = [
        Found(place, cosine, None if wanted is None else place in wanted)
        for place, cosine in zip(places[0].tolist(), cosines[0].tolist(), strict=True)
        if place not in own
    ]
    return Sum(tuple(terms), tuple(found[:k]))


def random_sums(gallery: Gallery, count: int, *, seed: int = 0) -> list[Sum]:
    """Exchange the captions of unseen pictures drawn at random: a picture − its caption + another one's."""
    unseen = gallery.unseen.nonzero()[:, 0]
    places = unseen[torch.randperm(len(unseen), generator=torch.Generator().manual_seed(seed))].tolist()
    sums: list[Sum] = []
    for place, other in zip(places[0::2], places[1::2], strict=False):
        before, after = gallery.captions[place], gallery.captions[other]
        if len(sums) < count and before != after:
            terms = (Term(1, place=place), Term(-1, before), Term(1, after))
            wanted = {i for i, caption in enumerate(gallery.captions) if caption == after}
            sums.append(evaluate_sum(gallery, terms, wanted=wanted))
    return sums


def heatmap(gallery: Gallery, *, count: int = 16, seed: int = 0) -> Heatmap:
    """Compare some unseen pictures with each other's captions, alike next to alike."""
    generator = torch.Generator().manual_seed(seed)
    candidates = gallery.unseen.nonzero()[:, 0]
    chosen: dict[str, int] = {}
    for place in candidates[torch.randperm(len(candidates), generator=generator)].tolist():
        if len(chosen) < count:
            chosen.setdefault(gallery.captions[place], place)
    captions = list(chosen)
    texts = gallery.encode_texts(captions)
    order = _chain(texts)
    places = [chosen[captions[i]] for i in order]
    return Heatmap(tuple(places), tuple(captions[i] for i in order), gallery.images[places] @ texts[order].T)


def _chain(x: Tensor) -> list[int]:
    """Order points (n, D) so that neighbours in the order are near: from the first, always to the nearest left."""
    order, left = [0], set(range(1, len(x)))
    while left:
        rest = sorted(left)
        order.append(rest[int((x[rest] @ x[order[-1]]).argmax())])
        left.remove(order[-1])
    return order
