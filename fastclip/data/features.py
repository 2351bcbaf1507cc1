"""Give precomputed embeddings as pairs, in the layout of clip-retrieval.

    folder/img_emb/img_emb_0.npy      (n, F) of any float type, one file after the other by number
    folder/text_emb/text_emb_0.npy    (n, G), where the texts come precomputed too
    folder/metadata/metadata_0.parquet    a column of captions, where there are captions

Files are mapped into memory: rows are read when they are fetched.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastclip.data.captions import Captions, Keys, from_value
from fastclip.data.ondisk import label_of
from fastclip.data.picture import UnreadableError
from fastclip.data.source import DataError, HeldOut, Pairs, as_indices, uniforms
from fastclip.data.split import SplitSource


class _Part(NamedTuple):
    """Hold the rows of one numbered file of each kind."""

    name: str
    images: np.ndarray  # (n, F)
    texts: np.ndarray | None  # (n, G)
    captions: Any  # a pyarrow.Table of n rows with the columns of `keys`, or None
    keys: Keys | None


class FeatureSource(SplitSource):
    """Give rows of image embeddings with embeddings of texts, captions, or both.

    A row that is not finite is left out and counted, and so is a numbered part whose files cannot be read or do not
    agree. Labels follow the captions where there are any; else every row is a label of its own.

    Args:
        folder: see above.
        seed: chooses the rows for validation.
        held_out_share: share of the rows kept for validation, at most 1,000 of them; 1 keeps all.
        shuffled_captions: give every training row another one's texts; the control.
        caption_keys: columns of captions; found out if None.
        cache_dir: where the captions are unpacked; see ``arrow``.

    Raises DataError if nothing can be used.
    """

    def __init__(
        self,
        folder: Path,
        *,
        seed: int = 0,
        held_out_share: float = 0.05,
        shuffled_captions: bool = False,
        caption_keys: Keys | None = None,
        cache_dir: str | Path | None = None,
    ) -> None:
        skipped: dict[str, str] = {}
        self._parts = _open(folder, caption_keys, cache_dir, skipped)
        self._ends = np.cumsum([len(part.images) for part in self._parts])
        super().__init__(
            folder.name,
            0,
            int(self._ends[-1]),
            seed=seed,
            held_out_share=held_out_share,
            shuffled_captions=shuffled_captions,
            skipped=skipped,
        )
        texts = self._parts[0].texts
        self.image_width = self._parts[0].images.shape[1]  #: F
        self.text_width = None if texts is None else texts.shape[1]  #: G; None: captions only

    def fetch(self, indices: Sequence[int] | Tensor, *, seed: int, epoch: int, augment: bool = True) -> Pairs:
        """Return the usable rows of ``indices``; ``augment`` chooses among captions."""
        index = as_indices(indices, len(self))
        draws = uniforms(index, 1, seed=seed, epoch=epoch)[:, 0] if augment else None
        pairs = self._rows(*self._records(index), draws)
        pairs.indices = torch.from_numpy(index)[pairs.indices]
        return pairs

    def _test(self) -> list[HeldOut]:
        pairs = self._rows(self._kept, self._kept, None)
        if not len(pairs):
            return []
        _, first, inverse = np.unique(pairs.labels.numpy(), return_index=True, return_inverse=True)
        gallery = [pairs.captions[row] or f"row {self._kept[pairs.indices[row]]}" for row in first.tolist()]
        texts = None if pairs.text_features is None else pairs.text_features[torch.from_numpy(first)]
        target = torch.from_numpy(inverse)
        return [HeldOut("validation", pairs.images, gallery, target, headline="R@1", gallery_features=texts)]

    def _rows(self, rows: np.ndarray, texts_of: np.ndarray, draws: np.ndarray | None) -> Pairs:
        """Return the usable ones of ``rows`` with the texts of rows ``texts_of``; ``indices`` say which came."""
        images = self._gather([part.images for part in self._parts], rows)
        texts = None
        if self.text_width is not None:
            texts = self._gather([part.texts for part in self._parts if part.texts is not None], texts_of)
        usable = np.isfinite(images).all(1) & (True if texts is None else np.isfinite(texts).all(1))
        for number in np.flatnonzero(~usable).tolist():
            self._skip(self._where(rows[number]), UnreadableError("not finite"))
        captions, labels = [""] * len(rows), texts_of.astype(np.int64)
        for number in np.flatnonzero(usable).tolist() if self._parts[0].keys is not None else ():
            try:
                found = self._captions(int(texts_of[number]))
            except UnreadableError as error:
                usable[number] = False
                self._skip(self._where(rows[number]), error)
                continue
            text = found.texts[0] if draws is None else found.choose(draws[number])
            captions[number] = text
            labels[number] = label_of(text) if text else labels[number]
        kept = np.flatnonzero(usable)
        return Pairs(
            torch.from_numpy(images[kept]),
            [captions[number] for number in kept.tolist()],
            torch.from_numpy(labels[kept]),
            torch.from_numpy(kept),
            None if texts is None else torch.from_numpy(texts[kept]),
        )

    def _where(self, i: int) -> str:
        part, row = self._find(int(i))
        return f"{part.name}, row {row}"

    def _find(self, i: int) -> tuple[_Part, int]:
        number = int(np.searchsorted(self._ends, i, side="right"))
        return self._parts[number], i - (int(self._ends[number - 1]) if number else 0)

    def _gather(self, matrices: list[np.ndarray], rows: np.ndarray) -> np.ndarray:
        """Return rows of all parts' matrices, float32 (R, width); parts are read one after the other."""
        out = np.empty((len(rows), matrices[0].shape[1]), np.float32)
        numbers = np.searchsorted(self._ends, rows, side="right")
        for number in np.unique(numbers):
            here = numbers == number
            out[here] = matrices[number][rows[here] - (self._ends[number - 1] if number else 0)]
        return out

    def _captions(self, i: int) -> Captions:
        part, row = self._find(i)
        if part.captions is None or part.keys is None:
            return Captions(("",))
        try:
            values = {name: part.captions.column(name)[row].as_py() for name in part.keys.names}
            return from_value(values, part.keys)
        except UnicodeDecodeError:
            raise UnreadableError("caption is not UTF-8") from None
        except UnreadableError:
            if part.texts is None:
                raise
            return Captions(("",))  # its embedding is there all the same


