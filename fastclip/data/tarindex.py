"""Find the samples of a tar file: where each one's picture and captions lie, so that any can be read at once.

A sample is the members whose names agree up to the first dot of the file name (webdataset's rule), wherever they stand.
A damaged or cut file costs the samples that are damaged: the search goes on at the next header that is whole.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from fastclip.data.captions import MAX_CAPTION_FILE
from fastclip.data.picture import MAX_BYTES, SUFFIXES

#: Where a sample's parts begin and how many bytes they have; 0 bytes at 0: there is no such part.
ENTRY = np.dtype(
    [("picture", "<i8"), ("txt", "<i8"), ("json", "<i8"), ("sizes", "<u4", (3,))]  # sizes: in the same order
)

_BLOCK = 512
_PADDING = 1 << 16  # bytes of zeros that may end an archive
_LONG = 1 << 20  # bytes of a long name that are believed
_WINDOW = 1 << 20  # bytes searched at a time for the next whole header


def index_tar(path: str) -> tuple[np.ndarray, dict[str, str]]:
    """Return the usable samples in the order they begin, ENTRY (N,), and why others are not, by name.

    Raises OSError if the file cannot be read.
    """
    samples: dict[str, list[int]] = {}  # key -> picture, txt, json, and their sizes
    skipped: dict[str, str] = {}
    for member in _members(path):
        if member.problem:
            skipped[f"{path}: {member.name}"] = member.problem
            continue
        folder, _, file = member.name.rpartition("/")
        stem, _, suffix = file.partition(".")
        kind = _kind(suffix.lower())
        if not stem or kind is None:
            continue
        key = f"{folder}/{stem}" if folder else stem
        sample = samples.setdefault(key, [0] * 6)
        if sample[kind]:
            skipped[f"{path}: {key}"] = "duplicate key"
        elif member.size > (MAX_CAPTION_FILE if kind else MAX_BYTES):
            skipped[f"{path}: {member.name}"] = "file too large"
        else:
            sample[kind], sample[3 + kind] = member.start, member.size
    whole = []
    for key, sample in samples.items():
        if sample[0] and (sample[1] or sample[2]):
            whole.append((sample[0], sample[1], sample[2], sample[3:]))
        else:
            skipped.setdefault(f"{path}: {key}", "no caption" if sample[0] else "no picture")
    return np.array([(a, b, c, tuple(sizes)) for a, b, c, sizes in whole], ENTRY), skipped


def member_name(header: bytes) -> str:
    """Return the name in a member's header, its first 100 bytes."""
    return header[:100].split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


@dataclass
class _Member:
    name: str
    start: int
    size: int
    problem: str = ""


def _members(path: str) -> Iterator[_Member]:
    """Yield the regular files of a tar, and the places where it is damaged."""
    with open(path, "rb", buffering=0) as file:
        descriptor, end, at = file.fileno(), os.fstat(file.fileno()).st_size, 0
        name, size = "", -1  # what an extended header said of the member that follows
        if not end:  # an archive of nothing has two blocks of zeros
            yield _Member("byte 0", 0, 0, "truncated tar")
        while at < end:
            header = os.pread(descriptor, _BLOCK, at)
            if len(header) < _BLOCK:
                yield _Member(f"byte {at:,}", at, 0, "truncated tar")
                return
            if header.count(0) == _BLOCK:  # the end, unless another archive was written behind it
                behind = _next_whole(descriptor, at, end) if end - at > _PADDING else end
                if behind == end and end - at > _PADDING:
                    yield _Member(
                        f"byte {at:,}", at, 0, "truncated tar"
                    )  # made at full length, then not filled
                at, name, size = behind, "", -1
                continue
            if not _is_whole(header):
                yield _Member(f"byte {at:,}", at, 0, "damaged tar")
                at, name, size = _next_whole(descriptor, at + _BLOCK, end), "", -1
                continue
            kind, start = header[156:157], at + _BLOCK
            if size < 0:
                size = _number(header[124:136])
            if kind in b"123456":  # links, devices and folders have no contents
                size = 0
            at = start + -(-size // _BLOCK) * _BLOCK
            if kind in b"Lx":
                data = os.pread(descriptor, min(size, _LONG), start)
                if kind == b"L":
                    name, size = data.rstrip(b"\0").decode("utf-8", "surrogateescape"), -1
                else:
                    notes = _pax(data)
                    name, size = notes.get("path", name), int(notes.get("size", -1))
                continue
            if kind in b"\x0007":
                prefix = header[345:500].split(b"\0", 1)[0] if header[257:263] == b"ustar\0" else b""
                name = name or "/".join(
                    filter(None, (prefix.decode("utf-8", "surrogateescape"), member_name(header)))
                )
                cut = start + size > end
                yield _Member(name, start, size, "truncated tar" if cut else "")
            name, size = "", -1


def _kind(suffix: str) -> int | None:
    """Return which part of a sample a member is: 0 picture, 1 text, 2 JSON."""
    if f".{suffix}" in SUFFIXES:
        return 0
    return {"txt": 1, "json": 2}.get(suffix)


def _is_whole(header: bytes) -> bool:
    """Return whether a header's checksum is right: the sum of its bytes, its own field taken as blanks."""
    try:
        stated = int(header[148:156].strip(b"\0 ") or b"x", 8)
    except ValueError:
        return False
    # The lower half of Adler-32 is 1 + the sum of the bytes, modulo 65,521: twenty times faster than `sum`.
    total = (zlib.adler32(header) & 0xFFFF) - sum(header[148:156]) + 8 * 32
    return (total - 1 - stated) % 65521 == 0 and _number(header[124:136]) >= 0


def _number(field: bytes) -> int:
    """Return a size: octal digits, or binary where it is too large for those; −1 if it is neither."""
    if field[0] & 0x80:
        return int.from_bytes(field[1:], "big")
    try:
        return int(field.strip(b"\0 ") or b"0", 8)
    except ValueError:
        return -1


def _pax(data: bytes) -> dict[str, str]:
    """Return the path and the size that an extended header gives."""
    found: dict[str, str] = {}
    while data:
        length, _, _ = data.partition(b" ")
        if not length.isdigit() or not 0 < int(length) <= len(data):
            break
        key, _, value = data[len(length) + 1 : int(length)].rstrip(b"\n").partition(b"=")
        if key == b"path" or (key == b"size" and value.isdigit()):
            found[key.decode()] = value.decode("utf-8", "surrogateescape")
        data = data[int(length) :]
    return found


def _next_whole(descriptor: int, at: int, end: int) -> int:
    """Return where the next whole header with contents lies, or the end."""
    while at < end:
        window = os.pread(descriptor, _WINDOW, at)
        found = window.find(b"ustar")
        while found >= 0:
            header = at + (found - 257)
            if (
                (found - 257) % _BLOCK == 0
                and found >= 257
                and _is_whole(os.pread(descriptor, _BLOCK, header))
            ):
                return header
            found = window.find(b"ustar", found + 1)
        at += _WINDOW
    return end
