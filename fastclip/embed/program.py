"""Embed pictures and captions batch by batch into a folder that search tools read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from fastclip.data import PairSource, open_source
from fastclip.data.opening import DatasetType
from fastclip.space import Encoder, PictureFiles, list_pictures
from fastclip.space.command import (
    AveragedFlag,
    CommandError,
    DataArgument,
    ModelArgument,
    OutputArgument,
    open_model,
    progress,
)
from fastclip.space.embeddings import EmbeddingWriter, Plan, fingerprint

_PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_CHUNK = 32  # pairs a thread reads at a time


@dataclass(frozen=True)
class Options:
    """Embed a data set: unit-length vectors of its pictures and captions, in clip-retrieval's layout.

    A run that is interrupted goes on where it stopped when the same command is given again. Pictures that cannot be
    read are left out, counted, and listed in skipped.txt.
    """

    model: ModelArgument
    """A run of fastclip.train, or any other weights that fastclip.models.load reads."""
    data: DataArgument
    """A folder of pictures, a .csv or .tsv table, .parquet files, .tar shards, …; as `--train-data`."""
    output: OutputArgument
    """The folder to write."""
    dataset_type: DatasetType = "auto"
    """What lies at the data's place; auto finds out."""
    image_key: str | None = None
    """Column of a table that holds the pictures or their paths. Default: detected."""
    caption_key: str | None = None
    """Key or column of the captions. Default: detected."""
    csv_separator: str | None = None
    """Separator of a table's columns. Default: detected."""
    captions: bool = True
    """Embed captions too. `--no-captions` takes every picture of a folder, captioned or not."""
    batch_size: int = 256
    """Pairs encoded at a time."""
    workers: int = 4
    """Threads that read and decode pictures."""
    rows_per_part: int = 20_000
    """Pairs in a file; also what is done again after an interruption, at most."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Arithmetic of the encoders."""
    dtype: Literal["float16", "float32"] = "float16"
    """Numbers of the files; clip-retrieval writes float16."""
    device: str = "auto"
    """auto, cpu, cuda, …"""
    averaged: AveragedFlag = False


class Rows(NamedTuple):
    """Some pairs that could be read."""

    images: Tensor  #: uint8 (b, 3, S, S)
    captions: list[str] | None
    places: Tensor  #: int64 (b,), in the source


def run(options: Options) -> Path:
    """Embed; return the folder.

    Raises:
        CommandError: an option that cannot work, or nothing that can be read.
    """
    for flag, value in {
        "--batch-size": options.batch_size,
        "--workers": options.workers,
        "--rows-per-part": options.rows_per_part,
    }.items():
        if value < 1:
            raise CommandError(f"{flag} must be at least 1, got {value}")
    model, _, tokenizer = open_model(
        options.model, options.device, _PRECISIONS[options.precision], averaged=options.averaged
    )
    encoder = Encoder(model, tokenizer, batch_size=options.batch_size)
    source = open_pairs(options, model.config.vision.image_size)
    folder = Path(options.output)
    keys = {
        "image_key": options.image_key,
        "caption_key": options.caption_key,
        "csv_separator": options.csv_separator,
    }
    plan = Plan(
        model=str(Path(options.model).absolute()),
        fingerprint=fingerprint(model),
        data=_place(options.data),
        dataset_type=options.dataset_type if options.captions else "pictures",
        rows=len(source),
        rows_per_part=options.rows_per_part,
        precision=options.precision,
        dtype=options.dtype,
        columns={key: value for key, value in keys.items() if value is not None},
        averaged=options.averaged,
    )
    writer = EmbeddingWriter(folder, plan)
    if writer.rows:
        print(f"{writer.rows:,} rows are there already; {len(writer.missing)} of {plan.parts} parts to go")
    told = dict(source.skipped_files)  # known when the source was opened; goes with the first part
    with progress("embedding", len(writer.missing) * options.rows_per_part, "pair") as done:
        for part in writer.missing:
            places = range(part * plan.rows_per_part, min((part + 1) * plan.rows_per_part, plan.rows))
            _write_part(writer, part, source, places, encoder, options, told if part == 0 else {}, done)
    skipped = writer.skipped_files
    (folder / "skipped.txt").write_text(
        "".join(f"{file}\t{reason}\n" for file, reason in sorted(skipped.items())), encoding="utf-8"
    )
    if not writer.rows:
        raise CommandError(
            f"none of the {len(skipped):,} pictures of {options.data} can be read; see skipped.txt"
        )
    print(f"{writer.rows:,} rows in {folder}" + (f"; {len(skipped):,} skipped:" if skipped else ""))
    for reason, count in writer.skipped.most_common():
        print(f"  {count:,}  {reason}")
    return folder


