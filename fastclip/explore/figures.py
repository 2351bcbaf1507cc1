"""Measure a space in numbers, each beside chance and beside a control: the same measurement on shuffled pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastclip.explore.gallery import Gallery
from fastclip.space import alignment, interpolate, modality_gap, nearest, uniformity, zero_shot_classifier
from fastclip.train.evaluate import Embedded, measure


@dataclass(frozen=True)
class Figure:
    """One number; a share in [0, 1] unless `share` is false."""

    section: str
    name: str
    value: float
    chance: float | None = None  #: what guessing reaches; None: no such level is known
    control: float | None = (
        None  #: the same measurement with the pictures' features dealt out anew, at random
    )
    baseline: float | None = None  #: the same without the step that is being measured
    share: bool = True
    note: str = ""
    headline: str = ""  #: what the share is of, where it stands on top of the page; "" keeps it in the table

    def text(self, value: float) -> str:
        """Write one of the values for people: a percentage that does not break over lines, or a plain number."""
        if not self.share:
            return f"{value:.3f}"
        if 0 < value < 0.00001:
            return "< 0.001\N{NO-BREAK SPACE}%"
        return (
            f"{100 * value:.3f}\N{NO-BREAK SPACE}%"
            if 0 < value < 0.001
            else f"{100 * value:.1f}\N{NO-BREAK SPACE}%"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return dataclasses.asdict(self)


def with_control(
    gallery: Gallery, measurements: Sequence[Callable[[Gallery], list[Figure]]], *, seed: int = 0
) -> list[Figure]:
    """Measure a gallery, and again with its features shuffled among the pictures: what stands there is chance."""
    order = torch.randperm(len(gallery), generator=torch.Generator().manual_seed(seed))
    shuffled = dataclasses.replace(gallery, images=gallery.images[order])
    return [
        dataclasses.replace(real, control=by_chance.value)
        for measurement in measurements
        for real, by_chance in zip(measurement(gallery), measurement(shuffled), strict=True)
    ]


def retrieval_figures(gallery: Gallery) -> list[Figure]:
    """Measure every held-out test: its headline figure, and the forced choice where it has one."""
    figures = []
    for each in gallery.tests:
        result = measure(Embedded(each.test, gallery.images[each.places], each.texts))
        recall = result.headline if result.headline and result.headline.startswith("R@") else "R@1"
        what = f"{result.pictures:,} pictures, {result.captions:,} captions"
        name = f"{result.name}: own caption {_among(recall)} ({what})"
        key = f"image_to_text_{recall}"
        said = f"of unseen pictures: their own caption {_among(recall)} of {result.captions:,}"
        figures.append(Figure("retrieval", name, result.metrics[key], result.chance[key], headline=said))
        if "choice" in result.metrics:
            name = f"{result.name}: chosen rightly ({result.group_name})"
            figures.append(Figure("retrieval", name, result.metrics["choice"], result.chance["choice"]))
    return figures


def zero_shot_figures(
    gallery: Gallery, templates: Sequence[str], *, most_classes: int = 1000
) -> list[Figure]:
    """Classify a test's pictures by its captions as class names, through templates and without."""
    figures = []
    for each in gallery.tests:
        test = each.test
        if test.headline is None or test.groups is not None or test.text_labels is not None:
            continue  # captions that are no names of classes
        if not 2 <= len(test.gallery) <= most_classes:
            continue
        classifier, bare = (
            zero_shot_classifier(lambda texts: gallery.encode_texts(texts), test.gallery, chosen)
            for chosen in (templates, ("{}",))
        )
        images = gallery.images[each.places]
        result, baseline = classifier.evaluate(images, test.target), bare.evaluate(images, test.target)
        what = f"{test.name}: {result.pictures:,} pictures, {len(test.gallery):,} classes, {len(templates)} templates"
        note = "baseline: the bare name in place of the templates"
        figures += [
            Figure(
                "zero-shot",
                f"{what}, top-1",
                result.top1,
                result.chance1,
                baseline=baseline.top1,
                note=note,
                headline=f"of unseen pictures: the right name of {len(test.gallery):,}, by names alone",
            ),
            Figure(
                "zero-shot", f"{what}, top-5", result.top5, result.chance5, baseline=baseline.top5, note=note
            ),
        ]
    return figures


def middle_figures(gallery: Gallery, *, pairs: int = 1000, seed: int = 0) -> list[Figure]:
    """Go half the way between two unseen pictures and see whether the captions nearest there are those of the two."""
    figures = []
    for each in gallery.tests[:1]:
        test, images = each.test, gallery.images[each.places]
        captions = len(each.texts)
        pair = torch.randint(len(test), (2, pairs), generator=torch.Generator().manual_seed(seed))
        first, second = test.target[pair[0]], test.target[pair[1]]
        pair, first, second = pair[:, first != second], first[first != second], second[first != second]
        if not pair.shape[1] or captions < 10:
            continue
        middle = interpolate(images[pair[0]], images[pair[1]], 0.5)
        for k in (2, 10):
            found = nearest(middle, each.texts, k)[1]
            both = _contains(found, first) & _contains(found, second)
            where = "the two nearest" if k == 2 else f"among the nearest {k}"
            figures.append(
                Figure(
                    "interpolation",
                    f"half-way between two pictures ({test.name}): both their captions are {where} of {captions:,}",
                    both.float().mean().item(),
                    k * (k - 1) / (captions * (captions - 1)),
                    headline=f"of half-way points between two pictures: both captions {where} of {captions:,}",
                )
            )
    return figures


def geometry_figures(gallery: Gallery) -> list[Figure]:
    """Measure alignment, uniformity and the gap between pictures and texts."""
    figures = []
    for each in gallery.tests[:1]:
        images, texts = gallery.images[each.places], each.texts
        where = each.test.name
        figures += [
            Figure("geometry", f"alignment of pairs ({where}), lower is better; control: strangers",
                   alignment(images, texts[each.test.target]), share=False),
            Figure("geometry", f"uniformity of pictures ({where}), lower is better", uniformity(images), share=False),
            Figure("geometry", f"uniformity of captions ({where}), lower is better", uniformity(texts), share=False),
            Figure("geometry", f"gap between pictures and captions ({where})",
                   modality_gap(images, texts[each.test.target]).distance, share=False),
        ]  # fmt: skip
    return figures


def _contains(found: Tensor, wanted: Tensor) -> Tensor:
    return (found == wanted[:, None]).any(1)


def _among(headline: str) -> str:
    k = headline.removeprefix("R@")
    return "is the nearest" if k == "1" else f"among the nearest {k}"
