"""A convolutional way from a picture to tokens."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from .transformer import make_activation


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
