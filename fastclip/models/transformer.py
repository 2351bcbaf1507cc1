"""The pre-norm transformer that both towers share.

    x ← x + attention(LN(x)),    x ← x + W₂ act(W₁ LN(x))

Modules and parameters are named as in OpenAI's CLIP, so that its weights load as they are.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def token_at(x: Tensor, at: Tensor) -> Tensor:
    """Return one token of each row of x (B, L, width): (B, width). at is int64 (B,)."""
    return x[torch.arange(x.shape[0], device=x.device), at]


class QuickGELU(nn.Module):
    """Compute x · sigmoid(1.702 x), the approximation of GELU that OpenAI trained with."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


def make_activation(name: str) -> nn.Module:
    """Build the activation that a config names: "gelu", "quick_gelu" or "gelu_tanh"."""
    if name == "quick_gelu":
        return QuickGELU()
    return nn.GELU(approximate="tanh" if name == "gelu_tanh" else "none")


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

    def forward(self, x: Tensor, mask: Tensor | None = None, read: Tensor | None = None) -> Tensor:
        """Attend within each row of x (B, L, width); mask (B, 1, L, L) is True where a token may look.

        With read, int64 (B,), return what the one token there in each row makes of all of them: (B, 1, width).
        """
        if read is not None:
            return self._attend_at(read, x, mask)
        qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        # each (B, heads, L, width / heads)
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, mask, is_causal=self.causal and mask is None)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))

    def _attend_at(self, read: Tensor, x: Tensor, mask: Tensor | None) -> Tensor:
        rows = torch.arange(x.shape[0], device=x.device)
        (q_weight, kv_weight), (q_bias, kv_bias) = (
            part.tensor_split((x.shape[-1],)) for part in (self.in_proj_weight, self.in_proj_bias)
        )
        q = F.linear(x[rows, read], q_weight, q_bias).unflatten(-1, (self.heads, 1, -1))
        k, v = F.linear(x, kv_weight, kv_bias).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if mask is not None:
            mask = mask[rows, :, read].unsqueeze(2)
        elif self.causal:
            mask = (torch.arange(x.shape[1], device=x.device) <= read[:, None])[:, None, None]
        mixed = F.scaled_dot_product_attention(q, k, v, mask)
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

    def __init__(
        self, width: int, heads: int, mlp_ratio: float, activation: str, causal: bool, eps: float = 1e-5
    ) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width, eps)
        self.attn = Attention(width, heads, causal)
        self.ln_2 = nn.LayerNorm(width, eps)
        self.mlp = MLP(width, round(width * mlp_ratio), activation)

    def forward(self, x: Tensor, mask: Tensor | None = None, read: Tensor | None = None) -> Tensor:
        mixed = self.attn(self.ln_1(x), mask, read)
        x = (x if read is None else token_at(x, read)[:, None]) + mixed
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

    A text tower's weights are drawn as a language model's.
    """

    def __init__(
        self,
        width: int,
        layers: int,
        heads: int,
        mlp_ratio: float,
        activation: str,
        *,
        causal: bool = False,
        text: bool = False,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        blocks = [
            ResidualAttentionBlock(width, heads, mlp_ratio, activation, causal, eps) for _ in range(layers)
        ]
        if text:
            for block in blocks:
                block.draw_as_language_model(layers)
        self.resblocks = nn.ModuleList(blocks)
        self.causal = causal
        self.grad_checkpointing = False

    def forward(self, x: Tensor, mask: Tensor | None = None, blocks: int | None = None) -> Tensor:
        """Apply the first `blocks` of the blocks, by default all.

        Args:
            x: (B, L, width).
            mask: bool (B, L), False for tokens that no other may look at.
        """
        mask = self._attention_mask(mask)
        for block in self.resblocks[:blocks]:
            x = self._run(block, x, mask)
        return x

    def read(self, x: Tensor, at: Tensor, mask: Tensor | None = None) -> Tensor:
        """Apply all blocks, and return of each row of x (B, L, width) the token at `at`, int64 (B,): (B, width).

        The last block then needs keys and values of the other tokens, but nothing of what it would make of them:
        five sixths of its products.
        """
        if not len(self.resblocks):
            return token_at(x, at)
        mask = self._attention_mask(mask)
        for block in self.resblocks[:-1]:
            x = self._run(block, x, mask)
        return self._run(self.resblocks[-1], x, mask, at)[:, 0]

    def states(self, x: Tensor, mask: Tensor | None = None) -> list[Tensor]:
        """Return the input and the output of every block, each (B, L, width)."""
        mask, states = self._attention_mask(mask), [x]
        for block in self.resblocks:
            states.append(self._run(block, states[-1], mask))
        return states

    def _run(self, block: nn.Module, x: Tensor, mask: Tensor | None, read: Tensor | None = None) -> Tensor:
        if self.grad_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, x, mask, read, use_reentrant=False)
        return block(x, mask, read)

    def _attention_mask(self, mask: Tensor | None) -> Tensor | None:
        if mask is None:
            return None
        mask = mask.bool()[:, None, None, :]
        length = mask.shape[-1]
        if self.causal:
            mask = mask & torch.ones(length, length, dtype=torch.bool, device=mask.device).tril()
        return mask.expand(-1, 1, length, length)


def count_blocks(layer: str | int, layers: int) -> int:
    """Return after how many of `layers` blocks a layer's tokens are read: "last", "penultimate" or a number.

    A number counts as Hugging Face's hidden_states: 0 is the input of the first block, i the output of the i-th,
    -1 that of the last.

    Raises:
        ValueError: there is no such layer.
    """
    number = {"last": -1, "penultimate": -2}.get(layer, layer) if isinstance(layer, str) else layer
    if isinstance(number, bool) or not isinstance(number, int) or not -layers - 1 <= number <= layers:
        raise ValueError(
            f"layer must be 'last', 'penultimate' or an int from {-layers - 1} to {layers} "
            f"(0: the embeddings), got {layer!r}"
        )
    return number if number >= 0 else layers + 1 + number
