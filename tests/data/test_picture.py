from __future__ import annotations

import io
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from fastclip.data.picture import UnreadableError, crop_box, decode, read


def encoded(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def halves(width: int = 64, height: int = 64) -> Image.Image:
    """Return a picture, red on its left and blue on its right."""
    picture = Image.new("RGB", (width, height), (200, 30, 30))
    picture.paste((30, 30, 200), (width // 2, 0, width, height))
    return picture


def corners(out: np.ndarray) -> list[tuple[int, ...]]:
    """Return the four corners' colours: upper left, upper right, lower left, lower right."""
    return [tuple(int(v) for v in out[:, y, x]) for y in (1, -2) for x in (1, -2)]


RED, BLUE = (200, 30, 30), (30, 30, 200)


def test_a_picture_becomes_a_small_square() -> None:
    out = decode(encoded(halves()), 16)
    assert out.shape == (3, 16, 16) and out.dtype == np.uint8
    assert corners(out) == [RED, BLUE, RED, BLUE]


def test_a_path_reads_as_its_bytes(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(encoded(halves()))
    np.testing.assert_array_equal(decode(file, 16), decode(file.read_bytes(), 16))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM"])
def test_every_usual_format_is_read(kind: str) -> None:
    out = decode(encoded(halves(40, 30), kind), 12).astype(int)
    for corner, expected in zip(corners(out), [RED, BLUE, RED, BLUE], strict=True):
        assert np.abs(np.subtract(corner, expected)).max() < 25


@pytest.mark.parametrize(
    ("picture", "colour"),
    [
        (Image.new("L", (20, 20), 77), (77, 77, 77)),
        (Image.new("1", (20, 20), 1), (255, 255, 255)),
        (Image.fromarray(np.full((20, 20), 77 << 8, np.uint16)), (77, 77, 77)),
        (Image.new("RGBA", (20, 20), (9, 9, 9, 0)), (255, 255, 255)),
        (Image.new("RGBA", (20, 20), (10, 20, 30, 255)), (10, 20, 30)),
        (Image.new("LA", (20, 20), (5, 0)), (255, 255, 255)),
        (Image.new("RGB", (20, 20), (10, 20, 30)).quantize(4), (10, 20, 30)),
    ],
    ids=["grey", "one bit", "16 bit", "transparent", "opaque", "grey with alpha", "palette"],
)
def test_every_usual_mode_becomes_rgb(picture: Image.Image, colour: tuple[int, int, int]) -> None:
    out = decode(encoded(picture), 8)
    assert np.abs(out.reshape(3, -1).T.astype(int) - colour).max() <= 3


def test_cmyk_becomes_rgb() -> None:
    out = decode(encoded(Image.new("CMYK", (20, 20), (0, 255, 255, 0)), "JPEG"), 8).mean((1, 2))
    assert out[0] > 220 and out[1] < 40 and out[2] < 40


def test_an_animation_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (20, 20), colour) for colour in (RED, BLUE)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert corners(decode(data, 8))[0] == RED


def test_the_camera_s_orientation_is_obeyed() -> None:
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = encoded(halves(48, 32), "PNG", exif=exif)
        with Image.open(io.BytesIO(data)) as picture:
            upright = ImageOps.exif_transpose(picture)
        np.testing.assert_array_equal(
            decode(data, 16), decode(encoded(upright.copy()), 16), err_msg=str(orientation)
        )


@pytest.mark.parametrize("size", [(300, 100), (100, 300), (64, 64), (1, 1), (5, 900)])
def test_the_centre_square_is_kept(size: tuple[int, int]) -> None:
    left, upper, right, lower = crop_box(*size, None)
    assert right - left == lower - upper == min(size)
    assert left == size[0] - right and upper == size[1] - lower


@given(st.integers(1, 5000), st.integers(1, 5000), st.lists(st.floats(0, 0.999), min_size=4, max_size=4))
def test_a_random_crop_lies_inside_and_is_about_square(width: int, height: int, draws: list[float]) -> None:
    left, upper, right, lower = crop_box(width, height, np.array(draws))
    assert -1e-9 <= left < right <= width + 1e-6 and -1e-9 <= upper < lower <= height + 1e-6
    assert 0.7499 < (right - left) / (lower - upper) < 1.3334
    if width == height:
        # Where the shape allows nine tenths of the area, at least two thirds remain after fitting.
        assert (right - left) * (lower - upper) > 0.66 * width * height


def test_a_large_jpeg_is_decoded_small_and_stays_the_same_picture() -> None:
    x, y = np.meshgrid(np.linspace(0, 255, 1600), np.linspace(0, 255, 1200))
    gradient = Image.fromarray(np.stack([x, y, 255 - x], -1).astype(np.uint8))
    draws = np.array([0.3, 0.4, 0.7, 0.2])
    for crop in (None, draws):
        fast = decode(encoded(gradient, "JPEG", quality=95), 32, crop)
        exact = decode(encoded(gradient), 32, crop)
        assert np.abs(fast.astype(int) - exact.astype(int)).max() <= 3


def test_shrinking_is_antialiased() -> None:
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 255
    out = decode(encoded(Image.fromarray(stripes)), 16)
    assert np.abs(out.astype(int) - 127).max() < 8


def test_a_crop_is_a_function_of_its_draws() -> None:
    data = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)))
    a, b = np.array([0.1, 0.2, 0.3, 0.4]), np.array([0.1, 0.2, 0.9, 0.4])
    np.testing.assert_array_equal(decode(data, 16, a), decode(data, 16, a))
    assert (decode(data, 16, a) != decode(data, 16, b)).any()


