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


def paint_classes(folder: Path) -> Path:
    """Make folders of four, three, four and two pictures, a class for each colour, and one file that is no picture."""
    for number, (colour, count) in enumerate(zip(COLOURS, (4, 3, 4, 2), strict=True)):
        (folder / colour).mkdir(parents=True)
        for i in range(count):
            pixels = tuple(max(1, value - 5 * i) for value in COLOURS[colour])
            Image.new("RGB", (16, 16 + number), pixels).save(folder / colour / f"{i}.png")
    (folder / "green" / "broken.png").write_bytes(b"")
    return folder
