"""Hold the pictures that a space is explored with, with what is known of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fastclip.data.source import HeldOut, PairSource
from fastclip.space import Encoder


@dataclass
class Gallery:
    """Hold N pictures as points of the space, with their captions, and the encoder of further texts."""

    name: str
    images: Tensor  #: float32 (N, D), of unit length
    captions: list[str]  #: N
    unseen: Tensor  #: bool (N,), whether the model was not trained on the picture
    kinds: list[str]  #: N, what a picture is in a word; colours the map
    draw: Callable[
        [Sequence[int], int], np.ndarray
    ]  #: (places, side) -> uint8 (n, side, side, 3 or 4), for people
    encode_texts: Callable[[Sequence[str]], Tensor]  #: n texts -> (n, D), of unit length
    credits: str | None = None
    tests: list[GalleryTest] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.captions)


@dataclass
class GalleryTest:
    """A held-out test whose pictures stand in a gallery."""

    test: HeldOut
    places: Tensor  #: int64 (Q,), of the test's pictures in the gallery
    texts: Tensor  #: float32 (G, D), of its captions


def held_out_gallery(source: PairSource, encoder: Encoder) -> Gallery:
    """Return the gallery of the pictures that a source holds out.

    Raises:
        ValueError: nothing is held out, or what is held out are no pictures.
    """
    tests = [test for test in source.held_out() if len(test)]
    if not tests:
        raise ValueError(
            f"{source.name} holds out no pictures, so there is nothing that the model has not seen"
        )
    if any(test.images.dtype != torch.uint8 for test in tests):
        raise ValueError(f"{source.name} holds precomputed features; a space is explored with pictures")
    owners = [(test, i) for test in tests for i in range(len(test))]
    starts = torch.tensor([0] + [len(test) for test in tests]).cumsum(0)

    def draw(places: Sequence[int], side: int) -> np.ndarray:
        drawn = np.empty((len(places), side, side, 3), np.uint8)
        for test in tests:
            mine = [row for row, place in enumerate(places) if owners[place][0] is test]
            if mine:
                drawn[mine] = _portraits(test, [owners[places[row]][1] for row in mine], side)
        return drawn

    return Gallery(
        name=source.name,
        images=encoder.images(torch.cat([test.images for test in tests])),
        captions=[test.gallery[i] for test in tests for i in test.target.tolist()],
        unseen=torch.ones(len(owners), dtype=torch.bool),
        kinds=[test.name for test, _ in owners],
        draw=draw,
        encode_texts=encoder.texts,
        credits=getattr(source, "credits", None),
        tests=[
            GalleryTest(test, torch.arange(int(start), int(start) + len(test)), encoder.texts(test.gallery))
            for test, start in zip(tests, starts, strict=False)
        ],
    )


def _portraits(test: HeldOut, rows: Sequence[int], side: int) -> np.ndarray:
    if test.portraits is not None:
        images = test.portraits(rows, side)
    else:
        images = F.interpolate(test.images[list(rows)].float(), (side, side), mode="bicubic", antialias=True)
        images = images.round_().clamp_(0, 255).to(torch.uint8)
    return images.permute(0, 2, 3, 1).numpy()
