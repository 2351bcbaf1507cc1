"""Measure retrieval on held-out pairs: recalls, ranks and a forced choice, each beside its chance level."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from fastclip.data.source import HeldOut

RECALLS = (1, 5, 10)
_BLOCK = 1 << 22  # similarities held at a time: 16 MiB in fp32


@dataclass(frozen=True)
class Result:
    """Figures of one held-out test; recalls and choices are fractions in [0, 1]."""

    name: str
    headline: str | None
    group_name: str
    pictures: int
    captions: int
    metrics: dict[str, float] = field(default_factory=dict)
    chance: dict[str, float] = field(default_factory=dict)  #: for recalls and choices, by the same keys


@dataclass(frozen=True)
class Embedded:
    """A held-out test with its place in the shared space: unit-length fp32 features."""

    test: HeldOut
    images: Tensor  #: (Q, D)
    texts: Tensor  #: (G, D), of the gallery


@torch.no_grad()
def embed(
    test: HeldOut,
    encode_images: Callable[[Tensor], Tensor],
    encode_texts: Callable[[list[str]], Tensor],
    *,
    batch_size: int = 256,
) -> Embedded:
    """Encode a held-out test.

    Args:
        test: pictures, gallery of captions and which belongs to which.
        encode_images: uint8 pictures (b, 3, S, S) -> features (b, D), of any length.
        encode_texts: b captions -> features (b, D).
        batch_size: pictures or captions encoded at a time.
    """
    images = encode(encode_images, test.images, batch_size)
    texts = encode(encode_texts, test.gallery, batch_size)
    return Embedded(test, images, texts)


def encode(encoder: Callable[..., Tensor], items: Tensor | Sequence[str], batch_size: int) -> Tensor:
    """Return the unit-length fp32 features (n, D) of pictures or captions, encoded batch by batch."""
    parts = [
        F.normalize(encoder(items[start : start + batch_size]).float(), dim=1)
        for start in range(0, len(items), batch_size)
    ]
    return torch.cat(parts)


def measure(embedded: Embedded) -> Result:
    """Measure retrieval both ways.

    Image to text: where the picture's own caption stands among all. Text to image: for every caption that has
    pictures, where the best of them stands among the pictures of other captions. Forced choice: whether the
    right caption of a group scores strictly highest. Equal scores count against the model, as does NaN: a
    model that maps everything to one point scores zero, not a hundred percent.
    """
    test, images, texts = embedded.test, embedded.images, embedded.texts
    target = test.target.to(images.device)
    pictures, captions = len(images), len(texts)
    result = Result(test.name, test.headline, test.group_name, pictures, captions)

    ranks = image_to_text_ranks(images, texts, target)
    _recalls(result, "image_to_text", ranks, [min(1.0, k / captions) for k in RECALLS])

    counts = target.bincount(minlength=captions)
    asked = counts.nonzero().squeeze(1)
    ranks = text_to_image_ranks(images, texts, target, asked)
    chance = [_chance_of_any(counts[asked], pictures, k) for k in RECALLS]
    _recalls(result, "text_to_image", ranks, chance)

    if test.groups is not None:
        _forced_choice(result, images, texts, target, test.groups.to(images.device))
    return result


def image_to_text_ranks(images: Tensor, texts: Tensor, target: Tensor) -> Tensor:
    """Return the rank (1 is best) of caption target[i] for picture i among all captions, int64 (Q,).

    Walks blocks of pictures, so the Q x G similarities are never held at once.
    """
    ranks = []
    for rows in torch.arange(len(images), device=images.device).split(max(1, _BLOCK // len(texts))):
        z = images[rows] @ texts.T
        own = z.gather(1, target[rows, None])
        ranks.append(len(texts) - (z < own).sum(1))
    return torch.cat(ranks)


def text_to_image_ranks(images: Tensor, texts: Tensor, target: Tensor, asked: Tensor) -> Tensor:
    """Return the rank of each asked caption's best own picture among it and the others', int64 (A,)."""
    ranks = []
    for columns in asked.split(max(1, _BLOCK // len(images))):
        z = texts[columns] @ images.T
        own = target == columns[:, None]
        best = z.masked_fill(~own, -math.inf).amax(1, keepdim=True)
        ranks.append(1 + (~own).sum(1) - ((z < best) & ~own).sum(1))
    return torch.cat(ranks)


def _recalls(result: Result, direction: str, ranks: Tensor, chance: list[float]) -> None:
    for k, by_chance in zip(RECALLS, chance, strict=True):
        result.metrics[f"{direction}_R@{k}"] = (ranks <= k).double().mean().item()
        result.chance[f"{direction}_R@{k}"] = by_chance
    result.metrics[f"{direction}_mean_rank"] = ranks.double().mean().item()
    result.metrics[f"{direction}_median_rank"] = ranks.double().median().item()


def _chance_of_any(counts: Tensor, total: int, k: int) -> float:
    """Return the mean probability that k pictures drawn from `total` include one of the `counts[i]` right."""
    missed = torch.ones_like(counts, dtype=torch.float64)
    for drawn in range(min(k, total)):
        missed *= ((total - counts - drawn) / (total - drawn)).clamp_min(0)
    return (1 - missed).mean().item()


def _forced_choice(result: Result, images: Tensor, texts: Tensor, target: Tensor, groups: Tensor) -> None:
    """Add the choice within each picture's group, and how often the best of all captions is of the group."""
    size = groups.shape[1]
    right_choice = right_group = 0
    for rows in torch.arange(len(images), device=images.device).split(max(1, _BLOCK // len(texts))):
        z = images[rows] @ texts.T
        inside = z.gather(1, groups[rows])
        own = z.gather(1, target[rows, None])
        right_choice += int(((inside < own).sum(1) == size - 1).sum())
        # Best of the group strictly above every caption outside it.
        outside = z.scatter(1, groups[rows], -math.inf)
        right_group += int((outside < inside.amax(1, keepdim=True)).all(1).sum())
    result.metrics["choice"] = right_choice / len(images)
    result.metrics["group_R@1"] = right_group / len(images)
    result.chance["choice"] = 1 / size
    result.chance["group_R@1"] = size / len(texts)
