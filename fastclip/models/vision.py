"""The vision transformer: pictures to tokens, and to points of the shared space."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import VisionConfig
from .stem import ConvStem
from .transformer import MLP, Transformer, count_blocks


class MapPool(nn.Module):
    """Pool tokens by multi-head attention of one learned query, then a residual MLP, as SigLIP does.

        h = attention(probe, x, x),    pooled = h + MLP(LN(h))

    (B, L, width) → (B, width)
    """

    def __init__(self, width: int, heads: int, mlp_ratio: float, activation: str, eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.probe = nn.Parameter(width**-0.5 * torch.randn(1, 1, width))
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps)
        self.mlp = MLP(width, round(width * mlp_ratio), activation)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor) -> Tensor:
        width = x.shape[-1]
        weight, bias = self.in_proj_weight.split(width), self.in_proj_bias.split(width)
        probe = self.probe.to(x.dtype).expand(x.shape[0], 1, -1)
        # each (B, heads, 1 or L, width / heads)
        q, k, v = (
            F.linear(tokens, weight[i], bias[i]).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for i, tokens in enumerate((probe, x, x))
        )
        mixed = F.scaled_dot_product_attention(q, k, v)
        h = self.out_proj(mixed.transpose(1, 2).flatten(2))[:, 0]
        return h + self.mlp(self.norm(h))


class VisionTransformer(nn.Module):
    """Encode pictures by a transformer over their patches.

    (B, 3, H, W) → tokens (B, L, width) → blocks → pooled (B, width) → (B, embed_dim)
    """

    def __init__(self, config: VisionConfig, embed_dim: int, activation: str) -> None:
        super().__init__()
        self.config = config
        width, eps = config.width, config.norm_eps
        tokens = config.grid**2 + (config.pool == "token")
        scale = width**-0.5
        if config.stem == "conv":
            self.stem: nn.Module = ConvStem(config.patch_size, width, activation)
        else:
            self.conv1 = nn.Conv2d(
                3, width, config.patch_size, stride=config.patch_size, bias=config.patch_bias
            )
        if config.pool == "token":
            self.class_embedding = nn.Parameter(scale * torch.randn(width))
        if config.layers:  # a stem alone is a convolutional network and needs neither
            self.positional_embedding = nn.Parameter(scale * torch.randn(tokens, width))
            if config.pre_norm:
                self.ln_pre = nn.LayerNorm(width, eps)
        self.transformer = Transformer(
            width, config.layers, config.heads, config.mlp_ratio, activation, eps=eps
        )
        self.ln_post = nn.LayerNorm(width, eps)
        if config.pool == "map":
            self.attn_pool = MapPool(width, config.heads, config.mlp_ratio, activation, eps)
        if config.projection:
            self.proj = nn.Parameter(scale * torch.randn(width, embed_dim))

    def forward(self, images: Tensor) -> Tensor:
        """Encode images (B, 3, H, W), floating point and normalised, to (B, embed_dim).

        Raises:
            ValueError: images has another shape.
            TypeError: images is not floating point.
        """
        x = self.embed(images)
        if self.config.pool == "token":
            first = torch.zeros(x.shape[0], dtype=torch.int64, device=x.device)
            return self.project(self.ln_post(self.transformer.read(x, first)))
        return self.project(self.pool(self.transformer(x)))

    def tokens(self, images: Tensor, layer: str | int, final_norm: bool, projected: bool) -> Tensor:
        """Encode images to tokens (B, L, width); see CLIP.encode_image_tokens."""
        x = self.transformer(self.embed(images), blocks=count_blocks(layer, self.config.layers))
        x = self.ln_post(x) if final_norm else x
        return self.project(x) if projected else x

    def embed(self, images: Tensor) -> Tensor:
        """Make the first block's input (B, L, width): the patches, behind the class token if there is one."""
        check_images(images, self.config.image_size)
        x = self.stem(images) if self.config.stem == "conv" else self.conv1(images)
        x = x.flatten(2).transpose(1, 2)
        if self.config.pool == "token":
            x = torch.cat([self.class_embedding.to(x.dtype).expand(x.shape[0], 1, -1), x], dim=1)
        if self.config.layers:
            x = x + self.positional_embedding.to(x.dtype)
        if self.training and self.config.patch_dropout:
            x = self._drop_patches(x)
        return self.ln_pre(x) if self.config.layers and self.config.pre_norm else x

    def pool(self, x: Tensor) -> Tensor:
        """Make one vector (B, width) of the last block's output (B, L, width)."""
        if self.config.pool == "map":
            return self.attn_pool(self.ln_post(x))
        return self.ln_post(x[:, 0] if self.config.pool == "token" else x.mean(dim=1))

    def project(self, x: Tensor) -> Tensor:
        """Take (..., width) to (..., embed_dim)."""
        return x @ self.proj.to(x.dtype) if self.config.projection else x

    def _drop_patches(self, x: Tensor) -> Tensor:
        """Keep a random subset of each picture's patches, and its class token."""
        first = int(self.config.pool == "token")
        patches = x.shape[1] - first
        kept = max(1, round(patches * (1 - self.config.patch_dropout)))
        chosen = torch.rand(len(x), patches, device=x.device).argsort(dim=1)[:, :kept] + first
        chosen = chosen[:, :, None].expand(-1, -1, x.shape[2])
        return torch.cat([x[:, :first], x.gather(1, chosen)], dim=1)


def check_images(images: Tensor, size: int) -> None:
    """Raise ValueError or TypeError unless images is (B, 3, size, size) and floating point."""
    if images.dim() != 4 or images.shape[1:] != (3, size, size):
        raise ValueError(
            f"images must have shape (B, 3, {size}, {size}), got {tuple(images.shape)}; resize them"
        )
    if not images.is_floating_point():
        raise TypeError(f"images must be floating point, got {images.dtype}; see CLIP.preprocess")


def resize_positions(positions: Tensor, tokens: int) -> Tensor:
    """Resample position embeddings of a square grid to another one, bicubic and antialiased.

    Args:
        positions: (L, width), of g·g patches, behind the class token's if L = g·g + 1.
        tokens: the new L, with a class token as before.

    Returns:
        (tokens, width).

    Raises:
        ValueError: either is no square grid, with or without a class token.
    """
    old = _grid(len(positions))
    new = _grid(tokens)
    if old is None or new is None or old[1] != new[1]:
        raise ValueError(
            f"positions cannot be resized from {len(positions)} to {tokens} tokens: both must be a square, "
            "or both a square and a class token"
        )
    side, extra = old
    grid = positions[extra:].float().T.reshape(1, -1, side, side)
    grid = F.interpolate(grid, size=(new[0], new[0]), mode="bicubic", antialias=True, align_corners=False)
    grid = grid.flatten(2)[0].T.to(positions.dtype)
    return torch.cat([positions[:extra], grid])


def _grid(tokens: int) -> tuple[int, int] | None:
    """Return (side, 0 or 1 class tokens) of a number of tokens."""
    for extra in (0, 1):
        side = round((tokens - extra) ** 0.5) if tokens > extra else 0
        if side and side * side + extra == tokens:
            return side, extra
    return None
