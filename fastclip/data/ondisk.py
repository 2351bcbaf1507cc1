"""Give the pairs of records on disk: decode, crop and choose a caption when they are fetched."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from fastclip.data.augment import Augmentation, recolour
from fastclip.data.captions import Captions
from fastclip.data.picture import UnreadableError, decode, decoder_name
from fastclip.data.records import Records
from fastclip.data.source import HeldOut, Pairs, as_indices, uniforms
from fastclip.data.split import SplitSource

_CROP, _CAPTION, _COLOUR = slice(0, 4), 4, slice(5, 10)


class RecordSource(SplitSource):
    """Give one pair per record, and keep some records for validation.

    A picture with several captions shows one of them, drawn anew each epoch. A pair that cannot be read is left out
    of the result, counted in ``skipped`` once, and listed in ``skipped_files``.

    Args:
        records: where pictures and captions lie.
        image_size: side of the pictures, in pixels.
        seed: chooses the validation pictures.
        held_out_share: share of the records kept for validation, at most 1,000 of them; 0 keeps none, 1 all of them.
        shuffled_captions: give every training picture another one's captions; the control.
        augmentation: what is done to training pictures.
    """

    def __init__(
        self,
        records: Records,
        image_size: int,
        *,
        seed: int = 0,
        held_out_share: float = 0.05,
        shuffled_captions: bool = False,
        augmentation: Augmentation | None = None,
    ) -> None:
        _require_pillow()
        super().__init__(
            records.name,
            image_size,
            len(records),
            seed=seed,
            held_out_share=held_out_share,
            shuffled_captions=shuffled_captions,
            skipped=records.skipped,
        )
        self.decoder = decoder_name()  #: what decodes the pictures, for a run's facts
        self.records, self.lost = records, records.lost
        self.augmentation = augmentation or Augmentation()
        self._tests: list[HeldOut] | None = None

    def fetch(self, indices: Sequence[int] | Tensor, *, seed: int, epoch: int, augment: bool = True) -> Pairs:
        """Return the readable pairs of ``indices``: with bad ones among them, fewer than asked for."""
        index = as_indices(indices, len(self))
        draws = uniforms(index, _COLOUR.stop, seed=seed, epoch=epoch)
        records, captioned_by = self._records(index)
        images = np.empty((len(index), 3, self.image_size, self.image_size), np.uint8)
        captions: list[str] = []
        kept: list[int] = []  # rows of the pairs that could be read
        for row, (i, j) in enumerate(zip(records.tolist(), captioned_by.tolist(), strict=True)):
            pair = self._pair(i, j, draws[row, _CROP] if augment else None)
            if pair is not None:
                images[len(kept)] = pair[0]
                captions.append(pair[1].choose(draws[row, _CAPTION]) if augment else pair[1].texts[0])
                kept.append(row)
        pictures = torch.from_numpy(images)[: len(kept)]
        if augment:
            pictures = recolour(pictures, draws[kept, _COLOUR], self.augmentation)
        labels = torch.tensor([label_of(caption) for caption in captions], dtype=torch.int64)
        return Pairs(pictures, captions, labels, torch.from_numpy(index[kept]))

    def _test(self) -> list[HeldOut]:
        if self._tests is None:
            with ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="fastclip-validation") as pool:
                pairs = [pair for pair in pool.map(lambda i: self._pair(i, i), self._kept.tolist()) if pair]
            images, captions = [image for image, _ in pairs], [captions.texts for _, captions in pairs]
            self._tests = [retrieval_test(torch.from_numpy(np.stack(images)), captions)] if pairs else []
        return self._tests

    def _pair(self, i: int, j: int, crop: np.ndarray | None = None) -> tuple[np.ndarray, Captions] | None:
        """Return the picture of record ``i`` and the captions of record ``j``, or None if one is unreadable."""
        at = j
        try:
            captions = self.records.captions(j)
            at = i
            data = self.records.picture(i)
            return decode(data, self.image_size, crop, least=self.augmentation.scale), captions
        except UnreadableError as error:
            self._skip(self.records.where(at), error)
            return None


def retrieval_test(images: Tensor, captions: Sequence[Sequence[str]]) -> HeldOut:
    """Return the retrieval test over pictures that have one or more captions each."""
    gallery = sorted({text for texts in captions for text in texts})
    position = {text: i for i, text in enumerate(gallery)}
    target = torch.tensor([position[texts[0]] for texts in captions], dtype=torch.int64)
    test = HeldOut("validation", images, gallery, target, headline="R@1")
    if max(map(len, captions)) > 1:
        # Pictures that share a caption belong together, with all their captions: union by smallest caption.
        parent = list(range(len(gallery)))

        def root(i: int) -> int:
            while parent[i] != i:
                parent[i] = i = parent[parent[i]]
            return i

        for texts in captions:
            for text in texts[1:]:
                parent[root(position[text])] = root(position[texts[0]])
        test.text_labels = torch.tensor([root(i) for i in range(len(gallery))])
        test.image_labels = test.text_labels[target]
    return test


def label_of(caption: str) -> int:
    """Return a number that equal captions share: 63 bits of a hash, so no list of all captions is held."""
    return int.from_bytes(hashlib.blake2b(caption.encode(), digest_size=8).digest(), "little") >> 1


def _require_pillow() -> None:
    try:
        import PIL  # noqa: F401
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "reading pictures needs Pillow, not installed here; run: pip install 'fastclip-kernels[train]'"
        ) from None
