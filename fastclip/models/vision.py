"""The image tower: pictures to points of the shared space."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from .config import VisionConfig
from .transformer import Transformer, make_activation


class ChannelNorm(nn.LayerNorm):
    """Normalise the channels of each position of x (B, C, H, W).

    Not BatchNorm: a picture's features must not depend on its neighbours, or micro-batches with cached gradients
    would not add up to the full batch.
    """

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ResidualConv(nn.Module):
    """Compute act(x + N(W₂ act(N(W₁ x)))) with 3x3 convolutions; x (B, width, H, W) keeps its shape."""

    def __init__(self, width: int, activation: str) -> None:
        super().__init__()
        self.conv_1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm_1 = ChannelNorm(width)
        self.conv_2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm_2 = ChannelNorm(width)
        self.act = make_activation(activation)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.act(self.norm_1(self.conv_1(x)))
        return self.act(x + self.norm_2(self.conv_2(inner)))


class ConvStem(nn.Sequential):
    """Make tokens by convolutions that halve the side and double the channels, up to width, step by step.

    (B, 3, H, W) → (B, width, H / patch_size, W / patch_size)

    Each step but the first, whose side is still large, has a residual block as well.
    """

    def __init__(self, patch_size: int, width: int, activation: str) -> None:
        steps = patch_size.bit_length() - 1
        channels = [3] + [width >> (steps - 1 - i) for i in range(steps)]
        layers: list[nn.Module] = []
        for step, (fan_in, fan_out) in enumerate(pairwise(channels)):
            layers += [
                nn.Conv2d(fan_in, fan_out, 3, stride=2, padding=1, bias=False),
                ChannelNorm(fan_out),
                make_activation(activation),
            ]
            if step:
                layers.append(ResidualConv(fan_out, activation))
        super().__init__(*layers)

    def forward(self, images: Tensor) -> Tensor:
        # Channels last: the layout in which ChannelNorm reads, and the faster one for convolutions on the CPU.
        return super().forward(images.contiguous(memory_format=torch.channels_last))


class VisionTransformer(nn.Module):
    """Encode pictures by a transformer over their patches.

    (B, 3, H, W) → tokens (B, L, width) → blocks → pooled (B, width) → (B, embed_dim)
    """

    def __init__(self, config: VisionConfig, embed_dim: int, activation: str) -> None:
        super().__init__()
        self.config = config
        width = config.width
        tokens = (config.image_size // config.patch_size) ** 2 + (config.pool == "token")
        scale = width**-0.5
        if config.stem == "conv":
            self.stem: nn.Module = ConvStem(config.patch_size, width, activation)
        else:
            self.conv1 = nn.Conv2d(3, width, config.patch_size, stride=config.patch_size, bias=False)
        if config.pool == "token":
            self.class_embedding = nn.Parameter(scale * torch.randn(width))
        if config.layers:  # a stem alone is a convolutional network and needs neither
            self.positional_embedding = nn.Parameter(scale * torch.randn(tokens, width))
            self.ln_pre = nn.LayerNorm(width)
        self.transformer = Transformer(width, config.layers, config.heads, config.mlp_ratio, activation)
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(scale * torch.randn(width, embed_dim))

    def forward(self, images: Tensor) -> Tensor:
        """Encode images (B, 3, H, W), floating point and normalised, to (B, embed_dim).

        Raises:
            ValueError: images has another shape.
            TypeError: images is not floating point.
        """
        self._check(images)
        x = self.stem(images) if self.config.stem == "conv" else self.conv1(images)
        x = x.flatten(2).transpose(1, 2)
        if self.config.pool == "token":
            x = torch.cat([self.class_embedding.to(x.dtype).expand(len(x), 1, -1), x], dim=1)
        if self.config.layers:
            x = self.transformer(self.ln_pre(x + self.positional_embedding.to(x.dtype)))
        x = x[:, 0] if self.config.pool == "token" else x.mean(dim=1)
        return self.ln_post(x) @ self.proj.to(x.dtype)

    def _check(self, images: Tensor) -> None:
        size = self.config.image_size
        if images.dim() != 4 or images.shape[1:] != (3, size, size):
            raise ValueError(
                f"images must have shape (B, 3, {size}, {size}), got {tuple(images.shape)}; resize them"
            )
        if not images.is_floating_point():
            raise TypeError(f"images must be floating point, got {images.dtype}; see CLIP.preprocess")
