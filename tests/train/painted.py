"""Folders of one-coloured pictures with captions beside them: the smallest data that the program trains on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from PIL import Image

COLOURS = {"red": (220, 40, 40), "green": (40, 180, 60), "blue": (50, 80, 220), "white": (250, 250, 250)}


def paint(
    folder: Path,
    count: int,
    caption: Callable[[str, int], str],
    size: Callable[[int], tuple[int, int]] = lambda i: (16, 16),
) -> Path:
    """Make the folder: picture i has the size that `size` says of i, and the caption of its colour and i."""
    folder.mkdir()
    for i in range(count):
        colour = list(COLOURS)[i % len(COLOURS)]
        Image.new("RGB", size(i), COLOURS[colour]).save(folder / f"{i:02}.png")
        (folder / f"{i:02}.txt").write_text(caption(colour, i))
    return folder
