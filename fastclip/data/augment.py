"""Move, zoom and mirror a whole batch of pictures at once."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


def jitter(
    images: Tensor,
    draws: np.ndarray,
    flip: np.ndarray,
    *,
    fill: tuple[int, int, int],
    zoom: float = 0.12,
    shift: float = 0.06,
    rotation: float = 0.1,
) -> Tensor:
    """Return ``images`` zoomed, shifted, rotated and mirrored, each by its own row of ``draws``.

    Args:
        images: uint8 ``(B, 3, S, S)``.
        draws: float64 ``(B, 5)`` in [0, 1): zoom, shift in x and in y, rotation, mirror.
        flip: bool ``(B,)``, whether the picture may be mirrored left to right.
        fill: the colour of what comes in from outside the picture, RGB.
        zoom: the largest relative change of size, either way.
        shift: the largest move, as a share of the side.
        rotation: the largest turn, in radians.

    A picture's result depends on its own row only: every step is elementwise over the batch.
    """
    out = torch.empty_like(images)
    for part in (slice(at, at + _CHUNK) for at in range(0, len(images), _CHUNK)):
        out[part] = _jitter(images[part], draws[part], flip[part], fill, zoom, shift, rotation)
    return out


_CHUNK = 128  # pictures at a time, so that the float copies stay in cache


def _jitter(
    images: Tensor,
    draws: np.ndarray,
    flip: np.ndarray,
    fill: tuple[int, int, int],
    zoom: float,
    shift: float,
    rotation: float,
) -> Tensor:
    signed = torch.from_numpy(2 * draws[:, :4] - 1).float()
    scale = (zoom * signed[:, :1]).exp()
    cos, sin = scale * (rotation * signed[:, 3:4]).cos(), scale * (rotation * signed[:, 3:4]).sin()
    mirror = torch.from_numpy(np.where(flip & (draws[:, 4] < 0.5), -1.0, 1.0)).float()[:, None]
    move = 2 * shift * signed[:, 1:3]

    # Output pixel (u, v) in [-1, 1] reads the input at (mirror·(cos·u − sin·v) + dx, sin·u + cos·v + dy): a
    # part that depends on the column plus a part that depends on the row.
    side = images.shape[-1]
    axis = (torch.arange(side) + 0.5) * (2 / side) - 1
    grid = torch.empty(len(images), side, side, 2)
    column, row = (mirror * cos * axis + move[:, :1])[:, None, :], (-mirror * sin * axis)[:, :, None]
    torch.add(column, row, out=grid[..., 0])
    column, row = (sin * axis + move[:, 1:])[:, None, :], (cos * axis)[:, :, None]
    torch.add(column, row, out=grid[..., 1])

    # The sampler pads with zeros, so zero is made to mean the fill colour. Half a level more rounds to the
    # nearest.
    background = torch.tensor(fill, dtype=torch.float32).view(1, 3, 1, 1)
    moved = F.grid_sample(images.float().sub_(background), grid, mode="bilinear", align_corners=False)
    return moved.add_(background + 0.5).to(torch.uint8)
