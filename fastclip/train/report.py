"""Say what a run reached: held-out figures beside chance and control, for the terminal and in report.md."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fastclip.train.evaluate import Result

COLUMNS = ("held-out test", "figure", "this model", "chance")


@dataclass(frozen=True)
class Summary:
    """What the report says of a run."""

    title: str
    results: Sequence[Result]
    control: Sequence[Result] | None  #: the same tests after training on shuffled captions
    control_label: str  #: what the control is, e.g. "shuffled captions, 96 of 768 steps"
    facts: Sequence[str]  #: sentences about model, data, time
    pictures: dict[str, str]  #: file by title
    credits: str | None
    skipped: dict[str, int] = field(default_factory=dict)  #: unreadable pairs by reason
    skipped_files: dict[str, str] = field(default_factory=dict)  #: reason by file


def rows(results: Sequence[Result], control: Sequence[Result] | None) -> list[tuple[str, ...]]:
    """Return the table's rows, each test's headline first: test, figure, model, chance[, control]."""
    table = []
    for number, result in enumerate(results):
        test = f"{result.name} ({result.pictures:,} pictures, {result.captions:,} captions)"
        if result.headline is None:
            test += ", a diagnostic"
        for key, label in _figures(result):
            cells = [test, label, _percent(result.metrics[key]), _percent(result.chance[key])]
            if control is not None:
                cells.append(_percent(control[number].metrics[key]))
            table.append(tuple(cells))
            test = ""
    return table


def text_table(summary: Summary) -> str:
    """Return the table for a terminal: a line per test, its figures in columns below."""
    lines = [("", *(heading.split(":")[0] for heading in _header(summary)[2:]))]
    for test, figure, *shares in rows(summary.results, summary.control):
        if test:
            lines.append((test,))
        lines.append((f"  {figure}", *shares))
    figures = [line for line in lines if len(line) > 1]
    widths = [max(len(line[i]) for line in figures) for i in range(len(figures[0]))]

    def render(cells: Sequence[str]) -> str:
        first, *shares = cells
        right = [share.rjust(width) for share, width in zip(shares, widths[1:], strict=False)]
        return "  ".join([first.ljust(widths[0]) if shares else first, *right])

    return "\n".join(render(line) for line in lines)


def write_report(summary: Summary, path: Path) -> None:
    """Write report.md: the table, the pictures that lie beside it, what had to be skipped, and credits."""
    parts = [f"# {summary.title}", "\n".join(f"- {fact}" for fact in summary.facts)]
    if summary.results:
        header = _header(summary)
        align = ["---", "---", *["---:"] * (len(header) - 2)]
        table = [header, align, *rows(summary.results, summary.control)]
        parts += ["## Held-out figures", "\n".join(f"| {' | '.join(line)} |" for line in table)]
        parts += notes(summary)
    else:
        parts.append("No pairs were held out, so there are no figures to report.")
    for title, file in summary.pictures.items():
        parts.append(f"## {title}\n\n![{title}]({file})")
    if summary.skipped:
        total = sum(summary.skipped.values())
        lines = [f"{total:,} skipped:", ""]
        lines += [f"- {reason}: {count:,}" for reason, count in sorted(summary.skipped.items())]
        if summary.skipped_files:
            lines += ["", "Each one is listed in `skipped.txt`."]
            listing = "".join(f"{file}\t{reason}\n" for file, reason in sorted(summary.skipped_files.items()))
            (path.parent / "skipped.txt").write_text(listing)
        parts.append("## Skipped\n\n" + "\n".join(lines))
    if summary.credits:
        parts.append(f"## Credits\n\n{summary.credits}")
    path.write_text("\n\n".join(parts) + "\n")


def notes(summary: Summary) -> list[str]:
    """Return what a reader must know to judge the table."""
    said = [
        "R@k: the share of pictures whose caption is among the k nearest of all captions (picture → caption), "
        "or of captions that have a picture among the k nearest of all pictures (caption → picture). "
        "Equal scores count against the model."
    ]
    for result in summary.results:
        if "group_R@1" in result.metrics:
            guess = result.metrics["group_R@1"] * result.chance["choice"]
            said.append(
                f"{result.name}: a model that knows the base as well as this one and guesses the "
                f"{result.group_name} would reach R@1 {_percent(guess)}."
            )
    if summary.control is not None:
        said.append(
            f"Control ({summary.control_label}): the same program on the same pictures, with the captions "
            "shuffled among them. It is a short run; `--shuffle-captions` trains it in full."
        )
    return said


def _header(summary: Summary) -> tuple[str, ...]:
    return COLUMNS if summary.control is None else (*COLUMNS, f"control: {summary.control_label}")


def _figures(result: Result) -> list[tuple[str, str]]:
    """Return (metric, label) of the figures worth a row."""
    figures = [(f"image_to_text_R@{k}", f"picture → caption R@{k}") for k in (1, 5, 10)]
    if "choice" in result.metrics:
        figures.append(("choice", f"right {result.group_name or 'choice'}"))
        figures.append(("group_R@1", "right base, any variant"))
    figures += [(f"text_to_image_R@{k}", f"caption → picture R@{k}") for k in (1, 5)]
    return sorted(figures, key=lambda figure: figure[0] != f"image_to_text_{result.headline}")


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %" if 0 < share < 0.01 else f"{100 * share:.1f} %"
