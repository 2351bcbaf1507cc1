"""Models of every kind, small enough to be compared in milliseconds."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from fastclip.models import CLIP, CLIPConfig, ResNetConfig, TextConfig, VisionConfig

_TEXT = TextConfig(width=32, layers=2, heads=2, context_length=12, vocab_size=64)

VIT = CLIPConfig(
    vision=VisionConfig(image_size=32, patch_size=8, width=48, layers=3, heads=4),
    text=_TEXT,
    embed_dim=24,
    activation="quick_gelu",
)
RESNET = CLIPConfig(
    vision=ResNetConfig(image_size=64, depths=(1, 2, 1, 1), width=8, heads=4),
    text=_TEXT,
    embed_dim=24,
    activation="gelu",
)
SIGLIP = CLIPConfig(
    vision=VisionConfig(
        image_size=32,
        patch_size=8,
        width=32,
        layers=2,
        heads=2,
        mlp_ratio=2.0,
        pool="map",
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        pre_norm=False,
        patch_bias=True,
        projection=False,
        norm_eps=1e-6,
        resize="squash",
    ),
    text=replace(_TEXT, causal=False, pool="last", projection_bias=True, norm_eps=1e-6),
    embed_dim=32,
    activation="gelu",
    init_logit_scale=10.0,
    init_logit_bias=-10.0,
)

Model = TypeVar("Model", bound=nn.Module)


def randomise(model: Model) -> Model:
    """Give every tensor a value of its own: the zeros and ones of a fresh model hide exchanged names."""
    generator = torch.Generator().manual_seed(1)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not name.endswith("logit_scale"):
            noise = torch.randn(tensor.shape, generator=generator)
            tensor.copy_(noise.abs() + 0.5 if name.endswith("running_var") else tensor + 0.05 * noise)
    return model.eval()


def make(config: CLIPConfig) -> CLIP:
    """Build a model whose weights depend on its config alone."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return randomise(CLIP(config))


def inputs(config: CLIPConfig) -> tuple[Tensor, Tensor]:
    """Draw pictures and texts of different lengths, each with one end token, the highest id."""
    generator = torch.Generator().manual_seed(2)
    size, text = config.vision.image_size, config.text
    images = torch.randn(3, 3, size, size, generator=generator)
    tokens = torch.randint(1, text.vocab_size - 2, (4, text.context_length), generator=generator)
    for i, row in enumerate(tokens):
        row[2 + 3 * i] = text.vocab_size - 1
        row[3 + 3 * i :] = 0
    return images, tokens
