"""Sources of image-text pairs: emoji art, drawn shapes, and a user's own folder or table."""

from fastclip.data.opening import open_source
from fastclip.data.source import HeldOut, Pairs, PairSource, permutation, uniforms

__all__ = ["HeldOut", "PairSource", "Pairs", "open_source", "permutation", "uniforms"]
