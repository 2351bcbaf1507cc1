"""Move, zoom, mirror and recolour a whole batch of pictures at once."""

from __future__ import annotations

from dataclasses import dataclass

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


@dataclass(frozen=True)
class Augmentation:
    """Say what is done to training pictures beside resizing."""

    scale: float = 0.9  #: smallest share of the area that a random crop keeps, in (0, 1]
    flip: float = 0.0  #: probability of a mirror image; captions that say left and right then lie
    color_jitter: float = 0.0  #: brightness, contrast and saturation each change by up to this share
    grayscale: float = 0.0  #: probability of a grey picture

    def __post_init__(self) -> None:
        if not 0 < self.scale <= 1:
            raise ValueError(f"scale must lie in (0, 1], got {self.scale}")
        for name in ("flip", "color_jitter", "grayscale"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {getattr(self, name)}")


def recolour(images: Tensor, draws: np.ndarray, augmentation: Augmentation) -> Tensor:
    """Return ``images`` mirrored and coloured as ``augmentation`` says, each by its own row of ``draws``.

    Args:
        images: uint8 ``(B, 3, S, S)``; left alone where nothing is asked for.
        draws: float64 ``(B, 5)`` in [0, 1): mirror, brightness, contrast, saturation, grey.
        augmentation: its crop is not done here.
    """
    wanted = torch.from_numpy(draws)
    if augmentation.flip > 0:
        mirrored = wanted[:, 0] < augmentation.flip
        images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
    grey = wanted[:, 4] < augmentation.grayscale
    if augmentation.color_jitter == 0 and not grey.any():
        return images
    out = torch.empty_like(images)
    for part in (slice(at, at + _CHUNK) for at in range(0, len(images), _CHUNK)):
        factors = (1 + augmentation.color_jitter * (2 * wanted[part, 1:4] - 1)).float()
        brightness, contrast, saturation = factors[:, :, None, None, None].unbind(1)
        x = images[part].float() * brightness
        x = _blend(x.clamp_(0, 255), _luma(x).mean((2, 3), keepdim=True), contrast)
        saturation = saturation.masked_fill(grey[part, None, None, None], 0)
        out[part] = _blend(x, _luma(x), saturation).add_(0.5).to(torch.uint8)
    return out


def _luma(x: Tensor) -> Tensor:
    """Return the brightness that the eye sees in RGB ``(B, 3, S, S)``: ``(B, 1, S, S)``, by ITU-R BT.601."""
    return (x * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)


def _blend(x: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    return (other + factor * (x - other)).clamp_(0, 255)