def _open(
    folder: Path, keys: Keys | None, cache_dir: str | Path | None, skipped: dict[str, str]
) -> list[_Part]:
    """Return the parts that can be used; say in ``skipped`` why others cannot."""
    parts: list[_Part] = []
    kinds = {kind: _numbered(folder / kind, suffix) for kind, suffix in _KINDS.items()}
    if not kinds["img_emb"]:
        raise DataError(f"{folder} has no img_emb/*.npy, which precomputed embeddings need")
    with_texts, with_captions = bool(kinds["text_emb"]), bool(kinds["metadata"])
    if not with_texts and not with_captions:
        raise DataError(
            f"{folder} has neither text_emb/*.npy nor metadata/*.parquet: nothing to match pictures with"
        )
    for number, file in kinds["img_emb"].items():
        try:
            images = _matrix(file)
            texts = _matrix(_of(kinds["text_emb"], number)) if with_texts else None
            captions = None
            if with_captions:
                captions, keys = _metadata(_of(kinds["metadata"], number), keys, cache_dir)
            part = _Part(str(file), images, texts, captions, keys if with_captions else None)
            _check_alike(part, parts[0] if parts else part)
            if len(images):
                parts.append(part)
        except UnreadableError as error:
            skipped[str(file)] = str(error)
    if not parts:
        raise DataError(
            f"no part of {folder} can be used: {', '.join(sorted(set(skipped.values()))) or 'they are empty'}"
        )
    return parts


_KINDS = {"img_emb": ".npy", "text_emb": ".npy", "metadata": ".parquet"}


def _numbered(folder: Path, suffix: str) -> dict[int, Path]:
    """Return the files of a folder by the number that their names end in, ascending."""
    found = {}
    for file in folder.glob(f"*{suffix}"):
        digits = re.search(r"(\d+)$", file.stem)
        found[int(digits[1]) if digits else -1] = file
    return dict(sorted(found.items()))


def _of(files: dict[int, Path], number: int) -> Path:
    if number not in files:
        raise UnreadableError("a part lacks its texts")
    return files[number]


def _matrix(file: Path) -> np.ndarray:
    try:
        rows = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        raise UnreadableError("damaged .npy file") from None
    if rows.ndim != 2 or rows.dtype.kind != "f":
        raise UnreadableError("not a matrix of floats")
    return rows


def _metadata(file: Path, keys: Keys | None, cache_dir: str | Path | None) -> tuple[Any, Keys]:
    from fastclip.data.arrow import captions_of

    return captions_of(file, keys, cache_dir)


def _check_alike(part: _Part, first: _Part) -> None:
    lengths = {len(part.images)}
    lengths |= {len(other) for other in (part.texts, part.captions) if other is not None}
    if len(lengths) > 1:
        raise UnreadableError("files of one part have different numbers of rows")
    for ours, theirs in ((part.images, first.images), (part.texts, first.texts)):
        if ours is not None and theirs is not None and ours.shape[1] != theirs.shape[1]:
            raise UnreadableError("another width than the first part")
