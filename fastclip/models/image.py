"""The image tower as a model: pictures to points of the shared space."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import CLIPConfig, ImageTowerConfig, ResNetConfig
from .resnet import ModifiedResNet
from .vision import VisionTransformer


class ImageTower(nn.Module):
    """Encode pictures by a vision transformer or a ResNet, `visual`.

    By itself this is a CLIP without texts; its state dict is that part of a CLIP's which begins with "visual.".

    Args:
        config: the tower's description, kept as `config`.
    """

    config: CLIPConfig | ImageTowerConfig

    def __init__(self, config: ImageTowerConfig) -> None:
        super().__init__()
        self.config = config
        self._build_visual(config)

    def _build_visual(self, config: ImageTowerConfig) -> None:
        kind = ModifiedResNet if isinstance(config.vision, ResNetConfig) else VisionTransformer
        self.visual: ModifiedResNet | VisionTransformer = kind(
            config.vision,  # type: ignore[arg-type]
            config.embed_dim,
            config.activation,
        )

    def preprocess(self, images: Tensor) -> Tensor:
        """Make uint8 pictures (B, 3, H, W) encode_image's input: (images / 255 - mean) / std, float32.

        Raises:
            ValueError: images has another dtype or shape.
        """
        if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] != 3:
            raise ValueError(f"images must be uint8 (B, 3, H, W), got {images.dtype} {tuple(images.shape)}")
        mean, std = (
            torch.tensor(values, device=images.device)[:, None, None]
            for values in (self.config.vision.mean, self.config.vision.std)
        )
        return (images - 255 * mean) / (255 * std)

    def encode_image(self, images: Tensor, normalize: bool = False) -> Tensor:
        """Encode pictures to points of the shared space.

        Args:
            images: (B, 3, H, W) floating point, as preprocess makes them.
            normalize: divide by the L2 norm.

        Returns:
            (B, embed_dim).

        Raises:
            ValueError: images has another shape.
            TypeError: images is not floating point.
        """
        x = self.visual(images)
        return F.normalize(x, dim=-1) if normalize else x

    def forward(self, images: Tensor) -> Tensor:
        """Encode pictures; see encode_image."""
        return self.encode_image(images)

    def encode_image_tokens(
        self,
        images: Tensor,
        layer: str | int = "last",
        *,
        final_norm: bool = True,
        projected: bool = False,
    ) -> Tensor:
        """Encode pictures to one vector per patch (the first is the class token's, where there is one).

        Args:
            images: (B, 3, H, W) floating point, as preprocess makes them.
            layer: "last", "penultimate", or the number of blocks that are applied, -1 meaning all; see
                TextTower.encode_text_tokens.
            final_norm: apply the layer norm behind the last block, whichever layer is read.
            projected: take the tokens to the shared space, by the matrix made for the pooled vector.

        Returns:
            (B, L, width), or (B, L, embed_dim) if projected; of a ResNet the last map's positions, row by row.

        Raises:
            ValueError: images has another shape, there is no such layer, or a ResNet is asked for more than its
                last map.
            TypeError: images is not floating point.
        """
        return self.visual.tokens(images, layer, final_norm, projected)
