"""The pictures of a run: drawn, in colour, and showing what they claim."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fastclip.data.source import HeldOut
from fastclip.train.canvas import GREEN, MUTED, Sheet
from fastclip.train.evaluate import Embedded
from fastclip.train.pictures import draw_curves, draw_map, draw_retrieval, draw_similarity, portraits
from fastclip.train.projection import pca, spread, tsne


def world(pictures: int = 12, headline: str | None = "R@1", ground: int = 250, seed: int = 0) -> Embedded:
    generator = torch.Generator().manual_seed(seed)
    images = torch.full((pictures, 3, 16, 16), ground, dtype=torch.uint8)
    images[:, :, 4:12, 4:12] = torch.randint(
        0, 200, (pictures, 3, 1, 1), generator=generator, dtype=torch.uint8
    )
    features = F.normalize(torch.randn(pictures, 8, generator=generator), dim=1)
    gallery = [
        f"picture {i} of $many$ with a name that goes on for rather a long time" for i in range(pictures)
    ]
    test = HeldOut("the test", images, gallery, torch.arange(pictures), headline=headline)
    return Embedded(test, features, features)


def read(path: Path) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.open(path).convert("RGB"))


def shows(pixels: np.ndarray, colour: tuple[int, ...] | str) -> bool:
    if isinstance(colour, str):
        colour = tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))
    low, high = np.array(colour) - 2, np.array(colour) + 2
    return bool(((pixels >= low) & (pixels <= high)).all(-1).any())


@pytest.mark.parametrize("tests", [1, 2])
@pytest.mark.parametrize("pictures", [1, 3, 40])
def test_every_sheet_is_drawn_whatever_there_is(tmp_path: Path, tests: int, pictures: int) -> None:
    embedded = [world(pictures, seed=i) for i in range(tests)]
    for name, draw in {"retrieval": draw_retrieval, "similarity": draw_similarity, "map": draw_map}.items():
        path = tmp_path / f"{name}.png"
        draw(embedded, path)
        pixels = read(path)
        assert pixels.shape[0] > 200 and pixels.shape[1] > 200, name
        packed = pixels.astype(np.int32) @ (1, 256, 65536)
        assert len(np.unique(packed)) > 20, name


def test_retrieval_frames_the_right_pictures_only(tmp_path: Path) -> None:
    draw_retrieval([world()], tmp_path / "right.png")
    assert shows(read(tmp_path / "right.png"), GREEN)
    right = world(pictures=40)
    wrong = Embedded(right.test, right.images, -right.texts)
    draw_retrieval([wrong], tmp_path / "wrong.png")
    assert not shows(read(tmp_path / "wrong.png"), GREEN)


def test_the_map_shows_every_picture_uncovered(tmp_path: Path) -> None:
    embedded = world(pictures=30, ground=255)
    draw_map([embedded], tmp_path / "map.png")
    shown = set(np.unique(read(tmp_path / "map.png").astype(np.int32) @ (1, 256, 65536)).tolist())
    for picture in embedded.test.images:
        assert int(picture[:, 8, 8].int() @ torch.tensor([1, 256, 65536], dtype=torch.int32)) in shown


def test_the_map_lies_on_the_ground_of_its_pictures(tmp_path: Path) -> None:
    draw_map([world(ground=90)], tmp_path / "map.png")
    assert read(tmp_path / "map.png")[0, 0].tolist() == [90, 90, 90]


def test_curves_show_every_series_there_is(tmp_path: Path) -> None:
    lines = [{"step": s, "train/loss": 5 / s, "train/scale": 14.0 + s} for s in range(1, 20)]
    draw_curves(lines, tmp_path / "plain.png")
    lines += [{"step": s, "val/image_to_text_R@1": s / 20, "train/loss": None} for s in (10, 19)]
    draw_curves(lines, tmp_path / "recall.png", {"validation, R@1": "val/image_to_text_R@1"})
    assert read(tmp_path / "recall.png").shape[1] > read(tmp_path / "plain.png").shape[1]


def test_portraits_keep_order_and_size() -> None:
    embedded = world()
    drawn = portraits(embedded.test, [3, 1], 40)
    assert drawn.shape == (2, 40, 40, 3) and drawn.dtype == np.uint8
    assert drawn[0, 20, 20].tolist() == embedded.test.images[3, :, 8, 8].tolist()
    assert drawn[1, 20, 20].tolist() == embedded.test.images[1, :, 8, 8].tolist()


def test_portraits_come_from_the_test_where_it_draws_them() -> None:
    embedded = world(ground=90)
    embedded.test.portraits = lambda rows, side: torch.full((len(rows), 3, side, side), 7, dtype=torch.uint8)
    drawn = portraits(embedded.test, [3, 1], 40)
    assert drawn.shape == (2, 40, 40, 3) and (drawn == 7).all()


def test_sheets_count_from_the_top_left(tmp_path: Path) -> None:
    sheet = Sheet(100, 60)
    sheet.rectangle(10, 5, 20, 10, fill=MUTED)
    sheet.write(tmp_path / "sheet.png")
    pixels = read(tmp_path / "sheet.png")
    assert pixels.shape == (120, 200, 3)
    assert shows(pixels[12:28, 22:58], MUTED)
    assert not shows(pixels[40:], MUTED)


def test_tsne_keeps_clusters_together() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = 6 * torch.randn(5, 16, generator=generator)
    label = torch.arange(100) % 5
    y = tsne(centres[label] + torch.randn(100, 16, generator=generator), perplexity=10, steps=300)
    nearest = torch.cdist(y, y).fill_diagonal_(torch.inf).argmin(1)
    assert (label[nearest] == label).float().mean() > 0.95
    assert torch.isfinite(y).all()


def test_tsne_of_few_or_equal_points_is_finite() -> None:
    for x in (torch.zeros(1, 3), torch.zeros(3, 3), torch.zeros(10, 3), torch.randn(4, 1)):
        y = tsne(x, steps=50)
        assert y.shape == (len(x), 2) and torch.isfinite(y).all()


def test_pca_keeps_the_widest_directions() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 6, generator=generator) * torch.tensor([0.1, 5.0, 0.1, 2.0, 0.1, 0.1])
    y = pca(x)
    assert abs(torch.corrcoef(torch.stack([y[:, 0], x[:, 1]]))[0, 1]) > 0.99
    assert abs(torch.corrcoef(torch.stack([y[:, 1], x[:, 3]]))[0, 1]) > 0.99


def test_spread_parts_what_overlaps_and_nothing_else() -> None:
    generator = torch.Generator().manual_seed(0)
    y = torch.cat(
        [torch.rand(40, 2, generator=generator) * 3, torch.tensor([[50.0, 50.0], [0.0, 0.0], [0.0, 0.0]])]
    )
    parted = spread(y, 1.0)
    apart = (parted[:, None] - parted[None]).abs().amax(2).fill_diagonal_(torch.inf)
    assert apart.min() > 0.9
    torch.testing.assert_close(parted[40], y[40], atol=0.01, rtol=0)
