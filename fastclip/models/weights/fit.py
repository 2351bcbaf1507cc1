"""Whether weights fit a config, what is in the way, and which config would fit."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import overload

import torch
from torch import Tensor

from ..clip import CLIP
from ..config import AnyConfig, CLIPConfig, ImageTowerConfig, TextTowerConfig
from ..image import ImageTower
from ..presets import PRESETS
from ..text import TextTower
from .errors import WeightsError
from .table import some

Shapes = Mapping[str, tuple[int, ...]]


@overload
def shell(config: CLIPConfig) -> CLIP: ...
@overload
def shell(config: ImageTowerConfig) -> ImageTower: ...
@overload
def shell(config: TextTowerConfig) -> TextTower: ...
def shell(config: AnyConfig) -> CLIP | ImageTower | TextTower:
    """Build a model whose weights take no memory and no random numbers."""
    with torch.device("meta"):
        if isinstance(config, CLIPConfig):
            return CLIP(config)
        return ImageTower(config) if isinstance(config, ImageTowerConfig) else TextTower(config)


def check(tensors: Mapping[str, Tensor], config: AnyConfig, where: str) -> None:
    """Compare names and shapes of our tensors with what a config asks for.

    Raises:
        WeightsError: they differ; it names the first few of each kind of difference, and what would fit.
    """
    here, there = shapes_of(config), {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    problems = [
        f"{len(names)} {what}: {some(names)}"
        for names, what in (
            (sorted(here.keys() - there.keys()), "tensors are missing"),
            (sorted(there.keys() - here.keys()), "tensors have no place in it"),
            (
                [
                    f"{name} is {there[name]} and should be {here[name]}"
                    for name in sorted(here.keys() & there.keys())
                    if here[name] != there[name]
                ],
                "shapes differ",
            ),
        )
        if names
    ]
    if problems:
        fitting = find_presets(there)
        remedy = (
            f"they fit {some(fitting)}" if fitting else f"they look like this: {describe(there) or 'no CLIP'}"
        )
        raise WeightsError(f"{where}: the weights do not fit the config; {'; '.join(problems)}; {remedy}")


@lru_cache(maxsize=64)
def shapes_of(config: AnyConfig) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of a model's state dict."""
    return {name: tuple(tensor.shape) for name, tensor in shell(config).state_dict().items()}


def find_presets(shapes: Shapes) -> list[str]:
    """Return the presets that weights of these names and shapes fit, whatever the activation."""
    words = shapes.get("token_embedding.weight")
    return [
        name
        for name, config in PRESETS.items()
        if words == (config.text.vocab_size, config.text.width)  # a quick look before the thorough one
        and dict(shapes) == shapes_of(replace(config, activation="gelu"))
    ]


def infer(shapes: Shapes, activation: str | None, where: str) -> CLIPConfig:
    """Find the config of a whole CLIP from the shapes of its weights, which must be a preset's.

    Neither the activation nor the number of heads has left a trace in the weights, and a wrong one gives no error,
    only worse results. A preset knows the heads, the caller must say the activation.

    Raises:
        WeightsError: they fit no preset, or no activation is given.
    """
    names = find_presets(shapes)
    if not names:
        looks = describe(shapes)
        raise WeightsError(
            f"{where}: the weights fit no model that is known by name"
            + (f"; they look like this: {looks}" if looks else " and do not look like a CLIP's")
            + ". Pass config=CLIPConfig(…), with the number of heads and the activation, which weights do not tell"
        )
    if activation is None:
        raise WeightsError(
            f"{where}: the weights fit {' and '.join(names)}, and do not say which activation they were trained "
            "with; the wrong one gives no error, only worse results. Pass activation='quick_gelu' for weights "
            "from OpenAI and those that open_clip lists as -quickgelu, activation='gelu' for others of open_clip"
        )
    config = PRESETS[names[0]]
    return config if config.activation == activation else replace(config, activation=activation)


def describe(shapes: Shapes) -> str:
    """Say what can be told of a model from the shapes of its weights; nothing if it has no known tower."""
    parts = []
    if (conv := shapes.get("visual.conv1.weight")) and "visual.positional_embedding" in shapes:
        positions = shapes["visual.positional_embedding"][0] - ("visual.class_embedding" in shapes)
        parts.append(
            f"vision image_size={round(positions**0.5) * conv[2]} patch_size={conv[2]} width={conv[0]} "
            f"layers={_count(shapes, 'visual.transformer.resblocks')}"
        )
    elif "visual.attnpool.positional_embedding" in shapes:
        positions = shapes["visual.attnpool.positional_embedding"][0] - 1
        depths = tuple(_count(shapes, f"visual.layer{stage}") for stage in (1, 2, 3, 4))
        parts.append(
            f"vision ResNet image_size={round(positions**0.5) * 32} depths={depths} "
            f"width={shapes['visual.conv3.weight'][0]}"
        )
    if (words := shapes.get("token_embedding.weight")) and "positional_embedding" in shapes:
        parts.append(
            f"text width={words[1]} layers={_count(shapes, 'transformer.resblocks')} "
            f"context_length={shapes['positional_embedding'][0]} vocab_size={words[0]}"
        )
    for name in ("text_projection", "visual.proj"):
        if parts and name in shapes:
            parts.append(f"embed_dim={shapes[name][1]}")
            break
    return ", ".join(parts)


def _count(shapes: Shapes, prefix: str) -> int:
    """Count the numbered modules under a prefix."""
    pattern = re.compile(re.escape(prefix) + r"\.(\d+)\.")
    return len({match[1] for name in shapes if (match := pattern.match(name))})