def open_pairs(options: Options, image_size: int) -> PairSource | PictureFiles:
    """Open what is to be embedded: pairs, or pictures alone."""
    place = Path(_place(options.data))
    if not options.captions and place.is_dir():
        files = list_pictures(place)
        if not files:
            raise CommandError(f"there are no pictures in {place}")
        return PictureFiles(files, image_size)
    try:
        return open_source(
            _place(options.data),
            image_size,
            dataset_type=options.dataset_type,
            held_out_share=0.0,
            image_key=options.image_key,
            caption_key=options.caption_key,
            csv_separator=options.csv_separator,
        )
    except ValueError as error:
        hint = "; --no-captions embeds pictures without captions" if place.is_dir() else ""
        raise CommandError(f"{error}{hint}") from error


def _place(data: str) -> str:
    """Return a path that means the same in another working folder; names and patterns stay as they are."""
    return str(Path(data).absolute()) if Path(data).exists() else data


def _write_part(
    writer: EmbeddingWriter,
    part: int,
    source: PairSource | PictureFiles,
    places: range,
    encoder: Encoder,
    options: Options,
    skipped: dict[str, str],
    done: Callable[[int], object],
) -> None:
    before = dict(source.skipped_files)
    images, texts, captions, index = [], [], [], []
    for rows in _read(source, places, options):
        images.append(encoder.images(rows.images))
        if rows.captions is not None and options.captions:
            texts.append(encoder.texts(rows.captions))
        captions += rows.captions or []
        index += rows.places.tolist()
        done(len(rows.places))
    metadata = {"image_path": [where(source, place) for place in index], "index": index}
    if captions:
        metadata["caption"] = captions
    new = {file: reason for file, reason in source.skipped_files.items() if file not in before}
    writer.write(
        part,
        torch.cat(images) if images else None,
        torch.cat(texts) if texts else None,
        metadata,
        {**skipped, **new},
    )


def _read(source: PairSource | PictureFiles, places: range, options: Options) -> Iterator[Rows]:
    """Yield the readable ones of some places in order, about a batch at a time, decoded ahead by threads."""
    chunks = iter([places[at : at + _CHUNK] for at in range(0, len(places), _CHUNK)])
    ahead_of = 2 * options.workers + -(-options.batch_size // _CHUNK)
    with ThreadPoolExecutor(options.workers) as pool:
        ahead = [pool.submit(_fetch, source, chunk) for chunk in islice(chunks, ahead_of)]
        held: list[Rows] = []
        while ahead:
            held.append(ahead.pop(0).result())
            ahead += [pool.submit(_fetch, source, chunk) for chunk in islice(chunks, 1)]
            if sum(len(rows.places) for rows in held) >= options.batch_size or not ahead:
                joined = _join(held)
                held = []
                if len(joined.places):
                    yield joined


def _fetch(source: PairSource | PictureFiles, places: range) -> Rows:
    if isinstance(source, PictureFiles):
        images, kept = source.read(places)
        return Rows(images, None, kept)
    pairs = source.fetch(list(places), seed=0, epoch=0, augment=False)
    return Rows(pairs.images, pairs.captions, pairs.indices)


def _join(parts: list[Rows]) -> Rows:
    captions = [caption for rows in parts for caption in rows.captions or []]
    return Rows(
        torch.cat([rows.images for rows in parts]),
        captions if parts[0].captions is not None else None,
        torch.cat([rows.places for rows in parts]),
    )


def where(source: PairSource | PictureFiles, place: int) -> str:
    """Return a line that lets a person find a picture: its path, where it is a file."""
    if isinstance(source, PictureFiles):
        return str(source.files[place])
    records = getattr(source, "records", None)  # of pairs on disk
    return records.where(place) if records is not None else f"{source.name}, pair {place}"
