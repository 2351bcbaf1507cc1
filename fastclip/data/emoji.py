"""Give emoji art with its Unicode names as image-text pairs: the default data, from installed packages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastclip.data.augment import jitter
from fastclip.data.emoji_art import BACKGROUND, CREDITS, load_art
from fastclip.data.emoji_names import TONES, EmojiName
from fastclip.data.emoji_split import split
from fastclip.data.source import HeldOut, Pairs, PairSource, as_indices, permutation, uniforms

TEMPLATES = ("{name}", "{name}", "an emoji of {name}", "a drawing of {name}", "{tone_first}")

_CAPTION, _AUGMENT = slice(0, 1), slice(1, 6)


class EmojiSource(PairSource):
    """Give about 7,000 pictures in two art styles, and hold out compositions, styles and concepts.

    Args:
        image_size: side of the pictures, in pixels.
        seed: chooses what is held out.
        cache_dir: where the drawn pictures are kept; see ``emoji_art.load_art``.
        shuffled_captions: give every training picture another one's name. The control: what a model scores on
            the held-out tests after such training is chance.
    """

    credits = CREDITS

    def __init__(
        self,
        image_size: int = 64,
        seed: int = 0,
        cache_dir: str | Path | None = None,
        shuffled_captions: bool = False,
    ) -> None:
        super().__init__("emoji, shuffled captions" if shuffled_captions else "emoji", image_size)
        art = load_art(image_size, cache_dir)
        self.seconds = art.seconds  #: time spent drawing or loading the pictures
        self.split = split(art, seed)
        train = self.split.train
        self.images = art.images[train]  #: uint8 (N, 3, S, S), the training pictures
        self.styles = art.styles[train]  #: int64 (N,)
        self.names: list[EmojiName] = [art.names[i] for i in train.tolist()]
        self._flip = np.array([name.may_flip for name in self.names])
        if shuffled_captions:
            self.names = [self.names[i] for i in permutation(len(train), seed, -1)]
        ids = {name: i for i, name in enumerate(sorted({str(name) for name in self.names}))}
        self._labels = torch.tensor([ids[str(name)] for name in self.names])

    def __len__(self) -> int:
        return len(self.names)

    def fetch(self, indices: Sequence[int] | Tensor, *, seed: int, epoch: int, augment: bool = True) -> Pairs:
        """Return the pairs at ``indices``; pairs of one name share a label whatever their template."""
        index = as_indices(indices, len(self))
        rows = torch.from_numpy(index)
        images, labels = self.images[rows], self._labels[rows]
        if not augment:
            return Pairs(images, [str(self.names[i]) for i in index], labels, rows)
        draws = uniforms(index, 6, seed=seed, epoch=epoch)
        template = (draws[:, _CAPTION] * len(TEMPLATES)).astype(int)[:, 0]
        captions = [_caption(self.names[i], TEMPLATES[t]) for i, t in zip(index, template, strict=True)]
        images = jitter(images, draws[:, _AUGMENT], self._flip[index], fill=BACKGROUND)
        return Pairs(images, captions, labels, rows)

    def held_out(self) -> list[HeldOut]:
        """Return the tests: unseen composition, unseen style, unseen concept."""
        return self.split.tests


def _caption(name: EmojiName, template: str) -> str:
    tones = " and ".join(f"{TONES[tone]} skin tone" for tone in name.tones)
    return template.format(name=name, tone_first=f"{tones} {name.base}" if tones else name.base)
