"""Draw sums and ways on a sheet of paper: a PNG for documents."""

from __future__ import annotations

import textwrap
from pathlib import Path

import numpy as np

from fastclip.explore.gallery import Gallery
from fastclip.explore.page import Findings, places_shown
from fastclip.explore.scenes import Strip, Sum
from fastclip.train.canvas import BLUE, FAINT, GREEN, MUTED, SHARPNESS, Sheet

TILE, GAP, LEFT = 62, 9, 28
_TEXT = 150  # width of a written term


def draw_sheet(gallery: Gallery, findings: Findings, path: Path, *, sums: int = 5, strips: int = 6) -> None:
    """Draw the first sums and ways into a PNG."""
    chosen, ways = findings.sums[:sums], findings.strips[:strips]
    places = sorted(set(places_shown(findings)))
    drawn = _on_white(gallery.draw(places, TILE * SHARPNESS)) if places else np.empty((0, 1, 1, 3), np.uint8)
    pictures = dict(zip(places, drawn, strict=True))
    row, head = TILE + 18, 84
    middle = head + len(chosen) * row + 54
    sheet = Sheet(1010, middle + len(ways) * row + 10)
    sheet.text(LEFT, 34, "Sums of meanings", size=17, weight="bold")
    what = f"five nearest of {len(gallery):,} pictures; the model never saw the framed one, the right answer"
    sheet.text(LEFT, 58, what, size=10, colour=MUTED)
    for i, shown in enumerate(chosen):
        _draw_sum(sheet, head + i * row, shown, pictures)
    sheet.text(LEFT, middle - 34, "Ways between meanings", size=17, weight="bold")
    sheet.text(
        LEFT, middle - 12, "from caption to caption, the nearest picture at each step", size=10, colour=MUTED
    )
    for i, way in enumerate(ways):
        _draw_strip(sheet, middle + 8 + i * row, way, pictures)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.write(path)


def _draw_sum(sheet: Sheet, top: float, shown: Sum, pictures: dict[int, np.ndarray]) -> None:
    x: float = LEFT
    for i, term in enumerate(shown.terms):
        if i or term.sign < 0:
            sheet.text(
                x + 9, top + TILE / 2, "+" if term.sign > 0 else "−", size=15, colour=MUTED, anchor="centre"
            )
            x += 24
        if term.place is not None:
            sheet.picture(x, top, TILE, pictures[term.place])
            x += TILE + GAP
        else:
            colour = MUTED if term.sign < 0 else BLUE
            sheet.text(x, top + TILE / 2, _wrap(term.text or ""), size=9.5, colour=colour, line_spacing=1.25)
            x += _TEXT
    sheet.text(x + 9, top + TILE / 2, "=", size=15, colour=MUTED, anchor="centre")
    x += 30
    for found in shown.found:
        sheet.picture(x, top, TILE, pictures[found.place], frame=GREEN if found.right else None)
        x += TILE + GAP


def _draw_strip(sheet: Sheet, top: float, way: Strip, pictures: dict[int, np.ndarray]) -> None:
    sheet.text(LEFT, top + TILE / 2, _wrap(way.first), size=9.5, line_spacing=1.25)
    x = LEFT + _TEXT
    sheet.rectangle(x, top + TILE + 8, len(way.found) * (TILE + GAP) - GAP, 1, fill=FAINT)
    for found in way.found:
        sheet.picture(x, top, TILE, pictures[found.place])
        x += TILE + GAP
    sheet.text(x + 6, top + TILE / 2, _wrap(way.last), size=9.5, line_spacing=1.25)


def _wrap(text: str) -> str:
    return "\n".join(textwrap.wrap(text, 19, max_lines=3, placeholder=" …"))


def _on_white(pictures: np.ndarray) -> np.ndarray:
    """Lay pictures uint8 (n, S, S, 3 or 4) on white."""
    if pictures.shape[-1] == 3:
        return pictures
    alpha = pictures[..., 3:].astype(np.uint16)
    return ((pictures[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
