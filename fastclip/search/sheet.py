"""Draw answers to queries on a contact sheet."""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from fastclip.space.embeddings import Row
from fastclip.train.canvas import FAINT, MUTED, Sheet

TILE, GAP, LEFT, COLUMNS = 104, 14, 28, 6


@dataclass(frozen=True)
class Hit:
    """An answer and how near it is."""

    cosine: float
    row: Row


@dataclass(frozen=True)
class Query:
    """A query and its answers, nearest first."""

    title: str
    hits: Sequence[Hit]


def draw_contact_sheet(queries: Sequence[Query], pictures: Mapping[Row, Tensor], path: Path) -> None:
    """Draw every query with its answers into a PNG; an answer without a picture shows its caption."""
    cell = TILE + 44
    heights = [48 + -(-len(query.hits) // COLUMNS) * cell for query in queries]
    sheet = Sheet(2 * LEFT + COLUMNS * (TILE + GAP) - GAP, 20 + sum(heights) + 10)
    top: float = 20
    for query, height in zip(queries, heights, strict=True):
        sheet.text(
            LEFT, top + 16, textwrap.shorten(query.title, 80, placeholder=" …"), size=14, weight="bold"
        )
        for i, hit in enumerate(query.hits):
            x, y = LEFT + i % COLUMNS * (TILE + GAP), top + 40 + i // COLUMNS * cell
            picture = pictures.get(hit.row)
            if picture is None:
                sheet.rectangle(x, y, TILE, TILE, fill=FAINT)
            else:
                sheet.picture(x, y, TILE, picture.permute(1, 2, 0).numpy())
            sheet.text(x, y + TILE + 10, f"{i + 1}.  {hit.cosine:.3f}", size=8.5, colour=MUTED)
            said = hit.row.caption or Path(hit.row.image_path).name
            sheet.text(x, y + TILE + 25, textwrap.shorten(said, 19, placeholder="…"), size=8.5)
        top += height
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():  # captions may have letters that the font lacks; they show as boxes
        warnings.filterwarnings("ignore", message="Glyph")
        sheet.write(path)
