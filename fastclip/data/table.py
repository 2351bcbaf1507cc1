"""List the pictures that the rows of a CSV or TSV file name."""

from __future__ import annotations

import csv
import hashlib
import os
import re
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from fastclip.data.captions import Captions, Keys, from_value
from fastclip.data.picture import UnreadableError, read
from fastclip.data.records import Groups, Records, Texts
from fastclip.data.source import DataError

IMAGE_KEYS = ("filepath", "image", "path", "file", "filename", "file_name", "image_path", "img")
CAPTION_KEYS = ("title", "caption", "text", "captions", "description", "alt")

MAX_FIELD = 1 << 24  # characters; what is longer is a quote that was never closed

_URL = re.compile(r"(pipe|[a-z][a-z0-9+.-]+)://|pipe:", re.IGNORECASE)


class TableRecords(Records):
    """Hold the pictures that rows name, each with the captions of all its rows.

    Else a picture would be its own negative, and could stand in training and validation at once. Rows are held in
    memory: their text, and about 60 bytes each.

    Args:
        table: for names and messages.
        rows: (row number, picture's path, captions or why there are none).
        folder: where relative picture paths start from or, failing that, from the working folder.
    """

    def __init__(
        self, table: Path, rows: Iterable[tuple[int, str, Captions | UnreadableError]], folder: Path
    ) -> None:
        super().__init__(table.name)
        self._table = table
        self._paths, self._texts = Texts(), Texts()
        self._weights, hashes = array("d"), array("Q")
        count = 0
        for count, path, captions in rows:
            try:
                if isinstance(captions, UnreadableError):
                    raise captions
                if _URL.match(path):
                    raise UnreadableError("a URL in place of a file")
                weights = captions.weights or (1.0,) * len(captions.texts)
                for text, weight in zip(captions.texts, weights, strict=True):
                    self._paths.append(path)
                    self._texts.append(text)
                    self._weights.append(weight)
                    digest = hashlib.blake2b(path.encode("utf-8", "surrogateescape"), digest_size=8).digest()
                    hashes.append(int.from_bytes(digest, "little"))
            except UnreadableError as error:
                self.skipped[f"{table}, row {count}"] = str(error)
        if not hashes:
            raise DataError(f"none of the {count:,} rows of {table} has both a picture and a caption")
        self._groups = Groups(np.frombuffer(hashes, np.uint64))
        some = [self._paths[row] for row in range(min(100, len(self._paths)))]
        beside = any(os.path.exists(folder / path) for path in some)
        self._root = folder if beside or not any(map(os.path.exists, some)) else Path()

    def __len__(self) -> int:
        return len(self._groups)

    def picture(self, i: int) -> bytes:
        return read(self.where(i))

    def captions(self, i: int) -> Captions:
        rows = self._groups.members(i).tolist()
        weights = tuple(self._weights[row] for row in rows)
        return Captions(tuple(self._texts[row] for row in rows), weights if len(set(weights)) > 1 else None)

    def where(self, i: int) -> str:
        return os.path.join(self._root, self._paths[int(self._groups.members(i)[0])])


def read_table(
    table: Path, image_key: str | None = None, caption_keys: Keys | None = None, separator: str | None = None
) -> TableRecords:
    """List the pictures of a CSV or TSV file with a header line.

    Args:
        table: the file, UTF-8.
        image_key: column of paths. Default: the first that is present of filepath, image, path, …
        caption_keys: columns of captions. Default: the first that is present of title, caption, text, …
        separator: one character. Default: whichever of tab, comma and semicolon the header has most of.

    Raises DataError if a column is missing or no row is usable.
    """
    csv.field_size_limit(MAX_FIELD)  # the usual 128 KiB would end the reading at a huge caption
    separator = "\t" if separator == "\\t" else separator  # as a shell passes it on
    if separator is not None and len(separator) != 1:
        raise DataError(f"--csv-separator must be one character, got {separator!r}")
    return TableRecords(table, _rows(table, image_key, caption_keys, separator), table.parent)


def column(
    table: Path, columns: list[str], key: str | None, usual: tuple[str, ...], kind: str, flag: str
) -> str:
    """Return the name of a column: ``key``, or the first usual one. Raises DataError if there is none."""
    wanted = (key,) if key is not None else usual
    for name in wanted:
        if name in columns:
            return name
    raise DataError(
        f"{table} has no {kind} column {' or '.join(map(repr, wanted))}; its columns are "
        f"{', '.join(map(repr, columns)) or 'none'}. Name it with {flag}"
    )


def caption_columns(table: Path, columns: list[str], keys: Keys | None, flag: str) -> Keys:
    """Return the caption columns: those named, or the first usual one. Raises DataError if one is missing."""
    names = (None,) if keys is None else keys.names
    found = tuple(column(table, columns, name, CAPTION_KEYS, "caption", flag) for name in names)
    return Keys(found, None if keys is None else keys.weights)


def _rows(
    table: Path, image_key: str | None, caption_keys: Keys | None, separator: str | None
) -> Iterator[tuple[int, str, Captions | UnreadableError]]:
    with open(table, encoding="utf-8-sig", errors="replace", newline="") as lines:
        header = lines.readline()
        separator = separator or max("\t,;", key=header.count)
        columns = [name.strip() for name in next(csv.reader([header], delimiter=separator), [])]
        hint = "--csv-{}-key, or set --csv-separator"
        image = columns.index(column(table, columns, image_key, IMAGE_KEYS, "image", hint.format("img")))
        keys = caption_columns(table, columns, caption_keys, hint.format("caption"))
        places = [columns.index(name) for name in keys.names]
        rows, number = csv.reader(lines, delimiter=separator), 0
        while True:
            number += 1
            try:
                row = next(rows)
            except StopIteration:
                return
            except csv.Error:  # a quote that is never closed swallows lines up to the limit of a field
                yield number, "", UnreadableError("row that cannot be parsed")
                continue
            path = row[image].strip() if len(row) > image else ""
            if not path or len(row) <= max(places):
                yield number, path, UnreadableError("row without picture or caption")
                continue
            try:
                yield (
                    number,
                    path,
                    from_value(dict(zip(keys.names, (row[p] for p in places), strict=True)), keys),
                )
            except UnreadableError as error:
                yield number, path, error
