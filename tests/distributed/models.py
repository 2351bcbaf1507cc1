"""Two small towers, alone and wrapped for several ranks, and the exact gradient of a whole batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

WIDTHS = {"image": 7, "text": 4}


class Towers(nn.Module):
    """Encode pictures and texts of some widths; what is given is encoded, and the multiplier is always there."""

    def __init__(
        self, dropout: float = 0.0, checkpointed: bool = False, dtype: torch.dtype = torch.float64
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.image, self.text = (
            nn.Sequential(nn.Linear(width, 16), nn.GELU(), nn.Dropout(dropout), nn.Linear(16, 5))
            for width in WIDTHS.values()
        )
        self.log_scale = nn.Parameter(torch.tensor([1.3]))
        self.checkpointed = checkpointed
        self.to(dtype)

    def forward(self, images: Tensor | None, texts: Tensor | None) -> dict[str, Tensor]:
        output = {"scale": self.log_scale.exp()}
        for name, tower, inputs in (("image", self.image, images), ("text", self.text, texts)):
            if inputs is not None:
                output[name] = (
                    checkpoint(tower, inputs, use_reentrant=False) if self.checkpointed else tower(inputs)
                )
        return output


def inputs(rows: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Draw the whole batch's pictures (rows, 7) and texts (rows, 4)."""
    generator = torch.Generator().manual_seed(1)
    images, texts = (torch.randn(rows, width, generator=generator, dtype=dtype) for width in WIDTHS.values())
    return images, texts


def gradients(module: Any) -> dict[str, Tensor]:
    """Return the gradients by parameter, whole, whatever the wrapper."""
    found = {}
    for name, parameter in module.named_parameters():
        grad = parameter.grad
        grad = grad.full_tensor() if hasattr(grad, "full_tensor") else grad
        found[name.removeprefix("module.")] = grad
    return found
