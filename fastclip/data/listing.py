"""List the pictures of a folder or a table, each with its captions. No picture is opened here."""

from __future__ import annotations

import csv
import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from fastclip.data.picture import SUFFIXES, UnreadableError

MAX_CAPTION = 2048  # characters kept; an encoder reads far fewer


@dataclass(frozen=True)
class Record:
    """Hold a picture file and its captions, at least one."""

    path: Path
    captions: tuple[str, ...]


@dataclass
class Listing:
    """Hold what was found and what had to be left out."""

    records: list[Record]
    skipped: dict[str, str] = field(default_factory=dict)  #: reason by file, or by row of the table


def list_folder(folder: Path) -> Listing:
    """List the pictures below ``folder`` that have a caption file beside them.

    ``cat.jpg`` is captioned by ``cat.txt``, each line a caption, or by ``cat.json``: a string, a list of
    strings, or an object with ``caption`` or ``captions``. Raises ValueError if there is no picture, or no
    caption at all.
    """
    listing = Listing([])
    pictures = 0
    for parent, folders, names in os.walk(folder):
        folders.sort()
        present = set(names)
        for name in sorted(names):
            path = Path(parent, name)
            if path.suffix.lower() not in SUFFIXES or name.startswith("."):
                continue
            pictures += 1
            try:
                listing.records.append(Record(path, _sidecar(path, present)))
            except UnreadableError as error:
                listing.skipped[str(path)] = str(error)
    if not pictures:
        raise ValueError(f"no pictures in {folder}: expected files ending in {', '.join(sorted(SUFFIXES))}")
    if not listing.records:
        reasons = ", ".join(
            f"{reason} ({count})" for reason, count in Counter(listing.skipped.values()).items()
        )
        raise ValueError(
            f"none of the {pictures} pictures in {folder} has a usable caption: {reasons}. "
            "Put a .txt or .json file of the same name beside each (cat.jpg, cat.txt), "
            "or give a .csv or .tsv file with the columns image and caption in place of the folder"
        )
    return listing


def list_table(
    table: Path, image_key: str | None = None, caption_key: str | None = None, separator: str | None = None
) -> Listing:
    """List the pictures of a CSV or TSV file with a header line; rows of one picture become one record.

    Args:
        table: the file, UTF-8. Relative picture paths start from its folder or, failing that, from the
            working one.
        image_key: column of paths. Default: the first that is present of filepath, image, path, …
        caption_key: column of captions. Default: the first that is present of title, caption, text, …
        separator: one character. Default: whichever of tab, comma and semicolon the header has most of.

    Raises ValueError if a column is missing or no row is usable.
    """
    csv.field_size_limit(max(csv.field_size_limit(), 1 << 24))  # a huge caption must not end the reading
    captions: dict[str, list[str]] = {}
    listing = Listing([])
    rows = 0
    with open(table, encoding="utf-8-sig", errors="replace", newline="") as lines:
        header = lines.readline()
        separator = separator or max("\t,;", key=header.count)
        columns = [name.strip() for name in next(csv.reader([header], delimiter=separator), [])]
        image = _column(table, columns, image_key, _IMAGE_KEYS, "image", "--csv-img-key")
        caption = _column(table, columns, caption_key, _CAPTION_KEYS, "caption", "--csv-caption-key")
        for rows, row in enumerate(csv.reader(lines, delimiter=separator), 1):
            try:
                if len(row) <= max(image, caption) or not row[image].strip():
                    raise UnreadableError("row without picture or caption")
                text = _clean(row[caption])
                captions.setdefault(row[image].strip(), []).append(text)
            except UnreadableError as error:
                listing.skipped[f"{table}, row {rows}"] = str(error)
    if not captions:
        raise ValueError(f"none of the {rows} rows of {table} has both a picture and a caption")
    first = next(iter(captions))
    root = Path() if not (table.parent / first).exists() and Path(first).exists() else table.parent
    listing.records = [Record(root / path, tuple(texts)) for path, texts in captions.items()]
    return listing


_IMAGE_KEYS = ("filepath", "image", "path", "file", "filename", "file_name", "image_path", "img")
_CAPTION_KEYS = ("title", "caption", "text", "captions", "description", "alt")


def _column(
    table: Path, columns: list[str], key: str | None, usual: tuple[str, ...], kind: str, flag: str
) -> int:
    wanted = (key,) if key is not None else usual
    for name in wanted:
        if name in columns:
            return columns.index(name)
    raise ValueError(
        f"{table} has no {kind} column {' or '.join(map(repr, wanted))}; its columns are "
        f"{', '.join(map(repr, columns)) or 'none'}. Name it with {flag}, or set --csv-separator"
    )


def _sidecar(picture: Path, present: set[str]) -> tuple[str, ...]:
    """Return the captions in the file beside ``picture``."""
    for suffix, read in ((".txt", str.splitlines), (".json", _json_captions)):
        beside = picture.with_suffix(suffix)
        if beside.name in present:
            try:
                texts = read(beside.read_text(encoding="utf-8-sig"))
            except UnicodeDecodeError:
                raise UnreadableError("caption is not UTF-8") from None
            except OSError as error:
                raise UnreadableError(f"caption cannot be opened ({error.strerror})") from error
            return tuple(_clean(text) for text in texts if text.strip()) or _no_caption()
    return _no_caption()


def _json_captions(text: str) -> list[str]:
    try:
        value = json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        raise UnreadableError("caption is not valid JSON") from None
    if isinstance(value, dict):
        value = value.get("captions", value.get("caption"))
    texts = list(_strings(value))
    return texts or list(_no_caption())


def _strings(value: object) -> Iterator[str]:
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, str):
            yield item


def _no_caption() -> tuple[str, ...]:
    raise UnreadableError("no caption")


def _clean(caption: str) -> str:
    """Return ``caption`` on one line."""
    if "\ufffd" in caption:  # what the decoder puts in place of bytes that are not UTF-8
        raise UnreadableError("caption is not UTF-8")
    caption = " ".join(caption[: 4 * MAX_CAPTION].split())[:MAX_CAPTION]
    return caption or _no_caption()[0]
