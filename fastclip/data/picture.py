"""Decode one picture file to a small square of RGB bytes, or say why it cannot be.

JPEGs are decoded by simplejpeg where it is installed, everything else and every JPEG that it refuses by Pillow; both
end in libjpeg-turbo with the same settings. Cropping and resizing are one code for both, torch's antialiased bicubic on
bytes, so a picture is the same whichever decoder read it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import math
import os
import stat
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".avif"})

MAX_PIXELS = 1 << 27  # 134 million: a larger picture is taken for a decompression bomb
MAX_BYTES = 1 << 28  # 256 MiB: a larger file is taken for no picture

Box = tuple[float, float, float, float]


class UnreadableError(Exception):
    """Say why a picture or a caption cannot be used; the message is the reason it is counted under."""


def decode(
    file: Path | bytes,
    size: int,
    draws: np.ndarray | None = None,
    *,
    least: float = 0.9,
    decoder: str = "auto",
) -> np.ndarray:
    """Return a picture as uint8 ``(3, size, size)``, RGB, cropped and resized with antialiasing.

    Args:
        file: a path, or the bytes of the file.
        size: side of the result, in pixels.
        draws: float64 ``(4,)`` in [0, 1) for a random crop (area, aspect ratio, position); None takes the
            centre square.
        least: the smallest share of the area that a random crop keeps.
        decoder: "simplejpeg" or "pillow"; "auto" is simplejpeg where it is installed.

    Raises UnreadableError.
    """
    data = file if isinstance(file, bytes) else read(file)
    if not data:
        raise UnreadableError("empty file")
    if decoder == "auto":
        decoder = _DEFAULT
    if decoder == "simplejpeg" and data[:2] == b"\xff\xd8":
        image = _by_simplejpeg(data, size, draws, least)
        if image is not None:
            return image
    return _by_pillow(data, size, draws, least)


def read(path: str | Path, limit: int = MAX_BYTES) -> bytes:
    """Return the bytes of a regular file of at most ``limit`` bytes. Raises UnreadableError."""
    try:
        about = os.stat(path)
        if not stat.S_ISREG(about.st_mode):  # a pipe or a device could be read for ever
            raise UnreadableError("not a regular file")
        if about.st_size > limit:
            raise UnreadableError("file too large")
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        raise UnreadableError("no such file") from None
    except (OSError, ValueError) as error:  # ValueError: a path with a zero byte in it
        raise UnreadableError(f"cannot be opened ({getattr(error, 'strerror', None) or error})") from error


def decoder_name() -> str:
    """Say what decodes JPEGs here, with its version."""
    if _DEFAULT == "simplejpeg":
        return f"simplejpeg {version('simplejpeg')}, and Pillow {version('pillow')} for other formats"
    return f"Pillow {version('pillow')} (pip install simplejpeg reads JPEGs faster)"


def crop_box(width: int, height: int, draws: np.ndarray | None, least: float = 0.9) -> Box:
    """Return (left, upper, right, lower), in pixels: the centre square, or a random part; see ``decode``."""
    if draws is None:
        side = min(width, height)
        left, upper = (width - side) / 2, (height - side) / 2
        return left, upper, left + side, upper + side
    area = (least + (1 - least) * draws[0]) * width * height
    ratio = math.exp((2 * draws[1] - 1) * math.log(4 / 3))
    # A part this large and this wide need not fit; then it is as wide, or as high, as the picture.
    across, down = min(width, math.sqrt(area * ratio)), min(height, math.sqrt(area / ratio))
    across, down = min(across, down * 4 / 3), min(down, across * 4 / 3)
    left, upper = float(draws[2]) * (width - across), float(draws[3]) * (height - down)
    return left, upper, left + across, upper + down


_DEFAULT = "simplejpeg" if importlib.util.find_spec("simplejpeg") is not None else "pillow"


def _by_simplejpeg(data: bytes, size: int, draws: np.ndarray | None, least: float) -> np.ndarray | None:
    """Decode a plain JPEG; None leaves it to Pillow, which reads more kinds and knows what is wrong."""
    import simplejpeg

    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if width * height > MAX_PIXELS:
            raise UnreadableError("too many pixels")
        if colours not in ("YCbCr", "Gray", "RGB"):
            return None
        box = crop_box(width, height, draws, least)
        shrink = _shrink(size, box)
        pixels = simplejpeg.decode_jpeg(
            data, "RGB", min_height=-(-height // shrink), min_width=-(-width // shrink)
        )
    except ValueError:
        return None
    turn = 1
    if data.find(b"Exif", 0, _HEAD) >= 0:
        from PIL import Image

        with contextlib.suppress(Exception), Image.open(io.BytesIO(data)) as picture:
            turn = _orientation(picture)
    return _finish(pixels, box, width, height, size, turn)


def _by_pillow(data: bytes, size: int, draws: np.ndarray | None, least: float) -> np.ndarray:
    from PIL import Image, UnidentifiedImageError

    Image.init()
    formats = [name for name in Image.ID if name != "EPS"]  # for which Pillow would run Ghostscript
    try:
        with Image.open(io.BytesIO(data), formats=formats) as picture:
            width, height = picture.size
            if width * height > MAX_PIXELS:
                raise UnreadableError("too many pixels")
            box = crop_box(width, height, draws, least)
            shrink = _shrink(size, box)
            picture.draft("RGB", (width // shrink, height // shrink))
            pixels = np.asarray(_rgb(picture))
            # Last, since a PNG's notes may stand behind its pixels, and asking for them would decode these.
            return _finish(pixels, box, width, height, size, _orientation(picture))
    except UnreadableError:
        raise
    except Image.DecompressionBombError:
        raise UnreadableError("too many pixels") from None
    except UnidentifiedImageError:
        text = data.lstrip()[:1] in (b"<", b"{")
        raise UnreadableError("HTML or text in place of a picture" if text else "not a picture") from None
    except MemoryError:
        raise UnreadableError("too many pixels") from None
    except Exception as error:
        # Pillow's decoders raise whatever comes (OSError, ValueError, SyntaxError, KeyError, struct.error, …).
        cut = "truncated" in str(error).lower() or isinstance(error, EOFError)
        raise UnreadableError("truncated" if cut else "damaged") from error


def _shrink(size: int, box: Box) -> int:
    """Return 1, 2, 4 or 8: how many times smaller a JPEG may be decoded, for a fraction of the time."""
    room = min(box[2] - box[0], box[3] - box[1]) / size
    return next((factor for factor in (8, 4, 2) if room >= factor), 1)


def _finish(pixels: np.ndarray, box: Box, width: int, height: int, size: int, turn: int) -> np.ndarray:
    """Crop, resize and turn ``pixels (h, w, 3)``, a picture of ``width`` x ``height`` decoded at some scale."""
    down, across = pixels.shape[:2]
    left, right = _whole(box[0] * across / width, box[2] * across / width, across)
    upper, lower = _whole(box[1] * down / height, box[3] * down / height, down)
    part = pixels[upper:lower, left:right]
    if not part.flags.writeable:  # torch warns about memory that it may not write, as Pillow's
        part = part.copy()
    image = torch.from_numpy(part).permute(2, 0, 1)[None]
    small = F.interpolate(image, (size, size), mode="bicubic", antialias=True)[0]
    # Turning the small square is the same as turning the whole, and cheaper.
    return np.ascontiguousarray(_TURNS[turn](small.numpy()))


def _whole(start: float, end: float, length: int) -> tuple[int, int]:
    """Return ``start`` and ``end`` rounded to pixels, at least one of them between."""
    first = min(round(start), length - 1)
    return first, min(max(round(end), first + 1), length)


def _rgb(picture: Image) -> Image:
    """Return the first frame in RGB; 16 bits are scaled down and transparency shows white."""
    from PIL import Image

    if picture.mode.startswith("I"):
        levels = np.clip(np.asarray(picture).astype(np.int64), 0, 65535) >> 8
        return Image.fromarray(levels.astype(np.uint8)).convert("RGB")
    if picture.mode == "F":
        raise UnreadableError("floating-point pixels")
    if picture.mode in ("LA", "PA", "La", "RGBA", "RGBa") or "transparency" in picture.info:
        rgba = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return picture.convert("RGB")


def _orientation(picture: Image) -> int:
    """Return how the camera was held, by the Exif tag: 1 to 8, 1 being upright."""
    try:
        turn = picture.getexif().get(0x0112, 1)
    except Exception:  # damaged notes about a picture that itself may be read
        return 1
    return turn if turn in _TURNS else 1


_HEAD = 1 << 17  # bytes of a JPEG in which its Exif notes begin, if it has any

# By Exif orientation: what makes (3, S, S) upright.
_TURNS = {
    1: lambda a: a,
    2: lambda a: a[:, :, ::-1],
    3: lambda a: a[:, ::-1, ::-1],
    4: lambda a: a[:, ::-1],
    5: lambda a: a.swapaxes(1, 2),
    6: lambda a: np.rot90(a, -1, (1, 2)),
    7: lambda a: a.swapaxes(1, 2)[:, ::-1, ::-1],
    8: lambda a: np.rot90(a, 1, (1, 2)),
}
