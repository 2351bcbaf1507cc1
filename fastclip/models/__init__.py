"""Encoders, their configs and weights, and the tokenizer."""

from .clip import CLIP
from .config import (
    CLIPConfig,
    ImageTowerConfig,
    ResNetConfig,
    TextConfig,
    TextTowerConfig,
    VisionConfig,
)
from .image import ImageTower
from .loading import Loaded, load, save
from .presets import PRESETS
from .resnet import ModifiedResNet
from .text import TextTower
from .text_encoder import TextEncoder
from .tokenizer import Tokenizer
from .two_tower import Pooled, TwoTower
from .vision import VisionTransformer
from .weights.errors import WeightsError

__all__ = [
    "CLIP",
    "PRESETS",
    "CLIPConfig",
    "ImageTower",
    "ImageTowerConfig",
    "Loaded",
    "ModifiedResNet",
    "Pooled",
    "ResNetConfig",
    "TextConfig",
    "TextEncoder",
    "TextTower",
    "TextTowerConfig",
    "Tokenizer",
    "TwoTower",
    "VisionConfig",
    "VisionTransformer",
    "WeightsError",
    "load",
    "save",
]
