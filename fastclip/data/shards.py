"""Read webdataset shards in any order: local tar files with an index beside them in the cache.

A streamed shard can only be shuffled inside a window, and a restart begins somewhere else. Here the order is one
shuffle of all samples, ``perm(seed, epoch)[position]``, the same for any number of workers and ranks: so shards are not
streamed but indexed once, and every sample is one read at a known place.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from fastclip.data.cache import default_cache_dir, written_aside
from fastclip.data.captions import Captions, Keys, from_json, from_text
from fastclip.data.picture import UnreadableError
from fastclip.data.records import Records
from fastclip.data.source import DataError
from fastclip.data.tarindex import ENTRY, index_tar, member_name

_FORMAT = 2  # raise when an index is made otherwise
_MOST_MAPS = 30_000  # of the 65,530 that Linux lets a process have; above, indices are read into memory
_NAMED = 5  # of the shards that are missing
_THREADS = 8  # that make indices: on a network disk this is waiting


class ShardRecords(Records):
    """Hold the samples of tar files, shard by shard.

    A sample's caption is its ``.txt`` (the whole file is one), else its ``.json``: see ``captions.from_value``. With
    ``keys`` the ``.json`` comes first. The index, 36 bytes a sample, is mapped from the cache into memory,
    where all processes of a machine share it.

    Raises DataError if a shard is missing or cannot be opened (a typo in a range must not cost half of the data), or
    if there is no sample in any.
    """

    def __init__(
        self, shards: Sequence[str], keys: Keys | None = None, cache_dir: str | Path | None = None
    ) -> None:
        super().__init__(Path(shards[0]).name if len(shards) == 1 else f"{len(shards):,} shards")
        folder = Path(cache_dir or default_cache_dir()) / "shards"
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="fastclip-index") as pool:
            mapped = len(shards) <= _MOST_MAPS
            indices = list(pool.map(lambda path: _index(path, folder, mapped), shards))
        _require(shards, indices)
        self.lost = _lost(indices)
        self._keys, self._shards, self._entries = keys, [], []
        for path, (entries, skipped, _) in zip(shards, indices, strict=True):
            self.skipped |= skipped
            if len(entries):
                self._shards.append(path)
                self._entries.append(entries)
        self._ends = np.cumsum([len(entries) for entries in self._entries])
        if not self._shards:
            reasons = ", ".join(sorted(set(self.skipped.values()))) or "they are empty"
            raise DataError(
                f"no usable sample in {', '.join(shards[:3])}{', …' * (len(shards) > 3)}: {reasons}"
            )

    def __len__(self) -> int:
        return int(self._ends[-1])

    def picture(self, i: int) -> bytes:
        path, entry = self._find(i)
        return _read(path, entry["picture"], entry["sizes"][0])

    def captions(self, i: int) -> Captions:
        path, entry = self._find(i)
        as_json = bool(entry["json"]) and (self._keys is not None or not entry["txt"])
        part, number = ("json", 2) if as_json else ("txt", 1)
        try:
            data = _read(path, entry[part], entry["sizes"][number])
        except UnreadableError as error:
            raise UnreadableError(f"caption: {error}") from error
        return from_json(data, self._keys) if as_json else from_text(data, lines=False)

    def where(self, i: int) -> str:
        path, entry = self._find(i)
        try:
            return f"{path}: {member_name(_read(path, entry['picture'] - 512, 512))}"
        except UnreadableError:
            return f"{path}: byte {entry['picture']:,}"

    def _find(self, i: int) -> tuple[str, np.void]:
        shard = int(np.searchsorted(self._ends, i, side="right"))
        before = int(self._ends[shard - 1]) if shard else 0
        return self._shards[shard], self._entries[shard][i - before]


def expand(spec: str) -> list[str]:
    """Return the shards that ``spec`` means, in a fixed order.

    It may hold braces (``{00000..00099}``, ``{a,b}``), wildcards, several of these joined by ``::``, or name a
    ``.txt`` file with one on each line, or a folder. A shard of a range that is not there stays in the list, and is an
    error where the shards are opened.
    Raises DataError for URLs, for compressed tars and for wildcards that match nothing.
    """
    found = []
    for part in filter(None, (part.strip() for part in spec.split("::"))):
        _refuse(part)
        if part.endswith(".txt"):
            lines = Path(part).read_text(encoding="utf-8").splitlines()
            found += expand("::".join(line for line in lines if line.strip() and not line.startswith("#")))
            continue
        for name in [part] if os.path.exists(part) else _braces(part):
            if os.path.isdir(name):
                name = os.path.join(glob.escape(name), "*.tar")
            matches = sorted(glob.glob(name, recursive=True)) if glob.has_magic(name) else [name]
            if not matches:
                raise DataError(f"no shard matches {name}")
            found += matches
    for name in found:
        _refuse(name)
    return found


def _refuse(name: str) -> None:
    if name.startswith("pipe:"):
        raise DataError(
            f"{name} would run a shell command, which a data path must not do; download the shards and name the files"
        )
    if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]+://", name):
        raise DataError(
            f"{name} is a URL; fastclip reads shards in a random order, from files: download them (img2dataset, "
            "aws s3 sync, gcloud storage cp) or mount the bucket"
        )
    if re.search(r"\.tar\.(gz|bz2|xz|zst)$|\.tgz$", name):
        raise DataError(
            f"{name} is compressed as a whole, so no sample in it can be found; unpack it to a .tar"
        )


def _braces(text: str) -> list[str]:
    """Return ``text`` for every value of its first braces, and of the ones after those."""
    match = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", text)
    if match is None:
        return [text]
    if match[3] is None:
        first, last = int(match[1]), int(match[2])
        if abs(last - first) >= 1_000_000:
            raise DataError(f"{match[0]} names more than a million shards")
        step = 1 if last >= first else -1
        width = len(match[1]) if match[1].startswith("0") or len(match[1]) == len(match[2]) else 0
        values = [f"{number:0{width}}" for number in range(first, last + step, step)]
    else:
        values = match[3].split(",")
    rest = _braces(text[match.end() :])
    return [text[: match.start()] + value + after for value in values for after in rest]


class _Index(NamedTuple):
    """What is in a shard: usable samples, ENTRY (N,), and why others are not, by name; or why it cannot be opened."""

    entries: np.ndarray
    skipped: dict[str, str]
    problem: str | None = None


def _require(shards: Sequence[str], indices: Sequence[_Index]) -> None:
    """Raise DataError if there are shards that cannot be opened."""
    missing = [
        (path, index.problem)
        for path, index in zip(shards, indices, strict=True)
        if index.problem is not None
    ]
    if missing:
        named = ", ".join(f"{path} ({problem})" for path, problem in missing[:_NAMED])
        more = f" and {len(missing) - _NAMED:,} more" if len(missing) > _NAMED else ""
        raise DataError(
            f"{len(missing):,} of the {len(shards):,} shards cannot be opened: {named}{more}. Correct the path; or, to "
            f"train without them, name those that are there, as a wildcard does: {_wildcard(missing[0][0])}"
        )


def _wildcard(path: str) -> str:
    return os.path.join(os.path.dirname(path), "*.tar")


def _lost(indices: Sequence[_Index]) -> int:
    """Return about how many samples were in cut or damaged shards, beyond those that are listed.

    A shard is taken to have held as many as the shards that are whole usually hold, where there are any.
    """
    sizes = [(len(index.entries) + len(index.skipped), _is_cut(index)) for index in indices]
    whole = [size for size, is_cut in sizes if not is_cut]
    usual = int(np.median(whole)) if whole else 0
    return sum(max(0, usual - size) for size, is_cut in sizes if is_cut)


def _is_cut(index: _Index) -> bool:
    return not {"truncated tar", "damaged tar"}.isdisjoint(index.skipped.values())


def _index(path: str, folder: Path, mapped: bool) -> _Index:
    """Return what is in a shard: from the cache, or made and kept there."""
    try:
        about = os.stat(path)
        full = os.path.abspath(path)
        key = [_FORMAT, full, about.st_size, about.st_mtime_ns]
        stem = folder / hashlib.sha256(os.fsencode(full)).hexdigest()[:24]
        entries_file, notes_file = stem.with_suffix(".bin"), stem.with_suffix(".json")
        cached = _load(entries_file, notes_file, key, mapped)
        if cached is not None:
            return cached
        entries, skipped = index_tar(path)
    except FileNotFoundError:
        return _Index(np.empty(0, ENTRY), {}, "no such file")
    except OSError as error:
        return _Index(np.empty(0, ENTRY), {}, error.strerror or str(error))
    try:
        with written_aside(entries_file) as aside:
            entries.tofile(aside)
        notes = {"key": key, "samples": len(entries), "skipped": skipped}
        with written_aside(notes_file) as aside:
            aside.write_text(json.dumps(notes), encoding="utf-8")
        return _load(entries_file, notes_file, key, mapped) or _Index(entries, skipped)
    except OSError as error:
        warnings.warn(
            f"cannot keep the index of shards in {folder} ({error}): it is made anew by every process. "
            "Set FASTCLIP_CACHE to a writable folder.",
            stacklevel=2,
        )
        return _Index(entries, skipped)


def _load(entries_file: Path, notes_file: Path, key: list, mapped: bool) -> _Index | None:
    try:
        notes = json.loads(notes_file.read_text(encoding="utf-8"))
        if notes["key"] != key:
            return None
        if not notes["samples"]:
            return _Index(np.empty(0, ENTRY), notes["skipped"])
        size = notes["samples"] * ENTRY.itemsize
        if entries_file.stat().st_size != size:
            return None
        if not mapped:
            return _Index(np.fromfile(entries_file, ENTRY), notes["skipped"])
        # Mapped by torch, since a map of Python's keeps the file open, and ten thousand are too many for a process.
        data = torch.from_file(str(entries_file), shared=False, size=size, dtype=torch.uint8)
        return _Index(data.numpy().view(ENTRY), notes["skipped"])
    except (OSError, RuntimeError, ValueError, KeyError, TypeError):
        return None


def _read(path: str, start: int, size: int) -> bytes:
    try:
        # Opened for every read: ten thousand shards are more files than a process may hold open.
        with open(path, "rb", buffering=0) as file:
            data = os.pread(file.fileno(), int(size), int(start))
    except FileNotFoundError:
        raise UnreadableError("no such file") from None
    except OSError as error:
        raise UnreadableError(f"cannot be opened ({error.strerror})") from error
    if len(data) < size:
        raise UnreadableError("truncated tar")
    return data
