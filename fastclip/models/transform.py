"""From a picture of any size to the image tower's input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from .config import ResNetConfig, VisionConfig

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class ImageTransform:
    """Turn a PIL picture into float32 (3, S, S): RGB, square, bicubic with antialiasing, normalised.

    Calling it does what OpenAI's and open_clip's evaluation transforms do, so its output can be stacked and encoded.

    Args:
        config: of the image tower; its image_size, resize, mean and std are used.
    """

    config: VisionConfig | ResNetConfig

    def __call__(self, image: Image) -> Tensor:
        pixels = self.to_uint8(image).float() / 255
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.config.mean, self.config.std))
        return (pixels - mean) / std

    def to_uint8(self, image: Image) -> Tensor:
        """Return the square picture before normalisation, uint8 (3, S, S): what CLIP.preprocess takes."""
        from PIL.Image import Resampling

        size = self.config.image_size
        width, height = image.size
        if self.config.resize == "squash":
            width = height = size
        elif width < height:
            width, height = size, int(size * height / width)
        else:
            width, height = int(size * width / height), size
        image = _rgb(image).resize((width, height), Resampling.BICUBIC)
        left, top = round((width - size) / 2), round((height - size) / 2)
        image = image.crop((left, top, left + size, top + size))
        return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).contiguous()


def _rgb(image: Image) -> Image:
    """Return a picture in RGB, as training reads it: transparency shows white."""
    if image.mode == "RGB":
        return image
    if image.mode in ("LA", "PA", "La", "RGBA", "RGBa") or "transparency" in image.info:
        from PIL import Image as pil

        rgba = image.convert("RGBA")
        return pil.alpha_composite(pil.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")
