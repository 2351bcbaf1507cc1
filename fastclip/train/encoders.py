"""Both encoders of a model behind one call, as a trainer needs them: from a batch as it is fed to float32 features."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastclip.train import precision


class Encoders(nn.Module):
    """Encode a batch's pictures, or its texts: `module(images, None)` or `module(None, texts)`.

    This is the module that FSDP2 shards and torch.compile compiles, so every encoding is a call of it.

    Args:
        model: a CLIP, or another model with its methods.
        arithmetic: one of fp32, amp_bf16, amp_fp16, pure_bf16.
    """

    def __init__(self, model: Any, arithmetic: str) -> None:
        super().__init__()
        self.model = model
        self.arithmetic = arithmetic

    def forward(self, images: Tensor | None, texts: Tensor | None) -> Tensor:
        """Return features (B, D), float32, of any length.

        Args:
            images: uint8 pictures (B, 3, S, S), or features (B, F) computed beforehand.
            texts: token ids (B, L), or features (B, G).
        """
        given = images if texts is None else texts
        if given is None:
            raise ValueError("images or texts must be given")
        with precision.autocast(self.arithmetic, given.device):
            if texts is None:
                pictures = self.model.preprocess(given) if given.dtype == torch.uint8 else given
                return self.model.encode_image(self._cast(pictures)).float()
            return self.model.encode_text(self._cast(texts) if texts.is_floating_point() else texts).float()

    def _cast(self, x: Tensor) -> Tensor:
        return x.bfloat16() if self.arithmetic == "pure_bf16" else x
