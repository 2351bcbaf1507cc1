"""Read Arrow tables in any order: Hugging Face datasets on disk, and parquet files unpacked once.

A parquet file gives up a row only with the thousands around it, compressed together. So its picture and caption
columns are written once to the cache, uncompressed; like a dataset of the `datasets` library they are then mapped into
memory, where every row is at hand and all processes of a machine share it.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastclip.data.cache import default_cache_dir, written_aside
from fastclip.data.captions import Captions, Keys, from_value
from fastclip.data.picture import UnreadableError, read
from fastclip.data.records import Records
from fastclip.data.source import DataError
from fastclip.data.table import IMAGE_KEYS, TableRecords, caption_columns, column

_FORMAT = 1  # raise when parquet files are unpacked otherwise
_ROWS = 256  # unpacked at a time
_OTHER_COLUMNS = "other columns than the first file"
_NO_PLACE = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS)
_IMAGE_KEYS = ("image", "jpg", "png", *IMAGE_KEYS[2:], "filepath", "bytes", "image_bytes")


class ArrowRecords(Records):
    """Hold the rows of Arrow files whose pictures are bytes, or objects of ``bytes`` and ``path``."""

    def __init__(self, path: Path, files: Sequence[tuple[str, Any]], image_key: str, keys: Keys) -> None:
        """Take ``files``, (name, pyarrow.Table) each; raise DataError if they have no row."""
        super().__init__(path.name)
        self._root, self._files, self._keys = path if path.is_dir() else path.parent, files, keys
        chunks = [
            (name, [batch.column(c) for c in (image_key, *keys.names)], before)
            for name, table in files
            for before, batch in _batches(table)
        ]
        self._chunks = [chunk for chunk in chunks if len(chunk[1][0])]
        self._ends = np.cumsum([len(columns[0]) for _, columns, _ in self._chunks])
        if not self._chunks:
            raise DataError(f"{path} has no rows")

    def __len__(self) -> int:
        return int(self._ends[-1])

    def picture(self, i: int) -> bytes:
        _, columns, _, row = self._find(i)
        value = columns[0][row].as_py()
        if isinstance(value, dict):
            value = value.get("path") if value.get("bytes") is None else value["bytes"]
        if isinstance(value, str):
            return read(self._root / value)
        if not isinstance(value, bytes):
            raise UnreadableError("no picture")
        return value

    def captions(self, i: int) -> Captions:
        _, columns, _, row = self._find(i)
        try:
            values = [values[row].as_py() for values in columns[1:]]
        except UnicodeDecodeError:
            raise UnreadableError("caption is not UTF-8") from None
        return from_value(dict(zip(self._keys.names, values, strict=True)), self._keys)

    def where(self, i: int) -> str:
        name, _, before, row = self._find(i)
        return f"{name}, row {before + row + 1}"

    def _find(self, i: int) -> tuple[str, list[Any], int, int]:
        chunk = int(np.searchsorted(self._ends, i, side="right"))
        name, columns, before = self._chunks[chunk]
        return name, columns, before, i - (int(self._ends[chunk - 1]) if chunk else 0)


def open_dataset(folder: Path, image_key: str | None, caption_keys: Keys | None) -> Records:
    """Open what ``datasets.Dataset.save_to_disk`` wrote; of several splits, "train"."""
    pa = _pyarrow()
    if (folder / "dataset_dict.json").is_file():
        splits = json.loads((folder / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
        if "train" not in splits and len(splits) != 1:
            raise DataError(
                f"{folder} has the splits {', '.join(splits)}; name one of these folders inside it"
            )
        folder = folder / ("train" if "train" in splits else splits[0])
    state = folder / "state.json"
    if not state.is_file():
        raise DataError(
            f"{folder} is no dataset on disk: it has no state.json, which Dataset.save_to_disk writes"
        )
    names = [entry["filename"] for entry in json.loads(state.read_text(encoding="utf-8"))["_data_files"]]
    files, skipped = [], {}
    for name in names:
        try:
            files.append(
                (str(folder / name), pa.ipc.open_stream(pa.memory_map(str(folder / name))).read_all())
            )
        except (OSError, pa.ArrowInvalid) as error:
            skipped[str(folder / name)] = _problem(error)
    if not files:
        raise DataError(f"no file of {folder} can be read: {', '.join(sorted(set(skipped.values())))}")
    image, keys = _columns(folder, files[0][1].column_names, image_key, caption_keys)
    records = ArrowRecords(folder, files, image, keys)
    records.skipped |= skipped
    return records


def open_parquet(
    spec: str, image_key: str | None, caption_keys: Keys | None, cache_dir: str | Path | None = None
) -> Records:
    """Open a parquet file, a folder of them, or wildcards; pictures are paths or bytes."""
    pa = _pyarrow()
    import pyarrow.parquet as pq

    pattern = os.path.join(glob.escape(spec), "**/*.parquet") if os.path.isdir(spec) else spec
    names = [spec] if os.path.isfile(spec) else sorted(glob.glob(pattern, recursive=True))
    if not names:
        raise DataError(f"no parquet file matches {spec}")
    folder = Path(cache_dir or default_cache_dir()) / "parquet"
    files, skipped, found, paths = [], {}, None, False
    for name in names:
        try:
            with pq.ParquetFile(name) as file:
                schema = file.schema_arrow
            if found is None:
                found = _columns(Path(name), schema.names, image_key, caption_keys)
                kind = schema.field(found[0]).type
                paths = pa.types.is_string(kind) or pa.types.is_large_string(kind)
            wanted = list(dict.fromkeys((found[0], *found[1].names)))
            if set(wanted) <= set(schema.names):
                files.append((name, _unpacked(name, wanted, folder)))
            else:
                skipped[name] = _OTHER_COLUMNS
        except (OSError, pa.ArrowInvalid) as error:
            skipped[name] = _problem(error)
    root = Path(spec) if os.path.exists(spec) else Path(names[0]).parent
    if found is None or not files:
        raise DataError(f"no file of {spec} can be read: {', '.join(sorted(set(skipped.values())))}")
    records: Records
    if paths:
        records = TableRecords(root, _rows(files, *found), root if root.is_dir() else root.parent)
    else:
        records = ArrowRecords(root, files, *found)
    records.skipped |= skipped
    return records


def captions_of(file: Path, keys: Keys | None, cache_dir: str | Path | None = None) -> tuple[Any, Keys]:
    """Return the caption columns of a parquet file as a mapped table, and which they are.

    Raises UnreadableError if the file cannot be read, DataError if it has no such column.
    """
    pa = _pyarrow()
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as opened:
            keys = caption_columns(file, opened.schema_arrow.names, keys, "--caption-key")
        return _unpacked(
            str(file), list(keys.names), Path(cache_dir or default_cache_dir()) / "parquet"
        ), keys
    except (OSError, pa.ArrowInvalid) as error:
        raise UnreadableError(_problem(error)) from error


def _columns(path: Path, names: list[str], image_key: str | None, keys: Keys | None) -> tuple[str, Keys]:
    image = column(path, names, image_key, _IMAGE_KEYS, "image", "--image-key")
    return image, caption_columns(path, names, keys, "--caption-key")


def _rows(
    files: list[tuple[str, Any]], image: str, keys: Keys
) -> Iterator[tuple[int, str, Captions | UnreadableError]]:
    number = 0
    for _, table in files:
        for _, batch in _batches(table):
            columns = [batch.column(name) for name in (image, *keys.names)]
            for row in range(len(columns[0])):
                number += 1
                path = ""
                try:
                    path, *values = (values[row].as_py() for values in columns)
                    if not path:
                        raise UnreadableError("row without picture or caption")
                    yield number, path, from_value(dict(zip(keys.names, values, strict=True)), keys)
                except UnicodeDecodeError:
                    yield number, path, UnreadableError("caption is not UTF-8")
                except UnreadableError as error:
                    yield number, path, error


def _batches(table: Any) -> Iterator[tuple[int, Any]]:
    """Yield (rows before it, record batch)."""
    before = 0
    for batch in table.to_batches():
        yield before, batch
        before += len(batch)


def _unpacked(name: str, columns: list[str], folder: Path) -> Any:
    """Return columns of a parquet file as a table mapped from the cache, written there if it is not yet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    about = os.stat(name)
    key = repr((_FORMAT, os.path.abspath(name), about.st_size, about.st_mtime_ns, columns))
    unpacked = folder / f"{hashlib.sha256(key.encode('utf-8', 'surrogateescape')).hexdigest()[:24]}.arrow"
    if not unpacked.is_file():
        try:
            with written_aside(unpacked) as aside, pq.ParquetFile(name) as file:
                schema = pa.schema([file.schema_arrow.field(column) for column in columns])
                with pa.OSFile(str(aside), "wb") as out, pa.ipc.new_file(out, schema) as writer:
                    for batch in file.iter_batches(_ROWS, columns=columns):
                        writer.write_batch(batch.select(columns))
        except OSError as error:
            if error.errno not in _NO_PLACE:
                raise
            raise DataError(
                f"{name} cannot be unpacked into {folder} ({error.strerror}), which reading its rows in any order "
                "needs; set FASTCLIP_CACHE to a folder with room for it"
            ) from error
    return pa.ipc.open_file(pa.memory_map(str(unpacked))).read_all()


def _problem(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be opened ({error.strerror})"
    return "damaged table"


def _pyarrow() -> Any:
    try:
        import pyarrow as pa
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "parquet files and datasets on disk need pyarrow, not installed here; "
            "run: pip install 'fastclip-kernels[images]'"
        ) from None
    return pa
