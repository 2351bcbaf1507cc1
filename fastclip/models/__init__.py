"""Encoders, their configs, and the tokenizer."""

from .clip import CLIP
from .config import PRESETS, CLIPConfig, TextConfig, VisionConfig
from .text import TextTower
from .tokenizer import Tokenizer
from .vision import VisionTransformer

__all__ = [
    "CLIP",
    "PRESETS",
    "CLIPConfig",
    "TextConfig",
    "TextTower",
    "Tokenizer",
    "VisionConfig",
    "VisionTransformer",
]
