"""CLIP: an image tower and a text tower that meet in one space."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import CLIPConfig
from .text import TextTower
from .vision import VisionTransformer


class CLIP(TextTower):
    """Encode pictures and texts into one space, where matching pairs point the same way.

    The state dict has OpenAI's flat layout: the text tower's entries bear no prefix (hence the inheritance),
    the image tower's begin with "visual.".

    Args:
        config: the model's description, kept as `config`.
    """

    MAX_LOG_SCALE = math.log(100)

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__(config.text, config.embed_dim, config.activation)
        self.config = config
        self.visual = VisionTransformer(config.vision, config.embed_dim, config.activation)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(config.init_logit_scale)))
        if config.init_logit_bias is not None:
            self.logit_bias = nn.Parameter(torch.tensor(float(config.init_logit_bias)))

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

    def forward(self, images: Tensor, tokens: Tensor) -> dict[str, Tensor]:
        """Encode both sides for a contrastive loss.

        Args:
            images: (M, 3, H, W) float.
            tokens: (N, L) integer ids.

        Returns:
            image_features (M, embed_dim) and text_features (N, embed_dim), of unit length; logit_scale, the
            multiplier (already exponentiated), 0-d; logit_bias, 0-d, where the model has one.
        """
        output = {
            "image_features": self.encode_image(images, normalize=True),
            "text_features": self.encode_text(tokens, normalize=True),
            "logit_scale": self.logit_scale.exp(),
        }
        if self.config.init_logit_bias is not None:
            output["logit_bias"] = self.logit_bias
        return output

    @torch.no_grad()
    def clamp_logit_scale_(self) -> None:
        """Keep the multiplier within [1, 100], in place: after each optimizer step, as CLIP's paper does."""
        self.logit_scale.clamp_(0, self.MAX_LOG_SCALE)
