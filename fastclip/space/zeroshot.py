"""Classify pictures by the names of classes alone: no picture of a class is needed, only words for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastclip.space.checks import check_labels, check_points, check_same_width, row_blocks, unit
from fastclip.space.templates import TEMPLATES, check_templates


@dataclass(frozen=True)
class ZeroShotResult:
    """How often the right class was found; shares in [0, 1]."""

    names: tuple[str, ...]
    confusion: Tensor  #: int64 (C, C): pictures of class [row] that were taken for class [column]
    top1: float
    top5: float
    chance1: float
    chance5: float

    @property
    def pictures(self) -> int:
        """The number of pictures classified."""
        return int(self.confusion.sum())

    @property
    def per_class(self) -> Tensor:
        """Share of every class's pictures that were recognised, (C,); NaN where there is none."""
        return self.confusion.diagonal() / self.confusion.sum(1)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        shares = self.per_class.tolist()
        counts = self.confusion.sum(1).tolist()
        return {
            "pictures": self.pictures,
            "classes": len(self.names),
            "top1": self.top1,
            "top5": self.top5,
            "chance1": self.chance1,
            "chance5": self.chance5,
            "mean_per_class": float(self.per_class.nanmean()),
            "per_class": {
                name: {"pictures": count, "top1": share if count else None}
                for name, count, share in zip(self.names, counts, shares, strict=True)
            },
            "confusion": self.confusion.tolist(),
        }


@dataclass(frozen=True)
class ZeroShotClassifier:
    """One unit vector a class; a picture belongs to the class whose vector is nearest."""

    names: tuple[str, ...]
    weights: Tensor  #: (C, D)

    def __call__(self, image_features: Tensor) -> Tensor:
        """Return the cosines (N, C) of image_features (N, D) with every class."""
        check_points("image_features", image_features)
        check_same_width(("weights", "image_features"), self.weights, image_features)
        return unit(image_features).to(self.weights.dtype) @ self.weights.T

    def predict(self, image_features: Tensor, k: int = 1) -> Tensor:
        """Return the k nearest classes of each picture, int64 (N, k), nearest first."""
        if not 1 <= k <= len(self.names):
            raise ValueError(f"k must lie between 1 and the number of classes, {len(self.names)}, got {k}")
        blocks = row_blocks(len(image_features), len(self.names))
        return torch.cat([self(image_features[rows]).topk(k, dim=1).indices for rows in blocks])

    def evaluate(self, image_features: Tensor, labels: Tensor) -> ZeroShotResult:
        """Classify image_features (N, D) whose classes, integers (N,), are known.

        Equal similarities count against the model, and so does NaN: one that maps everything to a point scores zero.
        """
        check_points("image_features", image_features)
        return self.evaluate_batches(None, [(image_features, labels)])

    def evaluate_batches(
        self,
        encode_images: Callable[[Tensor], Tensor] | None,
        batches: Iterable[tuple[Tensor, Tensor]],
    ) -> ZeroShotResult:
        """Classify batch by batch.

        Args:
            encode_images: pictures (b, 3, S, S), as the batches hold them -> features (b, D); None: they hold features.
            batches: (pictures, labels (b,)), as `ClassFolder.batches` gives.

        Raises:
            ValueError: no picture at all, or a label outside [0, C).
        """
        classes = len(self.names)
        confusion = torch.zeros(classes, classes, dtype=torch.int64)
        first = fifth = 0
        for pictures, labels in batches:
            features = pictures if encode_images is None else encode_images(pictures)
            label = check_labels("labels", labels, features)
            if len(label) and not 0 <= int(label.min()) <= int(label.max()) < classes:
                raise ValueError(
                    f"labels must lie in [0, {classes}), got {int(label.min())} to {int(label.max())}"
                )
            for rows in row_blocks(len(features), classes):
                z, own = self(features[rows]), label[rows][:, None]
                right = z.gather(1, own)
                rank = classes - (z < right).sum(1)
                first, fifth = first + int((rank <= 1).sum()), fifth + int((rank <= 5).sum())
                # A tie is an error; it is booked under the other class.
                pushed = torch.where(rank[:, None] == 1, torch.inf, -torch.inf).to(z.dtype)
                taken = z.scatter(1, own, pushed).argmax(1)
                pair = (own[:, 0] * classes + taken).cpu()
                confusion += pair.bincount(minlength=classes**2).view(classes, classes)
        total = int(confusion.sum())
        if not total:
            raise ValueError("no picture to classify")
        return ZeroShotResult(
            self.names, confusion, first / total, fifth / total, 1 / classes, min(1.0, 5 / classes)
        )


@torch.no_grad()
def zero_shot_classifier(
    encode_texts: Callable[[list[str]], Tensor],
    names: Sequence[str],
    templates: Sequence[str] = TEMPLATES["general"],
    *,
    batch_size: int = 1024,
) -> ZeroShotClassifier:
    """Make a classifier of class names: ``w_c = unit(mean_t unit(encode(t.format(name_c))))``.

    Args:
        encode_texts: b texts -> features (b, D), of any length.
        names: C class names, all different, at least two.
        templates: sentences with {} where the name goes; `TEMPLATES` has sets of them.
        batch_size: texts encoded at a time.

    Raises:
        TypeError, ValueError: fewer than two names, two alike, or a template without a place for the name.
    """
    templates = check_templates(templates)
    if isinstance(names, str) or len(names) < 2:
        raise ValueError(f"names must be at least two class names, got {names!r}")
    if len(set(names)) < len(names):
        double = next(name for i, name in enumerate(names) if name in names[:i])
        raise ValueError(f'names must all be different; "{double}" stands there twice')
    texts = [template.replace("{}", name) for name in names for template in templates]
    parts = [unit(encode_texts(texts[i : i + batch_size])) for i in range(0, len(texts), batch_size)]
    prompts = torch.cat(parts).view(len(names), len(templates), -1)
    return ZeroShotClassifier(tuple(names), unit(prompts.mean(1)))
