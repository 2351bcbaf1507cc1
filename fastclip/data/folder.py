"""List the pictures of a folder that have a caption file beside them."""

from __future__ import annotations

import os
from array import array
from collections import Counter
from pathlib import Path

from fastclip.data.captions import MAX_CAPTION_FILE, Captions, Keys, from_json, from_text
from fastclip.data.picture import SUFFIXES, UnreadableError, read
from fastclip.data.records import Records, Texts
from fastclip.data.source import DataError


class FolderRecords(Records):
    """Hold the pictures below ``folder``, in the order of their paths.

    ``cat.jpg`` is captioned by ``cat.txt``, each line a caption, or by ``cat.json``: see ``captions.from_value``.
    With ``keys``, the ``.json`` comes first. Of two pictures of one stem the first is used. Raises DataError if
    there is no picture, or none with a caption file.
    """

    def __init__(self, folder: Path, keys: Keys | None = None) -> None:
        super().__init__(folder.name or str(folder))
        self._root, self._keys = folder, keys
        self._paths, self._kinds = Texts(), array("b")  # kind: index into _KINDS
        kinds = _KINDS if keys is None else _KINDS[::-1]
        pictures = 0
        for parent, folders, names in os.walk(folder):
            folders.sort()
            present, stems = set(names), set()
            for name in sorted(names):
                stem, suffix = os.path.splitext(name)
                if suffix.lower() not in SUFFIXES or name.startswith("."):
                    continue
                pictures += 1
                path = os.path.join(parent, name)
                kind = next((kind for kind in kinds if stem + kind in present), None)
                if kind is None:
                    self.skipped[path] = "no caption"
                elif stem in stems:
                    self.skipped[path] = "duplicate key"
                else:
                    stems.add(stem)
                    self._paths.append(os.path.relpath(path, folder))
                    self._kinds.append(_KINDS.index(kind))
        if not pictures:
            raise DataError(
                f"no pictures in {folder}: expected files ending in {', '.join(sorted(SUFFIXES))}"
            )
        if not len(self):
            reasons = ", ".join(f"{reason} ({n:,})" for reason, n in Counter(self.skipped.values()).items())
            raise DataError(
                f"none of the {pictures:,} pictures in {folder} has a usable caption: {reasons}. "
                "Put a .txt or .json file of the same name beside each (cat.jpg, cat.txt), "
                "or give a .csv or .tsv file with the columns image and caption in place of the folder"
            )

    def __len__(self) -> int:
        return len(self._paths)

    def picture(self, i: int) -> bytes:
        return read(self.where(i))

    def captions(self, i: int) -> Captions:
        kind = _KINDS[self._kinds[i]]
        data = read_caption(os.path.splitext(self.where(i))[0] + kind)
        return from_text(data, lines=True) if kind == ".txt" else from_json(data, self._keys)

    def where(self, i: int) -> str:
        return os.path.join(self._root, self._paths[i])


def read_caption(path: str) -> bytes:
    """Return the bytes of a caption file. Raises UnreadableError, which says that it is the caption's."""
    try:
        return read(path, MAX_CAPTION_FILE)
    except UnreadableError as error:
        raise UnreadableError(f"caption: {error}") from error


_KINDS = (".txt", ".json")
