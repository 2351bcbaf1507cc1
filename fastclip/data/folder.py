"""Give a user's own pictures: a folder with caption files, or a table of pictures and captions."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastclip.data.listing import Record, list_folder, list_table
from fastclip.data.picture import UnreadableError, decode
from fastclip.data.source import HeldOut, Pairs, PairSource, as_indices, permutation, uniforms

MAX_HELD_OUT = 1000  # pictures


class FolderSource(PairSource):
    """Give the pairs of a folder, a CSV or a TSV file, one per picture, and keep some of them for validation.

    Pictures are decoded when fetched. A picture with several captions shows one of them, drawn anew each
    epoch. One that cannot be read is left out, counted in ``skipped`` once, and listed in ``skipped_files``.

    Args:
        path: the folder or the table; ``listing`` says how captions are found.
        image_size: side of the pictures, in pixels.
        seed: chooses the validation pictures.
        held_out_share: share of the pictures kept for validation, at most 1,000 of them; 0 keeps none.
        csv_img_key, csv_caption_key, csv_separator: see ``listing.list_table``.
        shuffled_captions: give every training picture another one's captions; the control.

    Raises FileNotFoundError or ValueError if there is nothing to train on.
    """

    def __init__(
        self,
        path: str | Path,
        image_size: int = 224,
        seed: int = 0,
        held_out_share: float = 0.05,
        csv_img_key: str | None = None,
        csv_caption_key: str | None = None,
        csv_separator: str | None = None,
        shuffled_captions: bool = False,
    ) -> None:
        path = Path(path)
        if not 0 <= held_out_share < 1:
            raise ValueError(f"held_out_share must lie in [0, 1), got {held_out_share}")
        if path.is_dir():
            listing = list_folder(path)
        elif path.suffix.lower() in (".csv", ".tsv") and path.is_file():
            listing = list_table(path, csv_img_key, csv_caption_key, csv_separator)
        elif path.exists():
            raise ValueError(f"{path} is neither a folder nor a .csv or .tsv file")
        else:
            raise FileNotFoundError(
                f"{path} does not exist: give a folder of pictures, a .csv or a .tsv file"
            )
        _require_pillow()
        super().__init__(f"{path.name}, shuffled captions" if shuffled_captions else path.name, image_size)

        self.skipped_files = dict(listing.skipped)  #: reason by file
        self.skipped.update(listing.skipped.values())
        self._lock = threading.Lock()  # fetch may run in several threads
        self._seed = seed

        count = len(listing.records)
        order = permutation(count, seed, -1).tolist()
        kept = min(MAX_HELD_OUT, round(held_out_share * count))
        self._validation = [listing.records[i] for i in sorted(order[:kept])]
        self._records = [listing.records[i] for i in sorted(order[kept:])]
        self._captions = [record.captions for record in self._records]
        if shuffled_captions:
            self._captions = [self._captions[i] for i in permutation(len(self._records), seed, -2)]
        self._held_out: list[HeldOut] | None = None

    def __len__(self) -> int:
        return len(self._records)

    def fetch(self, indices: Sequence[int] | Tensor, *, seed: int, epoch: int, augment: bool = True) -> Pairs:
        """Return the readable pairs of ``indices``: with bad pictures among them, fewer than asked for."""
        index = as_indices(indices, len(self))
        draws = uniforms(index, 5, seed=seed, epoch=epoch)
        images, captions, kept = [], [], []
        for row, i in enumerate(index.tolist()):
            image = self._decode(self._records[i], draws[row, :4] if augment else None)
            if image is not None:
                choice = int(draws[row, 4] * len(self._captions[i])) if augment else 0
                images.append(image)
                captions.append(self._captions[i][choice])
                kept.append(i)
        labels = torch.tensor([_label(caption) for caption in captions], dtype=torch.int64)
        return Pairs(self._stack(images), captions, labels, torch.tensor(kept, dtype=torch.int64))

    def held_out(self) -> list[HeldOut]:
        """Return one test over the validation pictures, or none if no picture was kept for it."""
        if self._held_out is None:
            images, captions = [], []
            for record in self._validation:
                image = self._decode(record, None)
                if image is not None:
                    images.append(image)
                    captions.append(record.captions[0])
            gallery = sorted(set(captions))
            position = {caption: i for i, caption in enumerate(gallery)}
            target = torch.tensor([position[caption] for caption in captions], dtype=torch.int64)
            test = HeldOut("validation", self._stack(images), gallery, target, headline="R@1")
            self._held_out = [test] if images else []
        return self._held_out

    def _decode(self, record: Record, draws: np.ndarray | None) -> np.ndarray | None:
        try:
            return decode(record.path, self.image_size, draws)
        except UnreadableError as error:
            with self._lock:
                if str(record.path) not in self.skipped_files:
                    self.skipped_files[str(record.path)] = str(error)
                    self.skipped[str(error)] += 1
            return None

    def _stack(self, images: list[np.ndarray]) -> Tensor:
        shape = (len(images), 3, self.image_size, self.image_size)
        out = torch.empty(shape, dtype=torch.uint8)
        for row, image in enumerate(images):
            out[row] = torch.from_numpy(image.copy())
        return out


def _label(caption: str) -> int:
    """Return a number that equal captions share: 63 bits of a hash, so no list of all captions is held."""
    return int.from_bytes(hashlib.blake2b(caption.encode(), digest_size=8).digest(), "little") >> 1


def _require_pillow() -> None:
    try:
        import PIL  # noqa: F401
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "reading pictures needs Pillow, not installed here; run: pip install 'fastclip-kernels[train]'"
        ) from None
