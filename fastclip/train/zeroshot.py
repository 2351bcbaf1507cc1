"""Classify a folder of pictures by the names of its classes while the model is trained."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastclip.space import TEMPLATES, ClassFolder, zero_shot_classifier
from fastclip.train.config import ConfigError
from fastclip.train.evaluate import Result


def open_classes(path: str | None, image_size: int) -> ClassFolder | None:
    """Open `--zeroshot-data`: a folder with a folder of pictures for every class, named by it.

    Raises:
        ConfigError: there is no such folder, or it has fewer than two classes with pictures.
    """
    if path is None:
        return None
    try:
        return ClassFolder(path, image_size)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--zeroshot-data: {error}") from error


@torch.no_grad()
def classify(
    classes: ClassFolder,
    encode_images: Callable[[Tensor], Tensor],
    encode_texts: Callable[[list[str]], Tensor],
    batch_size: int = 256,
) -> Result:
    """Measure how often the right class is the nearest, or among the five nearest.

    Args:
        classes: names and pictures.
        encode_images: uint8 (b, 3, S, S) -> features (b, D).
        encode_texts: b texts -> features (b, D).
        batch_size: pictures encoded at a time.

    Returns:
        Metrics "top1" and "top5", with their chance levels.
    """
    classifier = zero_shot_classifier(encode_texts, classes.names, TEMPLATES["general"])
    found = classifier.evaluate_batches(encode_images, classes.batches(batch_size))
    shares = {"top1": found.top1, "top5": found.top5}
    chance = {"top1": found.chance1, "top5": found.chance5}
    return Result(
        "zero-shot classes", "top1", "", found.pictures, len(classes.names), shares, chance, "classes"
    )
