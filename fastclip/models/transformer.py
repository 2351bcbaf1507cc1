"""The pre-norm transformer that both towers share.

    x ← x + attention(LN(x)),    x ← x + W₂ act(W₁ LN(x))

Modules and parameters are named as in OpenAI's CLIP, so that its weights load as they are.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class QuickGELU(nn.Module):
    """Compute x · sigmoid(1.702 x), the approximation of GELU that OpenAI trained with."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


def make_activation(name: str) -> nn.Module:
    """Build the activation that a config names: "gelu" or "quick_gelu"."""
    return QuickGELU() if name == "quick_gelu" else nn.GELU()


class Attention(nn.Module):
    """Mix tokens by multi-head self-attention: softmax(q kᵀ / √(width / heads)) v, then a projection.

    With causal, a token attends to itself and the tokens before it only.
    """

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads = heads
        self.causal = causal
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Attend within each row of x (B, L, width)."""
        qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        # each (B, heads, L, width / heads)
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Transform each token by itself: W₂ act(W₁ x)."""

    def __init__(self, width: int, hidden: int, activation: str) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, hidden)
        self.act = make_activation(activation)
        self.c_proj = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(self.act(self.c_fc(x)))


class ResidualAttentionBlock(nn.Module):
    """Add attention, then an MLP, each on a normalised input."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, activation: str, causal: bool) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads, causal)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = MLP(width, round(width * mlp_ratio), activation)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))

    def draw_as_language_model(self, layers: int) -> None:
        """Draw the weights as OpenAI's text tower: a branch adds less in a deeper one, as 1/√(2 layers)."""
        width = self.attn.out_proj.in_features
        std = width**-0.5
        nn.init.normal_(self.attn.in_proj_weight, std=std)
        nn.init.normal_(self.attn.out_proj.weight, std=std * (2 * layers) ** -0.5)
        nn.init.normal_(self.mlp.c_fc.weight, std=(2 * width) ** -0.5)
        nn.init.normal_(self.mlp.c_proj.weight, std=std * (2 * layers) ** -0.5)


class Transformer(nn.Module):
    """Apply residual attention blocks, one after the other, to x (B, L, width).

    A causal one is a text tower's: it looks back only, and its weights are drawn as a language model's.
    """

    def __init__(
        self, width: int, layers: int, heads: int, mlp_ratio: float, activation: str, causal: bool = False
    ) -> None:
        super().__init__()
        blocks = [ResidualAttentionBlock(width, heads, mlp_ratio, activation, causal) for _ in range(layers)]
        if causal:
            for block in blocks:
                block.draw_as_language_model(layers)
        self.resblocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.resblocks:
            x = block(x)
        return x
