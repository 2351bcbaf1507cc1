"""Measure a space with emoji: composition, interpolation and structure, where names say what is right."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from fastclip.data.emoji_art import STYLES
from fastclip.data.emoji_names import TONES
from fastclip.explore.emoji import EmojiGallery, tone_edits
from fastclip.explore.figures import Figure
from fastclip.explore.gallery import Gallery
from fastclip.space import (
    attribute_direction,
    cluster_report,
    compose,
    interpolate,
    linear_probe,
    nearest,
)


def emoji_figures(gallery: Gallery) -> list[Figure]:
    """Measure composition, interpolation and structure; for `with_control`."""
    if not isinstance(gallery, EmojiGallery):
        raise TypeError(f"gallery must be an EmojiGallery, got {type(gallery).__name__}")
    return [*composition_figures(gallery), *interpolation_figures(gallery), *structure_figures(gallery)]


def composition_figures(gallery: EmojiGallery) -> list[Figure]:
    """Measure whether the nearest neighbour of "a − b + c" has what it should have."""
    source, target = tone_edits(gallery)
    before, after = (
        torch.stack([gallery.texts[gallery.captions[place]] for place in places.tolist()])
        for places in (source, target)
    )
    images = gallery.images
    edited = compose([images[source], after], [before])
    nearest_edited, nearest_plain = (
        nearest(query, images, 1, exclude=source)[1][:, 0] for query in (edited, images[source])
    )
    base, tone = _codes([name.base for name in gallery.names]), _codes([name.tones for name in gallery.names])
    whole = base * (int(tone.max()) + 1) + tone

    figures = []
    note = "baseline: the picture's own nearest neighbour, nothing added or taken away"
    for label, code in (("base and tone", whole), ("base", base), ("tone", tone)):
        figures.append(
            Figure(
                "composition",
                f"picture − its caption + caption in a tone never seen on it ({len(source):,} sums): "
                f"the nearest of {len(gallery) - 1:,} pictures has the right {label}",
                _agree(code, nearest_edited, target),
                _chance(code, target),
                baseline=_agree(code, nearest_plain, target),
                note=note,
                headline=f"of sums “picture − caption + another caption”: the nearest has the {label} asked for",
            )
        )

    pairs = sorted(
        {
            (gallery.names[i].base, gallery.names[i].tones[0], int(whole[i]))
            for i in gallery.compositions.tolist()
        }
    )
    bases = gallery.encode_texts([name for name, _, _ in pairs])
    tones = gallery.encode_texts([f"{TONES[number]} skin tone" for _, number, _ in pairs])
    wanted = torch.tensor([code for _, _, code in pairs])
    summed, alone = (whole[nearest(query, images, 1)[1][:, 0]] for query in (compose([bases, tones]), bases))
    figures.append(
        Figure(
            "composition",
            f"name + “dark skin tone”, two texts added ({len(pairs):,} sums never seen as pictures): "
            f"the nearest of {len(gallery):,} pictures has both",
            (summed == wanted).float().mean().item(),
            _chance_of(whole, wanted),
            baseline=(alone == wanted).float().mean().item(),
            note="baseline: the name alone",
        )
    )
    return [*figures, *_style_figures(gallery)]


def _style_figures(gallery: EmojiGallery) -> list[Figure]:
    """Measure whether the direction between the two art styles leads to a picture's version never seen."""
    images, styles = gallery.images, gallery.styles
    seen = ~gallery.unseen
    twins: dict[str, list[list[int]]] = defaultdict(lambda: [[] for _ in STYLES])
    for place in seen.nonzero()[:, 0].tolist():
        twins[gallery.captions[place]][int(styles[place])].append(place)
    both = [(first[0], second[0]) for first, second in twins.values() if first and second]
    sources, targets = [], []
    for place in gallery.restyled.tolist():
        for twin in twins[gallery.captions[place]][1 - int(styles[place])]:
            sources.append(twin)
            targets.append(place)
    if not both or not sources:
        return []
    first, second = torch.tensor(both).T
    direction = attribute_direction(images[second], images[first])
    source, target = torch.tensor(sources), torch.tensor(targets)
    towards = torch.where(styles[source] == 0, 1.0, -1.0)
    moved = images[source].clone()
    for sign in (1.0, -1.0):
        rows = towards == sign
        moved[rows] = direction.add(images[source][rows], sign)
    code = _codes(
        [(caption, style) for caption, style in zip(gallery.captions, styles.tolist(), strict=True)]
    )
    edited, plain = (nearest(query, images, 1, exclude=source)[1][:, 0] for query in (moved, images[source]))
    return [
        Figure(
            "composition",
            f"picture + direction from one art style to the other ({len(sources):,} sums): the nearest of "
            f"{len(gallery) - 1:,} pictures is its version in the style never seen",
            _agree(code, edited, target),
            _chance(code, target),
            baseline=_agree(code, plain, target),
            note="baseline: the picture's own nearest neighbour",
        )
    ]


