"""Load a model: weights, the transform of pictures and the tokenizer that go with it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Generic, Literal, NamedTuple, NoReturn, TypeVar, overload

import torch
from torch import Tensor

from .clip import CLIP
from .config import AnyConfig, CLIPConfig, ImageTowerConfig, ResNetConfig, TextTowerConfig
from .foreign import find_tokenizer
from .image import ImageTower
from .text import TextTower
from .transform import ImageTransform
from .vision import resize_positions
from .weights.fit import shell
from .weights.folder import save_folder
from .weights.reading import read

if TYPE_CHECKING:
    from PIL.Image import Image

Model = TypeVar("Model", bound=CLIP | ImageTower | TextTower, covariant=True)


class Loaded(NamedTuple, Generic[Model]):
    """A model and what prepares its inputs, in the order that clip_benchmark's loaders have."""

    model: Model  #: in evaluation mode
    transform: Callable[[Image], Tensor]  #: PIL picture → float32 (3, S, S), normalised
    tokenizer: Callable[[str | Sequence[str]], Tensor]  #: B texts → int64 (B, context length)


Device = str | torch.device


@overload
def load(
    path: str | os.PathLike[str],
    *,
    device: Device = "cpu",
    dtype: torch.dtype = torch.float32,
    towers: Literal["both"] = "both",
    config: CLIPConfig | str | None = None,
    activation: str | None = None,
    image_size: int | None = None,
    averaged: bool = False,
) -> Loaded[CLIP]: ...
@overload
def load(
    path: str | os.PathLike[str],
    *,
    device: Device = "cpu",
    dtype: torch.dtype = torch.float32,
    towers: Literal["image"],
    config: CLIPConfig | str | None = None,
    activation: str | None = None,
    image_size: int | None = None,
    averaged: bool = False,
) -> Loaded[ImageTower]: ...
@overload
def load(
    path: str | os.PathLike[str],
    *,
    device: Device = "cpu",
    dtype: torch.dtype = torch.float32,
    towers: Literal["text"],
    config: CLIPConfig | str | None = None,
    activation: str | None = None,
    image_size: int | None = None,
    averaged: bool = False,
) -> Loaded[TextTower]: ...
def load(
    path: str | os.PathLike[str],
    *,
    device: Device = "cpu",
    dtype: torch.dtype = torch.float32,
    towers: Literal["both", "image", "text"] = "both",
    config: CLIPConfig | str | None = None,
    activation: str | None = None,
    image_size: int | None = None,
    averaged: bool = False,
) -> Loaded[CLIP | ImageTower | TextTower]:
    """Load a model for use. Nothing in the files is run.

    Args:
        path: a run or checkpoint folder of fastclip.train (its newest checkpoint that is whole); a folder written by
            `save`, by Hugging Face (CLIPModel, SiglipModel or one tower) or by open_clip; or a file with a state
            dict in OpenAI's or open_clip's layout (.safetensors, .pt, .pth, .bin).
        device, dtype: of the model's weights.
        towers: "both", or the one that is wanted: the other one's weights are then not needed.
        config: of a file, which does not say it: the name of a preset, or a CLIPConfig. Without it a preset is taken
            that the shapes fit, if `activation` is given.
        activation: "gelu", "quick_gelu" or "gelu_tanh", where the file does not say it. It is never guessed.
        image_size: side of the pictures that a vision transformer is to take, pixels, if it is not the one it was
            trained with; its position embeddings are resampled.
        averaged: of a run with --ema, take the averaged weights.

    Returns:
        (model, transform, tokenizer).

    Raises:
        WeightsError: nothing is there, it is damaged or unsafe to open, it lacks the tower, it fits no config or not
            the one given, or it contradicts `activation`.
    """
    tensors, found = read(Path(path), config, activation, towers, averaged)
    if image_size is not None:
        tensors, found = resize(tensors, found, image_size)
    model = build(tensors, found, dtype).to(device)
    return Loaded(
        model,
        _no_pictures if isinstance(found, TextTowerConfig) else ImageTransform(found.vision),
        _no_texts if isinstance(found, ImageTowerConfig) else find_tokenizer(Path(path), found.text),
    )


def save(model: CLIP | ImageTower | TextTower, folder: str | os.PathLike[str]) -> None:
    """Write a model, or one tower by itself, to a folder that `load` reads: model.safetensors and fastclip.json."""
    save_folder(Path(folder), model.state_dict(), model.config)


def build(
    tensors: Mapping[str, Tensor], config: AnyConfig, dtype: torch.dtype = torch.float32
) -> CLIP | ImageTower | TextTower:
    """Make a model of weights that fit its config, in evaluation mode."""
    model = shell(config)
    cast = {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()
    }
    model.load_state_dict(cast, assign=True)
    return model.eval()


def resize(
    tensors: Mapping[str, Tensor], config: AnyConfig, image_size: int
) -> tuple[dict[str, Tensor], AnyConfig]:
    """Make weights and config of a vision transformer take pictures of another size.

    Raises:
        ValueError: the model has no vision transformer, or image_size does not suit its patches.
    """
    name = "visual.positional_embedding"
    if isinstance(config, TextTowerConfig) or name not in tensors or isinstance(config.vision, ResNetConfig):
        raise ValueError("image_size can be chosen for vision transformers only")
    vision = replace(config.vision, image_size=image_size)
    tokens = vision.grid**2 + (vision.pool == "token")
    return {**tensors, name: resize_positions(tensors[name], tokens)}, replace(config, vision=vision)


def _no_pictures(image: Image) -> NoReturn:
    raise TypeError("a text tower alone takes no pictures; load the model with towers='both'")


def _no_texts(texts: str | Sequence[str]) -> NoReturn:
    raise TypeError("an image tower alone takes no texts; load the model with towers='both'")
