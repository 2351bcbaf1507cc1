"""Split emoji art into training pictures and three held-out tests that leak nothing into each other.

* Unseen **compositions**: a concept and a skin tone never seen together, in either style, in any gender.
* Unseen **style**: a concept trained in one art only, asked in the other.
* Unseen **concepts**: in neither art. A few thousand pictures cannot teach what no picture showed, so this
  test is a diagnostic and not a headline.

A test picture is dropped where its pixels also stand in the training set (two names, one drawing), or where
two captions of its own gallery fit it equally.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fastclip.data.emoji_art import STYLES, EmojiArt
from fastclip.data.emoji_names import TONES, Codes
from fastclip.data.source import HeldOut, permutation

CONCEPT_SHARE = 0.05  # of all concepts, held out whole
STYLE_CONCEPTS = 300  # concepts without skin tones whose one style is held out


@dataclass
class EmojiSplit:
    """Hold which pictures are trained on, and the tests."""

    train: Tensor  #: int64 (N,), indices into the art
    tests: list[HeldOut]
    queries: list[Tensor]  #: per test, int64 (Q,): the art's index of each query
    dropped: Counter[str]  #: test pictures left out, by reason


def split(art: EmojiArt, seed: int) -> EmojiSplit:
    """Divide ``art`` by ``seed``."""
    members: dict[Codes, list[int]] = defaultdict(list)
    for index, name in enumerate(art.names):
        members[name.concept].append(index)
    concepts = sorted(members)
    order = [concepts[i] for i in permutation(len(concepts), seed, 0)]

    hidden = round(CONCEPT_SHARE * len(concepts))
    unseen, rest = order[:hidden], order[hidden:]
    toned = [concept for concept in rest if any(art.names[i].tones for i in members[concept])]
    plain = set(rest) - set(toned)
    both = [c for c in rest if c in plain and len({int(art.styles[i]) for i in members[c]}) == len(STYLES)]

    # The held-out tone and the held-out style go round in turn, so that each is held out equally often.
    tone_of = {concept: position % len(TONES) for position, concept in enumerate(toned)}
    style_of = {concept: position % len(STYLES) for position, concept in enumerate(both[:STYLE_CONCEPTS])}
    concept_test = [i for concept in unseen for i in members[concept]]
    style_test = [i for c, style in style_of.items() for i in members[c] if art.styles[i] == style]
    tone_test = [i for c, tone in tone_of.items() for i in members[c] if tone in art.names[i].tones]
    held = {*concept_test, *style_test, *tone_test}
    train = torch.tensor([i for i in range(len(art.names)) if i not in held])

    result = EmojiSplit(train, [], [], Counter())
    trained_pixels = _pixels(art, train.tolist())

    single = [i for i in tone_test if len(art.names[i].tones) == 1]
    bases = {art.names[i].base: art.names[i] for i in single}
    gallery = [
        str(replace(bases[base], tones=(tone,))) for base in sorted(bases) for tone in range(len(TONES))
    ]
    _add(result, art, trained_pixels, "unseen composition", single, gallery, "R@1", tones=True)

    first = [min(members[concept]) for concept in style_of]
    names = {str(art.names[i]) for i in first}
    queries = [i for i in style_test if str(art.names[i]) in names]
    _add(result, art, trained_pixels, "unseen style", queries, sorted(names), "R@10")

    gallery = sorted({str(art.names[min(members[concept])]) for concept in unseen})
    queries = [i for i in concept_test if str(art.names[i]) in set(gallery)]
    _add(result, art, trained_pixels, "unseen concept", queries, gallery, None)
    return result


def _add(
    result: EmojiSplit,
    art: EmojiArt,
    trained_pixels: set[bytes],
    name: str,
    queries: list[int],
    gallery: list[str],
    headline: str | None,
    tones: bool = False,
) -> None:
    """Append the test over those of ``queries`` that are fair."""
    captions = defaultdict(set)
    pixels = {}
    for index in queries:
        pixels[index] = art.images[index].numpy().tobytes()
        captions[pixels[index]].add(str(art.names[index]))
    fair = []
    for index in queries:
        if pixels[index] in trained_pixels:
            result.dropped[f"{name}: same pixels in training"] += 1
        elif len(captions[pixels[index]]) > 1:
            result.dropped[f"{name}: same pixels under two captions"] += 1
        else:
            fair.append(index)

    position = {caption: i for i, caption in enumerate(gallery)}
    target = torch.tensor([position[str(art.names[i])] for i in fair])
    groups = None
    if tones:  # the gallery lists the tones of a base one after another
        groups = (target // len(TONES) * len(TONES))[:, None] + torch.arange(len(TONES))
    test = HeldOut(
        name,
        art.images[fair],
        gallery,
        target,
        groups,
        "tone of five" if tones else "",
        headline,
        portraits=lambda rows, side: art.portraits([fair[row] for row in rows], side),
    )
    result.tests.append(test)
    result.queries.append(torch.tensor(fair))


def _pixels(art: EmojiArt, indices: list[int]) -> set[bytes]:
    """Return the pixels of those pictures, and of their mirror images where training may show them."""
    seen = set()
    for index in indices:
        picture = art.images[index].numpy()
        seen.add(picture.tobytes())
        if art.names[index].may_flip:
            seen.add(np.ascontiguousarray(picture[:, :, ::-1]).tobytes())
    return seen
