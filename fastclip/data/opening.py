"""Choose the source of pairs from what the user asked for."""

from __future__ import annotations

import glob
import os
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from fastclip.data.augment import Augmentation
from fastclip.data.captions import Keys
from fastclip.data.records import Records
from fastclip.data.source import DataError, PairSource
from fastclip.data.split import SplitSource

DatasetType = Literal["auto", "webdataset", "csv", "parquet", "folder", "hf", "features", "emoji", "shapes"]


@dataclass(frozen=True)
class _Options:
    """Hold what every source is opened with."""

    image_size: int
    seed: int
    shuffled_captions: bool
    cache_dir: str | Path | None
    held_out_share: float
    image_key: str | None
    caption_keys: Keys | None
    csv_separator: str | None
    augmentation: Augmentation | None


def open_source(
    path: str | Path | None = None,
    image_size: int = 64,
    *,
    dataset_type: DatasetType = "auto",
    val_data: str | Path | None = None,
    seed: int = 0,
    shuffled_captions: bool = False,
    cache_dir: str | Path | None = None,
    held_out_share: float = 0.05,
    image_key: str | None = None,
    caption_key: str | None = None,
    csv_img_key: str | None = None,
    csv_caption_key: str | None = None,
    csv_separator: str | None = None,
    augmentation: Augmentation | None = None,
    max_bad_share: float = 1.0,
) -> PairSource:
    """Open image-text pairs; docs/data.md has an example of every kind.

    Args:
        path: where they are, "emoji" or "shapes"; None means "emoji".
        image_size: side of the pictures, in pixels.
        dataset_type: what lies at ``path``; "auto" finds out.
        val_data: pairs to test on, of any type, in place of a share of ``path``.
        seed: chooses what is held out.
        shuffled_captions: caption the training pictures at random; the control.
        cache_dir: where indices and drawn emoji are kept; see ``cache.default_cache_dir``.
        held_out_share: share of a user's own pairs kept for validation.
        image_key: column of pictures in a table; found out if None.
        caption_key: key or column of captions, or several with probabilities; see ``captions.Keys``.
        csv_img_key, csv_caption_key, csv_separator: open_clip's names of these; found out if None.
        augmentation: what is done to training pictures, by default a random crop of 90 to 100 %.
        max_bad_share: share of the pairs that may be unusable at first sight (no caption, no such shard, …).

    Raises:
        DataError: nothing to train on, or too much of it unusable.
        ValueError: an argument that makes no sense.
        FileNotFoundError: there is nothing at ``path``.
        ModuleNotFoundError: a package is missing; the message names it.
    """
    if dataset_type not in get_args(DatasetType):
        raise ValueError(
            f"dataset_type must be one of {', '.join(get_args(DatasetType))}, got {dataset_type!r}"
        )
    if not 0 <= max_bad_share <= 1:
        raise ValueError(f"max_bad_share must lie in [0, 1], got {max_bad_share}")
    options = _Options(
        image_size,
        seed,
        shuffled_captions,
        cache_dir,
        0.0 if val_data is not None else held_out_share,
        image_key or csv_img_key,
        Keys.parse(caption_key) if csv_caption_key is None else Keys((csv_caption_key,)),
        csv_separator,
        augmentation,
    )
    source = _open(path, dataset_type, options)
    if val_data is not None:
        whole = replace(options, held_out_share=1.0, shuffled_captions=False)
        validation = _open(val_data, "auto", whole)
        if not isinstance(source, SplitSource) or not isinstance(validation, SplitSource):
            raise ValueError("val_data goes with pairs on disk: emoji and shapes have tests of their own")
        if type(source) is not type(validation):
            raise ValueError("path and val_data must both be pictures, or both be precomputed embeddings")
        source.skipped.update(validation.skipped)
        source.skipped_files.update(validation.skipped_files)
        validation.skipped, validation.skipped_files = source.skipped, source.skipped_files
        source.lost += validation.lost
        source.validation = validation
    _judge(source, max_bad_share)
    return source


