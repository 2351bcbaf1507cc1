"""Draw which classes are taken for which."""

from __future__ import annotations

import textwrap
from pathlib import Path

import torch

from fastclip.space import ZeroShotResult
from fastclip.train.canvas import INK, MUTED, ORANGE, Sheet, colour_map

MOST = 40  # classes that are drawn


def draw_confusion(result: ZeroShotResult, path: Path) -> None:
    """Draw the confusion matrix into a PNG, in shares of a row; of many classes, those that are mistaken most."""
    confusion = result.confusion
    wrong = confusion.sum(1) - confusion.diagonal()
    chosen = torch.arange(len(confusion))
    if len(chosen) > MOST:
        chosen = wrong.argsort(descending=True, stable=True)[:MOST].sort().values
    shares = confusion / confusion.sum(1, keepdim=True).clamp_min(1)
    names = [textwrap.shorten(result.names[i], 30, placeholder=" …") for i in chosen.tolist()]
    n, cell = len(names), 34 if len(names) <= 20 else 22
    left, top = 40 + 6.2 * max(map(len, names)), 120 + 0.75 * 6.2 * max(map(len, names))
    sheet = Sheet(left + n * cell + 90 + 3 * max(map(len, names)), top + n * cell + 30)
    sheet.text(28, 34, "Classified by name", size=17, weight="bold")
    what = f"top-1 {100 * result.top1:.1f} % of {result.pictures:,} pictures; chance {100 * result.chance1:.2f} %"
    if n < len(confusion):
        what += f"; the {n} of {len(confusion):,} classes with most mistakes"
    sheet.text(28, 58, what, size=10, colour=MUTED)
    sheet.text(28, 78, "row: the picture's class; column: what it was taken for; per cent of the row", size=9,
               colour=MUTED)  # fmt: skip
    colours = colour_map()
    for row, i in enumerate(chosen.tolist()):
        y = top + row * cell
        sheet.text(28, y + cell / 2, names[row], size=8.5)
        sheet.text(left + (row + 0.5) * cell, top - 8, names[row], size=8.5, rotation=45, anchor="bottom")
        for column, j in enumerate(chosen.tolist()):
            share = float(shares[i, j])
            x = left + column * cell
            sheet.rectangle(x, y, cell - 1, cell - 1, fill=colours(share))
            if share >= 0.005 and cell > 30:
                ink = "white" if share > 0.62 else INK
                sheet.text(
                    x + cell / 2, y + cell / 2, f"{100 * share:.0f}", size=8, colour=ink, anchor="centre"
                )
        sheet.rectangle(left + row * cell, y, cell - 1, cell - 1, edge=ORANGE, line=1.2)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.write(path)
