"""Lay pictures out for the map: places on a plane and in space, and one sprite with all of them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastclip.explore.gallery import Gallery
from fastclip.train.projection import spread, tsne

TILE = 64  #: pixels of a picture in the sprite
_FILLED = 0.42  # share of the plane under pictures: room for the gaps that show the clusters


@dataclass(frozen=True)
class Layout:
    """Where the pictures of a map lie."""

    places: list[int]  #: in the gallery, n of them
    plane: Tensor  #: (n, 2), in widths of a picture, from 0 on
    solid: Tensor  #: (n, 3), within the unit ball
    columns: int  #: of the sprite
    sprite: bytes  #: WebP, pictures in rows


def lay_out(gallery: Gallery, *, limit: int = 1000, seed: int = 0) -> Layout:
    """Lay out the unseen pictures of a gallery, at most `limit` of them, drawn at random if there are more."""
    places = gallery.unseen.nonzero()[:, 0]
    if len(places) > limit:
        places = places[torch.randperm(len(places), generator=torch.Generator().manual_seed(seed))[:limit]]
    x = gallery.images[places]
    columns = max(1, round(len(places) ** 0.5))
    with ThreadPoolExecutor(2) as pool:
        drawn = pool.submit(gallery.draw, places.tolist(), TILE)
        solid = pool.submit(tsne, x, dims=3, steps=200)
        plane = _plane(x)
        sprite, ball = sprite_sheet(drawn.result(), columns), solid.result()
    ball = ball - (ball.amax(0) + ball.amin(0)) / 2
    ball = ball / ball.norm(dim=1).max().clamp_min(1e-12)
    return Layout(places.tolist(), plane, ball, columns, sprite)


def _plane(x: Tensor) -> Tensor:
    """Return places (n, 2) at which squares of side 1 do not overlap."""
    y = tsne(x, steps=300)
    side = (len(x) / _FILLED) ** 0.5
    y = y - (y.amax(0) + y.amin(0)) / 2
    y = spread(y / y.abs().max().clamp_min(1e-12) * side / 2, 1.02, steps=120)
    return y - y.amin(0)


def sprite_sheet(pictures: np.ndarray, columns: int) -> bytes:
    """Return pictures uint8 (n, S, S, 3 or 4) as one WebP, `columns` a row."""
    n, side, _, channels = pictures.shape
    rows = -(-n // columns)
    sheet = np.zeros((rows * columns, side, side, channels), np.uint8)
    sheet[:n] = pictures
    grid = sheet.reshape(rows, columns, side, side, channels).swapaxes(1, 2)
    return encode_picture(grid.reshape(rows * side, columns * side, channels))


def encode_picture(pixels: np.ndarray, quality: int = 82) -> bytes:
    """Return pixels uint8 (H, W, 3 or 4) as a WebP."""
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "WEBP", quality=quality, method=3)
    return out.getvalue()


def thumbnails(gallery: Gallery, places: Sequence[int], side: int = 96) -> dict[int, bytes]:
    """Return a WebP for each of the pictures, by place."""
    distinct = sorted(set(places))
    if not distinct:
        return {}
    drawn = gallery.draw(distinct, side)
    return {place: encode_picture(pixels) for place, pixels in zip(distinct, drawn, strict=True)}
