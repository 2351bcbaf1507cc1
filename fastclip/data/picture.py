"""Decode one picture file to a small square of RGB bytes, or say why it cannot be."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".avif"})

MAX_PIXELS = 1 << 27  # 134 million: a larger picture is taken for a decompression bomb

Box = tuple[float, float, float, float]


class UnreadableError(Exception):
    """Say why a picture or a caption cannot be used; the message is the reason it is counted under."""


def decode(file: Path | bytes, size: int, draws: np.ndarray | None = None) -> np.ndarray:
    """Return a picture as uint8 ``(3, size, size)``, RGB, cropped and resized with antialiasing.

    Args:
        file: a path, or the bytes of the file.
        size: side of the result, in pixels.
        draws: float64 ``(4,)`` in [0, 1) for a random crop of 90 to 100 % of the area (area, aspect ratio,
            position); None takes the centre square.

    Raises UnreadableError.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        data = file if isinstance(file, bytes) else Path(file).read_bytes()
    except FileNotFoundError:
        raise UnreadableError("no such file") from None
    except OSError as error:
        raise UnreadableError(f"cannot be opened ({error.strerror})") from error
    if not data:
        raise UnreadableError("empty file")
    try:
        with Image.open(io.BytesIO(data)) as picture:
            return _square(picture, size, draws)
    except UnreadableError:
        raise
    except Image.DecompressionBombError:
        raise UnreadableError("too many pixels") from None
    except UnidentifiedImageError:
        text = data.lstrip()[:1] in (b"<", b"{")
        raise UnreadableError("HTML or text in place of a picture" if text else "not a picture") from None
    except (OSError, ValueError, SyntaxError, EOFError, IndexError, MemoryError) as error:
        # Pillow's decoders raise all of these on damaged data.
        cut = "truncated" in str(error).lower() or isinstance(error, EOFError)
        raise UnreadableError("truncated" if cut else "damaged") from error


def crop_box(width: int, height: int, draws: np.ndarray | None) -> Box:
    """Return (left, upper, right, lower), in pixels: the centre square, or a random part; see ``decode``."""
    if draws is None:
        side = min(width, height)
        left, upper = (width - side) / 2, (height - side) / 2
        return left, upper, left + side, upper + side
    area = (0.9 + 0.1 * draws[0]) * width * height
    ratio = math.exp((2 * draws[1] - 1) * math.log(4 / 3))
    # A part this large and this wide need not fit; then it is as wide, or as high, as the picture.
    across, down = min(width, math.sqrt(area * ratio)), min(height, math.sqrt(area / ratio))
    across, down = min(across, down * 4 / 3), min(down, across * 4 / 3)
    left, upper = float(draws[2]) * (width - across), float(draws[3]) * (height - down)
    return left, upper, left + across, upper + down


def _square(picture: Image, size: int, draws: np.ndarray | None) -> np.ndarray:
    from PIL import Image

    width, height = picture.size
    if width * height > MAX_PIXELS:
        raise UnreadableError("too many pixels")
    turn = _TURNS.get(picture.getexif().get(_ORIENTATION, 1))
    left, upper, right, lower = crop_box(width, height, draws)
    # A JPEG decodes at 1/2, 1/4 or 1/8 of its size for a fraction of the time, as long as enough pixels
    # remain.
    picture.draft(
        "RGB", (math.ceil(size * width / (right - left)), math.ceil(size * height / (lower - upper)))
    )
    shrunk_x, shrunk_y = picture.width / width, picture.height / height
    box = (left * shrunk_x, upper * shrunk_y, right * shrunk_x, lower * shrunk_y)
    small = _rgb(picture).resize((size, size), Image.Resampling.BICUBIC, box=box)
    if turn is not None:  # the same on the small square as on the whole, and cheaper
        small = small.transpose(Image.Transpose(turn))
    return np.asarray(small).transpose(2, 0, 1)


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


_ORIENTATION = 0x0112  # the Exif tag: how the camera was held
_TURNS = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}  # its values, as PIL.Image.Transpose
