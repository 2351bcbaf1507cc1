"""Sources of image-text pairs: a user's own, in any usual format, emoji art, and drawn shapes."""

from fastclip.data.augment import Augmentation
from fastclip.data.opening import open_source
from fastclip.data.source import DataError, HeldOut, Pairs, PairSource, permutation, uniforms

__all__ = [
    "Augmentation",
    "DataError",
    "HeldOut",
    "PairSource",
    "Pairs",
    "open_source",
    "permutation",
    "uniforms",
]