JPEG = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)), "JPEG")
PNG = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"<!DOCTYPE html><html>404</html>", "HTML or text in place of a picture"),
        (b"\n\n<html>", "HTML or text in place of a picture"),
        (b'{"error": 404}', "HTML or text in place of a picture"),
        (b"\x00" * 100, "not a picture"),
        (JPEG[: len(JPEG) // 2], "truncated"),
        (PNG[: len(PNG) // 2], "truncated"),
        (PNG[:60] + bytes(40) + PNG[100:], "damaged"),
    ],
)
def test_what_cannot_be_read_says_why(data: bytes, reason: str) -> None:
    with pytest.raises(UnreadableError, match=f"^{reason}$"):
        decode(data, 16)


@given(st.binary(max_size=200), st.integers(0, len(JPEG)), st.sampled_from([JPEG, PNG]))
def test_no_damage_raises_anything_else(noise: bytes, at: int, data: bytes) -> None:
    damaged = data[:at] + noise + data[at + len(noise) :]
    try:
        assert decode(damaged, 8).shape == (3, 8, 8)
    except UnreadableError as error:
        assert str(error)


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(UnreadableError, match=r"^no such file$"):
        decode(tmp_path / "gone.jpg", 16)
    with pytest.raises(UnreadableError, match=r"^not a regular file$"):
        decode(tmp_path, 16)


def test_a_decompression_bomb_is_refused_unopened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastclip.data.picture.MAX_PIXELS", 64 * 64 - 1)
    with pytest.raises(UnreadableError, match=r"^too many pixels$"):
        decode(PNG, 16)
    header = bytearray(PNG)
    header[16:24] = (60000).to_bytes(4, "big") * 2  # width and height, as a liar would state them
    header[29:33] = zlib.crc32(header[12:29]).to_bytes(4, "big")
    with pytest.raises(UnreadableError, match=r"^too many pixels$"):
        decode(bytes(header), 16)


@pytest.fixture
def photograph() -> Image.Image:
    """Return a smooth picture with fine noise on it, as cameras make them."""
    draws = np.random.default_rng(3)
    coarse = Image.fromarray(draws.integers(0, 256, (9, 12, 3), np.uint8)).resize(
        (640, 480), Image.Resampling.BICUBIC
    )
    noisy = np.asarray(coarse) + draws.normal(0, 8, (480, 640, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("size", [16, 64, 224, 500])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"quality": 30}])
def test_both_decoders_give_the_same_picture(
    photograph: Image.Image, size: int, options: dict[str, int]
) -> None:
    pytest.importorskip("simplejpeg")
    for picture in (photograph, photograph.convert("L")):
        data = encoded(picture, "JPEG", **options)
        for draws in (None, np.array([0.3, 0.8, 0.2, 0.9])):
            fast, plain = (
                decode(data, size, draws, decoder=decoder).astype(int) for decoder in ("simplejpeg", "pillow")
            )
            # The same library may be there in two versions: a level or two, nowhere more.
            assert np.abs(fast - plain).max() <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_both_decoders_turn_a_picture_upright(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(halves(48, 32), "JPEG", exif=exif, quality=95)
    fast, plain = (decode(data, 8, decoder=decoder).astype(int) for decoder in ("auto", "pillow"))
    with Image.open(io.BytesIO(data)) as picture:
        upright = np.asarray(ImageOps.exif_transpose(picture).resize((8, 8))).transpose(2, 0, 1)
    assert np.abs(fast - plain).max() <= 2
    assert np.abs(fast[:, 1:-1, ::7] - upright.astype(int)[:, 1:-1, ::7]).max() < 40


def test_damaged_notes_do_not_cost_the_picture() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = bytearray(encoded(halves(48, 32), "JPEG", exif=exif))
    at = data.index(b"Exif")
    data[at + 6 : at + 14] = b"\xff" * 8
    for decoder in ("auto", "pillow"):
        assert corners(decode(bytes(data), 8, decoder=decoder))[0][0] > 150


def test_scaled_decoding_is_as_good_as_resizing_the_whole(photograph: Image.Image) -> None:
    data = encoded(photograph, "JPEG", quality=95)
    whole = encoded(photograph, "PNG")
    for size in (32, 100):
        difference = decode(data, size).astype(float) - decode(whole, size)
        assert np.abs(difference).mean() < 2.5


def test_resizing_is_pillows() -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 50, 3), np.uint8))
    for size in (20, 80):
        expected = np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
        assert np.abs(decode(encoded(picture), size).astype(int) - expected).max() <= 1


@pytest.mark.parametrize("decoder", ["simplejpeg", "pillow"])
def test_a_jpeg_with_a_scratch_is_judged_the_same(decoder: str) -> None:
    scratched = JPEG[: len(JPEG) // 2] + b"\0\1\2" + JPEG[len(JPEG) // 2 :]
    assert decode(scratched, 16, decoder=decoder).shape == (3, 16, 16)
    for bad in (JPEG[:200], JPEG[: len(JPEG) // 2]):
        with pytest.raises(UnreadableError):
            decode(bad, 16, decoder=decoder)


def test_a_file_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jpg").write_bytes(JPEG)
    with pytest.raises(UnreadableError, match=r"^file too large$"):
        read(tmp_path / "a.jpg", len(JPEG) - 1)
    with pytest.raises(UnreadableError, match=r"^cannot be opened"):
        read(str(tmp_path / "a\0b.jpg"))
