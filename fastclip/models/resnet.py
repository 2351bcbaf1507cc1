"""OpenAI's modified ResNet: pictures to points of the shared space by convolutions and attention pooling.

It differs from the usual ResNet in a stem of three convolutions, strides that average first (anti-aliased), and
attention in place of the final average. Modules are named as in OpenAI's CLIP, so that its weights load as they are.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import ResNetConfig
from .vision import check_images

EXPANSION = 4


class Bottleneck(nn.Module):
    """Compute relu(x + BN(W₃ a(W₂ W₁ x))): 1x1, 3x3, 1x1 convolutions; a stride is an average pool before W₃."""

    def __init__(self, fan_in: int, width: int, stride: int) -> None:
        super().__init__()
        fan_out = EXPANSION * width
        self.conv1 = nn.Conv2d(fan_in, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.avgpool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.conv3 = nn.Conv2d(width, fan_out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(fan_out)
        self.downsample: nn.Sequential | None = None
        if stride > 1 or fan_in != fan_out:
            # OpenAI's names: "-1" for the pool, which has no parameters
            self.downsample = nn.Sequential(
                OrderedDict(
                    [
                        ("-1", nn.AvgPool2d(stride)),
                        ("0", nn.Conv2d(fan_in, fan_out, 1, bias=False)),
                        ("1", nn.BatchNorm2d(fan_out)),
                    ]
                )
            )
        nn.init.zeros_(self.bn3.weight)  # every block starts as the identity

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(self.bn1(self.conv1(x)))
        inner = self.avgpool(F.relu(self.bn2(self.conv2(inner))))
        inner = self.bn3(self.conv3(inner))
        return F.relu(inner + (x if self.downsample is None else self.downsample(x)))


def _stage(fan_in: int, width: int, depth: int, stride: int) -> nn.Sequential:
    """Build blocks one after the other; the first one strides and widens."""
    more = (Bottleneck(EXPANSION * width, width, stride=1) for _ in range(depth - 1))
    return nn.Sequential(Bottleneck(fan_in, width, stride), *more)


class AttentionPool(nn.Module):
    """Pool a map by multi-head attention of its mean: (B, C, H, W) → (B, embed_dim).

    The mean stands in front of the H·W positions as one more token, and is the only query.
    """

    def __init__(self, grid: int, width: int, heads: int, embed_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.positional_embedding = nn.Parameter(width**-0.5 * torch.randn(grid**2 + 1, width))
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.c_proj = nn.Linear(width, embed_dim)
        for layer in (self.q_proj, self.k_proj, self.v_proj, self.c_proj):
            nn.init.normal_(layer.weight, std=width**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat([x.mean(dim=1, keepdim=True), x], dim=1)
        x = x + self.positional_embedding.to(x.dtype)
        # each (B, heads, 1 or L, width / heads)
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.q_proj(x[:, :1]), self.k_proj(x), self.v_proj(x))
        )
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.c_proj(mixed.transpose(1, 2).flatten(2))[:, 0]


class ModifiedResNet(nn.Module):
    """Encode pictures: stem → four stages of bottleneck blocks → attention pool.

    (B, 3, H, W) → (B, 32 · width, H / 32, W / 32) → (B, embed_dim)

    Batch norm ties the pictures of a training batch together: micro-batches with cached gradients then have other
    statistics than the whole batch.
    """

    def __init__(self, config: ResNetConfig, embed_dim: int, activation: str = "relu") -> None:
        """Build it; activation is the text tower's and is not used: a ResNet has ReLU."""
        super().__init__()
        self.config = config
        width = config.width
        self.conv1 = nn.Conv2d(3, width // 2, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width // 2)
        self.conv2 = nn.Conv2d(width // 2, width // 2, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width // 2)
        self.conv3 = nn.Conv2d(width // 2, width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.avgpool = nn.AvgPool2d(2)
        one, two, three, four = config.depths
        self.layer1 = _stage(width, width, one, stride=1)
        self.layer2 = _stage(EXPANSION * width, 2 * width, two, stride=2)
        self.layer3 = _stage(EXPANSION * 2 * width, 4 * width, three, stride=2)
        self.layer4 = _stage(EXPANSION * 4 * width, 8 * width, four, stride=2)
        self.attnpool = AttentionPool(config.grid, EXPANSION * 8 * width, config.heads, embed_dim)

    def forward(self, images: Tensor) -> Tensor:
        """Encode images (B, 3, H, W), floating point and normalised, to (B, embed_dim)."""
        return self.attnpool(self.features(images))

    def features(self, images: Tensor) -> Tensor:
        """Compute the last stage's map (B, 32 · width, H / 32, W / 32)."""
        check_images(images, self.config.image_size)
        x = F.relu(self.bn1(self.conv1(images)))
        x = F.relu(self.bn2(self.conv2(x)))
        x = self.avgpool(F.relu(self.bn3(self.conv3(x))))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
        return x

    def tokens(self, images: Tensor, layer: str | int, final_norm: bool, projected: bool) -> Tensor:
        """Return the last map's positions (B, H·W / 1024, 32 · width); see CLIP.encode_image_tokens."""
        if layer not in ("last", -1) or projected:
            raise ValueError(
                "a ResNet's tokens are the last map's: layer must be 'last' and projected False, "
                f"got layer={layer!r}, projected={projected}"
            )
        return self.features(images).flatten(2).transpose(1, 2)
