"""Classify a folder of class folders by the classes' names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from fastclip.space import (
    ClassFolder,
    ZeroShotResult,
    read_class_names,
    read_templates,
    zero_shot_classifier,
)
from fastclip.space.command import (
    AveragedFlag,
    CommandError,
    DataArgument,
    ModelArgument,
    open_encoder,
    progress,
    write_json,
)
from fastclip.zeroshot.picture import draw_confusion


@dataclass(frozen=True)
class Options:
    """Classify pictures by the names of their classes alone, and count how often that is right."""

    model: ModelArgument
    """A run of fastclip.train, or any other weights that fastclip.models.load reads."""
    data: DataArgument
    """A folder with a folder of pictures for every class."""
    templates: str = "general"
    """Sentences around the class names: a set of fastclip.space.TEMPLATES, or a file with one in each line, {} for
    the name."""
    classnames: str | None = None
    """A JSON file with the readable name of every folder. Default: the folders' own names, underscores as spaces."""
    output: str = "zeroshot"
    """Folder for zeroshot.json and confusion.png."""
    batch_size: int = 256
    """Pictures encoded at a time."""
    workers: int = 2
    """Threads that read and decode pictures."""
    device: str = "auto"
    """auto, cpu, cuda, …"""
    averaged: AveragedFlag = False


def run(options: Options) -> ZeroShotResult:
    """Classify; return the result.

    Raises:
        CommandError: an option that cannot work, or no picture that can be read.
    """
    if options.batch_size < 1 or options.workers < 1:
        raise CommandError("--batch-size and --workers must be at least 1")
    templates = read_templates(options.templates)
    names = read_class_names(options.classnames) if options.classnames else None
    encoder = open_encoder(options.model, options.device, options.batch_size, averaged=options.averaged)
    folder = ClassFolder(options.data, encoder.model.config.vision.image_size, names=names)
    classifier = zero_shot_classifier(encoder.texts, folder.names, templates)
    with progress("classifying", len(folder), "picture") as done:

        def batches() -> Iterator[tuple[Tensor, Tensor]]:
            for images, labels in folder.batches(options.batch_size, workers=options.workers):
                yield images, labels
                done(len(labels))

        result = classifier.evaluate_batches(encoder.images, batches())
    output = Path(options.output)
    write_json(
        output / "zeroshot.json",
        {
            "model": options.model,
            "averaged": options.averaged,
            "data": options.data,
            "templates": list(templates),
            **result.to_dict(),
            "skipped": dict(folder.skipped_files),
        },
    )
    draw_confusion(result, output / "confusion.png")
    print(f"{result.pictures:,} pictures, {len(result.names):,} classes, {len(templates)} templates")
    print(f"  top-1  {100 * result.top1:6.2f} %   chance {100 * result.chance1:.2f} %")
    print(f"  top-5  {100 * result.top5:6.2f} %   chance {100 * result.chance5:.2f} %")
    if folder.skipped:
        said = ", ".join(f"{reason} ({count:,})" for reason, count in folder.skipped.most_common())
        print(f"  skipped: {said}")
    print(f"{output / 'zeroshot.json'}, {output / 'confusion.png'}")
    return result
