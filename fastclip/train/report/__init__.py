"""The report of a run: `report.html` to look at, `results.json` to read by program.

One HTML file with curves, held-out figures beside chance and control, examples and mistakes with their pictures,
what was skipped, settings and environment. It loads nothing from anywhere, so it can be mailed or archived.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastclip.train import metrics
from fastclip.train.evaluate import Embedded
from fastclip.train.report.environment import environment
from fastclip.train.report.page import page
from fastclip.train.report.summary import Summary, notes, rows, text_table

__all__ = ["Summary", "environment", "notes", "rows", "text_table", "write_report"]

#: Sheets that the page itself shows in another form.
_ON_THE_PAGE = ("curves.png", "retrieval.png")


def write_report(
    summary: Summary,
    folder: Path,
    *,
    tests: Sequence[Embedded] = (),
    config: Mapping[str, Mapping[str, Any]] | None = None,
    facts: Mapping[str, str] | None = None,
) -> Path:
    """Write the report of a run into its folder; return the path of report.html.

    Args:
        summary: what the run reached.
        folder: of the run, with its metrics.jsonl and the pictures the summary names.
        tests: the held-out tests as the model sees them, for examples.
        config: Config.to_dict() of the run.
        facts: of the environment; those of this process without it.
    """
    drawn = {title: folder / file for title, file in summary.pictures.items() if file not in _ON_THE_PAGE}
    lines = metrics.read(folder / "metrics.jsonl")
    text = page(summary, lines, tests, config or {}, environment() if facts is None else facts, drawn)
    (folder / "results.json").write_text(summary.to_json())
    path = folder / "report.html"
    path.write_text(text, encoding="utf-8")
    return path
