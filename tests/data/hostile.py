"""Make samples with everything that goes wrong with pictures and captions from the web."""

from __future__ import annotations

import io
import zlib
from collections import Counter
from dataclasses import dataclass

import numpy as np
from PIL import Image

from tests.data.formats import Sample, jpeg


@dataclass(frozen=True)
class Hostile:
    """Hold one bad or odd sample; `reason` is why it is skipped, None if it is usable after all."""

    sample: Sample
    reason: str | None


def hostile() -> list[Hostile]:
    """Return every kind once: first those that must work, then those that must not."""
    good, text = jpeg(1), b"a caption"
    png = encoded(noise(24, 24), "PNG")
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue")]
    exif = Image.Exif()
    exif[0x0112] = 6
    fine = {
        "cmyk.jpg": encoded(Image.new("CMYK", (20, 20), (0, 255, 255, 0)), "JPEG"),
        "grey.jpg": encoded(noise(20, 20).convert("L"), "JPEG"),
        "progressive.jpg": jpeg(2, progressive=True),
        "turned.jpg": jpeg(3, exif=exif),
        "sixteen-bit.png": encoded(Image.fromarray(np.full((20, 20), 30000, np.uint16)), "PNG"),
        "animated.gif": encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "transparent.png": encoded(Image.new("RGBA", (20, 20), (9, 9, 9, 0)), "PNG"),
        "one-pixel.png": encoded(Image.new("RGB", (1, 1)), "PNG"),
        "narrow.jpg": jpeg(4, 3000, 2),
        "another-kind.jpg": png,
    }
    bad = {
        "html.jpg": (b"<!DOCTYPE html><html>403 Forbidden</html>", "HTML or text in place of a picture"),
        "json.jpg": (b'{"error": "gone"}', "HTML or text in place of a picture"),
        "zero-bytes.jpg": (b"", "empty file"),
        "zeros.jpg": (bytes(2000), "not a picture"),
        "truncated.jpg": (good[: len(good) // 2], "truncated"),
        "cut.png": (png[: len(png) // 2], "truncated"),
        "damaged.png": (png[:60] + bytes(40) + png[100:], "damaged"),
        "bomb.png": (bomb(png), "too many pixels"),
        "huge.jpg": (jpeg_bomb(good), "too many pixels"),
    }
    captions = {
        "huge-caption.jpg": (b"word " * 200_000, None),
        "odd-caption.jpg": ("𝔘𝔫𝔦𝔠𝔬𝔡𝔢 \U0001f600 \u202e abc\r\nsecond line".encode(), None),
        "empty-caption.jpg": (b"", "no caption"),
        "blank-caption.jpg": (b" \n\t ", "no caption"),
        "latin-caption.jpg": (b"caf\xe9", "caption is not UTF-8"),
    }
    return [
        *(Hostile(Sample(name, data, text), None) for name, data in fine.items()),
        *(Hostile(Sample(name, data, text), reason) for name, (data, reason) in bad.items()),
        *(Hostile(Sample(name, good, caption), reason) for name, (caption, reason) in captions.items()),
    ]


def usable(kinds: list[Hostile]) -> list[Sample]:
    return [kind.sample for kind in kinds if kind.reason is None]


def reasons(kinds: list[Hostile]) -> Counter[str]:
    return Counter(kind.reason for kind in kinds if kind.reason is not None)


def encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


def bomb(png: bytes) -> bytes:
    """Return a PNG that claims 60,000 x 60,000 pixels, with the checksum to match."""
    header = bytearray(png)
    header[16:24] = (60000).to_bytes(4, "big") * 2
    header[29:33] = zlib.crc32(header[12:29]).to_bytes(4, "big")
    return bytes(header)


def jpeg_bomb(data: bytes) -> bytes:
    """Return a JPEG that claims 65,000 x 65,000 pixels."""
    start = data.index(b"\xff\xc0") + 5
    return data[:start] + (65000).to_bytes(2, "big") * 2 + data[start + 4 :]
