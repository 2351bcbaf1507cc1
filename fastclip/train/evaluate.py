"""Measure retrieval on held-out pairs: recalls, ranks and a forced choice, each beside its chance level."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

import fastclip
from fastclip.data.source import HeldOut
from fastclip.retrieval import retrieval_ranks
from fastclip.train.distributed import World

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
    answers: str = "captions"  #: what there is to choose from


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
    encode_texts: Callable[..., Tensor],
    *,
    batch_size: int = 256,
    world: World | None = None,
) -> Embedded:
    """Encode a held-out test.

    Args:
        test: pictures, gallery of captions and which belongs to which.
        encode_images: uint8 pictures (b, 3, S, S), or precomputed features (b, F) -> features (b, D).
        encode_texts: b captions, or precomputed features of theirs (b, F) -> features (b, D).
        batch_size: pictures or captions encoded at a time.
        world: the ranks that share the work; every one of them must call this, and has the result.
    """
    world = World() if world is None else world
    images = encode(encode_images, test.images, batch_size, world)
    captions = test.gallery if test.gallery_features is None else test.gallery_features
    texts = encode(encode_texts, captions, batch_size, world)
    return Embedded(test, images, texts)


def encode(
    encoder: Callable[..., Tensor], items: Tensor | Sequence[str], batch_size: int, world: World | None = None
) -> Tensor:
    """Return the unit-length fp32 features (n, D) of pictures or captions, encoded batch by batch.

    Ranks take batches in turns, all of them as many and as large: with sharded weights, encoding is something they do
    together. What is missing from the last ones is filled up with the last item, and cut off again.
    """
    if world is None or world.size == 1:
        starts = range(0, len(items), batch_size)
        return torch.cat([_unit(encoder(items[start : start + batch_size])) for start in starts])
    batch_size = min(batch_size, -(-len(items) // world.size))
    parts: list[Tensor] = []
    for turn in range(0, len(items), batch_size * world.size):
        start = turn + batch_size * world.rank
        own = [min(place, len(items) - 1) for place in range(start, start + batch_size)]
        chosen = items[own] if isinstance(items, Tensor) else [items[place] for place in own]
        parts += world.gather_rows(_unit(encoder(chosen)))
    return torch.cat(parts)[: len(items)]


def _unit(features: Tensor) -> Tensor:
    return F.normalize(features.float(), dim=1)


def measure(embedded: Embedded) -> Result:
    """Measure retrieval both ways.

    Image to text: where the best of the picture's own captions stands among all others. Text to image: for every
    caption that has pictures, where the best of them stands among the pictures of other captions. Forced choice:
    whether the right caption of a group scores strictly highest. Equal scores count against the model, as does NaN:
    a model that maps everything to one point scores zero, not a hundred percent. The ranks are exact and come from
    blocks of similarities, so that 100,000 pictures take no more memory than their features.
    """
    test, images, texts = embedded.test, embedded.images, embedded.texts
    image_labels, text_labels = labels_of(test)
    result = Result(test.name, test.headline, test.group_name, len(images), len(texts))
    ranks = retrieval_ranks(images, texts, (image_labels.to(images.device), text_labels.to(images.device)))
    result.metrics.update(ranks.metrics(RECALLS))
    for direction, asking, answering in (
        ("image_to_text", image_labels, text_labels),
        ("text_to_image", text_labels, image_labels),
    ):
        right = _right_answers(asking, answering)
        for k in RECALLS:
            result.chance[f"{direction}_R@{k}"] = _chance_of_any(right[right > 0], len(answering), k)
    if test.groups is not None:
        target = test.target.to(images.device)
        _forced_choice(result, images, texts, target, test.groups.to(images.device))
    return result


def validation_loss(embedded: Embedded, scale: float, batch_size: int) -> float:
    """Return open_clip's `clip_val_loss`, nats: the softmax loss among `batch_size` pairs at a time, their mean.

    A pair is a picture and its caption; equal captions are not each other's negatives.
    """
    target = embedded.test.target.to(embedded.images.device)
    labels = labels_of(embedded.test)[0].to(target.device)
    total = 0.0
    for rows in torch.arange(len(target), device=target.device).split(batch_size):
        texts = embedded.texts[target[rows]]
        loss = fastclip.clip_loss(embedded.images[rows], texts, scale, labels=labels[rows])
        total += loss.item() * len(rows)
    return total / len(target)


def labels_of(test: HeldOut) -> tuple[Tensor, Tensor]:
    """Return the labels of a test's pictures (Q,) and captions (G,): equal ones belong together."""
    if test.image_labels is not None and test.text_labels is not None:
        return test.image_labels, test.text_labels
    return test.target, torch.arange(len(test.gallery))


def _right_answers(asking: Tensor, answering: Tensor) -> Tensor:
    """Return how many of `answering` have the label of each of `asking`, int64."""
    labels, counts = answering.unique(return_counts=True)
    place = torch.searchsorted(labels, asking).clamp_max(len(labels) - 1)
    return torch.where(labels[place] == asking, counts[place], 0)


def _chance_of_any(right: Tensor, total: int, k: int) -> float:
    """Return the mean probability that k answers drawn from `total` include one of the `right[i]` right ones."""
    missed = torch.ones_like(right, dtype=torch.float64)
    for drawn in range(min(k, total)):
        missed *= ((total - right.double() - drawn) / (total - drawn)).clamp_min(0)
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
