"""The text tower: token rows to points of the shared space."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import CLIPConfig, TextTowerConfig
from .transformer import Transformer, count_blocks

_ROWS = 64  # rows encoded together on the CPU


class TextTower(nn.Module):
    """Encode texts by a transformer, read off at one token.

    (B, L) → tokens (B, L, width) → blocks → end token (B, width) → (B, embed_dim)

    By itself this is a CLIP without pictures; its state dict is a CLIP's without "visual." and the scale.

    Args:
        config: the tower's description, kept as `config`.
    """

    config: CLIPConfig | TextTowerConfig

    def __init__(self, config: TextTowerConfig) -> None:
        super().__init__()
        self.config = config
        self._build_text(config)

    def _build_text(self, config: TextTowerConfig) -> None:
        text = config.text
        self.context_length = text.context_length
        self.token_embedding = nn.Embedding(text.vocab_size, text.width)
        self.positional_embedding = nn.Parameter(0.01 * torch.randn(text.context_length, text.width))
        self.transformer = Transformer(
            text.width,
            text.layers,
            text.heads,
            text.mlp_ratio,
            config.activation,
            causal=text.causal,
            text=True,
            eps=text.norm_eps,
        )
        self.ln_final = nn.LayerNorm(text.width, text.norm_eps)
        if text.projection:
            self.text_projection = nn.Parameter(text.width**-0.5 * torch.randn(text.width, config.embed_dim))
        if text.projection_bias:
            self.text_projection_bias = nn.Parameter(torch.zeros(config.embed_dim))
        nn.init.normal_(self.token_embedding.weight, std=0.02)

    def encode_text(self, tokens: Tensor, normalize: bool = False) -> Tensor:
        """Encode token rows to points of the shared space.

        A row is read off at the token that the config's `pool` names. In a causal tower what follows it has no
        influence.

        Args:
            tokens: (B, L) integer ids, L at most the context length; as Tokenizer makes them.
            normalize: divide by the L2 norm.

        Returns:
            (B, embed_dim).

        Raises:
            ValueError: tokens has another shape, no rows, or (looked for on the CPU only) ids out of range or a row
                without the end token that pool "eos" reads.
            TypeError: tokens is not int64 or int32.
        """
        self._check(tokens)
        end = self.find_end(tokens)
        by_length = self.config.text.causal and tokens.device.type == "cpu"
        if by_length and not torch.compiler.is_compiling():
            x = self._encode_by_length(tokens, end)
        else:
            x = self._encode(tokens, end)
        return F.normalize(x, dim=-1) if normalize else x

    def forward(self, tokens: Tensor) -> Tensor:
        """Encode token rows; see encode_text."""
        return self.encode_text(tokens)

    def encode_text_tokens(
        self,
        tokens: Tensor,
        layer: str | int = "last",
        *,
        final_norm: bool = True,
        projected: bool = False,
    ) -> Tensor:
        """Encode token rows to one vector per token.

        Args:
            tokens: (B, L) integer ids, L at most the context length.
            layer: "last"; "penultimate", the output of the last block but one; or a number as in Hugging Face's
                hidden_states: 0 the embeddings, i the output of the i-th block, -1 that of the last.
            final_norm: apply the layer norm behind the last block, whichever layer is read. (Stable Diffusion 1 and 2
                do, Stable Diffusion XL does not.)
            projected: take the tokens to the shared space, by the matrix made for the pooled vector.

        Returns:
            (B, L, width), or (B, L, embed_dim) if projected.

        Raises:
            ValueError: tokens has another shape or ids out of range, or there is no such layer.
            TypeError: tokens is not int64 or int32.
        """
        self._check(tokens)
        blocks = count_blocks(layer, self.config.text.layers)
        x = self.transformer(self.embed_tokens(tokens), blocks=blocks)
        x = self.ln_final(x) if final_norm else x
        return self.project_text(x) if projected else x

    def embed_tokens(self, tokens: Tensor) -> Tensor:
        """Make the first block's input (B, L, width) of ids (B, L)."""
        x = self.token_embedding(tokens)
        return x + self.positional_embedding[: x.shape[1]].to(x.dtype)

    def find_end(self, tokens: Tensor) -> Tensor:
        """Return the place of the token that each row (B, L) is read off at: (B,); 0 where there is none."""
        text = self.config.text
        if text.pool == "last":
            return torch.full_like(tokens[:, 0], tokens.shape[1] - 1)
        if text.pool == "argmax":
            return tokens.argmax(dim=-1)
        return tokens.eq(text.eos_id).int().argmax(dim=-1)

    def project_text(self, x: Tensor) -> Tensor:
        """Take (..., width) to (..., embed_dim)."""
        if self.config.text.projection:
            x = x @ self.text_projection.to(x.dtype)
        return x + self.text_projection_bias.to(x.dtype) if self.config.text.projection_bias else x

    def _encode(self, tokens: Tensor, end: Tensor) -> Tensor:
        return self.project_text(self.ln_final(self.transformer.read(self.embed_tokens(tokens), end)))

    def _encode_by_length(self, tokens: Tensor, end: Tensor) -> Tensor:
        """Encode rows of like length together, without columns in which all of them have ended.

        Exact, and on captions several times faster than 77 columns for each. Not for a GPU, where reading
        the lengths would stall the device, nor for a compiler, to which every new length is a new graph.
        """
        order = end.argsort()
        parts = [self._encode(tokens[rows, : end[rows[-1]] + 1], end[rows]) for rows in order.split(_ROWS)]
        return torch.cat(parts)[order.argsort()]

    def _check(self, tokens: Tensor) -> None:
        if tokens.dim() != 2 or tokens.shape[0] < 1 or not 0 < tokens.shape[1] <= self.context_length:
            raise ValueError(
                f"tokens must have shape (B, L) with B ≥ 1 and 1 ≤ L ≤ {self.context_length}, "
                f"got {tuple(tokens.shape)}"
            )
        if tokens.dtype not in (torch.int64, torch.int32):
            raise TypeError(f"tokens must be int64 or int32, got {tokens.dtype}; make them with Tokenizer")
        text = self.config.text
        if tokens.device.type == "cpu" and not torch.compiler.is_compiling():
            low, high = (int(bound) for bound in tokens.aminmax())
            if low < 0 or high >= text.vocab_size:
                raise ValueError(f"token ids must lie in [0, {text.vocab_size}), got {low} to {high}")
            if text.pool == "eos" and not tokens.eq(text.eos_id).any(dim=-1).all():
                raise ValueError(f"each row of tokens must hold the end token, eos_id={text.eos_id}")