def interpolation_figures(gallery: EmojiGallery, *, pairs: int = 1000, seed: int = 0) -> list[Figure]:
    """Measure whether the middle between two pictures has what both have, and the tone between their tones."""
    names, test = gallery.names, gallery.compositions
    first, second = test[
        torch.randint(len(test), (2, 20 * pairs), generator=torch.Generator().manual_seed(seed))
    ]
    tone, base = _codes([name.tones for name in names]), _codes([name.base for name in names])
    shared = (tone[first] == tone[second]) & (base[first] != base[second])
    source, target = tone_edits(gallery)
    figures = []
    for what, ends, code, one, other in (
        ("tone", "unseen pictures of one tone, two bases: the nearest", tone, first[shared], second[shared]),
        (
            "base",
            "pictures of one base, two tones, one of them unseen on it: the nearest",
            base,
            source,
            target,
        ),
    ):
        one, other = one[:pairs], other[:pairs]
        if not len(one):
            continue
        middle = interpolate(gallery.images[one], gallery.images[other], 0.5)
        found = nearest(middle, gallery.images, 3)[1]
        own = (found == one[:, None]) | (found == other[:, None])
        best = found.gather(1, (~own).int().argmax(1, keepdim=True))[:, 0]
        figures.append(
            Figure(
                "interpolation",
                f"half-way between two {ends} of the {len(gallery) - 2:,} others has that {what}",
                (code[best] == code[one]).float().mean().item(),
                _chance(code, one),
                headline=f"of half-way points between two pictures of one {what}: the nearest has it too",
            )
        )
    return [*figures, *_middle_tone(gallery)]


def _middle_tone(gallery: EmojiGallery) -> list[Figure]:
    drawn: dict[tuple[str, int], dict[int, int]] = defaultdict(dict)
    for place, name in enumerate(gallery.names):
        if len(name.tones) == 1:
            drawn[name.base, int(gallery.styles[place])][name.tones[0]] = place
    rows = torch.tensor([[tones[t] for t in range(5)] for tones in drawn.values() if len(tones) == 5])
    if not len(rows):
        return []
    images = gallery.images[rows]  # (R, 5, D)
    middle = interpolate(images[:, 0], images[:, 4], 0.5)
    between = (images[:, 1:4] @ middle[..., None])[..., 0].argmax(1)
    return [
        Figure(
            "interpolation",
            f"half-way from light to dark skin ({len(rows):,} pairs of pictures): of the three tones between, "
            "the medium one is nearest",
            (between == 1).float().mean().item(),
            1 / 3,
            note="around chance, tones are kinds of their own to the model, and not in a row",
        )
    ]


def structure_figures(gallery: EmojiGallery) -> list[Figure]:
    """Measure what a linear layer reads off unseen pictures, and what their neighbours share with them."""
    seen, styles, images = ~gallery.unseen, gallery.styles, gallery.images
    toned = torch.tensor([len(name.tones) == 1 for name in gallery.names])
    tone = torch.tensor([name.tones[0] if len(name.tones) == 1 else 0 for name in gallery.names])
    base = _codes([name.base for name in gallery.names])
    test = gallery.compositions
    figures = []
    for label, codes in (("tone of five", tone), ("art style of two", styles)):
        rows = (seen & toned).nonzero()[:, 0]
        probe = linear_probe(images[rows], codes[rows], l2=1e-5)
        most = codes[test].bincount().max().item() / len(test)
        figures.append(
            Figure("structure", f"linear probe on unseen compositions: {label}",
                   probe.accuracy(images[test], codes[test]), most,
                   headline=f"of unseen compositions: a linear layer reads off the {label}")
        )  # fmt: skip
    for label, codes in (("tone", tone), ("base", base), ("art style", styles)):
        report = cluster_report(images[test], codes[test], k=1)
        figures.append(
            Figure("structure", f"an unseen composition and its nearest other one share their {label}",
                   report.purity, report.purity_chance)
        )  # fmt: skip
    return figures


def _codes(values: Sequence[object]) -> Tensor:
    """Return a number for every value, int64 (N,); equal values have equal numbers."""
    numbers: dict[object, int] = {}
    return torch.tensor([numbers.setdefault(value, len(numbers)) for value in values])


def _agree(code: Tensor, found: Tensor, wanted: Tensor) -> float:
    return (code[found] == code[wanted]).float().mean().item()


def _chance(code: Tensor, wanted: Tensor) -> float:
    """Return how often a picture drawn at random has what the wanted ones have."""
    return _chance_of(code, code[wanted])


def _chance_of(code: Tensor, wanted: Tensor) -> float:
    return (code.bincount()[wanted] / len(code)).mean().item()
