"""Classify a folder of pictures by the names of its classes while the model is trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fastclip.space import ClassFolder, read_class_names, read_templates, zero_shot_classifier
from fastclip.train.config import ConfigError, RunConfig
from fastclip.train.distributed import World
from fastclip.train.evaluate import Result, encode


@dataclass(frozen=True)
class Classes:
    """What `--zeroshot-data` and the flags beside it name: pictures by class, and the sentences for the names."""

    folder: ClassFolder
    templates: tuple[str, ...]


def open_classes(run: RunConfig, image_size: int) -> Classes | None:
    """Open `--zeroshot-data`: a folder with a folder of pictures for every class.

    Raises:
        ConfigError: there is no such folder, it has fewer than two classes with pictures, or names or templates cannot
            be used.
    """
    if run.zeroshot_data is None:
        return None
    flag = "--zeroshot-templates"
    try:
        templates = read_templates(run.zeroshot_templates)
        flag = "--zeroshot-classnames"
        names = None if run.zeroshot_classnames is None else read_class_names(run.zeroshot_classnames)
        flag = "--zeroshot-data"
        return Classes(ClassFolder(run.zeroshot_data, image_size, names=names), templates)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{flag}: {error}") from error


@torch.no_grad()
def classify(
    classes: Classes,
    encode_images: Callable[[Tensor], Tensor],
    encode_texts: Callable[[list[str]], Tensor],
    *,
    batch_size: int = 256,
    world: World | None = None,
) -> Result:
    """Measure how often the right class is the nearest, or among the five nearest.

    Args:
        classes: pictures, names and templates.
        encode_images: uint8 (b, 3, S, S) -> features (b, D).
        encode_texts: b texts -> features (b, D).
        batch_size: pictures or texts encoded at a time.
        world: the ranks that share the work; every one of them must call this, and has the result.

    Returns:
        Metrics "top1" and "top5", with their chance levels.
    """
    world = World() if world is None else world
    names = classes.folder.names
    classifier = zero_shot_classifier(
        lambda texts: encode(encode_texts, texts, batch_size, world), names, classes.templates
    )
    found = classifier.evaluate_batches(None, _features(classes.folder, encode_images, batch_size, world))
    shares = {"top1": found.top1, "top5": found.top5}
    chance = {"top1": found.chance1, "top5": found.chance5}
    return Result("zero-shot classes", "top1", "", found.pictures, len(names), shares, chance, "classes")


def _features(
    folder: ClassFolder, encode_images: Callable[[Tensor], Tensor], batch_size: int, world: World
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield features (n, D) and classes (n,) of all pictures that can be read, the same on every rank.

    Ranks take batches in turns, all of them as many and as large, as in `encode`. Black pictures stand in for what is
    missing or cannot be read, and are left out again.
    """
    batch_size = min(batch_size, -(-len(folder) // world.size))
    own = folder.batches(batch_size, rank=world.rank, ranks=world.size)
    side = folder.pictures.image_size
    for _ in range(0, len(folder), batch_size * world.size):
        images = torch.zeros(batch_size, 3, side, side, dtype=torch.uint8)
        labels = torch.full((batch_size,), -1)
        if (found := next(own, None)) is not None:
            pictures, their_labels = found
            images[: len(pictures)], labels[: len(pictures)] = pictures, their_labels
        features = torch.cat(world.gather_rows(encode_images(images)))
        everyones = torch.cat(world.gather_rows(labels))
        known = everyones >= 0
        yield features[known.to(features.device)], everyones[known]
