"""Draw what a run learned: curves, retrieval by text, similarities, and a map of the space.

Each function writes one PNG. They take features and pictures, not a model, and choose examples at random.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fastclip.data.source import HeldOut
from fastclip.train.canvas import (
    BLUE,
    FAINT,
    GREEN,
    INK,
    MUTED,
    ORANGE,
    SHARPNESS,
    Sheet,
    colour_map,
    pyplot,
    write_figure,
)
from fastclip.train.evaluate import Embedded
from fastclip.train.projection import pca, spread, tsne


def draw_curves(
    lines: Sequence[dict[str, Any]], path: Path, recalls: Mapping[str, str] | None = None
) -> None:
    """Draw loss, logit scale and held-out recalls over the steps of a run.

    Args:
        lines: of the run's metrics file.
        path: the PNG.
        recalls: key of the metrics file by label, of the third panel; without any there is none.
    """
    panels: list[tuple[str, Mapping[str, str], str]] = [
        ("loss", {"loss": "train/loss"}, "nats"),
        ("logit scale", {"scale": "train/scale"}, "multiplier"),
    ]
    if recalls:
        panels.append(("held-out recall, picture → caption", recalls, "share of pictures"))
    plt = pyplot()
    figure, axes = plt.subplots(1, len(panels), figsize=(4.4 * len(panels), 3.3), squeeze=False)
    for ax, (title, curves, unit) in zip(axes[0], panels, strict=True):
        for (label, key), colour in zip(curves.items(), (BLUE, ORANGE, GREEN, MUTED) * 4, strict=False):
            points = [(line["step"], line[key]) for line in lines if line.get(key) is not None]
            steps, values = zip(*points, strict=True) if points else ((), ())
            marker = "o" if key.startswith("val/") else None
            ax.plot(steps, values, color=colour, lw=1.8, marker=marker, ms=3.5, label=label)
        ax.set_title(title, loc="left", color=INK, fontsize=11)
        ax.set_xlabel("step")
        ax.set_ylabel(unit)
        ax.grid(color=FAINT, lw=0.8)
        ax.set_xlim(left=0)
        if title != "logit scale":
            ax.set_ylim(bottom=0)
        if len(curves) > 1:
            ax.legend(frameon=False, fontsize=9)
        for side in ("top", "right"):
            ax.spines[side].set_visible(False)
    figure.tight_layout(w_pad=2.5)
    write_figure(figure, path)


def draw_retrieval(tests: Sequence[Embedded], path: Path, *, rows: int = 6, seed: int = 0) -> None:
    """Draw a contact sheet: captions drawn at random, their five nearest pictures, the right ones framed."""
    tests = [test for test in tests if test.test.headline] or list(tests)
    columns = [(tests[0], 0), (tests[1], 0)] if len(tests) > 1 else [(tests[0], 0), (tests[0], rows)]
    tile, gap, text_width, head = 66, 8, 250, 112
    width = text_width + 5 * (tile + gap) + 118
    sheet = Sheet(2 * width + 8, head + rows * (tile + 18) + 10)
    sheet.text(28, 34, "Pictures found by caption", size=17, weight="bold")
    sheet.text(
        28, 58, "The model never saw these pictures. Captions are drawn at random; right ones are framed.",
        size=10, colour=MUTED,
    )  # fmt: skip
    for column, (embedded, skip) in enumerate(columns):
        test = embedded.test
        left = 28 + column * width
        if column == 0 or len(tests) > 1:
            title = f"{test.name}: five nearest of {len(test):,} pictures"
            sheet.text(left, head - 20, title, size=10.5, weight="bold", colour=BLUE)
        placed: list[tuple[float, float, int, bool]] = []
        for row, caption in enumerate(_some_captions(test, skip + rows, seed)[skip:]):
            top: float = head + row * (tile + 18)
            sheet.text(left, top + tile / 2, _wrap(test.gallery[caption], 34), size=10, line_spacing=1.25)
            order = (embedded.images @ embedded.texts[caption]).argsort(descending=True, stable=True)
            right = test.target.to(order.device)[order] == caption
            for place in range(min(5, len(order))):
                placed.append(
                    (left + text_width + place * (tile + gap), top, int(order[place]), bool(right[place]))
                )
            if not right[:5].any():
                rank = int(right.int().argmax()) + 1
                edge = left + text_width + 5 * (tile + gap) + 2
                sheet.text(edge, top + tile / 2, f"right: #{rank}", size=9, colour=MUTED)
        drawn = portraits(test, [index for _, _, index, _ in placed], tile * SHARPNESS)
        for (x, top, _, is_right), pixels in zip(placed, drawn, strict=True):
            sheet.picture(x, top, tile, pixels, frame=GREEN if is_right else None)
    sheet.write(path)


def draw_similarity(tests: Sequence[Embedded], path: Path, *, count: int = 16, seed: int = 0) -> None:
    """Draw the cosines of some pictures (rows) and their captions (columns), alike next to alike."""
    tests = ([test for test in tests if test.test.headline] or list(tests))[:2]
    pictures, images, texts, captions = [], [], [], []
    cell = 46
    for embedded in tests:
        test = embedded.test
        chosen = _some_captions(test, count // len(tests), seed)
        rows = [int((test.target == caption).nonzero()[0]) for caption in chosen]
        pictures += list(portraits(test, rows, cell * SHARPNESS))
        images += [embedded.images[row] for row in rows]
        texts += [embedded.texts[caption] for caption in chosen]
        captions += [test.gallery[caption] for caption in chosen]
    image_features, text_features = torch.stack(images).cpu(), torch.stack(texts).cpu()
    order = pca(text_features)[:, 0].argsort().tolist()
    z = (image_features @ text_features.T)[order][:, order].numpy()
    n = len(order)

    labels = [textwrap.shorten(captions[i], 46, placeholder=" …") for i in order]
    # Slanted labels reach up and to the right; a character is about 5.6 wide at their size.
    reach = [5.6 * len(label) for label in labels]
    left, top = 28 + cell + 10, 112 + 0.65 * max(reach)
    right = max(left + n * cell, *(left + i * cell + 24 + 0.77 * length for i, length in enumerate(reach)))
    sheet = Sheet(right + 28, top + n * cell + 28)
    sheet.text(28, 34, "Unseen pictures and their captions", size=17, weight="bold")
    sheet.text(
        28, 58, "cosine similarity × 100; the pair that belongs together is framed", size=10, colour=MUTED
    )
    colours = colour_map()
    low, high = min(0.0, float(z.min())), float(z.max())
    for i in range(n):
        sheet.picture(28, top + i * cell + 2, cell - 4, pictures[order[i]])
        sheet.text(left + (i + 0.5) * cell, top - 10, labels[i], size=9, rotation=40, anchor="bottom")
        for j in range(n):
            level = (z[i, j] - low) / max(high - low, 1e-9)
            sheet.rectangle(left + j * cell, top + i * cell, cell, cell, fill=colours(level))
            ink = "white" if level > 0.62 else INK
            sheet.text(left + (j + 0.5) * cell, top + (i + 0.5) * cell, f"{round(100 * float(z[i, j]))}", size=8.5,
                       colour=ink, anchor="centre")  # fmt: skip
    for i in range(n):
        sheet.rectangle(left + i * cell, top + i * cell, cell, cell, edge=ORANGE, line=2.2)
    sheet.write(path)


def draw_map(
    tests: Sequence[Embedded], path: Path, *, side: int = 1100, limit: int = 1200, seed: int = 0
) -> None:
    """Draw a t-SNE map of the space of held-out pictures, with the pictures themselves as points."""
    owners = [(embedded, i) for embedded in tests for i in range(len(embedded.test))]
    if len(owners) > limit:
        chosen = torch.randperm(len(owners), generator=torch.Generator().manual_seed(seed))[:limit]
        owners = [owners[i] for i in chosen.tolist()]
    x = torch.stack([embedded.images[i] for embedded, i in owners]).cpu()
    # Pictures on about two fifths of the plane: room for the gaps that show the clusters.
    tile = max(14, min(96, int(side * (0.4 / len(owners)) ** 0.5)))
    y = tsne(x)
    y = y - (y.amax(0) + y.amin(0)) / 2
    y = spread(y / y.abs().max().clamp_min(1e-12) * (side - tile) / 2, tile + 1.0)
    y = y - y.amin(0)
    width, height = (math.ceil(extent) + tile for extent in y.amax(0).tolist())

    dense = tile * SHARPNESS
    drawn = np.empty((len(owners), dense, dense, 3), np.uint8)
    for embedded in tests:
        mine = [row for row, owner in enumerate(owners) if owner[0] is embedded]
        drawn[mine] = portraits(embedded.test, [owners[row][1] for row in mine], dense)
    ground = _ground(drawn)
    canvas = np.empty((height * SHARPNESS, width * SHARPNESS, 3), np.uint8)
    canvas[:] = ground
    for picture, (across, down) in zip(drawn, (y * SHARPNESS).int().tolist(), strict=True):
        canvas[down : down + dense, across : across + dense] = picture
    margin, head = 30, 84
    sheet = Sheet(width + 2 * margin, height + head + margin, paper=tuple(c / 255 for c in ground))
    sheet.text(margin, 34, "A map of the space", size=17, weight="bold")
    sheet.text(
        margin, 58, f"{len(owners):,} pictures the model never saw, close where it finds them alike (t-SNE)",
        size=10, colour=INK,
    )  # fmt: skip
    sheet.picture(margin, head, width, canvas, height=height, rounding=0)
    sheet.write(path)


def portraits(test: HeldOut, indices: Sequence[int], side: int) -> np.ndarray:
    """Return the pictures at `indices` for people to look at: uint8 (n, side, side, 3)."""
    if test.portraits is not None and len(indices):
        return test.portraits(indices, side).permute(0, 2, 3, 1).numpy()
    images = test.images[torch.as_tensor(indices, dtype=torch.int64)]
    if images.shape[-1] != side:
        images = _resize(images, side)
    return images.permute(0, 2, 3, 1).numpy()


def _resize(images: Tensor, side: int) -> Tensor:
    resized = F.interpolate(images.float(), (side, side), mode="bicubic", antialias=True)
    return resized.round_().clamp_(0, 255).to(torch.uint8)


def _ground(pictures: np.ndarray) -> tuple[int, int, int]:
    """Return the colour that pictures (n, S, S, 3) stand on: that of most corners, or else white."""
    corners = pictures[:, [0, 0, -1, -1], [0, -1, 0, -1]].reshape(-1, 3)
    colours, counts = np.unique(corners, axis=0, return_counts=True)
    if counts.max() < 0.5 * len(corners):
        return 255, 255, 255
    red, green, blue = colours[counts.argmax()].tolist()
    return red, green, blue


def _some_captions(test: HeldOut, count: int, seed: int) -> list[int]:
    """Return up to `count` distinct captions that have pictures, at random."""
    asked = test.target.unique()
    order = torch.randperm(len(asked), generator=torch.Generator().manual_seed(seed))
    return asked[order[:count]].tolist()


def _wrap(text: str, width: int) -> str:
    lines = textwrap.wrap(text, width)
    return "\n".join(
        [*lines[:2], textwrap.shorten(" ".join(lines[2:]), width, placeholder=" …")]
        if len(lines) > 3
        else lines
    )