def detect(path: str | Path | None) -> DatasetType:
    """Return what lies at ``path``. Raises FileNotFoundError if nothing does, DataError if nobody knows."""
    spec = str(path)
    if path is None or (spec in ("emoji", "shapes") and not os.path.exists(spec)):
        return "shapes" if spec == "shapes" else "emoji"
    if spec.startswith("pipe:") or "://" in spec or "::" in spec:
        return "webdataset"
    place = Path(spec)
    if place.is_dir():
        if (place / "img_emb").is_dir():
            return "features"
        if (place / "state.json").is_file() or (place / "dataset_dict.json").is_file():
            return "hf"
        if any(place.glob("*.tar")):
            return "webdataset"
        return "parquet" if any(place.glob("*.parquet")) else "folder"
    suffix = place.suffix.lower()
    pattern = glob.has_magic(spec) or "{" in spec
    if not place.exists() and not pattern and suffix != ".tar":
        raise FileNotFoundError(
            f"{path} does not exist: give a folder of pictures, .tar shards, a .csv, .tsv or .parquet file, "
            "a dataset saved to disk, or a folder with img_emb"
        )
    kinds: dict[str, DatasetType] = {
        ".csv": "csv",
        ".tsv": "csv",
        ".parquet": "parquet",
        ".tar": "webdataset",
    }
    if suffix in kinds:
        return kinds[suffix]
    if suffix in (
        ".txt",
        ".gz",
        ".tgz",
        ".bz2",
        ".xz",
        ".zst",
    ):  # a list of shards; or refused, with the reason
        return "webdataset"
    raise DataError(
        f"cannot tell what {path} is: neither a folder nor a .tar, .csv, .tsv or .parquet file; "
        "say it by --dataset-type"
    )


def _open(path: str | Path | None, dataset_type: DatasetType, options: _Options) -> PairSource:
    kind = detect(path) if dataset_type == "auto" else dataset_type
    if kind == "emoji":
        from fastclip.data.emoji import EmojiSource

        return EmojiSource(options.image_size, options.seed, options.cache_dir, options.shuffled_captions)
    if kind == "shapes":
        from fastclip.data.shapes import ShapesSource

        return ShapesSource(
            options.image_size, seed=options.seed, shuffled_captions=options.shuffled_captions
        )
    if path is None:
        raise ValueError(f"dataset_type {kind!r} needs a path")
    if kind != "webdataset" and not glob.has_magic(str(path)) and not os.path.exists(path):
        raise FileNotFoundError(f"{path} does not exist")
    if kind == "features":
        from fastclip.data.features import FeatureSource

        return FeatureSource(
            Path(path),
            seed=options.seed,
            held_out_share=options.held_out_share,
            shuffled_captions=options.shuffled_captions,
            caption_keys=options.caption_keys,
            cache_dir=options.cache_dir,
        )
    from fastclip.data.ondisk import RecordSource

    return RecordSource(
        _records(kind, str(path), options),
        options.image_size,
        seed=options.seed,
        held_out_share=options.held_out_share,
        shuffled_captions=options.shuffled_captions,
        augmentation=options.augmentation,
    )


def _records(kind: DatasetType, path: str, options: _Options) -> Records:
    if kind == "webdataset":
        from fastclip.data.shards import ShardRecords, expand

        return ShardRecords(expand(path), options.caption_keys, options.cache_dir)
    if kind == "csv":
        from fastclip.data.table import read_table

        return read_table(Path(path), options.image_key, options.caption_keys, options.csv_separator)
    if kind == "parquet":
        from fastclip.data.arrow import open_parquet

        return open_parquet(path, options.image_key, options.caption_keys, options.cache_dir)
    if kind == "hf":
        from fastclip.data.arrow import open_dataset

        return open_dataset(Path(path), options.image_key, options.caption_keys)
    from fastclip.data.folder import FolderRecords

    return FolderRecords(Path(path), options.caption_keys)


def _judge(source: PairSource, max_bad_share: float) -> None:
    bad = source.skipped.total() + source.lost
    total = bad + len(source)
    if bad > max_bad_share * total:
        counts: Counter[str] = source.skipped
        reasons = ", ".join(f"{reason} ({n:,})" for reason, n in counts.most_common())
        raise DataError(
            f"{bad:,} of the {total:,} pairs of {source.name} cannot be used, more than --max-bad-share "
            f"{max_bad_share:g}: {reasons}"
            + (f", with which about {source.lost:,} more are lost" if source.lost else "")
            + f"; for example {next(iter(source.skipped_files))}. Repair the data, or allow more with --max-bad-share"
        )
